// Causal grouped-query attention over packed sequences, forward, for Hopper (TMA, wgmma; FlashAttention-3, arXiv:2407.08608).
//
// S = q k^T (f32); m = row maximum; P = 2^((S - m) scale log2 e); l = sum of P (f32, before its rounding); out = (sum of bf16(P) v) / l (f32
// sums); lse = m scale + ln l. qkv [T, (hq + 2 hk) DIM] bf16: query, key, value heads. out [T, hq DIM] bf16 `=`; lse [hq, T] f32 `=`.
//
// Budget of a tile of 128 queries and b blocks of 128 keys, DIM 128: 8.4 MFLOP and 64 KB from L2 a block; shared memory 160 KB, one block an
// SM; a consumer thread holds S 64, P 32, out 64 registers. Peak to reach: FlashAttention-3's 520 TFLOP/s causal at 2,048 tokens (H100).
//
// Warpgroup 0 produces (one thread issues all loads), 1 and 2 consume 64 query rows each. S of block j + 1 is issued before out += P v of block
// j, so softmax runs under it; the two warpgroups take turns issuing, so that one's softmax runs under the other's products. Blocks of keys run
// from the diagonal down: only the first is masked, and it holds a visible key for every row, so no maximum is ever -inf. Queries past the
// sequence's end (they belong to the next) compute on their own and are not stored; values past it become 0.
#include "prim/wgmma_attention.cuh"
#include "prim/pipeline_attention.cuh"

using namespace flash;

namespace {

constexpr int WARPGROUP = 128;
constexpr int CONSUMERS = 2;                        // three of 64 rows would leave 160 registers: S, P and out alone
constexpr int THREADS = WARPGROUP * (1 + CONSUMERS);
constexpr int ROWS = 64 * CONSUMERS;                // queries of a tile
constexpr int KEYS = 128;                           // a block of keys: S in 64 registers
constexpr int STAGES = 2;                           // blocks of k and of v in flight
constexpr int BOX = 128 * 128;                      // bytes of a box: 128 rows of 64 columns
constexpr int ARRIVALS = 4 * CONSUMERS;             // one a warp frees a stage
static_assert(ROWS == KEYS, "one masked block a tile: the diagonal");

template <int DIM> struct Shared {
    static constexpr int TILE = DIM / 64 * BOX;
    static constexpr int Q = 0, K = TILE, V = K + STAGES * TILE, TILES = V + STAGES * TILE, BARRIERS = TILES + 2 * sizeof(Tile);
    static constexpr int Q_FULL = BARRIERS, Q_EMPTY = Q_FULL + 8, K_FULL = Q_EMPTY + 8, K_EMPTY = K_FULL + 8 * STAGES, V_FULL = K_EMPTY + 8 * STAGES,
                         V_EMPTY = V_FULL + 8 * STAGES, BYTES = V_EMPTY + 8 * STAGES;
    static_assert(BYTES + 1024 <= 227 * 1024, "one block an SM");
};

struct ForwardParams {
    TensorMap qkv;        // boxes of 128 rows x 64 columns
    bf16* out;
    float* lse;
    const Work* work;
    int works, tokens, queries, keys, group;  // group: query heads of a key head
    float scale;
    int pad[4];
};
static_assert(sizeof(ForwardParams) == 192, "as in attention_hopper.rs");

template <int DIM> __device__ __forceinline__ void produce(const ForwardParams& p, uint32_t base, Tile* tiles) {
    using M = Shared<DIM>;
    Schedule schedule{p.work, p.works, p.queries};
    Ring<STAGES> ring;
    for (uint32_t n = 0;; ++n) {
        const Tile t = schedule.next();
        wait(base + M::Q_EMPTY, (n & 1) ^ 1);
        tiles[n & 1] = t;
        if (t.length == 0) { mbarrier_arrive(base + M::Q_FULL); return; }
        mbarrier_expect(base + M::Q_FULL, M::TILE);
        load_tile<DIM>(base + M::Q, BOX, p.qkv, t.head * DIM, t.start + t.tile * ROWS, base + M::Q_FULL);
        const int k = (p.queries + t.head / p.group) * DIM, v = k + p.keys * DIM;
#pragma unroll 1
        for (int j = t.tile; j >= 0; --j) {
            const int row = t.start + j * KEYS;
            const uint32_t at = ring.stage * M::TILE, slot = 8 * ring.stage;
            wait(base + M::K_EMPTY + slot, ring.phase ^ 1);
            mbarrier_expect(base + M::K_FULL + slot, M::TILE);
            load_tile<DIM>(base + M::K + at, BOX, p.qkv, k, row, base + M::K_FULL + slot);
            wait(base + M::V_EMPTY + slot, ring.phase ^ 1);
            mbarrier_expect(base + M::V_FULL + slot, M::TILE);
            load_tile<DIM>(base + M::V + at, BOX, p.qkv, v, row, base + M::V_FULL + slot);
            ring.next();
        }
    }
}

// Row statistics of the thread's two rows; `sum` over the thread's own columns.
struct Softmax { float top[2], sum[2]; };

// s = P; returns in `shrink` what earlier sums and outputs are multiplied by.
__device__ __forceinline__ void softmax(float (&s)[KEYS / 2], Softmax& rows, float (&shrink)[2], float scale2, bool first) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float top = s[2 * h];
#pragma unroll
        for (int b = 0; b < KEYS / 8; ++b) top = fmaxf(top, fmaxf(s[4 * b + 2 * h], s[4 * b + 2 * h + 1]));
        top = quad_max(top);
        if (!first) top = fmaxf(top, rows.top[h]);
        shrink[h] = first ? 0.f : exp2_fast((rows.top[h] - top) * scale2);
        rows.top[h] = top;
        const float offset = top * scale2;
        float sum = 0.f;
#pragma unroll
        for (int b = 0; b < KEYS / 8; ++b)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                float& x = s[4 * b + 2 * h + e];
                x = exp2_fast(fmaf(x, scale2, -offset));
                sum += x;
            }
        rows.sum[h] = first ? sum : fmaf(rows.sum[h], shrink[h], sum);
    }
}

