#define MC_ISA_NEON_DOTPROD
#define MC_NAMESPACE isa_neon_dotprod
#define MC_NAME "neon_dotprod"
#include <arm_neon.h>
#include "core/kernels_impl.hpp"
