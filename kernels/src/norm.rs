//! RMSNorm forward and backward, and sums over columns (gradients of gains and biases). `norm.cu`.
//!
//! Columns are a multiple of 8, at most 32,768: a row lives in the registers of a warp or a block.

use crate::launch::{Geometry, Kernel, LaunchError, Launcher, Ptr};
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// Elements of a row that one thread holds.
const HELD: usize = 64;
/// Rows of one partial column sum.
const SLICE: usize = 128;
/// Columns of one block of a column sum.
const SUM_COLUMNS: usize = 256;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Forward {
    x: Ptr<bf16>,
    gain: Ptr<f32>,
    y: Ptr<bf16>,
    rstd: Ptr<f32>,
    rows: u32,
    columns: u32,
    eps: f32,
    reserved: u32,
}
const _: () = assert!(size_of::<Forward>() == 48);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Backward {
    x: Ptr<bf16>,
    rstd: Ptr<f32>,
    gain: Ptr<f32>,
    dy: Ptr<bf16>,
    dx: Ptr<bf16>,
    rows: u32,
    columns: u32,
}
const _: () = assert!(size_of::<Backward>() == 48);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ColumnSum {
    x: Ptr<bf16>,
    rstd: Ptr<f32>,
    dy: Ptr<bf16>,
    partial: Ptr<f32>,
    sum: Ptr<f32>,
    stride: u64,
    rows: u32,
    columns: u32,
}
const _: () = assert!(size_of::<ColumnSum>() == 56);

/// Who owns a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Warp,
    Block,
    Wide,
}

fn geometry(rows: usize, columns: usize) -> Result<(Owner, Geometry), LaunchError> {
    let (owner, rows_a_block, block) = match columns {
        _ if !columns.is_multiple_of(8) || columns == 0 => {
            return Err(LaunchError::Unsupported(format!(
                "a norm over {columns} columns: the kernels need a multiple of 8"
            )));
        }
        _ if columns <= 32 * HELD => (Owner::Warp, 4, 128),
        _ if columns <= 128 * HELD => (Owner::Block, 1, 128),
        _ if columns <= 512 * HELD => (Owner::Wide, 1, 512),
        _ => {
            return Err(LaunchError::Unsupported(format!(
                "a norm over {columns} columns: the kernels hold at most {}",
                512 * HELD
            )));
        }
    };
    let grid = [rows.div_ceil(rows_a_block) as u32, 1, 1];
    Ok((
        owner,
        Geometry {
            grid,
            block,
            shared: 0,
        },
    ))
}

fn kernel(name: &'static str) -> Kernel {
    Kernel {
        family: "norm",
        name,
    }
}

/// `y = x rstd gain`, `rstd = 1 / sqrt(mean(x^2) + eps)`; x, y `[rows, columns]`, rstd `[rows]`. y may be x.
///
/// # Errors
/// Columns that the kernels cannot take, or the driver's refusal.
pub fn forward(
    l: &impl Launcher,
    rows: usize,
    columns: usize,
    eps: f32,
    x: Ptr<bf16>,
    gain: Ptr<f32>,
    y: Ptr<bf16>,
    rstd: Ptr<f32>,
) -> Result<(), LaunchError> {
    let (owner, geometry) = geometry(rows, columns)?;
    let name = match owner {
        Owner::Warp => "norm_forward_warp",
        Owner::Block => "norm_forward_block",
        Owner::Wide => "norm_forward_wide",
    };
    let params = Forward {
        x,
        gain,
        y,
        rstd,
        rows: rows as u32,
        columns: columns as u32,
        eps,
        reserved: 0,
    };
    l.launch(kernel(name), geometry, &params)
}

/// Where a trained gain's gradient goes.
#[derive(Debug, Clone, Copy)]
pub struct GainGradient {
    /// `[columns]`, `+=`.
    pub dgain: Ptr<f32>,
    /// [`column_sum_scratch`] elements.
    pub scratch: Ptr<f32>,
}

