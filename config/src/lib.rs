//! The configuration language of Spillway: schema, loading, diagnostics, validation
