//! The words that the CPU ops are made of: loops over slices, compiled once for each instruction set.
//!
//! Holds bodies that the compiler vectorises; it refuses shapes and threads. Invariant: the sum of a reduction runs in 16 fixed
//! lanes, so a result does not depend on where its data lie or how work is divided.

use crate::model::philox;

/// Lanes of a reduction: one AVX-512 register of f32.
pub const LANES: usize = 16;

/// Compiles the body for AVX-512, for AVX2 with FMA and for the baseline, and picks at run time.
macro_rules! for_each_isa {
    ($(#[$doc:meta])* pub fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        pub fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<const FMA: bool>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { body::<true>($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { body::<true>($($arg),*) }
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the features were just found on this CPU; AVX-512 implies AVX2 and FMA.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the features were just found on this CPU.
                    return unsafe { avx2($($arg),*) };
                }
            }
            // Every 64-bit Arm has fused multiply-add.
            body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}

/// `a * b + c`, fused where the instruction exists (a library call elsewhere would be slow).
#[inline(always)]
fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// bfloat16 bits to f32, exactly.
#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// e^x for |x| up to 87, within 2 ulp: range reduction and polynomial of Cephes' `expf`; no branches, so that loops vectorise.
#[inline(always)]
fn exp<const FMA: bool>(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to the nearest integer
    let x = x.clamp(-87.0, 88.0);
    let shifted = fma::<FMA>(x, std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = fma::<FMA>(n, -0.693_359_4, x);
    let r = fma::<FMA>(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    p = fma::<FMA>(p, r, 1.398_2e-3);
    p = fma::<FMA>(p, r, 8.333_452e-3);
    p = fma::<FMA>(p, r, 4.166_579_6e-2);
    p = fma::<FMA>(p, r, 1.666_666_5e-1);
    p = fma::<FMA>(p, r, 0.5);
    let e = fma::<FMA>(p, r * r, r) + 1.0;
    // n stands in the low bits of `shifted`, and in [-126, 127] after the clamp: 2^n.
    e * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()))
}

#[inline(always)]
fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// The sum of the lanes, as a fixed tree of halves. Not inlined: the compiler would cut or mix the accumulators of the loop before it to
/// vectorise these few additions, and run that loop 3 times slower.
#[inline(never)]
fn lane_sum(acc: [f32; LANES]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| acc[i] + acc[i + 8]);
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

for_each_isa! {
    /// Sum of `a[i] * b[i]`.
    pub fn dot(a: &[f32], b: &[f32]) -> f32 {
        let mut acc = [0.0f32; LANES];
        let (heads_a, tail_a) = a.as_chunks::<LANES>();
        let (heads_b, tail_b) = b.as_chunks::<LANES>();
        for (x, y) in heads_a.iter().zip(heads_b) {
            for i in 0..LANES {
                acc[i] = fma::<FMA>(x[i], y[i], acc[i]);
            }
        }
        let mut tail = 0.0;
        for (x, y) in tail_a.iter().zip(tail_b) {
            tail += x * y;
        }
        lane_sum(acc) + tail
    }
}

/// `acc += x * w`, lane by lane.
#[inline(always)]
fn fma_lanes<const FMA: bool>(acc: &mut [f32; LANES], x: &[f32; LANES], w: &[f32; LANES]) {
    for i in 0..LANES {
        acc[i] = fma::<FMA>(x[i], w[i], acc[i]);
    }
}

