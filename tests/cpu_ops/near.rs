//! Numbers of a reference: the exact value in f64, and how far an honest f32 computation may land from it.
//!
//! Holds running error analysis (Higham, Accuracy and Stability of Numerical Algorithms, 3.3): every operation adds its own rounding to
//! what its operands carry. Invariant: an f32 op is honest if it rounds once an operation, in any order of sums.

use proptest::test_runner::TestCaseError;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// Unit roundoff of f32.
pub const U: f64 = f32::EPSILON as f64 / 2.0;
/// Below it, f32 loses digits to underflow.
const SMALLEST_NORMAL: f64 = f32::MIN_POSITIVE as f64;

/// NaNs at the end of every buffer.
pub const TAIL: usize = 37;

/// A value and its error bound.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Near {
    /// In f64.
    pub value: f64,
    /// Largest difference of an f32 result.
    pub error: f64,
}

/// 1, exactly.
pub const ONE: Near = Near {
    value: 1.0,
    error: 0.0,
};

/// How many unit roundoffs a sum of `n` products may be off: never more than `n` (Higham, lemma 3.1), and with n large not more than
/// `6 sqrt(n)` but with probability 2 n e^-18 (Higham and Mary 2019, theorem 2.4, lambda = 6).
pub fn roundings(n: usize) -> f64 {
    let n = n as f64;
    n.min(6.0 * n.sqrt())
}

impl Near {
    /// An input.
    pub fn exact(value: f32) -> Self {
        Self::real(f64::from(value))
    }

    /// A number that the f32 computation has exactly.
    pub fn real(value: f64) -> Self {
        Near { value, error: 0.0 }
    }

    /// One rounding more.
    pub fn rounded(self) -> Self {
        Near {
            error: self.error + U * (self.value.abs() + self.error),
            ..self
        }
    }

    /// A quotient or product that may come out at the low end of f32's range.
    pub fn may_underflow(self) -> Self {
        Near {
            error: self.error + SMALLEST_NORMAL,
            ..self
        }
    }

    /// e^x, within 2 units in the last place or 2e-38: the op's exponential stops at e^-87.
    pub fn exp(self) -> Self {
        let value = self.value.exp();
        Near {
            value,
            error: value * (self.error.exp_m1() + 4.0 * U) + 2e-38,
        }
    }

    /// Natural logarithm, within 1 unit in the last place.
    pub fn ln(self) -> Self {
        let value = self.value.ln();
        let low = (self.value - self.error).max(f64::MIN_POSITIVE).ln();
        Near {
            value,
            error: value - low + 2.0 * U * value.abs(),
        }
    }

    /// Square root.
    pub fn sqrt(self) -> Self {
        let value = self.value.sqrt();
        let low = (self.value - self.error).max(0.0).sqrt();
        Near {
            value,
            error: value - low,
        }
        .rounded()
    }

    /// Sum of products in any order, fused or not.
    pub fn dot(terms: impl Iterator<Item = (Near, Near)>) -> Self {
        let (mut value, mut size, mut carried, mut n) = (0.0, 0.0, 0.0, 0);
        for (a, b) in terms {
            value += a.value * b.value;
            size += (a.value * b.value).abs();
            carried += a.value.abs() * b.error + b.value.abs() * a.error + a.error * b.error;
            n += 1;
        }
        // Two more: a scale in front of the product, and a sum that starts from what was there.
        Near {
            value,
            error: roundings(n + 2) * U * (size + carried) + carried,
        }
    }
}

impl Add for Near {
    type Output = Near;
    fn add(self, b: Near) -> Near {
        Near {
            value: self.value + b.value,
            error: self.error + b.error,
        }
        .rounded()
    }
}

impl Neg for Near {
    type Output = Near;
    fn neg(self) -> Near {
        Near {
            value: -self.value,
            ..self
        }
    }
}

impl Sub for Near {
    type Output = Near;
    fn sub(self, b: Near) -> Near {
        self + -b
    }
}

impl Mul for Near {
    type Output = Near;
    fn mul(self, b: Near) -> Near {
        Near {
            value: self.value * b.value,
            error: self.value.abs() * b.error + b.value.abs() * self.error + self.error * b.error,
        }
        .rounded()
    }
}

impl Div for Near {
    type Output = Near;
    fn div(self, b: Near) -> Near {
        let value = self.value / b.value;
        let room = (b.value.abs() - b.error).max(f64::MIN_POSITIVE);
        Near {
            value,
            error: (self.error + value.abs() * b.error) / room,
        }
        .rounded()
    }
}

/// Inputs as the reference takes them.
pub fn exact(values: &[f32]) -> Vec<Near> {
    values.iter().map(|v| Near::exact(*v)).collect()
}

/// Fails unless `got` is near `want` and its tail is untouched.
pub fn agree(what: &str, got: &[f32], want: &[Near]) -> Result<(), TestCaseError> {
    if got.len() != want.len() + TAIL {
        return Err(TestCaseError::fail(format!(
            "{what}: {} values for {}",
            got.len(),
            want.len()
        )));
    }
    let (body, tail) = got.split_at(want.len());
    untouched(what, tail)?;
    agree_exactly_long(what, body, want)
}

/// [`agree`] for a result without a tail.
pub fn agree_exactly_long(what: &str, got: &[f32], want: &[Near]) -> Result<(), TestCaseError> {
    let far = |(i, (got, want)): (usize, (&f32, &Near))| {
        let difference = (f64::from(*got) - want.value).abs();
        // A NaN is far, too.
        let near = difference <= want.error + SMALLEST_NORMAL;
        (!near).then_some((i, *got, *want))
    };
    let failed: Vec<_> = got.iter().zip(want).enumerate().filter_map(far).collect();
    match failed.first() {
        None if got.len() == want.len() => Ok(()),
        None => Err(TestCaseError::fail(format!(
            "{what}: {} values for {}",
            got.len(),
            want.len()
        ))),
        Some((at, got_value, want)) => Err(TestCaseError::fail(format!(
            "{what}: {} of {} differ; at {at}: {got_value:e} is not {:e} within {:e}",
            failed.len(),
            got.len(),
            want.value,
            want.error
        ))),
    }
}

/// Fails unless these values still are the NaN that was put there.
pub fn untouched(what: &str, values: &[f32]) -> Result<(), TestCaseError> {
    match values.iter().position(|v| !v.is_nan()) {
        None => Ok(()),
        Some(at) => Err(TestCaseError::fail(format!(
            "{what}: wrote {:e} at {at} behind its result",
            values[at]
        ))),
    }
}

/// Fails unless both have the same bits.
pub fn same_bits(what: &str, got: &[f32], want: &[f32]) -> Result<(), TestCaseError> {
    let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
    let count = got.iter().zip(want).filter(|p| differs(*p)).count();
    match got.iter().zip(want).position(differs) {
        None if got.len() == want.len() => Ok(()),
        None => Err(TestCaseError::fail(format!(
            "{what}: {} values for {}",
            got.len(),
            want.len()
        ))),
        Some(at) => Err(TestCaseError::fail(format!(
            "{what}: {count} of {} have other bits; at {at}: {:e} != {:e}",
            got.len(),
            got[at],
            want[at]
        ))),
    }
}
