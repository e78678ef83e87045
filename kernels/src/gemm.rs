//! The portable matrix products (`gemm.cu`, sm_80 and up): linear layers forward and backward, and bare products.
//!
//! Holds tile choice, launch geometry and the ops. Each row of a result has the same bits whatever the number of rows: every tile sums in
//! ascending k by steps of 16. Invariant: K, N and all strides are multiples of 8 (16-byte rows).

use crate::launch::{Geometry, Kernel, LaunchError, Launcher, Ptr};
use crate::linear::{Backward, Dropout, Epilogue, Forward, Group, MEMBERS, NO_LOW, StepState};
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// Columns of the result that share operands; as in `gemm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct Part {
    pub(crate) first_tile: u32,
    pub(crate) columns: u32,
    pub(crate) out_at: u32,
    pub(crate) a_at: u32,
    pub(crate) b_at: u32,
    pub(crate) depth: u32,
    pub(crate) low_at: [u32; 2],
    pub(crate) low_depth: u32,
    pub(crate) reserved: u32,
}

impl Part {
    /// A part without adapter.
    pub(crate) fn plain(columns: usize, depth: usize) -> Self {
        Part {
            columns: columns as u32,
            depth: depth as u32,
            low_at: [NO_LOW; 2],
            ..Part::zeroed()
        }
    }
}

/// One product; as in `gemm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct Product {
    pub(crate) a: Ptr<bf16>,
    pub(crate) b: Ptr<bf16>,
    pub(crate) bias: Ptr<f32>,
    pub(crate) low: Ptr<bf16>,
    pub(crate) low_b: Ptr<bf16>,
    pub(crate) residual: Ptr<bf16>,
    pub(crate) table: Ptr<f32>,
    pub(crate) positions: Ptr<u32>,
    pub(crate) y: Ptr<u8>,
    pub(crate) h: Ptr<bf16>,
    pub(crate) state: Ptr<StepState>,
    pub(crate) lda: u32,
    pub(crate) ldb: u32,
    pub(crate) ldy: u32,
    pub(crate) ldlow: u32,
    pub(crate) ldlow_b: u32,
    pub(crate) rows: u32,
    pub(crate) tiles_m: u32,
    pub(crate) tiles_n: u32,
    pub(crate) group: u32,
    pub(crate) parts_len: u32,
    pub(crate) mode: u32,
    pub(crate) head_dim: u32,
    pub(crate) rotated: u32,
    pub(crate) scale: f32,
    pub(crate) threshold: u32,
    pub(crate) keep_scale: f32,
    pub(crate) members: u32,
    pub(crate) rank: u32,
    pub(crate) low_at: [u32; MEMBERS],
    pub(crate) streams: [u32; MEMBERS],
    pub(crate) parts: [Part; MEMBERS],
}
const _: () = assert!(size_of::<Part>() == 40 && size_of::<Product>() == 304);

/// `Mode` of `gemm.cu`.
mod mode {
    pub(super) const STORE: u32 = 0;
    pub(super) const STORE_F32: u32 = 1;
    pub(super) const RESIDUAL: u32 = 2;
    pub(super) const ROPE: u32 = 3;
    pub(super) const SWIGLU: u32 = 4;
}

/// A tile of `gemm.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tile {
    name: &'static str,
    rows: usize,
    columns: usize,
    depth: usize,
    stages: usize,
    threads: u32,
}

impl Tile {
    const fn shared(self) -> u32 {
        (self.stages * (self.rows + self.columns) * self.depth * size_of::<bf16>()) as u32
    }
}

const fn tile(
    name: &'static str,
    [rows, columns, depth, stages]: [usize; 4],
) -> Tile {
    Tile {
        name,
        rows,
        columns,
        depth,
        stages,
        threads: if rows == TALL[0] { 256 } else { 128 },
    }
}
/// Rows, columns, depth, stages.
const TALL: [usize; 4] = [256, 128, 32, 4];
const LARGE: [usize; 4] = [128, 128, 32, 4];
const SMALL: [usize; 4] = [64, 32, 64, 6];
const NARROW: [usize; 4] = [128, 64, 64, 4];
/// By descending size, as [`choose`] takes them.
const NT: [Tile; 3] = [
    tile("gemm_nt_tall", TALL),
    tile("gemm_nt_large", LARGE),
    tile("gemm_nt_small", SMALL),
];
const NN: [Tile; 3] = [
    tile("gemm_nn_tall", TALL),
    tile("gemm_nn_large", LARGE),
    tile("gemm_nn_small", SMALL),
];
const NN_DROPOUT: [Tile; 3] = [
    tile("gemm_nn_tall_dropout", TALL),
    tile("gemm_nn_large_dropout", LARGE),
    tile("gemm_nn_small_dropout", SMALL),
];
const NN_NARROW: Tile = tile("gemm_nn_narrow", NARROW);

/// Tall tiles that fill an H100 (one block an SM) twice; fewer leave much of the last wave empty, and large ones divide the work better.
const ENOUGH_TALL: usize = 264;
/// Below this many large tiles the small ones fill the GPU better (an A100 or H100 runs 216 to 264 large blocks at once).
const ENOUGH_LARGE: usize = 96;
/// Bytes of `a` that a group of row tiles may keep in L2 while they pass along the columns: a third of an A100's.
const GROUP_BYTES: usize = 12 << 20;

/// Which tile an op takes. The bits of the result are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Size {
    /// By the shape.
    #[default]
    Auto,
    /// 256 rows, 128 columns.
    Tall,
    /// 128 rows and columns.
    Large,
    /// 64 rows, 32 columns.
    Small,
}

