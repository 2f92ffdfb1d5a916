// Worker threads that share loops, and the scratch memory that kernels use.
#pragma once

#include <memory>
#include <stdexcept>

#include "core/common.hpp"

namespace minicpm4 {

// One body of a parallel loop: rows [begin, end) by worker number `worker` (0 = the caller).
using LoopBody = void (*)(void* data, i64 begin, i64 end, int worker);

class ThreadsRefused : public std::runtime_error {
public:
    ThreadsRefused(int started, int wanted, const char* reason);
};

class Pool {
public:
    // threads: the calling one included, at least 1. Measuring: nothing runs and no memory is taken; what would be
    // is counted, so that kernels tell what they need. Throws ThreadsRefused.
    explicit Pool(int threads, bool measuring = false);
    ~Pool();                     // wakes and joins every worker
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const noexcept;

    // Runs `body` over [0, count) in chunks of `grain`, or whole where one thread has it all: each worker a range,
    // whoever is done the rest; and returns when all are done. The body must not throw and must not start another loop.
    void run(i64 count, i64 grain, LoopBody body, void* data) noexcept;

    // Makes sure that every worker's scratch, or the shared one, holds `bytes`; throws
    // std::bad_alloc. Call it before the loop. Earlier contents and pointers may be lost.
    void reserve(i64 bytes);
    void reserve_shared(i64 bytes);

    // 64-byte aligned memory of an op made of several kernels, which none of them touches; throws std::bad_alloc.
    void* reserve_op(i64 bytes);

    i64 reserved() const noexcept;  // bytes of all these

    // 64-byte aligned memory of one worker, and of the whole call. Read and written in loops only: a measuring pool
    // has none.
    void* scratch(int worker) const noexcept;
    void* shared() const noexcept;

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace minicpm4
