// Philox4x32-10 (Random123, SC 2011): the same bits as engine/model/philox.rs.
#pragma once
#include <stdint.h>

struct Philox { uint32_t w[4]; };

__device__ __forceinline__ Philox philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint32_t h0 = __umulhi(0xD2511F53u, c0), l0 = 0xD2511F53u * c0;
        const uint32_t h1 = __umulhi(0xCD9E8D57u, c2), l1 = 0xCD9E8D57u * c2;
        c0 = h1 ^ c1 ^ k0; c1 = l1; c2 = h0 ^ c3 ^ k1; c3 = l0;
        k0 += 0x9E3779B9u; k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// What tells a pass of a step from the others; in device memory, so that a graph can be replayed for another one.
struct StepState {
    uint64_t seed;         // of the run
    uint64_t step;         // optimizer step
    uint64_t first_token;  // index in the step of the batch's row 0
    uint32_t first_target; // where the loss of the first target goes among those of the step
    float loss_scale;      // factor of every loss before its gradient is taken
};

// Sixteen-bit uniforms of one row's 32 columns: word j, half h (0: the low one) of the result is column 32 b + 8 j + 2 q + h, for q = lane % 4
// of a 16x16 mma fragment (A operand or accumulator). Dropped where the uniform is below round(p * 65536).
__device__ __forceinline__ Philox dropout_uniforms(const StepState& s, uint32_t stream, uint64_t token, uint32_t block32, uint32_t q) {
    const uint32_t k0 = (uint32_t)s.seed ^ (uint32_t)s.step;
    const uint32_t k1 = (uint32_t)(s.seed >> 32) ^ (uint32_t)(s.step >> 32) ^ ((stream << 16) | (stream >> 16));
    return philox4x32((uint32_t)token, (uint32_t)(token >> 32) ^ (uint32_t)s.step, 4 * block32 + q, stream, k0, k1);
}
