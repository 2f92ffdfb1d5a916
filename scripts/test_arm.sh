#!/usr/bin/env bash
# Build the kernel test for aarch64 and run it under qemu, as processors with and without the optional
# instructions: that their results are right, not how fast they are.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=""
for tool in cmake make aarch64-linux-gnu-g++ qemu-aarch64; do
    command -v $tool >/dev/null || missing+=" $tool"
done
if [ -n "$missing" ]; then
    echo "error: missing$missing (Debian: apt-get install cmake make g++-aarch64-linux-gnu qemu-user)" >&2
    exit 2
fi

build=build/arm
cmake -S . -B $build -DMINICPM4_KERNEL_TEST=ON -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static >/dev/null
cmake --build $build --parallel "${CMAKE_BUILD_PARALLEL_LEVEL:-2}"
# Each level on the least processor that has it, two processors at a time; that none is left out is checked here.
run() {
    local cpu=$1 best=${2##* } log=$build/$1.txt
    # shellcheck disable=SC2086  # levels are words
    qemu-aarch64 -cpu "$cpu" $build/kernel_test $2 >"$log" 2>&1 || { cat "$log"; return 1; }
    echo "qemu-aarch64 -cpu $cpu"
    cat "$log"
    grep -q "^levels:.* $best\$" "$log" || { echo "error: $best should be the best of $cpu" >&2; return 1; }
}
run cortex-a72 "scalar neon" &
first=$!
run neoverse-n1 neon_dotprod
run max neon_i8mm
wait $first
