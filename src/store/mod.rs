//! The state: databases of keys, their deadlines, and the pages that hold both on disk.
//!
//! [`View`] reads, [`Ctx`] writes; a command gets one or the other. Keys lie in the order of (slot, hash) in
//! segments (`keyspace.rs`, `segments.rs`); a segment is a page, and large values have pages of their own
//! (`object.rs`). `checkpoint.rs` takes the pages out and builds a state from them.

mod capture;
mod chain;
mod checkpoint;
mod choice;
mod claim;
mod claims;
mod claims_page;
mod client_session;
pub mod codec;
mod coordination;
mod ctx;
mod deadlines;
mod digest;
pub mod dirty;
pub mod hash;
mod hash_object;
mod keyspace;
mod knobs;
mod lease;
pub mod level;
mod list;
mod long_string;
mod object;
mod reap;
mod record;
mod score_order;
mod segments;
mod set;
mod sorted_set;
mod state;
mod strings;
pub mod table;
mod touched;
mod view;

pub use capture::{Captured, Content, capture, capture_string};
pub use chain::End;
pub use checkpoint::StateLoader;
pub use choice::different;
pub use claim::{Answer, ClaimKind, Holder, LeaseId, Outcome, Share, Span, Ticket, Turn, Until, Wake, Wish};
pub use claims::{Claims, Leader};
pub use client_session::{ClientSession, Recall};
pub use ctx::{Caller, Ctx, Deadline};
pub use digest::Digest;
pub use dirty::{Dirty, Mark, PageId};
pub use hash::{Chance, Hashing, SLOTS, hash_of, slot_of};
pub use hash_object::Hash;
pub use lease::Lease;
pub use list::List;
pub use object::{Kind, Object, Pages, Typed, Value};
pub use record::Record;
pub use set::Set;
pub use sorted_set::{Edge, SortedSet};
pub use state::{DATABASES_MAX, Garbage, State};
pub use table::Table;
pub use touched::{Mention, Touch, Touched};
pub use view::View;

#[cfg(test)]
mod claims_tests;
#[cfg(test)]
mod hash_object_tests;
#[cfg(test)]
mod list_tests;
#[cfg(test)]
mod tests;
