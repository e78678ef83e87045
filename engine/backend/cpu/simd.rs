//! The words that the CPU ops are made of: loops over slices, compiled once for each instruction set.
//!
//! Holds bodies that the compiler vectorises; it refuses shapes and threads. Invariant: the sum of a reduction runs in 16 fixed
//! lanes, so a result does not depend on where its data lie or how work is divided.

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
    let n = fma::<FMA>(x, std::f32::consts::LOG2_E, MAGIC) - MAGIC;
    let r = fma::<FMA>(n, -0.693_359_4, x);
    let r = fma::<FMA>(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    p = fma::<FMA>(p, r, 1.398_2e-3);
    p = fma::<FMA>(p, r, 8.333_452e-3);
    p = fma::<FMA>(p, r, 4.166_579_6e-2);
    p = fma::<FMA>(p, r, 1.666_666_5e-1);
    p = fma::<FMA>(p, r, 5.000_000_1e-1);
    let e = fma::<FMA>(p, r * r, r) + 1.0;
    // n is in [-126, 127] after the clamp.
    e * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

#[inline(always)]
fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

#[inline(always)]
fn lane_sum(acc: [f32; LANES]) -> f32 {
    let mut sum = 0.0;
    for value in acc {
        sum += value;
    }
    sum
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

for_each_isa! {
    /// Four dot products that share one read of `w`: `[x[r] . w]`.
    pub fn dot4(x: [&[f32]; 4], w: &[f32]) -> [f32; 4] {
        let mut acc = [[0.0f32; LANES]; 4];
        let blocks = w.len() / LANES;
        let (wb, wt) = w.as_chunks::<LANES>();
        let xb = x.map(|row| row.as_chunks::<LANES>());
        for k in 0..blocks {
            for r in 0..4 {
                for i in 0..LANES {
                    acc[r][i] = fma::<FMA>(xb[r].0[k][i], wb[k][i], acc[r][i]);
                }
            }
        }
        let mut out = [0.0; 4];
        for r in 0..4 {
            let mut tail = 0.0;
            for (a, b) in xb[r].1.iter().zip(wt) {
                tail += a * b;
            }
            out[r] = lane_sum(acc[r]) + tail;
        }
        out
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
        for i in 0..x.len().min(dy.len()).min(gain.len()) {
            acc[i % LANES] += x[i] * gain[i] * dy[i];
        }
        let pull = lane_sum(acc) * rstd * rstd / x.len() as f32;
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
