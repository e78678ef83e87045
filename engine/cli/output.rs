//! Writing the answer to stdout.

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
