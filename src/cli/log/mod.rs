//! `kvorum log`: shows the log of a stopped node, or of a copy of its directory, entry by entry. Changes nothing there,
//! and shows what can be read of a damaged one.

mod json;
mod text;

use std::{
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow};
use chrono::{DateTime, SecondsFormat};
use clap::{Args, Subcommand};
use kvorum_raft::{
    StartError,
    offline::{History, PastContent, PastEntry, RecoverError},
};

use super::{DATA_DAMAGED, DATA_LOCKED, FAILED, Failure, OTHER_DATA, want};
use crate::proposal::Requests;

/// The introduction of `--help`.
const HELP: &str = "\
Prints the log of a stopped node, entry by entry: index, term, the log's clock, apply level, members, commands.

Reads DIR/identity.json and DIR/log, changes nothing, and refuses a directory that a running node uses: look at a copy,
or at another node. The checkpoint is not read, so the log begins after what was purged, and the apply level is known from
the first entry on that raises it. Of a damaged log everything is printed that can be read, with the places that cannot;
the exit code is 6 then.

With --json each line is an object: first one of kind `log`, then one for each entry, of kind `blank`, `membership`,
`commands` or `unreadable`. Bytes that are no text are shown as {\"base64\": ...}, and nothing is shortened.";

/// Looks at a node's log
#[derive(Args, Debug)]
pub struct Log {
    #[command(subcommand)]
    verb: LogVerb,
}

#[derive(Debug, Subcommand)]
enum LogVerb {
    /// Print the entries of a stopped node's log (offline)
    #[command(long_about = HELP, after_help = super::EXIT_CODES)]
    Show(Show),
}

#[derive(Args, Debug)]
struct Show {
    /// Data directory of a stopped node, or a copy of one
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// The first entry to print
    #[arg(long, value_name = "INDEX", default_value_t = 0, hide_default_value = true)]
    from: u64,
    /// The last entry to print
    #[arg(long, value_name = "INDEX", default_value_t = u64::MAX, hide_default_value = true)]
    to: u64,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// Prints one form of a log, in order.
trait Printer {
    fn head(&mut self, out: &mut dyn Write, dir: &Path, history: &History) -> io::Result<()>;
    fn entry(&mut self, out: &mut dyn Write, entry: &PastEntry) -> io::Result<()>;
}

pub(super) fn run(log: Log) -> Result<(), Failure> {
    let LogVerb::Show(show) = log.verb;
    let history = History::open(&show.dir).map_err(|error| failure(error, &show.dir))?;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut printer: Box<dyn Printer> =
        if show.json { Box::new(json::Json) } else { Box::new(text::Text::default()) };
    let printed = print(&mut out, &mut *printer, &show, &history);
    let unread = match printed.and_then(|unread| out.flush().map(|()| unread)) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        printed => printed.context("cannot print the log")?,
    };
    if let Some(damage) = &history.damage {
        return Err(Failure {
            code: DATA_DAMAGED,
            error: anyhow!("{damage}"),
            advice: Some("What was printed is what can be read. No node starts on this log.".to_owned()),
        });
    }
    if unread > 0 {
        return Err(anyhow!("{unread} entries cannot be read by this version").into());
    }
    Ok(())
}

/// Returns how many of the entries cannot be read.
fn print(out: &mut dyn Write, printer: &mut dyn Printer, show: &Show, history: &History) -> io::Result<u64> {
    printer.head(out, &show.dir, history)?;
    let mut unread = 0;
    // Those before are read too: they tell the apply level.
    for entry in history.entries().take_while(|entry| entry.index <= show.to) {
        if entry.index < show.from {
            continue;
        }
        printer.entry(out, &entry)?;
        unread += u64::from(!is_readable(&entry));
    }
    Ok(unread)
}

fn is_readable(entry: &PastEntry) -> bool {
    match &entry.content {
        PastContent::Unreadable(_) => false,
        PastContent::Blank | PastContent::Members { .. } => true,
        PastContent::Proposals { proposals, .. } => proposals.iter().all(|(_, proposal)| {
            let mut requests = Requests::new(proposal);
            requests.by_ref().for_each(drop);
            !requests.is_malformed()
        }),
    }
}

/// What a proposal cannot be read for, once its requests were taken from it.
fn unread(requests: &Requests<'_>) -> Option<String> {
    requests.is_malformed().then(|| match requests.unknown_tag() {
        Some(tag) => format!("what follows is of kind {tag}, which this version does not know"),
        None => "what follows is malformed".to_owned(),
    })
}

/// An instant as RFC 3339, in UTC.
fn date(ms: i64) -> String {
    let date = DateTime::from_timestamp_millis(ms);
    date.map_or_else(|| format!("{ms} ms"), |date| date.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// The exit code and the advice for each error.
fn failure(error: RecoverError, dir: &Path) -> Failure {
    if let Some(refused) = error.want() {
        return want::failure(refused, dir, &error);
    }
    let (code, advice) = match &error {
        RecoverError::Directory(StartError::Locked(_)) => (
            DATA_LOCKED,
            Some("Stop the node, or copy its directory: docs/recovery.md says how good a copy is."),
        ),
        RecoverError::NotData(_) => (OTHER_DATA, None),
        _ => (FAILED, None),
    };
    Failure { code, error: anyhow!("{error}"), advice: advice.map(str::to_owned) }
}

#[cfg(test)]
mod tests {
    use kvorum_raft::offline::{PastContent, PastEntry};

    use super::{Printer, json::Json, text::Text};
    use crate::{
        proposal::{
            Call, Waited, Watched, put_call, put_cancel, put_confirm, put_forget_node, put_in_session,
            put_transaction, put_waiting_call,
        },
        resp::Protocol,
        store::Ticket,
    };

    /// An entry with a request of each kind, and at last one that this version does not know.
    fn entry() -> PastEntry {
        let (ticket, mut out) = (Ticket { node: 2, boot: 9, number: 4 }, Vec::new());
        let waited = Waited { db: 1, key: b"a lock", ticket };
        put_in_session(&mut out, 0, b"s\xff", Protocol::Resp3);
        put_call(&mut out, 3, &[b"SET", b"k", b""]);
        let watched = [Watched { db: 0, key: b"w", version: 7 }];
        put_transaction(
            &mut out,
            &watched,
            &[Call { db: 0, argv: [&b"INCR"[..], b"n"].into_iter().collect() }],
        );
        put_waiting_call(&mut out, ticket, 1, &[b"LOCK.ACQUIRE", b"a lock"]);
        put_cancel(&mut out, &waited);
        put_confirm(&mut out, &waited);
        put_forget_node(&mut out, 2, 9, 5);
        out.push(99);
        let proposals = vec![(3, out.into())];
        let content = PastContent::Proposals {
            clock_ms: 1_700_000_000_000,
            ahead_ms: -5,
            asks: vec!["take a checkpoint".into()],
            proposals,
        };
        PastEntry { index: 7, term: 2, bytes: 123, level: None, content }
    }

    fn printed(mut printer: impl Printer) -> String {
        let mut out = Vec::new();
        printer.entry(&mut out, &entry()).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_shows_requests_of_all_kinds() {
        let expected = r#"7  term 2  2023-11-14T22:13:20.000Z  level ?  commands, 1 proposal, 123 bytes
    the log's clock is -5 ms from the wall clock, 2023-11-14T22:13:20.005Z
    asks all nodes to take a checkpoint
    node 3  what follows is in session "s\xff" of db 0, in RESP3
    node 3  db 3  SET k ""
    node 3  MULTI
    node 3    if w in db 0 still has version 7
    node 3    db 0  INCR n
    node 3  EXEC
    node 3  db 1  LOCK.ACQUIRE "a lock"  (may wait as 2.9.4)
    node 3  the client is gone that waited for "a lock" in db 1 as 2.9.4
    node 3  the client was told that waited for "a lock" in db 1 as 2.9.4
    node 3  the waits of node 2 are over but those of its run 9, if this is term 5
    node 3  UNREADABLE: what follows is of kind 99, which this version does not know
"#;
        assert_eq!(printed(Text::default()), expected);
        assert!(!super::is_readable(&entry()));
    }

    #[test]
    fn json_shows_requests_of_all_kinds() {
        let line: serde_json::Value = serde_json::from_str(&printed(Json)).unwrap();
        assert_eq!((&line["kind"], &line["ahead_ms"]), (&"commands".into(), &(-5).into()));
        let proposal = &line["proposals"][0];
        assert_eq!(proposal["node_id"], 3);
        assert!(proposal["unreadable"].as_str().unwrap().contains("kind 99"));
        let kinds: Vec<&str> = proposal["requests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["kind"].as_str().unwrap())
            .collect();
        let all = ["in_session", "call", "transaction", "waiting_call", "cancel", "confirm", "forget_node"];
        assert_eq!(kinds, all);
        assert_eq!(proposal["requests"][0]["id"]["base64"], "c/8=");
        assert_eq!(proposal["requests"][3]["ticket"]["number"], 4);
    }
}
