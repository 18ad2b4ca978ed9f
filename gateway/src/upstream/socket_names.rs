//! The name of the model in the messages of a socket of OpenAI's APIs, where the server knows another name than the caller. Inputs
//! are the facts of the handshake and the text of messages, part by part; what passes is held no longer than a name.

use std::sync::Arc;

use bytes::Bytes;

use super::answer_model::{AnswerModel, Names};
use super::model_name;
use crate::exchange::Exchange;
use crate::protocol::Operation;
use crate::topology::Backend;
use crate::tunnel::Side;

/// Keys of objects that hold a name in messages of the Realtime API.
const OF_REALTIME: &[&[u8]] = &[b"session", b"response"];

/// Keys of objects that hold a name in what a server of the Responses API says.
const OF_RESPONSES: &[&[u8]] = &[b"response"];

/// Exchanges the names in the messages of one socket, both ways.
pub(super) struct SocketNames {
    /// Of the client.
    said: AnswerModel,
    /// Of the server.
    answered: AnswerModel,
}

impl SocketNames {
    /// Exchange of names on a socket; `None` where both sides know one name.
    ///
    /// A socket of the Realtime API is about the model in its query. One of the Responses API names a model in each request: it
    /// becomes the one that the backend has for all, and what the server says has the name that the client sent last.
    pub(super) fn of(backend: &Backend, exchange: &Exchange) -> Option<Box<Self>> {
        let name = |name: &str| Bytes::from(serde_json::Value::from(name).to_string());
        let of = |from: Option<&Arc<str>>, to: Bytes, holders| {
            AnswerModel::of_messages(Names { from: from.cloned(), to }, holders)
        };
        let (said, answered) = match exchange.resolved.operation {
            Operation::Realtime => {
                let (servers, callers) = model_name::exchanged(backend, exchange)?;
                let said = of(Some(&callers.into()), name(servers), OF_REALTIME);
                (said, of(Some(servers), name(callers), OF_REALTIME))
            }
            Operation::ResponsesSocket => {
                let servers = backend.model.as_ref()?;
                (of(None, name(servers), &[]), of(Some(servers), name(servers), OF_RESPONSES))
            }
            _ => return None,
        };
        Some(Box::new(Self { said, answered }))
    }

    /// Writes a part of a text with the name for the other side.
    pub(super) fn write(&mut self, from: Side, part: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&self.of_side(from).pass(Bytes::copy_from_slice(part)));
    }

    /// Writes what was held back of a text that has ended.
    pub(super) fn write_end(&mut self, from: Side, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.of_side(from).end_message());
        if let Some(name) = self.said.take_replaced() {
            self.answered.replace_by(name);
        }
    }

    /// True if a message of the client that has ended may name the model where the exchange does not see it: it is binary, or has a
    /// key that other readers may take for `model`.
    pub(super) fn are_evaded(&mut self, is_text: bool) -> bool {
        self.said.take_odd() || !is_text
    }

    fn of_side(&mut self, from: Side) -> &mut AnswerModel {
        match from {
            Side::Client => &mut self.said,
            Side::Server => &mut self.answered,
        }
    }
}
