// Few-row products with bf16 weights (decode), and the adapters' low-rank input for few rows.
//
//   skinny_bf16_*:  y[t, n] = epilogue(sum_k x[t, k] W[n, k] + sum_r low[t, at(n) + r] B[n, r] + bias[n])
//   skinny_down:    low[t, r] = bf16(scale sum_k x[t, k] A[r, k])
// Layouts: x[T, K], W[N, K], B[N, rank], A[R, K], low[T, R] row-major bf16; y[T, N] bf16 or f32 (logits). All sums f32, one rounding a
// stored element; all writes are `=`. Method: prim/skinny.cuh.
//
// Budget, 16x8 at T = 1: 2 B a weight from HBM, once; a CTA has 3 stages of 16 KB under way, two CTAs an SM: 96 KB where 23 KB are needed
// (4.3 TB/s x 0.7 us / 132). Shared memory: 64 KB ring, 8 KB sums, x. Should reach 85% of copy bandwidth above 40 MB of weights; below, the
// launch, the first loads and the last sum are 3 us of every product. More tokens: the L2 delivers x again for every tile of rows, so tiles
// grow (32x16, 64x32); src/skinny.rs weighs the two.
#include "prim/skinny.cuh"

using skinny::BF16;
using skinny::Params;

// name, tiles of 16 rows, groups of 8 tokens, x resident, stages, CTAs an SM. Stages fill the 227 KB of an SM (src/skinny.rs counts them).
#define PRODUCT(name, MT, NT, RESIDENT, STAGES, CTAS)                                                                          \
    extern "C" __global__ void __launch_bounds__(skinny::THREADS, CTAS) name(const __grid_constant__ Params p) { \
        skinny::product<BF16, MT, NT, RESIDENT, STAGES, 1>(p);                                                                 \
    }
PRODUCT(skinny_bf16_resident_16x8, 1, 1, true, 4, 2)
PRODUCT(skinny_bf16_resident_16x16, 1, 2, true, 4, 2)
PRODUCT(skinny_bf16_stream_16x8, 1, 1, false, 4, 2)
PRODUCT(skinny_bf16_deep_16x8, 1, 1, false, 8, 1)
PRODUCT(skinny_bf16_stream_16x16, 1, 2, false, 4, 2)
PRODUCT(skinny_bf16_stream_32x8, 2, 1, false, 4, 1)
PRODUCT(skinny_bf16_stream_32x16, 2, 2, false, 4, 1)
PRODUCT(skinny_bf16_stream_32x32, 2, 4, false, 3, 1)
PRODUCT(skinny_bf16_stream_64x32, 4, 4, false, 2, 1)

struct DownParams {
    const bf16* x;
    const bf16* a;
    bf16* low;
    uint32_t rows, inputs, outputs;  // T, K, R
    float scale;
};
static_assert(sizeof(DownParams) == 40, "as in src/skinny.rs");

constexpr int DOWN_THREADS = 256;
constexpr int DOWN_SIDE = 4;  // rows of A and tokens of a CTA: 8 loads for 128 products; R is small, so small tiles keep SMs busy
constexpr int SUMS = DOWN_SIDE * DOWN_SIDE;

// Threads take pieces of eight columns by turns; then a tree over the warp, then the warps in order.
extern "C" __global__ void __launch_bounds__(DOWN_THREADS, 2) skinny_down(const __grid_constant__ DownParams p) {
    const uint32_t row0 = blockIdx.x * DOWN_SIDE, token0 = blockIdx.y * DOWN_SIDE, pieces = p.inputs / 8;
    const bf16 *a[DOWN_SIDE], *x[DOWN_SIDE];
#pragma unroll
    for (uint32_t i = 0; i < DOWN_SIDE; ++i) {
        a[i] = p.a + static_cast<uint64_t>(min(row0 + i, p.outputs - 1)) * p.inputs;
        x[i] = p.x + static_cast<uint64_t>(min(token0 + i, p.rows - 1)) * p.inputs;
    }
    float sum[DOWN_SIDE][DOWN_SIDE] = {};
#pragma unroll 2
    for (uint32_t piece = threadIdx.x; piece < pieces; piece += DOWN_THREADS) {
        Vec16 va[DOWN_SIDE], vx[DOWN_SIDE];
#pragma unroll
        for (int i = 0; i < DOWN_SIDE; ++i) {
            va[i] = load16(a[i] + piece * 8);
            vx[i] = load16(x[i] + piece * 8);
        }
#pragma unroll
        for (int w = 0; w < 4; ++w)
#pragma unroll
            for (int t = 0; t < DOWN_SIDE; ++t) {
                const float2 u = unpack_bf16(vx[t].w[w]);
#pragma unroll
                for (int r = 0; r < DOWN_SIDE; ++r) {
                    const float2 v = unpack_bf16(va[r].w[w]);
                    sum[t][r] = fmaf(v.x, u.x, sum[t][r]);
                    sum[t][r] = fmaf(v.y, u.y, sum[t][r]);
                }
            }
    }
    __shared__ float part[DOWN_THREADS / WARP][SUMS];
#pragma unroll
    for (int i = 0; i < SUMS; ++i) {
        const float v = warp_sum(sum[i / DOWN_SIDE][i % DOWN_SIDE]);
        if (lane_id() == 0) part[warp_id()][i] = v;
    }
    __syncthreads();
    if (threadIdx.x < SUMS) {
        float v = 0.f;
#pragma unroll
        for (int w = 0; w < DOWN_THREADS / WARP; ++w) v += part[w][threadIdx.x];
        const uint32_t token = token0 + threadIdx.x / DOWN_SIDE, row = row0 + threadIdx.x % DOWN_SIDE;
        if (token < p.rows && row < p.outputs) p.low[static_cast<uint64_t>(token) * p.outputs + row] = to_bf16(p.scale * v);
    }
}
