// Matrix products of linear layers, sm_80 and up: cp.async ring -> ldmatrix -> mma.sync m16n8k16.
//
// nt: y[T, N] = epilogue(scale (x[T, K] W[N, K]^T + low[T, R] B[N, r]^T) + bias[N])     nn: dx[T, K] = scale (dy[T, N] W[N, K] + masked g[T, R] A[R, K])
// All bf16 row-major with 16-byte rows, bias f32; sums f32 in registers, one rounding at the store; every output `=`.
// The low-rank part is more reduction in the same accumulators: after the base in nt and nn; before it in nn with dropout, where each
// member's product goes through a spare accumulator and its mask. Each element is summed in ascending k, k16 by k16, by one warp, whatever
// the tile: the bits of a row depend neither on the tile nor on the other rows.
//
// Budget of the large tile, 128x128, 4 warps of 64x64: 64-96 KB shared memory, 128 accumulators + 2 x 32 fragment registers a thread, 2 blocks
// an SM of sm_90. On sm_90 mma.sync issues 0.62 mma a clock; at that rate shared memory is busy 93 % (ldmatrix 62 %, cp.async 31 %) and L2 gives
// 40 bytes a clock and SM; the wide tile, 128x256, 8 warps, needs 85 % and 30. Peak to reach: 60 % of wgmma's on sm_90, >= 90 % of cuBLAS on
// sm_80 and sm_120.
#include "prim/dropout.cuh"
#include "prim/tile.cuh"

// ---- Tiles -------------------------------------------------------------------------------------------------------------------------
template <int M, int N, int K, int STAGES_, int WARPS_M_, int WARPS_N_, bool B_K_MAJOR> struct Tile {
    static constexpr int BM = M, BN = N, BK = K, STAGES = STAGES_, WARPS_M = WARPS_M_, WARPS_N = WARPS_N_;
    static constexpr int THREADS = WARPS_M * WARPS_N * WARP;
    static constexpr int WM = BM / WARPS_M, WN = BN / WARPS_N;   // a warp's part
    static constexpr int MI = WM / BLOCK, NI = WN / BLOCK;       // in 16x16 blocks
    static constexpr bool B_ROWS = B_K_MAJOR;                    // B's lines are rows of the result's columns (W as [N, K] in nt)
    using A = Operand<BM, BK, true>;
    using B = Operand<BN, BK, B_K_MAJOR>;
    static constexpr int STAGE = A::BYTES + B::BYTES;
    static constexpr int SHARED = STAGES * STAGE;
    static_assert(WM % BLOCK == 0 && WN % 32 == 0, "a warp owns whole 16x32 blocks: the unit of dropout masks");
    static constexpr int STAGED = SHARED >= BM * BN * 4 ? BM : BM / 2;  // rows of the f32 tile that the epilogue stages at once
    static_assert(SHARED >= STAGED * BN * 4 && STAGED % WM == 0, "the epilogue stages whole warps' rows where the ring was");
    static_assert(SHARED <= (BN == 256 ? 163 : 99) * 1024, "sm_86, sm_89 and sm_120 give a block 99 KB; only sm_80 and sm_90 run the wide tile");
    static_assert(STAGES * BK >= 128, "a member's low-rank operands (rank <= 128) fit the ring at once");
    static_assert((BK / BLOCK) % 2 == 0, "fragment buffers alternate");
};
// Training. Measured on an H100 at the four models' shapes, TFLOP/s: nt 128x128x64 357-411, 128x256x64 329-393, 128x128x32 325-412,
// 256x128 (32 or 64 deep) 291-387; nn 128x256x64 340-425, 128x128x32 335-394, 256x128x64 282-416.
using LargeNT = Tile<128, 128, 64, 3, 2, 2, true>;   // 96 KB: fits every part; two blocks an SM of sm_90
using LargeNN = Tile<128, 128, 32, 4, 2, 2, false>;  // 64 KB; rows of B are whole lines at any depth
using WideNT = Tile<128, 256, 64, 3, 2, 4, true>;    // 144 KB: sm_80, where 96 KB leave one block an SM
using WideNN = Tile<128, 256, 64, 3, 2, 4, false>;
// Few rows: many narrow blocks, so that the weights stream from all SMs; each holds 20 KB of them in flight.
using SmallNT = Tile<64, 32, 64, 6, 4, 1, true>;
using SmallNN = Tile<64, 32, 64, 6, 4, 1, false>;
// Results of 64 columns (g = dy B): reads dy once.
using NarrowNN = Tile<128, 64, 64, 4, 4, 1, false>;

