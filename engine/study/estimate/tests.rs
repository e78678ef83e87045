//! Estimates on a device that is made up.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::backend::Heads;
use crate::backend::cpu::Cpu;
use crate::backend::facts::{MatrixShape, Passes, Rates};
use crate::study::models::as_held;
use medft_dsl::plan::Precision;
use medft_dsl::{SourceFile, check};

/// A GPU with so many bytes free.
struct Gpu(u64);

impl Facts for Gpu {
    fn rates(&self) -> Rates {
        Rates {
            product: 1e14,
            pass: 0.5,
            decode: 0.5,
            decode_fixed: 0.0,
            weights: 1e12,
            memory: 1e12,
            layer: 1e-5,
        }
    }

    fn memory(&self) -> Option<facts::Memory> {
        Some(facts::Memory {
            free: self.0,
            total: 80 << 30,
        })
    }

    fn forget_peak(&self) {}

    fn peak(&self) -> Option<u64> {
        None
    }

    fn held_as(&self, precision: Precision) -> Precision {
        match precision {
            Precision::F32 => Precision::Bf16,
            other => other,
        }
    }

    fn pass_tokens(&self) -> usize {
        4096
    }

    fn matrix_bytes(&self, m: MatrixShape, precision: Precision, double_quant: bool) -> u64 {
        assert_ne!(precision, Precision::F32, "there is no f32 here");
        let values = (m.rows * m.inputs) as u64;
        match precision {
            Precision::Nf4 => crate::model::nf4::bytes(values, double_quant),
            _ => 2 * values,
        }
    }

    fn cache_bytes(&self, layers: usize, slots: usize, capacity: usize, heads: &Heads) -> u64 {
        (4 * layers * slots * capacity * heads.keys * heads.dim) as u64
    }

    fn scratch_bytes(&self, passes: &Passes) -> u64 {
        2 * passes.tokens as u64
    }
}

fn plan(precision: &str, train: &str, evaluate: &str) -> Plan {
    let root = env!("CARGO_MANIFEST_DIR");
    let text = format!(
        r#"recipe "r" {{ seed = 1 }}
data notes {{ source = csv("{root}/data/quickstart/notes.csv") text = column("note") code = column("icd10") }}
task coding {{ data = notes max_tokens = 256 }}
model small {{ weights = dir("{root}/data/quickstart/small") precision = {precision} }}
train tuned {{ model = small task = coding adapter = lora(rank = 4) batch = 32 {train} }}
evaluate all {{ models = [tuned] task = coding decode = greedy(max_new = 8) {evaluate} }}
"#
    );
    let checked = check(&SourceFile::new("r.rcp", &text), &[], &|path| {
        std::fs::read_to_string(path)
    });
    checked
        .unwrap_or_else(|d| panic!("{}", d.render(false)))
        .plan
}

fn on(free: u64, plan: &Plan) -> Estimate {
    let gpu = Gpu(free);
    estimate_on(plan, &Cpu, "GPU 0, made up", &gpu, Some(gpu.rates())).unwrap()
}

#[test]
fn parts_of_memory_follow_the_settings_that_cause_them() {
    let of = |precision, train| {
        on(u64::MAX, &plan(precision, train, "")).stages[0]
            .memory
            .unwrap()
    };
    let (f32, bf16) = (of("f32", "micro_batch = 8"), of("bf16", "micro_batch = 8"));
    assert_eq!(f32, bf16, "f32 is held in bf16 here");
    let nf4 = of("nf4", "micro_batch = 8");
    assert!(nf4.weights < bf16.weights);
    assert_eq!(
        (nf4.trained, nf4.activations),
        (bf16.trained, bf16.activations)
    );
    let double = of("bf16", "micro_batch = 16");
    assert_eq!(
        (double.weights, double.trained),
        (bf16.weights, bf16.trained)
    );
    let factor = double.activations as f64 / bf16.activations as f64;
    assert!((1.6..2.1).contains(&factor), "{factor}");
    for m in [f32, nf4, double] {
        assert_eq!(m.total, m.weights + m.trained + m.activations + m.workspace);
    }
}

#[test]
fn passes_under_auto_are_as_large_as_what_is_free_allows() {
    let plan = plan("bf16", "", "");
    let of = |free| on(free, &plan).stages[0].memory.unwrap();
    let whole = of(u64::MAX);
    // Something is left free for others, so exactly enough is not enough.
    let less = of(whole.total);
    assert!(less.activations < whole.activations && less.total <= whole.total / 16 * 15);
    let [least, none] = [less.total, 1000].map(of);
    assert!(least.activations < less.activations && none.activations <= least.activations);
    assert_eq!(least.weights, whole.weights);
}

#[test]
fn what_does_not_fit_is_named_with_settings_under_which_it_does() {
    let plan = plan("bf16", "micro_batch = 32", "batch = 32");
    let most = on(u64::MAX, &plan);
    assert!(most.shortages.is_empty());
    let train = most.stages[0].memory.unwrap();
    let free = train.total - 1;
    let short = on(free, &plan);
    let [shortage] = &short.shortages[..] else {
        panic!("{:?}", short.shortages)
    };
    assert_eq!((shortage.stage, shortage.needed), ("train", train.total));
    let [fewer, nf4] = &shortage.remedies[..] else {
        panic!("{:?}", shortage.remedies)
    };
    assert_eq!(fewer.set, "`micro_batch = 31`");
    assert_eq!(nf4.set, "`precision = nf4`");
    let said = shortage.to_string();
    assert!(said.starts_with("training `tuned` needs "), "{said}");
    assert!(said.contains(" on GPU 0 and "), "{said}");
    // They hold what they say.
    for (remedy, precision, train) in [
        (fewer, "bf16", "micro_batch = 31"),
        (nf4, "nf4", "micro_batch = 32"),
    ] {
        let then = on(free, &self::plan(precision, train, "batch = 32"));
        assert!(then.shortages.is_empty(), "{:?}", then.shortages);
        assert_eq!(then.stages[0].memory.unwrap().total, remedy.needed);
    }
    let hopeless = on(1000, &plan).shortages;
    assert!(hopeless.iter().all(|s| s.remedies.is_empty()));
    assert!(
        hopeless[0]
            .to_string()
            .ends_with("a device with more memory")
    );
}

#[test]
fn a_precision_that_the_device_lacks_is_said_once_and_kept_as_what_it_is() {
    let plan = plan("f32", "", "");
    let (held, notices) = as_held(&plan, &Gpu(0));
    assert_eq!(held.models[0].precision, Precision::Bf16);
    assert_eq!(notices.len(), 1);
    assert!(
        notices[0]
            .starts_with("`small`: this device has no `precision = f32`; it computes in bf16")
    );
    assert_eq!(as_held(&plan, &Cpu), (plan.clone(), Vec::new()));
}
