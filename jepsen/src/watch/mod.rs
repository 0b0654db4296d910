//! What the harness itself looks at during a run and after it, beside the replies that clients got: the nodes'
//! content and digests, their readiness, their logs, and whether anything is done at all.

pub(crate) mod contents;
pub(crate) mod digests;
pub(crate) mod logs;
pub(crate) mod majority;
pub(crate) mod readiness;
pub(crate) mod silence;
