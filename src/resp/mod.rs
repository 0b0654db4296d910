//! The protocol at the edge: requests are decoded with redis-protocol, replies are written by [`Reply`].

pub mod elements;
pub mod replies;
pub mod reply;
pub mod request;

pub use elements::Elements;
pub use replies::Replies;
pub use reply::{Protocol, Recorded, Reply};
