// From logits to the next token, with the meaning of engine/generate/sampler.rs.
//
// score = temperature(penalty(logit)); top-k keeps every score >= the k-th largest; top-p keeps, of those, the smallest set of most probable
// tokens that reaches top_p (of equal scores the higher token first); a Philox uniform of (seed, row, position) picks by inverse CDF in token
// order. Greedy: the largest score, the lowest token of several. NaN and -inf are never chosen; a row whose largest score is not finite has
// no token when sampling.
//
// logits [rows, stride] f32: become the scores (`=`) where a penalty or temperature is set; out [rows] u32 `=`; scratch `=`.
//
// A row is cut into chunks of 4,096 tokens, one block each. Probabilities are fixed-point: mass = round(2^44 e^(score - largest)) in u64, so
// sums are integers, exact and independent of order, and atomics on them are repeatable. The threshold of top-k or top-p is found by radix
// selection on the order-preserving bits of the score: three histograms of count and mass (11, 11, 10 bits), the first shared by both. The
// block of a row that finishes last finds the next digit for all. (With every block finding it for itself, before two other changes, top-k with
// top-p took 375 us instead of 332 for 64 rows of 152k, but 50 instead of 59 for one row; both on an H100, in a graph.)
//
// Budget: each pass reads 4 bytes a token, mostly from L2 (0.6 MB a row of 152k); 2 kernels greedy or plain sampling, 5 for top-k or top-p,
// 7 for both. Measured for one row: 5 us greedy, 15 drawing, 37-59 with top-k or top-p, about 10 a histogram; what bounds a histogram
// has not been profiled. Histogram blocks hold 24 KB of shared memory.
#include "prim/math.cuh"
#include "prim/philox.cuh"
#include "prim/scan.cuh"
#include "prim/types.cuh"
#include "prim/warp.cuh"

constexpr int THREADS = 256;
constexpr int ITEMS = 16;                 // tokens of a thread
constexpr int CHUNK = THREADS * ITEMS;    // tokens of a block: 38 blocks a row of 152k
constexpr int MAX_CHUNKS = 128;           // 2^19 tokens: their masses of at most 2^44 sum below 2^64
constexpr int BINS = 2048;                // 11 bits
constexpr int BINS_A_THREAD = BINS / THREADS;
constexpr int HISTOGRAMS = 5;             // first digit; second and third of top-k; second and third of top-p
constexpr int MASS_STAGE = HISTOGRAMS;    // the stage after the histograms
constexpr uint32_t DRAW = 0x64726177;     // "draw", second counter word, as in sampler.rs
constexpr uint32_t NONE = 0xffffffffu;    // no token
constexpr uint32_t PIECE = (1u << 20) - 1;
constexpr int COUNT_BITS = 13;
static_assert(CHUNK < 1 << COUNT_BITS && CHUNK <= 1 << 12, "a bin's count and its sums of pieces fit 32 bits");
static_assert(MAX_CHUNKS <= THREADS, "a thread looks at one chunk");

struct SampleRow {
    uint64_t row;       // its own number, whatever batch it is in
    uint32_t position;  // of the token that is drawn
    uint32_t seen_start, seen_len;
    uint32_t reserved;
};
static_assert(sizeof(SampleRow) == 24, "as in src/sample.rs");

// What is known of a chunk.
struct Part {
    float top;       // largest score, -inf if there is none
    uint32_t token;  // its lowest token
    uint64_t mass;   // of the scores above the threshold
    uint32_t ties;   // scores at the threshold, if some of them are kept
    uint32_t reserved;
};

