//! Physical lines of a table, and the logical rows of CSV, with limits.
//!
//! In: a reader. Out: rows with the number of their first line. Never: holds more than one row, gives up a table because
//! one of its rows is broken.

use std::collections::VecDeque;
use std::io::{BufRead, Read};

use imp_schemas::reject::RejectReason;

use crate::text::Refusal;

/// Bytes of one row; captions of a megabyte exist, rows of sixteen are no rows.
const MAX_ROW_BYTES: usize = 16 << 20;
/// Lines that a quoted field may span before its quote counts as never closed.
const MAX_ROW_LINES: usize = 1000;

/// A row's first line, from 1, and its bytes without the line's end; or why it is none.
pub(super) type RowBytes = (u64, Result<Vec<u8>, Refusal>);

#[derive(Debug)]
pub(super) struct Lines<R> {
    reader: R,
    number: u64,
    /// Lines that were read ahead in search of a closing quote.
    pending: VecDeque<Ahead>,
}

#[derive(Debug)]
struct Ahead {
    number: u64,
    bytes: Vec<u8>,
    /// Whether a quote that is open before this line is open behind it: found out once, not for each row that looks ahead.
    keeps_open: bool,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, number: 0, pending: VecDeque::new() }
    }

    /// The next line that is not blank.
    pub(super) fn next_line(&mut self) -> std::io::Result<Option<RowBytes>> {
        while let Some((number, bytes)) = self.physical()? {
            if bytes.len() > MAX_ROW_BYTES {
                return Ok(Some((number, Err(too_long()))));
            }
            if !bytes.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some((number, Ok(trimmed(bytes)))));
            }
        }
        Ok(None)
    }

    /// The next row of a table whose fields may be quoted and span lines.
    pub(super) fn next_quoted(&mut self, separator: u8) -> std::io::Result<Option<RowBytes>> {
        let (number, first) = loop {
            match self.physical()? {
                None => return Ok(None),
                Some((_, bytes)) if bytes.iter().all(|b| matches!(b, b'\r' | b'\n')) => {}
                Some(line) => break line,
            }
        };
        let mut quotes = Quotes::default();
        quotes.feed(&first, separator);
        let (mut is_open, mut n_bytes, mut n_ahead) = (quotes.is_open(), first.len(), 0);
        while is_open && n_bytes <= MAX_ROW_BYTES && n_ahead < MAX_ROW_LINES {
            if n_ahead == self.pending.len() && !self.look_ahead(separator)? {
                break;
            }
            let line = &self.pending[n_ahead];
            is_open = line.keeps_open;
            n_bytes += line.bytes.len();
            n_ahead += 1;
        }
        if is_open {
            // Only the line with the quote is lost: what follows is read again as rows of its own.
            let detail = "a quote is opened and never closed".to_owned();
            return Ok(Some((number, Err((RejectReason::MalformedRow, detail)))));
        }
        let mut row = first;
        for line in self.pending.drain(..n_ahead) {
            row.extend_from_slice(&line.bytes);
        }
        let is_too_long = row.len() > MAX_ROW_BYTES;
        Ok(Some((number, if is_too_long { Err(too_long()) } else { Ok(trimmed(row)) })))
    }

    /// Reads one more line ahead; false at the end.
    fn look_ahead(&mut self, separator: u8) -> std::io::Result<bool> {
        let Some((number, bytes)) = self.read_line()? else { return Ok(false) };
        let mut quotes = Quotes { state: State::Quoted };
        quotes.feed(&bytes, separator);
        self.pending.push_back(Ahead { number, bytes, keeps_open: quotes.is_open() });
        Ok(true)
    }

    /// One line with its end, cut at a byte above the limit.
    fn physical(&mut self) -> std::io::Result<Option<(u64, Vec<u8>)>> {
        match self.pending.pop_front() {
            Some(Ahead { number, bytes, .. }) => Ok(Some((number, bytes))),
            None => self.read_line(),
        }
    }

    fn read_line(&mut self) -> std::io::Result<Option<(u64, Vec<u8>)>> {
        let mut bytes = Vec::new();
        (&mut self.reader).take(MAX_ROW_BYTES as u64 + 1).read_until(b'\n', &mut bytes)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        if bytes.len() > MAX_ROW_BYTES && bytes.last() != Some(&b'\n') {
            self.skip_line()?;
        }
        self.number += 1;
        Ok(Some((self.number, bytes)))
    }

    fn skip_line(&mut self) -> std::io::Result<()> {
        loop {
            let buffer = self.reader.fill_buf()?;
            let (n, is_end) = match buffer.iter().position(|&b| b == b'\n') {
                Some(at) => (at + 1, true),
                None => (buffer.len(), buffer.is_empty()),
            };
            self.reader.consume(n);
            if is_end {
                return Ok(());
            }
        }
    }
}

/// Whether a quoted field is open, by RFC 4180: a quote opens at the start of a field, two inside are one.
#[derive(Debug, Default)]
struct Quotes {
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    FieldStart,
    Bare,
    Quoted,
    QuoteInQuoted,
}

impl Quotes {
    fn feed(&mut self, bytes: &[u8], separator: u8) {
        for &byte in bytes {
            self.state = match self.state {
                State::Quoted if byte == b'"' => State::QuoteInQuoted,
                State::Quoted => State::Quoted,
                State::QuoteInQuoted if byte == b'"' => State::Quoted,
                State::FieldStart if byte == b'"' => State::Quoted,
                State::FieldStart | State::Bare | State::QuoteInQuoted if byte == separator => State::FieldStart,
                State::FieldStart | State::Bare | State::QuoteInQuoted => State::Bare,
            };
        }
    }

    fn is_open(&self) -> bool {
        self.state == State::Quoted
    }
}

fn trimmed(mut bytes: Vec<u8>) -> Vec<u8> {
    while matches!(bytes.last(), Some(b'\n' | b'\r')) {
        bytes.pop();
    }
    bytes
}

fn too_long() -> Refusal {
    (RejectReason::TooLarge, format!("the row is longer than {MAX_ROW_BYTES} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Vec<(u64, Option<String>)> {
        let mut lines = Lines::new(text.as_bytes());
        let mut rows = Vec::new();
        while let Some((number, row)) = lines.next_quoted(b',').unwrap() {
            rows.push((number, row.ok().map(|row| String::from_utf8(row).unwrap())));
        }
        rows
    }

    #[test]
    fn a_quote_that_is_never_closed_costs_its_line_alone() {
        let some = |number, text: &str| (number, Some(text.to_owned()));
        assert_eq!(rows("a,\"b\nc\"\nd\n"), [some(1, "a,\"b\nc\""), some(3, "d")]);
        assert_eq!(rows("a\n\"b\nc\n\nd\n"), [some(1, "a"), (2, None), some(3, "c"), some(5, "d")]);
        // The second line would close the quote of the first and opens one of its own.
        assert_eq!(rows("\"a\nb\",\"\nc\n"), [(1, None), (2, None), some(3, "c")]);
    }

    #[test]
    fn lines_that_all_open_a_quote_take_a_look_each_not_a_thousand() {
        // Each line opens a quote, at its start too, and leaves one open that stood before it.
        let line = format!("a{}\",\"\n", "x".repeat(2000));
        let started = std::time::Instant::now();
        let rows = rows(&line.repeat(20_000));
        assert!(rows.len() == 20_000 && rows.iter().all(|(_, row)| row.is_none()));
        // A second of an idle machine; a thousand looks at every byte took minutes.
        assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
    }
}
