// What happens to each element by itself, and rows that move.
//
//   h = silu(gate) up;  dgate = dh up s (1 + gate (1 - s)), dup = dh silu(gate), s = sigmoid(gate)      h =, dgate_up =
//   dx += dy;  x = 0;  bf16 <-> f32;  out[i] = x[rows[i]];  dx[rows[i]] = d[i], 0 in other rows
//
// gate_up [rows, 2 inner] (gate first), h, dh [rows, inner], matrices row-major bf16; arithmetic f32, one rounding a stored element.
// The backward pass reads an element's inputs before it writes: dgate_up may be gate_up, h may be dh.
//
// Budget, bytes an element of h: 6 forward, 10 backward, 12 with h; add 6 an element; conversions 6; moved rows 4. 30-50 instructions an
// element against 90 that the memory leaves time for. 2-4 independent 16-byte loads a thread and stream. Should reach 90 % of a copy.
#include "prim/math.cuh"
#include "prim/types.cuh"
#include "prim/warp.cuh"

constexpr int THREADS = 256;
constexpr int UNROLL = 4;        // vectors a thread, one block width apart: 64 bytes in flight a stream
constexpr int SWIGLU_UNROLL = 2; // of two or three streams
constexpr int ROW_WARPS = THREADS / WARP;

struct SwiGlu {
    const bf16* gate_up;
    const bf16* dh;     // backward only
    bf16* h;            // null in the backward pass: not wanted
    bf16* dgate_up;     // backward only
    uint32_t vectors;   // rows * inner / 8
    uint32_t inner8;    // inner / 8
};
static_assert(sizeof(SwiGlu) == 40, "as in src/elementwise.rs");

struct Flat {
    const void* from;
    void* to;
    uint64_t len;  // elements
};
static_assert(sizeof(Flat) == 24, "as in src/elementwise.rs");

struct Rows {
    const bf16* from;
    const uint32_t* rows;
    bf16* to;
    uint32_t count;    // entries of `rows`
    uint32_t total;    // rows of the scattered matrix
    uint32_t columns;  // multiple of 8
    uint32_t reserved;
};
static_assert(sizeof(Rows) == 40, "as in src/elementwise.rs");

// Offset of a vector of h in gate_up; up stands `inner` elements further.
__device__ __forceinline__ uint64_t gate_at(uint32_t vector, uint32_t inner8) {
    return ((uint64_t)vector + (uint64_t)(vector / inner8) * inner8) * 8;
}

extern "C" __global__ void __launch_bounds__(THREADS) swiglu_forward(const __grid_constant__ SwiGlu p) {
    const uint32_t first = blockIdx.x * (THREADS * SWIGLU_UNROLL) + threadIdx.x;
    Vec16 gate[SWIGLU_UNROLL], up[SWIGLU_UNROLL];
#pragma unroll
    for (int i = 0; i < SWIGLU_UNROLL; ++i) {
        const uint32_t v = first + i * THREADS;
        if (v >= p.vectors) continue;
        const uint64_t at = gate_at(v, p.inner8);
        gate[i] = load16(p.gate_up + at);
        up[i] = load16(p.gate_up + at + (uint64_t)p.inner8 * 8);
    }
#pragma unroll
    for (int i = 0; i < SWIGLU_UNROLL; ++i) {
        const uint32_t v = first + i * THREADS;
        if (v >= p.vectors) continue;
        Vec16 h;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float2 g = unpack_bf16(gate[i].w[j]), u = unpack_bf16(up[i].w[j]);
            h.w[j] = pack_bf16(g.x * sigmoid(g.x) * u.x, g.y * sigmoid(g.y) * u.y);
        }
        store16(p.h + (uint64_t)v * 8, h);
    }
}

struct SwiGluGradient { float dgate, dup, h; };
__device__ __forceinline__ SwiGluGradient swiglu_gradient(float gate, float up, float dh) {
    const float s = sigmoid(gate), silu = gate * s;
    return {dh * up * s * (1.f + gate * (1.f - s)), dh * silu, silu * up};
}

