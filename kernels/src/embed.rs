//! Token embedding, forward and backward. `embed.cu`.
//!
//! The host has checked that every id is a row of the table.

use crate::launch::{Geometry, Kernel, LaunchError, Launcher, Ptr};
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// Tokens of a block of the forward kernels.
const WARPS: usize = 8;
/// Columns of a block of the backward kernel.
const RUN_COLUMNS: usize = 1024;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Forward {
    ids: Ptr<u32>,
    table: u64,
    x: Ptr<bf16>,
    tokens: u32,
    columns: u32,
}
const _: () = assert!(size_of::<Forward>() == 32);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Backward {
    ids: Ptr<u32>,
    order: Ptr<u32>,
    starts: Ptr<u32>,
    dx: Ptr<bf16>,
    dtable: Ptr<f32>,
    runs: u32,
    columns: u32,
}
const _: () = assert!(size_of::<Backward>() == 48);

/// The embeddings `[vocab, columns]`.
#[derive(Debug, Clone, Copy)]
pub enum Table {
    /// Frozen.
    Bf16(Ptr<bf16>),
    /// Trained: rounded to bf16 as it is read.
    F32(Ptr<f32>),
}

/// The rows of a batch sorted by token, made on the host once a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Runs {
    /// Rows, `[tokens]`: ascending by id, equal ids ascending by row.
    pub order: Vec<u32>,
    /// First entry in `order` of each distinct id, and the number of tokens at the end.
    pub starts: Vec<u32>,
}

impl Runs {
    /// Sorts a batch.
    pub fn of(ids: &[u32]) -> Self {
        let mut order: Vec<u32> = (0..ids.len() as u32).collect();
        order.sort_by_key(|&row| ids[row as usize]);
        let mut starts: Vec<u32> = (0..order.len())
            .filter(|&i| i == 0 || ids[order[i] as usize] != ids[order[i - 1] as usize])
            .map(|i| i as u32)
            .collect();
        starts.push(ids.len() as u32);
        Runs { order, starts }
    }

    /// Distinct ids.
    pub fn len(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// Whether the batch is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn check(columns: usize) -> Result<(), LaunchError> {
    if columns.is_multiple_of(8) {
        return Ok(());
    }
    Err(LaunchError::Unsupported(format!(
        "embeddings of {columns} columns: the kernels need a multiple of 8"
    )))
}

fn kernel(name: &'static str) -> Kernel {
    Kernel {
        family: "embed",
        name,
    }
}

/// `x[t] = table[ids[t]]`; ids `[tokens]`, x `[tokens, columns]`.
///
/// # Errors
/// A width that the kernels cannot take, or the driver's refusal.
pub fn forward(
    l: &impl Launcher,
    tokens: usize,
    columns: usize,
    ids: Ptr<u32>,
    table: Table,
    x: Ptr<bf16>,
) -> Result<(), LaunchError> {
    check(columns)?;
    let (name, table) = match table {
        Table::Bf16(table) => ("embed_bf16", table.address()),
        Table::F32(table) => ("embed_f32", table.address()),
    };
    let params = Forward {
        ids,
        table,
        x,
        tokens: tokens as u32,
        columns: columns as u32,
    };
    let geometry = Geometry {
        grid: [tokens.div_ceil(WARPS) as u32, 1, 1],
        block: 256,
        shared: 0,
    };
    l.launch(kernel(name), geometry, &params)
}

/// `dtable[ids[t]] += dx[t]`, the rows of an id in order; `order` and `starts` are those of [`Runs::of`], `runs` its length;
/// dtable `[vocab, columns]`.
///
/// # Errors
/// A width that the kernels cannot take, or the driver's refusal.
pub fn backward(
    l: &impl Launcher,
    runs: usize,
    columns: usize,
    ids: Ptr<u32>,
    order: Ptr<u32>,
    starts: Ptr<u32>,
    dx: Ptr<bf16>,
    dtable: Ptr<f32>,
) -> Result<(), LaunchError> {
    check(columns)?;
    let params = Backward {
        ids,
        order,
        starts,
        dx,
        dtable,
        runs: runs as u32,
        columns: columns as u32,
    };
    l.launch(
        kernel("embed_backward"),
        backward_geometry(runs, columns),
        &params,
    )
}

fn backward_geometry(runs: usize, columns: usize) -> Geometry {
    Geometry {
        grid: [(runs * columns.div_ceil(RUN_COLUMNS)) as u32, 1, 1],
        block: 256,
        shared: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_stable_and_cover_the_batch() {
        let runs = Runs::of(&[7, 3, 7, 0, 3, 7]);
        assert_eq!(runs.order, [3, 1, 4, 0, 2, 5]);
        assert_eq!(runs.starts, [0, 1, 3, 6]);
        assert_eq!(runs.len(), 3);
        assert!(Runs::of(&[]).is_empty());
        assert_eq!(Runs::of(&[]).starts, [0]);
    }

    #[test]
    fn a_block_for_each_run_and_1024_columns() {
        assert_eq!(backward_geometry(3, 1032).grid, [6, 1, 1]);
        assert_eq!(backward_geometry(0, 1032).grid, [0, 1, 1]);
    }
}
