//! From answers on disk to a page, through the public surface alone.

use medft_dsl::plan::{Level, Part, Plan, Recipe};
use medft_engine::evaluate::codes::Codes;
use medft_engine::evaluate::confusion::Confusion;
use medft_engine::evaluate::groups::groups;
use medft_engine::evaluate::metrics::{Judged, Metrics, judge, measure};
use medft_engine::evaluate::prediction::{self, Prediction, PredictionLog};
use medft_engine::evaluate::resample::Resampler;
use medft_engine::evaluate::statistics::{Graded, Verdict, compare};
use medft_engine::evaluate::{answer, baselines};
use medft_engine::report::document::{Evaluation, Machine, Report, Role, SCHEMA, Severity, System};
use medft_engine::report::examples::{ExampleRow, ExampleSystem, choose};
use medft_engine::report::{comparison, html, svg, text};

/// Two codes of one category each: enough for a walk from end to end.
struct Tiny;

const ROWS: [(&str, Option<u32>, Level); 8] = [
    ("CH04", None, Level::Chapter),
    ("E08-E13", Some(0), Level::Block),
    ("E11", Some(1), Level::Category),
    ("E11.9", Some(2), Level::Code),
    ("CH05", None, Level::Chapter),
    ("F30-F39", Some(4), Level::Block),
    ("F32", Some(5), Level::Category),
    ("F32.A", Some(6), Level::Code),
];

impl Codes for Tiny {
    fn parse(&self, written: &str) -> Option<u32> {
        let bare = |code: &str| code.to_uppercase().replace('.', "");
        (0..)
            .zip(ROWS)
            .find(|(_, row)| bare(row.0) == bare(written))
            .map(|(id, _)| id)
    }
    fn nearest(&self, written: &str) -> Option<u32> {
        self.parse(written)
            .or_else(|| self.parse(written.get(..3)?))
    }
    fn at_level(&self, id: u32, level: Level) -> Option<u32> {
        std::iter::successors(Some(id), |&id| self.parent(id))
            .find(|&id| ROWS[id as usize].2 == level)
    }
    fn parent(&self, id: u32) -> Option<u32> {
        ROWS[id as usize].1
    }
    fn label(&self, id: u32) -> &str {
        ROWS[id as usize].0
    }
    fn title(&self, _: u32) -> &str {
        "a disease"
    }
    fn billable(&self, id: u32) -> bool {
        ROWS[id as usize].2 == Level::Code
    }
}

fn system(name: &str, role: Role, judged: &[Judged], metrics: Metrics) -> System {
    System {
        name: name.into(),
        role,
        model: String::new(),
        base: (role == Role::Tuned).then(|| "base".into()),
        parameters: None,
        precision: None,
        trained_tokens: None,
        metrics,
        groups: groups(judged, Level::Code, &vec![3; judged.len()]),
        cut: 0,
        truncated: 0,
        same_as_base: None,
        foreign: 0,
        latency: None,
        cost: None,
        seconds: 1.0,
        peak_memory: None,
        chapters: Confusion::of(judged, Level::Chapter),
    }
}

