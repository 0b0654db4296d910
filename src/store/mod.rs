//! The state: databases of keys, their deadlines, and the pages that hold both on disk.
//!
//! [`View`] reads, [`Ctx`] writes; a command gets one of the two. Keys are ordered by (slot, hash) in
//! segments (`keyspace/`, `pages/segments.rs`); a segment is a page, and large values have their own pages
//! (`values/object.rs`). `pages/checkpoint.rs` extracts the pages and rebuilds a state from them.

mod capture;
pub mod coordination;
mod ctx;
mod elements;
pub mod keyspace;
mod knobs;
pub mod level;
mod memory;
pub mod pages;
mod settings;
mod state;
#[cfg(test)]
mod tests;
mod touched;
pub mod values;
mod view;
mod waits;

pub use coordination::claims::owner;
use coordination::{claims, client_session, lease, tickets};
pub use keyspace::hashing;
use keyspace::{deadlines, record};
use pages::{catalog, checkpoint, digest, segments};
pub use pages::{codec, dirty, table};
use values::{chain, choice, hash, list, long_string, object, score_order, set, sorted_set, strings};

pub use capture::{Captured, Content, capture, capture_string};
pub use catalog::{Catalog, Section};
pub use chain::End;
pub use checkpoint::StateLoader;
pub use choice::{LISTED_SHARE, different, looked_at};
pub use claims::{Claims, Leader};
pub use client_session::{ClientSession, REMEMBERED_BYTES_MAX, Recall};
pub use ctx::{Caller, Ctx, Deadline};
pub use digest::Digest;
pub use dirty::{Dirty, Mark, PageId};
pub use elements::{BYTES_OF_AN_ELEMENT, Elements};
pub use hash::Hash;
pub use hashing::{Chance, Hashing, SLOTS, hash_of, slot_of};
pub use lease::Lease;
pub use list::List;
pub use memory::ELEMENT_BYTES;
pub use object::{Kind, Object, Pages, Typed, Value};
pub use owner::{Acquire, Answer, ClaimKind, Holder, LeaseId, Outcome, Share, Span, Turn, Until, Wake};
pub use record::Record;
pub use set::{Member, Set};
pub use settings::{ClusterSetting, Unit};
pub use sorted_set::{Edge, SortedSet};
pub use state::{DATABASES_MAX, Garbage, State};
pub use table::Table;
pub use touched::{Mention, Touch, Touched};
pub use view::{Text, View};
pub use waits::{Fate, Ticket, Wait, Waits};
