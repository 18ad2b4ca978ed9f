//! Tests of the translation of chat completions.
