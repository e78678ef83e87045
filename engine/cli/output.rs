//! How answers and failures look: stdout, JSON, colours, the sentence of an error.
//!
//! Holds no wording of its own. Invariant: with `--json`, stdout is one JSON value or nothing.

use super::{Blame, Outcome};
use std::io::{ErrorKind, Write};

/// Writes `text` and a line end. A reader that has gone away (`| head`) is no failure.
pub fn line(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.work(),
    }
}

/// Writes a value as JSON.
pub fn json(value: &impl serde::Serialize) -> Outcome {
    line(&serde_json::to_string_pretty(value).work()?)
}

/// Whether messages may be coloured: stderr is a terminal and `NO_COLOR` is not set (no-color.org).
pub fn colors() -> bool {
    use std::io::IsTerminal;
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// An error and its causes in one sentence. Many messages quote their cause already; it is not said twice.
pub fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn a_cause_is_said_once() {
        let quoted = Err::<(), _>(anyhow!("no such file")).context("a.json: no such file; make it");
        assert_eq!(
            sentence(&quoted.unwrap_err()),
            "a.json: no such file; make it"
        );
        let plain = Err::<(), _>(anyhow!("no such file")).context("a.json");
        assert_eq!(sentence(&plain.unwrap_err()), "a.json: no such file");
    }
}