// ---- Parameters, as in kernels/src/gemm.rs --------------------------------------------------------------------------------------------
constexpr uint32_t NO_LOW = 0xffffffffu;
constexpr int PARTS = 3;
enum Mode : uint32_t { STORE = 0, STORE_F32 = 1, RESIDUAL = 2, ROPE = 3, SWIGLU = 4 };

// Columns of the result that share operands: a member of the group.
struct Part {
    uint32_t first_tile;  // of the tiles along N
    uint32_t columns;     // of the result
    uint32_t out_at;      // first column in y
    uint32_t a_at;        // first column of a
    uint32_t b_at;        // first row of b
    uint32_t depth;       // of the base reduction
    uint32_t low_at[2];   // first column of `low` (nt: [1] for the second half in SWIGLU), NO_LOW if none
    uint32_t low_depth;
    uint32_t reserved;
};
struct Product {
    const bf16* a; const bf16* b; const float* bias; const bf16* low; const bf16* low_b;
    const bf16* residual; const float* table; const uint32_t* positions; void* y; bf16* h;
    Masks masks;                             // nn with dropout
    uint32_t lda, ldb, ldy, ldlow, ldlow_b;
    uint32_t rows, tiles_m, tiles_n, group;  // group: row tiles that run through all columns together, for L2
    uint32_t parts_len;
    uint32_t mode, head_dim, rotated;        // SWIGLU: head_dim is N, so that gate and up are the halves of one head
    float scale, keep_scale;
    uint32_t members, rank, low_at[PARTS];   // nn with dropout
    Part parts[PARTS];
};
static_assert(sizeof(Part) == 40 && sizeof(Product) == 296, "as in kernels/src/gemm.rs");

// Where the loads stand in the chain of segments.
struct Cursor {
    const bf16 *a, *b;
    uint32_t lda, ldb, k, depth;
    uint32_t takes;  // nt: bit i: this thread's load i of b is of the half of the tile's columns that has the segment
    int segment;
};

// Eight staged sums of a row.
struct Eight { float v[CHUNK]; };
template <int BN> __device__ __forceinline__ uint32_t staged_at(int row, int chunk) {
    constexpr int TURN = (BN / CHUNK < 8 ? BN / CHUNK : 8) - 1;
    return row * BN + (chunk ^ (row & TURN)) * CHUNK;
}
template <int BN> __device__ __forceinline__ Eight staged(const float* tile, int row, int chunk) {
    // Chunks four apart share banks: every other group of four reads its second half first.
    const uint32_t at = staged_at<BN>(row, chunk);
    const bool flip = at / (4 * CHUNK) % 2;
    const float4 u = *reinterpret_cast<const float4*>(tile + at + (flip ? 4 : 0)), v = *reinterpret_cast<const float4*>(tile + at + (flip ? 0 : 4));
    const float4 x = flip ? v : u, y = flip ? u : v;
    return {{x.x, x.y, x.z, x.w, y.x, y.y, y.z, y.w}};
}
__device__ __forceinline__ void store_bf16(bf16* to, const Eight& e) {
    Vec16 v;
#pragma unroll
    for (int i = 0; i < 4; ++i) v.w[i] = pack_bf16(e.v[2 * i], e.v[2 * i + 1]);
    store16(to, v);
}
__device__ __forceinline__ void scale_and_bias(Eight& e, float scale, const float* bias) {
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) e.v[i] = e.v[i] * scale + (bias ? bias[i] : 0.f);
}

// The first of a pair of 8-column runs that belong together (RoPE, SwiGLU): pair p is run p % (head_dim / 16) of head p / (head_dim / 16).
__device__ __forceinline__ uint32_t pair_column(uint32_t pair, uint32_t head_dim) {
    const uint32_t runs = head_dim / (2 * CHUNK);
    return pair / runs * head_dim + pair % runs * CHUNK;
}