for_each_isa! {
    /// Four dot products that share one read of `w`: `[x[r] . w]`, the bits of [`dot`].
    pub fn dot4(x: [&[f32]; 4], w: &[f32]) -> [f32; 4] {
        // Four variables: an array of accumulators stays in memory and is computed lane by lane (10 times slower).
        let [mut a0, mut a1, mut a2, mut a3] = [[0.0f32; LANES]; 4];
        let [(x0, t0), (x1, t1), (x2, t2), (x3, t3)] = x.map(|row| row.as_chunks::<LANES>());
        let (heads, tail) = w.as_chunks::<LANES>();
        for ((((w, x0), x1), x2), x3) in heads.iter().zip(x0).zip(x1).zip(x2).zip(x3) {
            fma_lanes::<FMA>(&mut a0, x0, w);
            fma_lanes::<FMA>(&mut a1, x1, w);
            fma_lanes::<FMA>(&mut a2, x2, w);
            fma_lanes::<FMA>(&mut a3, x3, w);
        }
        let rest = |x: &[f32]| {
            let mut sum = 0.0;
            for (x, w) in x.iter().zip(tail) {
                sum += x * w;
            }
            sum
        };
        [
            lane_sum(a0) + rest(t0),
            lane_sum(a1) + rest(t1),
            lane_sum(a2) + rest(t2),
            lane_sum(a3) + rest(t3),
        ]
    }
}

for_each_isa! {
    /// Sum of `a[i] * w[i]` with bfloat16 `w`, without a copy of `w`.
    pub fn dot_bf16(a: &[f32], w: &[u16]) -> f32 {
        let mut acc = [0.0f32; LANES];
        let (heads_a, tail_a) = a.as_chunks::<LANES>();
        let (heads_w, tail_w) = w.as_chunks::<LANES>();
        for (x, y) in heads_a.iter().zip(heads_w) {
            for i in 0..LANES {
                acc[i] = fma::<FMA>(x[i], bf16_to_f32(y[i]), acc[i]);
            }
        }
        let mut tail = 0.0;
        for (x, y) in tail_a.iter().zip(tail_w) {
            tail += x * bf16_to_f32(*y);
        }
        lane_sum(acc) + tail
    }
}

for_each_isa! {
    /// `y += a * x`.
    pub fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = fma::<FMA>(a, *x, *y);
        }
    }
}

for_each_isa! {
    /// `y += x`.
    pub fn add(x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }
}

for_each_isa! {
    /// `to = from`, widened exactly.
    pub fn widen_bf16(from: &[u16], to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = bf16_to_f32(*from);
        }
    }
}

for_each_isa! {
    /// `x = exp(x * scale - shift)`; returns the sum.
    pub fn exp_sum(x: &mut [f32], scale: f32, shift: f32) -> f32 {
        let mut acc = [0.0f32; LANES];
        let (blocks, tail) = x.as_chunks_mut::<LANES>();
        for block in blocks {
            for i in 0..LANES {
                block[i] = exp::<FMA>(fma::<FMA>(block[i], scale, -shift));
                acc[i] += block[i];
            }
        }
        let mut rest = 0.0;
        for value in tail {
            *value = exp::<FMA>(fma::<FMA>(*value, scale, -shift));
            rest += *value;
        }
        lane_sum(acc) + rest
    }
}

for_each_isa! {
    /// Largest element; `-inf` of nothing. A NaN is passed over.
    pub fn max(x: &[f32]) -> f32 {
        let mut acc = [f32::NEG_INFINITY; LANES];
        let (blocks, tail) = x.as_chunks::<LANES>();
        for block in blocks {
            for i in 0..LANES {
                acc[i] = if block[i] > acc[i] { block[i] } else { acc[i] };
            }
        }
        let mut top = f32::NEG_INFINITY;
        for value in acc.iter().chain(tail) {
            top = if *value > top { *value } else { top };
        }
        top
    }
}

for_each_isa! {
    /// `x *= a`.
    pub fn scale(a: f32, x: &mut [f32]) {
        for value in x {
            *value *= a;
        }
    }
}

for_each_isa! {
    /// `h = silu(gate) * up`.
    pub fn swiglu(gate: &[f32], up: &[f32], h: &mut [f32]) {
        for ((h, g), u) in h.iter_mut().zip(gate).zip(up) {
            *h = g * sigmoid::<FMA>(*g) * u;
        }
    }
}

