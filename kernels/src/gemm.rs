//! The portable matrix products (`gemm.cu`, sm_80 and up): linear layers forward and backward, and bare products.
//!
//! Holds the ops; `product` holds what the kernels take, the tiles and their choice. Each row of a result has the same bits whatever the
//! number of rows and the tile: every tile sums in ascending k by steps of 16. Invariant: K, N and all strides are multiples of 8.

mod product;

use crate::dropout::Masks;
use crate::launch::{LaunchError, Launcher, Ptr};
use crate::linear::{Backward, Dropout, Epilogue, Forward, Group, MEMBERS, NO_LOW};
use bytemuck::Zeroable;
use half::bf16;
use product::{
    ENOUGH_LARGE, NN, NN_DROPOUT, NN_NARROW, NT, Part, Product, Tile, choose, mode, run,
};

/// Which tile an op takes. The bits of the result are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Size {
    /// By the shape.
    #[default]
    Auto,
    /// 128 rows, 256 columns; large where it does not fit.
    Wide,
    /// 128 rows and columns.
    Large,
    /// 64 rows, 32 columns.
    Small,
}

/// Checks what every linear op relies on.
fn check(group: &Group) -> Result<(), LaunchError> {
    if !group.rank.is_multiple_of(16) || group.rank > 128 {
        return Err(LaunchError::Unsupported(format!(
            "padded rank {}: the kernels take multiples of 16 up to 128",
            group.rank
        )));
    }
    Ok(())
}

/// `y = epilogue(x W^T + low B^T + bias)`, see [`Forward`].
///
/// # Errors
/// Shapes that are no multiples of 8 (RoPE: heads of 16 columns), or the driver's refusal.
pub fn forward(l: &impl Launcher, args: &Forward) -> Result<(), LaunchError> {
    forward_sized(l, args, Size::Auto)
}

/// [`forward`] by a tile of the caller's choice.
///
/// # Errors
/// As [`forward`].
pub fn forward_sized(l: &impl Launcher, args: &Forward, size: Size) -> Result<(), LaunchError> {
    let (product, parts) = forward_product(args)?;
    let tile = choose(l.gpu(), args.group.rows, &parts, size, NT);
    run(l, product, &parts, tile)
}

fn forward_product(args: &Forward) -> Result<(Product, Vec<Part>), LaunchError> {
    let group = &args.group;
    check(group)?;
    let mut product = Product {
        a: args.x,
        b: args.weight,
        bias: args.bias,
        y: args.y.cast(),
        lda: group.inputs as u32,
        ldb: group.inputs as u32,
        ldy: group.columns() as u32,
        rows: group.rows as u32,
        mode: mode::STORE,
        scale: 1.0,
        ..Product::zeroed()
    };
    if let Some(low) = &args.low {
        product.low = low.low;
        product.low_b = low.b;
        product.ldlow = group.low() as u32;
        product.ldlow_b = group.rank as u32;
    }
    let low_at = |member: usize| match args.low {
        Some(_) => group.low_at[member],
        None => NO_LOW,
    };
    let mut parts = Vec::with_capacity(MEMBERS);
    let mut at = 0;
    for (member, &columns) in group.outputs.iter().enumerate() {
        if columns > 0 {
            parts.push(Part {
                out_at: at as u32,
                b_at: at as u32,
                low_at: [low_at(member), NO_LOW],
                low_depth: group.rank as u32,
                ..Part::plain(columns, group.inputs)
            });
        }
        at += columns;
    }
    match args.epilogue {
        Epilogue::None => {}
        Epilogue::Residual(residual) => {
            product.mode = mode::RESIDUAL;
            product.residual = residual;
        }
        Epilogue::Rope {
            table,
            positions,
            head_dim,
            rotated,
        } => {
            if head_dim == 0
                || head_dim % 16 != 0
                || group.outputs.iter().any(|n| n % head_dim != 0)
            {
                return Err(LaunchError::Unsupported(format!(
                    "heads of {head_dim} columns: RoPE is fused for multiples of 16"
                )));
            }
            product.mode = mode::ROPE;
            product.table = table;
            product.positions = positions;
            product.head_dim = head_dim as u32;
            product.rotated = rotated as u32;
        }
        Epilogue::SwiGlu(h) => {
            let [gate, up, none] = group.outputs;
            if gate != up || none != 0 {
                return Err(LaunchError::Unsupported(format!(
                    "SwiGLU of members with {:?} columns",
                    group.outputs
                )));
            }
            product.mode = mode::SWIGLU;
            product.h = h;
            product.head_dim = group.columns() as u32;
            parts = vec![Part {
                low_at: [low_at(0), low_at(1)],
                low_depth: group.rank as u32,
                ..Part::plain(group.columns(), group.inputs)
            }];
        }
    }
    Ok((product, parts))
}

