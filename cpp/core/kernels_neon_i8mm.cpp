#define MC_ISA_NEON_I8MM
#define MC_NAMESPACE isa_neon_i8mm
#define MC_NAME "neon_i8mm"
#include <arm_neon.h>
#include "core/kernels_impl.hpp"
