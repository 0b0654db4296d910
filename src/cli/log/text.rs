//! A log as text for a person: a line for each entry, and below it a line for each command, quoted as redis-cli does.

use std::{
    fmt::Write as _,
    io::{self, Write},
    path::Path,
};

use kvorum_raft::{
    NodeId,
    offline::{History, LogEnd, PastContent, PastEntry},
};

use super::{Printer, date, unread};
use crate::{
    proposal::{Call, Request, Requests, Waited},
    store::Ticket,
};

/// A longer argument is cut after this many bytes.
const ARGUMENT_BYTES_MAX: usize = 64;

#[derive(Default)]
pub(super) struct Text {
    /// The index after the last entry printed.
    next: Option<u64>,
}

impl Printer for Text {
    fn head(&mut self, out: &mut dyn Write, dir: &Path, history: &History) -> io::Result<()> {
        let mut line = |name: &str, text: String| writeln!(out, "{name:<11}{text}");
        let end = |end: LogEnd| format!("{} of term {}", end.index, end.term);
        let none = |text: &str| text.to_owned();
        line("directory", dir.display().to_string())?;
        line("node", history.node_id.to_string())?;
        line("cluster", history.cluster_id.clone().unwrap_or_else(|| none("none")))?;
        let vote = history.vote.map(|vote| {
            let leads = if vote.is_leader { ", which a majority has elected" } else { "" };
            format!("in term {} for node {}{leads}", vote.term, vote.node)
        });
        line("vote", vote.unwrap_or_else(|| none("none")))?;
        let entries = history.ends.map(|(first, last)| format!("{} to {}", end(first), end(last)));
        line("entries", entries.unwrap_or_else(|| none("none")))?;
        let committed = history.committed.map(|last| format!("at least up to {}", end(last)));
        line("committed", committed.unwrap_or_else(|| none("the log does not tell")))?;
        let purged = history.purged.map(|last| format!("up to {}", end(last)));
        line("purged", purged.unwrap_or_else(|| none("nothing")))?;
        if let Some(damage) = &history.damage {
            line("DAMAGED", damage.clone())?;
        }
        for place in &history.unreadable {
            line("unreadable", place.clone())?;
        }
        writeln!(out)
    }

    fn entry(&mut self, out: &mut dyn Write, entry: &PastEntry) -> io::Result<()> {
        if let Some(next) = self.next.filter(|next| *next != entry.index) {
            writeln!(out, "-- entries {next} to {} cannot be read --", entry.index.saturating_sub(1))?;
        }
        self.next = Some(entry.index.saturating_add(1));
        write!(out, "{}  term {}  ", entry.index, entry.term)?;
        let level = entry.level.map_or_else(|| "level ?".to_owned(), |level| format!("level {level}"));
        match &entry.content {
            PastContent::Blank => writeln!(out, "{level}  blank"),
            PastContent::Members { voters, members } => {
                let voters: Vec<String> = voters.iter().map(list).collect();
                writeln!(out, "{level}  membership, voters {}", voters.join(" and at once "))?;
                for (id, addresses) in members {
                    let addresses: Vec<String> =
                        addresses.iter().map(|(name, address)| format!("{name}={address}")).collect();
                    writeln!(out, "    node {id}  {}", addresses.join(" "))?;
                }
                Ok(())
            }
            PastContent::Proposals { clock_ms, ahead_ms, asks, proposals } => {
                write!(out, "{}  {level}  ", date(clock_ms.cast_signed()))?;
                writeln!(out, "commands, {}, {} bytes", count(proposals.len(), "proposal"), entry.bytes)?;
                if *ahead_ms != 0 {
                    let wall = clock_ms.cast_signed().saturating_sub(*ahead_ms);
                    writeln!(
                        out,
                        "    the log's clock is {ahead_ms:+} ms from the wall clock, {}",
                        date(wall)
                    )?;
                }
                for ask in asks {
                    writeln!(out, "    asks all nodes to {ask}")?;
                }
                proposals.iter().try_for_each(|(origin, proposal)| requests(out, *origin, proposal))
            }
            PastContent::Unreadable(why) => {
                writeln!(out, "{level}  UNREADABLE, {} bytes: {why}", entry.bytes)
            }
        }
    }
}

fn count(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn list<'a>(ids: impl IntoIterator<Item = &'a NodeId>) -> String {
    ids.into_iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ")
}

