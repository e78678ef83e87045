// The skinny products of low-rank adapters, sm_80 and up (g = s dy B is gemm_nn_narrow of gemm.cu).
//
// down: low[T, R] = bf16(s drop_m(x)[T, K] A_m[r, K]^T)   grad: partial sums over a part of T of dA_m[r, K] = g_m^T drop_m(x), dB_m[N_m, r] = dy_m^T low_m
// sum: gradients += partials in split order               pack: f32 A, B of the true rank -> bf16 A[R, K], B[N, rank], zero-padded
// bf16 row-major inputs, sums f32 in registers, one rounding (down) or none (grad). down, pack `=`; grad partials `=`; sum `+=`.
// A unit is up to 64 columns of one member's low-rank space. Four warps serve a unit; a block's units share its tile of x (or dy), which is
// read once. Dropout's bits (dropout.cu) are read once more for each member: 12 MB beside the 67 MB of x.
//
// Budget at T = 16384, K = 2048, r = 64, three members: 67 MB of x, 13 GFLOP, 16 us of HBM. 40 KB a stage, 4 stages: 160 KB, one block of
// 384 threads an SM (the 64-row form: 96 KB, for few rows and for parts with 99 KB); grad: 80 KB (86 with masks). 64 accumulators a thread.
#include "prim/dropout.cuh"
#include "prim/tile.cuh"

constexpr int STAGES = 4;             // of grad
constexpr int DEPTH = 32;             // rows of x a step of grad
constexpr int DOWN_DEPTH = 64;        // columns of x a step of down: whole 128-byte lines (at 64 bytes HBM gave a third of its rate)
constexpr int UNIT = 64;              // low-rank columns of a unit: 64 accumulators a thread at 32 rows a warp
constexpr int UNIT_WARPS = 4;
constexpr int UNITS = 3;              // of a block: q, k, v read x once
constexpr int MOST_UNITS = 6;         // rank 128 in three members
constexpr int PARTS = 3;
constexpr int NI = UNIT / BLOCK;

struct Unit {
    uint32_t at;      // first column in the low-rank buffer, and first row of A
    uint32_t width;   // columns, a multiple of 16
    uint32_t plane;   // its member's dropout mask
    uint32_t out_at;  // grad: first low-rank index in the partial sums
};

// ---- down ------------------------------------------------------------------------------------------------------------------------------
struct Down {
    const bf16* x; const bf16* a; bf16* low;
    Masks masks;
    uint32_t rows, inputs, ldlow, units_len;
    float scale; uint32_t reserved;
    Unit units[MOST_UNITS];
};
static_assert(sizeof(Down) == 160, "as in kernels/src/lora.rs");