template <class T> __device__ __forceinline__ void epilogue(const Product& p, const Part& part, const float* tile, uint32_t row0, uint32_t tile_n) {
    constexpr int RUNS = T::BN / CHUNK;
    if (p.mode == ROPE || p.mode == SWIGLU) {
        constexpr int PAIRS = RUNS / 2;
        const uint32_t half = p.head_dim / 2;
        for (int id = threadIdx.x; id < T::STAGED * PAIRS; id += T::THREADS) {
            const int r = id / PAIRS, c = id % PAIRS;
            const uint32_t row = row0 + r, pair = tile_n * PAIRS + c;
            if (row >= p.rows || pair >= part.columns / (2 * CHUNK)) continue;
            const uint32_t column = part.out_at + pair_column(pair, p.head_dim);
            Eight first = staged<T::BN>(tile, r, c), second = staged<T::BN>(tile, r, c + PAIRS);
            scale_and_bias(first, p.scale, p.bias ? p.bias + column : nullptr);
            scale_and_bias(second, p.scale, p.bias ? p.bias + column + half : nullptr);
            if (p.mode == SWIGLU) {
                Eight h;
#pragma unroll
                for (int i = 0; i < CHUNK; ++i) h.v[i] = __fdividef(first.v[i], 1.f + __expf(-first.v[i])) * second.v[i];
                store_bf16(p.h + (size_t)row * half + column, h);
            } else if (column / p.head_dim < p.rotated) {
                const float2* turn = reinterpret_cast<const float2*>(p.table) + (size_t)p.positions[row] * half + column % p.head_dim;
#pragma unroll
                for (int i = 0; i < CHUNK; ++i) {
                    const float2 t = turn[i];
                    const float x = first.v[i], y = second.v[i];
                    first.v[i] = x * t.x - y * t.y;
                    second.v[i] = y * t.x + x * t.y;
                }
            }
            bf16* to = static_cast<bf16*>(p.y) + (size_t)row * p.ldy + column;
            store_bf16(to, first);
            store_bf16(to + half, second);
        }
        return;
    }
    for (int id = threadIdx.x; id < T::STAGED * RUNS; id += T::THREADS) {
        const int r = id / RUNS, c = id % RUNS;
        const uint32_t row = row0 + r, local = tile_n * T::BN + c * CHUNK;
        if (row >= p.rows || local >= part.columns) continue;
        const uint32_t column = part.out_at + local;
        Eight e = staged<T::BN>(tile, r, c);
        scale_and_bias(e, p.scale, p.bias ? p.bias + column : nullptr);
        const size_t at = (size_t)row * p.ldy + column;
        if (p.mode == RESIDUAL) {
            const Vec16 v = load16(p.residual + at);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float2 x = unpack_bf16(v.w[i]);
                e.v[2 * i] += x.x;
                e.v[2 * i + 1] += x.y;
            }
        }
        if (p.mode == STORE_F32) {
            float4* to = reinterpret_cast<float4*>(static_cast<float*>(p.y) + at);
            to[0] = make_float4(e.v[0], e.v[1], e.v[2], e.v[3]);
            to[1] = make_float4(e.v[4], e.v[5], e.v[6], e.v[7]);
        } else {
            store_bf16(static_cast<bf16*>(p.y) + at, e);
        }
    }
}

