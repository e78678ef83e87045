// Cross-entropy over a chunk of logits that a matrix product made, and its gradient.
//
//   lse = ln sum_c e^z_c;  loss = lse - z_target                          losses =, lse =
//   d = bf16(scale (e^(z - lse) - [c is the target]))                     d =, also 0 in columns vocab..d_stride
//
// scale and the place of the chunk's first loss are read from the step's state. A row without a target (NO_TARGET) gets no loss, and d = 0.
// logits [rows, stride] f32, d [rows, d_stride] bf16, targets, losses, lse [rows]. Sums are f32: per thread online (running maximum and sum
// of e^(z - maximum)), then a fixed tree. p - 1 is formed in f32, before the rounding to bf16. A NaN or +inf logit makes the row's loss and
// gradient NaN; -inf is a masked token. The running maximum starts at the lowest finite f32, so that -inf minus it is -inf, never NaN.
//
// Budget: loss 4 bytes a logit, gradient 6. Fused, a block owns a row, reads it once from memory, keeps its first part in shared memory (all
// that an SM has) and finds most of the rest in L2 on the way back, which it walks from the end: 132 rows of 152k in flight are 80 MB, of
// which shared memory holds 30 MB. 1 block of 1,024 threads an SM, 16 logits a thread in flight (64 KB an SM). About 25 instructions a logit
// against 58 that the memory leaves time for. Reaches 70 % of a copy on an H100, counting 6 bytes a logit; cross_entropy_hopper.cu does better.
#include <float.h>
#include "prim/math.cuh"
#include "prim/philox.cuh"
#include "prim/types.cuh"
#include "prim/warp.cuh"

constexpr int FUSED_THREADS = 1024;   // one row an SM at a time: fewer rows in flight leave more of each in L2
constexpr int LOSS_THREADS = 512;     // 3 blocks an SM overlap their reductions
constexpr int GRADIENT_THREADS = 256;
constexpr int UNROLL = 4;             // vectors of a thread in flight
static_assert(FUSED_THREADS / WARP * 4 % 16 == 0, "kept logits begin at 16 bytes");

struct CrossEntropy {
    const float* logits;
    const uint32_t* targets;
    float* losses;
    float* lse;
    bf16* d;
    const StepState* state;
    uint64_t stride, d_stride;  // elements
    uint32_t rows, vocab;
    uint32_t kept;              // vectors of a row in shared memory
    uint32_t pad;
};
static_assert(sizeof(CrossEntropy) == 80, "as in src/cross_entropy.rs");

constexpr uint32_t NO_TARGET = 0xffffffffu;

__device__ __forceinline__ float scale_of(const StepState* state, uint32_t target) { return target == NO_TARGET ? 0.f : state->loss_scale; }

// VEC logits: 4 where rows are aligned for it, else 1.
template <int VEC> struct alignas(4 * VEC) Logits { float z[VEC]; };

template <int VEC> __device__ __forceinline__ Logits<VEC> load_logits(const float* row, uint32_t v, uint32_t vocab, bool once) {
    Logits<VEC> l;
    if constexpr (VEC == 4) {
        const float4* at = reinterpret_cast<const float4*>(row) + v;
        const float4 f = once ? __ldcs(at) : *at;
        l.z[0] = f.x; l.z[1] = f.y; l.z[2] = f.z; l.z[3] = f.w;
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (v * 4 + j >= vocab) l.z[j] = -INFINITY;
    } else {
        l.z[0] = once ? __ldcs(row + v) : row[v];
    }
    return l;
}

template <int VEC> __device__ __forceinline__ void store_gradient(bf16* row, uint32_t v, const float (&d)[VEC]) {
    if constexpr (VEC == 4) {
        __stcs(reinterpret_cast<uint2*>(row) + v, make_uint2(pack_bf16(d[0], d[1]), pack_bf16(d[2], d[3])));
    } else {
        row[v] = to_bf16(d[0]);
    }
}

__device__ __forceinline__ float exp_of(float difference) { return exp2_fast(difference * LOG2_E); }

