//! The text of every error that a client can see. It is API: transcripts recorded from a real Redis pin it,
//! and clients parse its first word.
//!
//! Each error means either *not applied* (all but one) or *outcome unknown* (`UNCERTAIN`).

use std::borrow::Cow;

use thiserror::Error;

/// The result of a command. Deterministic: the same error on every node.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error reply.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("WRONGTYPE Operation against a key holding the wrong kind of value")]
    WrongType,
    #[error("ERR syntax error")]
    Syntax,
    #[error("ERR value is not an integer or out of range")]
    NotInteger,
    #[error("ERR value is not a valid float")]
    NotFloat,
    #[error("ERR wrong number of arguments for '{0}' command")]
    Arity(Cow<'static, str>),
    #[error("ERR no such key")]
    NoSuchKey,
    #[error("ERR index out of range")]
    IndexOutOfRange,
    #[error("ERR value is out of range, must be positive")]
    NotPositive,
    #[error("ERR increment or decrement would overflow")]
    Overflow,
    #[error("ERR invalid expire time in '{0}' command")]
    InvalidExpire(Cow<'static, str>),
    #[error("OOM command not allowed when used memory > 'maxmemory'.")]
    OutOfMemory,
    #[error(
        "ERR the call would touch {count} elements, and call-elements-max is {max}: nothing was done. Ask for less at once"
    )]
    TooManyElements { count: u64, max: u64 },
    /// The outcome of the request is unknown; every other error means that it was not applied.
    #[error(
        "UNCERTAIN the outcome is unknown: the request was sent into the log and its confirmation was lost"
    )]
    Uncertain,
    /// Any other text, complete with its prefix.
    #[error("{0}")]
    Other(Cow<'static, str>),
}

impl Error {
    /// An error with the general prefix `ERR`.
    pub fn err(text: impl AsRef<str>) -> Error {
        Error::Other(format!("ERR {}", text.as_ref()).into())
    }
}
