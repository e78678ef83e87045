//! The method section, written from what was run.
//!
//! Holds sentences with holes. It refuses anything that is not in the plan or the report. Invariant: a setting that changes a
//! result is named here with its value.

use super::document::{Ending, Paragraph, Report, Training};
use super::format::{bytes, count, level, parameters, precision, seconds};
use crate::evaluate::resample::RESAMPLES;
use crate::evaluate::statistics::ALPHA;
use medft_dsl::plan::{
    Adapter, Data, Decode, Evaluate, Part, Plan, Precision, Redact, ScheduleKind, Source, Task,
    TextView, Train, Weights,
};

/// The paragraphs of a run.
pub(super) fn methods(plan: &Plan, report: &Report) -> Vec<Paragraph> {
    let each = |title: &str, parts: Vec<String>| Paragraph {
        title: title.to_owned(),
        text: parts.join(" "),
    };
    let paragraphs = [
        each("Data", plan.data.iter().map(|d| data(d, report)).collect()),
        each("Task", plan.tasks.iter().map(task).collect()),
        each(
            "Models",
            plan.models.iter().map(|m| model(m, report)).collect(),
        ),
        each(
            "Training",
            plan.trains.iter().map(|t| train(t, report)).collect(),
        ),
        each("Answers", plan.evaluates.iter().map(evaluate).collect()),
        each("Measures", vec![MEASURES.to_owned()]),
        each("Comparisons", vec![comparisons(plan)]),
        each("Machine", vec![machine(report)]),
    ];
    paragraphs
        .into_iter()
        .filter(|paragraph| !paragraph.text.is_empty())
        .collect()
}

const MEASURES: &str = "An answer's code is the first in it that exists in the code table and is as fine as was asked for. Codes are compared \
    without regard to dots and case, at each level of the table; an answer coarser than a level is wrong at that level, and \
    an answer without a code is wrong at all. Precision, recall and F1 take as classes the labels present in gold codes or \
    answers, and a ratio without denominator as 0 (scikit-learn's zero_division = 0); macro averages are plain means over \
    classes, weighted ones weigh by gold rows, micro ones pool the counts. Hierarchical precision, recall and F1 compare \
    a code with all its ancestors below the root, pooled over rows (Kosmopoulos et al. 2015). Wrong answers are told apart in this order: no code, unknown code, above or below the \
    gold code, only the seventh character or only the side of the body (by the official titles) wrong, below the same heading, in the \
    same category, block or chapter, and elsewhere. A code that is no longer billable in the table's fiscal year is expired. Accuracy by \
    group has Wilson's intervals; the frequency of a code is the number of training rows with it.";

fn data(data: &Data, report: &Report) -> String {
    let source = match &data.source {
        Source::Hf {
            repo,
            file,
            revision,
        } => format!("the file {file} of the hub's data set {repo} (revision {revision})"),
        Source::Csv { path, .. } | Source::Jsonl { path } => format!("the file {}", path.display()),
    };
    let view = match &data.text {
        TextView::Column { column } => format!("the column \"{}\"", column.trim()),
        TextView::Sections { column, sections } => format!(
            "the sections {} of the column \"{}\"",
            sections.join(", "),
            column.trim()
        ),
    };
    let redact = match data.redact {
        Redact::None => "",
        Redact::Codes => " with every ICD-10 code hidden",
        Redact::Titles => " with every ICD-10 code and every official title hidden",
    };
    let split = &data.split;
    let mut text = format!(
        "`{}` was read from {source}. Models read {view}{redact}; the gold code is the column \"{}\".",
        data.name, data.code
    );
    if let Some(limit) = data.limit {
        text += &format!(" Only the first {} rows were used.", count(limit));
    }
    if let Some(found) = report.data.iter().find(|found| found.name == data.name) {
        text += &format!(
            " {} rows were used; {} without a text or a code were left out. They were divided once, with seed {}, into {} for training, {} \
             for validation and {} for testing ({:.0}/{:.0}/{:.0} %), each {} spread alike. The rows form {} groups of equal or \
             nearly equal texts, and no group stands on two sides. The code table is {}.",
            count(found.rows),
            count(found.dropped),
            split.seed,
            count(found.train),
            count(found.val),
            count(found.test),
            100.0 * split.train,
            100.0 * split.val,
            100.0 * split.test,
            level(split.by),
            count(found.clusters),
            found.code_table,
        );
    }
    text
}