/// `dx = dy W + sum over adapted members of mask . (g A) / (1 - p)`, see [`Backward`].
///
/// # Errors
/// Shapes that are no multiples of 8, or the driver's refusal.
pub fn backward(l: &impl Launcher, args: &Backward) -> Result<(), LaunchError> {
    backward_sized(l, args, Size::Auto)
}

/// [`backward`] by a tile of the caller's choice.
///
/// # Errors
/// As [`backward`].
pub fn backward_sized(l: &impl Launcher, args: &Backward, size: Size) -> Result<(), LaunchError> {
    let group = &args.group;
    check(group)?;
    let mut product = Product {
        a: args.dy,
        b: args.weight,
        y: args.dx.cast(),
        lda: group.columns() as u32,
        ldb: group.inputs as u32,
        ldy: group.inputs as u32,
        rows: group.rows as u32,
        mode: mode::STORE,
        scale: 1.0,
        ..Product::zeroed()
    };
    let mut part = Part::plain(group.inputs, group.columns());
    let mut masked = false;
    if let Some(low) = &args.low
        && group.low() > 0
    {
        product.low = low.g;
        product.low_b = low.a;
        product.ldlow = group.low() as u32;
        product.ldlow_b = group.inputs as u32;
        match &low.dropout {
            Some(dropout) => {
                mask(&mut product, group, dropout);
                masked = true;
            }
            None => {
                part.low_at[0] = 0;
                part.low_depth = group.low() as u32;
            }
        }
    }
    let tiles = match masked {
        true => NN_DROPOUT,
        false => NN,
    };
    run(
        l,
        product,
        &[part],
        choose(l.gpu(), group.rows, &[part], size, tiles),
    )
}

fn mask(product: &mut Product, group: &Group, dropout: &Dropout) {
    product.masks = Masks::new(group, dropout.kept);
    product.keep_scale = dropout.keep_scale;
    product.members = MEMBERS as u32;
    product.rank = group.rank as u32;
    product.low_at = group.low_at;
}

/// `g = scale dy B` of every adapted member: dy `[T, N]`, b `[N, rank]`, g `[T, R]` `=`.
pub(crate) fn narrow(
    l: &impl Launcher,
    group: &Group,
    dy: Ptr<bf16>,
    b: Ptr<bf16>,
    scale: f32,
    g: Ptr<bf16>,
) -> Result<(), LaunchError> {
    check(group)?;
    let product = Product {
        a: dy,
        b,
        y: g.cast(),
        lda: group.columns() as u32,
        ldb: group.rank as u32,
        ldy: group.low() as u32,
        rows: group.rows as u32,
        mode: mode::STORE,
        scale,
        ..Product::zeroed()
    };
    let mut parts = Vec::with_capacity(MEMBERS);
    let mut at = 0;
    for (&columns, &low_at) in group.outputs.iter().zip(&group.low_at) {
        if columns > 0 && low_at != NO_LOW {
            parts.push(Part {
                out_at: low_at,
                a_at: at as u32,
                b_at: at as u32,
                ..Part::plain(group.rank, columns)
            });
        }
        at += columns;
    }
    let tile = match group.rows.div_ceil(NN_NARROW.rows) * parts.len() < ENOUGH_LARGE {
        true => NN[2],
        false => NN_NARROW,
    };
    run(l, product, &parts, tile)
}

/// `low = scale x A^T`: x `[T, K]`, a `[R, K]`, low `[T, R]` `=`, for few rows.
pub(crate) fn few_rows_nt(
    l: &impl Launcher,
    group: &Group,
    x: Ptr<bf16>,
    a: Ptr<bf16>,
    scale: f32,
    low: Ptr<bf16>,
) -> Result<(), LaunchError> {
    let product = Product {
        scale,
        ..bare(
            group.rows,
            [x, a],
            [group.inputs, group.inputs, group.low()],
        )
    };
    let product = Product {
        y: low.cast(),
        ..product
    };
    run(l, product, &[Part::plain(group.low(), group.inputs)], NT[2])
}

fn bare(rows: usize, [a, b]: [Ptr<bf16>; 2], [lda, ldb, ldy]: [usize; 3]) -> Product {
    Product {
        a,
        b,
        lda: lda as u32,
        ldb: ldb as u32,
        ldy: ldy as u32,
        rows: rows as u32,
        mode: mode::STORE,
        scale: 1.0,
        ..Product::zeroed()
    }
}

/// Where a bare product goes: `[m, n]`, `=`.
#[derive(Debug, Clone, Copy)]
pub enum Output {
    /// Rounded once.
    Bf16(Ptr<bf16>),
    /// As summed.
    F32(Ptr<f32>),
}

/// Shape of a bare product: `m` rows, `n` columns, `k` terms a sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Terms of a sum.
    pub k: usize,
}

