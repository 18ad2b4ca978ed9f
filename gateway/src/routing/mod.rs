//! Matching of requests to routes: by the head alone where that is enough, by the model in the body and its conversation where a
//! match asks for them. Precedence is that of the Gateway API, fixed when the table is built. The room reads no body itself and knows no
//! backend; its input is the compiled routes of a snapshot.

mod candidates;
mod host;
mod matcher;
mod models;
mod prefixes;
mod table;
#[cfg(test)]
mod tests;

pub use candidates::{Candidates, Routes};
pub use matcher::{CompileError, Condition, HeadContext, HeadView, MatchFault, PartialHead, Undecided, comparable};
pub use table::{AskedHeader, MAX_HOST, RouteTable, TableBuilder, without_port};
