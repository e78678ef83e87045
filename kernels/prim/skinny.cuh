// The body of the few-row products (kernels/skinny.cu, kernels/skinny_nf4.cu): y = epilogue(x W^T + low B^T + bias).
//
// Weights are the 16-row operand of mma.sync, tokens its eight columns. A persistent CTA takes tiles of 16 MT rows; its eight warps split K
// in blocks of 64, each with a private ring of cp.async stages that runs on across tiles, so loads never drain; the eight partial sums are
// added in warp order. One element's order of sums depends on K and the rank alone: not on T, the tile, the ring, or where x lies.
//
// The sixteen rows of a tile are 8 rows at `p` and 8 at `q`: the two halves of a head under RoPE, gate and up under SwiGLU, else neighbours.
// A thread's accumulator holds rows g and g + 8, so that a pair meets in one thread.
//
// k order inside a block of 64: lane (g, c = lane % 4) of a fragment takes 16 values of its own: bf16 8c.. and 32 + 8c.. (two 16-byte
// loads), NF4 16c.. (eight bytes; a byte is one A register). x follows the same order, so nothing is repacked. Columns of tokens that are
// not there hold anything: a column of the product depends on its own x alone.
//
// First form of NF4: two blocks a stage, a scale's copies and lookups for each, branches around x, two LOP3 a lookup: 41.9 us instead of
// 31.7 (4096 x 28672, T = 1, H100).
#pragma once
#include "async.cuh"
#include "mma.cuh"
#include "nf4.cuh"
#include "warp.cuh"