// One tile's operands, read segment by segment into the ring.
template <class T> struct Loader {
    static constexpr int A_STEP = T::THREADS / T::A::CHUNKS, A_LOADS = T::A::LINES / A_STEP;
    static constexpr int B_STEP = T::THREADS / T::B::CHUNKS, B_LOADS = T::B::LINES / B_STEP;
    static_assert(T::A::LINES % A_STEP == 0 && T::B::LINES % B_STEP == 0 && A_STEP % 8 == 0 && B_STEP % 8 == 0,
                  "every thread loads the same number of chunks, at the same swizzle");
    static_assert(A_LOADS <= 32 && B_LOADS <= 32, "one bit a load");
    const Product& p;
    const Part& part;
    uint32_t row0, column0, last_row;    // last_row: within the tile
    uint32_t a_inside = 0, b_inside = 0; // bit i: load i is inside the matrix (nt: also inside the segment's half)
    uint32_t b_row[T::B_ROWS ? B_LOADS : 1];  // nt: row of b within the part, 0 where outside
    Cursor at;

    __device__ __forceinline__ Loader(const Product& p, const Part& part, uint32_t row0, uint32_t tile_n)
        : p(p), part(part), row0(row0), column0(tile_n * T::BN), last_row(min(p.rows - row0, (uint32_t)T::BM) - 1) {
#pragma unroll
        for (int i = 0; i < A_LOADS; ++i) a_inside |= (threadIdx.x / T::A::CHUNKS + i * A_STEP <= last_row ? 1u : 0u) << i;
        if constexpr (T::B_ROWS) {
#pragma unroll
            for (int i = 0; i < B_LOADS; ++i) {
                const uint32_t n = threadIdx.x / T::B::CHUNKS + i * B_STEP;
                uint32_t column = column0 + n;
                if (p.mode == ROPE || p.mode == SWIGLU) {
                    constexpr uint32_t HALF = T::BN / 2;
                    const uint32_t pair = tile_n * (HALF / CHUNK) + n % HALF / CHUNK;
                    column = pair_column(pair, p.head_dim) + n % CHUNK + n / HALF * (p.head_dim / 2);
                    if (pair >= part.columns / (2 * CHUNK)) column = part.columns;
                }
                b_inside |= (column < part.columns ? 1u : 0u) << i;
                b_row[i] = column < part.columns ? column : 0;
            }
        }
        enter_base();
    }
    __device__ __forceinline__ void enter_base() {
        at = {p.a + (size_t)row0 * p.lda + part.a_at, p.b + (size_t)part.b_at * p.ldb, p.lda, p.ldb, 0, part.depth, ~0u, 0};
    }
    // Puts the cursor on columns `low` of the low-rank buffer; `half` of the tile's columns have them, or all (-1).
    __device__ __forceinline__ void enter_low(uint32_t low, uint32_t depth, int half) {
        const size_t b_at = T::B_ROWS ? part.b_at : low;
        at.a = p.low + (size_t)row0 * p.ldlow + low;
        at.b = p.low_b + b_at * p.ldlow_b;
        at.lda = p.ldlow; at.ldb = p.ldlow_b; at.k = 0; at.depth = depth; at.takes = ~0u;
        if (half >= 0) {
            at.takes = 0;
#pragma unroll
            for (int i = 0; i < B_LOADS; ++i)
                at.takes |= ((threadIdx.x / T::B::CHUNKS + i * B_STEP >= T::BN / 2) == (half == 1) ? 1u : 0u) << i;
        }
    }
    __device__ __forceinline__ void advance() {
        at.k += T::BK;
        while (at.k >= at.depth && at.segment < 2) {
            const int i = at.segment++;
            if (part.low_at[i] != NO_LOW) enter_low(part.low_at[i], part.low_depth, p.mode == SWIGLU ? i : -1);
        }
    }
    // The next BK of the reduction; zero outside the matrices. Addresses outside are moved to a row and column inside.
    __device__ __forceinline__ void load(uint32_t stage) {
        const uint32_t a_line = threadIdx.x / T::A::CHUNKS, a_chunk = threadIdx.x % T::A::CHUNKS;
        const uint32_t a_k = at.k + a_chunk * CHUNK;
        const bf16* a = at.a + (a_k < at.depth ? a_k : 0);
        const uint32_t a_to = stage + T::A::at(a_line, a_chunk), a_takes = a_k < at.depth ? a_inside : 0;
#pragma unroll
        for (int i = 0; i < A_LOADS; ++i)
            cp_async16(a_to + i * A_STEP * T::A::LINE_BYTES, a + (uint64_t)min(a_line + i * A_STEP, last_row) * at.lda,
                       (a_takes >> i & 1) * CHUNK_BYTES);
        const uint32_t b_line = threadIdx.x / T::B::CHUNKS, b_chunk = threadIdx.x % T::B::CHUNKS;
        const uint32_t b_to = stage + T::A::BYTES + T::B::at(b_line, b_chunk);
        if constexpr (T::B_ROWS) {
            const uint32_t k = at.k + b_chunk * CHUNK;
            const bf16* b = at.b + (k < at.depth ? k : 0);
            const uint32_t takes = k < at.depth ? b_inside & at.takes : 0;
#pragma unroll
            for (int i = 0; i < B_LOADS; ++i)
                cp_async16(b_to + i * B_STEP * T::B::LINE_BYTES, b + (uint64_t)b_row[i] * at.ldb, (takes >> i & 1) * CHUNK_BYTES);
        } else {
            const uint32_t column = column0 + b_chunk * CHUNK;
            const bool inside = column < part.columns;
            const bf16* b = at.b + (inside ? column : 0);
#pragma unroll
            for (int i = 0; i < B_LOADS; ++i) {
                const uint32_t k = at.k + b_line + i * B_STEP;
                cp_async16(b_to + i * B_STEP * T::B::LINE_BYTES, b + (uint64_t)min(k, at.depth - 1) * at.ldb,
                           inside && k < at.depth ? CHUNK_BYTES : 0);
            }
        }
    }
};

