//! Answers of the Messages API: whole messages and event streams, read from servers and written for callers.

mod read;
mod shapes;
mod stream;
mod write;

pub(super) use read::read;
pub(super) use stream::StreamReader;
pub(super) use write::{StreamWriter, write};
