// Normalisation of maps (batch, height, width, channels) by groups of channels, and of rows.
//
// A map is cut into parts of consecutive pixels of one image; how many depends on its size alone, not on the batch.
#include "common.cuh"

// Sums of a thread over its pixels, then of a block: squares of f32 numbers are summed over few pixels before f64 takes over.
struct PartialsArgs {
    const void* x;    // (batch, pixels, channels)
    float* partials;  // (batch, parts, channels, 2): sum and sum of squares
    int64_t pixels, part_pixels;
    int parts, channels;
};

struct FactorsArgs {
    const float *partials, *weight, *bias;
    float* factors;  // (batch, channels, 2): factor and offset
    int64_t pixels;
    int parts, channels, groups;
    float eps;
};

struct AffineArgs {
    const void* x;
    const float* factors;  // (batch, channels, 2), or (channels, 2) for all images
    void* y;
    int64_t pixels, part_pixels;
    int parts, channels;
    int per_image, with_silu;
};

struct LayerNormArgs {
    const void* x;  // (rows, channels)
    const float *weight, *bias;
    void* y;
    int64_t rows;
    int channels;
    float eps;
};

constexpr int THREADS = 256;

// Calls `f(vector, first pixel, step)` for the vectors of channels and the pixels of a part that fall to this thread.
// Neighbouring threads have neighbouring vectors.
template <class F> __device__ __forceinline__ void share(int vectors, F f) {
    const int lines = vectors < THREADS ? THREADS / vectors : 1;
    const int line = (int)threadIdx.x / vectors;
    if (vectors < THREADS) {
        if (line < lines) f((int)threadIdx.x % vectors, line, lines);
    } else {
        for (int vector = threadIdx.x; vector < vectors; vector += THREADS) f(vector, 0, 1);
    }
}

template <class T, int V> __device__ void channel_partials(const PartialsArgs& a) {
    // Of all lines of threads, where there are several.
    __shared__ float lines_sums[THREADS * V * 2];
    const int vectors = a.channels / V, lines = vectors < THREADS ? THREADS / vectors : 1;
    const int64_t image = blockIdx.x / a.parts, part = blockIdx.x % a.parts;
    const int64_t start = part * a.part_pixels, end = start + a.part_pixels < a.pixels ? start + a.part_pixels : a.pixels;
    float* to = a.partials + (image * a.parts + part) * a.channels * 2;
    share(vectors, [&](int vector, int first, int step) {
        float sums[V] = {}, squares[V] = {};
        const T* x = (const T*)a.x + image * a.pixels * a.channels + vector * V;
        for (int64_t pixel = start + first; pixel < end; pixel += step) {
            const Vector<T, V> values = *(const Vector<T, V>*)(x + pixel * a.channels);
#pragma unroll
            for (int i = 0; i < V; i++) {
                const float v = to_float(values.at[i]);
                sums[i] += v;
                squares[i] += v * v;
            }
        }
        float* out = lines > 1 ? lines_sums + first * a.channels * 2 : to;
#pragma unroll
        for (int i = 0; i < V; i++) {
            out[(vector * V + i) * 2] = sums[i];
            out[(vector * V + i) * 2 + 1] = squares[i];
        }
    });
    if (lines == 1) return;
    __syncthreads();
    for (int i = threadIdx.x; i < a.channels * 2; i += THREADS) {
        float total = 0.0f;
        for (int line = 0; line < lines; line++) total += lines_sums[line * a.channels * 2 + i];
        to[i] = total;
    }
}

// A block for each group of each image.
__device__ void factors_of_groups(const FactorsArgs& a) {
    __shared__ double totals[2][128];
    const int per_group = a.channels / a.groups, group = blockIdx.x % a.groups, thread = threadIdx.x;
    const int64_t image = blockIdx.x / a.groups;
    double sum = 0.0, squares = 0.0;
    for (int64_t i = thread; i < (int64_t)a.parts * per_group; i += 128) {
        const int64_t part = i / per_group, channel = group * per_group + i % per_group;
        const float* at = a.partials + ((image * a.parts + part) * a.channels + channel) * 2;
        sum += at[0];
        squares += at[1];
    }
    totals[0][thread] = sum;
    totals[1][thread] = squares;
    for (int step = 64; step > 0; step /= 2) {
        __syncthreads();
        if (thread < step) {
            totals[0][thread] += totals[0][thread + step];
            totals[1][thread] += totals[1][thread + step];
        }
    }
    __syncthreads();
    const double n = (double)a.pixels * per_group, mean = totals[0][0] / n;
    const double variance = fmax(totals[1][0] / n - mean * mean, 0.0);
    const float inverse = (float)(1.0 / sqrt(variance + a.eps));
    for (int i = thread; i < per_group; i += 128) {
        const int channel = group * per_group + i;
        const float factor = inverse * a.weight[channel];
        float* to = a.factors + (image * a.channels + channel) * 2;
        to[0] = factor;
        to[1] = a.bias[channel] - (float)mean * factor;
    }
}

