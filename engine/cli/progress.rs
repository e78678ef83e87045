//! What a running study looks like: bars on a terminal, lines in a log.

use crate::study::observer::{Observer, StageLine, StudyEvent};
use crate::train::session::Event;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Seconds between lines about the same thing where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Prints what happens to stderr.
pub struct Progress {
    terminal: bool,
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
    /// The latest validation, shown beside the loss.
    val_loss: Option<f64>,
}

impl Default for Progress {
    fn default() -> Self {
        Progress {
            terminal: std::io::stderr().is_terminal(),
            bar: None,
            last_line: None,
            val_loss: None,
        }
    }
}

impl Progress {
    /// A line that stays.
    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    /// Progress of one long thing: the bar on a terminal, a line now and then elsewhere; the last one always.
    fn advance(&mut self, done: u64, total: u64, what: &str, message: String) {
        if self.terminal {
            let bar = self.bar.get_or_insert_with(|| {
                let style = ProgressStyle::with_template(
                    "{prefix} {wide_bar:.cyan/blue} {pos}/{len}  {msg}  {eta} left",
                );
                let bar = ProgressBar::new(total);
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                bar.set_prefix(what.to_string());
                bar
            });
            bar.set_position(done);
            bar.set_message(message);
        } else if done == total || self.last_line.is_none_or(|t| t.elapsed() >= LINE_EVERY) {
            self.last_line = Some(Instant::now());
            eprintln!("{what} {done}/{total}  {message}");
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.last_line = None;
    }

    fn plan(&self, device: &str, stages: &[StageLine]) {
        eprintln!("on {device}:");
        let width = stages
            .iter()
            .map(|s| s.name.chars().count())
            .max()
            .unwrap_or(0);
        for StageLine {
            stage,
            name,
            what,
            done,
        } in stages
        {
            let state = if *done { "done" } else { "to do" };
            eprintln!("  {stage:<8} {name:<width$}  {state:<6} {what}");
        }
    }

    fn train(&mut self, name: &str, event: Event) {
        match event {
            Event::Started {
                steps,
                done,
                trained_values,
            } => {
                self.val_loss = None;
                let from = if done > 0 {
                    format!(", going on at step {done}")
                } else {
                    String::new()
                };
                self.say(&format!(
                    "train {name}: {steps} steps, {trained_values} trained values{from}"
                ));
            }
            Event::Step {
                metric,
                steps,
                tokens_per_second,
                ..
            } => {
                let rest = steps.saturating_sub(metric.step) as f64 * metric.seconds
                    / metric.step.max(1) as f64;
                let val = self
                    .val_loss
                    .map_or(String::new(), |v| format!("  val {v:.4}"));
                let eta = if self.terminal {
                    String::new()
                } else {
                    format!("  {} left", duration(rest))
                };
                let loss = metric.loss.unwrap_or(f64::NAN);
                let message = format!("loss {loss:.4}{val}  {tokens_per_second:.0} tokens/s{eta}");
                self.advance(metric.step, steps, &format!("train {name}"), message);
            }
            Event::Validated { metric, best } => {
                self.val_loss = metric.val_loss;
                let mark = if best { " (best so far)" } else { "" };
                let loss = metric.val_loss.unwrap_or(f64::NAN);
                self.say(&format!(
                    "train {name}: step {}, validation loss {loss:.4}{mark}",
                    metric.step
                ));
            }
            Event::Saved { .. } => {}
        }
    }
}

/// `2 h 5 min`, `3 min 12 s` or `8 s`.
pub fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

impl Observer for Progress {
    fn event(&mut self, event: StudyEvent) {
        match event {
            StudyEvent::Plan { device, stages } => self.plan(&device, &stages),
            StudyEvent::Begin { stage, name } => {
                self.finish();
                self.say(&format!("{stage} {name}"));
            }
            StudyEvent::Notice(text) => self.say(&format!("note: {text}")),
            StudyEvent::Warning(text) => self.say(&format!("warning: {text}")),
            StudyEvent::Download { file, done, total } => {
                let mib = |bytes: u64| bytes >> 20;
                self.advance(
                    mib(done),
                    mib(total),
                    &format!("download {file}"),
                    "MiB".into(),
                );
                if total == done {
                    self.finish();
                }
            }
            StudyEvent::Train { name, event } => self.train(&name, event),
            StudyEvent::Predict { name, done, total } => {
                self.advance(
                    done as u64,
                    total as u64,
                    &format!("predict {name}"),
                    "notes".into(),
                );
            }
            StudyEvent::Report { path } => {
                self.finish();
                self.say(&format!("report {}", path.display()));
            }
        }
    }
}
