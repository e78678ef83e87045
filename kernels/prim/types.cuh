// Element types, 16-byte loads and stores, conversions.
#pragma once
#include <cuda_bf16.h>
#include <stdint.h>

using bf16 = __nv_bfloat16;

// 16 bytes: eight bf16 or four f32.
struct alignas(16) Vec16 { uint32_t w[4]; };

__device__ __forceinline__ Vec16 load16(const void* p) { return *reinterpret_cast<const Vec16*>(p); }
__device__ __forceinline__ void store16(void* p, const Vec16& v) { *reinterpret_cast<Vec16*>(p) = v; }

// Two f32 to a packed pair of bf16, round to nearest even; `low` is the element at the lower address.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t*>(&v);
}
// A packed pair of bf16 to two f32 (exact).
__device__ __forceinline__ float2 unpack_bf16(uint32_t v) {
    return make_float2(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u));
}
__device__ __forceinline__ float to_float(bf16 v) { return __bfloat162float(v); }
__device__ __forceinline__ bf16 to_bf16(float v) { return __float2bfloat16_rn(v); }

template <typename T> __host__ __device__ constexpr T div_up(T a, T b) { return (a + b - 1) / b; }

// 8 bytes: four bf16 or two f32.
__device__ __forceinline__ uint2 load8(const void* p) { return *reinterpret_cast<const uint2*>(p); }

// The same value, of which the compiler knows nothing: it stays in its register instead of being computed anew at each use.
__device__ __forceinline__ uint32_t opaque(uint32_t v) {
    asm("mov.b32 %0, %0;" : "+r"(v));
    return v;
}

// 16 bytes of shared memory if `there`, else what `v` holds; without a branch.
__device__ __forceinline__ void load_shared16_if(Vec16& v, uint32_t address, bool there) {
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %5, 0; @p ld.shared.v4.b32 {%0, %1, %2, %3}, [%4]; }"
                 : "+r"(v.w[0]), "+r"(v.w[1]), "+r"(v.w[2]), "+r"(v.w[3]) : "r"(address), "r"(static_cast<uint32_t>(there)) : "memory");
}