template <class T, int V> __device__ void channel_affine(const AffineArgs& a) {
    const int64_t image = blockIdx.x / a.parts, part = blockIdx.x % a.parts;
    const int64_t start = part * a.part_pixels, end = start + a.part_pixels < a.pixels ? start + a.part_pixels : a.pixels;
    const float* factors = a.factors + (a.per_image ? image * a.channels * 2 : 0);
    share(a.channels / V, [&](int vector, int first, int step) {
        float factor[V], offset[V];
#pragma unroll
        for (int i = 0; i < V; i++) {
            factor[i] = factors[(vector * V + i) * 2];
            offset[i] = factors[(vector * V + i) * 2 + 1];
        }
        const int64_t at = image * a.pixels * a.channels + vector * V;
        for (int64_t pixel = start + first; pixel < end; pixel += step) {
            Vector<T, V> values = *(const Vector<T, V>*)((const T*)a.x + at + pixel * a.channels);
#pragma unroll
            for (int i = 0; i < V; i++) {
                const float v = to_float(values.at[i]) * factor[i] + offset[i];
                values.at[i] = from_float<T>(a.with_silu ? silu(v) : v);
            }
            *(Vector<T, V>*)((T*)a.y + at + pixel * a.channels) = values;
        }
    });
}

__device__ __forceinline__ float warp_sum(float v) {
    for (int mask = 16; mask > 0; mask /= 2) v += from_lane_xor(v, mask);
    return v;
}

// A warp for each row.
template <class T, int V> __device__ void layer_norm(const LayerNormArgs& a) {
    const int64_t row = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (row >= a.rows) return;
    const T* x = (const T*)a.x + row * a.channels;
    float sum = 0.0f;
    for (int c = lane * V; c < a.channels; c += 32 * V) {
        const Vector<T, V> values = *(const Vector<T, V>*)(x + c);
#pragma unroll
        for (int i = 0; i < V; i++) sum += to_float(values.at[i]);
    }
    const float mean = warp_sum(sum) / a.channels;
    float squares = 0.0f;
    for (int c = lane * V; c < a.channels; c += 32 * V) {
        const Vector<T, V> values = *(const Vector<T, V>*)(x + c);
#pragma unroll
        for (int i = 0; i < V; i++) squares += (to_float(values.at[i]) - mean) * (to_float(values.at[i]) - mean);
    }
    const float inverse = 1.0f / sqrtf(warp_sum(squares) / a.channels + a.eps);
    for (int c = lane * V; c < a.channels; c += 32 * V) {
        Vector<T, V> values = *(const Vector<T, V>*)(x + c);
#pragma unroll
        for (int i = 0; i < V; i++) values.at[i] = from_float<T>((to_float(values.at[i]) - mean) * inverse * a.weight[c + i] + a.bias[c + i]);
        *(Vector<T, V>*)((T*)a.y + row * a.channels + c) = values;
    }
}

// By 16 bytes, or by single numbers where the channels do not divide.
#define WIDTHS(type, name)                                                                        \
    KERNEL(channel_partials_##name##_wide, THREADS, PartialsArgs, channel_partials<type, WIDE<type>>) \
    KERNEL(channel_partials_##name##_single, THREADS, PartialsArgs, channel_partials<type, 1>)        \
    KERNEL(channel_affine_##name##_wide, THREADS, AffineArgs, channel_affine<type, WIDE<type>>)       \
    KERNEL(channel_affine_##name##_single, THREADS, AffineArgs, channel_affine<type, 1>)              \
    KERNEL(layer_norm_##name##_wide, THREADS, LayerNormArgs, layer_norm<type, WIDE<type>>)            \
    KERNEL(layer_norm_##name##_single, THREADS, LayerNormArgs, layer_norm<type, 1>)
WIDTHS(float, f32)
WIDTHS(f16, f16)
WIDTHS(bf16, bf16)
KERNEL(group_factors, 128, FactorsArgs, factors_of_groups)
