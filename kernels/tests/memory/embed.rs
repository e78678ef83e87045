use crate::gpu::{Random, gpu, poisoned};
use crate::{bits, bits32, few};
use half::bf16;
use medft_kernels::embed::{self, Runs, Table};
use proptest::prelude::*;

/// The sums are f32 in row order, so the CPU gets the same bits.
fn check(tokens: usize, vocab: usize, columns: usize, seed: u64) {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(seed);
    // One token in three is token 0: a long run.
    let ids: Vec<u32> = (0..tokens)
        .map(|_| {
            if random.below(3) == 0 {
                0
            } else {
                random.below(vocab) as u32
            }
        })
        .collect();
    let table = random.f32s(vocab * columns, 1.0);
    let narrow: Vec<bf16> = table.iter().map(|v| bf16::from_f32(*v)).collect();
    let want: Vec<bf16> = ids
        .iter()
        .flat_map(|id| narrow[*id as usize * columns..(*id as usize + 1) * columns].to_vec())
        .collect();
    let device_ids = gpu.upload(&ids).unwrap();
    let (trained, frozen) = (gpu.upload(&table).unwrap(), gpu.upload(&narrow).unwrap());
    for form in [Table::F32(trained.ptr()), Table::Bf16(frozen.ptr())] {
        let x = poisoned(gpu, tokens * columns);
        embed::forward(gpu, tokens, columns, device_ids.ptr(), form, x.ptr()).unwrap();
        assert_eq!(
            bits(&x.download().unwrap()),
            bits(&want),
            "{form:?} {tokens} x {columns}, seed {seed}"
        );
    }

    let dx = random.bf16s(tokens * columns, 1.0);
    let mut sums = vec![0f32; vocab * columns];
    let mut touched = vec![false; vocab];
    for (id, dx) in ids.iter().zip(dx.chunks(columns)) {
        touched[*id as usize] = true;
        for (sum, d) in sums[*id as usize * columns..].iter_mut().zip(dx) {
            *sum += d.to_f32();
        }
    }
    let want: Vec<f32> = (0..vocab * columns)
        .map(|i| {
            if touched[i / columns] {
                table[i] + sums[i]
            } else {
                table[i]
            }
        })
        .collect();
    let runs = Runs::of(&ids);
    let (order, starts) = (
        gpu.upload(&runs.order).unwrap(),
        gpu.upload(&runs.starts).unwrap(),
    );
    let (dx, dtable) = (gpu.upload(&dx).unwrap(), trained);
    embed::backward(
        gpu,
        runs.len(),
        columns,
        device_ids.ptr(),
        order.ptr(),
        starts.ptr(),
        dx.ptr(),
        dtable.ptr(),
    )
    .unwrap();
    let got = bits32(&dtable.download().unwrap());
    let wrong = got.iter().zip(&want).position(|(g, w)| *g != w.to_bits());
    assert_eq!(
        wrong, None,
        "dtable {tokens} of {vocab} x {columns}, seed {seed}"
    );
}

proptest! {
    #![proptest_config(few(16))]
    #[test]
    fn embedding_moves_and_sums_rows(tokens in 1usize..200, vocab in 1usize..50, eighths in 1usize..200, seed: u64) {
        check(tokens, vocab, 8 * eighths, seed);
    }
}

#[test]
fn embedding_at_edges_and_real_widths() {
    for (tokens, columns) in [
        (1, 8),
        (7, 512),
        (8, 520),
        (9, 576),
        (40, 2048),
        (33, 3072),
        (17, 4096),
    ] {
        check(tokens, 23, columns, 5);
    }
}
