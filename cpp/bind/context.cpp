#include "bind/context.hpp"

#include <chrono>
#include <thread>

#include "linear/ways.hpp"

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

// The interpreter's lock guards these three.
int unlocked = 0;  // threads that have given it back, of the process `counted`
long counted = 0;
bool ending = false;

int& unlocked_here() {
    const long now = process_id();
    if (counted != now) {  // a forked child has none of its parent's threads
        counted = now;
        unlocked = 0;
    }
    return unlocked;
}

}  // namespace

Unlocked::Unlocked() {
    if (ending) return;
    ++unlocked_here();
    state_ = PyEval_SaveThread();
}

Unlocked::~Unlocked() {
    if (state_ == nullptr) return;
    PyEval_RestoreThread(state_);
    --unlocked_here();
}

void Unlocked::end() {
    ending = true;
    while (unlocked_here() > 0) {
        const nanobind::gil_scoped_release released;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

Context::Context(int threads, const KernelTable* table, bool bytes, bool measuring)
    : threads_(threads < 1 ? 1 : threads),
      table_(table),
      level_(find_level(table->name)),
      bytes_(bytes),
      measuring_(measuring),
      process_(process_id()),
      state_(std::make_unique<State>(threads_, measuring)) {}

Context::~Context() {
    if (process_ != process_id()) static_cast<void>(state_.release());
}

// After fork() the child has none of the threads, and the mutex may be held by one of them: the old
// state can be neither used nor destroyed, so it is left behind and a new one made. The interpreter's lock keeps
// two threads of the child from making one each, and os.fork from forking amidst this: a lock of our own might be
// held by a thread that the child does not have.
Context::State& Context::current() {
    const long now = process_id();
    if (now != process_) {
        std::unique_ptr<State> fresh = std::make_unique<State>(threads_, measuring_);
        static_cast<void>(state_.release());
        state_ = std::move(fresh);
        process_ = now;
    }
    return *state_;
}

}  // namespace minicpm4
