//! The `kvorum` binary: reads the command line, runs the verb, and ends the process; nothing else does.
#![allow(missing_docs)]

use std::process::ExitCode;

use clap::Parser;
use kvorum::cli::{self, Cli};

/// Gives freed memory back to the system after a second, by a thread of its own rather than by the one that
/// happens to allocate.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static MALLOC_CONF: &[u8] = b"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0\0";

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match cli::run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("kvorum: {:#}", failure.error);
            if let Some(advice) = failure.advice {
                eprintln!("{advice}");
            }
            ExitCode::from(failure.code)
        }
    }
}
