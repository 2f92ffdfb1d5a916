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
# The kernel test runs every level that the processor has; that none is left out is checked here.
for model in cortex-a72:neon neoverse-n1:neon_dotprod max:neon_i8mm; do
    cpu=${model%%:*}
    best=${model#*:}
    echo "qemu-aarch64 -cpu $cpu"
    qemu-aarch64 -cpu $cpu $build/kernel_test | tee $build/$cpu.txt
    [ "$(tail -1 $build/$cpu.txt | cut -d, -f1)" = "$best" ] || { echo "error: $cpu should end with $best" >&2; exit 1; }
done
