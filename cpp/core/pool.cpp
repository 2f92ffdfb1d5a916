#include "core/pool.hpp"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#if defined(MINICPM4_X86)
#include <immintrin.h>
#endif

namespace minicpm4 {
namespace {

// Between two ops of a layer pass a few microseconds: worth spinning for, no longer.
constexpr auto kSpin = std::chrono::microseconds(30);

void relax() {
#if defined(MINICPM4_X86)
    _mm_pause();
#elif defined(MINICPM4_ARM) && !defined(_MSC_VER)
    __asm__ volatile("yield");
#endif
}

template <class Condition>
bool spin_until(Condition done) {
    const auto limit = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < 32; ++i) {
            if (done()) return true;
            relax();
        }
    } while (std::chrono::steady_clock::now() < limit);
    return done();
}

class Buffer {
public:
    Buffer() = default;
    ~Buffer() { free(); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    // Without `real` the size alone is kept.
    void reserve(i64 bytes, bool real) {
        if (bytes <= size_) return;
        free();
        if (real) data_ = ::operator new(static_cast<size_t>(bytes), std::align_val_t{64});
        size_ = bytes;
    }
    void* data() const noexcept { return data_; }
    i64 size() const noexcept { return size_; }

private:
    void free() noexcept {
        if (data_ != nullptr) ::operator delete(data_, std::align_val_t{64});
        data_ = nullptr;
        size_ = 0;
    }
    void* data_ = nullptr;
    i64 size_ = 0;
};

}  // namespace

// A worker joins a loop by raising `active` and then reading `open`, the loop's number (0 between
// loops); the caller closes the loop and waits for `active` to fall to 0. So a worker that the
// system has not scheduled yet holds up nobody, and the loop's fields are never read while the
// caller writes those of the next one.
struct Pool::Impl {
    struct alignas(64) Range {
        std::atomic<i64> next{0};
        i64 end = 0;
    };

    Impl(int threads, bool measuring)
        : scratch(static_cast<size_t>(threads)), ranges(static_cast<size_t>(threads)), real(!measuring) {
        try {
            for (int i = 1; real && i < threads; ++i) workers.emplace_back([this, i] { work(i); });
        } catch (const std::system_error& error) {  // a limit of the system or of a container
            const size_t started = workers.size() + 1;
            end_workers();  // a std::thread that is not joined ends the process
            throw ThreadsRefused(static_cast<int>(started), threads, error.what());
        }
    }

    ~Impl() { end_workers(); }

    void end_workers() {
        {
            const std::lock_guard<std::mutex> lock(mutex);
            stop.store(true);
        }
        wake.notify_all();
        for (std::thread& worker : workers) worker.join();
    }

    // Each worker goes through a range of its own, so that what it fetches ahead of a chunk is its own as
    // well; then it helps with what others have left.
    void take_chunks(int worker) noexcept {
        for (size_t k = 0; k < ranges.size(); ++k) {
            Range& range = ranges[(static_cast<size_t>(worker) + k) % ranges.size()];
            for (i64 begin; (begin = range.next.fetch_add(grain)) < range.end;) {
                body(data, begin, begin + grain < range.end ? begin + grain : range.end, worker);
            }
        }
    }

    void share(i64 total) noexcept {
        const i64 workers_count = static_cast<i64>(ranges.size()), chunks = (total + grain - 1) / grain;
        for (i64 w = 0; w < workers_count; ++w) {
            Range& range = ranges[static_cast<size_t>(w)];
            const i64 end = (w + 1) * chunks / workers_count * grain;
            range.next.store(w * chunks / workers_count * grain);
            range.end = end < total ? end : total;
        }
    }

    void work(int index) {
        u64 seen = 0;
        const auto ready = [&] {
            const u64 loop = open.load();
            return stop.load() || (loop != 0 && loop != seen);
        };
        for (;;) {
            if (!spin_until(ready)) {
                std::unique_lock<std::mutex> lock(mutex);
                sleepers.fetch_add(1);
                wake.wait(lock, ready);
                sleepers.fetch_sub(1);
            }
            if (stop.load()) return;
            active.fetch_add(1);
            const u64 loop = open.load();
            if (loop != 0 && loop != seen) {
                seen = loop;
                take_chunks(index);
            }
            if (active.fetch_sub(1) == 1 && waiting.load()) {
                const std::lock_guard<std::mutex> lock(mutex);
                done.notify_one();
            }
        }
    }

    void run(i64 total, i64 step, LoopBody loop_body, void* loop_data) {
        body = loop_body;
        data = loop_data;
        grain = step;
        share(total);
        open.store(++loops);
        if (sleepers.load() > 0) {
            const std::lock_guard<std::mutex> lock(mutex);
            wake.notify_all();
        }
        take_chunks(0);
        open.store(0);
        const auto idle = [this] { return active.load() == 0; };
        if (spin_until(idle)) return;
        std::unique_lock<std::mutex> lock(mutex);
        waiting.store(true);
        done.wait(lock, idle);
        waiting.store(false);
    }

    std::vector<Buffer> scratch;
    std::vector<Range> ranges;
    Buffer shared;
    Buffer op;
    bool real;

    LoopBody body = nullptr;
    void* data = nullptr;
    i64 grain = 1;
    u64 loops = 0;
    std::atomic<u64> open{0};
    std::atomic<int> active{0};
    std::atomic<int> sleepers{0};
    std::atomic<bool> waiting{false};
    std::atomic<bool> stop{false};
    std::mutex mutex;
    std::condition_variable wake;
    std::condition_variable done;
    std::vector<std::thread> workers;
};

ThreadsRefused::ThreadsRefused(int started, int wanted, const char* reason)
    : std::runtime_error("the system gives " + std::to_string(started) + " of " + std::to_string(wanted) +
                         " threads: " + reason) {}

Pool::Pool(int threads, bool measuring) : impl_(std::make_unique<Impl>(threads < 1 ? 1 : threads, measuring)) {}
Pool::~Pool() = default;

int Pool::threads() const noexcept { return static_cast<int>(impl_->scratch.size()); }

void Pool::run(i64 count, i64 grain, LoopBody body, void* data) noexcept {
    if (count <= 0 || !impl_->real) return;
    if (grain < 1) grain = 1;
    if (count <= grain || threads() == 1) {
        body(data, 0, count, 0);
        return;
    }
    impl_->run(count, grain, body, data);
}

void Pool::reserve(i64 bytes) {
    for (Buffer& buffer : impl_->scratch) buffer.reserve(bytes, impl_->real);
}
void Pool::reserve_shared(i64 bytes) { impl_->shared.reserve(bytes, impl_->real); }
void* Pool::reserve_op(i64 bytes) {
    impl_->op.reserve(bytes, impl_->real);
    static char nowhere;  // what a measuring pool gives is told from null, and not read
    return impl_->real ? impl_->op.data() : &nowhere;
}
i64 Pool::reserved() const noexcept {
    i64 bytes = impl_->shared.size() + impl_->op.size();
    for (const Buffer& buffer : impl_->scratch) bytes += buffer.size();
    return bytes;
}
void* Pool::scratch(int worker) const noexcept {
    return impl_->scratch[static_cast<size_t>(worker)].data();
}
void* Pool::shared() const noexcept { return impl_->shared.data(); }

}  // namespace minicpm4
