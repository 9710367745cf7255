// Types and operations that all kernels share. A kernel is a template over its number type and a struct of arguments, passed
// by value and mirrored field by field in Rust; `KERNEL` gives an instance its name. Nothing here needs more than compute
// capability 8.0 (Ampere): asynchronous copies to shared memory, `ldmatrix`, and products of 16-bit or TF32 tiles.
#pragma once

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

typedef __half f16;
typedef __nv_bfloat16 bf16;

#define KERNEL(name, threads, Args, ...) \
    extern "C" __global__ void __launch_bounds__(threads) name(const Args a) { __VA_ARGS__(a); }
// Threads of a block, at most so many registers each that two blocks fit on a multiprocessor.
#define TWO_OF_256 256, 2
#define SHARED_MEMORY(name) extern __shared__ __align__(16) unsigned char name[]

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(f16 v) { return __half2float(v); }
__device__ __forceinline__ float to_float(bf16 v) { return __bfloat162float(v); }
template <class T> __device__ __forceinline__ T from_float(float v);
template <> __device__ __forceinline__ float from_float<float>(float v) { return v; }
template <> __device__ __forceinline__ f16 from_float<f16>(float v) { return __float2half_rn(v); }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float v) { return __float2bfloat16_rn(v); }

__device__ __forceinline__ uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

// Starts a copy of 16 bytes to shared memory; zeros where `valid` is false, and `from` is not read.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

// The same of what other threads of the block will want soon: through the first-level cache.
__device__ __forceinline__ void copy_async_cached(void* to, const void* from, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

// Closes a group of copies.
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits for all groups but the last `N`: this thread's copies only, so a barrier follows.
template <int N> __device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory"); }

// Four 8 × 16-byte matrices, whose rows are at the addresses that lanes 0–7, 8–15, 16–23 and 24–31 give. Lane l gets word
// l % 4 of row l / 4 of each.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same of 8 × 8 16-bit matrices, transposed: lane l gets rows 2(l % 4) and 2(l % 4) + 1 of column l / 4.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// c (16 × 8) += a (16 × 32 bytes) bᵀ (8 × 32 bytes), summed in f32.
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, f16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bf16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float from_lane_xor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }

// 2ˣ, to 2 ulp.
__device__ __forceinline__ float power_of_two(float x) { return exp2f(x); }
__device__ __forceinline__ float as_float(uint32_t v) { return __uint_as_float(v); }
__device__ __forceinline__ uint32_t as_bits(float v) { return __float_as_uint(v); }

#else
#include "emulator.h"
#endif

// The nearest that TF32 holds, 10 bits of mantissa. The tensor cores would cut off instead, always towards zero.
__device__ __forceinline__ uint32_t tf32_part(uint32_t bits) { return (bits + 0x1000u) & 0xffffe000u; }
__device__ __forceinline__ uint32_t tf32_rest(uint32_t bits, uint32_t part) { return tf32_part(as_bits(as_float(bits) - as_float(part))); }

// Products of f32 numbers as three of TF32 numbers: each number is the sum of two, to 2⁻²⁴ of it, and the product of the two small
// parts is left out (Ootomo and Yokota, 2022).
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float) {
    uint32_t big[4], small[4];
    for (int i = 0; i < 4; i++) {
        big[i] = tf32_part(a[i]);
        small[i] = tf32_rest(a[i], big[i]);
    }
    const uint32_t big0 = tf32_part(b0), big1 = tf32_part(b1);
    const uint32_t small0 = tf32_rest(b0, big0), small1 = tf32_rest(b1, big1);
    multiply_tf32(c, small, big0, big1);
    multiply_tf32(c, big, small0, small1);
    multiply_tf32(c, big, big0, big1);
}

// Two numbers side by side.
template <class T> struct __align__(2 * sizeof(T)) Pair { T low, high; };

template <class T> __device__ __forceinline__ Pair<T> pair(float low, float high) {
    return Pair<T>{from_float<T>(low), from_float<T>(high)};
}

// Two 16-bit numbers as a word.
template <class T> __device__ __forceinline__ uint32_t word(float low, float high) {
    union {
        Pair<T> pair;
        uint32_t word;
    } both;
    both.pair = pair<T>(low, high);
    return both.word;
}

// V numbers that are read and written at once.
template <class T, int V> struct __align__(V * sizeof(T)) Vector { T at[V]; };

// Numbers in 16 bytes.
template <class T> constexpr int WIDE = 16 / sizeof(T);

__device__ __forceinline__ float silu(float v) { return v / (1.0f + expf(-v)); }
__device__ __forceinline__ float gelu(float v) { return 0.5f * v * (1.0f + erff(v * 0.70710678f)); }