fn task(task: &Task) -> String {
    let system = task.system.as_ref().map_or_else(
        || "No system message was given.".to_owned(),
        |system| format!("The system message was: “{}”", system.trim()),
    );
    format!(
        "For `{}`, models were asked for the {}. {system} The user message was: “{}” The answer was taken to be “{}”. Conversations were \
         written with each model's own chat template. Prompt and answer have at most {} tokens; a longer note was \
         shortened, never the instructions or the answer.",
        task.name,
        level(task.level),
        task.user.split_whitespace().collect::<Vec<_>>().join(" "),
        task.answer.trim(),
        count(task.max_tokens),
    )
}

fn model(model: &medft_dsl::plan::Model, report: &Report) -> String {
    let source = match &model.weights {
        Weights::Hf { repo, revision } => format!("{repo} (revision {revision})"),
        Weights::Dir { path } => format!("the checkpoint in {}", path.display()),
    };
    let systems = report
        .evaluations
        .iter()
        .filter_map(|e| e.system(&model.name)?.parameters);
    let size = systems
        .max()
        .map_or(String::new(), |n| format!(", {} parameters", parameters(n)));
    let held = match (model.precision, model.double_quant) {
        (Precision::Nf4, true) => "nf4 (blocks of 64, block scales quantised as well)",
        (Precision::Nf4, false) => "nf4 (blocks of 64)",
        (other, _) => precision(other),
    };
    format!(
        "`{}` is {source}{size}, its linear layers held in {held}.",
        model.name
    )
}

fn train(train: &Train, report: &Report) -> String {
    let adapter = match &train.adapter {
        Adapter::Full => "all weights were trained".to_owned(),
        Adapter::Lora(lora) => format!(
            "low-rank adapters (LoRA) of rank {}, alpha {} and dropout {} on {} were trained in 32 bits{}",
            lora.rank,
            lora.alpha,
            lora.dropout,
            lora.targets
                .iter()
                .map(|target| target.name())
                .collect::<Vec<_>>()
                .join(", "),
            lora.init.as_ref().map_or(String::new(), |from| format!(
                ", starting from the adapter in {}",
                from.display()
            )),
        ),
    };
    let (optimizer, schedule) = (&train.optimizer, &train.schedule);
    let shape = match schedule.kind {
        ScheduleKind::Cosine => "then falling as half a cosine",
        ScheduleKind::Linear => "then falling linearly",
        ScheduleKind::Constant => "then constant",
    };
    let clip = train.clip.map_or("no clipping".to_owned(), |clip| {
        format!("gradients clipped at norm {clip}")
    });
    let stop = train.stop.as_ref().map_or(String::new(), |stop| {
        format!(
            " Training was to stop after {} validations without an improvement of {}.",
            stop.patience, stop.min_delta
        )
    });
    let most = train.max_steps.map_or(String::new(), |steps| {
        format!(", at most {} steps", count(steps))
    });
    let ended = report
        .trainings
        .iter()
        .find(|found| found.name == train.name)
        .map_or(String::new(), ended);
    format!(
        "For `{}`, from `{}` on `{}`, {adapter} with AdamW (learning rate {}, weight decay {}, betas {} and {}, epsilon {:e}), the rate rising \
         linearly over {} steps, {shape}; {} rows a step, {} epochs{most}, {clip}, seed {}. Only the answer's tokens carry \
         loss, averaged over all of them in a step. Validation loss was taken every {} steps.{stop}{ended}",
        train.name,
        train.model,
        train.task,
        optimizer.lr,
        optimizer.weight_decay,
        optimizer.beta1,
        optimizer.beta2,
        optimizer.eps,
        schedule.warmup,
        train.batch,
        train.epochs,
        train.seed,
        train.eval_every,
    )
}