for_each_isa! {
    /// Gradients of [`swiglu`]: `dgate = dh * up * sig * (1 + gate * (1 - sig))`, `dup = dh * silu(gate)`.
    pub fn swiglu_backward(gate: &[f32], up: &[f32], dh: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
        for i in 0..dh.len().min(gate.len()).min(up.len()).min(dgate.len()).min(dup.len()) {
            let sig = sigmoid::<FMA>(gate[i]);
            dgate[i] = dh[i] * up[i] * sig * (1.0 + gate[i] * (1.0 - sig));
            dup[i] = dh[i] * gate[i] * sig;
        }
    }
}

for_each_isa! {
    /// Scores to gradients of scores: `ds = p * (dp - d) * scale`, written over `dp`.
    pub fn softmax_backward(p: &[f32], d: f32, scale: f32, dp: &mut [f32]) {
        for (dp, p) in dp.iter_mut().zip(p) {
            *dp = p * (*dp - d) * scale;
        }
    }
}

for_each_isa! {
    /// One row of RMSNorm: `y = x * rstd * gain`.
    pub fn norm_row(x: &[f32], gain: &[f32], rstd: f32, y: &mut [f32]) {
        for ((y, x), g) in y.iter_mut().zip(x).zip(gain) {
            *y = x * rstd * g;
        }
    }
}

for_each_isa! {
    /// One row of RMSNorm's gradient: `dx += rstd * (gain * dy - x * rstd^2 * mean(gain * dy * x))`.
    pub fn norm_row_backward(x: &[f32], gain: &[f32], rstd: f32, dy: &[f32], dx: &mut [f32]) {
        let mut acc = [0.0f32; LANES];
        let ((xs, x_tail), (gains, gain_tail), (dys, dy_tail)) =
            (x.as_chunks::<LANES>(), gain.as_chunks::<LANES>(), dy.as_chunks::<LANES>());
        for ((x, gain), dy) in xs.iter().zip(gains).zip(dys) {
            for i in 0..LANES {
                acc[i] += x[i] * gain[i] * dy[i];
            }
        }
        let mut tail = 0.0;
        for ((x, gain), dy) in x_tail.iter().zip(gain_tail).zip(dy_tail) {
            tail += x * gain * dy;
        }
        let pull = (lane_sum(acc) + tail) * rstd * rstd / x.len() as f32;
        for i in 0..x.len().min(dy.len()).min(gain.len()).min(dx.len()) {
            dx[i] += rstd * (gain[i] * dy[i] - x[i] * pull);
        }
    }
}

/// Coefficients of one AdamW step, worked out in f64 and rounded once.
#[derive(Clone, Copy)]
pub struct AdamW {
    /// `lr / (1 - beta1^t)`.
    pub step_size: f32,
    /// `1 - lr * weight_decay`.
    pub decay: f32,
    /// `1 - beta1`.
    pub first: f32,
    /// beta2.
    pub beta2: f32,
    /// `1 - beta2`.
    pub second: f32,
    /// `sqrt(1 - beta2^t)`.
    pub root: f32,
    /// Added to the denominator.
    pub eps: f32,
    /// Factor of the gradients.
    pub clip: f32,
}

for_each_isa! {
    /// AdamW on a range, in the order of operations of PyTorch's single-tensor form.
    pub fn adamw(c: AdamW, grads: &[f32], values: &mut [f32], first: &mut [f32], second: &mut [f32]) {
        let n = grads.len().min(values.len()).min(first.len()).min(second.len());
        for i in 0..n {
            let g = grads[i] * c.clip;
            first[i] += (g - first[i]) * c.first;
            second[i] = second[i] * c.beta2 + g * g * c.second;
            let denominator = second[i].sqrt() / c.root + c.eps;
            values[i] = values[i] * c.decay - c.step_size * first[i] / denominator;
        }
    }
}

