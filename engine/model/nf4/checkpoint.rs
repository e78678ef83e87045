//! NF4 matrices as Transformers stores them in a pre-quantised checkpoint.
//!
//! Holds the map between an [`Nf4Matrix`] and its four or six tensors (`weight`, `weight.absmax`,
//! `weight.quant_map`, `weight.nested_absmax`, `weight.nested_quant_map` and the JSON of
//! `weight.quant_state.bitsandbytes__nf4`). It refuses to open files. Every length is checked against
//! the shape in the quant state before a matrix exists.

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Deserialize;

use super::{Absmax, BLOCK, CODEBOOK, DYNAMIC_MAP, NESTED_BLOCK, Nf4Error, Nf4Matrix};

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTensor {
    /// Full name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
    /// Little-endian values.
    pub data: Vec<u8>,
}

/// The JSON in `quant_state.bitsandbytes__nf4`.
#[derive(Deserialize)]
struct QuantState {
    quant_type: String,
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

/// Name of the tensor whose presence says that the weight `name` is stored as NF4.
pub fn state_name(name: &str) -> String {
    format!("{name}.quant_state.bitsandbytes__nf4")
}

/// Reads the weight `name`; `tensor` finds a tensor of the checkpoint by its full name.
///
/// # Errors
/// When a tensor is missing, does not fit the shape, is not finite, or uses another code than ours.
pub fn read<'a>(
    name: &str,
    tensor: impl Fn(&str) -> Option<TensorView<'a>>,
) -> Result<Nf4Matrix, Nf4Error> {
    let find = |part: &str, dtype: Dtype, count: usize| {
        let full = format!("{name}{part}");
        match tensor(&full) {
            None => Err(Nf4Error::MissingTensor {
                name: name.to_owned(),
                missing: full,
            }),
            Some(view) => bytes_of(&view, &full, dtype, count),
        }
    };
    let floats = |part: &str, count: usize| {
        let values: Vec<f32> = find(part, Dtype::F32, count)?
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        match values.iter().position(|x| !x.is_finite()) {
            None => Ok(values),
            Some(at) => Err(Nf4Error::Tensor {
                name: format!("{name}{part}"),
                found: format!("value {at} is {}", values[at]),
                needed: "finite values".to_owned(),
            }),
        }
    };

    let state_name = state_name(name);
    let state = tensor(&state_name).ok_or_else(|| Nf4Error::MissingTensor {
        name: name.to_owned(),
        missing: state_name.clone(),
    })?;
    let state_error = |found: String| Nf4Error::Tensor {
        name: state_name.clone(),
        found,
        needed: "JSON of a two-dimensional NF4 weight with blocksize 64 and nested_blocksize 256"
            .to_owned(),
    };
    let state: QuantState =
        serde_json::from_slice(state.data()).map_err(|e| state_error(e.to_string()))?;
    let &[rows, cols] = state.shape.as_slice() else {
        return Err(state_error(format!("shape {:?}", state.shape)));
    };
    let count = rows
        .checked_mul(cols)
        .ok_or_else(|| state_error(format!("shape {:?}", state.shape)))?;
    if state.quant_type != "nf4" || state.blocksize != BLOCK {
        return Err(state_error(format!(
            "{}, blocksize {}",
            state.quant_type, state.blocksize
        )));
    }
    let blocks = count.div_ceil(BLOCK);

    check_map(
        &format!("{name}.quant_map"),
        &floats(".quant_map", 16)?,
        &CODEBOOK,
    )?;
    let packed = find("", Dtype::U8, count.div_ceil(2))?.to_vec();
    let scales = match (state.nested_blocksize, state.nested_offset) {
        (None, _) => Absmax::Single(floats(".absmax", blocks)?),
        (Some(NESTED_BLOCK), Some(offset)) if offset.is_finite() => {
            let map = floats(".nested_quant_map", 256)?;
            check_map(
                &format!("{name}.nested_quant_map"),
                &map,
                DYNAMIC_MAP.as_slice(),
            )?;
            Absmax::Double {
                codes: find(".absmax", Dtype::U8, blocks)?.to_vec(),
                absmax: floats(".nested_absmax", blocks.div_ceil(NESTED_BLOCK))?,
                offset,
            }
        }
        (Some(size), offset) => {
            return Err(state_error(format!(
                "nested_blocksize {size}, nested_offset {offset:?}"
            )));
        }
    };
    Ok(Nf4Matrix {
        rows,
        cols,
        packed,
        scales,
    })
}

