// Softmax attention that never holds more than one tile of scores: the running softmax of Milakov and Gimelshein (2018), in
// the form of FlashAttention-2 (Dao, 2023): scores and probabilities stay in registers, keys and values stream through shared
// memory.
#include "common.cuh"

struct AttentionArgs {
    const void* q;  // (batch, queries, heads · size)
    const void* k;  // (batch, keys, heads · size)
    const void* v;  // as k
    void* y;        // as q
    int queries, keys, heads, size;  // size: whole 16 bytes
    float scale;                     // of the scores, times log₂ e
};

// Heads of up to SIZE channels (a multiple of 16), KEYS keys at a time; each of four warps has TILES × 16 queries.
template <class T, int SIZE, int KEYS, int TILES> __device__ void attention(const AttentionArgs& a) {
    constexpr int ROW = SIZE * sizeof(T) + 16;  // An odd number of 16 bytes: rows begin in different banks.
    constexpr int CHUNKS = SIZE / WIDE<T>, QUERIES = 64 * TILES;
    SHARED_MEMORY(shared);
    unsigned char *q_tile = shared, *k_tile = q_tile + QUERIES * ROW, *v_tile = k_tile + KEYS * ROW;
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int query_tiles = (a.queries + QUERIES - 1) / QUERIES;
    const int first_query = blockIdx.x % query_tiles * QUERIES;
    const int head = blockIdx.x / query_tiles % a.heads, image = blockIdx.x / query_tiles / a.heads;
    const int64_t stride = (int64_t)a.heads * a.size;
    const int64_t q_start = (int64_t)image * a.queries * stride + head * a.size;
    const int64_t k_start = (int64_t)image * a.keys * stride + head * a.size;

    // Rows `first` and on of a matrix of `all` rows; zeros beyond its edges.
    auto load = [&](unsigned char* to, const T* from, int rows, int first, int all) {
        for (int i = thread; i < rows * CHUNKS; i += 128) {
            const int row = i / CHUNKS, channel = i % CHUNKS * WIDE<T>;
            const bool valid = first + row < all && channel < a.size;
            copy_async(to + row * ROW + i % CHUNKS * 16, valid ? from + (first + row) * stride + channel : from, valid);
        }
    };
    const T *k = (const T*)a.k + k_start, *v = (const T*)a.v + k_start;
    load(q_tile, (const T*)a.q + q_start, QUERIES, first_query, a.queries);
    load(k_tile, k, KEYS, 0, a.keys);
    copies_commit();
    load(v_tile, v, KEYS, 0, a.keys);
    copies_commit();

    float out[TILES][SIZE / 8][4] = {};
    // Of queries lane / 4 and lane / 4 + 8 of each tile; the sums are those of this lane's keys.
    float peak[TILES][2], sum[TILES][2];
#pragma unroll
    for (int t = 0; t < TILES; t++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            peak[t][half] = -INFINITY;
            sum[t][half] = 0.0f;
        }
    }

    for (int first = 0; first < a.keys; first += KEYS) {
        copies_wait<1>();
        __syncthreads();
        float scores[TILES][KEYS / 8][4] = {};
#pragma unroll
        for (int part = 0; part < SIZE * (int)sizeof(T) / 32; part++) {
            uint32_t l[TILES][4];
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                load_matrices(l[t], q_tile + ((warp * TILES + t) * 16 + lane % 16) * ROW + (part * 2 + lane / 16) * 16);
            }
#pragma unroll
            for (int j = 0; j < KEYS / 16; j++) {
                uint32_t r[4];
                load_matrices(r, k_tile + (j * 16 + lane / 16 * 8 + lane % 8) * ROW + (part * 2 + lane / 8 % 2) * 16);
#pragma unroll
                for (int t = 0; t < TILES; t++) {
                    multiply(scores[t][2 * j], l[t], r[0], r[1], T());
                    multiply(scores[t][2 * j + 1], l[t], r[2], r[3], T());
                }
            }
        }
        __syncthreads();
        // The next keys arrive while these are used.
        if (first + KEYS < a.keys) load(k_tile, k, KEYS, first + KEYS, a.keys);
        copies_commit();

