// What the processor and the operating system offer.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "kernels.hpp"

namespace minicpm4 {

// Names and presence, in the order in which `doctor` shows them.
std::vector<std::pair<std::string, bool>> cpu_features();

// Kernel tables that run on this machine, plainest first; never empty.
std::vector<const KernelTable*> available_tables();

}  // namespace minicpm4
