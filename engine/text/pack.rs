//! Sequences of different lengths, laid end to end in one batch without padding.
//!
//! Holds the packed batch and the split of a batch by a token budget. It refuses to hold weights of
//! the loss: the mean is over all targets of the *global* batch, which only the training loop sees.
//! Targets are shifted inside each sequence: the last token of one never predicts the first of the
//! next.

use std::ops::Range;

use super::TextError;
use super::example::Example;

/// Packed sequences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, `[tokens]`.
    pub ids: Vec<u32>,
    /// Position of each token in its own sequence, `[tokens]`.
    pub positions: Vec<u32>,
    /// Sequence `s` is `ids[cu_seqlens[s]..cu_seqlens[s + 1]]`; `[sequences + 1]`, starts with 0.
    pub cu_seqlens: Vec<u32>,
    /// What is learnt.
    pub targets: Targets,
}

/// The supervised tokens of a batch; both lists have one entry a target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Targets {
    /// Index in [`Batch::ids`] of the token *before* the target, ascending.
    pub rows: Vec<u32>,
    /// Id of the target.
    pub ids: Vec<u32>,
}

impl Batch {
    /// Packs training examples.
    ///
    /// # Errors
    /// When the batch has 2^32 tokens or more.
    pub fn of_examples<'a>(
        examples: impl IntoIterator<Item = &'a Example>,
    ) -> Result<Self, TextError> {
        Self::pack(
            examples
                .into_iter()
                .map(|e| (e.ids.as_slice(), e.target_start)),
        )
    }

    /// Packs prompts: nothing is learnt.
    ///
    /// # Errors
    /// When the batch has 2^32 tokens or more.
    pub fn of_prompts<'a>(prompts: impl IntoIterator<Item = &'a [u32]>) -> Result<Self, TextError> {
        Self::pack(prompts.into_iter().map(|ids| (ids, ids.len())))
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    /// Length of the longest sequence.
    pub fn longest(&self) -> usize {
        self.cu_seqlens
            .windows(2)
            .map(|ends| (ends[1] - ends[0]) as usize)
            .max()
            .unwrap_or(0)
    }

    /// Each sequence with the index of its first target token.
    fn pack<'a>(sequences: impl Iterator<Item = (&'a [u32], usize)>) -> Result<Self, TextError> {
        let mut batch = Self {
            ids: Vec::new(),
            positions: Vec::new(),
            cu_seqlens: vec![0],
            targets: Targets::default(),
        };
        for (ids, target_start) in sequences {
            let start = batch.ids.len();
            let tokens = start + ids.len();
            let end = u32::try_from(tokens).map_err(|_| TextError::BatchTooLarge { tokens })?;
            batch.positions.extend((0..end).take(ids.len()));
            // No token stands before the first of a sequence, so that cannot be a target.
            let targets = ids.iter().enumerate().skip(target_start.max(1));
            for (at, &id) in targets {
                // Smaller than `end`.
                batch.targets.rows.push((start + at - 1) as u32);
                batch.targets.ids.push(id);
            }
            batch.ids.extend_from_slice(ids);
            batch.cu_seqlens.push(end);
        }
        Ok(batch)
    }
}

/// Splits sequences of these lengths, in their order, into runs of at most `budget` tokens. A sequence
/// longer than the budget is a run of its own.
pub fn micro_batches(lengths: &[usize], budget: usize) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let (mut start, mut tokens) = (0, 0usize);
    for (at, &length) in lengths.iter().enumerate() {
        if at > start && tokens.saturating_add(length) > budget {
            runs.push(start..at);
            (start, tokens) = (at, 0);
        }
        tokens = tokens.saturating_add(length);
    }
    if start < lengths.len() {
        runs.push(start..lengths.len());
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example(ids: &[u32], target_start: usize) -> Example {
        Example {
            ids: ids.to_vec(),
            target_start,
            cut: 0,
        }
    }

    #[test]
    fn targets_are_shifted_inside_their_sequence() {
        let batch =
            Batch::of_examples(&[example(&[5, 6, 7, 8], 2), example(&[1, 2, 3], 2)]).unwrap();
        assert_eq!(batch.ids, [5, 6, 7, 8, 1, 2, 3]);
        assert_eq!(batch.positions, [0, 1, 2, 3, 0, 1, 2]);
        assert_eq!(batch.cu_seqlens, [0, 4, 7]);
        assert_eq!(
            batch.targets,
            Targets {
                rows: vec![1, 2, 5],
                ids: vec![7, 8, 3]
            }
        );
        assert_eq!((batch.sequences(), batch.longest()), (2, 4));
    }

    #[test]
    fn prompts_have_no_targets() {
        let batch = Batch::of_prompts([&[1, 2][..], &[3]]).unwrap();
        assert_eq!(batch.cu_seqlens, [0, 2, 3]);
        assert_eq!(batch.targets, Targets::default());
        assert_eq!(Batch::of_prompts([]).unwrap().sequences(), 0);
    }

    proptest! {
        #[test]
        fn every_target_is_the_next_token_of_its_sequence(
            rows in prop::collection::vec((prop::collection::vec(any::<u32>(), 1..9), 0usize..9), 0..6)
        ) {
            let examples: Vec<_> = rows.iter().map(|(ids, at)| example(ids, (*at).min(ids.len()))).collect();
            let batch = Batch::of_examples(&examples).unwrap();
            let targets: usize = examples.iter().map(|e| e.ids.len() - e.target_start.max(1)).sum();
            prop_assert_eq!(batch.targets.rows.len(), targets);
            for (&row, &id) in batch.targets.rows.iter().zip(&batch.targets.ids) {
                prop_assert_eq!(batch.ids[row as usize + 1], id);
                prop_assert_eq!(batch.positions[row as usize + 1], batch.positions[row as usize] + 1);
            }
        }

        #[test]
        fn micro_batches_cover_all_and_keep_the_budget(
            lengths in prop::collection::vec(0usize..50, 0..40), budget in 0usize..120,
        ) {
            let runs = micro_batches(&lengths, budget);
            let all: Vec<usize> = runs.iter().cloned().flatten().collect();
            prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
            for run in runs {
                let tokens: usize = lengths[run.clone()].iter().sum();
                prop_assert!(run.len() == 1 || tokens <= budget);
            }
        }
    }
}
