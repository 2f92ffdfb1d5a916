#define MC_ISA_NEON
#define MC_NAMESPACE isa_neon
#define MC_NAME "neon"
#include <arm_neon.h>
#include "core/kernels_impl.hpp"
