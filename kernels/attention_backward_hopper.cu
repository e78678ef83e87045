// Causal grouped-query attention over packed sequences, backward, for Hopper (TMA, wgmma), deterministic: two kernels, each output written by
// one block, no atomics.
//
// P = 2^(S scale log2 e - lse log2 e); delta = rowsum(dout . out); dP = dout v^T; dS = P (dP - delta); dv = P^T dout; dq = scale dS k;
// dk = scale dS^T q; P and dS enter the tensor cores as bf16, sums are f32. qkv and dqkv [T, (hq + 2 hk) DIM], out and dout [T, hq DIM] bf16;
// lse and delta [hq, T] f32. dq kernel: delta `=`, the query columns of dqkv `=`. dkdv kernel: the key and value columns of dqkv `=`, summed
// over the group's query heads in registers. Scale and the inverse rotation (by minus the position's angle) come before the one rounding.
//
// Budget, DIM 128: seven products where five would do without determinism (1.4x). dq: 128 queries, blocks of 128 keys, 192 KB of shared memory;
// S 64, dP 64, dq 64, dS 32 registers. dkdv: 128 keys, steps of 64 queries in a ring of 4, 195 KB; S^T 32, dP^T 32, dk 64, dv 64, P 16, dS 16.
// Peak to reach: 340 TFLOP/s at 4,096 tokens with 2.5 forwards counted (KERNELS.md, section 8).
//
// Warpgroup 0 produces (one thread issues the loads; in dkdv another warp brings lse and delta, whose rows are not aligned for the copy
// engine), 1 and 2 consume 64 rows each. Queries past the sequence's end get lse = +inf: their P is 0; rows that a product sums over become 0 there.
#include "prim/wgmma_attention.cuh"
#include "prim/pipeline_attention.cuh"

using namespace flash;

namespace {

constexpr int WARPGROUP = 128;
constexpr int CONSUMERS = 2;
constexpr int THREADS = WARPGROUP * (1 + CONSUMERS);
constexpr int ROWS = 64 * CONSUMERS;    // queries of a dq tile, keys of a dkdv tile
constexpr int HALF_BOX = 64 * 128;      // bytes of a box: 64 rows of 64 columns
constexpr int BOX = 2 * HALF_BOX;       // two boxes on each other: 128 rows
constexpr int KEYS = 128;               // keys of a block of the dq kernel
constexpr int KEY_STAGES = 2;
constexpr int STEP = 64;                // queries of a step of the dkdv kernel: 128 more would not fit in registers
constexpr int STEP_STAGES = 4;
constexpr int ARRIVALS = 4 * CONSUMERS; // one a warp frees a stage
static_assert(ROWS == KEYS, "one masked block a dq tile: the diagonal");

struct BackwardParams {
    TensorMap qkv, dout;  // boxes of 64 rows x 64 columns
    const bf16* out;
    const bf16* dout_rows;
    const float* lse;
    float* delta;
    bf16* dqkv;
    const float2* rope;  // [positions, DIM / 2] of (cos, sin), or null
    const uint32_t* positions;
    const Work* work;
    int works, tokens, queries, keys, group;  // group: query heads of a key head
    float scale;
    int pad[10];
};
static_assert(sizeof(BackwardParams) == 384, "as in attention_hopper.rs");

// 128 rows, DIM columns.
template <int DIM> __device__ __forceinline__ void load_pair(uint32_t to, const TensorMap& map, int column, int row, uint32_t barrier) {
    load_tile<DIM>(to, BOX, map, column, row, barrier);
    load_tile<DIM>(to + HALF_BOX, BOX, map, column, row + 64, barrier);
}

// scale * d, rotated back if there is a table, to columns `column ..` of dqkv. `row` is the thread's first row in the sequence.
template <int DIM>
__device__ __forceinline__ void store_gradient(const BackwardParams& p, float (&d)[DIM / 2], const Tile& t, int row, int column, float scale, bool rotated) {
    const int quad = threadIdx.x & 3;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const bool stored = row + 8 * h < t.length;
        const size_t at = t.start + row + 8 * h;
#pragma unroll
        for (int b = 0; b < DIM / 16; ++b) {
            float4 turn = make_float4(1.f, 0.f, 1.f, 0.f);
            if (rotated && stored) turn = *reinterpret_cast<const float4*>(p.rope + size_t(p.positions[at]) * (DIM / 2) + 8 * b + 2 * quad);
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const float cosine = scale * (e ? turn.z : turn.x), sine = scale * (e ? turn.w : turn.y);
                float& low = d[4 * b + 2 * h + e];
                float& high = d[4 * (b + DIM / 16) + 2 * h + e];
                const float x = low, y = high;
                low = fmaf(x, cosine, y * sine);
                high = fmaf(y, cosine, -x * sine);
            }
        }
        store_row(d, h, p.dqkv + at * ((p.queries + 2 * p.keys) * DIM) + column, stored);
    }
}

