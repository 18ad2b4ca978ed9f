//! The framing of an event stream, cut anywhere: lines that end in LF, CRLF or CR, `data:` lines that make up an event, and
//! an empty line that ends the event. The reader holds no line, however long, only its position in the line.

/// Part of a stream, as far as the observer needs it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum StreamPart<'a> {
    /// A piece of an event's data; the end of a `data:` line is a line feed.
    Data(&'a [u8]),
    /// The end of a comment, which servers send while they have nothing to say.
    Comment,
    /// The end of an event.
    End {
        /// True if the event was `[DONE]`.
        is_done: bool,
    },
}

/// Position of the next byte in its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// In the name, of which so many bytes matched those of `data:`.
    Name(usize),
    /// After the colon, where one space is left out.
    Colon,
    /// In the data.
    Data,
    /// In a comment.
    Comment,
    /// In a line that does not matter.
    Other,
}

const NAME: &[u8] = b"data:";
const DONE: &[u8] = b"[DONE]";
/// Byte order mark, which a stream may have before its first line.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// Reader of the lines of one stream.
#[derive(Debug)]
pub(super) struct Lines {
    at: At,
    after_return: bool,
    /// Bytes of the byte order mark that have passed; `None` once the mark can no longer come.
    mark: Option<usize>,
    has_data: bool,
    /// Bytes of `[DONE]` that the data of this event has matched; `None` for any other data.
    done: Option<usize>,
}

impl Default for Lines {
    fn default() -> Self {
        Self { at: At::Name(0), after_return: false, mark: Some(0), has_data: false, done: Some(0) }
    }
}

impl Lines {
    /// True if the event that no empty line has closed yet is `[DONE]`.
    pub(super) fn is_done(&self) -> bool {
        self.done == Some(DONE.len())
    }

    /// Reads bytes and passes each part of the stream in them to `report`.
    pub(super) fn feed(&mut self, mut part: &[u8], mut report: impl FnMut(StreamPart<'_>)) {
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
                self.line_ends(&mut report);
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
                At::Name(0) if byte == b':' => self.at = At::Comment,
                At::Name(_) => self.at = At::Other,
                At::Colon => {
                    self.at = At::Data;
                    if byte == b' ' {
                        part = rest;
                    }
                }
                At::Data | At::Comment | At::Other => {
                    let end = memchr::memchr2(b'\n', b'\r', part).unwrap_or(part.len());
                    let (line, tail) = part.split_at_checked(end).unwrap_or((part, b""));
                    if self.at == At::Data {
                        self.follow_done(line);
                        report(StreamPart::Data(line));
                    }
                    part = tail;
                }
            }
        }
    }

    fn line_ends(&mut self, report: &mut impl FnMut(StreamPart<'_>)) {
        match std::mem::replace(&mut self.at, At::Name(0)) {
            At::Name(0) => {
                if std::mem::take(&mut self.has_data) {
                    report(StreamPart::End { is_done: self.is_done() });
                }
                self.done = Some(0);
            }
            At::Colon | At::Data => report(StreamPart::Data(b"\n")),
            At::Comment => report(StreamPart::Comment),
            At::Name(_) | At::Other => {}
        }
    }

    fn follow_done(&mut self, data: &[u8]) {
        // Trailing blanks do not make it another word.
        let Some(matched) = self.done else { return };
        let expected = DONE.get(matched..).unwrap_or_default();
        let data = if expected.is_empty() { data.trim_ascii() } else { data };
        let (word, blank) = data.split_at_checked(expected.len()).unwrap_or((data, b""));
        self.done =
            (expected.starts_with(word) && blank.trim_ascii().is_empty()).then(|| matched.saturating_add(word.len()));
    }
}
