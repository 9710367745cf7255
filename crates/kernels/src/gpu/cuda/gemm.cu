// Convolutions and linear layers: one product of tiles, whose left operand is gathered from a map as it is copied to shared
// memory. Maps are stored pixel by pixel, (batch, height, width, channels), so that what a tap sees of a pixel is contiguous, and
// a dilation only moves where the copy reads.
//
// An output is summed in one order of channels and taps, whatever the tile and the batch: images do not depend on batches.
#include "common.cuh"

struct GemmArgs {
    const void* x;         // (batch, height, width, channels)
    const void* weight;    // (outputs, taps, channels)
    const float* bias;     // null, (outputs), or (batch, outputs)
    const void* residual;  // null, or as y
    void* y;               // (batch, out_height, out_width, outputs), pixels `y_stride` apart
    int64_t y_stride;
    int batch, height, width, channels;  // channels: a multiple of 8
    int out_height, out_width, outputs;
    int kernel_height, kernel_width, stride, pad_rows, pad_columns, dilation;
    int bias_per_image, relu;
};

// Bytes of the summed dimension in one tile, and tiles on their way.
constexpr int DEPTH = 64;
constexpr int STAGES = 3;

// Where chunk `chunk` of row `row` of a tile is: moved about so that neither copies nor `ldmatrix` meet in a bank.
__device__ __forceinline__ int place(int row, int chunk) { return row * DEPTH + ((chunk ^ ((row >> 1) & 3)) << 4); }

// A block computes BM pixels × BN outputs, a warp of it WM × WN.
template <class T, int BM, int BN, int WM, int WN> __device__ void gemm(const GemmArgs& a) {
    constexpr int THREADS = 32 * (BM / WM) * (BN / WN), ROWS = THREADS / 4, STAGE = (BM + BN) * DEPTH;
    SHARED_MEMORY(shared);
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int tiles = (a.outputs + BN - 1) / BN;
    const int first_output = blockIdx.x % tiles * BN;
    const int64_t first_pixel = (int64_t)(blockIdx.x / tiles) * BM;
    const int64_t image_pixels = (int64_t)a.out_height * a.out_width, pixels = a.batch * image_pixels;
    const T* x = (const T*)a.x;
    const bool in_pairs = a.y_stride % 2 == 0 && (uintptr_t)a.y % (2 * sizeof(T)) == 0;

    // Each thread copies one chunk of 16 bytes of every ROWS-th row: of four chunks of channels, all taps, then of the next four. What the
    // taps of a tile see is nearly the same, and stays in the first-level cache from tap to tap.
    const int taps = a.kernel_height * a.kernel_width, chunks = a.channels / WIDE<T>;
    const int row = thread / 4, column = thread % 4;
    const T* image[BM / ROWS];
    int top[BM / ROWS], left[BM / ROWS];
#pragma unroll
    for (int i = 0; i < BM / ROWS; i++) {
        const int64_t pixel = first_pixel + row + i * ROWS;
        const bool real = pixel < pixels;
        const int at = real ? (int)(pixel % image_pixels) : 0;
        image[i] = x + (real ? pixel / image_pixels : 0) * a.height * a.width * a.channels;
        top[i] = real ? at / a.out_width * a.stride - a.pad_rows : -(1 << 30);
        left[i] = at % a.out_width * a.stride - a.pad_columns;
    }
    const T* weight = (const T*)a.weight + (int64_t)(first_output + row) * taps * a.channels;
    int block = 0, tap_y = 0, tap_x = 0;
    auto load = [&](int stage) {
        unsigned char* to = shared + stage * STAGE;
        const int chunk = block * 4 + column;
        const bool inside = chunk < chunks;
#pragma unroll
        for (int i = 0; i < BM / ROWS; i++) {
            const int y = top[i] + tap_y * a.dilation, x_ = left[i] + tap_x * a.dilation;
            const bool valid = inside && (unsigned)y < (unsigned)a.height && (unsigned)x_ < (unsigned)a.width;
            const T* from = valid ? image[i] + ((int64_t)y * a.width + x_) * a.channels + chunk * WIDE<T> : x;
            copy_async_cached(to + place(row + i * ROWS, column), from, valid);
        }
        const T* of_tap = weight + (tap_y * a.kernel_width + tap_x) * a.channels + chunk * WIDE<T>;
#pragma unroll
        for (int i = 0; i < BN / ROWS; i++) {
            const bool valid = inside && first_output + row + i * ROWS < a.outputs;
            const T* from = valid ? of_tap + (int64_t)i * ROWS * taps * a.channels : x;
            copy_async(to + BM * DEPTH + place(row + i * ROWS, column), from, valid);
        }
        if (++tap_x == a.kernel_width) {
            tap_x = 0;
            if (++tap_y == a.kernel_height) {
                tap_y = 0;
                block++;
            }
        }
    };

    float sums[WM / 16][WN / 8][4] = {};
    const int warp_row = warp / (BN / WN) * WM, warp_column = warp % (BN / WN) * WN;
    const int steps = (chunks + 3) / 4 * taps;
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) load(s);
        copies_commit();
    }
    for (int step = 0; step < steps; step++) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        // Into the stage that all warps have left.
        if (step + STAGES - 1 < steps) load((step + STAGES - 1) % STAGES);
        copies_commit();
        const unsigned char* left_tile = shared + step % STAGES * STAGE;
        const unsigned char* right_tile = left_tile + BM * DEPTH;