// ---- dq ----

template <int DIM> struct QueryShared {
    static constexpr int TILE = DIM / 64 * BOX;
    static constexpr int Q = 0, DOUT = TILE, K = 2 * TILE, V = K + KEY_STAGES * TILE, TILES = V + KEY_STAGES * TILE;
    static constexpr int Q_FULL = TILES + 2 * sizeof(Tile), Q_EMPTY = Q_FULL + 8, FULL = Q_EMPTY + 8, EMPTY = FULL + 8 * KEY_STAGES,
                         BYTES = EMPTY + 8 * KEY_STAGES;
    static_assert(BYTES <= 6 * TILE + 256, "as in attention_hopper.rs");
};

template <int DIM> __device__ __forceinline__ void produce_keys(const BackwardParams& p, uint32_t base, Tile* tiles) {
    using M = QueryShared<DIM>;
    Schedule schedule{p.work, p.works, p.queries};
    Ring<KEY_STAGES> ring;
    const int group = p.group;
    for (uint32_t n = 0;; ++n) {
        const Tile t = schedule.next();
        wait(base + M::Q_EMPTY, (n & 1) ^ 1);
        tiles[n & 1] = t;
        if (t.length == 0) { mbarrier_arrive(base + M::Q_FULL); return; }
        mbarrier_expect(base + M::Q_FULL, 2 * M::TILE);
        load_pair<DIM>(base + M::Q, p.qkv, t.head * DIM, t.start + t.tile * ROWS, base + M::Q_FULL);
        load_pair<DIM>(base + M::DOUT, p.dout, t.head * DIM, t.start + t.tile * ROWS, base + M::Q_FULL);
        const int k = (p.queries + t.head / group) * DIM, v = k + p.keys * DIM;
#pragma unroll 1
        for (int j = t.tile; j >= 0; --j) {
            const uint32_t at = ring.stage * M::TILE, full = base + M::FULL + 8 * ring.stage;
            wait(base + M::EMPTY + 8 * ring.stage, ring.phase ^ 1);
            mbarrier_expect(full, 2 * M::TILE);
            load_pair<DIM>(base + M::K + at, p.qkv, k, t.start + j * KEYS, full);
            load_pair<DIM>(base + M::V + at, p.qkv, v, t.start + j * KEYS, full);
            ring.next();
        }
    }
}

// The thread's part of rowsum(dout . out): a quarter of the row at `at`.
template <int DIM> __device__ __forceinline__ float row_product(const BackwardParams& p, size_t at) {
    float sum = 0.f;
#pragma unroll
    for (int c = 0; c < DIM / 32; ++c) {
        const Vec16 x = load16(p.out + at + 32 * c), y = load16(p.dout_rows + at + 32 * c);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float2 a = unpack_bf16(x.w[i]), b = unpack_bf16(y.w[i]);
            sum = fmaf(a.x, b.x, fmaf(a.y, b.y, sum));
        }
    }
    return sum;
}

