// What attention does once for every instruction set.
#include "attention/api.hpp"

#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#endif

namespace minicpm4 {

bool is_last(i64* left) {
#if defined(_MSC_VER) && !defined(__clang__)
    return _InterlockedDecrement64(left) == 0;
#else
    return __atomic_sub_fetch(left, 1, __ATOMIC_ACQ_REL) == 0;
#endif
}

}  // namespace minicpm4
