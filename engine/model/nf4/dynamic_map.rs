//! The 8-bit code of the scales: bitsandbytes' signed dynamic map (arXiv:2110.02861, section 2.1).
//!
//! Holds the 256 values and the search for the nearest one. It refuses to read the map from a file;
//! [`super::checkpoint`] checks that a file's map is this one. The map is sorted ascending, from
//! -0.993 to exactly 1: it is not symmetric.

use std::sync::LazyLock;

/// Decades of the map: fractions of 0.1..1 times 1e-6 to 1.
const DECADES: i32 = 7;

/// The values of a code, ascending: 0, 1 and, in each decade of exponent e, 2^(6+e) centres of equal
/// cells on either side of 0. Bit-equal to `bitsandbytes.functional.create_dynamic_map()`.
pub static DYNAMIC_MAP: LazyLock<[f32; 256]> = LazyLock::new(|| {
    let mut map = [0.0f32; 256];
    map[255] = 1.0;
    let mut filled = 0;
    for decade in 0..DECADES {
        let cells = 1usize << decade;
        let power = 10f64.powi(decade - DECADES + 1) as f32;
        for cell in 0..cells {
            let centre = (boundary(cell, cells) + boundary(cell + 1, cells)) / 2.0;
            map[filled] = power * centre;
            map[filled + 1] = -power * centre;
            filled += 2;
        }
    }
    map.sort_by(f32::total_cmp);
    map
});

/// `torch.linspace(0.1, 1, cells + 1)[i]` in f32: from the nearer end, multiply and add fused.
fn boundary(i: usize, cells: usize) -> f32 {
    let (low, high) = (0.1f32, 1.0f32);
    let step = (high - low) / cells as f32;
    if i < cells.div_ceil(2) {
        step.mul_add(i as f32, low)
    } else {
        (-step).mul_add((cells - i) as f32, high)
    }
}

/// Code of the entry nearest to `x`, which lies in [-1, 1]; between two, the lower one.
pub(super) fn nearest(x: f32) -> u8 {
    let above = DYNAMIC_MAP.partition_point(|entry| *entry < x).min(255);
    let below = above.saturating_sub(1);
    let nearest = if x - DYNAMIC_MAP[below] <= DYNAMIC_MAP[above] - x {
        below
    } else {
        above
    };
    nearest as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_its_own_nearest() {
        for (code, entry) in DYNAMIC_MAP.iter().enumerate() {
            assert_eq!(usize::from(nearest(*entry)), code);
        }
        assert_eq!(nearest(-1.0), 0);
        assert_eq!(DYNAMIC_MAP[127], 0.0);
    }
}
