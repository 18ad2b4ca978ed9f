//! The configuration language of Spillway: the schema of the file, its loading, and every message about it.
//! The crate opens no socket, starts no task and knows no Pingora type; nothing here outlives the reading of a file.
//! Input is text (files, environment); output is a checked [`schema::Config`] or a list of [`Diagnostic`]s.

mod catalog;
mod check;
mod diagnostic;
mod files;
mod further;
pub mod header_names;
mod include;
mod json_schema;
mod keys_file;
mod literal;
mod load;
mod model_pattern;
mod named;
mod origin;
pub mod path;
mod price_catalogue;
mod reporter;
mod rules;
pub mod schema;
pub mod spelling;
mod tree;
mod validate;
pub mod values;

pub use catalog::{ExpressionPlace, FieldError, FilterCatalog, NoFilters, SignalKind, SignalName};
pub use check::nearest;
pub use diagnostic::{Diagnostic, Report, Severity};
pub use files::{is_pattern, matching, read_bytes, read_input, read_text};
pub use further::{Further, JoinError, PartKind, RefusedPart};
pub use json_schema::json_schema;
pub use keys_file::read_keys;
pub use load::{FileChecks, FileError, LoadOptions, Loaded, NoFileChecks, load, load_text};
pub use model_pattern::{ModelPattern, ollama_name};
pub use origin::Origins;
pub use price_catalogue::{CataloguedPrice, catalogued_prices, price_catalogue};
pub use rules::RouteRules;
