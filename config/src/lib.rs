//! The configuration language of Spillway: what a person writes, how it is read, and every message about it.
//! It never opens a socket, starts a task or knows a Pingora type; nothing here outlives the reading of a file.
//! Its input is text (files, environment); its output is a checked [`schema::Config`] or a list of [`Diagnostic`]s.

mod catalog;
pub mod schema;
pub mod values;

pub use catalog::{FieldError, FilterCatalog, NoFilters};
