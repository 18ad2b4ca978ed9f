//! The framing of an event stream, cut anywhere: lines that end in LF, CRLF or CR, `data:` lines that make up an event,
//! an empty line that ends it. It holds no line, however long, only where it is in one.

/// What a stream is made of, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    /// A piece of an event's data; the end of a `data:` line is a line feed.
    Data(&'a [u8]),
    /// The end of an event.
    End {
        /// It said `[DONE]`.
        is_done: bool,
    },
}

/// Where in a line the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// In its name, of which so many bytes were those of `data:`.
    Name(usize),
    /// After the colon, where one space is left out.
    Colon,
    /// In the data.
    Data,
    /// In a line that does not matter.
    Other,
}

const NAME: &[u8] = b"data:";
const DONE: &[u8] = b"[DONE]";
/// A byte order mark may stand before the first line.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// Follows the lines of one stream.
#[derive(Debug)]
pub(super) struct Lines {
    at: At,
    after_return: bool,
    /// How much of the byte order mark has passed; `None` when it can no longer come.
    mark: Option<usize>,
    has_data: bool,
    /// How far the data of this event is `[DONE]`; `None` when it is something else.
    done: Option<usize>,
}

impl Default for Lines {
    fn default() -> Self {
        Self { at: At::Name(0), after_return: false, mark: Some(0), has_data: false, done: Some(0) }
    }
}

impl Lines {
    /// Whether the event that is not ended yet says `[DONE]`.
    pub(super) fn is_done(&self) -> bool {
        self.done == Some(DONE.len())
    }

    /// Reads a part and tells what is in it.
    pub(super) fn feed(&mut self, mut part: &[u8], mut tell: impl FnMut(Part<'_>)) {
        while let Some((&byte, rest)) = part.split_first() {
            if std::mem::take(&mut self.after_return) && byte == b'\n' {
                part = rest;
                continue;
            }
            if let Some(passed) = self.mark.take()
                && MARK.get(passed) == Some(&byte)
            {
                self.mark = Some(passed.saturating_add(1));
                part = rest;
                continue;
            }
            if matches!(byte, b'\n' | b'\r') {
                self.after_return = byte == b'\r';
                self.line_ends(&mut tell);
                part = rest;
                continue;
            }
            match self.at {
                At::Name(matched) if NAME.get(matched) == Some(&byte) => {
                    let matched = matched.saturating_add(1);
                    self.at = if matched == NAME.len() { At::Colon } else { At::Name(matched) };
                    self.has_data |= matched == NAME.len();
                    part = rest;
                }
                At::Name(_) => self.at = At::Other,
                At::Colon => {
                    self.at = At::Data;
                    if byte == b' ' {
                        part = rest;
                    }
                }
                At::Data | At::Other => {
                    let end = memchr::memchr2(b'\n', b'\r', part).unwrap_or(part.len());
                    let (line, tail) = part.split_at_checked(end).unwrap_or((part, b""));
                    if self.at == At::Data {
                        self.follow_done(line);
                        tell(Part::Data(line));
                    }
                    part = tail;
                }
            }
        }
    }

    fn line_ends(&mut self, tell: &mut impl FnMut(Part<'_>)) {
        match std::mem::replace(&mut self.at, At::Name(0)) {
            At::Name(0) => {
                if std::mem::take(&mut self.has_data) {
                    tell(Part::End { is_done: self.is_done() });
                }
                self.done = Some(0);
            }
            At::Colon | At::Data => tell(Part::Data(b"\n")),
            At::Name(_) | At::Other => {}
        }
    }

    fn follow_done(&mut self, data: &[u8]) {
        // A blank at the end is no other word.
        let Some(matched) = self.done else { return };
        let expected = DONE.get(matched..).unwrap_or_default();
        let data = if expected.is_empty() { data.trim_ascii() } else { data };
        let (word, blank) = data.split_at_checked(expected.len()).unwrap_or((data, b""));
        self.done =
            (expected.starts_with(word) && blank.trim_ascii().is_empty()).then(|| matched.saturating_add(word.len()));
    }
}
