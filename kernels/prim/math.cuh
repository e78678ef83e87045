// Transcendental words with stated errors.
#pragma once
#include <stdint.h>

constexpr float LOG2_E = 1.44269504088896341f;
constexpr float LN_2 = 0.69314718055994531f;

// 2^x by the special function unit, 2 ulp; results below the normal range are 0.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// 1 / x, 1 ulp; 1 / inf = 0.
__device__ __forceinline__ float reciprocal(float x) {
    float y;
    asm("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// 1 / (1 + e^-x): relative error below 4e-7 (expf 2 ulp, the sum 1/2, the reciprocal 1), 0 below x = -88.
__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.f + expf(-x)); }

// e^x for x <= 0, rounded to the nearest f32 as a good libm does where it counts: above -18 in f64 (a Taylor polynomial whose next term is
// 8e-12), below by expf; both are computed, so that calls overlap. Token probabilities made from it differ from the CPU's only where a correctly rounded result differs from libm's.
__device__ __forceinline__ float exp_nearest(float x) {
    const float near = fmaxf(x, -18.f), n = rintf(near * LOG2_E), far = expf(x);
    const double r = fma((double)n, -0.69314718055994530942, (double)near);
    double p = 1.0 / 362880.0;
    p = fma(p, r, 1.0 / 40320.0);
    p = fma(p, r, 1.0 / 5040.0);
    p = fma(p, r, 1.0 / 720.0);
    p = fma(p, r, 1.0 / 120.0);
    p = fma(p, r, 1.0 / 24.0);
    p = fma(p, r, 1.0 / 6.0);
    p = fma(p, r, 0.5);
    p = fma(p, r, 1.0);
    p = fma(p, r, 1.0);
    // n lies in [-26, 0]: the factor is a normal number and the product exact.
    const float nearest = __double2float_rn(p) * __uint_as_float((uint32_t)(127 + (int)n) << 23);
    return x > -18.f ? nearest : far;
}
