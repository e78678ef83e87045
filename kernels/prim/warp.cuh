// Reductions over a warp and a block, in a fixed tree: the result does not depend on timing.
#pragma once
#include <stdint.h>

constexpr int WARP = 32;

__device__ __forceinline__ int lane_id() { return threadIdx.x & (WARP - 1); }
__device__ __forceinline__ int warp_id() { return threadIdx.x / WARP; }

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int d = WARP / 2; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int d = WARP / 2; d > 0; d /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, d));
    return v;
}

// The value that another lane holds.
__device__ __forceinline__ float from_lane(float v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }

// Sum over the block in every thread; `scratch` holds THREADS / 32 floats of shared memory. Contains two barriers.
template <int THREADS> __device__ __forceinline__ float block_sum(float v, float* scratch) {
    v = warp_sum(v);
    if (lane_id() == 0) scratch[warp_id()] = v;
    __syncthreads();
    float total = 0.f;
#pragma unroll
    for (int w = 0; w < THREADS / WARP; ++w) total += scratch[w];
    __syncthreads();
    return total;
}
template <int THREADS> __device__ __forceinline__ float block_max(float v, float* scratch) {
    v = warp_max(v);
    if (lane_id() == 0) scratch[warp_id()] = v;
    __syncthreads();
    float top = scratch[0];
#pragma unroll
    for (int w = 1; w < THREADS / WARP; ++w) top = fmaxf(top, scratch[w]);
    __syncthreads();
    return top;
}

// Sum over the warp in f64.
__device__ __forceinline__ double warp_sum(double v) {
#pragma unroll
    for (int d = WARP / 2; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}
// Sum over the block in f64, in every thread; `scratch` holds THREADS / 32 values. Contains two barriers.
template <int THREADS> __device__ __forceinline__ double block_sum(double v, double* scratch) {
    v = warp_sum(v);
    if (lane_id() == 0) scratch[warp_id()] = v;
    __syncthreads();
    double total = 0;
#pragma unroll
    for (int w = 0; w < THREADS / WARP; ++w) total += scratch[w];
    __syncthreads();
    return total;
}
// The value of another lane of the warp, `distance` in the butterfly.
template <typename T> __device__ __forceinline__ T warp_xor(T v, int distance) { return __shfl_xor_sync(0xffffffffu, v, distance); }
// Waits for the warp's lanes and their shared-memory writes.
__device__ __forceinline__ void warp_barrier() { __syncwarp(); }
// Another lane's value.
template <typename T> __device__ __forceinline__ T from_lane(T v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
// Largest of each aligned group of eight lanes, in all of them.
__device__ __forceinline__ float lanes8_max(float v) {
#pragma unroll
    for (int d = 4; d > 0; d /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, d));
    return v;
}
