// NF4 (QLoRA, arXiv:2305.14314, appendix E) in bitsandbytes' layout: the tables, and a block's scale with their rounding.
#pragma once
#include "types.cuh"

constexpr int NF4_BLOCK = 64;    // values that share one scale
constexpr int NF4_NESTED = 256;  // scales that share one nested scale
constexpr int NF4_ZERO = 7;      // code of 0, which pads an odd count

#define NF4_VALUES                                                                                                                        \
    {-1.0f, -0.6961928f, -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f, -0.091050036f, 0.0f, 0.0795803f, 0.1609302f, 0.2461123f, \
     0.33791524f, 0.44070983f, 0.562617f, 0.72295684f, 1.0f}

// The sixteen values of a code.
__constant__ const float NF4_CODEBOOK[16] = NF4_VALUES;

// Number of midpoints between neighbours of the codebook that lie below x.
__device__ __forceinline__ uint32_t nf4_code(float x) {
    constexpr float values[16] = NF4_VALUES;
    uint32_t code = 0;
#pragma unroll
    for (int i = 0; i < 15; ++i) {
        const float middle = static_cast<float>((static_cast<double>(values[i]) + static_cast<double>(values[i + 1])) / 2.0);
        code += middle < x ? 1u : 0u;
    }
    return code;
}

// Positive entries of the signed dynamic map (arXiv:2110.02861, section 2.1), ascending, bit-equal to
// `bitsandbytes.functional.create_dynamic_map()`: 1, 2, 4, ... 64 cell centres in seven decades.
__device__ const float DYNAMIC_MAGNITUDES[127] = {
    5.5000004e-07f, 3.2500002e-06f, 7.750000e-06f, 2.1249998e-05f, 4.375000e-05f, 6.625000e-05f, 8.875000e-05f, 1.5625001e-04f,
    2.6875004e-04f, 3.8125002e-04f, 4.9375003e-04f, 6.062501e-04f, 7.1875006e-04f, 8.312500e-04f, 9.437501e-04f, 1.2812499e-03f,
    1.843750e-03f, 2.406250e-03f, 2.968750e-03f, 3.5312497e-03f, 4.093750e-03f, 4.6562497e-03f, 5.2187503e-03f, 5.781250e-03f,
    6.343750e-03f, 6.906250e-03f, 7.468750e-03f, 8.031250e-03f, 8.593750e-03f, 9.156249e-03f, 9.718750e-03f, 1.140625e-02f,
    1.421875e-02f, 1.703125e-02f, 1.9843752e-02f, 2.265625e-02f, 2.546875e-02f, 2.8281251e-02f, 3.109375e-02f, 3.390625e-02f,
    3.6718752e-02f, 3.953125e-02f, 4.2343747e-02f, 4.515625e-02f, 4.796875e-02f, 5.078125e-02f, 5.359375e-02f, 5.640625e-02f,
    5.9218753e-02f, 6.203125e-02f, 6.484375e-02f, 6.7656256e-02f, 7.0468746e-02f, 7.328125e-02f, 7.609375e-02f, 7.890625e-02f,
    8.171876e-02f, 8.453125e-02f, 8.734375e-02f, 9.015625e-02f, 9.2968754e-02f, 9.578126e-02f, 9.859375e-02f, 1.07031256e-01f,
    1.2109375e-01f, 1.3515624e-01f, 1.4921875e-01f, 1.6328125e-01f, 1.7734376e-01f, 1.9140625e-01f, 2.0546874e-01f, 2.1953125e-01f,
    2.3359375e-01f, 2.4765624e-01f, 2.6171875e-01f, 2.7578127e-01f, 2.8984374e-01f, 3.0390626e-01f, 3.1796873e-01f, 3.3203125e-01f,
    3.4609374e-01f, 3.6015624e-01f, 3.7421876e-01f, 3.8828123e-01f, 4.0234375e-01f, 4.1640624e-01f, 4.3046874e-01f, 4.4453126e-01f,
    4.5859373e-01f, 4.7265625e-01f, 4.867187e-01f, 5.0078124e-01f, 5.148437e-01f, 5.289062e-01f, 5.4296875e-01f, 5.570313e-01f,
    5.710938e-01f, 5.8515626e-01f, 5.992187e-01f, 6.1328125e-01f, 6.273438e-01f, 6.414063e-01f, 6.5546876e-01f, 6.695312e-01f,
    6.8359375e-01f, 6.976563e-01f, 7.117188e-01f, 7.2578126e-01f, 7.398437e-01f, 7.5390625e-01f, 7.679688e-01f, 7.8203124e-01f,
    7.9609376e-01f, 8.101562e-01f, 8.2421875e-01f, 8.382813e-01f, 8.5234374e-01f, 8.6640626e-01f, 8.804687e-01f, 8.9453125e-01f,
    9.085938e-01f, 9.2265624e-01f, 9.3671876e-01f, 9.507812e-01f, 9.6484375e-01f, 9.789063e-01f, 9.9296874e-01f,
};

// Entry 0..255 of the map, which ascends from -0.993 through 0 at 127 to 1 at 255.
__device__ __forceinline__ float dynamic_map(int entry) {
    if (entry == 255) return 1.f;
    if (entry == 127) return 0.f;
    return entry > 127 ? DYNAMIC_MAGNITUDES[entry - 128] : -DYNAMIC_MAGNITUDES[126 - entry];
}

// Scale of a block under double quantisation: two roundings, as PyTorch has it (a fused multiply-add differs in the last bit).
__device__ __forceinline__ float nested_scale(float map_value, float absmax2, float offset) {
    return __fadd_rn(__fmul_rn(map_value, absmax2), offset);
}
