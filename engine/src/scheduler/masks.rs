//! Grammar masks of constrained sequences, computed on a thread of their own while the device runs the step. A
//! grammar is moved there with the question and back with the answer, so no lock is needed.

use std::thread::JoinHandle;

use async_channel::{Receiver, Sender};
use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;

/// Grammar whose mask is to be computed.
struct MaskRequest {
    /// Index among the picks of the step.
    pick: usize,
    matcher: Box<Matcher>,
}

/// Grammar with its computed mask.
pub(super) struct ComputedMask {
    pub(super) pick: usize,
    pub(super) matcher: Box<Matcher>,
    pub(super) mask: Result<SimpleVob, String>,
}

/// Thread of the masks, started with the first question.
#[derive(Default)]
pub(super) struct Masks {
    thread: Option<Thread>,
    asked: usize,
}

struct Thread {
    questions: Sender<MaskRequest>,
    answers: Receiver<ComputedMask>,
    _handle: JoinHandle<()>,
}

impl Thread {
    fn start(name: &str) -> Option<Self> {
        let (questions, asked) = async_channel::unbounded::<MaskRequest>();
        let (answered, answers) = async_channel::unbounded();
        let work = move || {
            super::lower_priority();
            while let Ok(MaskRequest { pick, mut matcher }) = asked.recv_blocking() {
                let mask = matcher.compute_mask_or_eos().map_err(|e| e.to_string());
                if answered.send_blocking(ComputedMask { pick, matcher, mask }).is_err() {
                    break;
                }
            }
        };
        let started = std::thread::Builder::new().name(name.to_owned()).spawn(work);
        match started {
            Ok(handle) => Some(Self { questions, answers, _handle: handle }),
            Err(e) => {
                tracing::error!(event = "mask_thread_not_started", reason = %e);
                None
            }
        }
    }
}

impl Masks {
    /// Requests the mask of a pick. The channel holds one question for each pick of a step and is empty between
    /// steps. If the thread cannot be started, the grammar is lost and the request fails.
    pub(super) fn ask(&mut self, name: &str, pick: usize, matcher: Box<Matcher>) {
        if self.thread.is_none() {
            self.thread = Thread::start(name);
        }
        if let Some(thread) = &self.thread
            && thread.questions.try_send(MaskRequest { pick, matcher }).is_ok()
        {
            self.asked += 1;
        }
    }

    /// All answers since the last call, in the order of the questions.
    pub(super) fn answers(&mut self) -> Vec<ComputedMask> {
        let asked = std::mem::take(&mut self.asked);
        let Some(thread) = &self.thread else { return Vec::new() };
        let answers: Vec<_> = (0..asked).map_while(|_| thread.answers.recv_blocking().ok()).collect();
        if answers.len() < asked {
            tracing::error!(event = "mask_thread_lost");
            self.thread = None;
        }
        answers
    }
}
