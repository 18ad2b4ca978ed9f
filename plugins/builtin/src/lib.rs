//! The filters that come with Spillway
