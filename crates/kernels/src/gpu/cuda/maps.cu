// What passes over a map once: layouts, resizes, pools, joins, and functions of single numbers.
#include "common.cuh"

struct RepackArgs {
    const void* x;
    int64_t strides[4];  // of batch, channel, row and column, in elements
    void* y;             // (batch, height, width, padded)
    int64_t count;       // of elements of y
    int channels, height, width, padded;  // channels from `channels` on are 0
};

struct ResizeArgs {
    const void* x;  // (batch, height, width, channels)
    void* y;        // (batch, out_height, out_width, channels)
    int64_t count;  // of elements of y
    int height, width, out_height, out_width, channels;
};

struct PoolArgs {
    const void* x;
    void* y;
    int64_t count;
    int height, width, out_height, out_width, channels;
    int stride, padding, average;
};

struct JoinArgs {
    const void* x;      // (pixels, channels)
    void* y;            // (pixels, all), of which this is written from `first` on
    int64_t count;      // of elements of x
    int channels, all, first;
};

struct MapArgs {
    const void *x, *other;
    void* y;
    int64_t count;  // of elements of y
    int channels;   // of a row of y
};

struct SoftmaxArgs {
    const void* x;  // (rows, columns), rows `stride` apart
    void* y;        // the same; columns from `columns` on become 0
    int rows, columns, stride;
    float scale;  // of the scores, times log₂ e
};

constexpr int THREADS = 256;

__device__ __forceinline__ int64_t index() { return (int64_t)blockIdx.x * THREADS + threadIdx.x; }

template <class S, class T> __device__ void repack(const RepackArgs& a) {
    const int64_t i = index();
    if (i >= a.count) return;
    const int channel = i % a.padded;
    const int64_t pixel = i / a.padded;
    const int64_t x = pixel % a.width, y = pixel / a.width % a.height, image = pixel / a.width / a.height;
    const int64_t from = image * a.strides[0] + channel * a.strides[1] + y * a.strides[2] + x * a.strides[3];
    ((T*)a.y)[i] = from_float<T>(channel < a.channels ? to_float(((const S*)a.x)[from]) : 0.0f);
}

// The two neighbours of an output position and the weight of the second: half-pixel centres, as PyTorch has them.
struct Taps {
    int first, second;
    float weight;
};

__device__ __forceinline__ Taps taps(int i, int from, int to) {
    const float scale = (float)from / (float)to;
    const float s = fmaxf(scale * ((float)i + 0.5f) - 0.5f, 0.0f);
    const int first = (int)s < from - 1 ? (int)s : from - 1;
    return Taps{first, first + 1 < from - 1 ? first + 1 : from - 1, fminf(fmaxf(s - (float)first, 0.0f), 1.0f)};
}

template <class T, int V> __device__ void resize_bilinear(const ResizeArgs& a) {
    const int64_t i = index() * V;
    if (i >= a.count) return;
    const int channel = i % a.channels;
    const int64_t pixel = i / a.channels;
    const Taps row = taps(pixel / a.out_width % a.out_height, a.height, a.out_height), column = taps(pixel % a.out_width, a.width, a.out_width);
    const T* x = (const T*)a.x + pixel / a.out_width / a.out_height * a.height * a.width * a.channels + channel;
    auto at = [&](int y, int x_) { return *(const Vector<T, V>*)(x + ((int64_t)y * a.width + x_) * a.channels); };
    const Vector<T, V> corners[4] = {at(row.first, column.first), at(row.first, column.second), at(row.second, column.first), at(row.second, column.second)};
    Vector<T, V> out;
#pragma unroll
    for (int k = 0; k < V; k++) {
        const float top = to_float(corners[0].at[k]) * (1.0f - column.weight) + to_float(corners[1].at[k]) * column.weight;
        const float bottom = to_float(corners[2].at[k]) * (1.0f - column.weight) + to_float(corners[3].at[k]) * column.weight;
        out.at[k] = from_float<T>(top * (1.0f - row.weight) + bottom * row.weight);
    }
    *(Vector<T, V>*)((T*)a.y + i) = out;
}

// Output position i reads ⌊i · from / to⌋.
template <class T, int V> __device__ void upsample_nearest(const ResizeArgs& a) {
    const int64_t i = index() * V;
    if (i >= a.count) return;
    const int channel = i % a.channels;
    const int64_t pixel = i / a.channels;
    const int64_t row = pixel / a.out_width % a.out_height * a.height / a.out_height, column = pixel % a.out_width * a.width / a.out_width;
    const int64_t image = pixel / a.out_width / a.out_height;
    const T* from = (const T*)a.x + ((image * a.height + row) * a.width + column) * a.channels + channel;
    *(Vector<T, V>*)((T*)a.y + i) = *(const Vector<T, V>*)from;
}