template <int MI, int STAGES, int LIMIT, bool DROPOUT> __device__ __forceinline__ void down(const Down& p) {
    constexpr int ROWS = UNIT_WARPS * MI * BLOCK;
    using X = Operand<ROWS, DOWN_DEPTH, true>;
    using A = Operand<UNIT, DOWN_DEPTH, true>;
    static_assert(STAGES * (X::BYTES + UNITS * A::BYTES) <= LIMIT, "shared memory of the parts that it is for");
    extern __shared__ __align__(1024) uint8_t memory[];
    const uint32_t smem = smem_address(memory);
    const uint32_t row0 = blockIdx.x * ROWS, first_unit = blockIdx.y * UNITS;
    const uint32_t units = min((uint32_t)UNITS, p.units_len - first_unit);
    const uint32_t stage_bytes = X::BYTES + units * A::BYTES;
    const uint32_t steps = div_up(p.inputs, (uint32_t)DOWN_DEPTH);
    const uint32_t mine = warp_id() / UNIT_WARPS;
    const Unit unit = p.units[first_unit + mine];

    auto load = [&](uint32_t step) {
        if (step < steps) {
            const uint32_t stage = smem + step % STAGES * stage_bytes;
            // A unit's warps load its A; the lines of x go round the units.
            constexpr int LINES = UNIT_WARPS * WARP / X::CHUNKS;
            const uint32_t chunk = threadIdx.x % X::CHUNKS, line0 = threadIdx.x % (UNIT_WARPS * WARP) / X::CHUNKS, k = step * DOWN_DEPTH + chunk * CHUNK;
            const bool k_inside = k < p.inputs;
            const bf16* x = p.x + (k_inside ? k : 0);
            const bf16* a = p.a + (k_inside ? k : 0);
#pragma unroll
            for (int i = 0; i < ROWS / LINES; ++i) {
                if (i % units != mine) continue;
                const uint32_t row = row0 + line0 + i * LINES;
                const bool inside = k_inside && row < p.rows;
                cp_async16(stage + X::at(line0, chunk) + i * LINES * X::LINE_BYTES, x + (uint64_t)(inside ? row : 0) * p.inputs, inside ? CHUNK_BYTES : 0);
            }
#pragma unroll
            for (int i = 0; i < UNIT / LINES; ++i) {
                if (mine >= units) continue;  // warps that have no unit here
                const uint32_t line = line0 + i * LINES;
                const bool inside = k_inside && line < unit.width;  // else zero: narrow units are computed whole
                cp_async16(stage + X::BYTES + mine * A::BYTES + A::at(line0, chunk) + i * LINES * A::LINE_BYTES,
                           a + (uint64_t)(inside ? unit.at + line : 0) * p.inputs, inside ? CHUNK_BYTES : 0);
            }
        }
        cp_async_commit();
    };
    for (int s = 0; s < STAGES - 1; ++s) load(s);

    const uint32_t warp_row = warp_id() % UNIT_WARPS * MI * BLOCK;
    const uint32_t g = lane_id() / 4, q = lane_id() % 4;
    const uint32_t x_lane = X::lane_a(warp_row), a_lane = A::lane_b(0);
    // Rows g and g + 8 of the warp's blocks: what is kept of the step's 64 columns, fetched a step ahead.
    uint2 kept[MI][2], next[MI][2] = {};
    auto fetch = [&](uint32_t step) {
        if constexpr (DROPOUT)
#pragma unroll
            for (int mi = 0; mi < MI; ++mi)
#pragma unroll
                for (int lower = 0; lower < 2; ++lower)
                    next[mi][lower] = load8(p.masks.at(unit.plane, row0 + warp_row + mi * BLOCK + g + 8 * lower, step * DOWN_DEPTH));
    };
    fetch(0);
    float sum[MI][2 * NI][4] = {};
    for (uint32_t step = 0; step < steps; ++step) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        load(step + STAGES - 1);
        const uint32_t x_tile = smem + step % STAGES * stage_bytes, a_tile = x_tile + X::BYTES + mine * A::BYTES;
#pragma unroll
        for (int mi = 0; mi < MI; ++mi) kept[mi][0] = next[mi][0], kept[mi][1] = next[mi][1];
        if (step + 1 < steps) fetch(step + 1);
#pragma unroll
        for (int half = 0; half < DOWN_DEPTH / 32; ++half) {
            uint32_t x[2][MI][4];
#pragma unroll
            for (int mi = 0; mi < MI; ++mi) {
#pragma unroll
                for (int kk = 0; kk < 2; ++kk) X::fragment(x[kk][mi], x_tile, x_lane, mi, 2 * half + kk);
                if constexpr (DROPOUT) {
                    // Registers 0, 2 of a fragment are row g, 1, 3 row g + 8; 2 kk + (register / 2) is j.
#pragma unroll
                    for (int lower = 0; lower < 2; ++lower) {
                        const uint32_t bits = (half ? kept[mi][lower].y : kept[mi][lower].x) >> 4 * q;
#pragma unroll
                        for (int j = 0; j < 4; ++j) x[j / 2][mi][lower + 2 * (j % 2)] &= pair_mask(bits, j);
                    }
                }
            }
#pragma unroll
            for (int n = 0; n < NI; ++n) {
#pragma unroll
                for (int kk = 0; kk < 2; ++kk) {
                    uint32_t a[4];
                    A::fragment(a, a_tile, a_lane, n, 2 * half + kk);
#pragma unroll
                    for (int mi = 0; mi < MI; ++mi) {
                        mma_m16n8k16(sum[mi][2 * n], x[kk][mi], a[0], a[1]);
                        mma_m16n8k16(sum[mi][2 * n + 1], x[kk][mi], a[2], a[3]);
                    }
                }
            }
        }
    }
#pragma unroll
    for (int mi = 0; mi < MI; ++mi)
#pragma unroll
        for (int n = 0; n < 2 * NI; ++n)
