// Matrix products of Hopper (sm_90a): linear layers forward and backward, adapters included, and the language-model head.
//
//   forward   out[T, N] = epilogue(a[T, K] b[N, K]^T + a2[T, ..] b2[N, rank]^T + bias)      a = x, b = W, a2 = H', b2 = B
//   backward  out[T, K] = a[T, N] b[N, K] + keep_scale mask . (a2[T, R] b2[R, K])           a = dy, b = W, a2 = G', b2 = A
// All matrices row-major bf16 (out of `float` f32), products and sums f32, each output is written (`=`) once, rounded once.
// The adapters' part is more K of the same sum: the producer changes tensor maps, the consumers see no difference. Only under dropout is it
// a product of its own (64 columns at a time), masked before it is added, because the mask must not touch the base product.
// A SwiGLU tile is 128 gate and the same 128 up columns; its adapters' stages hold zeros for the other half (rows of b2 past the end).
//
// Budget of a 128 x 256 tile: 2 * 128 * 256 * K FLOP; (128 + 256) * K * 2 bytes from L2, (128 + 128) * K * 2 with a pair sharing b.
// Shared memory 4 stages of 48 KB and 32 KB for stores; registers 232 a consumer thread (128 accumulators), 40 a producer thread (a ninth
// warp instead of a third warpgroup would leave 168 to each: a quarter of the SM's registers for three warps); one block of 384 threads
// an SM, persistent. Peak: the tensor cores' (about 790 TFLOP/s on an H200); aim: 95 % of cuBLAS.
//
// Roles: warpgroup 0 brings tiles in (one thread, copy engine), warpgroups 1 and 2 multiply 64 rows each. A ring of stages with barriers
// `full` (the producer's arrival and the bytes) and `empty` (one arrival a consumer warp of each block that the stage is filled for).
// Pairs: two blocks of a cluster work on two row tiles of one column tile; each brings half of b for both.
// Order of tiles: groups of `group` rows (of pairs), inside a group rows first, so that a group's rows of a and the columns of b that are
// in work stay in L2.
#include "prim/dropout.cuh"
#include "prim/mbarrier.cuh"
#include "prim/tma.cuh"
#include "prim/types.cuh"
#include "prim/warp.cuh"
#include "prim/wgmma.cuh"