extern "C" __global__ void __launch_bounds__(THREADS) swiglu_backward(const __grid_constant__ SwiGlu p) {
    const uint32_t first = blockIdx.x * (THREADS * SWIGLU_UNROLL) + threadIdx.x;
    Vec16 gate[SWIGLU_UNROLL], up[SWIGLU_UNROLL], dh[SWIGLU_UNROLL];
#pragma unroll
    for (int i = 0; i < SWIGLU_UNROLL; ++i) {
        const uint32_t v = first + i * THREADS;
        if (v >= p.vectors) continue;
        const uint64_t at = gate_at(v, p.inner8);
        gate[i] = load16(p.gate_up + at);
        up[i] = load16(p.gate_up + at + (uint64_t)p.inner8 * 8);
        dh[i] = load16(p.dh + (uint64_t)v * 8);
    }
#pragma unroll
    for (int i = 0; i < SWIGLU_UNROLL; ++i) {
        const uint32_t v = first + i * THREADS;
        if (v >= p.vectors) continue;
        Vec16 dgate, dup, h;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float2 g = unpack_bf16(gate[i].w[j]), u = unpack_bf16(up[i].w[j]), d = unpack_bf16(dh[i].w[j]);
            const SwiGluGradient a = swiglu_gradient(g.x, u.x, d.x), b = swiglu_gradient(g.y, u.y, d.y);
            dgate.w[j] = pack_bf16(a.dgate, b.dgate);
            dup.w[j] = pack_bf16(a.dup, b.dup);
            h.w[j] = pack_bf16(a.h, b.h);
        }
        const uint64_t at = gate_at(v, p.inner8);
        store16(p.dgate_up + at, dgate);
        store16(p.dgate_up + at + (uint64_t)p.inner8 * 8, dup);
        if (p.h) store16(p.h + (uint64_t)v * 8, h);
    }
}

__device__ __forceinline__ Vec16 add_vectors(const Vec16& a, const Vec16& b) {
    Vec16 sum;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const float2 x = unpack_bf16(a.w[j]), y = unpack_bf16(b.w[j]);
        sum.w[j] = pack_bf16(x.x + y.x, x.y + y.y);
    }
    return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) add_bf16(const __grid_constant__ Flat p) {
    const bf16* from = static_cast<const bf16*>(p.from);
    bf16* to = static_cast<bf16*>(p.to);
    const uint64_t vectors = p.len / 8, first = (uint64_t)blockIdx.x * (THREADS * UNROLL) + threadIdx.x;
    Vec16 a[UNROLL], b[UNROLL];
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) {
        const uint64_t v = first + i * THREADS;
        if (v >= vectors) continue;
        a[i] = load16(from + v * 8);
        b[i] = load16(to + v * 8);
    }
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) {
        const uint64_t v = first + i * THREADS;
        if (v < vectors) store16(to + v * 8, add_vectors(a[i], b[i]));
    }
    const uint64_t tail = vectors * 8 + threadIdx.x;
    if (blockIdx.x == 0 && tail < p.len) to[tail] = to_bf16(to_float(to[tail]) + to_float(from[tail]));
}

// `len` pairs of bytes.
extern "C" __global__ void __launch_bounds__(THREADS) clear_pairs(const __grid_constant__ Flat p) {
    uint16_t* to = static_cast<uint16_t*>(p.to);
    const uint64_t vectors = p.len / 8, first = (uint64_t)blockIdx.x * (THREADS * UNROLL) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) {
        const uint64_t v = first + i * THREADS;
        if (v < vectors) store16(to + v * 8, Vec16{});
    }
    const uint64_t tail = vectors * 8 + threadIdx.x;
    if (blockIdx.x == 0 && tail < p.len) to[tail] = 0;
}