/// `y = x w^T`: x `[m, k]` with rows `ldx` apart, w `[n, k]` with rows `ldw` apart, y `[m, n]`.
///
/// # Errors
/// n, k or strides that are no multiples of 8, or the driver's refusal.
pub fn plain_nt(
    l: &impl Launcher,
    shape: Shape,
    x: Ptr<bf16>,
    ldx: usize,
    w: Ptr<bf16>,
    ldw: usize,
    y: Output,
) -> Result<(), LaunchError> {
    plain(l, shape, [x, w], [ldx, ldw], y, NT)
}

/// `y = d w`: d `[m, k]` with rows `ldd` apart, w `[k, n]` with rows `ldw` apart, y `[m, n]`.
///
/// # Errors
/// n, k or strides that are no multiples of 8, or the driver's refusal.
pub fn plain_nn(
    l: &impl Launcher,
    shape: Shape,
    d: Ptr<bf16>,
    ldd: usize,
    w: Ptr<bf16>,
    ldw: usize,
    y: Output,
) -> Result<(), LaunchError> {
    plain(l, shape, [d, w], [ldd, ldw], y, NN)
}

fn plain(
    l: &impl Launcher,
    Shape { m, n, k }: Shape,
    operands: [Ptr<bf16>; 2],
    [lda, ldb]: [usize; 2],
    y: Output,
    tiles: [Tile; 3],
) -> Result<(), LaunchError> {
    let mut product = bare(m, operands, [lda, ldb, n]);
    match y {
        Output::Bf16(y) => product.y = y.cast(),
        Output::F32(y) => {
            product.y = y.cast();
            product.mode = mode::STORE_F32;
        }
    }
    let part = Part::plain(n, k);
    run(
        l,
        product,
        &[part],
        choose(l.gpu(), m, &[part], Size::Auto, tiles),
    )
}

#[cfg(test)]
mod tests {
    use super::product::lay_out;
    use super::*;

    fn group(rows: usize, inputs: usize, outputs: [usize; 3]) -> Group {
        Group {
            rows,
            inputs,
            outputs,
            low_at: [0, NO_LOW, 64],
            rank: 64,
        }
    }

    fn forward_of(group: Group, epilogue: Epilogue) -> Forward {
        Forward {
            group,
            x: Ptr::new(16),
            weight: Ptr::new(32),
            bias: Ptr::NULL,
            low: None,
            epilogue,
            y: Ptr::new(48),
        }
    }

    #[test]
    fn tiles_never_cross_members() {
        let args = forward_of(group(300, 64, [256, 40, 136]), Epilogue::None);
        let (mut product, parts) = forward_product(&args).unwrap();
        let geometry = lay_out(&mut product, &parts, NT[1]).unwrap().unwrap();
        assert_eq!(product.parts.map(|p| p.first_tile), [0, 2, 3]);
        assert_eq!(product.parts.map(|p| p.out_at), [0, 256, 296]);
        assert_eq!((product.tiles_m, product.tiles_n), (3, 5));
        assert_eq!(geometry.grid, [15, 1, 1]);
        assert_eq!(geometry.shared, 96 << 10);
    }

    #[test]
    fn gate_and_up_are_one_part() {
        let args = forward_of(group(5, 64, [72, 72, 0]), Epilogue::SwiGlu(Ptr::new(64)));
        let (product, parts) = forward_product(&args).unwrap();
        assert_eq!(
            (parts.len(), parts[0].columns, product.head_dim),
            (1, 144, 144)
        );
        assert_eq!(parts[0].low_at, [NO_LOW; 2], "no low-rank part was given");
        let uneven = forward_of(group(5, 64, [72, 80, 0]), Epilogue::SwiGlu(Ptr::new(64)));
        assert!(forward_product(&uneven).is_err());
    }

    #[test]
    fn tiles_follow_rows_and_shared_memory() {
        let gpu = |shared_per_block| crate::Gpu {
            name: String::new(),
            capability: (9, 0),
            multiprocessors: 132,
            shared_per_block,
            l2: 0,
            memory: 0,
            hopper: false,
        };
        let (h100, a100, ada) = (gpu(227 << 10), gpu(163 << 10), gpu(99 << 10));
        let parts = [Part::plain(2048, 2048)];
        let pick = |gpu, rows, tiles| choose(gpu, rows, &parts, Size::Auto, tiles);
        for rows in [1, 64, 256] {
            assert_eq!(pick(&h100, rows, NT), NT[2]);
        }
        assert_eq!(pick(&a100, 2048, NT), NT[1]);
        assert_eq!(pick(&h100, 16384, NT), NT[1]);
        assert_eq!(pick(&h100, 16384, NN), NN[0]);
        assert_eq!(pick(&a100, 16384, NT), NT[0]);
        assert_eq!(pick(&ada, 16384, NN), NN[1]);
    }

    #[test]
    fn odd_shapes_are_refused() {
        let args = forward_of(group(5, 60, [64, 0, 0]), Epilogue::None);
        let (mut product, parts) = forward_product(&args).unwrap();
        assert!(lay_out(&mut product, &parts, NT[1]).is_err());
    }
}
