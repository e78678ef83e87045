//! Matrix products on all cores: one thread's product is the crate `matrixmultiply`, the division of the result is ours.
//!
//! Holds strided views and one product. It refuses weights and precision. Invariant: an element of the result is one loop over k by
//! one thread, so its bits do not depend on the number of threads or on the other rows.

use rayon::prelude::*;

/// A matrix in somebody's buffer: element `(i, j)` stands at `i * rs + j * cs`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    rs: usize,
    cs: usize,
}

impl<'a> View<'a> {
    /// Rows of `stride` elements.
    pub fn rows(data: &'a [f32], stride: usize) -> Self {
        View {
            data,
            rs: stride,
            cs: 1,
        }
    }

    /// Without its first rows.
    pub fn skip_rows(self, rows: usize) -> Self {
        View {
            data: &self.data[(rows * self.rs).min(self.data.len())..],
            ..self
        }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        View {
            data: self.data,
            rs: self.cs,
            cs: self.rs,
        }
    }
}

/// `c = beta * c + alpha * a b` on all cores; shape `[m, k, n]`, a `[m, k]`, b `[k, n]`, c `[m, n]` in rows of `c_stride`
/// elements.
///
/// # Panics
/// If a view is too small for its shape: a bug in an op, never a user's doing.
pub fn gemm(
    shape: [usize; 3],
    alpha: f32,
    a: View,
    b: View,
    beta: f32,
    c: &mut [f32],
    c_stride: usize,
) {
    // Below this many multiplications a second thread costs more than it brings (about 20 microseconds).
    let small = shape.iter().product::<usize>() < 1 << 21;
    let threads = if small {
        1
    } else {
        rayon::current_num_threads()
    };
    gemm_on(threads, shape, alpha, a, b, beta, c, c_stride);
}

/// [`gemm`] on so many threads.
pub fn gemm_on(
    threads: usize,
    [m, k, n]: [usize; 3],
    alpha: f32,
    a: View,
    b: View,
    beta: f32,
    c: &mut [f32],
    c_stride: usize,
) {
    if m == 0 || n == 0 {
        return;
    }
    check(&a, m, k);
    check(&b, k, n);
    assert!(
        c_stride >= n && c.len() >= (m - 1) * c_stride + n,
        "gemm: result buffer too small"
    );
    let by_columns = n >= m;
    let (extent, grain) = if by_columns { (n, 32) } else { (m, 16) };
    let step = extent.div_ceil(threads).next_multiple_of(grain);
    let target = Raw(c.as_mut_ptr());
    let part = |at: usize| {
        let len = step.min(extent - at);
        let (a_at, b_at, c_at, m, n) = if by_columns {
            (0, at * b.cs, at, m, len)
        } else {
            (at * a.rs, 0, at * c_stride, len, n)
        };
        // SAFETY: `check` and the assertion above bound every element that a product of this shape touches; parts differ in
        // their columns or rows of c, so no two threads write the same element.
        unsafe {
            matrixmultiply::sgemm(
                m,
                k,
                n,
                alpha,
                a.data.as_ptr().add(a_at),
                a.rs as isize,
                a.cs as isize,
                b.data.as_ptr().add(b_at),
                b.rs as isize,
                b.cs as isize,
                beta,
                target.at(c_at),
                c_stride as isize,
                1,
            );
        }
    };
    if step >= extent {
        part(0);
    } else {
        (0..extent.div_ceil(step))
            .into_par_iter()
            .for_each(|i| part(i * step));
    }
}

fn check(view: &View, rows: usize, cols: usize) {
    if rows > 0 && cols > 0 {
        let last = (rows - 1) * view.rs + (cols - 1) * view.cs;
        assert!(
            last < view.data.len(),
            "gemm: operand too small: {rows} x {cols} in {} elements",
            view.data.len()
        );
    }
}

/// The result's address, for threads that write disjoint parts of it.
struct Raw(*mut f32);
// SAFETY: only `gemm` uses it, and its parts are disjoint.
unsafe impl Sync for Raw {}

impl Raw {
    /// # Safety
    /// `offset` must lie in the buffer that the pointer was made from.
    unsafe fn at(&self, offset: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(offset) }
    }
}