#pragma unroll
            for (int lower = 0; lower < 2; ++lower) {
                const uint32_t row = row0 + warp_row + mi * BLOCK + g + 8 * lower, column = n * 8 + 2 * q;
                if (row < p.rows && column < unit.width)
                    *reinterpret_cast<uint32_t*>(p.low + (size_t)row * p.ldlow + unit.at + column) =
                        pack_bf16(sum[mi][n][2 * lower] * p.scale, sum[mi][n][2 * lower + 1] * p.scale);
            }
}

// ---- grad ------------------------------------------------------------------------------------------------------------------------------
constexpr int COLUMNS = 128;          // of x or dy a block, 32 a warp: one dropout block

struct GradPart {
    uint32_t first_tile, columns, at;  // columns `at`.. of `big`
    uint32_t first_unit, units_len, reserved;
};
struct Grad {
    const bf16* big; const bf16* small; float* partial;
    Masks masks;
    uint64_t split_stride, column_stride, low_stride;  // of the partial sums
    uint32_t rows, ld_big, ld_small, rows_per_split, parts_len, reserved;
    GradPart parts[PARTS];
    Unit units[MOST_UNITS];
};
static_assert(sizeof(GradPart) == 24 && sizeof(Grad) == 256, "as in kernels/src/lora.rs");

template <bool DROPOUT> __device__ __forceinline__ void grad(const Grad& p) {
    using X = Operand<COLUMNS, DEPTH, false>;
    using G = Operand<UNIT, DEPTH, false>;
    constexpr int MI = COLUMNS / UNIT_WARPS / BLOCK;
    static_assert(MI * BLOCK == 32, "a warp's columns are one block of the mask");
    extern __shared__ __align__(1024) uint8_t memory[];
    const uint32_t smem = smem_address(memory);
    uint32_t which = 0;
    while (which + 1 < p.parts_len && blockIdx.x >= p.parts[which + 1].first_tile) ++which;
    const GradPart& part = p.parts[which];
    const uint32_t column0 = (blockIdx.x - part.first_tile) * COLUMNS;
    const uint32_t begin = blockIdx.y * p.rows_per_split, end = min(begin + p.rows_per_split, p.rows);
    const uint32_t steps = begin < end ? div_up(end - begin, (uint32_t)DEPTH) : 0;
    constexpr uint32_t MASK_WORDS = COLUMNS / MASK_BLOCK, MASK_BYTES = DROPOUT ? DEPTH * MASK_WORDS * 4 : 0;
    static_assert(MASK_WORDS * 4 == CHUNK_BYTES, "a row's words are one copy");
    const uint32_t units = part.units_len, stage_bytes = X::BYTES + units * (G::BYTES + MASK_BYTES);

    auto load = [&](uint32_t step) {
        if (step < steps) {
            const uint32_t stage = smem + step % STAGES * stage_bytes;
            const uint32_t x_chunk = threadIdx.x % X::CHUNKS, column = column0 + x_chunk * CHUNK;
            for (uint32_t line = threadIdx.x / X::CHUNKS; line < DEPTH; line += blockDim.x / X::CHUNKS) {
                const uint32_t row = begin + step * DEPTH + line;
                const bool inside = row < end && column < part.columns;
                cp_async16(stage + X::at(line, x_chunk), p.big + (inside ? (size_t)row * p.ld_big + part.at + column : 0),
                           inside ? CHUNK_BYTES : 0);
            }
            const uint32_t g_chunk = threadIdx.x % G::CHUNKS;
            for (uint32_t line = threadIdx.x / G::CHUNKS; line < units * DEPTH; line += blockDim.x / G::CHUNKS) {
                const Unit& unit = p.units[part.first_unit + line / DEPTH];
                const uint32_t row = begin + step * DEPTH + line % DEPTH;
                const bool inside = row < end && g_chunk * CHUNK < unit.width;
                cp_async16(stage + X::BYTES + line / DEPTH * G::BYTES + G::at(line % DEPTH, g_chunk),
                           p.small + (inside ? (size_t)row * p.ld_small + unit.at + g_chunk * CHUNK : 0), inside ? CHUNK_BYTES : 0);
            }
            if (DROPOUT)
                for (uint32_t line = threadIdx.x; line < units * DEPTH; line += blockDim.x)
                    cp_async16(stage + X::BYTES + units * G::BYTES + line * CHUNK_BYTES,
                               p.masks.at(p.units[part.first_unit + line / DEPTH].plane, begin + step * DEPTH + line % DEPTH, column0), CHUNK_BYTES);
        }
        cp_async_commit();
    };
    for (int s = 0; s < STAGES - 1; ++s) load(s);

    // Warps beyond the part's units only help to load.
    const uint32_t mine = min((uint32_t)warp_id() / UNIT_WARPS, units - 1), warp_column = warp_id() % UNIT_WARPS * MI * BLOCK;
    const bool computes = (uint32_t)warp_id() / UNIT_WARPS < units;
    const Unit unit = p.units[part.first_unit + mine];
    const uint32_t g = lane_id() / 4, q = lane_id() % 4;
    const uint32_t x_lane = X::lane_a(warp_column), g_lane = G::lane_b(0);
    float sum[MI][2 * NI][4] = {};
    for (uint32_t step = 0; step < steps; ++step) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        load(step + STAGES - 1);
        if (!computes) continue;
        const uint32_t stage = smem + step % STAGES * stage_bytes, g_tile = stage + X::BYTES + mine * G::BYTES;
#pragma unroll
        for (int kk = 0; kk < DEPTH / BLOCK; ++kk) {
            uint32_t x[MI][4];
#pragma unroll
            for (int mi = 0; mi < MI; ++mi) X::fragment(x[mi], stage, x_lane, mi, kk);
            if constexpr (DROPOUT) {
                // A lane holds columns 8 j + g of tokens 2q, 2q + 1, 2q + 8, 2q + 9: bits of the lane that is g / 2 along a row.
                const uint32_t words = stage + X::BYTES + units * G::BYTES + (mine * DEPTH + kk * BLOCK + 2 * q) * CHUNK_BYTES + warp_column / MASK_BLOCK * 4;
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const uint32_t first = load_shared4(words + 8 * i * CHUNK_BYTES), second = load_shared4(words + (8 * i + 1) * CHUNK_BYTES);
                    const uint32_t shift = 16 * (g & 1) + 4 * (g / 2), both = (first >> shift & 0xf) | (second >> shift) << 16;
#pragma unroll
                    for (int mi = 0; mi < MI; ++mi)
#pragma unroll
                        for (int r = 0; r < 2; ++r) x[mi][2 * i + r] &= pair_mask(both, 2 * mi + r);
                }
            }
#pragma unroll
            for (int n = 0; n < NI; ++n) {
                uint32_t b[4];
                G::fragment(b, g_tile, g_lane, n, kk);
#pragma unroll
                for (int mi = 0; mi < MI; ++mi) {
                    mma_m16n8k16(sum[mi][2 * n], x[mi], b[0], b[1]);
                    mma_m16n8k16(sum[mi][2 * n + 1], x[mi], b[2], b[3]);
                }
            }
        }
    }
    if (!computes) return;
    float* out = p.partial + blockIdx.y * p.split_stride;
