//! The whole of the configuration language: each file that is taken, and each that is refused with its line.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

mod admin;
mod admission;
mod batch;
mod discovery;
mod examples;
mod files;
mod include;
mod inference;
mod listeners;
mod models;
mod notifications;
mod origins;
mod paths;
mod rollouts;
mod translation;
