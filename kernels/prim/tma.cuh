// The bulk tensor copy engine (TMA, sm_90): boxes of row-major matrices between global and shared memory.
#pragma once
#include <stdint.h>

// CUtensorMap, encoded by the host and passed as a __grid_constant__ parameter.
struct alignas(64) TensorMap { uint64_t opaque[16]; };

__device__ __forceinline__ void tma_prefetch_map(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
// The box whose first element is (row, column), to shared memory; its bytes count at `barrier`. Outside the matrix it is zero.
__device__ __forceinline__ void tma_load(uint32_t to, const TensorMap& map, int column, int row, uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                 ::"r"(to), "l"(&map), "r"(column), "r"(row), "r"(barrier) : "memory");
}
// The same to each block of the cluster in `blocks` (a bit a block), at the same place, each counting at its own barrier.
__device__ __forceinline__ void tma_load_multicast(uint32_t to, const TensorMap& map, int column, int row, uint32_t barrier, uint16_t blocks) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
                 " [%0], [%1, {%2, %3}], [%4], %5;"
                 ::"r"(to), "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(blocks) : "memory");
}
// The box to L2 alone.
__device__ __forceinline__ void tma_prefetch(const TensorMap& map, int column, int row) {
    asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(&map), "r"(column), "r"(row) : "memory");
}
// A box from shared memory; what lies outside the matrix is not written.
__device__ __forceinline__ void tma_store(const TensorMap& map, int column, int row, uint32_t from) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];"
                 ::"l"(&map), "r"(column), "r"(row), "r"(from) : "memory");
}
__device__ __forceinline__ void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until at most N of this thread's latest store groups still read shared memory.
template <int N> __device__ __forceinline__ void tma_store_wait_read() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory"); }
// Until at most N of them are not yet written.
template <int N> __device__ __forceinline__ void tma_store_wait() { asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory"); }
// Each thread that wrote shared memory, before a barrier behind which the copy engine or wgmma reads it.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
