// Gradients of attention.cu in two kernels with disjoint writes: dQ (which also makes delta), then dK and dV.
//
//   P = 2^(S scale log2 e - LSE log2 e);  delta = row sum of dO . O;  dP = dO V^T;  dS = P . (dP - delta);
//   dQ = scale bf16(dS) K;  dV = bf16(P)^T dO;  dK = scale bf16(dS)^T Q, the last two summed over the query heads of the group.
//   qkv, dqkv [T, (hq + 2 hk) DIM], out, dout [T, hq DIM] bf16;  lse, delta [hq, T] f32.  dqkv = (q columns by the first kernel, k and v
//   columns by the second), delta =.  With a table, dQ and dK are rotated back by their rows' positions before they are rounded.
//   f32: S, P, dP, dS before they are operands, delta, the three sums, the rotation. One rounding of dqkv.
//
// Budget: 3 + 4 = 7 products where 5 would do with float atomics; counted as 5 (2.5 x forward), so 71% of the rate of the products is the
// most that can show. Tiles of 64 x 64, 4 warps of 16 rows; P and dS stay in registers. DIM 128: 80 KB of shared memory and <= 255 registers, so
// 2 blocks an SM (1 on parts with 99 KB). A step of dK/dV reads 72 KB of shared memory a warp for 1.05 MFLOP: bound by shared memory at
// 89% of sm_80's tensor cores, 45% of sm_90's. The loop of dK/dV: query heads of the group, then tiles of queries, ascending.
#include "prim/heads.cuh"

struct Params {
    const bf16* qkv;
    const bf16* out;
    const bf16* dout;
    const float* lse;
    float* delta;
    bf16* dqkv;
    const Work* work;
    const float* table;         // null: no rotation
    const uint32_t* positions;
    uint32_t tokens, queries, keys, group;
    int32_t window;             // INT_MAX: none
    float scale, scale_log2;    // the second times log2 e
    uint32_t pad;
};
static_assert(sizeof(Params) == 104, "as in Rust");

constexpr int WARPS = 4, THREADS = WARPS * WARP;
constexpr int TILE = 16 * WARPS;  // rows of queries and of keys: dK and dV of 16 rows fill half of a thread's registers at DIM 128
constexpr int N = TILE / 8;       // accumulator blocks of S
static_assert(TILE == 64, "BACKWARD_TILE in Rust");

// Scores that are not seen become -inf, so P = 0. `distance` is the query's position less the key's in this lane's first element; queries lie
// along rows, or columns (DOWN -1). A key ahead of the query is a negative distance: more than any window.
template <int DOWN> __device__ __forceinline__ void hide(float (&s)[1][N][4], int distance, int window) {
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
            if ((uint32_t)(distance + DOWN * (8 * (e / 2) - 8 * n - e % 2)) >= (uint32_t)window) s[0][n][e] = MINUS_INFINITY;
}

