//! What a plan and `doctor` have to know of a GPU.
//!
//! Invariant: the sizes here are those that the ops and the loaders beside it allocate.

use super::attention::kernel_heads;
use super::batch::filled;
use super::head::{loss_bytes, score_bytes};
use super::linear::{backward_bytes, forward_bytes, kernel_group};
use super::matrix::ROWS;
use super::memory::taken;
use super::ops::embed_bytes;
use super::{Cuda, Device, NoDevice};
use crate::backend::Heads;
use crate::backend::facts::{Facts, GroupShape, MatrixShape, Memory, Passes, Rates};
use crate::machine::gpu::{Gpu, Graphics, Kernels};
use crate::model::nf4;
use half::bf16;
use medft_dsl::plan::Precision;
use medft_kernels::{LaunchError, Launcher, decode, fatbins, norm, optimizer, sample};

/// Machine code of the kernels, tables of batches, and what the driver rounds up: a guess on the high side, not a measurement.
const RESERVE: usize = 256 << 20;

/// Kernels of this build.
pub fn kernels() -> Kernels {
    Kernels {
        toolkit: fatbins::TOOLKIT,
        architectures: fatbins::ARCHITECTURES
            .iter()
            .map(|a| a.to_string())
            .collect(),
    }
}

/// All GPUs, and what they would run. Takes a second where the driver is not awake.
pub fn graphics() -> Graphics {
    let mut found = Graphics {
        kernels: Some(kernels()),
        ..Graphics::default()
    };
    for ordinal in 0.. {
        let gpu = match Device::open(ordinal) {
            Ok(device) => {
                found.driver_cuda = Some(device.driver_version());
                describe(&device)
            }
            Err(NoDevice::TooOld { name, major, minor }) => {
                let capability = (major, minor);
                Gpu {
                    name,
                    capability: Some(capability),
                    memory: None,
                    kernels: None,
                    problem: kernels().for_gpu(capability, (u32::MAX, 0), false).err(),
                }
            }
            Err(NoDevice::NoGpu(_)) if ordinal > 0 => break,
            Err(e) => {
                found.problem = Some(e.to_string());
                break;
            }
        };
        found.gpus.push(gpu);
    }
    found
}

fn describe(device: &Device) -> Gpu {
    let gpu = device.gpu();
    let kernels = kernels().for_gpu(gpu.capability, device.driver_version(), gpu.hopper);
    Gpu {
        name: gpu.name.clone(),
        capability: Some(gpu.capability),
        memory: memory(device),
        kernels: kernels.clone().ok(),
        problem: kernels.err(),
    }
}

fn memory(device: &Device) -> Option<Memory> {
    let (free, total) = device.free_memory().ok()?;
    Some(Memory { free, total })
}

impl Cuda {
    /// Opens a GPU that this build has kernels for.
    ///
    /// # Errors
    /// A sentence: no driver, no GPU, one that is too old, a driver that is, a build without kernels for it.
    pub fn open_usable() -> Result<Self, String> {
        let cuda = Cuda::open().map_err(|e| e.to_string())?;
        let gpu = describe(cuda.device());
        match gpu.problem {
            None => Ok(cuda),
            Some(problem) => Err(format!("{}: {problem}", gpu.name)),
        }
    }

    /// Bytes a second of a copy within its memory, read and written.
    fn bandwidth(&self) -> Result<f64, LaunchError> {
        const LEN: usize = 256 << 20;
        let d = self.device();
        let (from, to) = (d.alloc::<u8>(LEN)?, d.alloc::<u8>(LEN)?);
        d.fill(from.ptr(), 0x3c, LEN)?;
        d.copy(to.ptr(), from.ptr(), LEN)?;
        let milliseconds = d.time(|| (0..4).try_for_each(|_| d.copy(to.ptr(), from.ptr(), LEN)))?;
        Ok(4.0 * 2.0 * LEN as f64 / (1e-3 * f64::from(milliseconds)))
    }
}

impl Facts for Cuda {
    /// Product and copy are timed here. The shares are chosen so that Qwen2.5-3B on an H100 comes out as measured (benches/RESULTS.md, 2026-11-24:
    /// 474 ms a step of 32 x 512, 269 ms for 48 prompts of 512, 3.4 and 5.6 ms a decoding step of 1 and 48 rows), for a product of about
    /// 630 TFLOP/s and a copy of about 2.9 TB/s, which were not measured in the same run.
    fn rates(&self) -> Rates {
        // Where timing fails, the numbers of an A100 (312 TFLOP/s and 1.5 TB/s by its data sheet, half of both).
        let bandwidth = self.bandwidth().unwrap_or(7.5e11);
        Rates {
            product: self.measure().unwrap_or(1.5e14),
            pass: 0.8,
            decode: 0.3,
            decode_fixed: 0.0,
            weights: 0.7 * bandwidth,
            memory: 0.6 * bandwidth,
            // A decoding step is one graph, and a training step's launches are hidden by its kernels.
            layer: 1e-5,
        }
    }

