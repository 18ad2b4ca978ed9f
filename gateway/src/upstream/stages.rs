//! Stages between the server's side of an answer and the client's: each reads, holds back or changes what passes.

use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::answer_model::AnswerModel;
use super::decoding::StreamDecoder;
use super::encoded::MAX_ENCODED;
use super::events::Gate;
use super::masking::{Mask, SentCredentials};
use super::renaming::Renaming;
use super::translating::StreamTranslator;
use crate::coding::Coding;
use crate::downstream::Unread;
use crate::message::ResponseHead;
use crate::protocol::{Observe, Transcribe};

/// Stages that an answer passes on its way.
#[derive(Default)]
pub(super) struct Passing {
    pub(super) observer: Option<Box<dyn Observe>>,
    /// Holds back unfinished events of an event stream.
    pub(super) gate: Option<Gate>,
    /// True if the chunk with the usage, for which the caller did not ask, is removed from an event stream.
    pub(super) hides_usage: bool,
    /// Puts the caller's name of the model in place of the server's.
    pub(super) names: Option<Box<AnswerModel>>,
    /// Masks credentials of the gateway in an error, and in an answer of a model API that may become one.
    pub(super) mask: Option<Mask>,
    /// True where an error may still come in place of the answer, or of its rest, in which more is to be masked than in an answer.
    pub(super) may_mask: bool,
    pub(super) transcript: Option<Box<dyn Transcribe>>,
    /// Answer that must be read whole before it can pass.
    pub(super) sealed: Option<Sealed>,
    /// Decodes an event stream that is translated, and an answer that is searched for credentials.
    pub(super) decoder: Option<Box<StreamDecoder>>,
    /// True once the answer could not be decoded further. The rest of it is lost.
    pub(super) is_spoiled: bool,
    /// Translates an event stream.
    pub(super) translator: Option<StreamTranslator>,
    /// Name of the model to replace in the beginning of the answer.
    pub(super) renaming: Option<Box<Renaming>>,
    /// Head that waits: of an answer that may still be an error, until which another endpoint can answer instead; of a
    /// sealed error; or of an answer whose model has another name here.
    pub(super) waiting: Option<Waiting>,
    /// Bytes that were read from the server and not yet written to the client.
    pub(super) unread: Unread,
    /// Trailers, where they were read before the client had read the body.
    pub(super) trailers: Option<Option<http::HeaderMap>>,
    /// True once the client has the end of the answer: its head was all of it.
    pub(super) has_ended: bool,
}

impl Passing {
    /// True of a stream that ended in order but in the middle of its message, and can be continued.
    pub(super) fn is_cut_short(&self) -> bool {
        self.observer.as_ref().is_some_and(|observer| !observer.observation().is_whole)
            && self.transcript.as_ref().is_some_and(|transcript| transcript.to_continue().is_some())
    }

    /// True if the client cannot have the answer to its end, as it could not be read or ended too early.
    pub(super) fn is_broken(&self) -> bool {
        match (&self.translator, &self.observer) {
            (Some(translator), _) => translator.is_broken(),
            // Bytes behind the end of the coding are none of the answer's.
            (None, Some(observer)) => self.is_spoiled && !observer.observation().is_whole,
            (None, None) => self.is_spoiled,
        }
    }

    /// Masks the next part, of which the observer has read all.
    pub(super) fn mask_part(&mut self, shown: &SentCredentials, part: Bytes) -> Bytes {
        if self.may_mask && self.observer.as_ref().is_some_and(|observer| observer.observation().has_failed) {
            return self.mask_error(shown, Bytes::new(), part);
        }
        match &mut self.mask {
            Some(mask) => mask.pass(part),
            None => part,
        }
    }

    /// Masks the last part, and returns the bytes that were held back before it too.
    pub(super) fn mask_rest(&mut self, shown: &SentCredentials, last: Bytes) -> Bytes {
        let last = self.mask_part(shown, last);
        let rest = self.mask.as_mut().map(Mask::rest).unwrap_or_default();
        if rest.is_empty() { last } else { [last, rest].concat().into() }
    }

    /// Masks an error from here on, in which all is masked that the server was shown: `begun` has passed the mask of answers and
    /// no client has it yet, `part` follows the bytes that this mask holds back.
    pub(super) fn mask_error(&mut self, shown: &SentCredentials, begun: Bytes, part: Bytes) -> Bytes {
        self.may_mask = false;
        let held = self.mask.take().map(|mut mask| mask.rest()).unwrap_or_default();
        self.mask = shown.mask();
        let part = if begun.is_empty() && held.is_empty() { part } else { [begun, held, part].concat().into() };
        match &mut self.mask {
            Some(mask) => mask.pass(part),
            None => part,
        }
    }

    /// True if a chunk with the usage may be among the events that pass now, and is to be removed. The observer has read them.
    pub(super) fn may_hide(&self) -> bool {
        self.hides_usage && self.observer.as_ref().is_some_and(|observer| observer.observation().usage.is_some())
    }
}

/// Reason to read an answer whole, with its coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sealed {
    /// A compressed error, in which credentials are to be masked, or an answer in a coding in which none can be found.
    Unsearched(Coding),
    /// A whole answer or an error of another API or transport.
    Foreign(Coding),
}

impl Sealed {
    /// Most bytes that are read, of an answer that is translated `most_translated`.
    pub(super) fn most(self, most_translated: usize) -> usize {
        match self {
            Self::Unsearched(_) => MAX_ENCODED,
            Self::Foreign(_) => most_translated,
        }
    }
}

/// An answer whose head waits.
pub(super) struct Waiting {
    pub(super) head: ResponseHead,
    /// Time from the begin of the attempt to the head.
    pub(super) took: Duration,
    /// True if an event stream waits for its first content, and not only for its first event.
    pub(super) for_content: bool,
    /// Bytes of the body so far.
    pub(super) parts: BytesMut,
}
