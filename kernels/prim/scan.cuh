// Integer prefix sums over a block: order does not matter to their result, so they are exact and repeatable.
#pragma once
#include "warp.cuh"

template <typename T> __device__ __forceinline__ T warp_scan(T v) {
#pragma unroll
    for (int d = 1; d < WARP; d *= 2) {
        const T below = __shfl_up_sync(0xffffffffu, v, d);
        if (lane_id() >= d) v += below;
    }
    return v;
}

// Sum over this and all lower threads; `scratch` holds THREADS / 32 values. `total` is the sum of all. Contains two barriers.
template <int THREADS, typename T> __device__ __forceinline__ T block_scan(T v, T* scratch, T& total) {
    const T own = warp_scan(v);
    if (lane_id() == WARP - 1) scratch[warp_id()] = own;
    __syncthreads();
    T below = 0, all = 0;
#pragma unroll
    for (int w = 0; w < THREADS / WARP; ++w) {
        if (w == warp_id()) below = all;
        all += scratch[w];
    }
    __syncthreads();
    total = all;
    return own + below;
}
