#define MC_ISA_AVXVNNI
#define MC_NAMESPACE isa_avxvnni
#define MC_NAME "avxvnni"
#include <immintrin.h>
#include "core/kernels_impl.hpp"
