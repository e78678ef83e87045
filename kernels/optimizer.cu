// The norm of the gradients, and AdamW (arXiv:1711.05101, in the order of operations of PyTorch's single-tensor form).
//
//   norm = sqrt(sum g^2)                                                                                   partial =, norm =
//   g' = g min(1, max_norm / (norm + 1e-6));  m += (g' - m) (1 - beta1);  v = beta2 v + (1 - beta2) g'^2    first, second =
//   value = value (1 - lr weight_decay) - (lr / bc1) m / (sqrt(v) / sqrt(bc2) + eps)                        values =, shadow =
//
// All f32 [len]; shadow is an optional bf16 copy of the values. The norm is summed in f64 in two stages: 1,024 blocks take every 1,024th
// stretch, a last block adds their sums in order. Coefficients come rounded once from f64. If the norm is not finite, nothing is written.
//
// Budget: norm 4 bytes a value, AdamW 28 (30 with shadow), 15 FLOPs. 64-128 bytes a thread in flight. Should reach 90 % of a copy.
#include "prim/types.cuh"
#include "prim/warp.cuh"

constexpr int THREADS = 256;
constexpr int UNROLL = 4;              // 16-byte loads of a thread in flight, norm
constexpr int PARTIALS = 1024;         // blocks of the first stage: fixed, so that the sum does not depend on the GPU
static_assert(PARTIALS % THREADS == 0, "the second stage gives each thread the same number of partial sums");

struct Norm {
    const float* x;
    double* partial;  // [PARTIALS]
    float* norm;
    uint64_t len;
};
static_assert(sizeof(Norm) == 32, "as in src/optimizer.rs");

struct AdamW {
    const float* grads;
    float* values;
    float* first;
    float* second;
    bf16* shadow;       // or null
    const float* norm;  // or null: no clipping, no check
    uint64_t len;
    float step_size;    // lr / (1 - beta1^t)
    float decay;        // 1 - lr weight_decay
    float first_new;    // 1 - beta1
    float beta2;
    float second_new;   // 1 - beta2
    float root;         // sqrt(1 - beta2^t)
    float eps;
    float max_norm;     // infinity: no clipping
};
static_assert(sizeof(AdamW) == 88, "as in src/optimizer.rs");

extern "C" __global__ void __launch_bounds__(THREADS) norm_partials(const __grid_constant__ Norm p) {
    __shared__ double scratch[THREADS / WARP];
    const uint64_t vectors = p.len / 4;
    double sum[4] = {};
    for (uint64_t first = (uint64_t)blockIdx.x * (THREADS * UNROLL) + threadIdx.x; first < vectors; first += (uint64_t)PARTIALS * THREADS * UNROLL) {
        Vec16 held[UNROLL];
#pragma unroll
        for (int i = 0; i < UNROLL; ++i) {
            const uint64_t v = first + i * THREADS;
            held[i] = v < vectors ? load16(p.x + v * 4) : Vec16{};
        }
#pragma unroll
        for (int i = 0; i < UNROLL; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const double x = __uint_as_float(held[i].w[j]);
                sum[j] = fma(x, x, sum[j]);
            }
    }
    const uint64_t tail = vectors * 4 + threadIdx.x;
    if (blockIdx.x == 0 && tail < p.len) sum[0] = fma((double)p.x[tail], (double)p.x[tail], sum[0]);
    const double total = block_sum<THREADS>((sum[0] + sum[1]) + (sum[2] + sum[3]), scratch);
    if (threadIdx.x == 0) p.partial[blockIdx.x] = total;
}

extern "C" __global__ void __launch_bounds__(THREADS) norm_total(const __grid_constant__ Norm p) {
    __shared__ double scratch[THREADS / WARP];
    double sum = 0;
#pragma unroll
    for (int i = 0; i < PARTIALS / THREADS; ++i) sum += p.partial[i * THREADS + threadIdx.x];
    const double total = block_sum<THREADS>(sum, scratch);
    if (threadIdx.x == 0) *p.norm = (float)sqrt(total);
}

__device__ __forceinline__ void adamw_value(const AdamW& p, float factor, float grad, float& value, float& first, float& second) {
    const float g = grad * factor;
    first += (g - first) * p.first_new;
    second = second * p.beta2 + g * g * p.second_new;
    const float denominator = sqrtf(second) / p.root + p.eps;
    value = value * p.decay - p.step_size * first / denominator;
}

extern "C" __global__ void __launch_bounds__(THREADS) adamw(const __grid_constant__ AdamW p) {
    float factor = 1.f;
    if (p.norm) {
        const float norm = *p.norm;
        if (!isfinite(norm)) return;
        if (isfinite(p.max_norm)) factor = fminf(1.f, p.max_norm / (norm + 1e-6f));
    }
    const uint64_t vectors = p.len / 4, v = (uint64_t)blockIdx.x * THREADS + threadIdx.x;
    if (v < vectors) {
        const Vec16 g = load16(p.grads + v * 4);
        Vec16 value = load16(p.values + v * 4), first = load16(p.first + v * 4), second = load16(p.second + v * 4);
        float out[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float m = __uint_as_float(first.w[j]), s = __uint_as_float(second.w[j]);
            out[j] = __uint_as_float(value.w[j]);
            adamw_value(p, factor, __uint_as_float(g.w[j]), out[j], m, s);
            value.w[j] = __float_as_uint(out[j]);
            first.w[j] = __float_as_uint(m);
            second.w[j] = __float_as_uint(s);
        }
        store16(p.values + v * 4, value);
        store16(p.first + v * 4, first);
        store16(p.second + v * 4, second);
        if (p.shadow) reinterpret_cast<uint2*>(p.shadow)[v] = make_uint2(pack_bf16(out[0], out[1]), pack_bf16(out[2], out[3]));
    }
    const uint64_t tail = vectors * 4 + threadIdx.x;
    if (blockIdx.x == 0 && tail < p.len) {
        float value = p.values[tail], first = p.first[tail], second = p.second[tail];
        adamw_value(p, factor, p.grads[tail], value, first, second);
        p.values[tail] = value;
        p.first[tail] = first;
        p.second[tail] = second;
        if (p.shadow) p.shadow[tail] = to_bf16(value);
    }
}