template <int DIM> __device__ __forceinline__ void consume(const ForwardParams& p, uint32_t base, const Tile* tiles, int wg) {
    using M = Shared<DIM>;
    const int lane = threadIdx.x & 31, warp = uniform(threadIdx.x / 32) & 3, quad = lane & 3;
    const int local = 64 * wg + 16 * warp + lane / 4;  // the thread's first row in the tile; the second is 8 further
    const float scale2 = p.scale * LOG2_E;
    const uint32_t q = base + M::Q + 64 * 128 * wg;
    Ring<STAGES> kr, vr;
    if (wg == 1) give_turn(1);
    for (uint32_t n = 0;; ++n) {
        wait(base + M::Q_FULL, n & 1);
        const int blocks = tiles[n & 1].tile + 1;
        if (tiles[n & 1].length == 0) return;
        float s[KEYS / 2], out[DIM / 2], shrink[2];
        uint32_t a[KEYS / 16][4];
        Softmax rows;

        wait(base + M::K_FULL + 8 * kr.stage, kr.phase);
        wgmma_fence();
        issue_abt<DIM>(s, q, BOX, base + M::K + kr.stage * M::TILE, BOX);
        wgmma_commit();
        wgmma_wait<0>();
        hold(s);
        if (lane == 0) {
            mbarrier_arrive(base + M::K_EMPTY + 8 * kr.stage);
            if (blocks == 1) mbarrier_arrive(base + M::Q_EMPTY);
        }
        kr.next();
#pragma unroll
        for (int b = 0; b < KEYS / 8; ++b)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (8 * b + 2 * quad + (i & 1) > local + 8 * (i >> 1)) s[4 * b + i] = MINUS_INFINITY;
        softmax(s, rows, shrink, scale2, true);
        to_operand(s, a);
        const int own = tiles[n & 1].length - (blocks - 1) * KEYS;  // keys of the block that are the sequence's
        if (own < KEYS) {
            wait(base + M::V_FULL + 8 * vr.stage, vr.phase);
            clear_rows<DIM, KEYS>(base + M::V + vr.stage * M::TILE, BOX, own);
            publish_rows(wg);
        }

#pragma unroll 1
        for (int j = 1; j < blocks; ++j) {
            wait(base + M::K_FULL + 8 * kr.stage, kr.phase);
            wait(base + M::V_FULL + 8 * vr.stage, vr.phase);
            await_turn(wg);
            wgmma_fence();
            issue_abt<DIM>(s, q, BOX, base + M::K + kr.stage * M::TILE, BOX);
            wgmma_commit();
            issue_ab(out, a, base + M::V + vr.stage * M::TILE, BOX, j > 1);
            wgmma_commit();
            give_turn(wg);
            wgmma_wait<1>();
            hold(s);
            if (lane == 0) {
                mbarrier_arrive(base + M::K_EMPTY + 8 * kr.stage);
                if (j == blocks - 1) mbarrier_arrive(base + M::Q_EMPTY);
            }
            kr.next();
            softmax(s, rows, shrink, scale2, false);
            wgmma_wait<0>();
            hold(out);
            hold(a);
            if (lane == 0) mbarrier_arrive(base + M::V_EMPTY + 8 * vr.stage);
            vr.next();
#pragma unroll
            for (int i = 0; i < DIM / 2; ++i) out[i] *= shrink[i >> 1 & 1];
            to_operand(s, a);
        }
        wait(base + M::V_FULL + 8 * vr.stage, vr.phase);
        wgmma_fence();
        issue_ab(out, a, base + M::V + vr.stage * M::TILE, BOX, blocks > 1);
        wgmma_commit();
        wgmma_wait<0>();
        hold(out);
        hold(a);
        if (lane == 0) mbarrier_arrive(base + M::V_EMPTY + 8 * vr.stage);
        vr.next();

        const Tile t = tiles[n & 1];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = t.tile * ROWS + local + 8 * h;
            const bool stored = row < t.length;
            const float sum = quad_sum(rows.sum[h]), inverse = 1.f / sum;
#pragma unroll
            for (int b = 0; b < DIM / 8; ++b) { out[4 * b + 2 * h] *= inverse; out[4 * b + 2 * h + 1] *= inverse; }
            store_row(out, h, p.out + size_t(t.start + row) * (p.queries * DIM) + t.head * DIM, stored);
            if (stored && quad == 0) p.lse[size_t(t.head) * p.tokens + t.start + row] = fmaf(rows.top[h], p.scale, logf(sum));
        }
    }
}

