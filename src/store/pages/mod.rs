//! The state as pages: what is written of it, tracked since the last checkpoint, and read again.

pub mod catalog;
pub mod checkpoint;
pub mod codec;
pub mod digest;
pub mod dirty;
pub mod segments;
pub mod table;