namespace {

constexpr int BM = 128;            // two warpgroups of 64 rows: wgmma's height
constexpr int BK = 64;             // 128 bytes: the widest swizzle
constexpr int CONSUMERS = 2;       // more would not leave 128 accumulators a thread
constexpr int WARPGROUP = 128;
constexpr int THREADS = (1 + CONSUMERS) * WARPGROUP;
constexpr int A_BYTES = BM * BK * 2;
constexpr int BOX = 64;            // rows and columns of a store's box
constexpr int BOX_BYTES = BOX * BOX * 2;
constexpr int RESIDUAL_BYTES = BM * 2 * BOX * 2;  // of a stage: two boxes of all rows
constexpr int K16 = BK / 16;       // wgmma steps of a stage
constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;  // 24/240 spills the producer's addresses
static_assert(WARPGROUP * (PRODUCER_REGISTERS + CONSUMERS * CONSUMER_REGISTERS) <= 65536, "an SM has 64 K registers");
constexpr uint32_t NO_LOW = 0xffffffffu;
constexpr int MEMBERS = 3;

template <int BN_> struct Tile {
    static constexpr int BN = BN_, HALF = BN / 2;
    static constexpr int STAGES = BN == 256 ? 4 : 6;  // as many as fit beside the stores' buffers
    static constexpr int B_BYTES = BN * BK * 2, STAGE = A_BYTES + B_BYTES;
    static constexpr int STAGING = STAGES * STAGE, BARRIERS = STAGING + CONSUMERS * 2 * BOX_BYTES;
    static constexpr int BYTES = BARRIERS + 8 * 2 * STAGES;
    static_assert(RESIDUAL_BYTES <= STAGE, "the residual passes through the stages");
    static_assert(BYTES + 1024 <= 232448, "shared memory of a block, 1 KB of it for alignment");
};

enum Kind { PLAIN, FLOAT, ROPE, SWIGLU, BACKWARD, DROPOUT };
__host__ __device__ constexpr bool n_major(Kind kind) { return kind == BACKWARD || kind == DROPOUT; }

struct Params {
    TensorMap a, b, a2, b2[MEMBERS];     // b2: one, or under DROPOUT one a member: zero beyond its rows
    TensorMap out, extra;                // extra: residual, or SwiGLU's h
    const float* bias;                   // [columns] or null
    const float* table;                  // RoPE: (cos, sin) [positions, head_dim / 2]
    const uint32_t* positions;           // [rows]
    void* out_at;
    bf16* extra_at;                      // null: no residual
    Masks masks;                         // DROPOUT
    uint32_t rows, columns, depth, rank; // of out; K of the base product; K of the adapters' (BACKWARD: of all together)
    uint32_t width[MEMBERS], low_at[MEMBERS];
    float keep_scale;                    // 1 / (1 - p)
    uint32_t planes;                     // of the masks: adapted members
    uint32_t head_dim, rotated;          // rotated: columns
    uint32_t tiles_m, tiles_n, group;    // tiles_m and group count rows of clusters
};
static_assert(sizeof(Params) == 1152, "laid out as in src/gemm_hopper.rs");

// Where a tile lies. SwiGLU's has `column` of gate and `column + width[0]` of up.
struct Place { int row, column, end; uint32_t member; };

template <class T, Kind KIND> __device__ __forceinline__ Place place(const Params& p, uint32_t tile, uint32_t rank, uint32_t cluster) {
    const uint32_t per_group = p.group * p.tiles_n, first = tile / per_group * p.group, inside = tile % per_group;
    const uint32_t deep = min(p.group, p.tiles_m - first);
    uint32_t n = inside / deep;
    const uint32_t m = first + inside % deep;
    constexpr uint32_t WIDE = KIND == SWIGLU ? T::HALF : T::BN;
    uint32_t before = 0, member = 0;
    if (KIND != SWIGLU && !n_major(KIND))
        while (member + 1 < MEMBERS && n >= div_up(p.width[member], WIDE)) {
            n -= div_up(p.width[member], WIDE);
            before += p.width[member++];
        }
    return {int((m * cluster + rank) * BM), int(before + n * WIDE), int(before + p.width[member]), member};
}

// Steps of BK in the adapters' part of one member.
__device__ __forceinline__ uint32_t low_steps(const Params& p, uint32_t member) {
    return p.low_at[member] == NO_LOW ? 0 : div_up(p.rank, (uint32_t)BK);
}

// ---- producer: one thread ----

template <class T, Kind KIND, int CLUSTER> struct Producer {
    const Params& p;
    uint32_t base, full, empty, rank;
    Ring<T::STAGES> at;

    // Waits until the stage is free, and says how many bytes will come.
    __device__ __forceinline__ void open(uint32_t bytes) {
        mbarrier_wait(empty + 8 * at.stage, at.phase ^ 1);
        mbarrier_expect(full + 8 * at.stage, bytes);
    }
    // K-major: one half of the columns. N-major: BN / 2 columns as boxes of 64.
    __device__ __forceinline__ void half_of_b(const TensorMap& map, int half, int column, int k, bool shared) {
        const uint32_t to = base + at.stage * T::STAGE + A_BYTES + half * (T::B_BYTES / 2), bar = full + 8 * at.stage;
        if (n_major(KIND)) {
#pragma unroll
            for (int i = 0; i < T::HALF / BK; ++i)
                bring(to + i * BK * BK * 2, map, column + i * BK, k, bar, shared);
        } else {
            bring(to, map, k, column, bar, shared);
        }
    }
    __device__ __forceinline__ void bring(uint32_t to, const TensorMap& map, int x, int y, uint32_t bar, bool shared) {
        if (CLUSTER > 1 && shared) tma_load_multicast(to, map, x, y, bar, (1 << CLUSTER) - 1);
        else tma_load(to, map, x, y, bar);
    }
    __device__ __forceinline__ void a_rows(const TensorMap& map, int k, int row) {
        tma_load(base + at.stage * T::STAGE, map, k, row, full + 8 * at.stage);
    }
    __device__ __forceinline__ int half_column(const Place& w, int half) {
        return w.column + half * (KIND == SWIGLU ? (int)p.width[0] : T::HALF);
    }
    __device__ __forceinline__ void product(const Place& w) {
        for (uint32_t k = 0; k < p.depth; k += BK) {
            open(T::STAGE);
            a_rows(p.a, k, w.row);
            if (CLUSTER == 1) {
                half_of_b(p.b, 0, half_column(w, 0), k, false);
                half_of_b(p.b, 1, half_column(w, 1), k, false);
            } else {
                half_of_b(p.b, rank, half_column(w, rank), k, true);
            }
            at.next();
        }
    }
    // Columns `a_k` of a2 with columns (N-major: rows) `b_k` of a b2.
    __device__ __forceinline__ void low_stage(const Place& w, int a_k, const TensorMap& b2, int b_k) {
        open(T::STAGE);
        a_rows(p.a2, a_k, w.row);
        half_of_b(b2, 0, half_column(w, 0), b_k, false);
        half_of_b(b2, 1, half_column(w, 1), b_k, false);
        at.next();
    }
    // The residual's tile, 128 columns a stage: it arrives while the last products are made.
    __device__ __forceinline__ void residual(const Place& w) {
        for (int c = 0; c < T::BN; c += 2 * BOX) {
            open(RESIDUAL_BYTES);
            const uint32_t to = base + at.stage * T::STAGE, bar = full + 8 * at.stage;
            tma_load(to, p.extra, w.column + c, w.row, bar);
            tma_load(to + RESIDUAL_BYTES / 2, p.extra, w.column + c + BOX, w.row, bar);
            at.next();
        }
    }
    __device__ __forceinline__ void low(const Place& w) {
        if (KIND == BACKWARD) {
            for (uint32_t k = 0; k < p.rank; k += BK) low_stage(w, k, p.b2[0], k);
        } else if (KIND == DROPOUT) {
#pragma unroll
            for (uint32_t m = 0; m < MEMBERS; ++m)
                for (uint32_t s = 0; s < low_steps(p, m); ++s) low_stage(w, p.low_at[m] + s * BK, p.b2[m], s * BK);
        } else if (KIND == SWIGLU) {
            for (int half = 0; half < 2; ++half)
                for (uint32_t s = 0; s < low_steps(p, half); ++s) {
                    open(T::STAGE);
                    a_rows(p.a2, p.low_at[half] + s * BK, w.row);
                    // The other half's columns are zero: rows of b2 past its end.
                    half_of_b(p.b2[0], 0, half == 0 ? half_column(w, 0) : p.columns, s * BK, false);
                    half_of_b(p.b2[0], 1, half == 1 ? half_column(w, 1) : p.columns, s * BK, false);
                    at.next();
                }
        } else {
            for (uint32_t s = 0; s < low_steps(p, w.member); ++s) low_stage(w, p.low_at[w.member] + s * BK, p.b2[0], s * BK);
        }
    }
};

// ---- consumers: a warpgroup each ----

template <int N, bool NM, int S> __device__ __forceinline__ void multiply(float (&d)[S], uint32_t a, uint32_t b, uint32_t keep) {
    if constexpr (N == 256) wgmma_n256<0, NM>(d, a, b, keep);
    else wgmma_n128<0, NM>(d, a, b, keep);
}

template <class T, Kind KIND, int CLUSTER> struct Consumer {
    static constexpr bool NM = n_major(KIND);
    static constexpr uint32_t B_STEP = NM ? WGMMA_K16_N_MAJOR : WGMMA_K16;
    static constexpr int ACCUMULATORS = T::BN / 2;  // 64 x BN over 128 threads

    const Params& p;
    uint32_t base, full, empty;
    uint32_t group, warp, lane;  // warpgroup 0 or 1; warp in it
    Ring<T::STAGES> at;
    // Stores.
    uint32_t staging;            // two boxes
    uint32_t boxes = 0;          // stored so far

    __device__ __forceinline__ uint32_t a_low(uint32_t stage) const { return wgmma_low(base + stage * T::STAGE + group * (64 * BK * 2)); }
    __device__ __forceinline__ uint32_t b_low(uint32_t stage) const {
        return wgmma_low(base + stage * T::STAGE + A_BYTES, NM ? BK * BK * 2 : 16);
    }
    __device__ __forceinline__ bool leader() const { return warp == 0 && lane == 0; }
    __device__ __forceinline__ void meet() const {
        if (group == 0) named_barrier<1, WARPGROUP>();
        else named_barrier<2, WARPGROUP>();
    }
    __device__ __forceinline__ void release(uint32_t stage) const {
        if (CLUSTER == 1) {
            if (lane == 0) mbarrier_arrive(empty + 8 * stage);
        } else if (lane < CLUSTER) {
            mbarrier_arrive_at(empty + 8 * stage, lane);
        }
    }

    // One stage; leaves its products under way and frees the stage before it.
    __device__ __forceinline__ void step(float (&d)[ACCUMULATORS], uint32_t keep, bool free_before) {
        mbarrier_wait(full + 8 * at.stage, at.phase);
        const uint32_t a = a_low(at.stage), b = b_low(at.stage);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < K16; ++k) multiply<T::BN, NM>(d, a + k * WGMMA_K16, b + k * B_STEP, k == 0 ? keep : 1);
        wgmma_commit();
        wgmma_wait<1>();
        if (free_before) release(before());
        at.next();
    }
    __device__ __forceinline__ uint32_t before() const { return at.stage == 0 ? T::STAGES - 1 : at.stage - 1; }

