// A thread pool and a kernel table: what every op is called on.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "kernels.hpp"
#include "pool.hpp"

namespace minicpm4 {

class Context {
public:
    // bytes: products may round activations to 8 bits.
    Context(int threads, const KernelTable* table, bool bytes = false);
    ~Context();
    Context(const Context&) = delete;
    Context& operator=(const Context&) = delete;

    int threads() const { return threads_; }
    const KernelTable& kernels() const { return *table_; }
    bool bytes() const { return bytes_; }

    // Calls work(pool, kernels); one call at a time, since the pool's scratch is shared.
    template <class Work>
    void run(Work&& work) {
        State& state = current();
        const std::lock_guard<std::mutex> lock(state.mutex);
        std::forward<Work>(work)(state.pool, *table_);
    }

private:
    struct State {
        explicit State(int threads) : pool(threads) {}
        std::mutex mutex;
        Pool pool;
    };

    State& current();

    int threads_;
    const KernelTable* table_;
    bool bytes_;
    long process_;
    std::unique_ptr<State> state_;
};

}  // namespace minicpm4