    fn memory(&self) -> Option<Memory> {
        memory(self.device())
    }

    fn forget_peak(&self) {
        self.device().forget_peak();
    }

    fn peak(&self) -> Option<u64> {
        Some(self.device().peak())
    }

    /// The tensor cores take bf16: f32 has no place here.
    fn held_as(&self, precision: Precision) -> Precision {
        match precision {
            Precision::F32 | Precision::Bf16 => Precision::Bf16,
            Precision::Nf4 => Precision::Nf4,
        }
    }

    /// 32 rows of 512, as benches/RESULTS.md times steps; whether more are faster was not measured.
    fn pass_tokens(&self) -> usize {
        16_384
    }

    fn matrix_bytes(&self, m: MatrixShape, precision: Precision, double_quant: bool) -> u64 {
        match self.held_as(precision) {
            Precision::Nf4 => nf4::bytes((m.rows * m.inputs) as u64, double_quant),
            _ => (size_of::<bf16>() * m.rows.next_multiple_of(ROWS) * m.inputs) as u64,
        }
    }

    fn cache_bytes(&self, layers: usize, slots: usize, capacity: usize, heads: &Heads) -> u64 {
        let capacity = capacity.next_multiple_of(super::attention::PAGE);
        let values = 2 * layers * slots * heads.keys * capacity * heads.dim;
        (size_of::<bf16>() * values) as u64
    }

    fn scratch_bytes(&self, passes: &Passes) -> u64 {
        (borrowed(passes) + RESERVE) as u64
    }
}

/// Bytes that the ops of such passes borrow: the most that one of them does.
pub fn borrowed(passes: &Passes) -> usize {
    let p = &match passes.cached {
        Some(_) => passes.clone(),
        None => {
            let (tokens, targets) = filled(passes.tokens, passes.targets);
            Passes {
                tokens,
                targets,
                ..passes.clone()
            }
        }
    };
    let groups = p.groups.iter().map(|g| group_scratch(g, p)).max();
    let ops = [
        groups.unwrap_or(0),
        attention_scratch(p),
        head_scratch(p),
        full_scratch(p),
        sampler_scratch(p),
        8 * optimizer::NORM_SCRATCH,
    ];
    ops.into_iter().max().unwrap_or(0)
}

/// Gradients of gains and of the embedding.
fn full_scratch(p: &Passes) -> usize {
    if !(p.full && p.training) {
        return 0;
    }
    let gain = 4 * norm::column_sum_scratch(p.tokens, p.hidden);
    gain.max(taken(&embed_bytes(p.tokens)))
}

/// A linear layer's, forward and backward; in training with dropout's masks.
fn group_scratch(shape: &GroupShape, p: &Passes) -> usize {
    let members = shape
        .outputs
        .iter()
        .copied()
        .zip(shape.ranks.iter().copied());
    let group = kernel_group(p.tokens, shape.inputs, members);
    let wide = p.full || p.precision == Precision::Nf4;
    let forward = taken(&forward_bytes(&group, wide, p.training));
    if !p.training {
        return forward;
    }
    forward.max(taken(&backward_bytes(&group, wide, p.full, true)))
}

fn attention_scratch(p: &Passes) -> usize {
    let rows = 4 * p.heads.queries * p.tokens;
    let partial = p.cached.map_or(0, |(slots, room)| {
        4 * decode::scratch_len(&kernel_heads(p.heads), slots, room)
    });
    taken(&[partial, rows])
}

/// The head's: loss and gradient in chunks, or the logits of a decoding step.
fn head_scratch(p: &Passes) -> usize {
    let shape = [p.hidden, p.vocab, p.targets];
    match p.cached {
        Some(_) => taken(&score_bytes(shape, p.full)),
        None => taken(&loss_bytes(shape, p.full, p.full, p.training)),
    }
}

fn sampler_scratch(p: &Passes) -> usize {
    let Some((slots, room)) = p.cached else {
        return 0;
    };
    let who = slots * size_of::<sample::Row>();
    taken(&[
        who,
        4 * slots * room,
        sample::scratch_bytes(slots, p.vocab),
        4 * slots,
    ])
}
