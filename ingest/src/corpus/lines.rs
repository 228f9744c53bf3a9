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
    pending: VecDeque<(u64, Vec<u8>)>,
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
        let (mut row, mut ahead) = (first, Vec::new());
        while quotes.is_open() && row.len() <= MAX_ROW_BYTES && ahead.len() < MAX_ROW_LINES {
            let Some((number, line)) = self.physical()? else { break };
            quotes.feed(&line, separator);
            row.extend_from_slice(&line);
            ahead.push((number, line));
        }
        if row.len() > MAX_ROW_BYTES && !quotes.is_open() {
            return Ok(Some((number, Err(too_long()))));
        }
        if quotes.is_open() {
            // Only the line with the quote is lost: what follows is read again as rows of its own.
            for line in ahead.into_iter().rev() {
                self.pending.push_front(line);
            }
            let detail = "a quote is opened and never closed".to_owned();
            return Ok(Some((number, Err((RejectReason::MalformedRow, detail)))));
        }
        Ok(Some((number, Ok(trimmed(row)))))
    }

    /// One line with its end, cut at a byte above the limit.
    fn physical(&mut self) -> std::io::Result<Option<(u64, Vec<u8>)>> {
        if let Some(line) = self.pending.pop_front() {
            return Ok(Some(line));
        }
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
