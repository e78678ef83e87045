// RMSNorm over the last dimension, and sums over columns.
//
//   rstd = 1 / sqrt(mean(x^2) + eps);  y = bf16(x rstd gain)                                  y =, rstd =
//   dx += rstd (gain dy - x rstd^2 mean(gain dy x));                                           dx +=
//   dgain += sum_t x rstd dy;  dbias += sum_t dy (column sums in two stages)                   partial =, sum +=
//
// x, y, dy, dx [rows, columns] row-major bf16; gain, rstd, sums f32. All arithmetic f32, one rounding where y or dx is stored. A row belongs
// to one warp or one block, whose sum is a fixed tree; column sums go through partials of 128 rows, added in row order.
//
// Budget: 4 bytes an element forward, 8 backward, 4 for column sums (2 without x); 10-20 FLOPs an element. Forward holds a row in registers
// (64 elements a thread, 32 registers), backward holds x and dy (64 registers): 4-8 KB in flight a warp. Should reach 90 % of a copy.
#include "prim/types.cuh"
#include "prim/warp.cuh"

constexpr int VECTORS = 8;       // 16-byte loads of a thread: rows of 64 elements a thread at most
constexpr int WARP_BLOCK = 128;  // threads of a block whose warps own a row each: 4 rows, so that a tail of rows wastes little
constexpr int BLOCK = 128;       // threads a row of up to 8,192: 8 blocks an SM overlap their reductions
constexpr int WIDE_BLOCK = 512;  // threads a row of up to 32,768
constexpr int SLICE = 128;       // rows of one partial column sum
constexpr int SUM_WARPS = 8;     // rows of a slice read at once by a block
static_assert(SLICE % SUM_WARPS == 0, "each warp of a column sum takes every SUM_WARPS-th row of the slice");

struct NormForward {
    const bf16* x;
    const float* gain;
    bf16* y;
    float* rstd;
    uint32_t rows, columns;
    float eps;
    uint32_t reserved;
};
static_assert(sizeof(NormForward) == 48, "as in src/norm.rs");

struct NormBackward {
    const bf16* x;
    const float* rstd;
    const float* gain;
    const bf16* dy;
    bf16* dx;
    uint32_t rows, columns;
};
static_assert(sizeof(NormBackward) == 48, "as in src/norm.rs");

struct ColumnSum {
    const bf16* x;      // null: a sum of dy alone
    const float* rstd;  // null with x
    const bf16* dy;
    float* partial;     // [slices, columns]
    float* sum;         // [columns]
    uint64_t stride;    // elements from one row of dy to the next
    uint32_t rows, columns;
};
static_assert(sizeof(ColumnSum) == 56, "as in src/norm.rs");

template <int GROUP> __device__ __forceinline__ float row_sum(float v) {
    if constexpr (GROUP == WARP) {
        return warp_sum(v);
    } else {
        __shared__ float scratch[GROUP / WARP];
        return block_sum<GROUP>(v, scratch);
    }
}

__device__ __forceinline__ void load_gain(float (&g)[8], const float* from) {
    const Vec16 a = load16(from), b = load16(from + 4);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        g[j] = __uint_as_float(a.w[j]);
        g[4 + j] = __uint_as_float(b.w[j]);
    }
}

template <int THREADS, int GROUP> __device__ __forceinline__ void norm_forward(const NormForward& p) {
    const uint32_t row = blockIdx.x * (THREADS / GROUP) + threadIdx.x / GROUP;
    if (row >= p.rows) return;  // whole groups leave
    const uint32_t t = threadIdx.x % GROUP;
    const bf16* x = p.x + (uint64_t)row * p.columns;
    Vec16 held[VECTORS];
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        const uint32_t c = (i * GROUP + t) * 8;
        held[i] = c < p.columns ? load16(x + c) : Vec16{};
    }
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < VECTORS; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float2 v = unpack_bf16(held[i].w[j]);
            squares = fmaf(v.x, v.x, fmaf(v.y, v.y, squares));
        }
    const float rstd = rsqrtf(row_sum<GROUP>(squares) / (float)p.columns + p.eps);
    if (t == 0) p.rstd[row] = rstd;
    bf16* y = p.y + (uint64_t)row * p.columns;
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        const uint32_t c = (i * GROUP + t) * 8;
        if (c >= p.columns) continue;
        float g[8];
        load_gain(g, p.gain + c);
        Vec16 out;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float2 v = unpack_bf16(held[i].w[j]);
            out.w[j] = pack_bf16(v.x * rstd * g[2 * j], v.y * rstd * g[2 * j + 1]);
        }
        store16(y + c, out);
    }
}

