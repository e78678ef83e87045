// One head's rows in shared memory, [rows, DIM] bf16, as operands of mma.sync; and the small words of attention.
#pragma once
#include "async.cuh"
#include "mma.cuh"
#include "types.cuh"
#include "warp.cuh"

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;
constexpr float MINUS_INFINITY = -__builtin_huge_valf();

// A tile of rows of one sequence, as in src/attention.rs; length 0: nothing to do.
struct Work { uint32_t start, length, tile, sequence; };
// Where a sequence stands in the KV cache, as in src/decode.rs.
struct Place { uint32_t slot, past, start, length; };
static_assert(sizeof(Work) == 16 && sizeof(Place) == 16, "as in Rust");

// 2^x, relative error 2^-22; 2^-inf = 0.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Over the four lanes that hold one row of an accumulator.
__device__ __forceinline__ float quad_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
    return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}
__device__ __forceinline__ float quad_sum(float v) {
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    return v + __shfl_xor_sync(0xffffffffu, v, 2);
}
// Over LANES neighbouring lanes.
template <int LANES> __device__ __forceinline__ float lanes_sum(float v) {
#pragma unroll
    for (int d = LANES / 2; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}
__device__ __forceinline__ bool warp_any(bool v) { return __any_sync(0xffffffffu, v); }

// Byte offset of 16-byte piece `piece` of row `row`: pieces are XOR-swizzled by the row, so that eight rows of one piece lie in eight banks of 16 bytes.
template <int DIM> __device__ __forceinline__ uint32_t piece_at(int row, int piece) {
    static_assert(DIM == 32 || DIM % 64 == 0, "a row of 32 is half a line of banks: two rows share a swizzle");
    const int turn = DIM == 32 ? (row >> 1) & 3 : row & 7;
    return row * (2 * DIM) + ((piece ^ turn) << 4);
}

// Starts the copy of ROWS rows (`stride` elements apart) by THREADS threads; rows from `valid` on become 0. `from` is a valid address.
template <int ROWS, int DIM, int THREADS>
__device__ __forceinline__ void load_rows(uint32_t to, const bf16* from, uint32_t stride, int valid, int thread) {
    constexpr int PIECES = DIM / 8, STEP = THREADS / PIECES;
    static_assert(ROWS % STEP == 0 && STEP % 8 == 0, "whole passes, each keeping its swizzle");
    const int row = thread / PIECES, piece = thread % PIECES;
    const bf16* at = from + (row * stride + piece * 8);
    to += piece_at<DIM>(row, piece);
    if (valid >= ROWS) {
#pragma unroll
        for (int i = 0; i < ROWS / STEP; ++i) cp_async16(to + i * STEP * 2 * DIM, at, 16), at += STEP * stride;
        return;
    }
#pragma unroll 1
    for (int i = 0; i < ROWS / STEP; ++i) {
        const bool inside = row + i * STEP < valid;
        cp_async16(to + i * STEP * 2 * DIM, inside ? at + i * (STEP * stride) : from, inside ? 16 : 0);
    }
}

// Addresses of this lane for ldmatrix in a tile; `step` is a 16-column step, rows are added as row * 2 * DIM (multiples of 16).
// A operand (16 rows x 16 columns), and with .trans the B operand whose k runs down the tile's rows.
template <int DIM> __device__ __forceinline__ uint32_t lane_down(uint32_t tile) {
    const int l = lane_id();
    return tile + piece_at<DIM>(l & 15, l >> 4);
}
// B operand whose n runs down the tile's rows: registers 0, 1 for rows 0..7 and 2, 3 for rows 8..15.
template <int DIM> __device__ __forceinline__ uint32_t lane_across(uint32_t tile) {
    const int l = lane_id();
    return tile + piece_at<DIM>((l & 7) + ((l >> 4) << 3), (l >> 3) & 1);
}
// Moving `step` steps of 16 columns to the right flips bits of the swizzled piece; tiles are aligned to their row. The swizzle stays inside
// 128 bytes: beyond, it is an addition, which costs no register.
template <int DIM> __device__ __forceinline__ uint32_t stepped(uint32_t lane, int step, int row) {
    return (lane ^ ((step & 3) << 5)) + (step >> 2 << 7) + row * (2 * DIM);
}

// Accumulators of 16 columns (two n8 blocks) as the A operand of the next product, rounded to bf16.
__device__ __forceinline__ void as_operand(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = pack_bf16(left[0], left[1]);
    a[1] = pack_bf16(left[2], left[3]);
    a[2] = pack_bf16(right[0], right[1]);
    a[3] = pack_bf16(right[2], right[3]);
}

// acc[M][N] += A B^T over DIM: A's rows from `a_lane` (lane_down, M blocks of 16), B's rows from `b_lane` (lane_across, N blocks of 8).
template <int DIM, int M, int N>
__device__ __forceinline__ void multiply_rows(float (&acc)[M][N][4], uint32_t a_lane, uint32_t b_lane) {
#pragma unroll
    for (int k = 0; k < DIM / 16; ++k) {
        uint32_t a[M][4];
#pragma unroll
        for (int m = 0; m < M; ++m) ldmatrix_x4(a[m], stepped<DIM>(a_lane, k, 16 * m));
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t b[4];
            ldmatrix_x4(b, stepped<DIM>(b_lane, k, 8 * n));
#pragma unroll
            for (int m = 0; m < M; ++m) {
                mma_m16n8k16(acc[m][n], a[m], b[0], b[1]);
                mma_m16n8k16(acc[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// The same with A's 16 rows held in registers, whole.
template <int DIM> __device__ __forceinline__ void hold_rows(uint32_t (&a)[DIM / 16][4], uint32_t a_lane) {
#pragma unroll
    for (int k = 0; k < DIM / 16; ++k) ldmatrix_x4(a[k], stepped<DIM>(a_lane, k, 0));
}
template <int DIM, int N>
__device__ __forceinline__ void multiply_held(float (&acc)[1][N][4], const uint32_t (&a)[DIM / 16][4], uint32_t b_lane) {
#pragma unroll
    for (int k = 0; k < DIM / 16; ++k) {
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t b[4];
            ldmatrix_x4(b, stepped<DIM>(b_lane, k, 8 * n));
            mma_m16n8k16(acc[0][n], a[k], b[0], b[1]);
            mma_m16n8k16(acc[0][n + 1], a[k], b[2], b[3]);
        }
    }
}

// acc[M][DIM / 8] += P T: P [M blocks of 16, 8 N] from accumulators, rounded to bf16; T [8 N, DIM] from `t_lane` (lane_down).
template <int DIM, int M, int N>
__device__ __forceinline__ void multiply_down(float (&acc)[M][DIM / 8][4], const float (&p)[M][N][4], uint32_t t_lane) {
#pragma unroll
    for (int k = 0; k < N / 2; ++k) {
        uint32_t a[M][4];
#pragma unroll
        for (int m = 0; m < M; ++m) as_operand(a[m], p[m][2 * k], p[m][2 * k + 1]);
#pragma unroll
        for (int n = 0; n < DIM / 8; n += 2) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, stepped<DIM>(t_lane, n / 2, 16 * k));
#pragma unroll
            for (int m = 0; m < M; ++m) {
                mma_m16n8k16(acc[m][n], a[m], b[0], b[1]);
                mma_m16n8k16(acc[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

template <int M, int N> __device__ __forceinline__ void clear(float (&acc)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) acc[m][n][e] = 0.f;
}

// The running softmax of M blocks of 16 rows over keys: per lane the rows g and g + 8 of each block. `top` is the maximum of the raw scores,
// `sum` this lane's part of the sum of P, `o` the sum of P V.
template <int DIM, int M> struct Running {
    float o[M][DIM / 8][4], top[M][2], sum[M][2];

    __device__ __forceinline__ void start() {
        clear(o);
#pragma unroll
        for (int m = 0; m < M; ++m) top[m][0] = top[m][1] = MINUS_INFINITY, sum[m][0] = sum[m][1] = 0.f;
    }
    // Turns scores (-inf: hidden) into P = 2^((S - top) scale_log2) and brings `o` and `sum` to the new maximum.
    template <int N> __device__ __forceinline__ void weigh(float (&s)[M][N][4], float scale_log2) {
        float shrink[M][2];
        bool moved = false;
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float most = top[m][h];
#pragma unroll
                for (int n = 0; n < N; ++n) most = fmaxf(most, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
                most = quad_max(most);
                const float base = most == MINUS_INFINITY ? 0.f : __fmul_rn(most, scale_log2);  // a row that has seen nothing yet
                shrink[m][h] = exp2_fast(__fmul_rn(top[m][h], scale_log2) - base);              // 1 exactly if the maximum stays
                moved |= most != top[m][h];
                top[m][h] = most;
                float added = 0.f;
#pragma unroll
                for (int n = 0; n < N; ++n)
#pragma unroll
                    for (int e = 2 * h; e < 2 * h + 2; ++e) {
                        s[m][n][e] = exp2_fast(fmaf(s[m][n][e], scale_log2, -base));
                        added += s[m][n][e];
                    }
                sum[m][h] = fmaf(sum[m][h], shrink[m][h], added);
            }
        if (!warp_any(moved)) return;  // every factor is 1
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int n = 0; n < DIM / 8; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e) o[m][n][e] *= shrink[m][e / 2];
    }
};

// Rotates 16 rows of accumulators back by their positions (half-split pairs); `table` holds (cos, sin) per position and pair.
template <int DIM>
__device__ __forceinline__ void rotate_back(float (&acc)[DIM / 8][4], const float* table, const uint32_t* positions, int valid) {
    const int g = lane_id() / 4, q = lane_id() % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int row = g + 8 * h;
        const int64_t position = row < valid ? positions[row] : 0;
        const float* at = table + position * DIM + 4 * q;
#pragma unroll
        for (int n = 0; n < DIM / 16; ++n) {
            const float4 turn = *reinterpret_cast<const float4*>(at + 16 * n);  // of columns 8 n + 2 q and the next
            float *a = &acc[n][2 * h], *b = &acc[n + DIM / 16][2 * h];
            const float a0 = a[0], a1 = a[1];
            a[0] = a0 * turn.x + b[0] * turn.y, b[0] = b[0] * turn.x - a0 * turn.y;
            a[1] = a1 * turn.z + b[1] * turn.w, b[1] = b[1] * turn.z - a1 * turn.w;
        }
    }
}

// Rounds 16 rows of accumulators to bf16 and stores them to global memory (rows `stride` elements apart), rows from `valid` on left out.
// They pass through 16 rows of shared memory (at `rows`, a multiple of 8 rows into an aligned tile) that only this warp uses: full lines are written.
template <int DIM>
__device__ __forceinline__ void store_rows(const float (&acc)[DIM / 8][4], uint8_t* rows, bf16* to, int64_t stride, int valid) {
    const int lane = lane_id(), g = lane / 4, q = lane % 4;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < DIM / 8; ++n) {
        *reinterpret_cast<uint32_t*>(rows + piece_at<DIM>(g, n) + 4 * q) = pack_bf16(acc[n][0], acc[n][1]);
        *reinterpret_cast<uint32_t*>(rows + piece_at<DIM>(g + 8, n) + 4 * q) = pack_bf16(acc[n][2], acc[n][3]);
    }
    __syncwarp();
    constexpr int PIECES = DIM / 8, STEP = WARP / PIECES;
    const int row = lane / PIECES, piece = lane % PIECES;
#pragma unroll
    for (int i = 0; i < 16 / STEP; ++i) {
        const int r = row + i * STEP;
        if (r < valid) store16(to + r * stride + piece * 8, load16(rows + piece_at<DIM>(r, piece)));
    }
}
