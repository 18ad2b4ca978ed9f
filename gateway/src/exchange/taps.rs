//! Taps on an answer that passes: those of the exchanges that are looked at. Others have none, and pay nothing for them.

use http::StatusCode;
use spillway_filter::Fields;

use crate::quality::{ContentTap, Tap};
use crate::rollout::AnswerTap;

/// Taps on the answer of an exchange.
#[derive(Debug, Default)]
pub struct Taps {
    /// Tap of the watch over quality.
    pub quality: Option<Tap>,
    /// Tap of the rollout of the route.
    pub rollout: Option<AnswerTap>,
    /// Tap of the exchange's span.
    pub content: Option<ContentTap>,
}

impl Taps {
    /// Notes the head of the answer.
    pub fn head(&mut self, status: StatusCode, headers: &Fields) {
        if let Some(tap) = &mut self.quality {
            tap.head(status, headers);
        }
        if let Some(tap) = &mut self.rollout {
            tap.head(status, headers);
        }
        if let Some(tap) = &mut self.content {
            tap.answer().head(status, headers);
        }
    }

    /// Notes a part of the answer.
    pub fn part(&mut self, part: &[u8]) {
        if let Some(tap) = &mut self.quality {
            tap.part(part);
        }
        if let Some(tap) = &mut self.rollout {
            tap.part(part);
        }
        if let Some(tap) = &mut self.content {
            tap.answer().part(part);
        }
    }
}
