//! The ACL categories of a command, which follow from its row.

use super::Spec;

/// All categories, in Redis's order, without their `@`.
pub const CATEGORIES: &[&str] = &[
    "keyspace",
    "read",
    "write",
    "set",
    "sortedset",
    "list",
    "hash",
    "string",
    "bitmap",
    "hyperloglog",
    "geo",
    "stream",
    "pubsub",
    "admin",
    "fast",
    "slow",
    "blocking",
    "dangerous",
    "connection",
    "transaction",
    "scripting",
    "coordination",
];

/// The category that belongs to a group of COMMAND DOCS.
fn of_group(group: &str) -> &'static [&'static str] {
    match group {
        "generic" => &["keyspace"],
        "string" => &["string"],
        "list" => &["list"],
        "set" => &["set"],
        "sorted-set" => &["sortedset"],
        "hash" => &["hash"],
        "bitmap" => &["bitmap"],
        "hyperloglog" => &["hyperloglog"],
        "geo" => &["geo"],
        "stream" => &["stream"],
        "connection" => &["connection"],
        "transactions" => &["transaction"],
        "scripting" => &["scripting"],
        "lock" | "semaphore" | "election" | "lease" | "session" => &["coordination"],
        _ => &[],
    }
}

impl Spec {
    /// Its ACL categories, without their `@`, in Redis's order.
    pub fn categories(&self) -> Vec<&'static str> {
        let of_row = self.acl.unwrap_or_else(|| of_group(self.group));
        let follows = |category: &str| match category {
            "read" => self.has("readonly") && self.group != "scripting",
            "write" | "admin" | "pubsub" | "fast" | "blocking" => self.has(category),
            "slow" => !self.has("fast"),
            "dangerous" => self.has("admin"),
            _ => false,
        };
        let applies = |category: &&str| of_row.contains(category) || follows(category);
        CATEGORIES.iter().copied().filter(applies).collect()
    }
}