#pragma unroll
    for (int mi = 0; mi < MI; ++mi)
#pragma unroll
        for (int n = 0; n < 2 * NI; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const uint32_t column = column0 + warp_column + mi * BLOCK + g + 8 * (i / 2), low = n * 8 + 2 * q + i % 2;
                if (column < part.columns && low < unit.width)
                    out[(part.at + column) * p.column_stride + (unit.out_at + low) * p.low_stride] = sum[mi][n][i];
            }
}

// ---- sum: out[r, c] += factor * (partial[0][r, c] + partial[1][r, c] + ...) ------------------------------------------------------------
constexpr int SUMS = 2 * PARTS;
struct SumItem {
    const float* partial; float* out;
    uint64_t split_stride;
    uint32_t splits, rows, columns, ld;  // out is dense; rows of the partial sums lie ld apart
    uint32_t first_block; float factor;
};
struct Sum { SumItem items[SUMS]; uint32_t items_len, reserved; };
static_assert(sizeof(SumItem) == 48 && sizeof(Sum) == 296, "as in kernels/src/lora.rs");
constexpr int SUM_THREADS = 256;

// ---- pack ------------------------------------------------------------------------------------------------------------------------------
struct PackMember {
    const float* a; const float* b;  // of the true rank; null without adapter
    uint32_t rank, end, low_at, reserved;  // end: of its rows in B
};
struct Pack {
    bf16* a; bf16* b;
    uint32_t inputs, columns, rank, low;  // K, N, padded rank, R
    PackMember members[PARTS];
    uint32_t members_len, reserved;
};
static_assert(sizeof(PackMember) == 32 && sizeof(Pack) == 136, "as in kernels/src/lora.rs");
constexpr int PACK_THREADS = 256;