#[test]
fn a_tuned_model_below_its_base_is_the_first_thing_that_a_reader_sees() {
    let ids: Vec<String> = (0..200).map(|row| format!("row{row}")).collect();
    let gold: Vec<&str> = (0..200)
        .map(|row| if row % 2 == 0 { "E119" } else { "F32.A" })
        .collect();
    let answers = |wrong_every: usize| -> Vec<Prediction> {
        let mut row = 0;
        let rows = ids.iter().map(|id| (id.as_str(), ""));
        baselines::predict("test", rows, Level::Code, &Tiny, |_| {
            row += 1;
            Some(if row % wrong_every == 0 {
                "unsure".to_owned()
            } else {
                format!("ICD-10: {}", gold[row - 1])
            })
        })
    };
    let dir = tempfile::tempdir().expect("a folder");
    let stored = |name: &str, predictions: Vec<Prediction>| {
        let path = dir.path().join(name);
        let mut log = PredictionLog::open(&path).expect("opens");
        predictions
            .into_iter()
            .for_each(|p| log.push(p).expect("writes"));
        log.sync().expect("syncs");
        prediction::read(&path).expect("reads")
    };
    let (base, tuned) = (
        stored("base.jsonl", answers(10)),
        stored("tuned.jsonl", answers(2)),
    );
    let judge_all = |predictions: &[Prediction]| -> Vec<Judged> {
        let read = predictions
            .iter()
            .map(|p| answer::read(&p.answer, Level::Code, &Tiny));
        read.zip(&gold)
            .map(|(outcome, gold)| judge(&Tiny, gold, &outcome, Level::Code))
            .collect()
    };
    let (base_judged, tuned_judged) = (judge_all(&base), judge_all(&tuned));
    let right =
        |judged: &[Judged]| -> Vec<bool> { judged.iter().map(|j| j.right(Level::Code)).collect() };
    let (base_right, tuned_right) = (right(&base_judged), right(&tuned_judged));
    let clusters: Vec<u32> = (0..200).collect();
    let resampler = Resampler::new(&clusters, 42, 1000);
    let base_measured = measure(&base_judged, Level::Code, &resampler);
    let tuned_measured = measure(&tuned_judged, Level::Code, &resampler);
    let graded = [
        Graded {
            name: "base",
            right: &base_right,
            accuracy: &base_measured.accuracy,
        },
        Graded {
            name: "tuned",
            right: &tuned_right,
            accuracy: &tuned_measured.accuracy,
        },
    ];
    let pairs = compare(&graded, &[("tuned", "base")], Level::Code, &clusters);
    let rows: Vec<ExampleRow> = ids
        .iter()
        .map(|id| ExampleRow {
            id,
            text: "a note",
            title: "a disease",
        })
        .collect();
    let shown = [
        ExampleSystem {
            name: "base",
            predictions: &base,
            judged: &base_judged,
        },
        ExampleSystem {
            name: "tuned",
            predictions: &tuned,
            judged: &tuned_judged,
        },
    ];
    let evaluation = Evaluation {
        name: "all".into(),
        data: "notes".into(),
        part: Part::Test,
        level: Level::Code,
        rows: 200,
        systems: vec![
            system("base", Role::ZeroShot, &base_judged, base_measured.metrics),
            system("tuned", Role::Tuned, &tuned_judged, tuned_measured.metrics),
        ],
        pairs,
        examples: choose(&rows, &shown, Level::Code, 6),
    };
    let plan = Plan {
        recipe: Recipe {
            name: "tiny".into(),
            seed: 42,
            cost: None,
        },
        data: vec![],
        tasks: vec![],
        models: vec![],
        trains: vec![],
        evaluates: vec![],
        compares: vec![],
    };
    let mut report = Report {
        schema: SCHEMA,
        recipe: "tiny".into(),
        recipe_text: String::new(),
        question: None,
        created: "2026-11-23T00:00:00Z".into(),
        engine: "0.1.0".into(),
        machine: Machine::default(),
        rates: None,
        findings: vec![],
        verdicts: vec![],
        data: vec![],
        trainings: vec![],
        evaluations: vec![evaluation],
        methods: vec![],
        limits: vec![],
        hashes: vec![],
    };
    report.conclude(&plan);

    let first = report.findings.first().expect("a finding");
    assert_eq!(
        (first.severity, first.title.as_str()),
        (Severity::Severe, "tuned is below its own zero-shot base")
    );
    assert_eq!(
        report
            .verdicts
            .iter()
            .map(|v| v.verdict)
            .collect::<Vec<_>>(),
        [Verdict::Worse]
    );
    assert!(text::table(&report).starts_with("SEVERE: tuned is below its own zero-shot base"));
    let page = html::page(&report).expect("renders");
    assert!(
        page.contains("tuned is worse than base: 50.0 % against 90.0 %"),
        "the verdict is on the page"
    );
    assert_eq!(
        svg::figures(&report).len(),
        3,
        "accuracy and two chapter maps"
    );
    let again = Report::from_json(&report.to_json().expect("serialises")).expect("reads");
    assert_eq!(again, report);
    assert!(comparison::text(&[report, again]).contains("90.0 %"));
}
