// A thread pool and a kernel table: what every op is called on.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "core/kernels.hpp"
#include "core/pool.hpp"

namespace minicpm4 {

// Gives the interpreter's lock back while it lives, but not once the interpreter ends: a thread that takes it
// after that is ended by the interpreter, amidst our frames, and the whole process with it.
class Unlocked {
public:
    Unlocked();
    ~Unlocked();
    Unlocked(const Unlocked&) = delete;
    Unlocked& operator=(const Unlocked&) = delete;

    // Waits for the threads that are without the lock to have it again; from now on none gives it back. For
    // the interpreter's exit, with the lock.
    static void end();

private:
    PyThreadState* state_ = nullptr;
};

class Context {
public:
    // bytes: products may round activations to 8 bits. Measuring: see Pool.
    Context(int threads, const KernelTable* table, bool bytes, bool measuring);
    ~Context();
    Context(const Context&) = delete;
    Context& operator=(const Context&) = delete;

    int threads() const { return threads_; }
    const KernelTable& kernels() const { return *table_; }
    int level() const { return level_; }  // in kLevels of linear/ways.hpp
    bool bytes() const { return bytes_; }

    // Calls work(pool, kernels) without the interpreter's lock, which the caller holds; one call at a time, since
    // the pool's scratch is shared. Throws ThreadsRefused.
    template <class Work>
    void run(Work&& work) {
        State& state = current();  // still with the interpreter's lock: one thread at a time
        const Unlocked unlocked;
        const std::lock_guard<std::mutex> lock(state.mutex);
        std::forward<Work>(work)(state.pool, *table_);
    }

    // Bytes that kernels keep between calls.
    i64 reserved() { return current().pool.reserved(); }

private:
    struct State {
        State(int threads, bool measuring) : pool(threads, measuring) {}
        std::mutex mutex;
        Pool pool;
    };

    State& current();

    int threads_;
    const KernelTable* table_;
    int level_;
    bool bytes_;
    bool measuring_;
    long process_;
    std::unique_ptr<State> state_;
};

}  // namespace minicpm4
