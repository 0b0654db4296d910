//! The commands that the connection runs itself: a file for each verb or container of verbs, with its rows, its
//! functions, and nothing of others.

mod basic;
mod client;
mod command;
mod config;
pub mod consistency;
pub(super) mod feed;
pub mod info;
pub(super) mod lease;
pub(super) mod observe;
mod server;
mod session;

use super::{transaction, verb::Verb};

/// All of them, a family for each file.
pub(super) const VERBS: &[&[Verb]] = &[
    basic::VERBS,
    client::VERBS,
    command::VERBS,
    config::VERBS,
    consistency::VERBS,
    transaction::VERBS,
    info::VERBS,
    server::VERBS,
    feed::VERBS,
    observe::VERBS,
    lease::VERBS,
];
