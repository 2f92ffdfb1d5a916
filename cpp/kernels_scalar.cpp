#define MC_ISA_SCALAR
#define MC_NAMESPACE isa_scalar
#define MC_NAME "scalar"
#include "kernels_impl.hpp"
