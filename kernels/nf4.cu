// NF4 weights in bitsandbytes' layout, to and from bf16 / f32.
//
//   quantise:    absmax[b] = max |w| of 64 values; code = #midpoints < w / absmax; packed[i / 2] = code(even) << 4 | code(odd)
//   double:      m[c] = max |absmax - offset| of 256 scales; code8 = nearest map entry to (absmax - offset) / m
//   dequantise:  scale = map[code8] m + offset (two roundings), w = bf16(codebook[code] scale)
// Layout: w[n] a matrix flattened row-major, packed[ceil(n / 2)] u8, first value in the high four bits, absmax[ceil(n / 64)] f32 or
// codes u8 + absmax2[ceil(blocks / 256)] f32 + offset. Blocks run across row ends; the last may be short. All writes are `=`.
// Codes, scales and values are bit-equal to engine/model/nf4.rs (hence IEEE division, no contraction).
//
// Budget of dequantise: 0.5 + 1/64 B in, 2 B out a value; 8 words of 8 values a thread in flight; 3 KB smem; about 6 instructions a
// value of the 6.4 that 4.3 TB/s leave an SM. Should reach 85% of copy bandwidth. Quantise runs once a model: no target.
#include "prim/nf4.cuh"
#include "prim/warp.cuh"

constexpr int THREADS = 256;
constexpr int WORDS = 8;                             // packed words (8 values each) a thread and pass: 32 B in, 128 B out
constexpr int SPAN = THREADS * WORDS;                // words of a block of threads
constexpr int VALUES_A_WORD = 8;                     // 4 bytes of codes, 16 bytes of bf16
constexpr int WORDS_A_BLOCK = NF4_BLOCK / VALUES_A_WORD;
static_assert(WORDS_A_BLOCK == 8, "lanes8_max reduces a block: eight lanes hold it");

struct DequantizeParams {
    const uint8_t* packed;
    const void* scales;    // f32 absmax, or u8 codes
    const float* absmax2;  // null: scales are f32
    bf16* out;
    uint64_t values;
    float offset;
    uint32_t reserved;
};
static_assert(sizeof(DequantizeParams) == 48, "as in src/nf4.rs");

template <bool DOUBLE> __device__ __forceinline__ float scale_of(const DequantizeParams& p, uint64_t block, const float* map) {
    if constexpr (DOUBLE) {
        const uint8_t code = static_cast<const uint8_t*>(p.scales)[block];
        return nested_scale(map[code], p.absmax2[block / NF4_NESTED], p.offset);
    } else {
        return static_cast<const float*>(p.scales)[block];
    }
}