namespace skinny {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * WARP;
constexpr int BLOCK = 64;                        // k of one step: an NF4 block; one 128-byte line of bf16
constexpr int LINE = BLOCK * sizeof(bf16);       // bytes of x in a block
constexpr int TILE = 16, HALF = 8, TOKENS = 8;   // mma's m, half of it, mma's n
constexpr int LUT_BYTES = 256 * WARP * 4;        // byte -> bf16 pair, a copy for each lane: no bank conflicts
constexpr int MAP_BYTES = 256 * 4;
constexpr int QUAD = 4;                          // neighbouring NF4 blocks of one warp: 128 bytes of codes a row
constexpr int SCALE_BYTES = TILE * 16;           // NF4, a stage and tile: a row's four scale codes and their nested scale, or four f32 scales
constexpr int RED_FLOATS = WARPS * 4 * WARP;     // partial sums of one tile and eight tokens

// bf16(codebook * CODE_UNIT) is 1.75 times nearer to the codebook than bf16(codebook): rms error 0.78e-3 instead of 1.36e-3 over normal
// weights (best of 65,536 factors in [1, 2)); the factor is taken back with the block's f32 scale.
constexpr float CODE_UNIT = 1.43670654296875f;

enum Weight { BF16, NF4 };
enum Epilogue : uint32_t { NONE = 0, RESIDUAL = 1, ROPE = 2, SWIGLU = 3, FLOAT = 4 };
constexpr uint32_t NO_LOW = 0xffffffffu;

struct Member {
    const uint8_t* packed;   // NF4 only, of this member alone
    const uint8_t* scales;   // u8 codes, or f32 absmax when absmax2 is null
    const float* absmax2;
    float offset;
    uint32_t first;          // its first row; N for a member that is not there
};
struct Params {
    const bf16* x;           // [T, K]
    const bf16* weight;      // [N, K]
    Member members[3];
    const float* bias;       // [N] or null
    const bf16* low;         // [T, low_stride] or null
    const bf16* b;           // [N, rank]
    const bf16* residual;    // [T, N]
    const float* table;      // [positions, pair, 2]
    const uint32_t* positions;
    void* y;                 // [T, N] bf16, or f32 under FLOAT; may be null under SWIGLU
    bf16* h;                 // [T, N / 2]
    uint32_t rows, inputs, outputs, rank, low_stride, low_at[3];
    uint32_t epilogue;
    uint32_t tiles;          // of 16 rows
    uint32_t paired;         // of those, the first that pair rows `gap` apart
    uint32_t span_tiles, span, gap;  // `span_tiles` paired tiles cover `span` rows
    uint32_t chunk;          // tokens of a CTA; grid.x = chunks, grid.y = CTAs over tiles
    uint32_t reserved;
};
static_assert(sizeof(Member) == 32 && sizeof(Params) == 240, "as in src/skinny.rs");

// Rows of a tile's first half, second half.
struct Rows { uint32_t p, q; };
__device__ __forceinline__ Rows rows_of(const Params& s, uint32_t tile) {
    if (tile < s.paired) {
        const uint32_t head = tile < s.span_tiles ? 0 : tile / s.span_tiles;  // SwiGLU has one span: no division
        const uint32_t p = head * s.span + (tile - head * s.span_tiles) * HALF;
        return {p, p + s.gap};
    }
    if (tile >= s.tiles) return {s.outputs, s.outputs};
    const uint32_t p = tile * TILE;
    return {p, p + HALF};
}
__device__ __forceinline__ uint32_t member_of(const Params& s, uint32_t row) {
    return row >= s.members[2].first ? 2u : row >= s.members[1].first ? 1u : 0u;
}

// KIND; MT tiles of 16 rows a CTA; NT groups of eight tokens; x wholly in shared memory or with the weights in the ring; STAGES of the ring;
// DEPTH blocks of 64 a stage.
template <Weight KIND, int MT, int NT, bool RESIDENT, int STAGES, int DEPTH> struct Product {
    static constexpr bool IS_NF4 = KIND == NF4;
    static_assert(IS_NF4 || DEPTH == 1, "a bf16 block is a whole line already");
    // Above 1, a row's scales must begin at a multiple of four: K % 256 == 0. (K = 64 n of small models takes DEPTH 1.)
    static_assert(DEPTH == 1 || DEPTH == 2 || DEPTH == 4, "a stage is a part of an NF4 warp's four neighbouring blocks");
    static constexpr int SCALES_A_LANE = DEPTH == 4 ? 2 : 1;             // of sixteen rows times DEPTH blocks
    static constexpr int ROW_BYTES = IS_NF4 ? 32 * DEPTH : LINE;         // of a weight row in a stage
    static constexpr int WEIGHT_BYTES = TILE * ROW_BYTES;
    static constexpr int PIECES = ROW_BYTES / 16;                        // 16-byte pieces of a row
    static constexpr int COPIES = TILE * PIECES / WARP;                  // a lane, tile and stage
    static constexpr int POINTERS = IS_NF4 && DEPTH == 1 ? 1 : 2;        // of them: one for each half that the lane copies from
    static constexpr int PARTS = QUAD / DEPTH;                           // NF4: stages of four blocks
    static constexpr int SWIZZLE = IS_NF4 ? 1 : 4;                       // piece ^= this in x's odd tokens
    static constexpr int HEAD = IS_NF4 ? LUT_BYTES + MAP_BYTES : 0;
    static constexpr int RED = 2 * MT * RED_FLOATS * 4;

    const Params& s;
    unsigned char* const shared;
    const uint32_t warp = warp_id(), lane = lane_id(), g = lane / 4, c = lane % 4;
    const uint32_t lane_word = opaque(lane * 4);  // else a second LOP3 at every table lookup, and the ALU is what NF4 waits for
    // NF4: where a lane's copies go in a stage, and where its reads of row g begin; further rows lie at constants.
    const uint32_t copy_at = opaque(lane / PIECES * ROW_BYTES + nf4_piece(lane / PIECES, lane % PIECES) * 16);
    const uint32_t codes_at = opaque(g * ROW_BYTES + c * 8), turn = opaque(nf4_piece(g, 0) * 16);
    const uint32_t token0 = blockIdx.x * s.chunk;
    const uint32_t tokens = min(s.chunk, s.rows - token0);
    const uint32_t blocks = (s.inputs + BLOCK - 1) / BLOCK;
    const uint32_t items = items_of(blocks, warp);
    const uint32_t x_blocks = RESIDENT ? (blocks + DEPTH - 1) / DEPTH * DEPTH : DEPTH;
    const uint32_t x_row = x_blocks * LINE;                              // bytes of a token's x in shared memory; zero beyond K
    const uint32_t stage_bytes = MT * WEIGHT_BYTES + (RESIDENT ? 0u : s.chunk * x_row) + (IS_NF4 ? MT * SCALE_BYTES : 0);
    unsigned char* const lut = shared;
    float* const map = reinterpret_cast<float*>(shared + LUT_BYTES);
    float* const red = reinterpret_cast<float*>(shared + HEAD);
    unsigned char* const x_all = shared + HEAD + RED;
    unsigned char* const ring = x_all + (RESIDENT ? s.chunk * x_row : 0u) + warp * STAGES * stage_bytes;

    __device__ __forceinline__ Product(const Params& s, unsigned char* shared) : s(s), shared(shared) {}

    // Stages of a warp in one tile. An NF4 warp owns blocks 32i + 4w and the next three, a bf16 warp blocks 8i + w.
    static __device__ __forceinline__ uint32_t items_of(uint32_t blocks, uint32_t warp) {
        const uint32_t own = IS_NF4 ? QUAD * warp : warp, every = IS_NF4 ? QUAD * WARPS : WARPS;
        const uint32_t visits = blocks > own ? (blocks - own + every - 1) / every : 0;
        return IS_NF4 ? PARTS * visits : visits;
    }
    __device__ __forceinline__ uint32_t block_of(uint32_t item) const {
        if constexpr (!IS_NF4) return WARPS * item + warp;
        else return QUAD * (WARPS * (item / PARTS) + warp) + item % PARTS * DEPTH;
    }

    // Where the ring's writing end stands.
    struct Source {
        uint32_t tile, item, slot;
        const unsigned char* row[MT][POINTERS];  // at this lane's row and piece
        uint32_t valid[MT];                      // bit i: copy i is inside the matrix
        uint32_t scale_row[MT];                  // NF4: index of the first scale of row lane % 16 in its member
        uint32_t member[MT];
    };

    // Lane's row in the tile, of copy i: bf16 g and g + 8 (two pieces each); NF4 lane / PIECES and WARP / PIECES rows on.
    __device__ __forceinline__ uint32_t copy_row(int i) const { return IS_NF4 ? lane / PIECES + i * (WARP / PIECES) : g + i / 2 * HALF; }
    static __device__ __forceinline__ uint32_t row_in(const Rows& rows, uint32_t in_tile) {
        return in_tile < HALF ? rows.p + in_tile : rows.q + in_tile - HALF;
    }
    __device__ __forceinline__ void enter(Source& from) const {
#pragma unroll
        for (int m = 0; m < MT; ++m) {
            const Rows rows = rows_of(s, from.tile * MT + m);
            from.valid[m] = 0;
#pragma unroll
            for (int i = 0; i < COPIES; ++i) from.valid[m] |= row_in(rows, copy_row(i)) < s.outputs ? 1u << i : 0u;
#pragma unroll
            for (int i = 0; i < POINTERS; ++i) {
                const uint32_t row = min(row_in(rows, copy_row(i * COPIES / POINTERS)), s.outputs - 1);
                if constexpr (IS_NF4) {
                    const Member& member = s.members[member_of(s, row)];
                    from.row[m][i] = member.packed + static_cast<uint64_t>(row - member.first) * (s.inputs / 2) + lane % PIECES * 16;
                } else {
                    from.row[m][i] = reinterpret_cast<const unsigned char*>(s.weight + static_cast<uint64_t>(row) * s.inputs + c * 8);
                }
            }
            if constexpr (IS_NF4) scale_place(rows, lane % TILE, from.member[m], from.scale_row[m]);
        }
    }
    // Member of a row of the tile, and index of the row's first scale in it.
    __device__ __forceinline__ void scale_place(const Rows& rows, uint32_t in_tile, uint32_t& member, uint32_t& first) const {
        const uint32_t row = min(row_in(rows, in_tile), s.outputs - 1);
        member = member_of(s, row);
        first = (row - s.members[member].first) * (s.inputs / BLOCK);
    }

    // Starts the copies of the next stage, if there is one, and closes its group either way.
    __device__ __forceinline__ void issue(Source& from) const {
        const uint32_t all = (s.tiles + MT - 1) / MT;
        if (items > 0 && from.tile < all) {
            if (from.item == 0) enter(from);
            const uint32_t block = block_of(from.item);
            unsigned char* const stage = ring + from.slot * stage_bytes;
            const uint32_t to = smem_address(stage);
#pragma unroll
            for (int m = 0; m < MT; ++m) {
#pragma unroll
                for (int i = 0; i < COPIES; ++i) {
                    const bool there = from.valid[m] >> i & 1;
                    if constexpr (IS_NF4) {
                        // What lies outside stays as it is: any code is finite, its row is not stored, and x is zero beyond K.
                        const unsigned char* at = from.row[m][i * POINTERS / COPIES] + block * (BLOCK / 2);
                        if (DEPTH == 4 && i % 2 == 1) at += static_cast<uint64_t>(WARP / PIECES) * (s.inputs / 2);
                        if (there && block + lane % PIECES / 2 < blocks)
                            cp_async16_stream(to + copy_at + m * WEIGHT_BYTES + i * (WARP / PIECES) * ROW_BYTES, at, 16);
                    } else {
                        const bool inside = there && block * BLOCK + i % 2 * 32 + c * 8 < s.inputs;  // k 8c or 32 + 8c
                        const unsigned char* const at = inside ? from.row[m][i / 2] + block * LINE + i % 2 * 64 : from.row[m][0];
                        cp_async16_stream(to + m * WEIGHT_BYTES + (i * WARP + lane) * 16, at, inside ? 16 : 0);
                    }
                }
                if constexpr (IS_NF4) copy_scales(to + MT * WEIGHT_BYTES + m * SCALE_BYTES, s.members[from.member[m]], from.scale_row[m], block);
            }
            if constexpr (!RESIDENT) {
                const uint32_t x_to = to + MT * WEIGHT_BYTES + (IS_NF4 ? MT * SCALE_BYTES : 0);
                copy_x(x_to, block * BLOCK, DEPTH * LINE / 16, lane, WARP);
            }
            from.slot = from.slot + 1 == STAGES ? 0 : from.slot + 1;
            if (++from.item == items) {
                from.item = 0;
                from.tile += gridDim.y;
            }
        }
        cp_async_commit();
    }
    // A row's scales: lane r copies its codes, lane r + 16 their nested scale (256 blocks share one, so four aligned ones do).
    __device__ __forceinline__ void copy_scales(uint32_t to, const Member& member, uint32_t first, uint32_t block) const {
        const uint32_t index = first + min(block, blocks - 1);
        const bool upper = lane < TILE;
        to += lane % TILE * 16;
        if (member.absmax2 != nullptr) {
            const unsigned char* const from = upper ? member.scales + (index & ~3u) : reinterpret_cast<const unsigned char*>(member.absmax2 + index / NF4_NESTED);
            cp_async4(to + (upper ? 0 : 4), from, 4);
        } else if (upper) {
            const float* const from = reinterpret_cast<const float*>(member.scales) + (DEPTH == 1 ? index : index & ~3u);
            if constexpr (DEPTH == 1) cp_async4(to, from, 4);
            else cp_async16(to, from, 16);
        }
    }
    // Columns k0.. of all tokens, `pieces` a token, zero beyond K.
    __device__ __forceinline__ void copy_x(uint32_t to, uint32_t k0, uint32_t pieces, uint32_t thread, uint32_t threads) const {
        for (uint32_t i = thread; i < tokens * pieces; i += threads) {
            const uint32_t token = i / pieces, piece = i % pieces, k = k0 + piece * 8;
            const bool inside = k < s.inputs;
            const bf16* const at = inside ? s.x + static_cast<uint64_t>(token0 + token) * s.inputs + k : s.x;
            cp_async16(to + token * x_row + (piece ^ ((token & 1) * SWIZZLE)) * 16, at, inside ? 16 : 0);
        }
    }
    // A piece's place in an NF4 row of a stage: blocks change places by row, so that the eight-byte reads of four rows meet all banks.
    static __device__ __forceinline__ uint32_t nf4_piece(uint32_t row, uint32_t piece) {
        return DEPTH == 4 ? piece ^ (row & 3) * 2 : DEPTH == 2 ? piece ^ (row & 2) : piece;
    }

    __device__ __forceinline__ void fill_tables() const {
        // A warp's 32 bytes have two values in their high halves; the low ones are constants of the unrolled loop.
        static_assert(WARPS == 8, "a warp fills two high halves");
        const float upper[2] = {NF4_CODEBOOK[2 * warp], NF4_CODEBOOK[2 * warp + 1]};
        constexpr float values[16] = NF4_VALUES;
        uint32_t* const to = reinterpret_cast<uint32_t*>(lut) + warp * 32 * WARP + lane;
#pragma unroll
        for (int i = 0; i < 32; ++i) to[i * WARP] = pack_bf16(upper[i / 16] * CODE_UNIT, values[i % 16] * CODE_UNIT);
        for (uint32_t i = threadIdx.x; i < 256; i += THREADS) map[i] = dynamic_map(i) * (1.f / CODE_UNIT);
    }
    // Byte `i` of `word` as two bf16.
    __device__ __forceinline__ uint32_t pair(uint32_t word, int i) const {
        const uint32_t at = (i == 0 ? word << 7 : word >> (8 * i - 7)) & 0x7f80u;
        return *reinterpret_cast<const uint32_t*>(lut + (at | lane_word));
    }

    // Where this lane's two 16-byte pieces of a block lie, for the token of column g in each group of eight.
    struct Columns { uint32_t at[NT][2]; bool there[NT]; };
    __device__ __forceinline__ Columns columns() const {
        Columns to;
#pragma unroll
        for (int n = 0; n < NT; ++n) {
            to.there[n] = n * TOKENS + g < tokens;
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const uint32_t token = min(n * TOKENS + g, tokens - 1), piece = IS_NF4 ? 2 * c + j : 4 * j + c;
                to.at[n][j] = token * x_row + (piece ^ ((token & 1) * SWIZZLE)) * 16;
            }
        }
        return to;
    }

