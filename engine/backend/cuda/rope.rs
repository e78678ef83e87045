//! Cosines and sines of RoPE for every position, computed once in f64.

use crate::backend::Heads;
use medft_kernels::device::{Buffer, Device};
use medft_kernels::{LaunchError, Ptr};

/// Positions that a table has at least.
const SHORTEST: usize = 1024;

/// The table of the model in use.
#[derive(Default)]
pub struct RopeTable {
    inv_freq: Vec<f64>,
    positions: usize,
    table: Option<Buffer<f32>>,
}

impl RopeTable {
    /// Where the table lies now.
    pub fn address(&self) -> u64 {
        self.table.as_ref().map_or(0, |t| t.ptr().address())
    }

    /// Pairs (cos, sin), `[at least context, dim / 2, 2]`.
    pub fn get(&self, heads: &Heads, context: usize) -> Result<Ptr<f32>, LaunchError> {
        match &self.table {
            Some(table) if self.positions >= context && self.inv_freq == heads.inv_freq => {
                Ok(table.ptr())
            }
            _ => Err(LaunchError::Unsupported(format!(
                "no rotation was planned for position {context}: this is a bug, please report it"
            ))),
        }
    }

    /// Makes a table for so many positions, unless there is one.
    pub fn reserve(
        &mut self,
        device: &Device,
        heads: &Heads,
        context: usize,
    ) -> Result<(), LaunchError> {
        if self.get(heads, context).is_ok() {
            return Ok(());
        }
        let positions = context.next_power_of_two().max(SHORTEST);
        let pairs = (0..positions)
            .flat_map(|p| heads.inv_freq.iter().map(move |f| (p as f64 * f).sin_cos()));
        let table: Vec<f32> = pairs
            .flat_map(|(sin, cos)| [cos as f32, sin as f32])
            .collect();
        let table = device.upload(&table)?;
        *self = RopeTable {
            inv_freq: heads.inv_freq.clone(),
            positions,
            table: Some(table),
        };
        Ok(())
    }
}
