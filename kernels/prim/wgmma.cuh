// Warpgroup matrix products (wgmma, sm_90a): d[64 x N] += a[64 x 16] b[16 x N], bf16 from shared memory, f32 in registers.
//
// Operands lie in shared memory as the copy engine leaves 64-column boxes under the 128-byte swizzle, 1024-byte aligned.
// Accumulator of thread (warp w, g = lane / 4, q = lane % 4): d[4 j + 2 r + h] is row 16 w + g + 8 r, column 8 j + 2 q + h.
#pragma once
#include "mma.cuh"

// Descriptor, low word: start address, and the leading byte offset for B_N_MAJOR: from one 64-column box to the next.
// K-major (rows of 64 k): the next 16 k lie 32 bytes on. N-major (rows of 64 n): 16 rows of 128 bytes on.
constexpr uint32_t WGMMA_K16 = 32 >> 4, WGMMA_K16_N_MAJOR = (16 * 128) >> 4;
// High word: stride byte offset 1024 (from one group of eight 128-byte rows to the next), swizzle mode 1 (128 bytes) in bits 62-63.
constexpr uint32_t WGMMA_HIGH = (1024 >> 4) | (1u << 30);

// The field has 14 bits; above an address's 18 stands the block's rank in its cluster, which must not reach the leading offset.
__device__ __forceinline__ uint32_t wgmma_low(uint32_t address, uint32_t leading = 16) {
    return ((address & 0x3ffff) >> 4) | ((leading >> 4) << 16);
}
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t low) { return ((uint64_t)WGMMA_HIGH << 32) | low; }