template <class T, int V> __device__ void pool3x3(const PoolArgs& a) {
    const int64_t i = index() * V;
    if (i >= a.count) return;
    const int channel = i % a.channels;
    const int64_t pixel = i / a.channels;
    const int top = (int)(pixel / a.out_width % a.out_height) * a.stride - a.padding, left = (int)(pixel % a.out_width) * a.stride - a.padding;
    const T* x = (const T*)a.x + pixel / a.out_width / a.out_height * a.height * a.width * a.channels + channel;
    float joined[V];
    for (int k = 0; k < V; k++) joined[k] = a.average ? 0.0f : -INFINITY;
    int seen = 0;
    for (int y = top; y < top + 3; y++) {
        for (int x_ = left; x_ < left + 3; x_++) {
            if (y < 0 || y >= a.height || x_ < 0 || x_ >= a.width) continue;
            seen++;
            const Vector<T, V> values = *(const Vector<T, V>*)(x + ((int64_t)y * a.width + x_) * a.channels);
            for (int k = 0; k < V; k++) {
                const float v = to_float(values.at[k]);
                joined[k] = a.average ? joined[k] + v : fmaxf(joined[k], v);
            }
        }
    }
    Vector<T, V> out;
    for (int k = 0; k < V; k++) out.at[k] = from_float<T>(a.average ? joined[k] / (float)seen : joined[k]);
    *(Vector<T, V>*)((T*)a.y + i) = out;
}

template <class T, int V> __device__ void join(const JoinArgs& a) {
    const int64_t i = index() * V;
    if (i >= a.count) return;
    *(Vector<T, V>*)((T*)a.y + i / a.channels * a.all + a.first + i % a.channels) = *(const Vector<T, V>*)((const T*)a.x + i);
}

enum Function { ADD, SILU, GELU, QUICK_GELU, GEGLU };

template <class T, int V, Function F> __device__ void map(const MapArgs& a) {
    const int64_t i = index() * V;
    if (i >= a.count) return;
    // GEGLU reads rows of twice the length: values, then gates.
    const int64_t at = F == GEGLU ? i / a.channels * a.channels + i : i;
    const Vector<T, V> x = *(const Vector<T, V>*)((const T*)a.x + at);
    Vector<T, V> other = x, y;
    if (F == ADD) other = *(const Vector<T, V>*)((const T*)a.other + i);
    if (F == GEGLU) other = *(const Vector<T, V>*)((const T*)a.x + at + a.channels);
#pragma unroll
    for (int k = 0; k < V; k++) {
        const float v = to_float(x.at[k]), w = to_float(other.at[k]);
        y.at[k] = from_float<T>(F == ADD ? v + w : F == SILU ? silu(v) : F == GELU ? gelu(v) : F == QUICK_GELU ? silu(1.702f * v) / 1.702f : v * gelu(w));
    }
    *(Vector<T, V>*)((T*)a.y + i) = y;
}

// A warp for each row.
template <class T> __device__ void softmax(const SoftmaxArgs& a) {
    const int row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= a.rows) return;
    const T* x = (const T*)a.x + (int64_t)row * a.stride;
    T* y = (T*)a.y + (int64_t)row * a.stride;
    float top = -INFINITY;
    for (int i = lane; i < a.columns; i += 32) top = fmaxf(top, to_float(x[i]) * a.scale);
    for (int mask = 16; mask > 0; mask /= 2) top = fmaxf(top, from_lane_xor(top, mask));
    float sum = 0.0f;
    for (int i = lane; i < a.columns; i += 32) sum += power_of_two(to_float(x[i]) * a.scale - top);
    for (int mask = 16; mask > 0; mask /= 2) sum += from_lane_xor(sum, mask);
    const float inverse = 1.0f / sum;
    for (int i = lane; i < a.stride; i += 32) {
        y[i] = from_float<T>(i < a.columns ? power_of_two(to_float(x[i]) * a.scale - top) * inverse : 0.0f);
    }
}

#define EACH(type, name, width, v)                                                                \
    KERNEL(resize_bilinear_##name##_##width, THREADS, ResizeArgs, resize_bilinear<type, v>)        \
    KERNEL(upsample_nearest_##name##_##width, THREADS, ResizeArgs, upsample_nearest<type, v>)      \
    KERNEL(pool3x3_##name##_##width, THREADS, PoolArgs, pool3x3<type, v>)                          \
    KERNEL(join_##name##_##width, THREADS, JoinArgs, join<type, v>)                                \
    KERNEL(add_##name##_##width, THREADS, MapArgs, map<type, v, ADD>)                              \
    KERNEL(silu_##name##_##width, THREADS, MapArgs, map<type, v, SILU>)                            \
    KERNEL(gelu_##name##_##width, THREADS, MapArgs, map<type, v, GELU>)                            \
    KERNEL(quick_gelu_##name##_##width, THREADS, MapArgs, map<type, v, QUICK_GELU>)                \
    KERNEL(geglu_##name##_##width, THREADS, MapArgs, map<type, v, GEGLU>)
#define TYPE(type, name)                                             \
    EACH(type, name, wide, WIDE<type>)                               \
    EACH(type, name, single, 1)                                      \
    KERNEL(softmax_##name, THREADS, SoftmaxArgs, softmax<type>)      \
    KERNEL(repack_f32_##name, THREADS, RepackArgs, repack<float, type>) \
    KERNEL(repack_f16_##name, THREADS, RepackArgs, repack<f16, type>)   \
    KERNEL(repack_bf16_##name, THREADS, RepackArgs, repack<bf16, type>)
TYPE(float, f32)
TYPE(f16, f16)
TYPE(bf16, bf16)