template <int DIM> __device__ __forceinline__ void consume_keys(const BackwardParams& p, uint32_t base, const Tile* tiles, int wg) {
    using M = QueryShared<DIM>;
    const int lane = threadIdx.x & 31, warp = uniform(threadIdx.x / 32) & 3, quad = lane & 3;
    const int local = 64 * wg + 16 * warp + lane / 4;  // the thread's first row in the tile; the second is 8 further
    const float scale2 = p.scale * LOG2_E;
    const uint32_t q = base + M::Q + HALF_BOX * wg, dout = base + M::DOUT + HALF_BOX * wg;
    Ring<KEY_STAGES> ring;
    for (uint32_t n = 0;; ++n) {
        wait(base + M::Q_FULL, n & 1);
        if (tiles[n & 1].length == 0) return;
        const int blocks = tiles[n & 1].tile + 1, own = tiles[n & 1].length - (blocks - 1) * KEYS;  // own: keys of block 0 that are the sequence's
        float lse2[2], delta[2], dq[DIM / 2];
        {
            const Tile t = tiles[n & 1];
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int row = t.tile * ROWS + local + 8 * h;
                const bool inside = row < t.length;
                const size_t at = t.start + row, flat = size_t(t.head) * p.tokens + at;
                float sum = 0.f;
                if (inside) sum = row_product<DIM>(p, at * (p.queries * DIM) + t.head * DIM + 8 * quad);
                delta[h] = quad_sum(sum);
                lse2[h] = inside ? p.lse[flat] * LOG2_E : INFINITY;
                if (inside && quad == 0) p.delta[flat] = delta[h];
            }
        }
#pragma unroll
        for (int i = 0; i < DIM / 2; ++i) dq[i] = 0.f;

#pragma unroll 1
        for (int j = 0; j < blocks; ++j) {
            float s[KEYS / 2], dp[KEYS / 2];
            uint32_t a[KEYS / 16][4];
            const uint32_t k = base + M::K + ring.stage * M::TILE, v = base + M::V + ring.stage * M::TILE;
            wait(base + M::FULL + 8 * ring.stage, ring.phase);
            if (j == 0 && own < KEYS) {
                clear_rows<DIM, KEYS>(k, BOX, own);
                clear_rows<DIM, KEYS>(v, BOX, own);
                publish_rows(wg);
            }
            wgmma_fence();
            issue_abt<DIM>(s, q, BOX, k, BOX);
            wgmma_commit();
            issue_abt<DIM>(dp, dout, BOX, v, BOX);
            wgmma_commit();
            wgmma_wait<1>();
            hold(s);
            if (j == 0) {
#pragma unroll
                for (int b = 0; b < KEYS / 8; ++b)
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        if (8 * b + 2 * quad + (i & 1) > local + 8 * (i >> 1)) s[4 * b + i] = MINUS_INFINITY;
            }
#pragma unroll
            for (int i = 0; i < KEYS / 2; ++i) s[i] = exp2_fast(fmaf(s[i], scale2, -lse2[i >> 1 & 1]));
            wgmma_wait<0>();
            hold(dp);
            if (j == blocks - 1 && lane == 0) mbarrier_arrive(base + M::Q_EMPTY);
#pragma unroll
            for (int i = 0; i < KEYS / 2; ++i) dp[i] = s[i] * (dp[i] - delta[i >> 1 & 1]);
            to_operand(dp, a);
            wgmma_fence();
            issue_ab(dq, a, k, BOX, 1);
            wgmma_commit();
            wgmma_wait<0>();
            hold(dq);
            hold(a);
            if (lane == 0) mbarrier_arrive(base + M::EMPTY + 8 * ring.stage);
            ring.next();
        }
        const Tile t = tiles[n & 1];
        store_gradient<DIM>(p, dq, t, t.tile * ROWS + local, t.head * DIM, p.scale, p.rope != nullptr);
    }
}