#pragma unroll
        for (int part = 0; part < DEPTH / 32; part++) {
            uint32_t l[WM / 16][4], r[WN / 16][4];
#pragma unroll
            for (int i = 0; i < WM / 16; i++) {
                load_matrices(l[i], left_tile + place(warp_row + i * 16 + lane % 16, part * 2 + lane / 16));
            }
#pragma unroll
            for (int j = 0; j < WN / 16; j++) {
                const int output = warp_column + j * 16 + lane / 16 * 8 + lane % 8;
                load_matrices(r[j], right_tile + place(output, part * 2 + lane / 8 % 2));
            }
#pragma unroll
            for (int i = 0; i < WM / 16; i++) {
#pragma unroll
                for (int j = 0; j < WN / 8; j++) {
                    multiply(sums[i][j], l[i], r[j / 2][j % 2 * 2], r[j / 2][j % 2 * 2 + 1], T());
                }
            }
        }
    }

#pragma unroll
    for (int i = 0; i < WM / 16; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int64_t pixel = first_pixel + warp_row + i * 16 + half * 8 + lane / 4;
            if (pixel >= pixels) continue;
            const float* bias = a.bias ? a.bias + (a.bias_per_image ? pixel / image_pixels * a.outputs : 0) : nullptr;
            T* to = (T*)a.y + pixel * a.y_stride;
            const T* residual = a.residual ? (const T*)a.residual + pixel * a.y_stride : nullptr;
#pragma unroll
            for (int j = 0; j < WN / 8; j++) {
                const int output = first_output + warp_column + j * 8 + lane % 4 * 2;
                float v[2] = {sums[i][j][half * 2], sums[i][j][half * 2 + 1]};
                for (int k = 0; k < 2; k++) {
                    if (output + k >= a.outputs) continue;
                    if (bias) v[k] += bias[output + k];
                    if (residual) v[k] += to_float(residual[output + k]);
                    if (a.relu) v[k] = fmaxf(v[k], 0.0f);
                }
                if (output + 1 < a.outputs && in_pairs) {
                    *(Pair<T>*)(to + output) = pair<T>(v[0], v[1]);
                } else {
                    for (int k = 0; k < 2; k++) {
                        if (output + k < a.outputs) to[output + k] = from_float<T>(v[k]);
                    }
                }
            }
        }
    }
}

KERNEL(gemm_f32_128, TWO_OF_256, GemmArgs, gemm<float, 128, 128, 64, 32>)
KERNEL(gemm_f16_128, TWO_OF_256, GemmArgs, gemm<f16, 128, 128, 64, 32>)
KERNEL(gemm_bf16_128, TWO_OF_256, GemmArgs, gemm<bf16, 128, 128, 64, 32>)
KERNEL(gemm_f32_64, 128, GemmArgs, gemm<float, 64, 64, 32, 32>)
KERNEL(gemm_f16_64, 128, GemmArgs, gemm<f16, 64, 64, 32, 32>)
KERNEL(gemm_bf16_64, 128, GemmArgs, gemm<bf16, 64, 64, 32, 32>)
