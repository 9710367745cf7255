// The scheduler of fibers, and the kernels themselves.
#include "emulator.h"

#include <memory>
#include <string>
#include <ucontext.h>
#include <unordered_map>
#include <vector>

thread_local Index threadIdx, blockIdx;

namespace emulator {
namespace {

struct Entry {
    unsigned threads;
    size_t args;
    void (*body)(const void*);
};

std::unordered_map<std::string, Entry>& kernels() {
    static std::unordered_map<std::string, Entry> map;
    return map;
}

struct Copy {
    void* to;
    const void* from;
    bool valid;
};

enum class State { Ready, AtBarrier, InWarp, Done };

constexpr size_t STACK = 256 << 10;
constexpr unsigned WARP = 32;

struct Fiber {
    State state = State::Done;
    bool started = false;
    void* at[5];
    ucontext_t context;
    std::unique_ptr<unsigned char[]> stack;
    // Open copies, then those of closed groups, oldest first.
    std::vector<Copy> open;
    std::vector<std::vector<Copy>> groups;
};

struct Warp {
    unsigned arrived = 0;
    void (*operation)(void* const*) = nullptr;
    void* lanes[WARP];
};

// One for each thread of the system.
struct Block {
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Warp> warps;
    std::vector<unsigned char> memory;
    unsigned char* shared = nullptr;
    size_t shared_bytes = 0;
    void* scheduler[5];
    unsigned current = 0;
    void (*body)(const void*) = nullptr;
    const void* args = nullptr;
    bool reversed = false;
};
// A bare pointer: to ask for an object's address would ask each time whether it was made.
thread_local Block* current_block;

Fiber& self() { return *current_block->fibers[current_block->current]; }

// Not inlined: a jump must not start where its target was set.
__attribute__((noinline, noreturn)) void leave() { __builtin_longjmp(current_block->scheduler, 1); }
__attribute__((noinline, noreturn)) void enter(Fiber& fiber) { __builtin_longjmp(fiber.at, 1); }

__attribute__((noinline)) void yield() {
    Fiber& fiber = self();
    if (__builtin_setjmp(fiber.at) == 0) leave();
}

void fiber_main() {
    for (;;) {
        current_block->body(current_block->args);
        self().state = State::Done;
        yield();
    }
}

__attribute__((noinline)) void resume(unsigned index) {
    current_block->current = index;
    threadIdx.x = index;
    Fiber& fiber = self();
    if (__builtin_setjmp(current_block->scheduler) != 0) return;
    if (fiber.started) enter(fiber);
    fiber.started = true;
    fiber.stack.reset(new unsigned char[STACK]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
    setcontext(&fiber.context);
}

void land(const Copy& copy) {
    if (copy.valid) memcpy(copy.to, copy.from, 16);
    else memset(copy.to, 0, 16);
}

void run_block(unsigned threads) {
    memset(current_block->shared, 0xff, current_block->shared_bytes);
    for (unsigned i = 0; i < threads; i++) {
        current_block->fibers[i]->state = State::Ready;
        current_block->fibers[i]->open.clear();
        current_block->fibers[i]->groups.clear();
    }
    for (Warp& warp : current_block->warps) warp.arrived = 0;
    const unsigned warps = threads / WARP;
    for (;;) {
        bool ran = false;
        for (unsigned w = 0; w < warps; w++) {
            const unsigned first = (current_block->reversed ? warps - 1 - w : w) * WARP;
            // A warp runs as far as it can before the next one starts.
            for (bool again = true; again;) {
                again = false;
                for (unsigned l = 0; l < WARP; l++) {
                    const unsigned index = first + (current_block->reversed ? WARP - 1 - l : l);
                    if (current_block->fibers[index]->state != State::Ready) continue;
                    resume(index);
                    ran = again = true;
                }
            }
        }
        unsigned waiting = 0, done = 0;
        for (unsigned i = 0; i < threads; i++) {
            waiting += current_block->fibers[i]->state == State::AtBarrier;
            done += current_block->fibers[i]->state == State::Done;
        }
        if (done == threads) return;
        if (waiting + done == threads) {
            for (unsigned i = 0; i < threads; i++) {
                if (current_block->fibers[i]->state == State::AtBarrier) current_block->fibers[i]->state = State::Ready;
            }
        } else if (!ran) {
            fail("lanes of a warp went separate ways");
        }
    }
}

}  // namespace

Kernel::Kernel(const char* name, unsigned threads, size_t args, void (*body)(const void*)) { kernels()[name] = Entry{threads, args, body}; }

unsigned char* shared_memory() { return current_block->shared; }

void fail(const char* what) {
    fprintf(stderr, "emulated kernel: %s\n", what);
    abort();
}

void check_shared(const void* p, size_t bytes) {
    const unsigned char* at = (const unsigned char*)p;
    if (at < current_block->shared || at + bytes > current_block->shared + current_block->shared_bytes) fail("an address outside shared memory");
    if ((uintptr_t)p % 16) fail("an address in shared memory that is no multiple of 16");
}

void copy(void* to, const void* from, bool valid) {
    check_shared(to, 16);
    if ((uintptr_t)from % 16) fail("a copy from an address that is no multiple of 16");
    const Copy copy{to, from, valid};
    if (current_block->reversed) land(copy);
    else self().open.push_back(copy);
}

void commit() {
    Fiber& fiber = self();
    fiber.groups.push_back(std::move(fiber.open));
    fiber.open.clear();
}

void wait(int groups) {
    Fiber& fiber = self();
    const size_t due = fiber.groups.size() > (size_t)groups ? fiber.groups.size() - groups : 0;
    for (size_t i = 0; i < due; i++) {
        for (const Copy& copy : fiber.groups[i]) land(copy);
    }
    fiber.groups.erase(fiber.groups.begin(), fiber.groups.begin() + due);
}

void together(void (*operation)(void* const*), void* mine) {
    Warp& warp = current_block->warps[current_block->current / WARP];
    if (warp.arrived > 0 && warp.operation != operation) fail("lanes of a warp in different operations");
    warp.operation = operation;
    warp.lanes[current_block->current % WARP] = mine;
    if (++warp.arrived < WARP) {
        self().state = State::InWarp;
        yield();
        return;
    }
    warp.arrived = 0;
    operation(warp.lanes);
    const unsigned first = current_block->current / WARP * WARP;
    for (unsigned i = first; i < first + WARP; i++) current_block->fibers[i]->state = State::Ready;
}

}  // namespace emulator

void __syncthreads() {
    emulator::self().state = emulator::State::AtBarrier;
    emulator::yield();
}

// Runs blocks `first` to `end` of a kernel. Returns 0; 1 if there is no such kernel, 2 if it has other threads, 3 if its
// arguments have another size.
extern "C" int scalebench_emulate(const char* name, unsigned threads, size_t shared, unsigned first, unsigned end, int reversed, const void* args,
                                  size_t args_bytes) {
    using namespace emulator;
    const auto found = kernels().find(name);
    if (found == kernels().end()) return 1;
    if (found->second.threads != threads) return 2;
    if (found->second.args != args_bytes) return 3;
    if (!current_block) current_block = new Block;  // Lives as long as its thread.
    while (current_block->fibers.size() < threads) current_block->fibers.emplace_back(new Fiber);
    current_block->warps.resize(threads / WARP);
    current_block->memory.resize(shared + 16);
    current_block->shared = (unsigned char*)(((uintptr_t)current_block->memory.data() + 15) / 16 * 16);
    current_block->shared_bytes = shared;
    current_block->body = found->second.body;
    current_block->args = args;
    current_block->reversed = reversed != 0;
    for (unsigned i = first; i < end; i++) {
        blockIdx.x = current_block->reversed ? first + end - 1 - i : i;
        run_block(threads);
    }
    return 0;
}

#include "../cuda/common.cuh"
namespace gemm_cu {
#include "../cuda/gemm.cu"
}
namespace attention_cu {
#include "../cuda/attention.cu"
}
namespace norm_cu {
#include "../cuda/norm.cu"
}
namespace maps_cu {
#include "../cuda/maps.cu"
}