    // Eight tokens load for all lanes; one to seven for theirs alone, which takes shared memory fewer turns. What the other columns of the
    // product hold is of no concern.
    __device__ __forceinline__ void load_x(Vec16 (&v)[2], const unsigned char* x, const Columns& columns, int n) const {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            if constexpr (IS_NF4 && NT == 1) {
                v[j] = {{0, 0, 0, 0}};
                load_shared16_if(v[j], smem_address(x + columns.at[n][j]), columns.there[n]);
            } else {
                v[j] = load16(x + columns.at[n][j]);
            }
        }
    }

    __device__ __forceinline__ void step_bf16(float (&total)[MT][NT][4], const unsigned char* stage, const unsigned char* x, const Columns& columns) const {
        Vec16 w[MT][4];
#pragma unroll
        for (int m = 0; m < MT; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i) w[m][i] = load16(stage + m * WEIGHT_BYTES + (i * WARP + lane) * 16);
#pragma unroll
        for (int n = 0; n < NT; ++n) {
            Vec16 v[2];
            load_x(v, x, columns, n);
#pragma unroll
            for (int m = 0; m < MT; ++m)
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const int j = k / 2, e = k % 2 * 2;
                    const uint32_t a[4] = {w[m][j].w[e], w[m][2 + j].w[e], w[m][j].w[e + 1], w[m][2 + j].w[e + 1]};
                    mma_m16n8k16(total[m][n], a, v[j].w[e], v[j].w[e + 1]);
                }
        }
    }

    // Scales of the stage, times 1 / CODE_UNIT: with DEPTH 4 lane (g, c) has block c of rows g and g + 8, else block c % 2 of row g + 8 (c / 2).
    struct Scales { float of[MT][SCALES_A_LANE]; };
    static __device__ __forceinline__ int scale_lane(uint32_t g, int half, int d) { return g * 4 + (DEPTH == 4 ? 0 : 2 * half) + d; }
    // What a tile's scales need beside the stage.
    struct ScaleRows { uint32_t first[MT][SCALES_A_LANE]; float offset[MT][SCALES_A_LANE]; };
    __device__ __forceinline__ uint32_t scale_row(int i) const { return g + HALF * (DEPTH == 4 ? i : c / 2); }
    __device__ __forceinline__ ScaleRows scale_rows(uint32_t tile) const {
        ScaleRows to;
#pragma unroll
        for (int m = 0; m < MT; ++m)
#pragma unroll
            for (int i = 0; i < SCALES_A_LANE; ++i) {
                uint32_t member;
                scale_place(rows_of(s, tile * MT + m), scale_row(i), member, to.first[m][i]);
                to.offset[m][i] = s.members[member].offset * (1.f / CODE_UNIT);
            }
        return to;
    }
    __device__ __forceinline__ void load_scales(Scales& to, const ScaleRows& rows, const unsigned char* stage, uint32_t block) const {
        const bool nested = s.members[0].absmax2 != nullptr;
#pragma unroll
        for (int m = 0; m < MT; ++m)
#pragma unroll
            for (int i = 0; i < SCALES_A_LANE; ++i) {
                const unsigned char* const at = stage + MT * WEIGHT_BYTES + m * SCALE_BYTES + scale_row(i) * 16;
                const uint32_t in_word = DEPTH == 4 ? c : DEPTH == 2 ? block % 4 + c % 2 : (rows.first[m][i] + block) % 4;
                if (nested) {
                    const uint2 v = load8(at);
                    to.of[m][i] = fmaf(map[v.x >> (in_word * 8) & 255u], __uint_as_float(v.y), rows.offset[m][i]);
                } else {
                    to.of[m][i] = reinterpret_cast<const float*>(at)[DEPTH == 1 ? 0 : in_word] * (1.f / CODE_UNIT);
                }
            }
    }

    // One block of 64: products of codes first, then the block's scale in f32.
    __device__ __forceinline__ void step_nf4(float (&total)[MT][NT][4], const unsigned char* stage, const Scales& scales, int d,
                                             const unsigned char* x, const Columns& columns) const {
        uint32_t a[MT][4][4];
        float upper[MT], lower[MT];
#pragma unroll
        for (int m = 0; m < MT; ++m) {
            uint2 w[2];
#pragma unroll
            for (int half = 0; half < 2; ++half)
                w[half] = load8(stage + codes_at + (turn ^ d * 32u) + m * WEIGHT_BYTES + half * HALF * ROW_BYTES);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const int byte = k % 2 * 2;
                const uint32_t up = k < 2 ? w[0].x : w[0].y, down = k < 2 ? w[1].x : w[1].y;
                a[m][k][0] = pair(up, byte);
                a[m][k][1] = pair(down, byte);
                a[m][k][2] = pair(up, byte + 1);
                a[m][k][3] = pair(down, byte + 1);
            }
            upper[m] = from_lane(scales.of[m][0], scale_lane(g, 0, d));
            lower[m] = from_lane(scales.of[m][SCALES_A_LANE - 1], scale_lane(g, 1, d));
        }