__device__ __forceinline__ void pack(const Pack& p) {
    const uint64_t id = (uint64_t)blockIdx.x * PACK_THREADS + threadIdx.x;
    const uint64_t of_a = (uint64_t)p.low * p.inputs / CHUNK, of_b = (uint64_t)p.columns * p.rank / CHUNK;
    if (id >= of_a + of_b) return;
    float v[CHUNK] = {};
    if (id < of_a) {
        const uint32_t row = id * CHUNK / p.inputs, k = id * CHUNK % p.inputs;
        for (uint32_t m = 0; m < p.members_len; ++m) {
            const PackMember& member = p.members[m];
            if (!member.a || row < member.low_at || row - member.low_at >= member.rank) continue;
#pragma unroll
            for (int i = 0; i < CHUNK; ++i) v[i] = member.a[(size_t)(row - member.low_at) * p.inputs + k + i];
        }
    } else {
        const uint64_t at = (id - of_a) * CHUNK;
        const uint32_t row = at / p.rank, r = at % p.rank;
        uint32_t m = 0, first = 0;
        while (m + 1 < p.members_len && row >= p.members[m].end) first = p.members[m++].end;
        const PackMember& member = p.members[m];
        if (member.b)
#pragma unroll
            for (int i = 0; i < CHUNK; ++i)
                if (r + i < member.rank) v[i] = member.b[(size_t)(row - first) * member.rank + r + i];
    }
    Vec16 out;
#pragma unroll
    for (int i = 0; i < CHUNK / 2; ++i) out.w[i] = pack_bf16(v[2 * i], v[2 * i + 1]);
    store16((id < of_a ? p.a + id * CHUNK : p.b + (id - of_a) * CHUNK), out);
}

constexpr int THREADS = UNITS * UNIT_WARPS * WARP;
constexpr int GRAD_BOUND = 512;  // 128 registers: four blocks of one unit on an SM (145 left three: 27 % slower on gate and up)
extern "C" __global__ void __launch_bounds__(THREADS, 1) lora_down(const __grid_constant__ Down p) { down<2, 4, 160 * 1024, false>(p); }
extern "C" __global__ void __launch_bounds__(THREADS, 1) lora_down_dropout(const __grid_constant__ Down p) { down<2, 4, 160 * 1024, true>(p); }
extern "C" __global__ void __launch_bounds__(THREADS, 1) lora_down_short(const __grid_constant__ Down p) { down<1, 3, 99 * 1024, false>(p); }
extern "C" __global__ void __launch_bounds__(THREADS, 1) lora_down_short_dropout(const __grid_constant__ Down p) { down<1, 3, 99 * 1024, true>(p); }
extern "C" __global__ void __launch_bounds__(GRAD_BOUND, 1) lora_grad(const __grid_constant__ Grad p) { grad<false>(p); }
extern "C" __global__ void __launch_bounds__(GRAD_BOUND, 1) lora_grad_dropout(const __grid_constant__ Grad p) { grad<true>(p); }
extern "C" __global__ void __launch_bounds__(PACK_THREADS) lora_pack(const __grid_constant__ Pack p) { pack(p); }
extern "C" __global__ void __launch_bounds__(SUM_THREADS) lora_sum(const __grid_constant__ Sum p) {
    uint32_t which = 0;
    while (which + 1 < p.items_len && blockIdx.x >= p.items[which + 1].first_block) ++which;
    const SumItem& item = p.items[which];
    const uint64_t id = (uint64_t)(blockIdx.x - item.first_block) * SUM_THREADS + threadIdx.x;
    if (id >= (uint64_t)item.rows * item.columns) return;
    const float* from = item.partial + id / item.columns * item.ld + id % item.columns;
    float sum = 0.f;
#pragma unroll 4
    for (uint32_t s = 0; s < item.splits; ++s) sum += from[s * item.split_stride];
    item.out[id] += item.factor * sum;
}
