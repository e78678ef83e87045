//! Frozen weights in every form, through a safetensors file as a model's would come.
//!
//! Invariant: what the ops see is what the form promises: the file's numbers, rounded once at most, or NF4's.

use crate::draw::Draw;
use half::{bf16, f16};
use medft_dsl::plan::Precision;
use medft_engine::backend::Backend;
use medft_engine::backend::cpu::Cpu;
use medft_engine::model::checkpoint::{Dtype, Tensor, open_file};
use medft_engine::model::nf4::Nf4Matrix;
use proptest::prelude::*;
use safetensors::tensor::TensorView;

/// A weight on the CPU.
pub type Matrix = <Cpu as Backend>::Matrix;

/// How a weight lies in its file, and how the recipe wants it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Form {
    pub stored: Dtype,
    pub precision: Precision,
    pub double_quant: bool,
}

/// Every form that a model may have.
pub fn forms() -> impl Strategy<Value = Form> {
    let stored = prop::sample::select(vec![Dtype::F32, Dtype::Bf16, Dtype::F16]);
    let precision = prop::sample::select(vec![Precision::F32, Precision::Bf16, Precision::Nf4]);
    (stored, precision, any::<bool>()).prop_map(|(stored, precision, double_quant)| Form {
        stored,
        precision,
        double_quant,
    })
}

/// Values as the bytes of a dtype, little-endian.
pub fn encode(values: &[f32], dtype: Dtype) -> Vec<u8> {
    let each = values.iter();
    match dtype {
        Dtype::F32 => each.flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::Bf16 => each
            .flat_map(|v| bf16::from_f32(*v).to_bits().to_le_bytes())
            .collect(),
        Dtype::F16 => each
            .flat_map(|v| f16::from_f32(*v).to_bits().to_le_bytes())
            .collect(),
        Dtype::U8 | Dtype::Other => each.map(|v| *v as u8).collect(),
    }
}

/// The one tensor of a new file.
pub fn stored(values: &[f32], shape: &[usize], dtype: Dtype) -> Tensor {
    let bytes = encode(values, dtype);
    let kind = match dtype {
        Dtype::F32 => safetensors::Dtype::F32,
        Dtype::Bf16 => safetensors::Dtype::BF16,
        Dtype::F16 => safetensors::Dtype::F16,
        Dtype::U8 | Dtype::Other => safetensors::Dtype::U8,
    };
    let view = TensorView::new(kind, shape.to_vec(), &bytes).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    safetensors::serialize_to_file([("weight", view)], None, file.path()).unwrap();
    open_file(file.path()).unwrap().remove(0)
}

/// A random weight `[rows, cols]`.
pub fn frozen(draw: &mut Draw, rows: usize, cols: usize, form: Form) -> Matrix {
    let size = 1.0 / (cols as f32).sqrt();
    let tensor = stored(&draw.values(rows * cols, size), &[rows, cols], form.stored);
    Cpu.matrix(&mut (), &[tensor], form.precision, form.double_quant)
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn a_matrix_holds_its_files_numbers(
        form in forms(), rows in 1usize..70, cols in 1usize..140, seed: u64,
    ) {
        let values = Draw::new(seed).values(rows * cols, 0.1);
        let tensor = stored(&values, &[rows, cols], form.stored);
        let matrix = Cpu.matrix(&mut (), &[tensor], form.precision, form.double_quant).unwrap();
        let in_file: Vec<f32> = values.iter().map(|v| match form.stored {
            Dtype::Bf16 => bf16::from_f32(*v).to_f32(),
            Dtype::F16 => f16::from_f32(*v).to_f32(),
            _ => *v,
        }).collect();
        let want = match form.precision {
            Precision::F32 => in_file,
            Precision::Bf16 => in_file.iter().map(|v| bf16::from_f32(*v).to_f32()).collect(),
            Precision::Nf4 => {
                let mut out = vec![0.0; values.len()];
                let nf4 = Nf4Matrix::quantize(&in_file, rows, cols, form.double_quant).unwrap();
                nf4.dequantize_rows(0..rows, &mut out).unwrap();
                out
            }
        };
        crate::near::same_bits("matrix_values", &Cpu.matrix_values(&matrix).unwrap(), &want)?;
    }
}

#[test]
fn a_matrix_that_cannot_be_used_is_an_error_that_names_it() {
    let mut values = vec![0.5; 12];
    values[5] = f32::INFINITY;
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        for precision in [Precision::F32, Precision::Bf16, Precision::Nf4] {
            let error = Cpu.matrix(&mut (), &[stored(&values, &[3, 4], dtype)], precision, true);
            let text = error.err().unwrap().to_string();
            assert!(
                text.contains("`weight`") && text.contains("element 5"),
                "{text}"
            );
        }
    }
    let cube = stored(&[0.5; 12], &[3, 2, 2], Dtype::F32);
    assert!(Cpu.matrix(&mut (), &[cube], Precision::F32, true).is_err());
    let bytes = stored(&[1.0; 12], &[3, 4], Dtype::U8);
    assert!(Cpu.matrix(&mut (), &[bytes], Precision::F32, true).is_err());
}