/// `dx +=` the gradient of [`forward`]; with `gain_gradient`, `dgain += sum over rows of x rstd dy`.
///
/// # Errors
/// Columns that the kernels cannot take, or the driver's refusal.
pub fn backward(
    l: &impl Launcher,
    rows: usize,
    columns: usize,
    x: Ptr<bf16>,
    rstd: Ptr<f32>,
    gain: Ptr<f32>,
    dy: Ptr<bf16>,
    dx: Ptr<bf16>,
    gain_gradient: Option<GainGradient>,
) -> Result<(), LaunchError> {
    let (owner, geometry) = geometry(rows, columns)?;
    let name = match owner {
        Owner::Warp => "norm_backward_warp",
        Owner::Block => "norm_backward_block",
        Owner::Wide => "norm_backward_wide",
    };
    if let Some(GainGradient { dgain, scratch }) = gain_gradient {
        let sum = ColumnSum {
            x,
            rstd,
            dy,
            partial: scratch,
            sum: dgain,
            stride: columns as u64,
            rows: rows as u32,
            columns: columns as u32,
        };
        launch_column_sum(l, &sum)?;
    }
    let params = Backward {
        x,
        rstd,
        gain,
        dy,
        dx,
        rows: rows as u32,
        columns: columns as u32,
    };
    l.launch(kernel(name), geometry, &params)
}

/// f32 elements of scratch of a column sum.
pub fn column_sum_scratch(rows: usize, columns: usize) -> usize {
    rows.div_ceil(SLICE) * columns
}

/// `sum[c] += sum over rows of dy[row, c]` (the gradient of a bias); dy's rows lie `stride` elements apart; columns and stride are multiples
/// of 8. `scratch` holds [`column_sum_scratch`] elements.
///
/// # Errors
/// Columns that the kernels cannot take, or the driver's refusal.
pub fn column_sum(
    l: &impl Launcher,
    rows: usize,
    columns: usize,
    stride: usize,
    dy: Ptr<bf16>,
    sum: Ptr<f32>,
    scratch: Ptr<f32>,
) -> Result<(), LaunchError> {
    if !columns.is_multiple_of(8) || !stride.is_multiple_of(8) {
        return Err(LaunchError::Unsupported(format!(
            "a sum over {columns} columns at stride {stride}: both must be multiples of 8"
        )));
    }
    let params = ColumnSum {
        x: Ptr::NULL,
        rstd: Ptr::NULL,
        dy,
        partial: scratch,
        sum,
        stride: stride as u64,
        rows: rows as u32,
        columns: columns as u32,
    };
    launch_column_sum(l, &params)
}

fn launch_column_sum(l: &impl Launcher, params: &ColumnSum) -> Result<(), LaunchError> {
    if params.rows == 0 {
        return Ok(());
    }
    let [slices, total] = column_sum_geometry(params.rows as usize, params.columns as usize);
    l.launch(kernel("column_sum_slices"), slices, params)?;
    l.launch(kernel("column_sum_total"), total, params)
}

fn column_sum_geometry(rows: usize, columns: usize) -> [Geometry; 2] {
    let slices = rows.div_ceil(SLICE) * columns.div_ceil(SUM_COLUMNS);
    [(slices, 256), (columns.div_ceil(128), 128)].map(|(blocks, block)| Geometry {
        grid: [blocks as u32, 1, 1],
        block,
        shared: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_row_follows_its_width() {
        let of = |rows, columns| geometry(rows, columns).map(|(o, g)| (o, g.grid[0]));
        assert!(matches!(of(5, 2048), Ok((Owner::Warp, 2))));
        assert!(matches!(of(5, 2056), Ok((Owner::Block, 5))));
        assert!(matches!(of(0, 8192), Ok((Owner::Block, 0))));
        assert!(matches!(of(7, 32768), Ok((Owner::Wide, 7))));
        assert!(of(1, 32776).is_err() && of(1, 12).is_err() && of(1, 0).is_err());
    }

    #[test]
    fn column_sums_cover_every_row_and_column() {
        let [slices, total] = column_sum_geometry(129, 264);
        assert_eq!((slices.grid[0], total.grid[0]), (4, 3));
        assert_eq!(column_sum_scratch(129, 264), 528);
    }
}
