// Dropout masks of the adapters' inputs, drawn once for all products that read them (lora.cu, gemm.cu, gemm_hopper.cu).
//
// kept[planes, T, stride] = a bit an element (prim/dropout.cuh): 1 where the 16-bit uniform of (seed, step, stream, token, column) is at least
// the threshold. Written `=`, columns past the end too: their bits mean nothing.
//
// Budget of q, k, v at T = 16384, K = 2048: 12.6M Philox calls of 85 issue slots, 31 us on 132 SMs, for 12 MB. Drawn in the products it was
// issued by their few warps: 60 us in down, 70 in grad, 70 in dX (H100).
#include "prim/dropout.cuh"
#include "prim/philox.cuh"
#include "prim/types.cuh"

constexpr int PLANES = 3;
constexpr int THREADS = 256;
constexpr int RUN = 4;  // words of a thread

struct Params {
    uint32_t* kept; const StepState* state;
    uint32_t rows, stride, threshold;  // threshold: of sixteen bits
    uint32_t streams[PLANES];          // of each plane
};
static_assert(sizeof(Params) == 40, "as in src/dropout.rs");

// A thread draws four words of a row: what depends on the row alone is computed once.
extern "C" __global__ void __launch_bounds__(THREADS) dropout_draw(const __grid_constant__ Params p) {
    const uint32_t runs = p.stride / RUN, id = blockIdx.x * THREADS + threadIdx.x, row = id / runs, first = id % runs * RUN;
    if (row >= p.rows) return;
    const StepState state = *p.state;
    const uint32_t least = p.threshold << 16;
    Vec16 run;
#pragma unroll
    for (int i = 0; i < RUN; ++i) {
        uint32_t kept = 0;
#pragma unroll
        for (int q = 0; q < 4; ++q) {
            const Philox draw = dropout_uniforms(state, p.streams[blockIdx.y], state.first_token + row, first + i, q);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (draw.w[j] << 16 >= least) kept |= 1u << (4 * q + j);
                if (draw.w[j] >= least) kept |= 1u << (16 + 4 * q + j);
            }
        }
        run.w[i] = p.threshold >> 16 ? 0 : kept;  // of p = 1 but for rounding
    }
    store16(p.kept + ((uint64_t)blockIdx.y * p.rows + row) * p.stride + first, run);
}
