// Token embedding.
//
//   x[t] = table[ids[t]]                     x =
//   dtable[ids[t]] += dx[t]                  dtable +=
//
// ids [tokens] u32; table [vocab, columns] bf16, or f32 where it is trained (rounded once to bf16); x, dx [tokens, columns] bf16; dtable f32.
// Backward is repeatable although ids repeat: the host sorts the rows by id once a batch (`order`, with a run of rows for each distinct id);
// one block owns (run, 1,024 columns) and adds its rows in order, in f32.
//
// Budget: 4 bytes an element forward (6 from f32), backward 2 + 8 for each distinct row. Forward should reach 85 % of a copy; backward, a run of many rows (a
// frequent token) is read 16 rows at a time, 4 columns a thread. For 16,384 Zipf-like tokens (longest run 929) that
// takes 137 us, 44 % of a copy; 32 rows x 2 columns took 205, 8 x 8 took 315.
#include "prim/types.cuh"
#include "prim/warp.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;
constexpr int UNROLL = 4;       // vectors of a lane in flight
constexpr int RUN_UNROLL = 16;  // rows of a run in flight: a long run is a chain of such steps
constexpr int RUN_COLUMNS = 4;  // columns of a thread

struct Embed {
    const uint32_t* ids;
    const void* table;
    bf16* x;
    uint32_t tokens, columns;
};
static_assert(sizeof(Embed) == 32, "as in src/embed.rs");

struct EmbedBackward {
    const uint32_t* ids;
    const uint32_t* order;   // rows sorted by id, equal ids by row
    const uint32_t* starts;  // first entry of each run in `order`, and their end
    const bf16* dx;
    float* dtable;
    uint32_t runs, columns;
};
static_assert(sizeof(EmbedBackward) == 48, "as in src/embed.rs");

extern "C" __global__ void __launch_bounds__(THREADS) embed_bf16(const __grid_constant__ Embed p) {
    const uint32_t token = blockIdx.x * WARPS + warp_id();
    if (token >= p.tokens) return;
    const bf16* from = static_cast<const bf16*>(p.table) + (uint64_t)p.ids[token] * p.columns;
    bf16* to = p.x + (uint64_t)token * p.columns;
    for (uint32_t c = lane_id() * 8; c < p.columns; c += WARP * 8 * UNROLL) {
        Vec16 held[UNROLL];
#pragma unroll
        for (int i = 0; i < UNROLL; ++i)
            if (c + i * WARP * 8 < p.columns) held[i] = load16(from + c + i * WARP * 8);
#pragma unroll
        for (int i = 0; i < UNROLL; ++i)
            if (c + i * WARP * 8 < p.columns) store16(to + c + i * WARP * 8, held[i]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) embed_f32(const __grid_constant__ Embed p) {
    const uint32_t token = blockIdx.x * WARPS + warp_id();
    if (token >= p.tokens) return;
    const float* from = static_cast<const float*>(p.table) + (uint64_t)p.ids[token] * p.columns;
    bf16* to = p.x + (uint64_t)token * p.columns;
#pragma unroll 2
    for (uint32_t c = lane_id() * 8; c < p.columns; c += WARP * 8) {
        const Vec16 low = load16(from + c), high = load16(from + c + 4);
        Vec16 out;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            out.w[j] = pack_bf16(__uint_as_float(low.w[2 * j]), __uint_as_float(low.w[2 * j + 1]));
            out.w[2 + j] = pack_bf16(__uint_as_float(high.w[2 * j]), __uint_as_float(high.w[2 * j + 1]));
        }
        store16(to + c, out);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) embed_backward(const __grid_constant__ EmbedBackward p) {
    const uint32_t blocks = div_up(p.columns, (uint32_t)(THREADS * RUN_COLUMNS));
    const uint32_t run = blockIdx.x / blocks, c = (blockIdx.x % blocks * THREADS + threadIdx.x) * RUN_COLUMNS;
    if (c >= p.columns) return;
    const uint32_t begin = p.starts[run], end = p.starts[run + 1];
    float4* to = reinterpret_cast<float4*>(p.dtable + (uint64_t)p.ids[p.order[begin]] * p.columns + c);
    const float4 old = *to;
    float4 sum = {0.f, 0.f, 0.f, 0.f};
    for (uint32_t first = begin; first < end; first += RUN_UNROLL) {
        uint2 held[RUN_UNROLL];
#pragma unroll
        for (int i = 0; i < RUN_UNROLL; ++i)
            if (first + i < end) held[i] = *reinterpret_cast<const uint2*>(p.dx + (uint64_t)p.order[first + i] * p.columns + c);
#pragma unroll
        for (int i = 0; i < RUN_UNROLL; ++i)
            if (first + i < end) {
                const float2 a = unpack_bf16(held[i].x), b = unpack_bf16(held[i].y);
                sum.x += a.x;
                sum.y += a.y;
                sum.z += b.x;
                sum.w += b.y;
            }
    }
    *to = make_float4(old.x + sum.x, old.y + sum.y, old.z + sum.z, old.w + sum.w);
}
