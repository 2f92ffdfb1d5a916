#define MC_ISA_SCALAR
#define MC_NAMESPACE isa_scalar
#define MC_NAME "scalar"
#include "core/kernels_impl.hpp"