    // The base product and the adapters' part. A rank that is no multiple of 64 costs nothing but time: b2 has `rank` columns, so what the
    // last stage holds beyond them is zero.
    __device__ __forceinline__ void product(float (&d)[ACCUMULATORS], uint32_t member) {
        const uint32_t stages = div_up(p.depth, (uint32_t)BK);
        step(d, 0, false);
        uint32_t more = stages - 1;
        if (KIND == BACKWARD) more += div_up(p.rank, (uint32_t)BK);
        else if (KIND == SWIGLU) more += low_steps(p, 0) + low_steps(p, 1);
        else if (KIND != DROPOUT) more += low_steps(p, member);
#pragma unroll 1
        for (; more > 0; --more) step(d, 1, true);
        wgmma_wait<0>();
        release(before());
        wgmma_pin(d);
    }

    // What the masks keep of this thread's two rows, 128 columns a word of four.
    struct Kept { uint4 of[T::BN / 128][2]; };
    __device__ __forceinline__ void fetch_kept(uint4 (&kept)[2], const Place& w, uint32_t plane, int half) const {
#pragma unroll
        for (int r = 0; r < 2; ++r)
            kept[r] = __ldg(reinterpret_cast<const uint4*>(p.masks.at(plane, w.row + 64 * group + 16 * warp + lane / 4 + 8 * r, w.column + 128 * half)));
    }

