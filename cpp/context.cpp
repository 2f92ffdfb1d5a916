#include "context.hpp"

#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace minicpm4 {
namespace {

long process_id() {
#if defined(_WIN32)
    return 0;  // no fork
#else
    return static_cast<long>(getpid());
#endif
}

}  // namespace

Context::Context(int threads, const KernelTable* table, bool bytes)
    : threads_(threads < 1 ? 1 : threads),
      table_(table),
      bytes_(bytes),
      process_(process_id()),
      state_(std::make_unique<State>(threads_)) {}

Context::~Context() {
    if (process_ != process_id()) static_cast<void>(state_.release());
}

// After fork() the child has none of the threads, and the mutex may be held by one of them: the old
// state can be neither used nor destroyed, so it is left behind and a new one made.
Context::State& Context::current() {
    const long now = process_id();
    if (now != process_) {
        static_cast<void>(state_.release());
        state_ = std::make_unique<State>(threads_);
        process_ = now;
    }
    return *state_;
}

}  // namespace minicpm4
