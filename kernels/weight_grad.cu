// Gradients of fully trained linear layers, sm_80 and up.
//
// tn: out[m, n] += a[T, m]^T b[T, n] (dW = dy^T x)
// bf16 row-major inputs with 16-byte rows; f32 out, `+=` (one part) or partial sums `=` (several parts of T, then lora_sum). Sums f32, in
// ascending row order inside a part; no rounding to bf16 at all.
//
// Budget: as gemm.cu's tall tile (256x128x32, 96 KB ring, 128 accumulators, 1 block an SM); both operands are read by ldmatrix.trans. The output's
// read-modify-write is 8 bytes an element, under 2 % of the time at T = 16384.
#include "prim/tile.cuh"

constexpr int DEPTH = 32;      // rows of a and b a step
constexpr int STAGES = 4;
constexpr int COLUMNS = 128;   // of the output tile
constexpr int WARP_SIDE = 64;
constexpr int WARPS_N = COLUMNS / WARP_SIDE;
constexpr int MI = WARP_SIDE / BLOCK;
// 256 rows for large gradients; 128 for small ones, of which two fit an SM of sm_80 and sm_90.
template <int ROWS_> struct Tile {
    static constexpr int ROWS = ROWS_, THREADS = ROWS / WARP_SIDE * WARPS_N * WARP;
    using A = Operand<ROWS, DEPTH, false>;
    using B = Operand<COLUMNS, DEPTH, false>;
    static constexpr int STAGE = A::BYTES + B::BYTES;
    static_assert(STAGES * STAGE <= 99 * 1024, "sm_86, sm_89 and sm_120 give a block 99 KB");
};

struct WeightGrad {
    const bf16* a; const bf16* b; float* out;
    uint64_t split_stride;                       // of out, when there are several parts
    uint32_t rows, m, n, lda, ldb, tiles_m, splits, rows_per_split;
};
static_assert(sizeof(WeightGrad) == 64, "as in kernels/src/weight_grad.rs");

// This thread's chunks of one operand for rows `row0`.. of the batch.
template <class T, class Side> __device__ __forceinline__ void load_side(uint32_t tile, const bf16* from, uint32_t ld, uint32_t row0, uint32_t end,
                                                                         uint32_t column0, uint32_t columns) {
    constexpr int STEP = T::THREADS / Side::CHUNKS, LOADS = Side::LINES / STEP;
    static_assert(STEP % 8 == 0, "one swizzle a thread");
    const uint32_t line = threadIdx.x / Side::CHUNKS, chunk = threadIdx.x % Side::CHUNKS, column = column0 + chunk * CHUNK;
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
        const uint32_t row = row0 + line + i * STEP;
        const bool inside = row < end && column < columns;
        cp_async16(tile + Side::at(line, chunk) + i * STEP * Side::LINE_BYTES, from + (inside ? (size_t)row * ld + column : 0),
                   inside ? CHUNK_BYTES : 0);
    }
}

template <class T> __device__ __forceinline__ void weight_grad(const WeightGrad& p) {
    extern __shared__ __align__(1024) uint8_t memory[];
    const uint32_t smem = smem_address(memory);
    const uint32_t m0 = blockIdx.x % p.tiles_m * T::ROWS, n0 = blockIdx.x / p.tiles_m * COLUMNS;
    const uint32_t begin = blockIdx.y * p.rows_per_split, end = min(begin + p.rows_per_split, p.rows);
    const uint32_t steps = begin < end ? div_up(end - begin, (uint32_t)DEPTH) : 0;

    auto load = [&](uint32_t step, uint32_t stage) {
        if (step < steps) {
            const uint32_t tile = smem + stage * T::STAGE, row = begin + step * DEPTH;
            load_side<T, typename T::A>(tile, p.a, p.lda, row, end, m0, p.m);
            load_side<T, typename T::B>(tile + T::A::BYTES, p.b, p.ldb, row, end, n0, p.n);
        }
        cp_async_commit();
    };
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) load(s, s);

    const int warp_m = warp_id() / WARPS_N * WARP_SIDE, warp_n = warp_id() % WARPS_N * WARP_SIDE;
    const uint32_t a_lane = T::A::lane_a(warp_m), b_lane = T::B::lane_b(warp_n);
    float sum[MI][2 * MI][4] = {};
    uint32_t a[2][MI][4], b[2][MI][4];
    auto fragments = [&](int at, uint32_t stage, int kk) {
        const uint32_t tile = smem + stage * T::STAGE;
#pragma unroll
        for (int i = 0; i < MI; ++i) T::A::fragment(a[at][i], tile, a_lane, i, kk);
#pragma unroll
        for (int i = 0; i < MI; ++i) T::B::fragment(b[at][i], tile + T::A::BYTES, b_lane, i, kk);
    };
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    fragments(0, 0, 0);
    uint32_t stage = 0, free = STAGES - 1;
    constexpr int KK = DEPTH / BLOCK;
    for (uint32_t step = 0; step < steps; ++step) {
#pragma unroll
        for (int kk = 0; kk < KK; ++kk) {
            if (kk == KK - 1) {
                cp_async_wait<STAGES - 2>();
                __syncthreads();
                free = stage;
                stage = (stage + 1) % STAGES;
            }
            fragments((kk + 1) % 2, stage, (kk + 1) % KK);
            if (kk == 0) load(step + STAGES - 1, free);
            mma_blocks<MI, MI>(sum, a[kk % 2], b[kk % 2]);
        }
    }
    cp_async_wait<0>();

    float* out = p.out + blockIdx.y * p.split_stride;
    const bool add = p.splits == 1;
    const uint32_t g = lane_id() / 4, q = lane_id() % 4;
#pragma unroll
    for (int mi = 0; mi < MI; ++mi)
#pragma unroll
        for (int lower = 0; lower < 2; ++lower) {
            const uint32_t row = m0 + warp_m + mi * BLOCK + g + 8 * lower;
            if (row >= p.m) continue;
#pragma unroll
            for (int n = 0; n < 2 * MI; ++n) {
                const uint32_t column = n0 + warp_n + n * 8 + 2 * q;
                if (column >= p.n) continue;
                float2* at = reinterpret_cast<float2*>(out + (size_t)row * p.n + column);
                float2 v = make_float2(sum[mi][n][2 * lower], sum[mi][n][2 * lower + 1]);
                if (add) {
                    const float2 old = *at;
                    v.x += old.x;
                    v.y += old.y;
                }
                *at = v;
            }
        }
}

extern "C" __global__ void __launch_bounds__(Tile<256>::THREADS, 1) weight_grad_tall(const __grid_constant__ WeightGrad p) { weight_grad<Tile<256>>(p); }
extern "C" __global__ void __launch_bounds__(Tile<128>::THREADS, 2) weight_grad_large(const __grid_constant__ WeightGrad p) { weight_grad<Tile<128>>(p); }
