//! The protocol at the edge: requests are decoded with redis-protocol, replies are written by [`Reply`].

pub mod reply;
pub mod request;

pub use reply::{Protocol, Recorded, Reply};
