//! The history and its readers.
