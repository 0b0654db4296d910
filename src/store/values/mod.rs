//! The types of values: one file for each, and what they are made of.

pub mod chain;
pub mod choice;
pub mod hash;
#[cfg(test)]
mod hash_tests;
pub mod list;
#[cfg(test)]
mod list_tests;
pub mod long_string;
pub mod object;
pub mod score_order;
pub mod set;
pub mod sorted_set;
pub mod strings;