/// The tensors of `matrix` under the name `name`; `dtype` is what Transformers computes in once it
/// has loaded them (`bfloat16`).
pub fn write(matrix: &Nf4Matrix, name: &str, dtype: &str) -> Vec<StoredTensor> {
    let tensor = |part: &str, dtype, shape, data| StoredTensor {
        name: format!("{name}{part}"),
        dtype,
        shape,
        data,
    };
    let floats = |part: &str, values: &[f32]| {
        let data = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        tensor(part, Dtype::F32, vec![values.len()], data)
    };
    let bytes = |part: &str, shape, data: &[u8]| tensor(part, Dtype::U8, shape, data.to_vec());

    let mut state = format!(
        r#"{{"quant_type": "nf4", "blocksize": {BLOCK}, "dtype": "{dtype}", "shape": [{}, {}]"#,
        matrix.rows, matrix.cols
    );
    let mut tensors = vec![
        bytes("", vec![matrix.packed.len(), 1], &matrix.packed),
        floats(".quant_map", &CODEBOOK),
    ];
    match &matrix.scales {
        Absmax::Single(scales) => tensors.push(floats(".absmax", scales)),
        Absmax::Double {
            codes,
            absmax,
            offset,
        } => {
            tensors.push(bytes(".absmax", vec![codes.len()], codes));
            tensors.push(floats(".nested_absmax", absmax));
            tensors.push(floats(".nested_quant_map", DYNAMIC_MAP.as_slice()));
            state += &format!(
                r#", "nested_blocksize": {NESTED_BLOCK}, "nested_dtype": "float32", "nested_offset": {:?}"#,
                f64::from(*offset)
            );
        }
    }
    state.push('}');
    tensors.push(bytes(
        ".quant_state.bitsandbytes__nf4",
        vec![state.len()],
        state.as_bytes(),
    ));
    tensors
}

/// The bytes of a tensor that must hold `count` values of `dtype`.
fn bytes_of<'a>(
    view: &TensorView<'a>,
    name: &str,
    dtype: Dtype,
    count: usize,
) -> Result<&'a [u8], Nf4Error> {
    // The reader of the file has made sure that shape and bytes agree.
    let found: usize = view.shape().iter().product();
    if view.dtype() == dtype && found == count {
        return Ok(view.data());
    }
    Err(Nf4Error::Tensor {
        name: name.to_owned(),
        found: format!("{found} values of {:?}", view.dtype()),
        needed: format!("{count} of {dtype:?}"),
    })
}