// Running maximum and sum of e^(z - maximum).
struct Running { float top, sum; };

template <int VEC> __device__ __forceinline__ void take(Running& r, const Logits<VEC> (&l)[UNROLL]) {
    float top = r.top;
#pragma unroll
    for (int i = 0; i < UNROLL; ++i)
#pragma unroll
        for (int j = 0; j < VEC; ++j) top = fmaxf(top, l[i].z[j]);
    float sum = r.sum * exp_of(r.top - top);
#pragma unroll
    for (int i = 0; i < UNROLL; ++i)
#pragma unroll
        for (int j = 0; j < VEC; ++j) sum += exp_of(l[i].z[j] - top);
    r.top = top;
    r.sum = sum;
}

// The block's maximum and sum; thread 0 stores loss and lse.
template <int THREADS> __device__ __forceinline__ Running finish(const CrossEntropy& p, uint32_t row, Running r, float* scratch) {
    const float top = block_max<THREADS>(r.top, scratch);
    const float sum = block_sum<THREADS>(r.sum * exp_of(r.top - top), scratch);
    if (threadIdx.x == 0) {
        const float log_sum = logf(sum);
        p.lse[row] = top + log_sum;
        const uint32_t target = p.targets[row];
        if (target != NO_TARGET) p.losses[p.state->first_target + row] = (top - p.logits[row * p.stride + target]) + log_sum;
    }
    return {top, sum};
}

template <int VEC> __device__ __forceinline__ void gradient_of(float (&d)[VEC], const Logits<VEC>& l, uint32_t v, uint32_t target, float shift, float inverse, float scale) {
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
        const float probability = exp_of(l.z[j] - shift) * inverse;
        d[j] = (v * VEC + j == target ? probability - 1.f : probability) * scale;
    }
}

template <int THREADS> __device__ __forceinline__ void clear_padding(const CrossEntropy& p, bf16* d) {
    for (uint64_t c = p.vocab + threadIdx.x; c < p.d_stride; c += THREADS) d[c] = to_bf16(0.f);
}

template <int VEC> __device__ __forceinline__ void loss_of_row(const CrossEntropy& p) {
    const uint32_t row = blockIdx.x, vectors = div_up(p.vocab, (uint32_t)VEC);
    const float* z = p.logits + row * p.stride;
    Running r = {-FLT_MAX, 0.f};
    for (uint32_t first = threadIdx.x; first < vectors; first += LOSS_THREADS * UNROLL) {
        Logits<VEC> l[UNROLL];
#pragma unroll
        for (int i = 0; i < UNROLL; ++i) {
            const uint32_t v = first + i * LOSS_THREADS;
            if (v < vectors) l[i] = load_logits<VEC>(z, v, p.vocab, false);
            else
#pragma unroll
                for (int j = 0; j < VEC; ++j) l[i].z[j] = -INFINITY;
        }
        take(r, l);
    }
    __shared__ float scratch[LOSS_THREADS / WARP];
    finish<LOSS_THREADS>(p, row, r, scratch);
}