// sum += mask . (g_m A_m) / (1 - p) for every adapted member m, 16x32 blocks at a time through a spare accumulator.
template <class T>
__device__ __forceinline__ void masked_low(const Product& p, Loader<T>& loader, float (&sum)[T::MI][2 * T::NI][4], uint32_t smem, uint32_t a_lane,
                                           uint32_t b_lane, uint32_t first_row, uint32_t first_column) {
    const uint32_t g = lane_id() / 4, q = lane_id() % 4;
    for (uint32_t m = 0; m < p.members; ++m) {
        if (p.low_at[m] == NO_LOW) continue;
        loader.enter_low(p.low_at[m], p.rank, -1);
        for (uint32_t panel = 0; panel * T::BK < p.rank; ++panel, loader.at.k += T::BK) loader.load(smem + panel * T::STAGE);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
#pragma unroll
        for (int mi = 0; mi < T::MI; ++mi)
#pragma unroll
            for (int nb = 0; nb < T::WN / 32; ++nb) {
                float spare[1][4][4] = {};
                for (uint32_t k = 0; k < p.rank; k += BLOCK) {
                    const uint32_t stage = smem + k / T::BK * T::STAGE, kk = k % T::BK / BLOCK;
                    uint32_t a[1][4], b[2][4];
                    T::A::fragment(a[0], stage, a_lane, mi, kk);
                    T::B::fragment(b[0], stage + T::A::BYTES, b_lane, 2 * nb, kk);
                    T::B::fragment(b[1], stage + T::A::BYTES, b_lane, 2 * nb + 1, kk);
                    mma_blocks<1, 2>(spare, a, b);
                }
#pragma unroll
                for (int lower = 0; lower < 2; ++lower) {
                    const uint32_t bits = *p.masks.at(p.low_at[m] / p.rank, first_row + mi * BLOCK + g + 8 * lower, first_column + 32 * nb) >> 4 * q;
#pragma unroll
                    for (int j = 0; j < 4; ++j)
#pragma unroll
                        for (int h = 0; h < 2; ++h)
                            add_if_kept(sum[mi][4 * nb + j][2 * lower + h], bits, 1u << (j + 16 * h), spare[0][j][2 * lower + h], p.keep_scale);
                }
            }
        __syncthreads();
    }
}