template <int DIM> __device__ __forceinline__ void queries_gradient(const Params& p) {
    constexpr int BYTES = TILE * 2 * DIM;  // of a tile
    extern __shared__ __align__(1024) uint8_t shared[];
    const uint32_t q_tile = smem_address(shared), do_tile = q_tile + BYTES, k_tiles = do_tile + BYTES, v_tile = k_tiles + 2 * BYTES;

    const Work w = p.work[blockIdx.x / p.queries];
    if (w.length == 0) return;
    const int head = blockIdx.x % p.queries, kv = head / p.group;
    const int first = w.tile * TILE, rows = min(TILE, (int)w.length - first);
    const int64_t width = (int64_t)(p.queries + 2 * p.keys) * DIM, out_stride = (int64_t)p.queries * DIM;
    const int64_t at_q = (w.start + first) * width + head * DIM, at_o = (w.start + first) * out_stride + head * DIM;
    const int64_t at_row = (int64_t)head * p.tokens + w.start + first;  // in lse and delta
    const bf16 *k = p.qkv + w.start * width + (p.queries + kv) * DIM, *v = k + p.keys * DIM;
    const int end = first + rows, begin = max(0, first + 1 - p.window) / TILE * TILE;

    load_rows<TILE, DIM, THREADS>(q_tile, p.qkv + at_q, width, rows, threadIdx.x);
    load_rows<TILE, DIM, THREADS>(do_tile, p.dout + at_o, out_stride, rows, threadIdx.x);
    load_rows<TILE, DIM, THREADS>(k_tiles, k + begin * width, width, end - begin, threadIdx.x);
    load_rows<TILE, DIM, THREADS>(v_tile, v + begin * width, width, end - begin, threadIdx.x);
    cp_async_commit();

    // delta of this warp's rows while the tiles arrive; lane g of each quad keeps rows g and g + 8.
    constexpr int PIECES = DIM / 8, AT_ONCE = WARP / PIECES;
    const int warp_row = 16 * warp_id(), g = lane_id() / 4, column = 2 * (lane_id() % 4);
    float* deltas = reinterpret_cast<float*>(shared + 5 * BYTES);
#pragma unroll
    for (int i = 0; i < 16 / AT_ONCE; ++i) {
        const int row = warp_row + i * AT_ONCE + lane_id() / PIECES, piece = lane_id() % PIECES;
        float sum = 0.f;
        if (row < rows) {
            const Vec16 a = load16(p.dout + at_o + row * out_stride + piece * 8), b = load16(p.out + at_o + row * out_stride + piece * 8);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float2 x = unpack_bf16(a.w[j]), y = unpack_bf16(b.w[j]);
                sum = fmaf(x.x, y.x, fmaf(x.y, y.y, sum));
            }
        }
        sum = lanes_sum<PIECES>(sum);
        if (piece == 0) {
            deltas[row] = sum;
            if (row < rows) p.delta[at_row + row] = sum;
        }
    }
    __syncwarp();
    float lse2[2], delta[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int row = warp_row + g + 8 * h;
        lse2[h] = row < rows ? p.lse[at_row + row] * LOG2_E : 0.f;
        delta[h] = deltas[row];
    }

    const uint32_t v_lane = lane_across<DIM>(v_tile);
    const int low = first + warp_row;
    float dq[1][DIM / 8][4];
    clear(dq);
    uint32_t q[DIM / 16][4], d_out[DIM / 16][4];  // held: read from shared memory at each step, 6% slower (H100, DIM 128)
    cp_async_wait<0>();
    __syncthreads();
    hold_rows<DIM>(q, lane_down<DIM>(q_tile) + warp_row * 2 * DIM);
    hold_rows<DIM>(d_out, lane_down<DIM>(do_tile) + warp_row * 2 * DIM);
    int stage = 0;
    for (int at = begin; at < end; at += TILE, stage ^= 1) {
        const uint32_t k_tile = k_tiles + stage * BYTES;
        cp_async_wait<0>();
        __syncthreads();  // K and V are here, and nobody reads the other K any more
        if (at + TILE < end) load_rows<TILE, DIM, THREADS>(k_tiles + (stage ^ 1) * BYTES, k + (at + TILE) * width, width, end - at - TILE, threadIdx.x);
        cp_async_commit();
        const bool seen = low < end && at + TILE - 1 > low - p.window;  // at <= low always: tiles are as high as wide
        float s[1][N][4], dp[1][N][4];
        if (seen) {
            clear(s), clear(dp);
            multiply_held<DIM>(s, q, lane_across<DIM>(k_tile));
            multiply_held<DIM>(dp, d_out, v_lane);
        }
        __syncthreads();  // nobody reads V any more
        if (at + TILE < end) load_rows<TILE, DIM, THREADS>(v_tile, v + (at + TILE) * width, width, end - at - TILE, threadIdx.x);
        cp_async_commit();
        if (!seen) continue;
        if (at + TILE - 1 > low || at <= low + 15 - p.window) hide<1>(s, low + g - at - column, p.window);
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const float probability = exp2_fast(fmaf(s[0][n][e], p.scale_log2, -lse2[e / 2]));
                s[0][n][e] = probability * (dp[0][n][e] - delta[e / 2]);
            }
        multiply_down<DIM>(dq, s, lane_down<DIM>(k_tile));
    }

#pragma unroll
    for (int n = 0; n < DIM / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) dq[0][n][e] *= p.scale;
    if (p.table) rotate_back<DIM>(dq[0], p.table, p.positions + w.start + first + warp_row, rows - warp_row);
    // Only this warp reads these rows of Q.
    store_rows<DIM>(dq[0], shared + warp_row * 2 * DIM, p.dqkv + at_q + warp_row * width, width, rows - warp_row);
}