// What is known of a row after a stage.
struct State {
    uint64_t k_mass;      // mass above the prefix; of everything if top-k keeps all
    uint64_t p_need;      // mass still to be kept within the prefix
    uint64_t kept_mass;   // after top-k
    uint64_t tie_mass;    // of one score at the threshold
    uint32_t k_prefix, k_need;  // key bits found; scores still to be kept within the prefix, 0: top-k keeps all
    uint32_t p_prefix;
    uint32_t threshold;   // keys above it are kept
    uint32_t keep_ties;   // and so many of those at it, the highest tokens
    float top;            // largest score
    uint32_t reserved[2];
};
static_assert(sizeof(Part) == 24 && sizeof(State) == 64, "as in src/sample.rs");

struct Sample {
    float* logits;
    const SampleRow* rows;
    const uint32_t* seen;
    uint32_t* out;
    Part* parts;       // [rows, chunks]
    State* states;     // [rows]
    uint64_t* masses;  // [rows, HISTOGRAMS, BINS]
    uint32_t* counts;  // [rows, HISTOGRAMS, BINS]
    uint32_t* done;    // [rows, MASS_STAGE + 1]: blocks that finished a stage
    uint64_t stride, seed;
    double top_p;          // below 1, or 1: off
    float penalty, temperature;
    uint32_t vocab, chunks;
    uint32_t top_k;        // 0: off
    uint32_t stage;
    uint32_t first;        // stage that first needs a row's largest score
    uint32_t reserved;
};
static_assert(sizeof(Sample) == 128, "as in src/sample.rs");