#pragma unroll
        for (int n = 0; n < NT; ++n) {
            Vec16 v[2];
            load_x(v, x, columns, n);
#pragma unroll
            for (int m = 0; m < MT; ++m) {
                float sum[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
                for (int k = 0; k < 4; ++k) mma_m16n8k16(sum, a[m][k], v[k / 2].w[k % 2 * 2], v[k / 2].w[k % 2 * 2 + 1]);
                total[m][n][0] = fmaf(upper[m], sum[0], total[m][n][0]);
                total[m][n][1] = fmaf(upper[m], sum[1], total[m][n][1]);
                total[m][n][2] = fmaf(lower[m], sum[2], total[m][n][2]);
                total[m][n][3] = fmaf(lower[m], sum[3], total[m][n][3]);
            }
        }
    }

    // This warp's sixteen of the rank: B's rows now, the product with `low` at the end of the tile.
    struct Low { uint2 b[MT][2]; uint32_t at[MT][2]; };
    __device__ __forceinline__ bool has_low() const { return s.low != nullptr && warp * 16 < s.rank; }
    __device__ __forceinline__ void begin_low(Low& low, uint32_t tile) const {
        if (!has_low()) return;
#pragma unroll
        for (int m = 0; m < MT; ++m) {
            const Rows rows = rows_of(s, tile * MT + m);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const uint32_t row = (half == 0 ? rows.p : rows.q) + g;
                const uint32_t at = row < s.outputs ? s.low_at[member_of(s, row)] : NO_LOW;
                low.at[m][half] = at;
                low.b[m][half] = at != NO_LOW ? load8(s.b + static_cast<uint64_t>(row) * s.rank + warp * 16 + c * 4) : make_uint2(0, 0);
            }
        }
    }
    __device__ __forceinline__ void add_low(float (&total)[MT][NT][4], const Low& low) const {
        if (!has_low()) return;
#pragma unroll
        for (int n = 0; n < NT; ++n)
#pragma unroll
            for (int m = 0; m < MT; ++m)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    // Halves may belong to two members, so each has its own `low`; the other half's rows are zero meanwhile. `at` is the
                    // same in a warp's eight rows (members begin at multiples of eight), except past the last row: take lane 0's.
                    const uint32_t at = from_lane(low.at[m][half], 0);
                    if (at == NO_LOW) continue;
                    const uint32_t token = n * TOKENS + g;
                    uint2 v = make_uint2(0, 0);
                    if (token < tokens) v = load8(s.low + static_cast<uint64_t>(token0 + token) * s.low_stride + at + warp * 16 + c * 4);
                    const uint2 b = low.b[m][half];
                    const uint32_t a[4] = {half == 0 ? b.x : 0u, half == 0 ? 0u : b.x, half == 0 ? b.y : 0u, half == 0 ? 0u : b.y};
                    mma_m16n8k16(total[m][n], a, v.x, v.y);
                }
    }

    // v: the finished sums of rows p + g and q + g for one token.
    __device__ __forceinline__ void store(uint32_t tile, const Rows& rows, uint32_t row, uint64_t token, float v0, float v1) const {
        const uint32_t r0 = rows.p + row, r1 = rows.q + row;
        const bool has0 = r0 < s.outputs, has1 = r1 < s.outputs;
        if (s.bias != nullptr) {
            if (has0) v0 += s.bias[r0];
            if (has1) v1 += s.bias[r1];
        }
        const uint64_t at = token * s.outputs;
        if (s.epilogue == FLOAT) {
            float* const y = static_cast<float*>(s.y) + at;
            if (has0) y[r0] = v0;
            if (has1) y[r1] = v1;
            return;
        }
        if (s.epilogue == RESIDUAL) {
            if (has0) v0 += to_float(s.residual[at + r0]);
            if (has1) v1 += to_float(s.residual[at + r1]);
        } else if (s.epilogue == ROPE && tile < s.paired) {
            const uint32_t pair = tile % s.span_tiles * HALF + row;
            const float2 turn = *reinterpret_cast<const float2*>(s.table + (static_cast<uint64_t>(s.positions[token]) * s.gap + pair) * 2);
            const float first = v0 * turn.x - v1 * turn.y;
            v1 = v1 * turn.x + v0 * turn.y;
            v0 = first;
        } else if (s.epilogue == SWIGLU) {
            if (has0) s.h[token * (s.outputs / 2) + r0] = to_bf16(v0 / (1.f + __expf(-v0)) * v1);
        }
        bf16* const y = static_cast<bf16*>(s.y);
        if (y == nullptr) return;
        if (has0) y[at + r0] = to_bf16(v0);
        if (has1) y[at + r1] = to_bf16(v1);
    }

    __device__ __forceinline__ void run() const {
        Source from{blockIdx.y, 0, 0, {}, {}, {}, {}};
        if constexpr (RESIDENT) {
            copy_x(smem_address(x_all), 0, x_row / 16, threadIdx.x, THREADS);
            cp_async_commit();
        }
        for (int i = 0; i < STAGES - 1; ++i) issue(from);
        if constexpr (IS_NF4) fill_tables();
        if constexpr (RESIDENT) cp_async_wait<STAGES - 1>();
        __syncthreads();

        const Columns columns = this->columns();
        uint32_t slot = 0, round = 0;
        const uint32_t all = (s.tiles + MT - 1) / MT;
        for (uint32_t tile = blockIdx.y; tile < all; tile += gridDim.y) {
            float total[MT][NT][4] = {};
            Low low;
            begin_low(low, tile);
            ScaleRows scale_rows;
            if constexpr (IS_NF4) scale_rows = this->scale_rows(tile);
            for (uint32_t item = 0; item < items; ++item) {
                cp_async_wait<STAGES - 2>();
                __syncwarp();  // all lanes' copies of this stage are there, and all have read the stage that `issue` overwrites
                issue(from);
                const uint32_t block = block_of(item);
                const unsigned char* const stage = ring + slot * stage_bytes;
                const unsigned char* const x = RESIDENT ? x_all + block * LINE : stage + MT * WEIGHT_BYTES + (IS_NF4 ? MT * SCALE_BYTES : 0);
                if constexpr (!IS_NF4) {
                    step_bf16(total, stage, x, columns);
                } else if (PARTS == 1 || block < blocks) {
                    // Blocks beyond K in a stage have x = 0; a stage of such blocks alone is left out.
                    Scales scales;
                    load_scales(scales, scale_rows, stage, block);
                    constexpr int TOGETHER = DEPTH < 2 ? 1 : 2;  // blocks whose codes registers hold
#pragma unroll 1
                    for (int d = 0; d < DEPTH; d += TOGETHER)
#pragma unroll
                        for (int e = 0; e < TOGETHER; ++e) step_nf4(total, stage, scales, d + e, x + (d + e) * LINE, columns);
                }
                slot = slot + 1 == STAGES ? 0 : slot + 1;
            }
            add_low(total, low);

            // Sums of the warps in order; two buffers by turns, so that one barrier a round suffices.
#pragma unroll
            for (int n = 0; n < NT; ++n, ++round) {
                float* const part = red + (round & 1) * (MT * RED_FLOATS);
#pragma unroll
                for (int m = 0; m < MT; ++m)
#pragma unroll
                    for (int e = 0; e < 4; ++e) part[((warp * MT + m) * 4 + e) * WARP + lane] = total[m][n][e];
                __syncthreads();
                constexpr uint32_t A_TILE = HALF * TOKENS;
                static_assert(MT * A_TILE <= THREADS, "a thread finishes one pair of rows of one token");
                const uint32_t m = threadIdx.x / A_TILE, row = threadIdx.x % HALF, column = threadIdx.x % A_TILE / HALF;
                const uint32_t token = n * TOKENS + column;
                if (m < MT && token < tokens) {
                    float v0 = 0.f, v1 = 0.f;
#pragma unroll
                    for (int w = 0; w < WARPS; ++w) {
                        const float* const at = part + ((w * MT + m) * 4 + column % 2) * WARP + row * 4 + column / 2;
                        v0 += at[0];
                        v1 += at[2 * WARP];
                    }
                    const Rows rows = rows_of(s, tile * MT + m);
                    store(tile * MT + m, rows, row, token0 + token, v0, v1);
                }
            }
        }
        cp_async_wait<0>();
    }
};

template <Weight KIND, int MT, int NT, bool RESIDENT, int STAGES, int DEPTH> __device__ __forceinline__ void product(const Params& s) {
    extern __shared__ __align__(1024) unsigned char shared[];
    Product<KIND, MT, NT, RESIDENT, STAGES, DEPTH>(s, shared).run();
}

}  // namespace skinny
