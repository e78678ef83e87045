//! Watches the quotes of a CSV stream, because the `csv` crate accepts what a user has to know
//! about.
//!
//! A quote that is never closed would swallow the rest of the file as one cell, silently if it is
//! in the last column. It refuses to parse: the bytes go through unchanged. Invariant: state
//! changes follow RFC 4180 with `\r`, `\n` and `\r\n` as line ends, as the crate reads them.

use std::io::{self, Read};

/// What is wrong with a quote; carried through the `csv` crate as the source of an I/O error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadQuote {
    #[error("a quote opens on line {line} and never closes")]
    Unclosed { line: u64 },
    #[error("text follows a closing quote on line {line}")]
    Stray { line: u64 },
}

#[derive(Clone, Copy)]
enum State {
    CellStart,
    Plain,
    Quoted {
        opened: u64,
    },
    /// After a quote inside a quoted cell: it closes the cell or is the first of two.
    Closing {
        opened: u64,
    },
}

/// A reader that fails at a bad quote.
pub(super) struct QuoteWatch<R> {
    inner: R,
    delimiter: u8,
    state: State,
    line: u64,
    /// Bytes seen, up to the length of a byte-order mark, which is no part of the first cell.
    seen: u8,
}

impl<R: Read> QuoteWatch<R> {
    pub(super) fn new(inner: R, delimiter: u8) -> QuoteWatch<R> {
        QuoteWatch {
            inner,
            delimiter,
            state: State::CellStart,
            line: 1,
            seen: 0,
        }
    }

    fn step(&mut self, byte: u8) -> Result<(), BadQuote> {
        if let Some(mark) = b"\xEF\xBB\xBF".get(usize::from(self.seen)) {
            if byte == *mark {
                self.seen += 1;
                return Ok(());
            }
            self.seen = 3;
        }
        let ends = byte == self.delimiter || matches!(byte, b'\n' | b'\r');
        self.state = match self.state {
            State::CellStart | State::Plain if ends => State::CellStart,
            State::CellStart if byte == b'"' => State::Quoted { opened: self.line },
            State::CellStart | State::Plain => State::Plain,
            State::Quoted { opened } if byte == b'"' => State::Closing { opened },
            State::Quoted { opened } => State::Quoted { opened },
            State::Closing { .. } if ends => State::CellStart,
            State::Closing { opened } if byte == b'"' => State::Quoted { opened },
            State::Closing { .. } => return Err(BadQuote::Stray { line: self.line }),
        };
        self.line += u64::from(byte == b'\n');
        Ok(())
    }
}

impl<R: Read> Read for QuoteWatch<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        for &byte in buffer.iter().take(read) {
            self.step(byte).map_err(io::Error::other)?;
        }
        match self.state {
            State::Quoted { opened } if read == 0 && !buffer.is_empty() => {
                Err(io::Error::other(BadQuote::Unclosed { line: opened }))
            }
            _ => Ok(read),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(text: &str) -> Option<BadQuote> {
        let mut sink = Vec::new();
        let error = QuoteWatch::new(text.as_bytes(), b',')
            .read_to_end(&mut sink)
            .err()?;
        error.get_ref()?.downcast_ref().copied()
    }

    #[test]
    fn good_quotes_pass() {
        for text in [
            "",
            "a,b\n1,2",
            "\"a\",\"b \"\"c\"\" \r\n d\"\r\n",
            "it's 5\" long,x\n",
            "\u{feff}\"a\nb\",c",
            "\"\",\"\"",
        ] {
            assert_eq!(watch(text), None, "{text:?}");
        }
    }

    #[test]
    fn bad_quotes_are_placed() {
        assert_eq!(watch("a\n\"b\nc\n"), Some(BadQuote::Unclosed { line: 2 }));
        assert_eq!(
            watch("a,b\n1,\"two\"x\n"),
            Some(BadQuote::Stray { line: 2 })
        );
        assert_eq!(watch("\"a\" ,b"), Some(BadQuote::Stray { line: 1 }));
    }
}
