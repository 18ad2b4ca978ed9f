//! Requests of the Messages API: read to the neutral types, and written from them.

mod content;
mod read;
mod tools;
mod write;

pub(super) use read::{Purpose, read};
pub(super) use write::write;
