//! Kvorum: a Raft-replicated, strongly consistent key-value server that speaks the Redis protocol.
//!
//! How a request flows, from the top: `server` accepts, `session` reads and classifies, `router` sends writes
//! into the log and gives reads their guarantee, `machine` applies what the log says, `commands` does what
//! Redis does, on the `store`.

pub mod admin;
pub mod args;
pub mod cli;
pub mod commands;
pub mod config;
pub mod error;
pub mod extended;
pub mod feed;
pub mod glob;
pub mod machine;
pub mod proposal;
pub mod resp;
pub mod router;
pub mod server;
pub mod session;
#[cfg(feature = "simulation")]
pub mod simulation;
pub mod store;
pub mod wake;