extern "C" __global__ void __launch_bounds__(THREADS) f32_to_bf16(const __grid_constant__ Flat p) {
    const float* from = static_cast<const float*>(p.from);
    bf16* to = static_cast<bf16*>(p.to);
    const uint64_t vectors = p.len / 8, first = (uint64_t)blockIdx.x * (THREADS * UNROLL) + threadIdx.x;
    Vec16 low[UNROLL], high[UNROLL];
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) {
        const uint64_t v = first + i * THREADS;
        if (v >= vectors) continue;
        low[i] = load16(from + v * 8);
        high[i] = load16(from + v * 8 + 4);
    }
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) {
        const uint64_t v = first + i * THREADS;
        if (v >= vectors) continue;
        Vec16 out;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            out.w[j] = pack_bf16(__uint_as_float(low[i].w[2 * j]), __uint_as_float(low[i].w[2 * j + 1]));
            out.w[2 + j] = pack_bf16(__uint_as_float(high[i].w[2 * j]), __uint_as_float(high[i].w[2 * j + 1]));
        }
        store16(to + v * 8, out);
    }
    const uint64_t tail = vectors * 8 + threadIdx.x;
    if (blockIdx.x == 0 && tail < p.len) to[tail] = to_bf16(from[tail]);
}

// Four elements a thread at a time: with eight, each store instruction filled half sectors and the kernel reached 70 % of a copy.
extern "C" __global__ void __launch_bounds__(THREADS) bf16_to_f32(const __grid_constant__ Flat p) {
    const bf16* from = static_cast<const bf16*>(p.from);
    float* to = static_cast<float*>(p.to);
    const uint64_t fours = p.len / 4, first = (uint64_t)blockIdx.x * (THREADS * UNROLL * 2) + threadIdx.x;
    uint2 held[UNROLL * 2];
#pragma unroll
    for (int i = 0; i < UNROLL * 2; ++i) {
        const uint64_t v = first + i * THREADS;
        if (v < fours) held[i] = reinterpret_cast<const uint2*>(from)[v];
    }
#pragma unroll
    for (int i = 0; i < UNROLL * 2; ++i) {
        const uint64_t v = first + i * THREADS;
        if (v < fours) store16(to + v * 4, Vec16{{held[i].x << 16, held[i].x & 0xffff0000u, held[i].y << 16, held[i].y & 0xffff0000u}});
    }
    const uint64_t tail = fours * 4 + threadIdx.x;
    if (blockIdx.x == 0 && tail < p.len) to[tail] = to_float(from[tail]);
}

// A warp copies a row, or writes zeros if there is none to copy.
__device__ __forceinline__ void write_row(bf16* to, const bf16* from, uint32_t columns) {
    for (uint32_t c = lane_id() * 8; c < columns; c += WARP * 8 * UNROLL) {
        Vec16 held[UNROLL];
#pragma unroll
        for (int i = 0; i < UNROLL; ++i) {
            const uint32_t at = c + i * WARP * 8;
            held[i] = from && at < columns ? load16(from + at) : Vec16{};
        }
#pragma unroll
        for (int i = 0; i < UNROLL; ++i) {
            const uint32_t at = c + i * WARP * 8;
            if (at < columns) store16(to + at, held[i]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) gather_rows(const __grid_constant__ Rows p) {
    const uint32_t i = blockIdx.x * ROW_WARPS + warp_id();
    if (i >= p.count) return;
    write_row(p.to + (uint64_t)i * p.columns, p.from + (uint64_t)p.rows[i] * p.columns, p.columns);
}

// A warp a row of the whole matrix: it looks the row up among the ascending `rows`.
extern "C" __global__ void __launch_bounds__(THREADS) scatter_rows(const __grid_constant__ Rows p) {
    const uint32_t row = blockIdx.x * ROW_WARPS + warp_id();
    if (row >= p.total) return;
    uint32_t low = 0, high = p.count;
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (p.rows[middle] < row) low = middle + 1;
        else high = middle;
    }
    const bool found = low < p.count && p.rows[low] == row;
    write_row(p.to + (uint64_t)row * p.columns, found ? p.from + (uint64_t)low * p.columns : nullptr, p.columns);
}
