// Causal grouped-query attention, forward, inside each packed sequence or over the KV cache.
//
//   S = Q K^T;  m = running row maximum;  P = 2^((S - m) scale log2 e);  l += row sum of P;  O = (sum bf16(P) V) / l;  LSE = m scale + ln l.
//   Query at position i sees keys max(0, i - window + 1) ..= i of its own sequence.
//   qkv [T, (hq + 2 hk) DIM] bf16 (q heads, k heads, v heads; after RoPE);  out [T, hq DIM] bf16 =;  lse [hq, T] f32 = (or null).
//   With `places`, keys and values come from the cache [slot, hk, capacity, DIM] and a sequence's first row has position `past`.
//   f32: S, P before it is an operand, m, l, O. One rounding of O.
//
// Budget at DIM 128: 4 T S DIM hq FLOPs (causal: half). 128 query rows x 64 keys a step, 4 warps of 32 rows: a step reads 40 KB of shared
// memory a warp for 1.05 MFLOP (512 clocks of the tensor cores of sm_80, 320 of shared memory). Shared: Q 32 + K 16 + V 16 = 64 KB, 128 threads,
// <= 255 registers: 2 blocks an SM; parts with 99 KB take 32 keys (48 KB). Peak to reach: 60% of mma.sync at long sequences, causal.
#include "prim/heads.cuh"

struct Params {
    const bf16* qkv;
    bf16* out;
    float* lse;
    const Work* work;
    const bf16* cached_keys;    // null: keys and values are in qkv
    const bf16* cached_values;
    const Place* places;        // [sequences], with the cache
    uint32_t tokens, queries, keys, group, capacity;
    int32_t window;             // INT_MAX: none
    float scale_log2;           // scale * log2 e
    uint32_t pad;
};
static_assert(sizeof(Params) == 88, "as in Rust");

constexpr int WARPS = 4, THREADS = WARPS * WARP;
constexpr int M = 2;                     // blocks of 16 rows a warp: each B operand read from shared memory serves both (one: bound by shared memory)
constexpr int WARP_ROWS = 16 * M;
constexpr int ROWS = WARPS * WARP_ROWS;
static_assert(ROWS == 128, "FORWARD_TILE in Rust");

template <int DIM, int KEYS> __device__ __forceinline__ void forward(const Params& p) {
    constexpr int N = KEYS / 8;          // accumulator blocks of S
    extern __shared__ __align__(1024) uint8_t shared[];
    const uint32_t q_tile = smem_address(shared), k_tile = q_tile + ROWS * 2 * DIM, v_tile = k_tile + KEYS * 2 * DIM;

    const Work w = p.work[blockIdx.x / p.queries];
    if (w.length == 0) return;
    const int head = blockIdx.x % p.queries, kv = head / p.group;
    const int first = w.tile * ROWS, rows = min(ROWS, (int)w.length - first);
    const int64_t width = (int64_t)(p.queries + 2 * p.keys) * DIM;
    const bf16* q = p.qkv + (w.start + first) * width + head * DIM;
    const bf16 *k = p.qkv + w.start * width + (p.queries + kv) * DIM;
    int64_t to_values = p.keys * DIM;
    int64_t stride = width;
    int past = 0;
    if (p.places) {
        const Place place = p.places[w.sequence];
        const int64_t lane = ((int64_t)place.slot * p.keys + kv) * p.capacity * DIM;
        k = p.cached_keys + lane, to_values = p.cached_values - p.cached_keys, stride = DIM, past = place.past;
    }
    // Keys that the tile's rows see, in whole steps from `begin`.
    const int end = past + first + rows;
    const int begin = max(0, past + first + 1 - p.window) / KEYS * KEYS;
    // Positions of this warp's rows; and of this lane's first row, less its first column.
    const int low = past + first + warp_id() * WARP_ROWS, high = low + WARP_ROWS - 1;
    const int column = 2 * (lane_id() % 4), position = low + lane_id() / 4 - column;

    load_rows<ROWS, DIM, THREADS>(q_tile, q, width, rows, threadIdx.x);
    load_rows<KEYS, DIM, THREADS>(k_tile, k + begin * stride, stride, end - begin, threadIdx.x);
    cp_async_commit();

    const uint32_t q_lane = lane_down<DIM>(q_tile) + warp_id() * WARP_ROWS * 2 * DIM;
    const uint32_t k_lane = lane_across<DIM>(k_tile), v_lane = lane_down<DIM>(v_tile);
    Running<DIM, M> r;
    r.start();
    for (int at = begin; at < end; at += KEYS) {
        cp_async_wait<0>();
        __syncthreads();  // K is here, and nobody reads V any more
        load_rows<KEYS, DIM, THREADS>(v_tile, k + to_values + at * stride, stride, end - at, threadIdx.x);
        cp_async_commit();
        const bool seen = low < end && at <= high && at + KEYS - 1 > low - p.window;  // by some row of this warp
        float s[M][N][4];
        if (seen) {
            clear(s);
            multiply_rows<DIM>(s, q_lane, k_lane);
        }
        cp_async_wait<0>();
        __syncthreads();  // V is here, and nobody reads K any more
        if (at + KEYS < end) load_rows<KEYS, DIM, THREADS>(k_tile, k + (at + KEYS) * stride, stride, end - at - KEYS, threadIdx.x);
        cp_async_commit();
        if (!seen) continue;

        if (at + KEYS - 1 > low || at <= high - p.window) {
            const int distance = position - at;  // of query and key in this lane's first element
#pragma unroll
            for (int m = 0; m < M; ++m)
#pragma unroll
                for (int n = 0; n < N; ++n)
#pragma unroll
                    for (int e = 0; e < 4; ++e)  // a key ahead of the query is a negative distance: more than any window
                        if ((uint32_t)(distance + 16 * m + 8 * (e / 2) - 8 * n - e % 2) >= (uint32_t)p.window) s[m][n][e] = MINUS_INFINITY;
        }
        r.weigh(s, p.scale_log2);
        multiply_down<DIM>(r.o, s, v_lane);
    }

    const int64_t out_stride = (int64_t)p.queries * DIM;
#pragma unroll
    for (int m = 0; m < M; ++m) {
        const int row = warp_id() * WARP_ROWS + 16 * m;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float total = quad_sum(r.sum[m][h]), inverse = 1.f / total;
#pragma unroll
            for (int n = 0; n < DIM / 8; ++n) r.o[m][n][2 * h] *= inverse, r.o[m][n][2 * h + 1] *= inverse;
            const int mine = row + 8 * h + lane_id() / 4;
            if (p.lse && column == 0 && mine < rows)
                p.lse[(int64_t)head * p.tokens + w.start + first + mine] = fmaf(__fmul_rn(r.top[m][h], p.scale_log2), LN_2, logf(total));
        }
        // Only this warp reads these rows of Q.
        store_rows<DIM>(r.o[m], shared + row * 2 * DIM, p.out + (w.start + first + row) * out_stride + head * DIM, out_stride, rows - row);
    }
}

#define FORWARD(NAME, DIM, KEYS)                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) NAME(const __grid_constant__ Params p) { \
        forward<DIM, KEYS>(p);                                                                           \
    }
FORWARD(attention_forward_128_small, 128, 32)  // two blocks in 99 KB; elsewhere 16% slower (H100, heads 16/2, 8 x 2048)
#if __CUDA_ARCH__ != 860 && __CUDA_ARCH__ != 890 && __CUDA_ARCH__ != 1200
FORWARD(attention_forward_128, 128, 64)
#endif
FORWARD(attention_forward_64, 64, 64)
FORWARD(attention_forward_32, 32, 64)

