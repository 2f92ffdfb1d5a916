// Worker threads that share loops, and the scratch memory that kernels use.
#pragma once

#include <memory>

#include "common.hpp"

namespace minicpm4 {

// One body of a parallel loop: rows [begin, end) by worker number `worker` (0 = the caller).
using LoopBody = void (*)(void* data, i64 begin, i64 end, int worker);

class Pool {
public:
    explicit Pool(int threads);  // counts the calling thread; at least 1
    ~Pool();                     // wakes and joins every worker
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const noexcept;

    // Runs `body` over [0, count) in chunks of `grain`: each worker a range, whoever is done the rest; and
    // returns when all are done. The body must not throw and must not start another loop.
    void run(i64 count, i64 grain, LoopBody body, void* data) noexcept;

    // Makes sure that every worker's scratch, or the shared one, holds `bytes`; throws
    // std::bad_alloc. Call it before the loop. Earlier contents and pointers are lost.
    void reserve(i64 bytes);
    void reserve_shared(i64 bytes);

    // 64-byte aligned memory of an op made of several kernels, which none of them touches; throws std::bad_alloc.
    void* reserve_op(i64 bytes);

    // 64-byte aligned memory of one worker, and of the whole call.
    void* scratch(int worker) const noexcept;
    void* shared() const noexcept;

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace minicpm4
