// Words of a thread block cluster (sm_90 and up): rank, barrier, reading a peer's shared memory.
#pragma once
#include <stdint.h>

// All threads of all blocks arrive, then wait; what was written before the arrival is seen after the wait.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// The value that block `rank` of the cluster holds where this block holds `own`.
__device__ __forceinline__ float load_peer(const float* own, uint32_t rank) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(own));
    uint32_t peer;
    float value;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(peer) : "r"(address), "r"(rank));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(peer) : "memory");
    return value;
}
