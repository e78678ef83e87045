//! What the tests of linear layers and of adapters share: random groups, and dropout masks by a Philox on the CPU.
#![allow(dead_code)]

use super::gpu::Random;
use super::gpu::poisoned_u32;
use medft_kernels::device::{Buffer, Device};
use medft_kernels::dropout::{self, Draw};
use medft_kernels::linear::{Dropout, Group, NO_LOW, StepState};

/// Of weights: products of a few hundred terms stay near 1.
pub const DEVIATION: f64 = 0.06;

/// The member that a column belongs to, and the column within it.
pub fn member_of(group: &Group, column: usize) -> (usize, usize) {
    let mut first = 0;
    for (m, &outputs) in group.outputs.iter().enumerate() {
        if column < first + outputs {
            return (m, column - first);
        }
        first += outputs;
    }
    panic!("column {column} of {group:?}")
}

/// Rows around the tiles' sides; inputs that no tile divides; one to three members.
pub fn random_group(random: &mut Random) -> Group {
    let rows = [1, 2, 17, 63, 64, 65, 127, 128, 129, 151][random.below(10)];
    let inputs = [8, 16, 40, 64, 72, 144, 160, 232][random.below(8)];
    let mut outputs = [0; 3];
    for n in outputs.iter_mut().take(1 + random.below(3)) {
        *n = [8, 32, 40, 128, 136, 160][random.below(6)];
    }
    Group {
        rows,
        inputs,
        outputs,
        low_at: [NO_LOW; 3],
        rank: [0, 16, 32, 48, 64, 96, 128][random.below(7)],
    }
}

/// Chooses which members are adapted.
pub fn settle(random: &mut Random, group: &mut Group) {
    adapt(group, [0; 3].map(|_| random.below(4) > 0));
}

/// Lays the adapted members' columns side by side.
pub fn adapt(group: &mut Group, adapted: [bool; 3]) {
    let mut at = 0;
    for m in 0..3 {
        group.low_at[m] = NO_LOW;
        if adapted[m] && group.outputs[m] > 0 && group.rank > 0 {
            group.low_at[m] = at;
            at += group.rank as u32;
        }
    }
}

/// Dropout of one call.
#[derive(Debug, Clone, Copy)]
pub struct Masks {
    pub state: StepState,
    pub threshold: u32,
    pub streams: [u32; 3],
}

pub fn masks(random: &mut Random) -> Masks {
    Masks {
        state: StepState {
            seed: random.bits(),
            step: random.bits() >> 30,
            first_token: [0, 5, (1 << 32) - 7, 1 << 33][random.below(4)],
            first_target: 0,
            loss_scale: 1.0,
        },
        threshold: [6554, 13107, 32768][random.below(3)],
        streams: [0; 3].map(|_| random.bits() as u32 >> 12),
    }
}

/// Masks on the GPU.
pub struct Drawn {
    pub dropout: Dropout,
    pub kept: Buffer<u32>,
}

impl Masks {
    pub fn keep_scale(&self) -> f32 {
        (1.0 / (1.0 - f64::from(self.threshold) / 65536.0)) as f32
    }

    pub fn draw(&self, device: &Device, group: &Group) -> Drawn {
        let state = device.upload(&[self.state]).unwrap();
        let kept = poisoned_u32(device, dropout::kept_len(group));
        let draw = Draw {
            threshold: self.threshold,
            state: state.ptr(),
            streams: self.streams,
        };
        dropout::draw(device, group, &draw, kept.ptr()).unwrap();
        let dropout = Dropout {
            kept: kept.ptr(),
            keep_scale: self.keep_scale(),
        };
        Drawn { dropout, kept }
    }

    /// 0 or the keep scale.
    pub fn factor(&self, member: usize, row: usize, column: usize) -> f64 {
        if self.uniform(member, row, column) < self.threshold {
            0.0
        } else {
            f64::from(self.keep_scale())
        }
    }

    /// `backend::Dropout`: word j, half h of lane q's draw is column 32 b + 8 j + 2 q + h.
    fn uniform(&self, member: usize, row: usize, column: usize) -> u32 {
        let (block, within) = (column / 32, column % 32);
        let (j, q, h) = (within / 8, within % 8 / 2, within % 2);
        let token = self.state.first_token + row as u64;
        let (seed, step, stream) = (self.state.seed, self.state.step, self.streams[member]);
        let key = [
            seed as u32 ^ step as u32,
            (seed >> 32) as u32 ^ (step >> 32) as u32 ^ stream.rotate_left(16),
        ];
        let counter = [
            token as u32,
            (token >> 32) as u32 ^ step as u32,
            (4 * block + q) as u32,
            stream,
        ];
        philox4x32(counter, key)[j] >> (16 * h) & 0xffff
    }
}

/// Philox4x32-10 of Random123.
pub fn philox4x32(
    [mut c0, mut c1, mut c2, mut c3]: [u32; 4],
    [mut k0, mut k1]: [u32; 2],
) -> [u32; 4] {
    let product = |a: u32, b: u32| {
        let wide = u64::from(a) * u64::from(b);
        ((wide >> 32) as u32, wide as u32)
    };
    for _ in 0..10 {
        let ((h0, l0), (h1, l1)) = (product(0xD251_1F53, c0), product(0xCD9E_8D57, c2));
        (c0, c1, c2, c3) = (h1 ^ c1 ^ k0, l1, h0 ^ c3 ^ k1, l0);
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}
