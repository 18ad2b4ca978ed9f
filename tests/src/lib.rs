//! The built binary against real programs, one file for each promise