template <class T, bool DROPOUT> __device__ __forceinline__ void product(const Product& p) {
    extern __shared__ __align__(1024) uint8_t memory[];
    const uint32_t smem = smem_address(memory);

    // Rows of tiles in groups; inside a group the row index runs fastest, so W's tile stays in L2 for the group's rows.
    const uint32_t in_group = p.group * p.tiles_n, first_m = blockIdx.x / in_group * p.group;
    const uint32_t height = min(p.group, p.tiles_m - first_m), place = blockIdx.x % in_group;
    const uint32_t tile_m = first_m + place % height;
    uint32_t tile_n = place / height, which = 0;
    while (which + 1 < p.parts_len && tile_n >= p.parts[which + 1].first_tile) ++which;
    const Part& part = p.parts[which];
    tile_n -= part.first_tile;
    const uint32_t row0 = tile_m * T::BM;

    const int warp_m = warp_id() / T::WARPS_N, warp_n = warp_id() % T::WARPS_N;
    const uint32_t a_lane = T::A::lane_a(warp_m * T::WM), b_lane = T::B::lane_b(warp_n * T::WN);
    float sum[T::MI][2 * T::NI][4] = {};
    Loader<T> loader(p, part, row0, tile_n);

    if constexpr (DROPOUT) {
        masked_low<T>(p, loader, sum, smem, a_lane, b_lane, row0 + warp_m * T::WM, tile_n * T::BN + warp_n * T::WN);
        loader.enter_base();
    }

    uint32_t steps = div_up(part.depth, (uint32_t)T::BK);
    for (int i = 0; i < 2; ++i)
        if (part.low_at[i] != NO_LOW) steps += div_up(part.low_depth, (uint32_t)T::BK);

    uint32_t loaded = 0;
    auto load_next = [&](uint32_t stage) {
        if (loaded < steps) {
            loader.load(smem + stage * T::STAGE);
            loader.advance();
        }
        ++loaded;
        cp_async_commit();
    };
#pragma unroll
    for (int s = 0; s < T::STAGES - 1; ++s) load_next(s);

    constexpr int KK = T::BK / BLOCK;
    uint32_t a[2][T::MI][4], b[2][T::NI][4];
    auto fragments = [&](int to, uint32_t stage, int kk) {
        const uint32_t tile = smem + stage * T::STAGE;
#pragma unroll
        for (int i = 0; i < T::MI; ++i) T::A::fragment(a[to][i], tile, a_lane, i, kk);
#pragma unroll
        for (int i = 0; i < T::NI; ++i) T::B::fragment(b[to][i], tile + T::A::BYTES, b_lane, i, kk);
    };
    cp_async_wait<T::STAGES - 2>();
    __syncthreads();
    fragments(0, 0, 0);
    uint32_t stage = 0, free = T::STAGES - 1;
    for (uint32_t step = 0; step < steps; ++step) {
#pragma unroll
        for (int kk = 0; kk < KK; ++kk) {
            if (kk == KK - 1) {  // the next step's tile has arrived, and nobody reads this step's any more
                cp_async_wait<T::STAGES - 2>();
                __syncthreads();
                free = stage;
                stage = stage + 1 == T::STAGES ? 0 : stage + 1;
            }
            fragments((kk + 1) % 2, stage, (kk + 1) % KK);
            if (kk == 0) load_next(free);
            mma_blocks<T::MI, T::NI>(sum, a[kk % 2], b[kk % 2]);
        }
    }
    cp_async_wait<0>();
    __syncthreads();

    float* tile = reinterpret_cast<float*>(memory);
    const int g = lane_id() / 4, q = lane_id() % 4;
    for (int first = 0; first < T::BM; first += T::STAGED) {
        const int warp_row = warp_m * T::WM - first;
        if (warp_row >= 0 && warp_row < T::STAGED)
#pragma unroll
            for (int mi = 0; mi < T::MI; ++mi)
#pragma unroll
                for (int n = 0; n < 2 * T::NI; ++n)
#pragma unroll
                    for (int lower = 0; lower < 2; ++lower) {
                        const int r = warp_row + mi * BLOCK + g + 8 * lower;
                        float* to = tile + staged_at<T::BN>(r, warp_n * (T::WN / CHUNK) + n) + 2 * q;
                        *reinterpret_cast<float2*>(to) = make_float2(sum[mi][n][2 * lower], sum[mi][n][2 * lower + 1]);
                    }
        __syncthreads();
        epilogue<T>(p, part, tile, row0 + first, tile_n);
        __syncthreads();
    }
}

#define KERNEL(NAME, TILE, DROPOUT, BLOCKS) \
    extern "C" __global__ void __launch_bounds__(TILE::THREADS, BLOCKS) NAME(const __grid_constant__ Product p) { product<TILE, DROPOUT>(p); }
KERNEL(gemm_nt_wide, WideNT, false, 1)
KERNEL(gemm_nn_wide, WideNN, false, 1)
KERNEL(gemm_nn_wide_dropout, WideNN, true, 1)
KERNEL(gemm_nt_large, LargeNT, false, 2)
KERNEL(gemm_nt_small, SmallNT, false, 2)
KERNEL(gemm_nn_large, LargeNN, false, 2)
KERNEL(gemm_nn_small, SmallNN, false, 2)
KERNEL(gemm_nn_narrow, NarrowNN, false, 2)
KERNEL(gemm_nn_large_dropout, LargeNN, true, 2)
KERNEL(gemm_nn_small_dropout, SmallNN, true, 2)