/// A file's code must be ours. A map computed without fused multiply-add differs in the last bit.
fn check_map(name: &str, found: &[f32], ours: &[f32]) -> Result<(), Nf4Error> {
    match found
        .iter()
        .zip(ours)
        .position(|(a, b)| (a - b).abs() > 1e-6 * b.abs())
    {
        None => Ok(()),
        Some(at) => Err(Nf4Error::Tensor {
            name: name.to_owned(),
            found: format!("entry {at} is {}", found[at]),
            needed: format!("{}, as bitsandbytes writes it", ours[at]),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::dequantize;
    use super::*;
    use safetensors::SafeTensors;

    const MATRICES: [&str; 6] = [
        "m64x128",
        "m128x256",
        "m33x70",
        "m5x13",
        "m16x64_zero_block",
        "m48x96_heavy_tailed",
    ];

    fn golden() -> Option<Vec<u8>> {
        Some(std::fs::read(crate::shared::shared("golden/nf4.safetensors")?).unwrap())
    }

    fn floats(file: &SafeTensors, name: &str) -> Vec<f32> {
        let data = file.tensor(name).unwrap().data();
        data.chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    #[test]
    fn codes_scales_and_values_equal_bitsandbytes() {
        let Some(bytes) = golden() else { return };
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(floats(&file, "nf4_codebook"), CODEBOOK);
        assert_eq!(floats(&file, "nf4_dynamic_map"), DYNAMIC_MAP.as_slice());
        for m in MATRICES {
            let weight = floats(&file, &format!("{m}.weight"));
            let shape = file
                .tensor(&format!("{m}.weight"))
                .unwrap()
                .shape()
                .to_vec();
            let single = Nf4Matrix::quantize(&weight, shape[0], shape[1], false).unwrap();
            let double = Nf4Matrix::quantize(&weight, shape[0], shape[1], true).unwrap();
            let part = |name: &str| floats(&file, &format!("{m}.{name}"));

            assert_eq!(
                single.packed,
                file.tensor(&format!("{m}.packed")).unwrap().data(),
                "{m}"
            );
            assert_eq!(double.packed, single.packed, "{m}");
            assert_eq!(single.scales, Absmax::Single(part("absmax")), "{m}");
            let nested = Absmax::Double {
                codes: file
                    .tensor(&format!("{m}.nested.codes"))
                    .unwrap()
                    .data()
                    .to_vec(),
                absmax: part("nested.absmax"),
                offset: part("nested.offset")[0],
            };
            assert_eq!(double.scales, nested, "{m}");
            let after: Vec<f32> = (0..weight.len().div_ceil(BLOCK))
                .map(|b| double.scales.of_block(b))
                .collect();
            assert_eq!(after, part("absmax_after_nested"), "{m}");
            assert_eq!(dequantize(&single), part("dequant"), "{m}");
            assert_eq!(dequantize(&double), part("dequant_double"), "{m}");
        }
    }

    #[test]
    fn stored_tensors_equal_transformers_and_read_back() {
        let Some(bytes) = golden() else { return };
        let file = SafeTensors::deserialize(&bytes).unwrap();
        for m in MATRICES {
            let name = format!("hf.{m}.weight");
            let matrix = read(&name, |part| file.tensor(part).ok()).unwrap();
            let written = write(&matrix, &name, "float32");
            assert_eq!(written.len(), 6);
            for tensor in &written {
                let want = file.tensor(&tensor.name).unwrap();
                assert_eq!(tensor.shape, want.shape(), "{}", tensor.name);
                assert_eq!(tensor.data, want.data(), "{}", tensor.name);
            }
        }
    }

    fn read_back(tensors: &[StoredTensor]) -> Result<Nf4Matrix, Nf4Error> {
        read("w", |name| {
            let t = tensors.iter().find(|t| t.name == name)?;
            TensorView::new(t.dtype, t.shape.clone(), &t.data).ok()
        })
    }

    #[test]
    fn single_scales_read_back() {
        let matrix = Nf4Matrix::quantize(&[0.25; 130], 2, 65, false).unwrap();
        assert_eq!(read_back(&write(&matrix, "w", "bfloat16")).unwrap(), matrix);
    }

    #[test]
    fn a_missing_or_short_tensor_is_named() {
        let matrix = Nf4Matrix::quantize(&[0.25; 130], 2, 65, true).unwrap();
        let whole = write(&matrix, "w", "bfloat16");
        for at in 0..whole.len() {
            let mut missing = whole.clone();
            let gone = missing.remove(at).name;
            assert!(read_back(&missing).unwrap_err().to_string().contains(&gone));

            let mut short = whole.clone();
            let unit = if short[at].dtype == Dtype::F32 { 4 } else { 1 };
            let kept = short[at].data.len() - unit;
            short[at].data.truncate(kept);
            short[at].shape = vec![kept / unit];
            assert!(read_back(&short).unwrap_err().to_string().contains(&gone));
        }
    }

    #[test]
    fn an_overflowing_shape_or_a_nan_scale_is_an_error() {
        let matrix = Nf4Matrix::quantize(&[0.25; 64], 1, 64, false).unwrap();
        let mut tensors = write(&matrix, "w", "bfloat16");
        let state = tensors.last_mut().unwrap();
        state.data =
            br#"{"quant_type":"nf4","blocksize":64,"shape":[18446744073709551615,2]}"#.to_vec();
        state.shape = vec![state.data.len()];
        assert!(read_back(&tensors).is_err());

        let mut tensors = write(&matrix, "w", "bfloat16");
        tensors[2].data = f32::NAN.to_le_bytes().to_vec();
        assert!(read_back(&tensors).unwrap_err().to_string().contains("NaN"));
    }
}
