//! The norm of the gradients and AdamW. `optimizer.cu`.
//!
//! Both run over flat f32 buffers of any length, aligned to 16 bytes. The clip factor is formed on the device, so that a step needs no host.

use crate::launch::{Geometry, Kernel, LaunchError, Launcher, Ptr};
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// f64 elements of scratch of [`norm`]: one a block of its first stage.
pub const NORM_SCRATCH: usize = 1024;
/// Threads of a block.
const THREADS: usize = 256;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Norm {
    x: Ptr<f32>,
    partial: Ptr<f64>,
    norm: Ptr<f32>,
    len: u64,
}
const _: () = assert!(size_of::<Norm>() == 32);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    grads: Ptr<f32>,
    values: Ptr<f32>,
    first: Ptr<f32>,
    second: Ptr<f32>,
    shadow: Ptr<bf16>,
    norm: Ptr<f32>,
    len: u64,
    step_size: f32,
    decay: f32,
    first_new: f32,
    beta2: f32,
    second_new: f32,
    root: f32,
    eps: f32,
    max_norm: f32,
}
const _: () = assert!(size_of::<Params>() == 88);

/// Settings of one AdamW step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Steps taken before, plus one.
    pub step: u64,
    /// Gradients with a larger norm are scaled down to it; needs `norm`.
    pub max_norm: Option<f64>,
}

/// The buffers of AdamW, `len` elements each.
#[derive(Debug, Clone, Copy)]
pub struct AdamWBuffers {
    /// Elements.
    pub len: usize,
    /// Gradients, only read.
    pub grads: Ptr<f32>,
    /// Trained values.
    pub values: Ptr<f32>,
    /// First moments.
    pub first: Ptr<f32>,
    /// Second moments.
    pub second: Ptr<f32>,
    /// A bf16 copy of the values, `=`; NULL for none.
    pub shadow: Ptr<bf16>,
    /// The gradients' norm, `[1]`: if it is not finite, nothing is changed. NULL: no check and no clipping.
    pub norm: Ptr<f32>,
}

fn kernel(name: &'static str) -> Kernel {
    Kernel {
        family: "optimizer",
        name,
    }
}

/// `out[0] = sqrt(sum x^2)`, summed in f64 in fixed order; `scratch` holds [`NORM_SCRATCH`] elements.
///
/// # Errors
/// The driver's refusal.
pub fn norm(
    l: &impl Launcher,
    len: usize,
    x: Ptr<f32>,
    out: Ptr<f32>,
    scratch: Ptr<f64>,
) -> Result<(), LaunchError> {
    let params = Norm {
        x,
        partial: scratch,
        norm: out,
        len: len as u64,
    };
    let geometry = |blocks: usize| Geometry {
        grid: [blocks as u32, 1, 1],
        block: THREADS as u32,
        shared: 0,
    };
    l.launch(kernel("norm_partials"), geometry(NORM_SCRATCH), &params)?;
    l.launch(kernel("norm_total"), geometry(1), &params)
}

/// One AdamW step: values, first and second moments (and the shadow) `=`.
///
/// # Errors
/// The driver's refusal.
pub fn adamw(l: &impl Launcher, s: &AdamWStep, b: &AdamWBuffers) -> Result<(), LaunchError> {
    if b.len == 0 {
        return Ok(());
    }
    l.launch(kernel("adamw"), geometry(b.len), &params(s, b))
}

fn geometry(len: usize) -> Geometry {
    Geometry {
        // At least one block, for the tail.
        grid: [(len / 4).div_ceil(THREADS).max(1) as u32, 1, 1],
        block: THREADS as u32,
        shared: 0,
    }
}

fn params(s: &AdamWStep, b: &AdamWBuffers) -> Params {
    let t = s.step as f64;
    Params {
        grads: b.grads,
        values: b.values,
        first: b.first,
        second: b.second,
        shadow: b.shadow,
        norm: b.norm,
        len: b.len as u64,
        step_size: (s.lr / (1.0 - s.beta1.powf(t))) as f32,
        decay: (1.0 - s.lr * s.weight_decay) as f32,
        first_new: (1.0 - s.beta1) as f32,
        beta2: s.beta2 as f32,
        second_new: (1.0 - s.beta2) as f32,
        root: (1.0 - s.beta2.powf(t)).sqrt() as f32,
        eps: s.eps as f32,
        max_norm: s.max_norm.map_or(f32::INFINITY, |m| m as f32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coefficients_are_rounded_once() {
        let step = AdamWStep {
            lr: 2e-4,
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            step: 1,
            max_norm: None,
        };
        let buffers = AdamWBuffers {
            len: 5,
            grads: Ptr::NULL,
            values: Ptr::NULL,
            first: Ptr::NULL,
            second: Ptr::NULL,
            shadow: Ptr::NULL,
            norm: Ptr::NULL,
        };
        let p = params(&step, &buffers);
        assert_eq!((p.step_size, p.max_norm), (2e-3, f32::INFINITY));
        assert!((p.root - 0.001f32.sqrt()).abs() < 1e-8);
        assert_eq!(
            [1, 4, 1024, 1028].map(|n| geometry(n).grid[0]),
            [1, 1, 1, 2]
        );
    }
}
