// Cross-entropy and its gradient with one read of the logits: a cluster holds a row in the shared memory of its blocks.
//
//   lse = ln sum_c e^z_c;  loss = lse - z_target                          losses =, lse =
//   d = bf16(scale (e^(z - lse) - [c is the target]))                     d =, also 0 in columns vocab..d_stride
//
// Shapes, sums and special values are those of cross_entropy.cu; the blocks' (maximum, sum) are combined in the order of their ranks. Strides
// are multiples of 4 elements.
//
// Budget: 6 bytes a logit. 512 threads a block, at most 113 KB, so that two blocks share an SM: one loads while the other stores. (The
// portable form, one block of 1,024 threads an SM, reached 70 % of a copy at 152k, 76 % where the row fits into its shared memory.) Loads are
// asynchronous copies of the whole piece, up to 113 KB in flight. Should reach 85 % of a copy.
#include <float.h>
#include "prim/async.cuh"
#include "prim/cluster.cuh"
#include "prim/math.cuh"
#include "prim/mma.cuh"
#include "prim/philox.cuh"
#include "prim/types.cuh"
#include "prim/warp.cuh"

constexpr int THREADS = 512;
constexpr int MAX_CLUSTER = 8;  // the largest that every sm_90 can place

struct CrossEntropy {
    const float* logits;
    const uint32_t* targets;
    float* losses;
    float* lse;
    bf16* d;
    const StepState* state;
    uint64_t stride, d_stride;  // elements
    uint32_t rows, vocab;
    uint32_t kept, pad;         // unused here
};
static_assert(sizeof(CrossEntropy) == 80, "as in src/cross_entropy.rs");

constexpr uint32_t NO_TARGET = 0xffffffffu;

struct Shared {
    float scratch[THREADS / WARP];
    float top, sum;  // of this block; peers read them
    float tops[MAX_CLUSTER], sums[MAX_CLUSTER];
    float reserved[30];
    float4 piece[];
};
static_assert(sizeof(Shared) == 256, "as in src/cross_entropy.rs");

__device__ __forceinline__ float exp_of(float difference) { return exp2_fast(difference * LOG2_E); }

template <int CLUSTER> __device__ __forceinline__ void fused_piece(const CrossEntropy& p) {
    extern __shared__ __align__(16) char bytes[];
    Shared& shared = *reinterpret_cast<Shared*>(bytes);
    const uint32_t row = blockIdx.x / CLUSTER, rank = blockIdx.x % CLUSTER;
    const uint32_t vectors = div_up(p.vocab, 4u), each = div_up(vectors, (uint32_t)CLUSTER), begin = rank * each;
    const uint32_t count = begin < vectors ? min(each, vectors - begin) : 0;
    const float4* z = reinterpret_cast<const float4*>(p.logits + row * p.stride) + begin;
    for (uint32_t v = threadIdx.x; v < count; v += THREADS) cp_async16(smem_address(shared.piece + v), z + v, 16);
    cp_async_commit();
    cp_async_wait<0>();
    // A thread reads what it copied itself: no barrier. The row's last vector may reach beyond the vocabulary.
    float top = -FLT_MAX;
    for (uint32_t v = threadIdx.x; v < count; v += THREADS) {
        float4 f = shared.piece[v];
        const uint32_t c = (begin + v) * 4;
        if (c + 4 > p.vocab) {
            if (c + 1 >= p.vocab) f.y = -INFINITY;
            if (c + 2 >= p.vocab) f.z = -INFINITY;
            f.w = -INFINITY;
            shared.piece[v] = f;
        }
        top = fmaxf(fmaxf(fmaxf(f.x, f.y), fmaxf(f.z, f.w)), top);
    }
    float sum = 0.f;
    for (uint32_t v = threadIdx.x; v < count; v += THREADS) {
        const float4 f = shared.piece[v];
        sum += (exp_of(f.x - top) + exp_of(f.y - top)) + (exp_of(f.z - top) + exp_of(f.w - top));
    }
    const float block_top = block_max<THREADS>(top, shared.scratch);
    const float block_total = block_sum<THREADS>(sum * exp_of(top - block_top), shared.scratch);
    if (threadIdx.x == 0) {
        shared.top = block_top;
        shared.sum = block_total;
    }
    cluster_arrive();
    cluster_wait();
    if (threadIdx.x < CLUSTER) {
        shared.tops[threadIdx.x] = load_peer(&shared.top, threadIdx.x);
        shared.sums[threadIdx.x] = load_peer(&shared.sum, threadIdx.x);
    }
    __syncthreads();
    cluster_arrive();  // this block has read its peers
    top = shared.tops[0];
#pragma unroll
    for (int i = 1; i < CLUSTER; ++i) top = fmaxf(top, shared.tops[i]);
    sum = 0.f;
#pragma unroll
    for (int i = 0; i < CLUSTER; ++i) sum += shared.sums[i] * exp_of(shared.tops[i] - top);
    const uint32_t target = p.targets[row];
    const float scale = target == NO_TARGET ? 0.f : p.state->loss_scale;
    if (rank == 0 && threadIdx.x == 0) {
        const float log_sum = logf(sum);
        p.lse[row] = top + log_sum;
        if (target != NO_TARGET) p.losses[p.state->first_target + row] = (top - p.logits[row * p.stride + target]) + log_sum;
    }
    const float inverse = 1.f / sum;
    bf16* d = p.d + row * p.d_stride;
    for (uint32_t v = threadIdx.x; v < count; v += THREADS) {
        const float4 f = shared.piece[v];
        const uint32_t c = (begin + v) * 4;
        float out[4] = {f.x, f.y, f.z, f.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float probability = exp_of(out[j] - top) * inverse;
            out[j] = (c + j == target ? probability - 1.f : probability) * scale;
        }
        __stcs(reinterpret_cast<uint2*>(d + c), make_uint2(pack_bf16(out[0], out[1]), pack_bf16(out[2], out[3])));
    }
    if (rank == CLUSTER - 1)
        for (uint64_t c = (uint64_t)vectors * 4 + threadIdx.x; c < p.d_stride; c += THREADS) d[c] = to_bf16(0.f);
    cluster_wait();  // nobody reads this block's shared memory any more
}

extern "C" __global__ void __cluster_dims__(1, 1, 1) __launch_bounds__(THREADS, 2) cross_entropy_cluster1(const __grid_constant__ CrossEntropy p) { fused_piece<1>(p); }
extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(THREADS, 2) cross_entropy_cluster2(const __grid_constant__ CrossEntropy p) { fused_piece<2>(p); }
extern "C" __global__ void __cluster_dims__(4, 1, 1) __launch_bounds__(THREADS, 2) cross_entropy_cluster4(const __grid_constant__ CrossEntropy p) { fused_piece<4>(p); }
extern "C" __global__ void __cluster_dims__(8, 1, 1) __launch_bounds__(THREADS, 2) cross_entropy_cluster8(const __grid_constant__ CrossEntropy p) { fused_piece<8>(p); }