// Larger scores have larger keys, 0 a larger one than -0.
constexpr uint32_t ZERO = 0x80000000u, MINUS_ZERO = 0x7fffffffu;
__device__ __forceinline__ uint32_t key_of(float score) {
    const uint32_t bits = __float_as_uint(score);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ uint64_t mass_of(float score, float top) { return __float2ull_rn(exp_nearest(score - top) * 0x1p44f); }
__device__ __forceinline__ bool finite(float x) { return x > -INFINITY && x < INFINITY; }

struct Best { float top; uint32_t token; };
__device__ __forceinline__ Best better(Best a, Best b) { return b.top > a.top || (b.top == a.top && b.token < a.token) ? b : a; }
__device__ __forceinline__ Best block_best(Best own, Best* scratch) {
#pragma unroll
    for (int d = WARP / 2; d > 0; d /= 2) own = better(own, Best{warp_xor(own.top, d), warp_xor(own.token, d)});
    if (lane_id() == 0) scratch[warp_id()] = own;
    __syncthreads();
    Best best = scratch[0];
#pragma unroll
    for (int w = 1; w < THREADS / WARP; ++w) best = better(best, scratch[w]);
    __syncthreads();
    return best;
}
// The row's best over its chunks.
__device__ __forceinline__ Best row_best(const Sample& p, uint32_t row) {
    __shared__ Best scratch[THREADS / WARP];
    Best own = {-INFINITY, NONE};
    if (threadIdx.x < p.chunks) {
        const Part* part = p.parts + row * p.chunks + threadIdx.x;
        own = {part->top, part->token};
    }
    return block_best(own, scratch);
}

// Penalty, temperature, each chunk's largest score; clears the row's histograms.
extern "C" __global__ void __launch_bounds__(THREADS) sample_scores(const __grid_constant__ Sample p) {
    __shared__ uint32_t marked[CHUNK / 32];
    __shared__ Best scratch[THREADS / WARP];
    const uint32_t row = blockIdx.x / p.chunks, chunk = blockIdx.x % p.chunks;
    float* logits = p.logits + row * p.stride;
    const bool penalised = p.penalty != 1.f, rewritten = penalised || p.temperature != 1.f;
    if (penalised) {
        for (uint32_t i = threadIdx.x; i < CHUNK / 32; i += THREADS) marked[i] = 0;
        __syncthreads();
        const SampleRow who = p.rows[row];
        for (uint32_t i = threadIdx.x; i < who.seen_len; i += THREADS) {
            const uint32_t token = p.seen[who.seen_start + i];
            if (token / CHUNK == chunk) atomicOr(&marked[token % CHUNK / 32], 1u << (token % 32));
        }
        __syncthreads();
    }
    float score[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const uint32_t token = chunk * CHUNK + i * THREADS + threadIdx.x;
        score[i] = token < p.vocab ? logits[token] : -INFINITY;
    }
    Best own = {-INFINITY, NONE};
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const uint32_t at = i * THREADS + threadIdx.x, token = chunk * CHUNK + at;
        if (penalised && (marked[at / 32] >> (at % 32) & 1)) score[i] = score[i] < 0.f ? score[i] * p.penalty : score[i] / p.penalty;
        if (p.temperature != 1.f) score[i] /= p.temperature;
        if (rewritten && token < p.vocab) logits[token] = score[i];
        if (score[i] > own.top) own = {score[i], token};
    }
    const Best best = block_best(own, scratch);
    if (threadIdx.x == 0) p.parts[blockIdx.x] = {best.top, best.token, 0, 0, 0};
    if (chunk == 0 && threadIdx.x <= MASS_STAGE) p.done[row * (MASS_STAGE + 1) + threadIdx.x] = 0;
    if (p.masses) {
        for (uint32_t i = chunk * THREADS + threadIdx.x; i < HISTOGRAMS * BINS; i += p.chunks * THREADS) {
            p.masses[(uint64_t)row * HISTOGRAMS * BINS + i] = 0;
            p.counts[(uint64_t)row * HISTOGRAMS * BINS + i] = 0;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) sample_greedy(const __grid_constant__ Sample p) {
    const Best best = row_best(p, blockIdx.x);
    if (threadIdx.x == 0) p.out[blockIdx.x] = best.token;
}

// Where a histogram, read from its highest bin down, reaches what is needed.
struct Found {
    uint64_t mass_above, mass;  // of the bins above it, of it
    uint64_t total_mass;
    uint32_t count_above, count;
    uint32_t total_count;
    uint32_t bin;
};

// By count or by mass; `need` is at least 1. The bin is NONE if the whole histogram does not reach it.
__device__ __forceinline__ Found find(const Sample& p, uint32_t row, int histogram, bool by_mass, uint64_t need) {
    __shared__ uint64_t masses[THREADS / WARP];
    __shared__ uint32_t counts[THREADS / WARP];
    __shared__ Found found;
    const uint64_t base = ((uint64_t)row * HISTOGRAMS + histogram) * BINS + (THREADS - 1 - threadIdx.x) * BINS_A_THREAD;
    uint64_t mass[BINS_A_THREAD], own_mass = 0;
    uint32_t count[BINS_A_THREAD], own_count = 0;
#pragma unroll
    for (int i = 0; i < BINS_A_THREAD; ++i) {
        mass[i] = __ldcg(p.masses + base + i);  // from L2, where the atomics went
        count[i] = __ldcg(p.counts + base + i);
        own_mass += mass[i];
        own_count += count[i];
    }
    Found f;
    f.mass_above = block_scan<THREADS>(own_mass, masses, f.total_mass) - own_mass;
    f.count_above = block_scan<THREADS>(own_count, counts, f.total_count) - own_count;
    f.bin = NONE;
    if (threadIdx.x == 0) found = f;  // for a need that is never reached
    __syncthreads();
    if (by_mass ? f.mass_above < need && f.mass_above + own_mass >= need : f.count_above < need && f.count_above + own_count >= need) {
#pragma unroll
        for (int i = BINS_A_THREAD - 1; i >= 0; --i) {
            if (f.bin != NONE) continue;
            if (by_mass ? f.mass_above + mass[i] >= need : f.count_above + count[i] >= need) {
                f.bin = (THREADS - 1 - threadIdx.x) * BINS_A_THREAD + i;
                f.mass = mass[i];
                f.count = count[i];
            } else {
                f.mass_above += mass[i];
                f.count_above += count[i];
            }
        }
        found = f;
    }
    __syncthreads();
    const Found result = found;
    __syncthreads();
    return result;
}

// The state after one more digit of top-k.
__device__ __forceinline__ void advance_k(const Sample& p, uint32_t row, int digit, State& s) {
    if (digit == 0) {
        const Found f = find(p, row, 0, false, p.top_k);
        s.k_need = f.bin == NONE ? 0 : p.top_k - f.count_above;
        s.k_mass = f.bin == NONE ? f.total_mass : f.mass_above;
        s.k_prefix = f.bin == NONE ? 0 : f.bin << 21;
        return;
    }
    if (s.k_need == 0) {
        s.kept_mass = s.k_mass;
        return;
    }
    const Found f = find(p, row, digit, false, s.k_need);
    s.k_prefix |= digit == 1 ? f.bin << 10 : f.bin;
    s.k_need -= f.count_above;
    s.k_mass += f.mass_above;
    s.kept_mass = s.k_mass + f.mass;  // once the last digit is known: all ties are kept
    const uint32_t lowest = s.k_prefix == ZERO ? MINUS_ZERO : s.k_prefix;  // -0 is not below 0
    s.threshold = lowest - 1;  // ties are above it
}

// The first digit of top-p, once it is known how much top-k kept.
__device__ __forceinline__ void begin_p(const Sample& p, uint32_t row, State& s) {
    const uint64_t wanted = (uint64_t)ceil(fmax(p.top_p, 0.0) * (double)s.kept_mass);
    const uint64_t need = wanted < 1 ? 1 : wanted > s.kept_mass ? s.kept_mass : wanted;
    const Found f = find(p, row, 0, true, need);
    s.p_prefix = f.bin << 21;
    s.p_need = need - f.mass_above;
}

// What the histogram of a stage tells, worked out by one block of the row.
__device__ __forceinline__ void advance(const Sample& p, uint32_t row, State& s) {
    const bool by_k = p.top_k != 0, by_p = p.top_p < 1.0;
    if (p.stage == 0 && !by_k) {
        s.kept_mass = find(p, row, 0, true, 1).total_mass;
        begin_p(p, row, s);
    } else if (p.stage < 3) {
        advance_k(p, row, p.stage, s);
        if (p.stage == 2 && by_p) begin_p(p, row, s);
    } else if (p.stage == 3) {
        const Found f = find(p, row, 3, true, s.p_need);
        s.p_prefix |= f.bin << 10;
        s.p_need -= f.mass_above;
    } else {
        const Found f = find(p, row, 4, true, s.p_need);
        s.threshold = s.p_prefix | f.bin;
        s.tie_mass = f.mass / f.count;  // equal scores have equal masses
        s.keep_ties = (uint32_t)((s.p_need - f.mass_above + s.tie_mass - 1) / s.tie_mass);
    }
}

// The row's state as the stage before left it.
__device__ __forceinline__ State state_of(const Sample& p, uint32_t row) {
    if (p.stage != p.first) return p.states[row];
    State s = {};
    s.top = row_best(p, row).top;
    return s;
}

// Whether this block is the last of its row to come here; it then sees what the others wrote.
__device__ __forceinline__ bool last_of_row(const Sample& p, uint32_t row) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(p.done + row * (MASS_STAGE + 1) + p.stage, 1u) == p.chunks - 1;
    __syncthreads();
    if (last) __threadfence();
    return last;
}

// The block's scores, asked for before anything else.
__device__ __forceinline__ void load_scores(const Sample& p, uint32_t row, uint32_t chunk, float (&score)[ITEMS]) {
    const float* scores = p.logits + row * p.stride;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const uint32_t token = chunk * CHUNK + i * THREADS + threadIdx.x;
        score[i] = token < p.vocab ? scores[token] : -INFINITY;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) sample_histogram(const __grid_constant__ Sample p) {
    // Masses in pieces of 20 bits, whose sums over a chunk fit 32: atomics need no carry, so no answer. The count stands below the third.
    __shared__ uint32_t low[BINS], middle[BINS], high_and_count[BINS];
    const uint32_t row = blockIdx.x / p.chunks, chunk = blockIdx.x % p.chunks;
    float score[ITEMS];
    load_scores(p, row, chunk, score);
    State s = state_of(p, row);
    const float top = s.top;
    if (!finite(top)) {
        if (chunk == 0 && threadIdx.x == 0) p.states[row] = s;
        return;
    }
    for (uint32_t i = threadIdx.x; i < BINS; i += THREADS) low[i] = middle[i] = high_and_count[i] = 0;
    __syncthreads();
    const bool weighed = p.top_p < 1.0;
    const uint32_t prefix = p.stage >= 3 ? s.p_prefix : s.k_prefix;
    const uint32_t digit = p.stage >= 3 ? p.stage - 2 : p.stage;
    const uint32_t shift = digit == 0 ? 21 : digit == 1 ? 10 : 0;
    const uint32_t mask = digit == 0 ? 0 : digit == 1 ? 0xffe00000u : 0xfffffc00u;  // bits that are known
    uint64_t mass[ITEMS] = {};
    if (weighed && p.stage == 0) {
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) mass[i] = mass_of(score[i], top);
    }
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        // The k-th largest being 0, scores of -0 are kept and weighed with it.
        const uint32_t key = key_of(p.stage == 2 && (prefix & ZERO) ? score[i] + 0.f : score[i]);
        if (!(score[i] > -INFINITY) || (key & mask) != (prefix & mask)) continue;
        const uint32_t bin = key >> shift & (digit == 2 ? BINS / 2 - 1 : BINS - 1);
        const uint64_t own = weighed && p.stage != 0 ? mass_of(score[i], top) : mass[i];
        atomicAdd(&high_and_count[bin], 1u | (uint32_t)(own >> 40) << COUNT_BITS);
        if (!weighed) continue;
        atomicAdd(&middle[bin], (uint32_t)(own >> 20) & PIECE);
        atomicAdd(&low[bin], (uint32_t)own & PIECE);
    }
    __syncthreads();
    const uint64_t base = ((uint64_t)row * HISTOGRAMS + p.stage) * BINS;
    for (uint32_t i = threadIdx.x; i < BINS; i += THREADS) {
        const uint32_t packed = high_and_count[i];
        if (packed == 0) continue;
        const uint64_t whole = ((uint64_t)(packed >> COUNT_BITS) << 40) + ((uint64_t)middle[i] << 20) + low[i];
        atomicAdd(&p.counts[base + i], packed & ((1u << COUNT_BITS) - 1));
        atomicAdd(reinterpret_cast<unsigned long long*>(&p.masses[base + i]), (unsigned long long)whole);
    }
    if (!last_of_row(p, row)) return;
    advance(p, row, s);
    if (threadIdx.x == 0) p.states[row] = s;
}