template <int DIM> __device__ __forceinline__ void keys_gradient(const Params& p) {
    constexpr int BYTES = TILE * 2 * DIM;
    extern __shared__ __align__(1024) uint8_t shared[];
    const uint32_t k_tile = smem_address(shared), v_tile = k_tile + BYTES, q_tiles = v_tile + BYTES, do_tile = q_tiles + 2 * BYTES;
    float(*of_rows)[2][TILE] = reinterpret_cast<float(*)[2][TILE]>(shared + 5 * BYTES);  // stage; lse, delta

    const Work w = p.work[blockIdx.x / p.keys];
    if (w.length == 0) return;
    const int kv = blockIdx.x % p.keys, length = w.length;
    const int first = ((length - 1) / TILE - (int)w.tile) * TILE, rows = min(TILE, length - first);
    const int64_t width = (int64_t)(p.queries + 2 * p.keys) * DIM, out_stride = (int64_t)p.queries * DIM;
    const int64_t at_k = (w.start + first) * width + (p.queries + kv) * DIM;
    // Queries that see these keys, the same for each head of the group.
    const int begin = first, end = min((int64_t)length, (int64_t)first + rows - 1 + p.window);

    // For each head of the group the tiles of rows begin .. end. Rows from `length` on become 0, and with them dO, lse and delta: they add nothing.
    int next_head = kv * p.group, next_row = begin;  // of the next tile to load
    const int end_head = next_head + p.group;
    auto load_queries = [&](int stage) {
        const int64_t row = w.start + next_row;
        load_rows<TILE, DIM, THREADS>(q_tiles + stage * BYTES, p.qkv + row * width + next_head * DIM, width, length - next_row, threadIdx.x);
        if (threadIdx.x < TILE) {
            const int mine = threadIdx.x, bytes = next_row + mine < length ? 4 : 0;
            const int64_t at = (int64_t)next_head * p.tokens + row + (bytes ? mine : 0);
            cp_async4(smem_address(&of_rows[stage][0][mine]), p.lse + at, bytes);
            cp_async4(smem_address(&of_rows[stage][1][mine]), p.delta + at, bytes);
        }
    };
    auto load_gradients = [&](int head, int row) {
        load_rows<TILE, DIM, THREADS>(do_tile, p.dout + (w.start + row) * out_stride + head * DIM, out_stride, length - row, threadIdx.x);
    };

    load_rows<TILE, DIM, THREADS>(k_tile, p.qkv + at_k, width, rows, threadIdx.x);
    load_rows<TILE, DIM, THREADS>(v_tile, p.qkv + at_k + p.keys * DIM, width, rows, threadIdx.x);
    load_queries(0);
    cp_async_commit();
    load_gradients(next_head, next_row);
    cp_async_commit();

    const int warp_row = 16 * warp_id(), g = lane_id() / 4, column = 2 * (lane_id() % 4);
    const uint32_t k_lane = lane_down<DIM>(k_tile) + warp_row * 2 * DIM, v_lane = lane_down<DIM>(v_tile) + warp_row * 2 * DIM;
    const int low = first + warp_row;  // this warp's first key
    float dk[1][DIM / 8][4], dv[1][DIM / 8][4];
    clear(dk), clear(dv);
    bool more = true;
    for (int stage = 0; more; stage ^= 1) {
        const int at = next_row;
        const uint32_t q_tile = q_tiles + stage * BYTES;
        next_row += TILE;
        if (next_row >= end) next_row = begin, ++next_head;
        more = next_head < end_head;
        cp_async_wait<1>();
        __syncthreads();  // Q is here, and nobody reads the other Q any more
        if (more) load_queries(stage ^ 1);
        cp_async_commit();
        // at + TILE > low always; the last tile of a window may lie behind this warp's keys.
        const bool seen = low < length && at - p.window < low + 15;
        float s[1][N][4];
        if (seen) {
            clear(s);
            multiply_rows<DIM>(s, k_lane, lane_across<DIM>(q_tile));
        }
        cp_async_wait<1>();
        __syncthreads();  // dO is here
        float dp[1][N][4];
        if (seen) {
            if (at < low + 15 || at + TILE - 1 - p.window >= low) hide<-1>(s, at + column - low - g, p.window);
            clear(dp);
            multiply_rows<DIM>(dp, v_lane, lane_across<DIM>(do_tile));
#pragma unroll
            for (int n = 0; n < N; ++n) {
                const float2 lse = *reinterpret_cast<const float2*>(&of_rows[stage][0][8 * n + column]);
                const float2 delta = *reinterpret_cast<const float2*>(&of_rows[stage][1][8 * n + column]);
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    s[0][n][e] = exp2_fast(fmaf(s[0][n][e], p.scale_log2, -LOG2_E * (e % 2 ? lse.y : lse.x)));
                    dp[0][n][e] = s[0][n][e] * (dp[0][n][e] - (e % 2 ? delta.y : delta.x));
                }
            }
            multiply_down<DIM>(dv, s, lane_down<DIM>(do_tile));
        }
        __syncthreads();  // nobody reads dO any more
        if (more) load_gradients(next_head, next_row);
        cp_async_commit();
        if (seen) multiply_down<DIM>(dk, dp, lane_down<DIM>(q_tile));
    }

#pragma unroll
    for (int n = 0; n < DIM / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) dk[0][n][e] *= p.scale;
    if (p.table) rotate_back<DIM>(dk[0], p.table, p.positions + w.start + first + warp_row, rows - warp_row);
    // Only this warp reads these rows of K and V.
    bf16* to = p.dqkv + at_k + warp_row * width;
    store_rows<DIM>(dk[0], shared + warp_row * 2 * DIM, to, width, rows - warp_row);
    store_rows<DIM>(dv[0], shared + BYTES + warp_row * 2 * DIM, to + p.keys * DIM, width, rows - warp_row);
}

#define BACKWARD(DIM)                                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_backward_queries_##DIM(const __grid_constant__ Params p) { \
        queries_gradient<DIM>(p);                                                                                                  \
    }                                                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_backward_keys_##DIM(const __grid_constant__ Params p) {    \
        keys_gradient<DIM>(p);                                                                                                     \
    }
BACKWARD(128)
BACKWARD(64)
BACKWARD(32)
