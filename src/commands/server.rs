//! Rows of the commands that a session runs; the functions are in `session/`, found by the row's name.

use super::{Spec, all_keys};

const LOADING: &[&str] = &["loading", "stale"];
const FAST: &[&str] = &["loading", "stale", "fast"];
const QUIET: &[&str] = &["noscript", "loading", "stale"];
const QUIET_FAST: &[&str] = &["noscript", "loading", "stale", "fast"];
const BEFORE_AUTH: &[&str] = &["noscript", "loading", "stale", "fast", "no_auth", "allow_busy"];
const BUSY: &[&str] = &["noscript", "loading", "stale", "fast", "allow_busy"];
const BUSY_SLOW: &[&str] = &["noscript", "loading", "stale", "skip_slowlog"];
const NOT_QUEUED: &[&str] = &["noscript", "loading", "stale", "no_multi"];
const ADMIN: &[&str] = &["admin", "noscript", "loading", "stale"];

const CONNECTION: &str = "connection";
const SERVER: &str = "server";

const CLIENT: &[Spec] = &[
    Spec::session("CLIENT|CONSISTENCY", -2).about(
        NOT_QUEUED,
        CONNECTION,
        "1.0.0",
        "Show or set what the reads of the connection promise",
    ),
    Spec::session("CLIENT|GETNAME", 2).about(QUIET, CONNECTION, "2.6.9", "Get the current connection name"),
    Spec::session("CLIENT|GETREDIR", 2).about(
        QUIET,
        CONNECTION,
        "6.0.0",
        "Get tracking notifications redirection client ID if any",
    ),
    Spec::session("CLIENT|HELP", 2).about(
        LOADING,
        CONNECTION,
        "5.0.0",
        "Show helpful text about the different subcommands",
    ),
    Spec::session("CLIENT|ID", 2).about(
        QUIET,
        CONNECTION,
        "5.0.0",
        "Returns the client ID for the current connection",
    ),
    Spec::session("CLIENT|INFO", 2).about(
        QUIET,
        CONNECTION,
        "6.2.0",
        "Returns information about the current client connection.",
    ),
    Spec::session("CLIENT|KILL", -3).about(ADMIN, CONNECTION, "2.4.0", "Kill the connection of a client"),
    Spec::session("CLIENT|LIST", -2).about(ADMIN, CONNECTION, "2.4.0", "Get the list of client connections"),
    Spec::session("CLIENT|NO-EVICT", 3).about(
        ADMIN,
        CONNECTION,
        "7.0.0",
        "Set client eviction mode for the current connection",
    ),
    Spec::session("CLIENT|NO-TOUCH", 3).about(
        QUIET,
        CONNECTION,
        "7.2.0",
        "Controls whether commands sent by the client affect the LRU/LFU of accessed keys",
    ),
    Spec::session("CLIENT|REPLY", 3).about(
        QUIET,
        CONNECTION,
        "3.2.0",
        "Instruct the server whether to reply to commands",
    ),
    Spec::session("CLIENT|SESSION", -2).about(
        &["noscript", "no_multi"],
        CONNECTION,
        "1.0.0",
        "Takes the connection into a session, in which ONCE applies commands once",
    ),
    Spec::session("CLIENT|SETINFO", 4).about(
        QUIET,
        CONNECTION,
        "7.2.0",
        "Sets information specific to the client or connection",
    ),
    Spec::session("CLIENT|SETNAME", 3).about(QUIET, CONNECTION, "2.6.9", "Set the current connection name"),
    Spec::session("CLIENT|TRACKINGINFO", 2).about(
        QUIET,
        CONNECTION,
        "6.2.0",
        "Return information about server assisted client side caching for the current connection",
    ),
    Spec::session("CLIENT|UNBLOCK", -3).about(
        ADMIN,
        CONNECTION,
        "5.0.0",
        "Unblock a client blocked in a blocking command from a different connection",
    ),
];

const COMMAND: &[Spec] = &[
    Spec::session("COMMAND|COUNT", 2).about(LOADING, SERVER, "2.8.13", "Get total number of Redis commands"),
    Spec::session("COMMAND|DOCS", -2).about(
        LOADING,
        SERVER,
        "7.0.0",
        "Get array of specific Redis command documentation",
    ),
    Spec::session("COMMAND|GETKEYS", -4).about(
        LOADING,
        SERVER,
        "2.8.13",
        "Extract keys given a full Redis command",
    ),
    Spec::session("COMMAND|GETKEYSANDFLAGS", -4).about(
        LOADING,
        SERVER,
        "7.0.0",
        "Extract keys and access flags given a full Redis command",
    ),
    Spec::session("COMMAND|HELP", 2).about(
        LOADING,
        SERVER,
        "5.0.0",
        "Show helpful text about the different subcommands",
    ),
    Spec::session("COMMAND|INFO", -2).about(
        LOADING,
        SERVER,
        "2.8.13",
        "Get array of specific Redis command details, or all when no argument is given.",
    ),
    Spec::session("COMMAND|LIST", -2).about(LOADING, SERVER, "7.0.0", "Get an array of Redis command names"),
];

