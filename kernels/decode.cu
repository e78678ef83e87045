// Attention of one new token a sequence over the KV cache, and the moves of the cache.
//
//   Chunks of a fixed number of keys (a result does not depend on the batch): per chunk and query head m = maximum of S, l = sum of
//   2^((S - m) scale log2 e), O = sum of P V; then out = sum over chunks, in order, of 2^(m - M) O / sum of 2^(m - M) l.
//   qkv [T, (hq + 2 hk) DIM] bf16; cache [slot, hk, capacity, DIM] bf16 each of keys and values: row `past` = (the new token's);
//   partial [sequences, hq, chunks, DIM] then [sequences, hq, chunks, 2] f32 =;  out [T, hq DIM] bf16 =. f32: everything but P as an operand.
//
// Budget: reads 4 DIM bytes a key and key head once; the heads of the group are the rows of the products (padded to 16), so the tensor cores
// are nearly idle. 4 warps, each with its own 16 keys of a step and its own ring of 3 stages of cp.async: no barrier in the loop. DIM 128:
// 96 KB of shared memory, 2 blocks an SM, 128 KB under way. To reach: 80% of the memory's bandwidth at large batches.
#include "prim/heads.cuh"

struct Params {
    const bf16* qkv;
    bf16* out;
    bf16* cached_keys;
    bf16* cached_values;
    const Place* places;
    float* partial;
    uint32_t sequences, queries, keys, group, capacity, chunks, chunk;
    int32_t window;     // INT_MAX: none
    float scale_log2;
    uint32_t longest;   // most new rows of a sequence
};
static_assert(sizeof(Params) == 88, "as in Rust");

constexpr int WARPS = 4, THREADS = WARPS * WARP;
constexpr int HEADS = 16;             // rows of an mma: query heads of one block
constexpr int KEYS = 16;              // of a warp in one step: k of the product P V
constexpr int STEP = WARPS * KEYS;    // of a block
constexpr int STAGES = 3;

// First and last chunk that the newest query sees.
struct Span { int first_key, from, to; };
__device__ __forceinline__ Span span(const Params& p, const Place& place) {
    const int position = place.past, first = max(0, position + 1 - p.window);
    return {first, first / (int)p.chunk, position / (int)p.chunk};
}

