// What the processor and the operating system offer.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "core/kernels.hpp"

namespace minicpm4 {

// Names and presence, in the order in which `doctor` shows them.
std::vector<std::pair<std::string, bool>> cpu_features();

// Kernel tables that run on this machine, the best last; never empty.
std::vector<const KernelTable*> available_tables();

// Kernels for units that this machine may lack, on an imitation of them: right and slow, for tests. Never
// chosen unless asked for.
std::vector<const KernelTable*> emulated_tables();

}  // namespace minicpm4
