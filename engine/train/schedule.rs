//! The learning rate at each step, with Transformers' meaning: step 0 of a warm-up has rate 0.

use medft_dsl::plan::{Schedule, ScheduleKind};

/// Learning rate of optimizer step `step` (from 0) of `total`, where `peak` is the highest.
pub fn learning_rate(schedule: &Schedule, peak: f64, step: u64, total: u64) -> f64 {
    let warmup = schedule.warmup;
    if step < warmup {
        return peak * step as f64 / warmup as f64;
    }
    let rest = total.saturating_sub(warmup).max(1) as f64;
    let share = match schedule.kind {
        ScheduleKind::Constant => 1.0,
        ScheduleKind::Linear => total.saturating_sub(step) as f64 / rest,
        ScheduleKind::Cosine => {
            let progress = (step - warmup) as f64 / rest;
            (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
        }
    };
    peak * share
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(kind: ScheduleKind, warmup: u64) -> Vec<f64> {
        (0..10)
            .map(|s| learning_rate(&Schedule { kind, warmup }, 1e-3, s, 10))
            .collect()
    }

    #[test]
    fn cosine_with_warmup_of_one_starts_at_zero() {
        // ../shared/golden: 0, 1e-3, 1e-3 * 0.5 * (1 + cos(pi / 9))
        let got = rates(ScheduleKind::Cosine, 1);
        assert_eq!(&got[..2], &[0.0, 1e-3]);
        assert!((got[2] - 0.0009698463103929542).abs() < 1e-12);
    }

    #[test]
    fn linear_reaches_zero_and_constant_stays() {
        assert!((rates(ScheduleKind::Linear, 2)[6] - 0.5e-3).abs() < 1e-12);
        assert_eq!(rates(ScheduleKind::Constant, 0), vec![1e-3; 10]);
    }

    #[test]
    fn warmup_longer_than_the_training_only_rises() {
        let got = rates(ScheduleKind::Cosine, 100);
        assert!(got.windows(2).all(|w| w[0] < w[1]));
    }
}
