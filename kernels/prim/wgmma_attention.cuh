// Tensor-core words of Hopper (sm_90a): wgmma with bf16 operands and f32 accumulators, for tiles whose rows are 128 bytes in shared memory,
// swizzled over 128 bytes by the copy engine, 1,024-byte aligned.
//
// An accumulator of 64 rows x N columns is float[N / 2] a thread: with g = lane / 4, q = lane % 4 and warp w of the warpgroup,
// d[4 b + 2 h + e] is row 16 w + g + 8 h, column 8 b + 2 q + e. Eight values 8 k .. 8 k + 7 are the A operand of columns 16 k .. 16 k + 15.
#pragma once
#include "wgmma.cuh"

namespace flash {

// Descriptor of an operand whose reduction runs along the 128-byte rows (K-major): 8-row groups lie 1,024 bytes apart. 16 elements of the
// reduction are +32 bytes; the next 64 of them lie in the next box.
__device__ __forceinline__ uint64_t along_rows(uint32_t address) {
    return (uint64_t(1) << 62) | (uint64_t(1024 >> 4) << 32) | (uint64_t(1) << 16) | ((address >> 4) & 0x3fff);
}
// The same tile with the reduction across its rows (N-major): 64-column boxes lie `box` bytes apart. 16 elements of the reduction are +2,048 bytes.
__device__ __forceinline__ uint64_t across_rows(uint32_t address, uint32_t box) {
    return (uint64_t(1) << 62) | (uint64_t(1024 >> 4) << 32) | (uint64_t(box >> 4) << 16) | ((address >> 4) & 0x3fff);
}
__device__ __forceinline__ uint64_t advance(uint64_t descriptor, int bytes) { return descriptor + (bytes >> 4); }

// Keeps the compiler from moving uses of registers that a wgmma reads or writes across this line.
template <int N> __device__ __forceinline__ void hold(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int N, int M> __device__ __forceinline__ void hold(uint32_t (&a)[N][M]) {
#pragma unroll
    for (int i = 0; i < N; ++i)
#pragma unroll
        for (int j = 0; j < M; ++j) asm volatile("" : "+r"(a[i][j])::"memory");
}

#define FLASH_D8(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define FLASH_D32(d) FLASH_D8(d, 0), FLASH_D8(d, 8), FLASH_D8(d, 16), FLASH_D8(d, 24)
#define FLASH_D64(d) FLASH_D32(d), FLASH_D8(d, 32), FLASH_D8(d, 40), FLASH_D8(d, 48), FLASH_D8(d, 56)
#define FLASH_N32                                                                                                                              \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define FLASH_N64                                                                                                                              \
    FLASH_N32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

// d[64 x 64] = (accumulate ? d : 0) + a[64 x 16] b[64 x 16]^T, both along rows.
__device__ __forceinline__ void wgmma_abt(float (&d)[32], uint64_t a, uint64_t b, int accumulate) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" FLASH_N32 "}, %32, %33, p, 1, 1, 0, 0;\n}"
                 : FLASH_D32(d) : "l"(a), "l"(b), "r"(accumulate) : "memory");
}
// d[64 x 128] = (accumulate ? d : 0) + a[64 x 16] b[128 x 16]^T, both along rows.
__device__ __forceinline__ void wgmma_abt(float (&d)[64], uint64_t a, uint64_t b, int accumulate) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" FLASH_N64 "}, %64, %65, p, 1, 1, 0, 0;\n}"
                 : FLASH_D64(d) : "l"(a), "l"(b), "r"(accumulate) : "memory");
}
// d[64 x 64] = (accumulate ? d : 0) + a[64 x 16] b[16 x 64], a in registers, b across rows.
__device__ __forceinline__ void wgmma_ab(float (&d)[32], const uint32_t (&a)[4], uint64_t b, int accumulate) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" FLASH_N32 "}, {%32,%33,%34,%35}, %36, p, 1, 1, 1;\n}"
                 : FLASH_D32(d) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate) : "memory");
}
// d[64 x 128] = (accumulate ? d : 0) + a[64 x 16] b[16 x 128], a in registers, b across rows.
__device__ __forceinline__ void wgmma_ab(float (&d)[64], const uint32_t (&a)[4], uint64_t b, int accumulate) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" FLASH_N64 "}, {%64,%65,%66,%67}, %68, p, 1, 1, 1;\n}"
                 : FLASH_D64(d) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate) : "memory");
}

#undef FLASH_D8
#undef FLASH_D32
#undef FLASH_D64
#undef FLASH_N32
#undef FLASH_N64

// d = a b^T over DIM columns: a 64 rows at `a` in boxes of `a_box` bytes, b N rows at `b` in boxes of `b_box` bytes. Issued, not waited for.
template <int DIM, int REGS> __device__ __forceinline__ void issue_abt(float (&d)[REGS], uint32_t a, uint32_t a_box, uint32_t b, uint32_t b_box) {
#pragma unroll
    for (int k = 0; k < DIM / 16; ++k)
        wgmma_abt(d, along_rows(a + k / 4 * a_box + k % 4 * 32), along_rows(b + k / 4 * b_box + k % 4 * 32), k > 0);
}
// d += a b: a 64 x 16 STEPS in registers, b 16 STEPS rows at `b` in boxes of `box` bytes. Issued, not waited for.
template <int REGS, int STEPS> __device__ __forceinline__ void issue_ab(float (&d)[REGS], const uint32_t (&a)[STEPS][4], uint32_t b, uint32_t box, int accumulate) {
#pragma unroll
    for (int k = 0; k < STEPS; ++k) wgmma_ab(d, a[k], across_rows(b + k * 2048, box), k > 0 || accumulate);
}

// Accumulator values as the bf16 A operand of the next product.
template <int REGS> __device__ __forceinline__ void to_operand(const float (&d)[REGS], uint32_t (&a)[REGS / 8][4]) {
#pragma unroll
    for (int k = 0; k < REGS / 8; ++k)
#pragma unroll
        for (int j = 0; j < 4; ++j) a[k][j] = pack_bf16(d[8 * k + 2 * j], d[8 * k + 2 * j + 1]);
}

}  // namespace flash