// Before the first product, and after the accumulators were touched by anything else.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most N of the latest groups are under way.
template <int N> __device__ __forceinline__ void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
// Keeps the compiler from moving uses of the accumulators across this point.
template <int S> __device__ __forceinline__ void wgmma_pin(float (&d)[S]) {
#pragma unroll
    for (int i = 0; i < S; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// d[FIRST ..] = (keep ? d : 0) + a b. B_N_MAJOR: b is stored [k][n], else [n][k].
template <int FIRST, bool B_N_MAJOR, int S> __device__ __forceinline__ void wgmma_n256(float (&d)[S], uint32_t a, uint32_t b, uint32_t keep) {
    static_assert(FIRST + 128 <= S, "the accumulators hold 256 columns from FIRST on");
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
                 "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
                 "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"
                 "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"
                 "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"
                 "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,"
                 "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}, "
                 "%128, %129, p, 1, 1, 0, %131;\n}"
                 : "+f"(d[FIRST + 0]), "+f"(d[FIRST + 1]), "+f"(d[FIRST + 2]), "+f"(d[FIRST + 3]), "+f"(d[FIRST + 4]), "+f"(d[FIRST + 5]), "+f"(d[FIRST + 6]), "+f"(d[FIRST + 7]),
                   "+f"(d[FIRST + 8]), "+f"(d[FIRST + 9]), "+f"(d[FIRST + 10]), "+f"(d[FIRST + 11]), "+f"(d[FIRST + 12]), "+f"(d[FIRST + 13]), "+f"(d[FIRST + 14]), "+f"(d[FIRST + 15]),
                   "+f"(d[FIRST + 16]), "+f"(d[FIRST + 17]), "+f"(d[FIRST + 18]), "+f"(d[FIRST + 19]), "+f"(d[FIRST + 20]), "+f"(d[FIRST + 21]), "+f"(d[FIRST + 22]), "+f"(d[FIRST + 23]),
                   "+f"(d[FIRST + 24]), "+f"(d[FIRST + 25]), "+f"(d[FIRST + 26]), "+f"(d[FIRST + 27]), "+f"(d[FIRST + 28]), "+f"(d[FIRST + 29]), "+f"(d[FIRST + 30]), "+f"(d[FIRST + 31]),
                   "+f"(d[FIRST + 32]), "+f"(d[FIRST + 33]), "+f"(d[FIRST + 34]), "+f"(d[FIRST + 35]), "+f"(d[FIRST + 36]), "+f"(d[FIRST + 37]), "+f"(d[FIRST + 38]), "+f"(d[FIRST + 39]),
                   "+f"(d[FIRST + 40]), "+f"(d[FIRST + 41]), "+f"(d[FIRST + 42]), "+f"(d[FIRST + 43]), "+f"(d[FIRST + 44]), "+f"(d[FIRST + 45]), "+f"(d[FIRST + 46]), "+f"(d[FIRST + 47]),
                   "+f"(d[FIRST + 48]), "+f"(d[FIRST + 49]), "+f"(d[FIRST + 50]), "+f"(d[FIRST + 51]), "+f"(d[FIRST + 52]), "+f"(d[FIRST + 53]), "+f"(d[FIRST + 54]), "+f"(d[FIRST + 55]),
                   "+f"(d[FIRST + 56]), "+f"(d[FIRST + 57]), "+f"(d[FIRST + 58]), "+f"(d[FIRST + 59]), "+f"(d[FIRST + 60]), "+f"(d[FIRST + 61]), "+f"(d[FIRST + 62]), "+f"(d[FIRST + 63]),
                   "+f"(d[FIRST + 64]), "+f"(d[FIRST + 65]), "+f"(d[FIRST + 66]), "+f"(d[FIRST + 67]), "+f"(d[FIRST + 68]), "+f"(d[FIRST + 69]), "+f"(d[FIRST + 70]), "+f"(d[FIRST + 71]),
                   "+f"(d[FIRST + 72]), "+f"(d[FIRST + 73]), "+f"(d[FIRST + 74]), "+f"(d[FIRST + 75]), "+f"(d[FIRST + 76]), "+f"(d[FIRST + 77]), "+f"(d[FIRST + 78]), "+f"(d[FIRST + 79]),
                   "+f"(d[FIRST + 80]), "+f"(d[FIRST + 81]), "+f"(d[FIRST + 82]), "+f"(d[FIRST + 83]), "+f"(d[FIRST + 84]), "+f"(d[FIRST + 85]), "+f"(d[FIRST + 86]), "+f"(d[FIRST + 87]),
                   "+f"(d[FIRST + 88]), "+f"(d[FIRST + 89]), "+f"(d[FIRST + 90]), "+f"(d[FIRST + 91]), "+f"(d[FIRST + 92]), "+f"(d[FIRST + 93]), "+f"(d[FIRST + 94]), "+f"(d[FIRST + 95]),
                   "+f"(d[FIRST + 96]), "+f"(d[FIRST + 97]), "+f"(d[FIRST + 98]), "+f"(d[FIRST + 99]), "+f"(d[FIRST + 100]), "+f"(d[FIRST + 101]), "+f"(d[FIRST + 102]), "+f"(d[FIRST + 103]),
                   "+f"(d[FIRST + 104]), "+f"(d[FIRST + 105]), "+f"(d[FIRST + 106]), "+f"(d[FIRST + 107]), "+f"(d[FIRST + 108]), "+f"(d[FIRST + 109]), "+f"(d[FIRST + 110]), "+f"(d[FIRST + 111]),
                   "+f"(d[FIRST + 112]), "+f"(d[FIRST + 113]), "+f"(d[FIRST + 114]), "+f"(d[FIRST + 115]), "+f"(d[FIRST + 116]), "+f"(d[FIRST + 117]), "+f"(d[FIRST + 118]), "+f"(d[FIRST + 119]),
                   "+f"(d[FIRST + 120]), "+f"(d[FIRST + 121]), "+f"(d[FIRST + 122]), "+f"(d[FIRST + 123]), "+f"(d[FIRST + 124]), "+f"(d[FIRST + 125]), "+f"(d[FIRST + 126]), "+f"(d[FIRST + 127])
                 : "l"(wgmma_descriptor(a)), "l"(wgmma_descriptor(b)), "r"(keep), "n"(B_N_MAJOR ? 1 : 0));
}
template <int FIRST, bool B_N_MAJOR, int S> __device__ __forceinline__ void wgmma_n64(float (&d)[S], uint32_t a, uint32_t b, uint32_t keep) {
    static_assert(FIRST + 32 <= S, "the accumulators hold 64 columns from FIRST on");
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
                 "%32, %33, p, 1, 1, 0, %35;\n}"
                 : "+f"(d[FIRST + 0]), "+f"(d[FIRST + 1]), "+f"(d[FIRST + 2]), "+f"(d[FIRST + 3]), "+f"(d[FIRST + 4]), "+f"(d[FIRST + 5]), "+f"(d[FIRST + 6]), "+f"(d[FIRST + 7]),
                   "+f"(d[FIRST + 8]), "+f"(d[FIRST + 9]), "+f"(d[FIRST + 10]), "+f"(d[FIRST + 11]), "+f"(d[FIRST + 12]), "+f"(d[FIRST + 13]), "+f"(d[FIRST + 14]), "+f"(d[FIRST + 15]),
                   "+f"(d[FIRST + 16]), "+f"(d[FIRST + 17]), "+f"(d[FIRST + 18]), "+f"(d[FIRST + 19]), "+f"(d[FIRST + 20]), "+f"(d[FIRST + 21]), "+f"(d[FIRST + 22]), "+f"(d[FIRST + 23]),
                   "+f"(d[FIRST + 24]), "+f"(d[FIRST + 25]), "+f"(d[FIRST + 26]), "+f"(d[FIRST + 27]), "+f"(d[FIRST + 28]), "+f"(d[FIRST + 29]), "+f"(d[FIRST + 30]), "+f"(d[FIRST + 31])
                 : "l"(wgmma_descriptor(a)), "l"(wgmma_descriptor(b)), "r"(keep), "n"(B_N_MAJOR ? 1 : 0));
}
template <int FIRST, bool B_N_MAJOR, int S> __device__ __forceinline__ void wgmma_n128(float (&d)[S], uint32_t a, uint32_t b, uint32_t keep) {
    static_assert(FIRST + 64 <= S, "the accumulators hold 128 columns from FIRST on");
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
                 "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
                 "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
                 "%64, %65, p, 1, 1, 0, %67;\n}"
                 : "+f"(d[FIRST + 0]), "+f"(d[FIRST + 1]), "+f"(d[FIRST + 2]), "+f"(d[FIRST + 3]), "+f"(d[FIRST + 4]), "+f"(d[FIRST + 5]), "+f"(d[FIRST + 6]), "+f"(d[FIRST + 7]),
                   "+f"(d[FIRST + 8]), "+f"(d[FIRST + 9]), "+f"(d[FIRST + 10]), "+f"(d[FIRST + 11]), "+f"(d[FIRST + 12]), "+f"(d[FIRST + 13]), "+f"(d[FIRST + 14]), "+f"(d[FIRST + 15]),
                   "+f"(d[FIRST + 16]), "+f"(d[FIRST + 17]), "+f"(d[FIRST + 18]), "+f"(d[FIRST + 19]), "+f"(d[FIRST + 20]), "+f"(d[FIRST + 21]), "+f"(d[FIRST + 22]), "+f"(d[FIRST + 23]),
                   "+f"(d[FIRST + 24]), "+f"(d[FIRST + 25]), "+f"(d[FIRST + 26]), "+f"(d[FIRST + 27]), "+f"(d[FIRST + 28]), "+f"(d[FIRST + 29]), "+f"(d[FIRST + 30]), "+f"(d[FIRST + 31]),
                   "+f"(d[FIRST + 32]), "+f"(d[FIRST + 33]), "+f"(d[FIRST + 34]), "+f"(d[FIRST + 35]), "+f"(d[FIRST + 36]), "+f"(d[FIRST + 37]), "+f"(d[FIRST + 38]), "+f"(d[FIRST + 39]),
                   "+f"(d[FIRST + 40]), "+f"(d[FIRST + 41]), "+f"(d[FIRST + 42]), "+f"(d[FIRST + 43]), "+f"(d[FIRST + 44]), "+f"(d[FIRST + 45]), "+f"(d[FIRST + 46]), "+f"(d[FIRST + 47]),
                   "+f"(d[FIRST + 48]), "+f"(d[FIRST + 49]), "+f"(d[FIRST + 50]), "+f"(d[FIRST + 51]), "+f"(d[FIRST + 52]), "+f"(d[FIRST + 53]), "+f"(d[FIRST + 54]), "+f"(d[FIRST + 55]),
                   "+f"(d[FIRST + 56]), "+f"(d[FIRST + 57]), "+f"(d[FIRST + 58]), "+f"(d[FIRST + 59]), "+f"(d[FIRST + 60]), "+f"(d[FIRST + 61]), "+f"(d[FIRST + 62]), "+f"(d[FIRST + 63])
                 : "l"(wgmma_descriptor(a)), "l"(wgmma_descriptor(b)), "r"(keep), "n"(B_N_MAJOR ? 1 : 0));
}
