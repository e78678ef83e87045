// Copies from global to shared memory that do not pass registers (sm_80 and up).
#pragma once
#include <stdint.h>

// 16 bytes; `bytes` (0 to 16) of them are read, the rest are written as zero. The address must be valid even when bytes is 0.
__device__ __forceinline__ void cp_async16(uint32_t to, const void* from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N of the latest groups are under way.
template <int N> __device__ __forceinline__ void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }
// 16 bytes of a stream that is read once, in order: the L2 fetches the 256 bytes around them.
__device__ __forceinline__ void cp_async16_stream(uint32_t to, const void* from, int bytes) {
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
// 4 bytes, or zero if `bytes` is 0. The address must be valid even then.
__device__ __forceinline__ void cp_async4(uint32_t to, const void* from, int bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
