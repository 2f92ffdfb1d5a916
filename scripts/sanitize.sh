#!/usr/bin/env bash
# Run the kernel and cache tests on an extension built with AddressSanitizer and UBSan (Linux, gcc).
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv-sanitize
[ "$(uname)" = Linux ] || { echo "error: the sanitizer job runs on Linux only" >&2; exit 2; }
$venv/bin/python -m pip --version >/dev/null 2>&1 || "${PYTHON:-python3}" -m venv --clear $venv

# Levels that nothing runs are not compiled: each takes minutes.
levels="-DMINICPM4_AVXVNNI=OFF -DMINICPM4_AVX512=OFF"
grep -qw avx512dq /proc/cpuinfo && levels="-DMINICPM4_AVXVNNI=OFF"
CMAKE_ARGS="-DMINICPM4_SANITIZE=address,undefined $levels" \
    $venv/bin/python -m pip --disable-pip-version-check install --quiet \
    --config-settings=build-dir=build/sanitize '.[dev]'

cxx=${CXX:-g++}
# Leaks are not looked for: the interpreter itself frees little on exit.
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
export LD_PRELOAD="$($cxx -print-file-name=libasan.so) $($cxx -print-file-name=libstdc++.so)"
$venv/bin/python scripts/list_isas.py
# What runs in NumPy alone has nothing to be watched for: its tests are named [ref…. Levels that multiply by one
# other instruction (VNNI) than avx2 and avx512_bf16 are left to `make test-isa`: they would take a third more. And
# test_same_bits.py makes calls that the others make as well, hundreds of times, for their bits: half of all time here.
$venv/bin/python -m pytest -q -n 2 -m "not slow" -p no:cacheprovider -k "not [ref and not avxvnni and not avx512_vnni" \
    --ignore tests/contract/test_same_bits.py tests/contract tests/kernels tests/golden
# Calls whose arrays and settings do not fit together. Memory that is asked for and not there is an error of Python's.
ASAN_OPTIONS=$ASAN_OPTIONS:allocator_may_return_null=1 $venv/bin/python scripts/fuzz.py extension --minutes 1 --seed 7