for_each_isa! {
    /// Sines and cosines of `position * frequency[i]`, rounded from f64: Cody and Waite's reduction to a quarter turn (fdlibm's
    /// constants, exact up to a million of them), then Taylor's series, whose next terms are below 1e-10. No branches, so that it vectorises.
    pub fn sin_cos(position: f64, frequency: &[f64], sin: &mut [f32], cos: &mut [f32]) {
        const MAGIC: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52: adding it rounds to an integer, which the low bits then hold
        const QUARTER: f64 = 1.570_796_326_734_125_6; // 33 bits of pi / 2
        const QUARTER_REST: f64 = 6.077_100_506_506_192e-11;
        for ((f, sin), cos) in frequency.iter().zip(sin).zip(cos) {
            let angle = position * f;
            let shifted = angle * std::f64::consts::FRAC_2_PI + MAGIC;
            let (turns, quadrant) = (shifted - MAGIC, shifted.to_bits());
            let r = angle - turns * QUARTER - turns * QUARTER_REST;
            let q = r * r;
            let odd = 1.0 / 120.0 - q * (1.0 / 5040.0 - q * (1.0 / 362_880.0 - q / 39_916_800.0));
            let s = r - r * q * (1.0 / 6.0 - q * odd);
            let even = 1.0 / 24.0 - q * (1.0 / 720.0 - q * (1.0 / 40_320.0 - q / 3_628_800.0));
            let c = 1.0 - q * (0.5 - q * even);
            let (s, c) = if quadrant & 1 == 0 { (s, c) } else { (c, s) };
            *sin = if quadrant & 2 == 0 { s } else { -s } as f32;
            *cos = if (quadrant + 1) & 2 == 0 { c } else { -c } as f32;
        }
    }
}

for_each_isa! {
    /// `x[c] = draw[c] < threshold ? 0 : x[c] * keep` with the 16-bit draws of one token, which [`crate::backend::Dropout`] maps to
    /// columns; `counter` is that of the first call.
    pub fn dropout(key: [u32; 2], counter: [u32; 4], threshold: u32, keep: f32, x: &mut [f32]) {
        for (chunk, values) in x.chunks_mut(8 * LANES).enumerate() {
            // Words in the low halves of u64 lanes, where the wide product finds them; high halves are cut off at its input.
            let low = |lanes: [u64; LANES]| lanes.map(|w| w & 0xffff_ffff);
            let [mut c0, mut c1, mut c2, mut c3] = counter.map(|word| [u64::from(word); LANES]);
            c2 = std::array::from_fn(|i| c2[i] + (chunk * LANES + i) as u64);
            let [mut k0, mut k1] = key;
            for _ in 0..philox::ROUNDS {
                let product0 = low(c0).map(|c| c * u64::from(philox::MULTIPLIER[0]));
                let product1 = low(c2).map(|c| c * u64::from(philox::MULTIPLIER[1]));
                c0 = std::array::from_fn(|i| (product1[i] >> 32) ^ c1[i] ^ u64::from(k0));
                c2 = std::array::from_fn(|i| (product0[i] >> 32) ^ c3[i] ^ u64::from(k1));
                (c1, c3) = (product1, product0);
                k0 = k0.wrapping_add(philox::WEYL[0]);
                k1 = k1.wrapping_add(philox::WEYL[1]);
            }
            // Call 4 b + q has, in its word j, the draws of the columns 32 b + 8 j + 2 q and the next one.
            let mut draws = [0u32; 8 * LANES];
            for (b, block) in draws.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                for (j, words) in [&c0, &c1, &c2, &c3].into_iter().enumerate() {
                    for q in 0..4 {
                        let word = words[4 * b + q] as u32;
                        block[8 * j + 2 * q] = word & 0xffff;
                        block[8 * j + 2 * q + 1] = word >> 16;
                    }
                }
            }
            for (value, draw) in values.iter_mut().zip(draws) {
                *value = if draw < threshold { 0.0 } else { *value * keep };
            }
        }
    }
}