    // d += keep_scale sum over members of mask . (a2 b2).
    __device__ __forceinline__ void masked_low(float (&d)[ACCUMULATORS], const Place& w, Kept& kept) {
        uint32_t plane = 0;
#pragma unroll 1
        for (uint32_t m = 0; m < MEMBERS; ++m) {
            const uint32_t steps = low_steps(p, m);
            if (steps == 0) continue;
            plane = min(plane + 1, p.planes - 1);  // of what is fetched next
#pragma unroll 1
            for (uint32_t s = 0; s < steps; ++s) {
                mbarrier_wait(full + 8 * at.stage, at.phase);
                const uint32_t a = a_low(at.stage), b = b_low(at.stage);
#pragma unroll
                for (int c = 0; c < T::BN / 64; ++c) {
                    float part[32];
                    wgmma_fence();
#pragma unroll
                    for (int k = 0; k < K16; ++k) wgmma_n64<0, true>(part, a + k * WGMMA_K16, b + c * (BK * BK * 2 >> 4) + k * B_STEP, k > 0);
                    wgmma_commit();
                    wgmma_wait<0>();
                    wgmma_pin(part);
#pragma unroll
                    for (int i = 0; i < 32; ++i) {
                        const uint4& four = kept.of[c / 2][i / 2 % 2];
                        const uint32_t bits = (c % 2 ? i / 16 ? four.w : four.z : i / 16 ? four.y : four.x) >> 4 * (lane % 4);
                        add_if_kept(d[32 * c + i], bits, 1u << (i / 4 % 4 + 16 * (i % 2)), part[i], p.keep_scale);
                    }
                    if (c % 2 && s + 1 == steps) fetch_kept(kept.of[c / 2], w, plane, c / 2);
                }
                __syncwarp();
                release(at.stage);
                at.next();
            }
        }
    }