template <int DIM> __device__ __forceinline__ void forward(const ForwardParams& p) {
    using M = Shared<DIM>;
    extern __shared__ __align__(1024) unsigned char memory[];
    const uint32_t base = (smem_address(memory) + 1023) & ~1023u;
    Tile* tiles = reinterpret_cast<Tile*>(memory + (base - smem_address(memory)) + M::TILES);
    if (threadIdx.x == 0) {
        mbarrier_init(base + M::Q_FULL, 1);
        mbarrier_init(base + M::Q_EMPTY, ARRIVALS);
        for (int s = 0; s < STAGES; ++s) {
            mbarrier_init(base + M::K_FULL + 8 * s, 1);
            mbarrier_init(base + M::V_FULL + 8 * s, 1);
            mbarrier_init(base + M::K_EMPTY + 8 * s, ARRIVALS);
            mbarrier_init(base + M::V_EMPTY + 8 * s, ARRIVALS);
        }
        mbarrier_fence_init();
    }
    __syncthreads();
    const int role = uniform(threadIdx.x / WARPGROUP);
    if (role == 0) {
        registers_down_to<24>();
        if (threadIdx.x == 0) produce<DIM>(p, base, tiles);
    } else {
        registers_up_to<240>();
        consume<DIM>(p, base, tiles, role - 1);
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_forward_hopper_128(const __grid_constant__ ForwardParams p) { forward<128>(p); }
extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_forward_hopper_64(const __grid_constant__ ForwardParams p) { forward<64>(p); }
