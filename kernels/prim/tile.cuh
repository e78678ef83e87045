// Words of a matrix product by cp.async, ldmatrix and mma.sync (sm_80 and up): operand tiles in swizzled shared memory, fragments, sums.
#pragma once
#include "async.cuh"
#include "mma.cuh"
#include "warp.cuh"

constexpr int CHUNK = 8;         // bf16 in the 16 bytes that one cp.async or one lane of ldmatrix moves
constexpr int CHUNK_BYTES = 16;
constexpr int BLOCK = 16;        // outer and depth side of what one ldmatrix.x4 brings

// One operand's tile: OUTER rows (or columns) of the result, DEPTH steps of the reduction. K_MAJOR: lines are outer indices and the depth is
// contiguous; else lines are steps and the outer index is contiguous (read by ldmatrix.trans).
// The chunk index is swizzled by the line, so that eight lines read at one logical chunk fall in eight different bank groups.
template <int OUTER, int DEPTH, bool K_MAJOR> struct Operand {
    static constexpr int LINES = K_MAJOR ? OUTER : DEPTH;
    static constexpr int CHUNKS = (K_MAJOR ? DEPTH : OUTER) / CHUNK;
    static constexpr int LINE_BYTES = CHUNKS * CHUNK_BYTES;
    static constexpr int BYTES = LINES * LINE_BYTES;
    static_assert(CHUNKS == 4 || CHUNKS % 8 == 0, "the swizzle spreads eight lines over 64-byte or 128-byte rows");
    static_assert(LINES % 8 == 0 && DEPTH % BLOCK == 0, "fragments are 16x16");

    static __device__ __forceinline__ uint32_t at(int line, int chunk) {
        const int turned = CHUNKS == 4 ? chunk ^ ((line >> 1) & 3) : chunk ^ (line & 7);
        return line * LINE_BYTES + turned * CHUNK_BYTES;
    }
    // Where this lane points for the A (m16k16) block at `outer`, a multiple of the warp's tile.
    static __device__ __forceinline__ uint32_t lane_a(int outer) {
        const int lane = lane_id();
        return K_MAJOR ? at(outer + (lane & 15), lane >> 4) : at((lane & 7) + (lane >> 4) * 8, outer / CHUNK + ((lane >> 3) & 1));
    }
    // The same for a pair of B (n8k16) blocks: registers 0, 1 are columns 0-7, registers 2, 3 columns 8-15.
    static __device__ __forceinline__ uint32_t lane_b(int outer) {
        const int lane = lane_id();
        return K_MAJOR ? at(outer + (lane & 7) + (lane >> 4) * 8, (lane >> 3) & 1) : at(lane & 15, outer / CHUNK + (lane >> 4));
    }
    // The block `i` 16s further along the outer index and `k` 16s along the depth.
    static __device__ __forceinline__ void fragment(uint32_t (&r)[4], uint32_t tile, uint32_t lane_at, int i, int k) {
        constexpr int TWO_CHUNKS = 2 * CHUNK_BYTES;
        if constexpr (K_MAJOR) ldmatrix_x4(r, tile + (lane_at ^ (k * TWO_CHUNKS)) + i * BLOCK * LINE_BYTES);
        else ldmatrix_x4_trans(r, tile + (lane_at ^ (i * TWO_CHUNKS)) + k * BLOCK * LINE_BYTES);
    }
};

// sum += a b over one k16: 16 MI rows by 16 NI columns.
template <int MI, int NI>
__device__ __forceinline__ void mma_blocks(float (&sum)[MI][2 * NI][4], const uint32_t (&a)[MI][4], const uint32_t (&b)[NI][4]) {
#pragma unroll
    for (int m = 0; m < MI; ++m)
#pragma unroll
        for (int n = 0; n < NI; ++n) {
            mma_m16n8k16(sum[m][2 * n], a[m], b[n][0], b[n][1]);
            mma_m16n8k16(sum[m][2 * n + 1], a[m], b[n][2], b[n][3]);
        }
}