#pragma unroll
        for (int t = 0; t < TILES; t++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float top = peak[t][half];
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        float& score = scores[t][j][half * 2 + i];
                        score = first + j * 8 + lane % 4 * 2 + i < a.keys ? score * a.scale : -INFINITY;
                        top = fmaxf(top, score);
                    }
                }
                // Four lanes share a query.
                top = fmaxf(top, from_lane_xor(top, 1));
                top = fmaxf(top, from_lane_xor(top, 2));
                const float shrink = power_of_two(peak[t][half] - top);
                peak[t][half] = top;
                float total = 0.0f;
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        float& score = scores[t][j][half * 2 + i];
                        score = power_of_two(score - top);
                        total += score;
                    }
                }
                sum[t][half] = sum[t][half] * shrink + total;
#pragma unroll
                for (int j = 0; j < SIZE / 8; j++) {
                    out[t][j][half * 2] *= shrink;
                    out[t][j][half * 2 + 1] *= shrink;
                }
            }
        }

        copies_wait<1>();
        __syncthreads();
        if constexpr (sizeof(T) == 2) {
            // What two products left are the left operand of the next one, lane by lane.
#pragma unroll
            for (int j = 0; j < KEYS / 16; j++) {
                uint32_t l[TILES][4];
#pragma unroll
                for (int t = 0; t < TILES; t++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const float* p = scores[t][2 * j + i / 2] + i % 2 * 2;
                        l[t][i] = word<T>(p[0], p[1]);
                    }
                }
#pragma unroll
                for (int c = 0; c < SIZE / 16; c++) {
                    uint32_t r[4];
                    load_matrices_transposed(r, v_tile + (j * 16 + lane % 16) * ROW + (c * 2 + lane / 16) * 16);
#pragma unroll
                    for (int t = 0; t < TILES; t++) {
                        multiply(out[t][2 * c], l[t], r[0], r[1], T());
                        multiply(out[t][2 * c + 1], l[t], r[2], r[3], T());
                    }
                }
            }
        } else {
            // Here a lane holds keys 2i and 2i + 1, and the operand wants i and i + 4: the keys change places on both sides.
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) {
                const unsigned char* row = v_tile + (j * 8 + lane % 4 * 2) * ROW + lane / 4 * sizeof(T);
#pragma unroll
                for (int c = 0; c < SIZE / 8; c++) {
                    const uint32_t r0 = *(const uint32_t*)(row + c * 8 * sizeof(T));
                    const uint32_t r1 = *(const uint32_t*)(row + ROW + c * 8 * sizeof(T));
#pragma unroll
                    for (int t = 0; t < TILES; t++) {
                        const float* p = scores[t][j];
                        const uint32_t l[4] = {as_bits(p[0]), as_bits(p[2]), as_bits(p[1]), as_bits(p[3])};
                        multiply(out[t][c], l, r0, r1, T());
                    }
                }
            }
        }
        __syncthreads();
        if (first + KEYS < a.keys) load(v_tile, v, KEYS, first + KEYS, a.keys);
        copies_commit();
    }

#pragma unroll
    for (int t = 0; t < TILES; t++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float total = sum[t][half];
            total += from_lane_xor(total, 1);
            total += from_lane_xor(total, 2);
            const int query = first_query + (warp * TILES + t) * 16 + half * 8 + lane / 4;
            if (query >= a.queries) continue;
            T* to = (T*)a.y + q_start + query * stride + lane % 4 * 2;
            const float inverse = 1.0f / total;
#pragma unroll
            for (int c = 0; c < SIZE / 8; c++) {
                if (c * 8 + lane % 4 * 2 < a.size) *(Pair<T>*)(to + c * 8) = pair<T>(out[t][c][half * 2] * inverse, out[t][c][half * 2 + 1] * inverse);
            }
        }
    }
}

#define SIZES(type, name, size, keys, tiles) KERNEL(attention_##name##_##size, 128, AttentionArgs, attention<type, size, keys, tiles>)
#define TYPES(size, tiles)            \
    SIZES(float, f32, size, 32, 1)    \
    SIZES(f16, f16, size, 64, tiles)  \
    SIZES(bf16, bf16, size, 64, tiles)
TYPES(16, 2)
TYPES(32, 2)
TYPES(48, 2)
TYPES(64, 2)
TYPES(80, 2)
TYPES(128, 1)
TYPES(160, 1)
