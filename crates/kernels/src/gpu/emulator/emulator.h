// What the kernels use of CUDA, on a CPU: to check them where there is no GPU.
//
// The threads of a block are fibers of one thread of the system. A fiber runs until it waits for others: at a barrier, or in an
// operation of its warp, which the last lane to arrive carries out for all. Mistakes that a GPU may hide show here: an
// asynchronous copy lands as late as it may, when it is waited for; shared memory starts as NaN; addresses are checked for
// alignment and range. Reversed, the last warp and lane go first, and copies land as soon as they may: a missing barrier or wait
// changes the results of one order or the other.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define __device__
#define __forceinline__ inline
#define __shared__ static thread_local
#define __align__(n) __attribute__((aligned(n)))
#define TWO_OF_256 256
#define SHARED_MEMORY(name) unsigned char* const name = emulator::shared_memory()
#define KERNEL(name, threads, Args, ...) \
    static const emulator::Kernel name##_kernel(#name, threads, sizeof(Args), [](const void* args) { __VA_ARGS__(*(const Args*)args); });

struct Index {
    unsigned x;
};
extern thread_local Index threadIdx, blockIdx;
void __syncthreads();

namespace emulator {

struct Kernel {
    Kernel(const char* name, unsigned threads, size_t args, void (*body)(const void*));
};

unsigned char* shared_memory();
[[noreturn]] void fail(const char* what);
// Errors if `bytes` at `p` are not in shared memory, or not aligned to 16.
void check_shared(const void* p, size_t bytes);
void copy(void* to, const void* from, bool valid);
void commit();
void wait(int groups);
// Gives the operands of all lanes of the warp to `operation`, once all have come.
void together(void (*operation)(void* const* lanes), void* mine);

}  // namespace emulator

struct f16 {
    _Float16 value;
};
struct bf16 {
    uint16_t bits;
};

inline float as_float(uint32_t v) {
    float f;
    memcpy(&f, &v, 4);
    return f;
}
inline uint32_t as_bits(float v) {
    uint32_t u;
    memcpy(&u, &v, 4);
    return u;
}

inline float to_float(float v) { return v; }
inline float to_float(f16 v) { return (float)v.value; }
inline float to_float(bf16 v) { return as_float((uint32_t)v.bits << 16); }
template <class T> T from_float(float v);
template <> inline float from_float<float>(float v) { return v; }
template <> inline f16 from_float<f16>(float v) { return f16{(_Float16)v}; }
template <> inline bf16 from_float<bf16>(float v) {
    const uint32_t bits = as_bits(v);
    if (v != v) return bf16{(uint16_t)(bits >> 16 | 0x40)};
    return bf16{(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline void copy_async(void* to, const void* from, bool valid) { emulator::copy(to, from, valid); }
inline void copy_async_cached(void* to, const void* from, bool valid) { emulator::copy(to, from, valid); }
inline void copies_commit() { emulator::commit(); }
template <int N> void copies_wait() { emulator::wait(N); }
inline float power_of_two(float x) { return exp2f(x); }

struct MatricesLane {
    uint32_t* r;
    const void* row;
};

template <bool TRANSPOSED> void load_matrices_of(void* const* lanes) {
    for (int lane = 0; lane < 32; lane++) {
        for (int m = 0; m < 4; m++) {
            auto row = [&](int i) { return (const unsigned char*)((const MatricesLane*)lanes[m * 8 + i])->row; };
            unsigned char* to = (unsigned char*)(((MatricesLane*)lanes[lane])->r + m);
            if (TRANSPOSED) {
                for (int k = 0; k < 2; k++) memcpy(to + 2 * k, row(lane % 4 * 2 + k) + lane / 4 * 2, 2);
            } else {
                memcpy(to, row(lane / 4) + lane % 4 * 4, 4);
            }
        }
    }
}

template <bool TRANSPOSED> void load_matrices_by(uint32_t (&r)[4], const void* row) {
    emulator::check_shared(row, 16);
    MatricesLane mine{r, row};
    emulator::together(load_matrices_of<TRANSPOSED>, &mine);
}
inline void load_matrices(uint32_t (&r)[4], const void* row) { load_matrices_by<false>(r, row); }
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) { load_matrices_by<true>(r, row); }

struct MultiplyLane {
    float* c;
    uint32_t a[4], b[2];
};

// The tables of "Matrix Fragments for mma.m16n8k16" and ".m16n8k8" in the PTX manual. `number(word, i)` is the i-th number of a
// word, of which there are PER.
template <int PER, class F> void multiply_of(void* const* lanes, F number) {
    float a[16][8 * PER], b[8 * PER][8];
    for (int lane = 0; lane < 32; lane++) {
        const MultiplyLane& l = *(const MultiplyLane*)lanes[lane];
        for (int i = 0; i < PER; i++) {
            for (int part = 0; part < 4; part++) a[lane / 4 + part % 2 * 8][(part / 2 * 4 + lane % 4) * PER + i] = number(l.a[part], i);
            for (int part = 0; part < 2; part++) b[(part * 4 + lane % 4) * PER + i][lane / 4] = number(l.b[part], i);
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        float* c = ((MultiplyLane*)lanes[lane])->c;
        for (int i = 0; i < 4; i++) {
            float sum = 0.0f;
            for (int k = 0; k < 8 * PER; k++) sum += a[lane / 4 + i / 2 * 8][k] * b[k][lane % 4 * 2 + i % 2];
            c[i] += sum;
        }
    }
}

template <class T> void multiply_halves_of(void* const* lanes) {
    multiply_of<2>(lanes, [](uint32_t word, int i) {
        const uint16_t bits = (uint16_t)(word >> 16 * i);
        T v;
        memcpy(&v, &bits, 2);
        return to_float(v);
    });
}
// The products look at 19 bits of a number.
inline void multiply_tf32_of(void* const* lanes) {
    multiply_of<1>(lanes, [](uint32_t word, int) { return as_float(word & 0xffffe000u); });
}

inline void multiply_by(void (*operation)(void* const*), float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    MultiplyLane mine{c, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    emulator::together(operation, &mine);
}
inline void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, f16) { multiply_by(multiply_halves_of<f16>, c, a, b0, b1); }
inline void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bf16) { multiply_by(multiply_halves_of<bf16>, c, a, b0, b1); }
inline void multiply_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { multiply_by(multiply_tf32_of, c, a, b0, b1); }

struct ShuffleLane {
    float value, got;
    int mask;
};
inline void shuffle_of(void* const* lanes) {
    for (int lane = 0; lane < 32; lane++) {
        ShuffleLane& l = *(ShuffleLane*)lanes[lane];
        l.got = ((const ShuffleLane*)lanes[lane ^ l.mask])->value;
    }
}
inline float from_lane_xor(float v, int mask) {
    ShuffleLane mine{v, 0.0f, mask};
    emulator::together(shuffle_of, &mine);
    return mine.got;
}