fn ended(training: &Training) -> String {
    let why = match training.ending {
        Ending::Completed => "as planned".to_owned(),
        Ending::EarlyStop { validations } => {
            format!("early, after {validations} validations without improvement")
        }
        Ending::Diverged { step } => {
            format!("with a loss that was no number at step {}", count(step))
        }
        Ending::Interrupted => "when it was interrupted".to_owned(),
    };
    let kept = training
        .best_step
        .map_or(" The last weights were kept.".to_owned(), |step| {
            format!(
                " The weights of step {}, with the lowest validation loss, were kept.",
                count(step)
            )
        });
    format!(
        " It ended {why}, after {} steps and {} tokens in {}, with {} trained values.{kept}",
        count(training.steps),
        count(training.tokens),
        seconds(training.seconds),
        parameters(training.trained_values),
    )
}

fn evaluate(evaluate: &Evaluate) -> String {
    let side = match evaluate.split {
        Part::Train => "training",
        Part::Val => "validation",
        Part::Test => "test",
    };
    let limit = evaluate
        .limit
        .map_or(String::new(), |n| format!("the first {} of ", count(n)));
    format!(
        "In `{}`, {} answered {limit}the {side} rows of `{}`, {}.",
        evaluate.name,
        list(&evaluate.models),
        evaluate.task,
        decode(&evaluate.decode)
    )
}

fn decode(decode: &Decode) -> String {
    let penalty = if decode.repetition_penalty == 1.0 {
        String::new()
    } else {
        format!(", repetition penalty {}", decode.repetition_penalty)
    };
    if decode.sample {
        format!(
            "sampled with temperature {}, top-p {}, top-k {}{penalty}, at most {} new tokens, seed {}",
            decode.temperature, decode.top_p, decode.top_k, decode.max_new, decode.seed
        )
    } else {
        format!(
            "always with the most probable token{penalty}, at most {} new tokens",
            decode.max_new
        )
    }
}

fn comparisons(plan: &Plan) -> String {
    format!(
        "Intervals are 95 % percentile intervals of {} bootstrap resamples (seed {}); rows of one group of near-duplicates are drawn \
         together. Those of macro and weighted averages are moved back by the resamples' mean shift, which rare classes cause. \
         Every two systems are compared on the same rows by McNemar's exact test, two-sided, in which the rows of one group of \
         near-duplicates change sides together, corrected by Holm's method over all pairs of an evaluation. A difference is claimed if the corrected p-value is below {ALPHA} and the interval \
         of the paired difference leaves out 0; otherwise the report says that no difference was shown. The smallest \
         difference that would have been shown in four studies of five is that of the exact test on as many independent groups, with the \
         share of rows on which the two systems disagreed, at the strictest level of the correction.",
        count(RESAMPLES),
        plan.recipe.seed,
    )
}

fn machine(report: &Report) -> String {
    let machine = &report.machine;
    let gpu = machine
        .gpu
        .as_ref()
        .map_or("no GPU was used".to_owned(), |gpu| {
            format!("the GPU was {gpu}")
        });
    format!(
        "medft-engine {} on {}, {} with {} cores and {} of memory; {gpu}.",
        report.engine,
        machine.system,
        machine.cpu,
        machine.cores,
        bytes(machine.memory)
    )
}

fn list(names: &[String]) -> String {
    names
        .iter()
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{plan, report};
    use super::*;

    #[test]
    fn what_was_run_is_named_with_its_value() {
        let text: String = methods(&plan(), &report())
            .into_iter()
            .map(|p| p.text + "\n")
            .collect();
        for said in [
            "Ahmad0067/MedSynth",
            "column \"Dialogue\"",
            "seed 42",
            "7,168 for training",
            "rank 64, alpha 128 and dropout 0.1",
            "learning rate 0.0002",
            "epsilon 1e-8",
            "over 100 steps",
            "32 rows a step, 3 epochs",
            "most probable token",
            "10,000 bootstrap",
            "weights of step 450",
            "nf4 (blocks of 64, block scales quantised as well)",
            "at most 2,048 tokens",
            "Xeon",
        ] {
            assert!(text.contains(said), "{said} is missing in:\n{text}");
        }
    }

    #[test]
    fn a_run_without_training_does_not_speak_of_it() {
        let mut plan = plan();
        plan.trains.clear();
        let titles: Vec<String> = methods(&plan, &report())
            .into_iter()
            .map(|p| p.title)
            .collect();
        assert_eq!(
            titles,
            [
                "Data",
                "Task",
                "Models",
                "Answers",
                "Measures",
                "Comparisons",
                "Machine"
            ]
        );
    }
}
