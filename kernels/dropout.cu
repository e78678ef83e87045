// Dropout masks of the adapters' inputs, drawn once for all products that read them (lora.cu, gemm.cu, gemm_hopper.cu).
//
// kept[planes, T, stride] = a bit an element (prim/dropout.cuh): 1 where the 16-bit uniform of (seed, step, stream, token, column) is at least
// the threshold. Written `=`, columns past the end too: their bits mean nothing.
//
// Budget of q, k, v at T = 16384, K = 2048: 12.6M Philox calls of about 100 instructions, 43 us of issue on 132 SMs, for 12 MB. Drawn in the
// products it was issued by their few warps: 63 us in down, 72 in grad, 98 in dX (33 % of it).
#include "prim/dropout.cuh"
#include "prim/philox.cuh"

constexpr int PLANES = 3;
constexpr int THREADS = 256;

struct Params {
    uint32_t* kept; const StepState* state;
    uint32_t rows, stride, threshold;  // threshold: of sixteen bits
    uint32_t streams[PLANES];          // of each plane
};
static_assert(sizeof(Params) == 40, "as in src/dropout.rs");

// A thread draws a word: the four lanes' parts of 32 columns.
extern "C" __global__ void __launch_bounds__(THREADS) dropout_draw(const __grid_constant__ Params p) {
    const uint64_t words = (uint64_t)p.rows * p.stride, id = (uint64_t)blockIdx.x * THREADS + threadIdx.x;
    if (id >= words) return;
    const StepState state = *p.state;
    const uint64_t token = state.first_token + id / p.stride;
    uint32_t kept = 0;
#pragma unroll
    for (int q = 0; q < 4; ++q) {
        const Philox draw = dropout_uniforms(state, p.streams[blockIdx.y], token, id % p.stride, q);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (draw.w[j] << 16 >= p.threshold << 16) kept |= 1u << (4 * q + j);
            if (draw.w[j] >= p.threshold << 16) kept |= 1u << (16 + 4 * q + j);
        }
    }
    p.kept[blockIdx.y * words + id] = kept;
}