    // Column of d[4 j ..].
    __device__ __forceinline__ int column_of(const Place& w, int j) const {
        const int up = KIND == SWIGLU && j >= T::HALF / 8 ? (int)p.width[0] - T::HALF : 0;
        return w.column + up + 8 * j + 2 * (lane % 4);
    }
    // The bias of the tile's columns, spread over the warp: pair i of lane l is columns 64 i + 2 l and the next.
    struct Bias { float2 of[T::BN / 64]; };
    __device__ __forceinline__ void fetch_bias(Bias& bias, const Place& w) const {
#pragma unroll
        for (int i = 0; i < T::BN / 64; ++i) {
            const int inside = 64 * (KIND == SWIGLU ? i % (T::HALF / 64) : i) + 2 * lane;
            const int at_column = w.column + inside + (KIND == SWIGLU && i >= T::HALF / 64 ? (int)p.width[0] : 0);
            bias.of[i] = p.bias && w.column + inside < w.end ? *reinterpret_cast<const float2*>(p.bias + at_column) : make_float2(0, 0);
        }
    }
    __device__ __forceinline__ void add_bias(float (&d)[ACCUMULATORS], const Bias& bias) const {
#pragma unroll
        for (int j = 0; j < T::BN / 8; ++j) {
            const float2 b = {from_lane(bias.of[j / 8].x, j % 8 * 4 + lane % 4), from_lane(bias.of[j / 8].y, j % 8 * 4 + lane % 4)};
            d[4 * j] += b.x; d[4 * j + 1] += b.y; d[4 * j + 2] += b.x; d[4 * j + 3] += b.y;
        }
    }
    // Positions of this thread's two rows of a tile (0 past the end).
    __device__ __forceinline__ uint2 positions(const Place& w) const {
        const uint32_t row = w.row + 64 * group + 16 * warp + lane / 4;
        return {row < p.rows ? p.positions[row] : 0, row + 8 < p.rows ? p.positions[row + 8] : 0};
    }
    // Column c and c + HD / 2 of a head are in one thread.
    template <int HD> __device__ __forceinline__ void rotate(float (&d)[ACCUMULATORS], const Place& w, uint2 at_rows) const {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float* table = p.table + (size_t)(r == 0 ? at_rows.x : at_rows.y) * HD + 4 * (lane % 4);
#pragma unroll
            for (int j = 0; j < HD / 16; ++j) {
                const float4 t = *reinterpret_cast<const float4*>(table + 16 * j);
#pragma unroll
                for (int head = 0; head < T::BN / HD; ++head)
                    if (w.column + head * HD < (int)p.rotated) {
                        const int x = head * HD / 2 + 4 * j + 2 * r, y = x + HD / 4;
                        const float x0 = d[x], x1 = d[x + 1];
                        d[x] = x0 * t.x - d[y] * t.y;
                        d[y] = d[y] * t.x + x0 * t.y;
                        d[x + 1] = x1 * t.z - d[y + 1] * t.w;
                        d[y + 1] = d[y + 1] * t.z + x1 * t.w;
                    }
            }
        }
    }

    // Address of the 16x16 block `block` of the warp's rows of a box, as ldmatrix and stmatrix want it from this lane.
    __device__ __forceinline__ uint32_t box_address(uint32_t box, int block) const {
        const uint32_t row = lane % 16, chunk = 2 * block + lane / 16;
        return box + (16 * warp + row) * (BOX * 2) + ((chunk ^ (row % 8)) << 4);
    }
    // Stores a box of 64 x 64 whose element i (accumulator order) is value(i), plus the residual's box at `residual` unless that is 0.
    template <class Value>
    __device__ __forceinline__ void store_box(const TensorMap& map, bf16* out, uint32_t stride, int row, int column, int end, uint32_t residual, Value value) {
        const uint32_t box = staging + (boxes & 1) * BOX_BYTES;
        if (leader()) tma_store_wait_read<1>();
        meet();
#pragma unroll
        for (int block = 0; block < BOX / 16; ++block) {
            float v[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) v[i] = value(8 * block + i);
            if (residual) {
                uint32_t c[4];
                ldmatrix_x4(c, box_address(residual, block));
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float2 pair = unpack_bf16(c[i]);
                    v[2 * i] += pair.x;
                    v[2 * i + 1] += pair.y;
                }
            }
            const uint32_t r[4] = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
            stmatrix_x4(r, box_address(box, block));
        }
        fence_async_proxy();
        meet();
        if (column + BOX <= end || end == (int)stride) {
            if (leader()) tma_store(map, column, row, box);
        } else {  // The next member begins inside the box.
#pragma unroll
            for (int i = 0; i < BOX * BOX / 8 / WARPGROUP; ++i) {
                const uint32_t piece = 32 * warp + lane + i * WARPGROUP, r = piece / 8, chunk = piece % 8;
                if (row + r < p.rows && column + 8 * (int)chunk < end)
                    store16(out + (size_t)(row + r) * stride + column + 8 * chunk, load_shared16(box + r * (BOX * 2) + ((chunk ^ (r % 8)) << 4)));
            }
        }
        if (leader()) tma_store_commit();
        ++boxes;
    }

    // What the epilogue needs from memory, fetched before the product.
    struct Early { Bias bias; uint2 at_rows; Kept kept; };
    __device__ __forceinline__ void fetch(Early& early, const Place& w) const {
        if (!NM) fetch_bias(early.bias, w);
        if (KIND == ROPE) early.at_rows = positions(w);
        if constexpr (KIND == DROPOUT)
#pragma unroll
            for (int half = 0; half < T::BN / 128; ++half) fetch_kept(early.kept.of[half], w, 0, half);
    }
    __device__ __forceinline__ void store(float (&d)[ACCUMULATORS], const Place& w, const Early& early) {
        const int row = w.row + 64 * group;
        if (!NM && p.bias) add_bias(d, early.bias);
        if constexpr (KIND == FLOAT) {
            float* out = static_cast<float*>(p.out_at);
#pragma unroll
            for (int j = 0; j < T::BN / 8; ++j)
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    const uint32_t at_row = row + 16 * warp + lane / 4 + 8 * r;
                    const int column = column_of(w, j);
                    if (at_row < p.rows && column < w.end)
                        *reinterpret_cast<float2*>(out + (size_t)at_row * p.columns + column) = make_float2(d[4 * j + 2 * r], d[4 * j + 2 * r + 1]);
                }
        } else if constexpr (KIND == SWIGLU) {
            bf16* out = static_cast<bf16*>(p.out_at);
            const int width = p.width[0];
#pragma unroll
            for (int c = 0; c < T::HALF / BOX; ++c) {
                const int column = w.column + c * BOX;
                if (column >= width) break;
                store_box(p.out, out, p.columns, row, column, width, 0, [&](int i) { return d[32 * c + i]; });
                store_box(p.out, out, p.columns, row, width + column, 2 * width, 0, [&](int i) { return d[ACCUMULATORS / 2 + 32 * c + i]; });
                store_box(p.extra, p.extra_at, width, row, column, width, 0, [&](int i) {
                    const float gate = d[32 * c + i];
                    return __fdividef(gate, 1.f + __expf(-gate)) * d[ACCUMULATORS / 2 + 32 * c + i];
                });
            }
        } else {
            if constexpr (KIND == ROPE) {
                if (p.head_dim == 128) rotate<128>(d, w, early.at_rows);
                else if (p.head_dim == 64) rotate<64>(d, w, early.at_rows);
                else rotate<32>(d, w, early.at_rows);
            }
            const bool residual = KIND == PLAIN && p.extra_at;
#pragma unroll
            for (int c = 0; c < T::BN / BOX; ++c) {
                if (residual && c % 2 == 0) mbarrier_wait(full + 8 * at.stage, at.phase);
                const int column = w.column + c * BOX;
                const uint32_t from = residual ? base + at.stage * T::STAGE + c % 2 * (RESIDUAL_BYTES / 2) + group * BOX_BYTES : 0;
                if (column < w.end)
                    store_box(p.out, static_cast<bf16*>(p.out_at), p.columns, row, column, w.end, from, [&](int i) { return d[32 * c + i]; });
                if (residual && c % 2 == 1) {
                    __syncwarp();
                    release(at.stage);
                    at.next();
                }
            }
        }
    }
};

