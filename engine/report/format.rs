//! Numbers as readers want them.

use crate::evaluate::resample::Estimate;
use medft_dsl::plan::{Level, Precision};

/// `41.2 %`; two digits below 1 %.
pub(super) fn percent(share: f64) -> String {
    let value = 100.0 * share;
    if value > 0.0 && value < 1.0 {
        format!("{value:.2} %")
    } else {
        format!("{value:.1} %")
    }
}

/// `n` of `all` in percent; a dash without any.
pub(super) fn share(n: u64, all: u64) -> String {
    if all == 0 {
        "–".to_owned()
    } else {
        percent(n as f64 / all as f64)
    }
}

/// `38.8 to 43.7`, in percent.
pub(super) fn interval(estimate: Estimate) -> String {
    format!(
        "{:.1} to {:.1}",
        100.0 * estimate.low,
        100.0 * estimate.high
    )
}

/// `1,536`.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `3.09 B`, `134.5 M`.
pub(super) fn parameters(n: u64) -> String {
    match n as f64 {
        n if n >= 1e9 => format!("{:.2} B", n / 1e9),
        n if n >= 1e6 => format!("{:.1} M", n / 1e6),
        n if n >= 1e3 => format!("{:.1} k", n / 1e3),
        n => n.to_string(),
    }
}

/// `12 s`, `4 min 10 s`, `2 h 05 min`.
pub(super) fn seconds(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, _) if seconds < 10.0 => format!("{seconds:.1} s"),
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s:02} s"),
        (h, m, _) => format!("{h} h {m:02} min"),
    }
}

/// `27.4 GiB`.
pub(super) fn bytes(n: u64) -> String {
    format!("{:.1} GiB", n as f64 / 1024_f64.powi(3))
}

/// `bf16`.
pub(super) fn precision(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
        Precision::Nf4 => "nf4",
    }
}

/// `code`, `category`, ...
pub(super) fn level(level: Level) -> &'static str {
    match level {
        Level::Code => "code",
        Level::Category => "category",
        Level::Block => "block",
        Level::Chapter => "chapter",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            [0, 999, 1000, 10_240, 1_234_567].map(count),
            ["0", "999", "1,000", "10,240", "1,234,567"]
        );
        assert_eq!(
            [0.0, 0.002, 0.412, 1.0].map(percent),
            ["0.0 %", "0.20 %", "41.2 %", "100.0 %"]
        );
        assert_eq!(
            [0.42, 59.7, 250.0, 7500.0].map(seconds),
            ["0.4 s", "1 min 00 s", "4 min 10 s", "2 h 05 min"]
        );
        assert_eq!(
            [512, 134_500_000, 3_090_000_000].map(parameters),
            ["512", "134.5 M", "3.09 B"]
        );
        assert_eq!(share(1, 0), "–");
    }
}