/// Which tile: the small one for few rows, and where larger ones would leave the GPU idle.
fn choose(
    rows: usize,
    parts: &[Part],
    size: Size,
    [tall, large, small]: [Tile; 3],
) -> Tile {
    let count = |tile: Tile| {
        let columns = |p: &Part| (p.columns as usize).div_ceil(tile.columns);
        rows.div_ceil(tile.rows) * parts.iter().map(columns).sum::<usize>()
    };
    match size {
        Size::Tall => tall,
        Size::Large => large,
        Size::Small => small,
        Size::Auto if rows <= small.rows || count(large) < ENOUGH_LARGE => small,
        Size::Auto if count(tall) < ENOUGH_TALL => large,
        Size::Auto => tall,
    }
}

/// Fills in what follows from the shapes and launches.
fn run(
    l: &impl Launcher,
    mut product: Product,
    parts: &[Part],
    tile: Tile,
) -> Result<(), LaunchError> {
    let Some(geometry) = lay_out(&mut product, parts, tile)? else {
        return Ok(());
    };
    let kernel = Kernel {
        family: "gemm",
        name: tile.name,
    };
    l.launch(kernel, geometry, &product)
}

/// Tiles, groups and the launch shape; `None` if there is nothing to do.
fn lay_out(
    product: &mut Product,
    parts: &[Part],
    tile: Tile,
) -> Result<Option<Geometry>, LaunchError> {
    let sizes = [
        product.lda,
        product.ldb,
        product.ldy,
        product.ldlow,
        product.ldlow_b,
        product.rank,
    ];
    let of_parts = |p: &Part| [p.columns, p.out_at, p.a_at, p.depth, p.low_depth];
    if sizes.iter().any(|s| s % 8 != 0) || parts.iter().flat_map(of_parts).any(|s| s % 8 != 0) {
        return Err(LaunchError::Unsupported(format!(
            "a matrix product whose rows are not whole 16-byte runs: strides {sizes:?}"
        )));
    }
    let mut tiles = 0;
    for (slot, part) in product.parts.iter_mut().zip(parts) {
        *slot = Part {
            first_tile: tiles,
            ..*part
        };
        tiles += part.columns.div_ceil(tile.columns as u32);
    }
    product.parts_len = parts.len() as u32;
    product.tiles_n = tiles;
    product.tiles_m = product.rows.div_ceil(tile.rows as u32);
    let bytes = tile.rows * product.lda as usize * size_of::<bf16>();
    product.group = (GROUP_BYTES / bytes.max(1)).clamp(4, 32) as u32;
    if tiles == 0 || product.tiles_m == 0 {
        return Ok(None);
    }
    Ok(Some(Geometry {
        grid: [product.tiles_m * tiles, 1, 1],
        block: tile.threads,
        shared: tile.shared(),
    }))
}

/// Checks what every linear op relies on.
fn check(group: &Group) -> Result<(), LaunchError> {
    if group.rank % 16 != 0 || group.rank > 128 {
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
    let tile = choose(args.group.rows, &parts, size, NT);
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
            if head_dim == 0 || head_dim % 16 != 0 || group.outputs.iter().any(|n| n % head_dim != 0) {
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
    run(l, product, &[part], choose(group.rows, &[part], size, tiles))
}

fn mask(product: &mut Product, group: &Group, dropout: &Dropout) {
    product.state = dropout.state;
    product.threshold = dropout.threshold;
    product.keep_scale = dropout.keep_scale;
    product.members = MEMBERS as u32;
    product.rank = group.rank as u32;
    product.low_at = group.low_at;
    product.streams = dropout.streams;
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
        ..bare(group.rows, [x, a], [group.inputs, group.inputs, group.low()])
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
    run(l, product, &[part], choose(m, &[part], Size::Auto, tiles))
}

#[cfg(test)]
mod tests {
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
        assert_eq!(geometry.shared, 64 << 10);
    }

    #[test]
    fn gate_and_up_are_one_part() {
        let args = forward_of(group(5, 64, [72, 72, 0]), Epilogue::SwiGlu(Ptr::new(64)));
        let (product, parts) = forward_product(&args).unwrap();
        assert_eq!((parts.len(), parts[0].columns, product.head_dim), (1, 144, 144));
        assert_eq!(parts[0].low_at, [NO_LOW; 2], "no low-rank part was given");
        let uneven = forward_of(group(5, 64, [72, 80, 0]), Epilogue::SwiGlu(Ptr::new(64)));
        assert!(forward_product(&uneven).is_err());
    }

    #[test]
    fn few_rows_and_few_tiles_take_the_small_tile() {
        let parts = [Part::plain(2048, 2048)];
        assert_eq!(choose(1, &parts, Size::Auto, NT), NT[2]);
        assert_eq!(choose(64, &parts, Size::Auto, NT), NT[2]);
        assert_eq!(choose(256, &parts, Size::Auto, NT), NT[2]);
        assert_eq!(choose(2048, &parts, Size::Auto, NT), NT[1]);
        assert_eq!(choose(16384, &parts, Size::Auto, NT), NT[0]);
    }

    #[test]
    fn odd_shapes_are_refused() {
        let args = forward_of(group(5, 60, [64, 0, 0]), Epilogue::None);
        let (mut product, parts) = forward_product(&args).unwrap();
        assert!(lay_out(&mut product, &parts, NT[1]).is_err());
    }
}
