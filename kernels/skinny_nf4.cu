// Few-row products (decode) with NF4 weights as bitsandbytes stores them: no repacking, no bf16 copy.
//
//   y[t, n] = epilogue(sum_b absmax[n, b] sum_{k in b} x[t, k] codebook[code[n, k]] + sum_r low[t, at(n) + r] B[n, r] + bias[n])
// b runs over blocks of 64 columns (K % 64 == 0: no block crosses a row). Layouts: packed[N, K / 2] u8, scales f32 or u8 + f32 a 256 blocks
// + offset, a member of a group on its own; the rest as in skinny.cu. Sums f32; a block's product is scaled in f32 (the codebook enters the
// tensor core as bf16, see CODE_UNIT); one rounding a stored element; all writes are `=`. Method: prim/skinny.cuh.
//
// Budget, 16x8 at T = 1: 0.516 B a weight from HBM, once; a tile and block of 64 (1,024 codes) has 27 clocks of an SM at 4.3 TB/s, 39 at
// 3.0. It takes 16 clocks of table lookups and 8 of ring traffic in shared memory, about 70 instructions of its own, and its part of a
// stage's (120 / 4) and a tile's (340 / blocks a warp). 33 KB tables, 8 KB sums, 2.25 KB a warp and stage, x. Should reach 75% of copy
// bandwidth; an H100 gives 64% (1.9 of 3.0 TB/s at 4096 x 28672): sixteen warps wait for shared memory (ncu: 1.75 instructions a clock,
// a third of the stalls), and a third CTA does not fit. Next: one table and one x for three groups of eight warps in a CTA.
#include "prim/skinny.cuh"

using skinny::NF4;
using skinny::Params;

// name, tiles of 16 rows, groups of 8 tokens, x resident, stages, blocks of 64 a stage, CTAs an SM.
#define PRODUCT(name, MT, NT, RESIDENT, STAGES, DEPTH, CTAS)                                                                     \
    extern "C" __global__ void __launch_bounds__(skinny::THREADS, CTAS) name(const __grid_constant__ Params p) { \
        skinny::product<NF4, MT, NT, RESIDENT, STAGES, DEPTH>(p);                                                                \
    }
PRODUCT(skinny_nf4_resident_16x8, 1, 1, true, 3, 4, 2)
PRODUCT(skinny_nf4_resident_32x8, 2, 1, true, 3, 4, 1)
PRODUCT(skinny_nf4_resident_16x16, 1, 2, true, 3, 4, 1)
PRODUCT(skinny_nf4_stream_16x8, 1, 1, false, 3, 4, 2)
PRODUCT(skinny_nf4_small_16x8, 1, 1, false, 4, 1, 1)  // for SMs with 100 KB of shared memory, and for K % 256 != 0
PRODUCT(skinny_nf4_stream_16x16, 1, 2, false, 4, 2, 1)
PRODUCT(skinny_nf4_stream_32x8, 2, 1, false, 2, 4, 1)
PRODUCT(skinny_nf4_stream_32x16, 2, 2, false, 3, 2, 1)
PRODUCT(skinny_nf4_stream_32x32, 2, 4, false, 4, 1, 1)
