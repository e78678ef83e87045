// What moves tiles through the Hopper attention kernels: a bounded wait, tiles of several boxes, turns of two warpgroups, and the schedule of a
// persistent block.
#pragma once
#include "heads.cuh"
#include "mbarrier.cuh"
#include "tma.cuh"

namespace flash {

// Waits for the phase of this parity. About two seconds (2^20 naps of up to 2 us) mean a protocol error: the kernel ends as an error, not as a
// hang. One block of assembly, not mbarrier_wait: a loop around the bound made ptxas serialise every wgmma of the forward kernel.
__device__ __forceinline__ void wait(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{\n.reg .pred p;\n.reg .u32 n;\nmov.u32 n, 0;\n"
        "again_%=:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1, 2000;\n@p bra done_%=;\n"
        "add.u32 n, n, 1;\nsetp.lt.u32 p, n, 1048576;\n@p bra again_%=;\ntrap;\ndone_%=:\n}" ::"r"(barrier), "r"(parity)
        : "memory");
}

// DIM columns as boxes of 64, `box` bytes each.
template <int DIM> __device__ __forceinline__ void load_tile(uint32_t to, uint32_t box, const TensorMap& map, int column, int row, uint32_t barrier) {
#pragma unroll
    for (int c = 0; c < DIM / 64; ++c) tma_load(to + c * box, map, column + 64 * c, row, barrier);
}

// Zeroes the rows from `from` on of a tile of ROWS rows and DIM columns before this warpgroup's products read it: they are the next sequence's,
// and what it holds may be NaN, of which a weight of 0 makes NaN. Each of the block's two warpgroups does it for itself, with the same zeros.
template <int DIM, int ROWS> __device__ __forceinline__ void clear_rows(uint32_t tile, uint32_t box, int from) {
    constexpr int ROW = 128;  // bytes in a box
    for (uint32_t at = from * ROW + threadIdx.x % 128 * 16; at < ROWS * ROW; at += 128 * 16)
#pragma unroll
        for (int c = 0; c < DIM / 64; ++c) clear_shared16(tile + c * box + at);
}
// Behind it the warpgroup's products see what its threads cleared. Named barriers 3 and 4.
__device__ __forceinline__ void publish_rows(int warpgroup) {
    fence_async_proxy();
    if (warpgroup == 0) named_barrier<3, 128>();
    else named_barrier<4, 128>();
}

// Named barriers 1 and 2 of 256 threads: two warpgroups take turns.
__device__ __forceinline__ void await_turn(int warpgroup) {
    if (warpgroup == 0) asm volatile("bar.sync 1, 256;" ::: "memory");
    else asm volatile("bar.sync 2, 256;" ::: "memory");
}
__device__ __forceinline__ void give_turn(int warpgroup) {
    if (warpgroup == 0) asm volatile("bar.arrive 2, 256;" ::: "memory");
    else asm volatile("bar.arrive 1, 256;" ::: "memory");
}

// The same value in every lane, known to the compiler as such.
__device__ __forceinline__ int uniform(int v) { return __shfl_sync(0xffffffffu, v, 0); }

// What a block does next: rows of one sequence, one head. Length 0: nothing more.
struct alignas(16) Tile { int start, length, tile, head; };

// The block's entries of a list that is sorted longest first, heads fastest: rounds run forth and back, so that who had the longest of a
// round has the shortest of the next.
struct Schedule {
    const Work* entries;
    int count, heads;  // entries of the list; heads of each
    int round = 0;

    // The next tile that holds rows; length 0 at the end.
    __device__ __forceinline__ Tile next() {
        for (;; ++round) {
            const int at = round * gridDim.x + ((round & 1) ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
            if (round * (int)gridDim.x >= count * heads) return {0, 0, 0, 0};
            if (at >= count * heads) continue;
            const Work e = entries[at / heads];
            if (e.length == 0) continue;
            ++round;
            return {(int)e.start, (int)e.length, (int)e.tile, at % heads};
        }
    }
};

// Word k of lane q becomes word q of lane k, in each group of four lanes.
__device__ __forceinline__ void quad_transpose(uint32_t (&w)[4]) {
    const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
#pragma unroll
    for (int k = 0; k < 4; k += 2) {
        const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? w[k] : w[k + 1], 1);
        if (odd) w[k] = other; else w[k + 1] = other;
    }
#pragma unroll
    for (int k = 0; k < 2; ++k) {
        const uint32_t other = __shfl_xor_sync(0xffffffffu, high ? w[k] : w[k + 2], 2);
        if (high) w[k] = other; else w[k + 2] = other;
    }
}

// Rows g (half 0) or g + 8 (half 1) of an accumulator, to bf16 at `row` (the address of the lane's own row), 64 bytes a row and store.
template <int REGS> __device__ __forceinline__ void store_row(const float (&d)[REGS], int half, bf16* row, bool stored) {
    const int q = threadIdx.x & 3;
#pragma unroll
    for (int b = 0; b < REGS / 4; b += 4) {
        uint32_t w[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) w[k] = pack_bf16(d[4 * (b + k) + 2 * half], d[4 * (b + k) + 2 * half + 1]);
        quad_transpose(w);
        if (stored) store16(row + 8 * (b + q), {{w[0], w[1], w[2], w[3]}});
    }
}

}  // namespace flash
