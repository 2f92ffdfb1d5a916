// Macros and plain types that every translation unit shares, whatever its instruction set.
//
// Units compiled for AVX2 or AVX-512 must not emit inline functions that a baseline unit could be
// linked against (the linker keeps one copy, maybe the wrong one). So kernels live in a namespace
// of their instruction set, use C functions (sqrtf, memcpy) rather than std templates, and what is
// shared between units is either data or defined in a .cpp file of its own.
#pragma once

#include <stdint.h>

#if defined(_MSC_VER) && !defined(__clang__)
#define MC_INLINE static __forceinline
#define MC_UNROLL
#define MC_RESTRICT __restrict
#else
#define MC_INLINE static inline __attribute__((always_inline, unused))
#define MC_UNROLL _Pragma("GCC unroll 16")
#define MC_RESTRICT __restrict__
#endif

namespace minicpm4 {

using i64 = int64_t;
using i32 = int32_t;
using u64 = uint64_t;
using u32 = uint32_t;
using u16 = uint16_t;
using u8 = uint8_t;
using i8 = int8_t;

}  // namespace minicpm4