// Grid: chunks, key heads x blocks of 16 query heads of a group, sequences.
template <int DIM> __device__ __forceinline__ void attend(const Params& p) {
    constexpr int BYTES = KEYS * 2 * DIM;  // of a warp's keys in one stage
    extern __shared__ __align__(1024) uint8_t shared[];
    float(*tops)[HEADS] = reinterpret_cast<float(*)[HEADS]>(shared + WARPS * STAGES * 2 * BYTES), (*sums)[HEADS] = tops + WARPS;

    const Place place = p.places[blockIdx.z];
    const int chunk = blockIdx.x, blocks = div_up<int>(p.group, HEADS);
    const int kv = blockIdx.y / blocks, first_head = blockIdx.y % blocks * HEADS, heads = min(HEADS, (int)p.group - first_head);
    const int position = place.past;
    const Span seen = span(p, place);
    if (place.length == 0 || chunk < seen.from || chunk > seen.to) return;

    const int64_t width = (int64_t)(p.queries + 2 * p.keys) * DIM;
    const bf16* row = p.qkv + place.start * width;
    const bf16 *new_key = row + (p.queries + kv) * DIM, *new_value = new_key + p.keys * DIM;
    const bf16* q = row + (kv * p.group + first_head) * DIM;
    const int64_t lane_of_cache = ((int64_t)place.slot * p.keys + kv) * p.capacity * DIM;
    bf16 *keys = p.cached_keys + lane_of_cache, *values = p.cached_values + lane_of_cache;

    // The newest key and value are read from qkv here, and kept for later steps by the block that meets them.
    constexpr int PIECES = DIM / 8;
    if (chunk == seen.to && first_head == 0 && threadIdx.x < 2 * PIECES) {
        const int piece = threadIdx.x % PIECES * 8;
        const bool key = threadIdx.x < PIECES;
        store16((key ? keys : values) + (int64_t)position * DIM + piece, load16((key ? new_key : new_value) + piece));
    }

    // Whole steps from `begin`; this warp's keys are at + KEYS * warp ..
    const int begin = max(chunk * (int)p.chunk, seen.first_key / STEP * STEP), end = min((chunk + 1) * (int)p.chunk, position + 1);
    const int steps = div_up(end - begin, STEP);
    const int lane = lane_id(), g = lane / 4, column = 2 * (lane % 4);
    const uint32_t ring = smem_address(shared) + warp_id() * STAGES * 2 * BYTES;
    auto load = [&](int step) {
        constexpr int AT_ONCE = WARP / PIECES;
        const uint32_t to = ring + step % STAGES * 2 * BYTES;
        const int piece = lane % PIECES;
#pragma unroll
        for (int i = 0; i < KEYS / AT_ONCE; ++i) {
            const int r = i * AT_ONCE + lane / PIECES, key = begin + step * STEP + warp_id() * KEYS + r;
            const int bytes = key < end ? 16 : 0;
            const int64_t at = (int64_t)min(key, position) * DIM;
            const uint32_t place_in = to + piece_at<DIM>(r, piece);
            cp_async16(place_in, (key < position ? keys + at : new_key) + piece * 8, bytes);
            cp_async16(place_in + BYTES, (key < position ? values + at : new_value) + piece * 8, bytes);
        }
    };
#pragma unroll
    for (int step = 0; step < STAGES - 1; ++step) {
        if (step < steps) load(step);
        cp_async_commit();
    }
    uint32_t a[DIM / 16][4];  // Q: rows are heads
#pragma unroll
    for (int k = 0; k < DIM / 16; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int head = g + 8 * (i % 2), at = 16 * k + 8 * (i / 2) + column;
            a[k][i] = head < heads ? *reinterpret_cast<const uint32_t*>(q + head * DIM + at) : 0;
        }

    Running<DIM, 1> r;
    r.start();
    for (int step = 0; step < steps; ++step) {
        cp_async_wait<STAGES - 2>();
        __syncwarp();  // this warp's keys are here, and its lanes are done with the stage before
        if (step + STAGES - 1 < steps) load(step + STAGES - 1);
        cp_async_commit();
        const uint32_t k_tile = ring + step % STAGES * 2 * BYTES;
        const uint32_t k_lane = lane_across<DIM>(k_tile), v_lane = lane_down<DIM>(k_tile + BYTES);
        float s[1][KEYS / 8][4];
        clear(s);
        multiply_held<DIM>(s, a, k_lane);
        const int at = begin + step * STEP + warp_id() * KEYS;
        if (at + KEYS > end || at < seen.first_key) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int key = at + 8 * n + column + e % 2;
                    if (key >= end || key < seen.first_key) s[0][n][e] = MINUS_INFINITY;
                }
        }
        r.weigh(s, p.scale_log2);
        multiply_down<DIM>(r.o, s, v_lane);
    }

    // The four warps' sums, added in order. The rings are done with: they hold O, [warp, head, DIM] f32, now.
    static_assert(HEADS * 4 * DIM <= STAGES * 2 * BYTES, "the warps' O lie in the rings");
    cp_async_wait<0>();
    __syncthreads();
    float* sums_of_values = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const float sum = quad_sum(r.sum[0][h]);
        const int head = g + 8 * h;
        if (column == 0) tops[warp_id()][head] = __fmul_rn(r.top[0][h], p.scale_log2), sums[warp_id()][head] = sum;
#pragma unroll
        for (int n = 0; n < DIM / 8; ++n)
            *reinterpret_cast<float2*>(sums_of_values + (warp_id() * HEADS + head) * DIM + 8 * n + column) = make_float2(r.o[0][n][2 * h], r.o[0][n][2 * h + 1]);
    }
    __syncthreads();
    const bool alone = seen.from == seen.to;
    float* totals = p.partial + (int64_t)p.sequences * p.queries * p.chunks * DIM;
    for (int i = threadIdx.x; i < heads * DIM; i += THREADS) {
        const int head = i / DIM, d = i % DIM, query = kv * p.group + first_head + head;
        float top = tops[0][head];
#pragma unroll
        for (int j = 1; j < WARPS; ++j) top = fmaxf(top, tops[j][head]);
        float o = 0.f, sum = 0.f;
#pragma unroll
        for (int j = 0; j < WARPS; ++j) {
            const float weight = exp2_fast(tops[j][head] - top);  // a warp without keys: 0
            sum = fmaf(weight, sums[j][head], sum);
            o = fmaf(weight, sums_of_values[(j * HEADS + head) * DIM + d], o);
        }
        if (alone) {
            p.out[((int64_t)place.start * p.queries + query) * DIM + d] = to_bf16(o * (1.f / sum));
        } else {
            const int64_t at = ((int64_t)blockIdx.z * p.queries + query) * p.chunks + chunk;
            p.partial[at * DIM + d] = o;
            if (d == 0) totals[2 * at] = top, totals[2 * at + 1] = sum;
        }
    }
}