template <int THREADS, int GROUP> __device__ __forceinline__ void norm_backward(const NormBackward& p) {
    const uint32_t row = blockIdx.x * (THREADS / GROUP) + threadIdx.x / GROUP;
    if (row >= p.rows) return;
    const uint32_t t = threadIdx.x % GROUP;
    const uint64_t at = (uint64_t)row * p.columns;
    Vec16 x[VECTORS], dy[VECTORS];
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        const uint32_t c = (i * GROUP + t) * 8;
        const bool inside = c < p.columns;
        x[i] = inside ? load16(p.x + at + c) : Vec16{};
        dy[i] = inside ? load16(p.dy + at + c) : Vec16{};
    }
    float products = 0.f;
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        const uint32_t c = (i * GROUP + t) * 8;
        if (c >= p.columns) continue;
        float g[8];
        load_gain(g, p.gain + c);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float2 a = unpack_bf16(x[i].w[j]), b = unpack_bf16(dy[i].w[j]);
            products = fmaf(a.x * g[2 * j], b.x, fmaf(a.y * g[2 * j + 1], b.y, products));
        }
    }
    const float rstd = p.rstd[row];
    const float pull = row_sum<GROUP>(products) * rstd * rstd / (float)p.columns;
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        const uint32_t c = (i * GROUP + t) * 8;
        if (c >= p.columns) continue;
        float g[8];
        load_gain(g, p.gain + c);
        const Vec16 old = load16(p.dx + at + c);
        Vec16 out;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float2 a = unpack_bf16(x[i].w[j]), b = unpack_bf16(dy[i].w[j]), d = unpack_bf16(old.w[j]);
            out.w[j] = pack_bf16(fmaf(rstd, fmaf(-a.x, pull, g[2 * j] * b.x), d.x), fmaf(rstd, fmaf(-a.y, pull, g[2 * j + 1] * b.y), d.y));
        }
        store16(p.dx + at + c, out);
    }
}

extern "C" __global__ void __launch_bounds__(WARP_BLOCK) norm_forward_warp(const __grid_constant__ NormForward p) { norm_forward<WARP_BLOCK, WARP>(p); }
extern "C" __global__ void __launch_bounds__(BLOCK) norm_forward_block(const __grid_constant__ NormForward p) { norm_forward<BLOCK, BLOCK>(p); }
extern "C" __global__ void __launch_bounds__(WIDE_BLOCK) norm_forward_wide(const __grid_constant__ NormForward p) { norm_forward<WIDE_BLOCK, WIDE_BLOCK>(p); }
extern "C" __global__ void __launch_bounds__(WARP_BLOCK) norm_backward_warp(const __grid_constant__ NormBackward p) { norm_backward<WARP_BLOCK, WARP>(p); }
extern "C" __global__ void __launch_bounds__(BLOCK) norm_backward_block(const __grid_constant__ NormBackward p) { norm_backward<BLOCK, BLOCK>(p); }
extern "C" __global__ void __launch_bounds__(WIDE_BLOCK) norm_backward_wide(const __grid_constant__ NormBackward p) { norm_backward<WIDE_BLOCK, WIDE_BLOCK>(p); }

// First stage: block (columns of 256, slice of 128 rows); a lane owns 8 columns, a warp every 8th row.
extern "C" __global__ void __launch_bounds__(SUM_WARPS * WARP) column_sum_slices(const __grid_constant__ ColumnSum p) {
    __shared__ float sums[SUM_WARPS][WARP * 8];
    const uint32_t blocks = div_up(p.columns, (uint32_t)WARP * 8);
    const uint32_t slice = blockIdx.x / blocks, first = blockIdx.x % blocks * (WARP * 8);
    const uint32_t c = first + lane_id() * 8;
    float acc[8] = {};
    if (c < p.columns) {
#pragma unroll 4
        for (int i = 0; i < SLICE / SUM_WARPS; ++i) {
            const uint32_t row = slice * SLICE + i * SUM_WARPS + warp_id();
            if (row >= p.rows) break;
            const Vec16 dy = load16(p.dy + row * p.stride + c);
            const Vec16 x = p.x ? load16(p.x + (uint64_t)row * p.columns + c) : Vec16{};
            const float rstd = p.x ? p.rstd[row] : 1.f;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float2 b = unpack_bf16(dy.w[j]);
                const float2 a = p.x ? unpack_bf16(x.w[j]) : make_float2(1.f, 1.f);
                acc[2 * j] = fmaf(a.x * rstd, b.x, acc[2 * j]);
                acc[2 * j + 1] = fmaf(a.y * rstd, b.y, acc[2 * j + 1]);
            }
        }
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) sums[warp_id()][lane_id() * 8 + j] = acc[j];
    __syncthreads();
    const uint32_t column = first + threadIdx.x;
    if (column >= p.columns) return;
    float total = 0.f;
#pragma unroll
    for (int w = 0; w < SUM_WARPS; ++w) total += sums[w][threadIdx.x];
    p.partial[(uint64_t)slice * p.columns + column] = total;
}

// Second stage: a thread a column, slices in order.
extern "C" __global__ void __launch_bounds__(BLOCK) column_sum_total(const __grid_constant__ ColumnSum p) {
    const uint32_t column = blockIdx.x * BLOCK + threadIdx.x;
    if (column >= p.columns) return;
    const uint32_t slices = div_up(p.rows, (uint32_t)SLICE);
    float total = 0.f;
#pragma unroll 8
    for (uint32_t s = 0; s < slices; ++s) total += p.partial[(uint64_t)s * p.columns + column];
    p.sum[column] += total;
}
