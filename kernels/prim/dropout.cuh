// Dropout masks as bits, as dropout.cu draws them and products read them: word (row, b) holds what is kept of a row's columns 32 b .. 32 b + 31.
// Bit 16 h + 4 q + j is column 32 b + 8 j + 2 q + h: a lane q = lane % 4 of an mma fragment finds its eight elements (j = 0 .. 3, h = 0, 1) by a
// shift of 4 q, those of a pair at bits j and 16 + j.
#pragma once
#include <stdint.h>

constexpr uint32_t MASK_BLOCK = 32;  // columns of a word

struct Masks {
    const uint32_t* kept;  // [planes, rows, stride]: a plane for each adapted member
    uint32_t stride;       // words of a row, a multiple of 8
    uint32_t rows;

    // The words of a row from `column` on, a multiple of 32. Rows past the end give the last one's.
    __device__ __forceinline__ const uint32_t* at(uint32_t plane, uint32_t row, uint32_t column) const {
        return kept + ((uint64_t)plane * rows + (row < rows ? row : rows - 1)) * stride + column / MASK_BLOCK;
    }
};

// Bits j and 16 + j as a mask over a packed pair of bf16.
__device__ __forceinline__ uint32_t pair_mask(uint32_t bits, int j) {
    uint32_t mask;
    asm("prmt.b32 %0, %1, 0, 0xaa88;" : "=r"(mask) : "r"(bits << (7 - j)));  // the signs of bytes 0 and 2, each over two bytes
    return mask;
}
// d += x * scale if a bit of `flag` is set in `bits`; in place (a select took a second register for each d).
__device__ __forceinline__ void add_if_kept(float& d, uint32_t bits, uint32_t flag, float x, float scale) {
    asm volatile("{\n.reg .pred kept;\nsetp.ne.u32 kept, %1, 0;\n@kept fma.rn.f32 %0, %2, %3, %0;\n}"
                 : "+f"(d) : "r"(bits & flag), "f"(x), "f"(scale));
}