// ---- the kernel ----

template <int BN, Kind KIND, int CLUSTER> __device__ __forceinline__ void gemm(const Params& p) {
    using T = Tile<BN>;
    extern __shared__ uint8_t raw[];
    // The same in every block of a cluster: dynamic shared memory starts at one address.
    const uint32_t base = (smem_address(raw) + 1023) & ~1023u;
    const uint32_t full = base + T::BARRIERS, empty = full + 8 * T::STAGES;
    const uint32_t rank = CLUSTER == 1 ? 0 : cluster_rank();
    if (threadIdx.x == 0) {
        for (int s = 0; s < T::STAGES; ++s) {
            mbarrier_init(full + 8 * s, 1);
            mbarrier_init(empty + 8 * s, CLUSTER * CONSUMERS * (WARPGROUP / 32));
        }
        mbarrier_fence_init();
    }
    if (CLUSTER == 1) __syncthreads();
    else cluster_barrier();

    const uint32_t tiles = p.tiles_m * p.tiles_n, first = blockIdx.x / CLUSTER, stride = gridDim.x / CLUSTER;
    const uint32_t warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / WARPGROUP, 0);
    if (warpgroup == 0) {
        registers_down_to<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) {
            tma_prefetch_map(p.a);
            tma_prefetch_map(p.b);
            Producer<T, KIND, CLUSTER> producer{p, base, full, empty, rank};
            for (uint32_t tile = first; tile < tiles; tile += stride) {
                const Place w = place<T, KIND>(p, tile, rank, CLUSTER);
                producer.product(w);
                producer.low(w);
                if (KIND == PLAIN && p.extra_at) producer.residual(w);
            }
        }
    } else {
        registers_up_to<CONSUMER_REGISTERS>();
        const uint32_t group = warpgroup - 1;
        Consumer<T, KIND, CLUSTER> consumer{p, base, full, empty, group, threadIdx.x / 32 % 4, threadIdx.x % 32, {},
                                            base + T::STAGING + group * 2 * BOX_BYTES};
        for (uint32_t tile = first; tile < tiles; tile += stride) {
            const Place w = place<T, KIND>(p, tile, rank, CLUSTER);
            typename Consumer<T, KIND, CLUSTER>::Early early;
            consumer.fetch(early, w);
            float d[BN / 2];
            consumer.product(d, w.member);
            if constexpr (KIND == DROPOUT) consumer.masked_low(d, w, early.kept);
            consumer.store(d, w, early);
            // In the loop: behind it, ptxas kept the consumers to 168 registers, spilled and serialised every wgmma under DROPOUT.
            if (tile + stride >= tiles && consumer.leader()) tma_store_wait<0>();
        }
    }
    // A block whose peer still arrives at its barriers or sends it tiles must not be gone.
    if (CLUSTER > 1) cluster_barrier();
}

}  // namespace

#define KERNEL(NAME, BN, KIND, CLUSTER, ATTRIBUTE) \
    extern "C" __global__ void ATTRIBUTE __launch_bounds__(THREADS, 1) NAME(const __grid_constant__ Params p) { gemm<BN, KIND, CLUSTER>(p); }
#define KERNELS(NAME, KIND) \
    KERNEL(gemm_hopper_##NAME##_pair256, 256, KIND, 2, __cluster_dims__(2, 1, 1)) \
    KERNEL(gemm_hopper_##NAME##_128, 128, KIND, 1, )

KERNELS(plain, PLAIN)
KERNELS(float, FLOAT)
KERNELS(rope, ROPE)
KERNELS(swiglu, SWIGLU)
KERNELS(backward, BACKWARD)
KERNELS(dropout, DROPOUT)
