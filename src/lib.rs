//! Kvorum: a Raft-replicated, strongly consistent key-value server that speaks the Redis protocol.
//!
//! How a request flows, from the top: `server` accepts connections, `connection` reads and classifies commands,
//! `router` proposes writes to the log and gives reads their consistency, `machine` applies log entries, and
//! `commands` implements Redis's commands on the `store`.

pub mod admin;
pub mod args;
pub mod cli;
pub mod cluster_settings;
pub mod commands;
pub mod config;
pub mod connection;
pub mod effects;
pub mod error;
pub mod extended;
pub mod feed;
pub mod glob;
pub mod machine;
pub mod maxmemory;
pub mod proposal;
pub mod resp;
pub mod router;
pub mod server;
#[cfg(feature = "simulation")]
pub mod simulation;
pub mod store;
pub mod wake;