template <int DIM> __device__ __forceinline__ void dq(const BackwardParams& p) {
    using M = QueryShared<DIM>;
    extern __shared__ __align__(1024) unsigned char memory[];
    const uint32_t base = (smem_address(memory) + 1023) & ~1023u;
    Tile* tiles = reinterpret_cast<Tile*>(memory + (base - smem_address(memory)) + M::TILES);
    if (threadIdx.x == 0) {
        mbarrier_init(base + M::Q_FULL, 1);
        mbarrier_init(base + M::Q_EMPTY, ARRIVALS);
        for (int s = 0; s < KEY_STAGES; ++s) {
            mbarrier_init(base + M::FULL + 8 * s, 1);
            mbarrier_init(base + M::EMPTY + 8 * s, ARRIVALS);
        }
        mbarrier_fence_init();
    }
    __syncthreads();
    const int role = uniform(threadIdx.x / WARPGROUP);
    if (role == 0) {
        registers_down_to<24>();
        if (threadIdx.x == 0) produce_keys<DIM>(p, base, tiles);
    } else {
        registers_up_to<240>();
        consume_keys<DIM>(p, base, tiles, role - 1);
    }
}

// ---- dk and dv ----

template <int DIM> struct KeyShared {
    static constexpr int TILE = DIM / 64 * BOX, STEP_TILE = DIM / 64 * HALF_BOX;
    static constexpr int K = 0, V = TILE, Q = 2 * TILE, DOUT = Q + STEP_STAGES * STEP_TILE, LSE = DOUT + STEP_STAGES * STEP_TILE,
                         DELTA = LSE + STEP_STAGES * STEP * 4, TILES = DELTA + STEP_STAGES * STEP * 4;
    static constexpr int K_FULL = TILES + 2 * sizeof(Tile), K_EMPTY = K_FULL + 8, FULL = K_EMPTY + 8, EMPTY = FULL + 8 * STEP_STAGES,
                         BYTES = EMPTY + 8 * STEP_STAGES;
    static_assert(BYTES <= 2 * TILE + STEP_STAGES * (2 * STEP_TILE + 2 * STEP * 4) + 256, "as in attention_hopper.rs");
};

// First row of the tile of keys that mirrors entry `tile`.
__device__ __forceinline__ int first_key(const Tile& t) { return (div_up(t.length, ROWS) - 1 - t.tile) * ROWS; }

template <int DIM> __device__ __forceinline__ void produce_queries(const BackwardParams& p, uint32_t base, Tile* tiles) {
    using M = KeyShared<DIM>;
    Schedule schedule{p.work, p.works, p.keys};
    Ring<STEP_STAGES> ring;
    const int group = p.group;
    for (uint32_t n = 0;; ++n) {
        const Tile t = schedule.next();
        wait(base + M::K_EMPTY, (n & 1) ^ 1);
        tiles[n & 1] = t;
        if (t.length == 0) { mbarrier_arrive(base + M::K_FULL); return; }
        const int first = first_key(t);
        mbarrier_expect(base + M::K_FULL, 2 * M::TILE);
        load_pair<DIM>(base + M::K, p.qkv, (p.queries + t.head) * DIM, t.start + first, base + M::K_FULL);
        load_pair<DIM>(base + M::V, p.qkv, (p.queries + p.keys + t.head) * DIM, t.start + first, base + M::K_FULL);
#pragma unroll 1
        for (int head = t.head * group; head < (t.head + 1) * group; ++head)
#pragma unroll 1
            for (int row = first; row < t.length; row += STEP) {
                const uint32_t at = ring.stage * M::STEP_TILE, full = base + M::FULL + 8 * ring.stage;
                wait(base + M::EMPTY + 8 * ring.stage, ring.phase ^ 1);
                mbarrier_expect(full, 2 * M::STEP_TILE);
                load_tile<DIM>(base + M::Q + at, HALF_BOX, p.qkv, head * DIM, t.start + row, full);
                load_tile<DIM>(base + M::DOUT + at, HALF_BOX, p.dout, head * DIM, t.start + row, full);
                ring.next();
            }
    }
}