// Grid: query heads, sequences; DIM threads.
template <int DIM> __device__ __forceinline__ void combine(const Params& p) {
    const Place place = p.places[blockIdx.y];
    const Span seen = span(p, place);
    if (place.length == 0 || seen.from == seen.to) return;
    const int64_t at = ((int64_t)blockIdx.y * p.queries + blockIdx.x) * p.chunks;
    const float* totals = p.partial + (int64_t)p.sequences * p.queries * p.chunks * DIM;
    float top = MINUS_INFINITY;
    for (int c = seen.from; c <= seen.to; ++c) top = fmaxf(top, totals[2 * (at + c)]);
    float o = 0.f, sum = 0.f;
    for (int c = seen.from; c <= seen.to; ++c) {
        const float weight = exp2_fast(totals[2 * (at + c)] - top);
        sum = fmaf(weight, totals[2 * (at + c) + 1], sum);
        o = fmaf(weight, p.partial[(at + c) * DIM + threadIdx.x], o);
    }
    p.out[((int64_t)place.start * p.queries + blockIdx.x) * DIM + threadIdx.x] = to_bf16(o * (1.f / sum));
}

#define DECODE(DIM)                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) decode_attend_##DIM(const __grid_constant__ Params p) { \
        attend<DIM>(p);                                                                                            \
    }                                                                                                              \
    extern "C" __global__ void __launch_bounds__(DIM) decode_combine_##DIM(const __grid_constant__ Params p) {     \
        combine<DIM>(p);                                                                                           \
    }
DECODE(128)
DECODE(64)
DECODE(32)

// Rows of keys and values to the cache, behind `past`. Grid: sequences, blocks of APPEND_ROWS new rows. `chunk` is the columns of a head here.
constexpr int APPEND_ROWS = 16, APPEND_THREADS = 256;
extern "C" __global__ void __launch_bounds__(APPEND_THREADS) decode_append(const __grid_constant__ Params p) {
    const Place place = p.places[blockIdx.x];
    const int dim = p.chunk, first = blockIdx.y * APPEND_ROWS, rows = min(APPEND_ROWS, (int)place.length - first);
    const int pieces = dim / 8, per_row = 2 * p.keys * pieces;
    const int64_t width = (int64_t)(p.queries + 2 * p.keys) * dim;
    for (int i = threadIdx.x; i < rows * per_row; i += APPEND_THREADS) {
        const int row = first + i / per_row, piece = i % per_row;  // key heads, then value heads, lie side by side
        const int head = piece / pieces % p.keys;
        bf16* cache = piece < per_row / 2 ? p.cached_keys : p.cached_values;
        const int64_t to = (((int64_t)place.slot * p.keys + head) * p.capacity + place.past + row) * dim + piece % pieces * 8;
        store16(cache + to, load16(p.qkv + (place.start + row) * width + (int64_t)p.queries * dim + piece * 8));
    }
}

// Slot keep[i] moves to slot i, for ascending keep. A thread owns one place inside a slot and takes the slots in order, so what it
// overwrites it has moved before. Grid: pieces of a slot, layers x (keys, values).
struct CompactParams {
    bf16* keys;
    bf16* values;
    const uint32_t* keep;
    const uint32_t* lengths;   // rows to move, of sequence keep[i]
    uint64_t layer_stride;     // elements from one layer's cache to the next
    uint32_t count, heads, capacity, dim;
};
static_assert(sizeof(CompactParams) == 56, "as in Rust");
extern "C" __global__ void __launch_bounds__(APPEND_THREADS) decode_compact(const __grid_constant__ CompactParams p) {
    const int64_t slot = (int64_t)p.heads * p.capacity * p.dim, at = ((int64_t)blockIdx.x * APPEND_THREADS + threadIdx.x) * 8;
    if (at >= slot) return;
    const uint32_t row = at / p.dim % p.capacity;
    bf16* cache = (blockIdx.y % 2 ? p.values : p.keys) + blockIdx.y / 2 * p.layer_stride + at;
    for (uint32_t i = 0; i < p.count; ++i)
        if (p.keep[i] != i && row < p.lengths[i]) store16(cache + i * slot, load16(cache + p.keep[i] * slot));
}