const CONFIG: &[Spec] = &[
    Spec::session("CONFIG|GET", -3).about(
        ADMIN,
        SERVER,
        "2.0.0",
        "Get the values of configuration parameters",
    ),
    Spec::session("CONFIG|HELP", 2).about(
        LOADING,
        SERVER,
        "5.0.0",
        "Show helpful text about the different subcommands",
    ),
    Spec::session("CONFIG|RESETSTAT", 2).about(ADMIN, SERVER, "2.0.0", "Reset the stats returned by INFO"),
    Spec::session("CONFIG|REWRITE", 2).about(
        ADMIN,
        SERVER,
        "2.8.0",
        "Rewrite the configuration file with the in memory configuration",
    ),
    Spec::session("CONFIG|SET", -4).about(
        ADMIN,
        SERVER,
        "2.0.0",
        "Set configuration parameters to the given values",
    ),
];

const MODULE: &[Spec] =
    &[Spec::session("MODULE|LIST", 2).about(ADMIN, SERVER, "4.0.0", "List all modules loaded by the server")];

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::session("AUTH", -2).about(BEFORE_AUTH, CONNECTION, "1.0.0", "Authenticate to the server"),
    Spec::session("CLIENT", -2)
        .about(&[], CONNECTION, "2.4.0", "A container for client connection commands")
        .with(CLIENT),
    Spec::session("COMMAND", -1)
        .about(LOADING, SERVER, "2.8.13", "Get array of Redis command details")
        .with(COMMAND),
    Spec::session("CONFIG", -2)
        .about(&[], SERVER, "2.0.0", "A container for server configuration commands")
        .with(CONFIG),
    Spec::session("CONSISTENCY", -3).about(
        NOT_QUEUED,
        CONNECTION,
        "1.0.0",
        "Read with another promise than the connection's",
    ),
    Spec::session("DEBUG", -2).about(ADMIN, SERVER, "1.0.0", "A container for debugging commands"),
    Spec::session("DISCARD", 1).about(
        BUSY,
        "transactions",
        "2.0.0",
        "Discard all commands issued after MULTI",
    ),
    Spec::session("ECHO", 2).about(FAST, CONNECTION, "1.0.0", "Echo the given string"),
    Spec::session("EXEC", 1).about(
        BUSY_SLOW,
        "transactions",
        "1.2.0",
        "Execute all commands issued after MULTI",
    ),
    Spec::session("HELLO", -1).about(BEFORE_AUTH, CONNECTION, "6.0.0", "Handshake with Redis"),
    Spec::session("INFO", -1).about(
        LOADING,
        SERVER,
        "1.0.0",
        "Get information and statistics about the server",
    ),
    Spec::session("MODULE", -2)
        .about(&[], SERVER, "4.0.0", "A container for module commands")
        .with(MODULE),
    Spec::session("MULTI", 1).about(BUSY, "transactions", "1.2.0", "Mark the start of a transaction block"),
    Spec::session("PING", -1).about(&["fast"], CONNECTION, "1.0.0", "Ping the server"),
    Spec::session("QUIT", -1).about(BEFORE_AUTH, CONNECTION, "1.0.0", "Close the connection"),
    Spec::session("READONLY", 1).about(
        FAST,
        "cluster",
        "3.0.0",
        "Enables read queries for a connection to a cluster replica node",
    ),
    Spec::session("READWRITE", 1).about(
        FAST,
        "cluster",
        "3.0.0",
        "Disables read queries for a connection to a cluster replica node",
    ),
    Spec::session("RESET", 1).about(BEFORE_AUTH, CONNECTION, "6.2.0", "Reset the connection"),
    Spec::session("ROLE", 1).about(
        QUIET_FAST,
        SERVER,
        "2.8.12",
        "Return the role of the instance in the context of replication",
    ),
    Spec::session("SELECT", 2).about(
        FAST,
        CONNECTION,
        "1.0.0",
        "Change the selected database for the current connection",
    ),
    Spec::session("TIME", 1).about(FAST, SERVER, "2.6.0", "Return the current server time"),
    Spec::session("UNWATCH", 1).about(BUSY, "transactions", "2.2.0", "Forget about all watched keys"),
    Spec::session("WAIT", 3).about(
        &["noscript"],
        "generic",
        "3.0.0",
        "Wait for the synchronous replication of all the write commands sent in the context of the current connection",
    ),
    Spec::session("WAITAOF", 4).about(
        &["noscript"],
        "generic",
        "7.2.0",
        "Wait for all write commands sent in the context of the current connection to be synced to disk",
    ),
    Spec {
        keys: all_keys(),
        ..Spec::session("WATCH", -2).about(
            BUSY,
            "transactions",
            "2.2.0",
            "Watch the given keys to determine execution of the MULTI/EXEC block",
        )
    },
];