// The same walk by one warp, for lse (in units of log 2) and delta of each step's rows. It reads its tiles from shared memory like a consumer:
// a schedule of its own would not fit in 24 registers.
template <int DIM> __device__ __forceinline__ void produce_rows(const BackwardParams& p, uint32_t base, const Tile* tiles, float* lse, float* delta) {
    using M = KeyShared<DIM>;
    Ring<STEP_STAGES> ring;
    const int lane = threadIdx.x & 31;
    for (uint32_t n = 0;; ++n) {
        wait(base + M::K_FULL, n & 1);
        const Tile t = tiles[n & 1];
        if (t.length == 0) return;
        const int first = first_key(t), group = p.group;
#pragma unroll 1
        for (int head = t.head * group, last = head + group; head < last; ++head)
#pragma unroll 1
            for (int row = first + lane; row < t.length + lane; row += STEP) {
                const uint32_t flat = uint32_t(head) * p.tokens + t.start + row;
                const bool inside[2] = {row < t.length, row + WARP < t.length};
                float l[2], d[2];
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    l[i] = inside[i] ? p.lse[flat + WARP * i] * LOG2_E : INFINITY;
                    d[i] = inside[i] ? p.delta[flat + WARP * i] : 0.f;
                }
                wait(base + M::EMPTY + 8 * ring.stage, ring.phase ^ 1);
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    lse[ring.stage * STEP + lane + WARP * i] = l[i];
                    delta[ring.stage * STEP + lane + WARP * i] = d[i];
                }
                mbarrier_arrive(base + M::FULL + 8 * ring.stage);
                ring.next();
            }
    }
}

template <int DIM>
__device__ __forceinline__ void consume_queries(const BackwardParams& p, uint32_t base, const Tile* tiles, const float* lse, const float* delta, int wg) {
    using M = KeyShared<DIM>;
    const int lane = threadIdx.x & 31, warp = uniform(threadIdx.x / 32) & 3, quad = lane & 3;
    const int local = 16 * warp + lane / 4;  // the thread's first row of the warpgroup's 64 keys; the second is 8 further
    const float scale2 = p.scale * LOG2_E;
    const uint32_t k = base + M::K + HALF_BOX * wg, v = base + M::V + HALF_BOX * wg;
    Ring<STEP_STAGES> ring;
    for (uint32_t n = 0;; ++n) {
        wait(base + M::K_FULL, n & 1);
        if (tiles[n & 1].length == 0) return;
        const int left_rows = tiles[n & 1].length - first_key(tiles[n & 1]), steps = div_up(left_rows, STEP), group = p.group;
        const int own = left_rows - (steps - 1) * STEP;  // queries of the last step that are the sequence's
        float dk[DIM / 2], dv[DIM / 2];
#pragma unroll
        for (int i = 0; i < DIM / 2; ++i) dk[i] = dv[i] = 0.f;

        int before = -1;  // stage whose products may be under way
        int j = 0;
#pragma unroll 1
        for (int left = group * steps; left > 0; --left, j = j + 1 == steps ? 0 : j + 1) {
            wait(base + M::FULL + 8 * ring.stage, ring.phase);
            if (j < wg) {  // queries before all of this warpgroup's keys
                if (lane == 0) mbarrier_arrive(base + M::EMPTY + 8 * ring.stage);
                ring.next();
                continue;
            }
            float s[STEP / 2], dp[STEP / 2];
            uint32_t pa[STEP / 16][4], da[STEP / 16][4];
            const uint32_t q = base + M::Q + ring.stage * M::STEP_TILE, dout = base + M::DOUT + ring.stage * M::STEP_TILE;
            const float* l = lse + ring.stage * STEP + 2 * quad;
            const float* d = delta + ring.stage * STEP + 2 * quad;
            if (j == steps - 1 && own < STEP) {
                clear_rows<DIM, STEP>(q, HALF_BOX, own);
                clear_rows<DIM, STEP>(dout, HALF_BOX, own);
                publish_rows(wg);
            }
            wgmma_fence();
            issue_abt<DIM>(s, k, BOX, q, HALF_BOX);
            wgmma_commit();
            issue_abt<DIM>(dp, v, BOX, dout, HALF_BOX);
            wgmma_commit();
            wgmma_wait<1>();
            hold(s);
            warp_barrier();  // all lanes have read the step before's lse and delta
            if (before >= 0 && lane == 0) mbarrier_arrive(base + M::EMPTY + 8 * before);
            if (j == wg) {
#pragma unroll
                for (int b = 0; b < STEP / 8; ++b)
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        if (8 * b + 2 * quad + (i & 1) < local + 8 * (i >> 1)) s[4 * b + i] = MINUS_INFINITY;
            }
#pragma unroll
            for (int b = 0; b < STEP / 8; ++b) {
                const float2 offset = *reinterpret_cast<const float2*>(l + 8 * b);
#pragma unroll
                for (int i = 0; i < 4; ++i) s[4 * b + i] = exp2_fast(fmaf(s[4 * b + i], scale2, i & 1 ? -offset.y : -offset.x));
            }
            to_operand(s, pa);
            wgmma_fence();
            issue_ab(dv, pa, dout, HALF_BOX, 1);
            wgmma_commit();
            wgmma_wait<0>();  // not <1>: with dv's product under way, its P would need 16 registers that are not there (C7512)
            hold(dp);
#pragma unroll
            for (int b = 0; b < STEP / 8; ++b) {
                const float2 row = *reinterpret_cast<const float2*>(d + 8 * b);
#pragma unroll
                for (int i = 0; i < 4; ++i) dp[4 * b + i] = s[4 * b + i] * (dp[4 * b + i] - (i & 1 ? row.y : row.x));
            }
            to_operand(dp, da);
            wgmma_fence();
            issue_ab(dk, da, q, HALF_BOX, 1);
            wgmma_commit();
            before = ring.stage;
            ring.next();
        }
        wgmma_wait<0>();
        hold(dk);
        hold(dv);
        warp_barrier();
        if (lane == 0) {
            if (before >= 0) mbarrier_arrive(base + M::EMPTY + 8 * before);
            mbarrier_arrive(base + M::K_EMPTY);
        }
        const Tile t = tiles[n & 1];
        const int row = first_key(t) + 64 * wg + local;
        store_gradient<DIM>(p, dk, t, row, (p.queries + t.head) * DIM, p.scale, p.rope != nullptr);
        store_gradient<DIM>(p, dv, t, row, (p.queries + p.keys + t.head) * DIM, 1.f, false);
    }
}