// (bits + 1/2) / 2^32 of the row's draw, times `total`, as a target that the chosen token's running sum is the first to exceed.
__device__ __forceinline__ uint64_t draw_target(const Sample& p, uint32_t row, uint64_t total) {
    const SampleRow who = p.rows[row];
    const Philox bits = philox4x32(who.position, DRAW, (uint32_t)who.row, (uint32_t)(who.row >> 32), (uint32_t)p.seed, (uint32_t)(p.seed >> 32));
    return (uint64_t)(((double)bits.w[0] + 0.5) * (1.0 / 4294967296.0) * (double)total);
}

// Finds the chunk, then the token in it.
__device__ __forceinline__ void draw(const Sample& p, uint32_t row, const State& s) {
    __shared__ uint64_t masses[THREADS / WARP];
    __shared__ uint32_t counts[THREADS / WARP];
    __shared__ uint64_t chosen_rest;
    __shared__ uint32_t chosen_chunk, chosen_ties, chosen_kept;
    const float top = s.top;
    const bool inside = threadIdx.x < p.chunks;
    const uint32_t ties = inside ? __ldcg(&p.parts[row * p.chunks + threadIdx.x].ties) : 0;
    uint32_t all_ties;
    const uint32_t upto = block_scan<THREADS>(ties, counts, all_ties);
    const uint32_t higher = all_ties - upto;  // ties in later chunks come first
    const uint32_t left = s.keep_ties > higher ? s.keep_ties - higher : 0, kept = left < ties ? left : ties;
    const uint64_t mass = inside ? __ldcg(&p.parts[row * p.chunks + threadIdx.x].mass) + kept * s.tie_mass : 0;
    uint64_t total;
    const uint64_t after = block_scan<THREADS>(mass, masses, total);
    const uint64_t target = draw_target(p, row, total);
    if (after - mass <= target && target < after) {
        chosen_chunk = threadIdx.x;
        chosen_rest = target - (after - mass);
        chosen_ties = ties;
        chosen_kept = kept;
    }
    __syncthreads();
    const uint32_t first = chosen_chunk * CHUNK + threadIdx.x * ITEMS;
    const float* scores = p.logits + row * p.stride;
    float score[ITEMS];
    uint32_t own_ties = 0;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        score[i] = first + i < p.vocab ? scores[first + i] : -INFINITY;
        if (score[i] > -INFINITY && key_of(score[i]) == s.threshold && s.keep_ties) ++own_ties;
    }
    uint32_t unused;
    uint32_t seen_ties = block_scan<THREADS>(own_ties, counts, unused) - own_ties;
    uint32_t is_kept = 0;  // a bit a token
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        if (!(score[i] > -INFINITY)) continue;
        const uint32_t key = key_of(score[i]);
        bool keep = key > s.threshold;
        if (key == s.threshold && s.keep_ties) keep = chosen_ties - ++seen_ties < chosen_kept;  // ties behind it
        is_kept |= (keep ? 1u : 0u) << i;
    }
    uint64_t masses_of[ITEMS], own = 0;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const bool keep = is_kept >> i & 1;
        const uint64_t mass_here = mass_of(keep ? score[i] : top, top);
        masses_of[i] = keep ? mass_here : 0;
        own += masses_of[i];
    }
    uint64_t chunk_mass;
    uint64_t sum = block_scan<THREADS>(own, masses, chunk_mass) - own;
    if (chosen_rest < sum || chosen_rest >= sum + own) return;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        sum += masses_of[i];
        if (sum > chosen_rest) {
            p.out[row] = first + i;
            return;
        }
    }
}

