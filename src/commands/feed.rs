//! Rows of the change feed; the functions are in `session/feed.rs`.

use super::Spec;

const FLAGS: &[&str] = &["pubsub", "noscript", "loading", "stale", "no_multi"];
const GROUP: &str = "feed";
const SINCE: &str = "1.0.0";

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::session("FEED.SUBSCRIBE", -1).about(
        FLAGS,
        GROUP,
        SINCE,
        "Listens for what happens to keys, in the order of the log",
    ),
    Spec::session("FEED.UNSUBSCRIBE", 1).about(FLAGS, GROUP, SINCE, "Stops listening to the change feed"),
];