template <int DIM> __device__ __forceinline__ void dkdv(const BackwardParams& p) {
    using M = KeyShared<DIM>;
    extern __shared__ __align__(1024) unsigned char memory[];
    const uint32_t base = (smem_address(memory) + 1023) & ~1023u;
    unsigned char* aligned = memory + (base - smem_address(memory));
    Tile* tiles = reinterpret_cast<Tile*>(aligned + M::TILES);
    float* lse = reinterpret_cast<float*>(aligned + M::LSE);
    float* delta = reinterpret_cast<float*>(aligned + M::DELTA);
    if (threadIdx.x == 0) {
        mbarrier_init(base + M::K_FULL, 1);
        mbarrier_init(base + M::K_EMPTY, ARRIVALS);
        for (int s = 0; s < STEP_STAGES; ++s) {
            mbarrier_init(base + M::FULL + 8 * s, 1 + WARP);
            mbarrier_init(base + M::EMPTY + 8 * s, ARRIVALS);
        }
        mbarrier_fence_init();
    }
    __syncthreads();
    const int role = uniform(threadIdx.x / WARPGROUP);
    if (role == 0) {
        registers_down_to<24>();
        if (threadIdx.x == 0) produce_queries<DIM>(p, base, tiles);
        else if (threadIdx.x / WARP == 1) produce_rows<DIM>(p, base, tiles, lse, delta);
    } else {
        registers_up_to<240>();
        consume_queries<DIM>(p, base, tiles, lse, delta, role - 1);
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_dq_hopper_128(const __grid_constant__ BackwardParams p) { dq<128>(p); }
extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_dq_hopper_64(const __grid_constant__ BackwardParams p) { dq<64>(p); }
extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_dkdv_hopper_128(const __grid_constant__ BackwardParams p) { dkdv<128>(p); }
extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_dkdv_hopper_64(const __grid_constant__ BackwardParams p) { dkdv<64>(p); }