// Each chunk's mass above the threshold and its ties; the last block of a row draws.
extern "C" __global__ void __launch_bounds__(THREADS) sample_mass(const __grid_constant__ Sample p) {
    __shared__ uint64_t masses[THREADS / WARP];
    __shared__ uint32_t counts[THREADS / WARP];
    const uint32_t row = blockIdx.x / p.chunks, chunk = blockIdx.x % p.chunks;
    float score[ITEMS];
    load_scores(p, row, chunk, score);
    const State s = state_of(p, row);
    const float top = s.top;
    if (!finite(top)) {
        if (chunk == 0 && threadIdx.x == 0) p.out[row] = NONE;
        return;
    }
    uint64_t mass = 0;
    uint32_t ties = 0;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const uint32_t key = key_of(score[i]);
        const bool usable = score[i] > -INFINITY;
        const uint64_t own = mass_of(usable ? score[i] : top, top);
        mass += usable && key > s.threshold ? own : 0;
        ties += usable && key == s.threshold && s.keep_ties ? 1 : 0;
    }
    uint64_t all_mass;
    uint32_t all_ties;
    block_scan<THREADS>(mass, masses, all_mass);
    block_scan<THREADS>(ties, counts, all_ties);
    if (threadIdx.x == 0) {
        p.parts[blockIdx.x].mass = all_mass;
        p.parts[blockIdx.x].ties = all_ties;
    }
    if (last_of_row(p, row)) draw(p, row, s);
}
