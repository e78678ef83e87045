//! What the GPU tests share: the device, random bf16 data, poisoned outputs, and the comparison with f64.
#![allow(dead_code, clippy::unwrap_used, clippy::print_stderr)]

use half::bf16;
use medft_kernels::device::{Buffer, Device};
use std::sync::OnceLock;

/// The sixteen values of an NF4 code (QLoRA, appendix E), apart from the engine's own.
pub const CODEBOOK: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The GPU, or `None` with a line on stderr; `MEDFT_REQUIRE_GPU=1` makes its absence a failure.
pub fn gpu() -> Option<&'static Device> {
    static DEVICE: OnceLock<Option<Device>> = OnceLock::new();
    DEVICE
        .get_or_init(|| match Device::open(0) {
            Ok(device) => Some(device),
            Err(e) if std::env::var_os("MEDFT_REQUIRE_GPU").is_none() => {
                eprintln!("skipped: {e}");
                None
            }
            Err(e) => panic!("MEDFT_REQUIRE_GPU is set: {e}"),
        })
        .as_ref()
}

/// splitmix64: random numbers from a seed, without a crate.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// About normal with this deviation (sum of four uniforms).
    pub fn normal(&mut self, deviation: f64) -> f64 {
        let sum: f64 = (0..4).map(|_| self.unit()).sum();
        (sum - 2.0) * 3f64.sqrt() * deviation
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n.max(1) as u64) as usize
    }

    pub fn bf16s(&mut self, len: usize, deviation: f64) -> Vec<bf16> {
        (0..len)
            .map(|_| bf16::from_f64(self.normal(deviation)))
            .collect()
    }

    pub fn f32s(&mut self, len: usize, deviation: f64) -> Vec<f32> {
        (0..len).map(|_| self.normal(deviation) as f32).collect()
    }
}

/// A bf16 output full of NaN: what a kernel leaves out is seen.
pub fn poisoned(device: &Device, len: usize) -> Buffer<bf16> {
    let buffer = device.alloc::<bf16>(len).unwrap();
    device.fill(buffer.ptr(), 0xff, len).unwrap();
    buffer
}

/// An f32 output full of NaN.
pub fn poisoned_f32(device: &Device, len: usize) -> Buffer<f32> {
    let buffer = device.alloc::<f32>(len).unwrap();
    device.fill(buffer.ptr(), 0xff, len).unwrap();
    buffer
}

/// Words full of ones.
pub fn poisoned_u32(device: &Device, len: usize) -> Buffer<u32> {
    let buffer = device.alloc::<u32>(len.max(1)).unwrap();
    device.fill(buffer.ptr(), 0xff, len.max(1)).unwrap();
    buffer
}

/// Fails with the first and the worst element where `|got - want| > bound(i)`, how many there are, and `what`.
pub fn within(what: &str, got: &[f64], want: &[f64], bound: impl Fn(usize) -> f64) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    let excess = |i: usize| {
        let difference = (got[i] - want[i]).abs();
        if difference.is_finite() {
            difference / bound(i).max(1e-300)
        } else {
            f64::INFINITY
        }
    };
    let wrong: Vec<usize> = (0..got.len()).filter(|&i| excess(i) > 1.0).collect();
    if let Some(&first) = wrong.first() {
        let worst = *wrong
            .iter()
            .max_by(|a, b| excess(**a).total_cmp(&excess(**b)))
            .unwrap();
        let show = |i: usize| format!("[{i}] got {} wanted {} bound {}", got[i], want[i], bound(i));
        panic!(
            "{what}: {} of {} elements wrong; first {}; worst {}",
            wrong.len(),
            got.len(),
            show(first),
            show(worst)
        );
    }
}

/// `||got - want|| / ||want||`.
pub fn relative(got: &[f64], want: &[f64]) -> f64 {
    let square = |x: f64| x * x;
    let error: f64 = got.iter().zip(want).map(|(g, w)| square(g - w)).sum();
    let norm: f64 = want.iter().map(|w| square(*w)).sum();
    if norm == 0.0 {
        error.sqrt()
    } else {
        (error / norm).sqrt()
    }
}

pub fn f64s(values: &[bf16]) -> Vec<f64> {
    values.iter().map(|v| v.to_f64()).collect()
}