template <int VEC> __device__ __forceinline__ void fused_row(const CrossEntropy& p) {
    extern __shared__ __align__(16) float shared[];  // scratch of the reductions, then the kept logits
    Logits<VEC>* kept = reinterpret_cast<Logits<VEC>*>(shared + FUSED_THREADS / WARP);
    constexpr uint32_t STEP = FUSED_THREADS * UNROLL;
    const uint32_t row = blockIdx.x, vectors = div_up(p.vocab, (uint32_t)VEC), steps = div_up(vectors, STEP);
    const float* z = p.logits + row * p.stride;
    Running r = {-FLT_MAX, 0.f};
    for (uint32_t step = 0; step < steps; ++step) {
        Logits<VEC> l[UNROLL];
#pragma unroll
        for (int i = 0; i < UNROLL; ++i) {
            const uint32_t v = step * STEP + i * FUSED_THREADS + threadIdx.x;
            if (v < vectors) l[i] = load_logits<VEC>(z, v, p.vocab, v < p.kept);
            else
#pragma unroll
                for (int j = 0; j < VEC; ++j) l[i].z[j] = -INFINITY;
        }
#pragma unroll
        for (int i = 0; i < UNROLL; ++i) {
            const uint32_t v = step * STEP + i * FUSED_THREADS + threadIdx.x;
            if (v < p.kept) kept[v] = l[i];
        }
        take(r, l);
    }
    const Running whole = finish<FUSED_THREADS>(p, row, r, shared);
    const float inverse = 1.f / whole.sum;
    const uint32_t target = p.targets[row];
    const float scale = scale_of(p.state, target);
    bf16* d = p.d + row * p.d_stride;
    for (uint32_t step = steps; step-- > 0;) {  // from the end: what was read last is still in L2
        Logits<VEC> l[UNROLL];
#pragma unroll
        for (int i = 0; i < UNROLL; ++i) {
            const uint32_t v = step * STEP + i * FUSED_THREADS + threadIdx.x;
            if (v >= vectors) continue;
            l[i] = v < p.kept ? kept[v] : load_logits<VEC>(z, v, p.vocab, true);  // a thread reads what it wrote itself: no barrier
        }
#pragma unroll
        for (int i = 0; i < UNROLL; ++i) {
            const uint32_t v = step * STEP + i * FUSED_THREADS + threadIdx.x;
            if (v >= vectors) continue;
            float out[VEC];
            gradient_of<VEC>(out, l[i], v, target, whole.top, inverse, scale);
            store_gradient<VEC>(d, v, out);
        }
    }
    clear_padding<FUSED_THREADS>(p, d);
}

template <int VEC> __device__ __forceinline__ void gradient_part(const CrossEntropy& p) {
    const uint32_t vectors = div_up(p.vocab, (uint32_t)VEC), parts = div_up(vectors, (uint32_t)(GRADIENT_THREADS * UNROLL));
    const uint32_t row = blockIdx.x / parts, first = blockIdx.x % parts * (GRADIENT_THREADS * UNROLL) + threadIdx.x;
    const float* z = p.logits + row * p.stride;
    bf16* d = p.d + row * p.d_stride;
    Logits<VEC> l[UNROLL];
#pragma unroll
    for (int i = 0; i < UNROLL; ++i)
        if (first + i * GRADIENT_THREADS < vectors) l[i] = load_logits<VEC>(z, first + i * GRADIENT_THREADS, p.vocab, true);
    const float lse = p.lse[row];
    const uint32_t target = p.targets[row];
    const float scale = scale_of(p.state, target);
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) {
        const uint32_t v = first + i * GRADIENT_THREADS;
        if (v >= vectors) continue;
        float out[VEC];
        gradient_of<VEC>(out, l[i], v, target, lse, 1.f, scale);
        store_gradient<VEC>(d, v, out);
    }
    if (blockIdx.x % parts == 0) clear_padding<GRADIENT_THREADS>(p, d);
}

extern "C" __global__ void __launch_bounds__(LOSS_THREADS) cross_entropy_loss(const __grid_constant__ CrossEntropy p) { loss_of_row<4>(p); }
extern "C" __global__ void __launch_bounds__(LOSS_THREADS) cross_entropy_loss_unaligned(const __grid_constant__ CrossEntropy p) { loss_of_row<1>(p); }
extern "C" __global__ void __launch_bounds__(GRADIENT_THREADS) cross_entropy_gradient(const __grid_constant__ CrossEntropy p) { gradient_part<4>(p); }
extern "C" __global__ void __launch_bounds__(GRADIENT_THREADS) cross_entropy_gradient_unaligned(const __grid_constant__ CrossEntropy p) { gradient_part<1>(p); }
extern "C" __global__ void __launch_bounds__(FUSED_THREADS) cross_entropy_fused(const __grid_constant__ CrossEntropy p) { fused_row<4>(p); }
extern "C" __global__ void __launch_bounds__(FUSED_THREADS) cross_entropy_fused_unaligned(const __grid_constant__ CrossEntropy p) { fused_row<1>(p); }