template <bool DOUBLE> __device__ __forceinline__ void dequantize(const DequantizeParams& p) {
    // One copy of the codebook a lane: a lookup by any code has no bank conflict.
    __shared__ float table[16 * WARP];
    __shared__ float map[256];
    for (int i = threadIdx.x; i < 16 * WARP; i += THREADS) table[i] = NF4_CODEBOOK[i / WARP];
    if constexpr (DOUBLE) map[threadIdx.x] = dynamic_map(threadIdx.x);
    __syncthreads();
    const float* mine = table + lane_id();

    const uint64_t whole = p.values / VALUES_A_WORD;
    const uint64_t first = static_cast<uint64_t>(blockIdx.x) * SPAN + threadIdx.x;
    uint32_t word[WORDS];
    float scale[WORDS];
#pragma unroll
    for (int i = 0; i < WORDS; ++i) {
        const uint64_t at = first + i * THREADS;
        word[i] = at < whole ? reinterpret_cast<const uint32_t*>(p.packed)[at] : 0u;
    }
#pragma unroll
    for (int i = 0; i < WORDS; ++i) {
        const uint64_t at = first + i * THREADS;
        scale[i] = at < whole ? scale_of<DOUBLE>(p, at / WORDS_A_BLOCK, map) : 0.f;
    }
#pragma unroll
    for (int i = 0; i < WORDS; ++i) {
        const uint64_t at = first + i * THREADS;
        Vec16 out;
#pragma unroll
        for (int byte = 0; byte < 4; ++byte) {
            const float high = mine[(word[i] >> (8 * byte + 4) & 15u) * WARP], low = mine[(word[i] >> (8 * byte) & 15u) * WARP];
            out.w[byte] = pack_bf16(__fmul_rn(high, scale[i]), __fmul_rn(low, scale[i]));
        }
        if (at < whole) store16(p.out + at * VALUES_A_WORD, out);
    }
    // The last, incomplete word.
    if (blockIdx.x == 0 && threadIdx.x < p.values % VALUES_A_WORD) {
        const uint64_t at = whole * VALUES_A_WORD + threadIdx.x;
        const uint8_t byte = p.packed[at / 2];
        const float value = mine[(at % 2 == 0 ? byte >> 4 : byte & 15) * WARP];
        p.out[at] = to_bf16(__fmul_rn(value, scale_of<DOUBLE>(p, at / NF4_BLOCK, map)));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) nf4_dequantize_plain(const __grid_constant__ DequantizeParams p) { dequantize<false>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) nf4_dequantize_double(const __grid_constant__ DequantizeParams p) { dequantize<true>(p); }

struct QuantizeParams {
    const void* w;
    uint8_t* packed;
    float* absmax;
    uint64_t values;
};
static_assert(sizeof(QuantizeParams) == 32, "as in src/nf4.rs");

__device__ __forceinline__ float as_float(float v) { return v; }
__device__ __forceinline__ float as_float(bf16 v) { return to_float(v); }

// Eight values a thread, eight threads a block of 64.
template <typename T> __device__ __forceinline__ void quantize(const QuantizeParams& p) {
    const uint64_t word = static_cast<uint64_t>(blockIdx.x) * THREADS + threadIdx.x;
    const uint64_t first = word * VALUES_A_WORD;
    float x[VALUES_A_WORD];
    float largest = 0.f;
#pragma unroll
    for (int i = 0; i < VALUES_A_WORD; ++i) {
        x[i] = first + i < p.values ? as_float(static_cast<const T*>(p.w)[first + i]) : 0.f;
        largest = fmaxf(largest, fabsf(x[i]));
    }
    largest = lanes8_max(largest);
    const float unit = largest > 0.f ? largest : 1.f;
#pragma unroll
    for (int i = 0; i < VALUES_A_WORD; i += 2) {
        if (first + i >= p.values) continue;
        const uint32_t high = nf4_code(__fdiv_rn(x[i], unit));
        const uint32_t low = first + i + 1 < p.values ? nf4_code(__fdiv_rn(x[i + 1], unit)) : NF4_ZERO;
        p.packed[(first + i) / 2] = static_cast<uint8_t>(high << 4 | low);
    }
    if (word % WORDS_A_BLOCK == 0 && first < p.values) p.absmax[word / WORDS_A_BLOCK] = largest;
}

extern "C" __global__ void __launch_bounds__(THREADS) nf4_quantize_bf16(const __grid_constant__ QuantizeParams p) { quantize<bf16>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) nf4_quantize_f32(const __grid_constant__ QuantizeParams p) { quantize<float>(p); }

struct DoubleQuantizeParams {
    const float* absmax;
    uint8_t* codes;
    float* absmax2;
    uint64_t blocks;
    float offset;
    uint32_t reserved;
};
static_assert(sizeof(DoubleQuantizeParams) == 40, "as in src/nf4.rs");
static_assert(THREADS == NF4_NESTED, "a block of threads holds one nested block, and the map");

// One thread a scale; nearest entry of the map, between two the lower one.
extern "C" __global__ void __launch_bounds__(THREADS) nf4_double_quantize(const __grid_constant__ DoubleQuantizeParams p) {
    __shared__ float map[256];
    __shared__ float scratch[THREADS / WARP];
    map[threadIdx.x] = dynamic_map(threadIdx.x);
    const uint64_t at = static_cast<uint64_t>(blockIdx.x) * NF4_NESTED + threadIdx.x;
    const float centred = at < p.blocks ? __fsub_rn(p.absmax[at], p.offset) : 0.f;
    const float largest = block_max<THREADS>(fabsf(centred), scratch);
    const float x = __fdiv_rn(centred, largest > 0.f ? largest : 1.f);
    int above = 0;  // entries below x
#pragma unroll
    for (int step = 128; step > 0; step /= 2)
        if (map[above + step - 1] < x) above += step;
    const int below = above > 0 ? above - 1 : 0;
    const int code = __fsub_rn(x, map[below]) <= __fsub_rn(map[above], x) ? below : above;
    if (at < p.blocks) p.codes[at] = static_cast<uint8_t>(code);
    if (threadIdx.x == 0) p.absmax2[blockIdx.x] = largest;
}
