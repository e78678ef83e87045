//! Weights from files to the GPU: every stored form, every precision, tensors of several pieces.

use crate::gpu;
use half::{bf16, f16};
use medft_dsl::plan::Precision;
use medft_engine::backend::Backend;
use medft_engine::backend::cpu::Cpu;
use medft_engine::backend::cuda::Loader;
use medft_engine::model::checkpoint::{Tensor, open_file};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const STORED: [Dtype; 3] = [Dtype::BF16, Dtype::F16, Dtype::F32];

/// Numbers that fill a tensor: no two blocks have the same scale.
fn value(i: usize) -> f32 {
    let mixed = (i as u32).wrapping_mul(0x9E37_79B9) >> 8;
    (mixed as f32 / (1 << 23) as f32 - 1.0) * (0.02 + (i / 64 % 97) as f32 * 1e-3)
}

/// A tensor in a file, at an odd address; `bad` is where a NaN stands.
fn stored(rows: usize, cols: usize, dtype: Dtype, bad: Option<usize>) -> Tensor {
    let values = (0..rows * cols).map(|i| if Some(i) == bad { f32::NAN } else { value(i) });
    let bytes: Vec<u8> = match dtype {
        Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
        Dtype::F16 => values
            .flat_map(|v| f16::from_f32(v).to_le_bytes())
            .collect(),
        _ => values
            .flat_map(|v| bf16::from_f32(v).to_le_bytes())
            .collect(),
    };
    let pad = TensorView::new(Dtype::U8, vec![1], &[7]).unwrap();
    let view = TensorView::new(dtype, vec![rows, cols], &bytes).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    safetensors::serialize_to_file([("a", pad), ("weight", view)], None, file.path()).unwrap();
    let tensors = open_file(file.path()).unwrap();
    tensors.into_iter().find(|t| t.name() == "weight").unwrap()
}

/// The bits of a matrix on both devices; the GPU's products see it rounded to bf16.
fn assert_same(tensors: &[Tensor], precision: Precision, double_quant: bool) {
    let Some(gpu) = gpu() else { return };
    let mut loader = Loader::default();
    let matrix = gpu
        .matrix(&mut loader, tensors, precision, double_quant)
        .unwrap();
    let got = gpu.matrix_values(&matrix).unwrap();
    let want = Cpu
        .matrix(&mut (), tensors, precision, double_quant)
        .unwrap();
    let want = Cpu.matrix_values(&want).unwrap();
    assert_eq!(got.len(), want.len());
    let differs = got
        .iter()
        .zip(&want)
        .position(|(got, want)| got.to_bits() != bf16::from_f32(*want).to_f32().to_bits());
    assert_eq!(
        differs,
        None,
        "{precision:?}, double {double_quant}, {:?}",
        tensors[0].dtype()
    );
}

#[test]
fn a_matrix_has_the_bits_of_the_cpus() {
    for dtype in STORED {
        for precision in [Precision::F32, Precision::Bf16, Precision::Nf4] {
            for double_quant in [false, true] {
                for (rows, cols) in [(5, 13), (33, 70), (64, 128), (130, 257)] {
                    let one = stored(rows, cols, dtype, None);
                    assert_same(&[one], precision, double_quant);
                }
                let stack = [(16, 64), (8, 64), (9, 64)].map(|(r, c)| stored(r, c, dtype, None));
                assert_same(&stack, precision, double_quant);
            }
        }
    }
}

#[test]
fn a_tensor_of_several_pieces_has_the_bits_of_the_cpus() {
    for dtype in STORED {
        let stack = [(4099, 4096), (3, 4096), (4099, 4096)].map(|(r, c)| stored(r, c, dtype, None));
        assert_same(&stack, Precision::Bf16, false);
        assert_same(&stack, Precision::Nf4, true);
    }
}

#[test]
fn a_nan_is_found_in_any_piece_and_the_next_load_works() {
    let Some(gpu) = gpu() else { return };
    for dtype in STORED {
        for bad in [0, 16_789_503] {
            let tensor = stored(4099, 4096, dtype, Some(bad));
            for precision in [Precision::Bf16, Precision::Nf4] {
                let mut loader = Loader::default();
                let mut load = |tensor| gpu.matrix(&mut loader, &[tensor], precision, true);
                let error = load(tensor.clone()).err().unwrap().to_string();
                assert!(error.contains("`weight`"), "{error}");
                assert!(error.contains(&format!("(element {bad})")), "{error}");
                load(stored(4, 64, dtype, None)).unwrap();
            }
        }
    }
}