fn requests(out: &mut dyn Write, origin: NodeId, proposal: &[u8]) -> io::Result<()> {
    let mut requests = Requests::new(proposal);
    for request in requests.by_ref() {
        for line in lines(&request) {
            writeln!(out, "    node {origin}  {line}")?;
        }
    }
    match unread(&requests) {
        None => Ok(()),
        Some(why) => writeln!(out, "    node {origin}  UNREADABLE: {why}"),
    }
}

fn lines(request: &Request<'_>) -> Vec<String> {
    match request {
        Request::Call(call) => vec![command(call)],
        Request::Transaction { watched, calls } => {
            let watched = watched.iter().map(|watch| {
                format!("  if {} in db {} still has version {}", quote(watch.key), watch.db, watch.version)
            });
            let calls = calls.iter().map(|call| format!("  {}", command(call)));
            let begin = std::iter::once("MULTI".to_owned()).chain(watched);
            begin.chain(calls).chain(["EXEC".to_owned()]).collect()
        }
        Request::WaitingCall { ticket, call } => {
            vec![format!("{}  (may wait as {})", command(call), name(ticket))]
        }
        Request::Cancel(waited) => vec![format!("the client is gone that waited {}", wait(waited))],
        Request::Confirm(waited) => vec![format!("the client was told that waited {}", wait(waited))],
        Request::ForgetNode { node, but_boot, term } => {
            let but =
                if *but_boot == 0 { String::new() } else { format!(" but those of its run {but_boot}") };
            let only = if *term == 0 { String::new() } else { format!(", if this is term {term}") };
            vec![format!("the waits of node {node} are over{but}{only}")]
        }
        Request::InSession(caller) => {
            let protocol = if caller.is_resp3 { "RESP3" } else { "RESP2" };
            let id = quote(&caller.id);
            vec![format!("what follows is in session {id} of db {}, in {protocol}", caller.db)]
        }
        Request::Setting(setting) => {
            let only = if setting.is_default { ", unless it was set before" } else { "" };
            vec![format!("the cluster's {} is {}{only}", quote(setting.name), quote(setting.digits))]
        }
    }
}

fn name(ticket: &Ticket) -> String {
    format!("{}.{}.{}", ticket.node, ticket.boot, ticket.number)
}

fn wait(waited: &Waited<'_>) -> String {
    format!("for {} in db {} as {}", quote(waited.key), waited.db, name(&waited.ticket))
}

fn command(call: &Call<'_>) -> String {
    let mut line = format!("db {} ", call.db);
    for argument in &call.argv {
        line.push(' ');
        line.push_str(&quote(argument));
    }
    line
}

/// An argument as it can be given to redis-cli; a long one is cut, and its length is told.
fn quote(argument: &[u8]) -> String {
    let shown = &argument[..argument.len().min(ARGUMENT_BYTES_MAX)];
    let is_plain = |byte: &u8| byte.is_ascii_graphic() && !b"\"'\\".contains(byte);
    if shown.len() == argument.len() && !shown.is_empty() && shown.iter().all(is_plain) {
        return String::from_utf8_lossy(shown).into_owned();
    }
    let mut out = String::from('"');
    for byte in shown {
        match byte {
            b'"' | b'\\' => out.extend(['\\', char::from(*byte)]),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            7 => out.push_str("\\a"),
            8 => out.push_str("\\b"),
            b' '..=b'~' => out.push(char::from(*byte)),
            // Writing to a string cannot fail.
            other => _ = write!(out, "\\x{other:02x}"),
        }
    }
    out.push('"');
    if shown.len() < argument.len() {
        _ = write!(out, "...({} bytes)", argument.len());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::quote;

    #[test]
    fn arguments_are_quoted_as_redis_cli_does_and_long_ones_are_cut() {
        assert_eq!(quote(b"key:1"), "key:1");
        assert_eq!(quote(b""), "\"\"");
        assert_eq!(quote(b"a b"), "\"a b\"");
        assert_eq!(quote(b"a\"\\\n\x00\xff'"), r#""a\"\\\n\x00\xff'""#);
        assert_eq!(quote(&[b'x'; 64]), "x".repeat(64));
        assert_eq!(quote(&[b'x'; 65]), format!("\"{}\"...(65 bytes)", "x".repeat(64)));
    }
}
