//! TIME, ROLE, WAIT, WAITAOF, DEBUG SLEEP, DEBUG DIGEST, MODULE LIST.

use std::time::{Duration, Instant, SystemTime};

use kvorum_raft::{Member, Role, Status};

use super::{Session, clients::Unblock, presence::Interrupted, table::Row};
use crate::{
    args::{Args, parse_float, parse_integer},
    error::{Error, Result},
    resp::Reply,
    router::Router,
};

/// How often WAIT looks at first whether more members have confirmed, and how often after a while: nothing tells.
const WAIT_STEP: Duration = Duration::from_millis(5);
const WAIT_STEP_MAX: Duration = Duration::from_millis(100);

/// The node's wall clock, which is what TIME is asked for. Deadlines go by the log's clock, and are set and shown as times of the
/// leader's wall clock.
pub(super) fn time(_: &mut Session, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    reply.array(2);
    reply.bulk_integer(now.as_secs() as i64);
    reply.bulk_integer(i64::from(now.subsec_micros()));
    Ok(())
}

pub(super) fn module_list(_: &mut Session, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.array(0);
    Ok(())
}

/// A member's RESP host and port, as it published them; its peer host and port 0 before.
pub(super) fn resp_address(member: &Member) -> (String, u16) {
    let address = member.endpoints.get("resp").unwrap_or(&member.peer);
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "0"));
    let port = if member.endpoints.contains_key("resp") { port.parse().unwrap_or(0) } else { 0 };
    (host.trim_matches(['[', ']']).to_owned(), port)
}

/// The leader's followers that answer.
pub(super) fn online(status: &Status) -> impl Iterator<Item = &Member> {
    status.members.iter().filter(|member| member.id != status.node_id && member.is_in_contact)
}

pub(super) fn role(session: &mut Session, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let status = session.shared.router.status();
    if status.role == Role::Leader {
        let replicas: Vec<&Member> = online(&status).collect();
        reply.array(3);
        reply.bulk(b"master");
        reply.integer(status.applied_index as i64);
        reply.array(replicas.len());
        for member in replicas {
            let (host, port) = resp_address(member);
            reply.array(3);
            reply.bulk(host.as_bytes());
            reply.bulk_integer(i64::from(port));
            reply.bulk_integer(member.matched_index.unwrap_or(0) as i64);
        }
        return Ok(());
    }
    let leader = status.members.iter().find(|member| Some(member.id) == status.leader_id);
    let (host, port) = leader.map_or_else(|| (String::new(), 0), resp_address);
    reply.array(5);
    reply.bulk(b"slave");
    reply.bulk(host.as_bytes());
    reply.integer(i64::from(port));
    reply.bulk(if leader.is_some() { b"connected" } else { b"connect" });
    reply.integer(status.applied_index as i64);
    Ok(())
}

/// How many other members have on disk what this node has applied. A write is answered when a majority has
/// it, so it is at least a majority less one, on any node; the leader knows more.
fn confirmed(status: &Status) -> usize {
    let voters = status.members.iter().filter(|member| member.voter).count();
    let majority = voters / 2 + 1;
    let known = status
        .members
        .iter()
        .filter(|member| member.id != status.node_id && member.matched_index >= Some(status.applied_index))
        .count();
    known.max(majority.saturating_sub(1))
}

impl Session {
    /// WAIT numreplicas timeout.
    pub(super) async fn wait_replicas(&mut self, argv: &[&[u8]]) {
        match wait_arguments(argv[1], argv[2]) {
            Err(error) => self.reply(|reply| reply.error(&error)),
            Ok((wanted, timeout)) => {
                self.wait_confirmed(wanted, timeout, |count, reply| reply.size(count)).await;
            }
        }
    }

    /// WAITAOF numlocal numreplicas timeout: what is confirmed is on disk, here too.
    pub(super) async fn wait_aof(&mut self, argv: &[&[u8]]) {
        let local = parse_integer(argv[1]).ok_or(Error::NotInteger).and_then(|local| match local {
            0 | 1 => Ok(()),
            _ => Err(Error::err("value is out of range, must be between 0 and 1")),
        });
        match local.and_then(|()| wait_arguments(argv[2], argv[3])) {
            Err(error) => self.reply(|reply| reply.error(&error)),
            Ok((wanted, timeout)) => {
                let answer = |count, reply: &mut Reply| {
                    reply.array(2);
                    reply.integer(1);
                    reply.size(count);
                };
                self.wait_confirmed(wanted, timeout, answer).await;
            }
        }
    }

    /// Answers with how many have confirmed, when that are enough, the time is over, or nobody waits for more.
    async fn wait_confirmed(
        &mut self,
        wanted: usize,
        timeout: Option<Duration>,
        answer: impl FnOnce(usize, &mut Reply),
    ) {
        let shared = self.shared.clone();
        let count = || confirmed(&shared.router.status());
        if count() < wanted {
            let all = until_confirmed(&shared.router, wanted, timeout);
            if let Err(Interrupted::Unblocked(Unblock::Error)) = self.while_present(all).await {
                return self.reply_unblocked(Unblock::Error, Reply::null);
            }
        }
        self.reply(|reply| answer(count(), reply));
    }

    /// DEBUG SLEEP: stops this connection, where Redis would stop all. DEBUG DIGEST: the index of the last entry that this
    /// node has applied, and the digest of all content then, 32 hex digits: equal on all nodes at equal indexes.
    pub(super) async fn debug(&mut self, argv: &[&[u8]]) {
        let seconds = match argv {
            [_, name] if name.eq_ignore_ascii_case(b"digest") => return self.digest().await,
            #[cfg(all(feature = "simulation", debug_assertions))]
            [_, name, key, value] if name.eq_ignore_ascii_case(b"drift") => return self.drift(key, value),
            [_, name, seconds] if name.eq_ignore_ascii_case(b"sleep") => parse_float(seconds).unwrap_or(0.0),
            _ => {
                let name = String::from_utf8_lossy(argv[1]);
                let text =
                    format!("unknown subcommand or wrong number of arguments for '{name}'. Try DEBUG HELP.");
                return self.reply(|reply| reply.error(&Error::err(text)));
            }
        };
        let length = Duration::try_from_secs_f64(seconds).unwrap_or_default().min(DEBUG_SLEEP_MAX);
        match self.while_present(tokio::time::sleep(length)).await {
            Ok(()) => self.reply(Reply::ok),
            Err(Interrupted::Unblocked(how)) => self.reply_unblocked(how, Reply::ok),
            Err(Interrupted::HungUp) => self.closing = true,
        }
    }

    /// DEBUG DRIFT key value, in tests: sets a key of database 0 on this node alone.
    #[cfg(all(feature = "simulation", debug_assertions))]
    fn drift(&mut self, key: &[u8], value: &[u8]) {
        let mut request = Vec::new();
        crate::proposal::put_call(&mut request, 0, &[b"SET", key, value]);
        self.shared.router.machine().drift(&request);
        self.reply(Reply::ok);
    }

    async fn digest(&mut self) {
        // One at a time: between two of them entries are applied.
        let _turn = DIGEST_TURN.lock().await;
        let shared = self.shared.clone();
        // It walks over everything, for longer than other connections of this thread can wait.
        let digest = tokio::task::spawn_blocking(move || shared.router.digest_at()).await;
        self.reply(|reply| match digest {
            Ok((index, digest)) => {
                reply.array(2);
                reply.integer(index as i64);
                reply.bulk(format!("{digest:032x}").as_bytes());
            }
            Err(_) => reply.error(&Error::err("the node is stopping")),
        });
    }

    /// A command that waits, inside a transaction: it takes what is there.
    pub(super) fn without_waiting(&mut self, row: &Row, argv: &[&[u8]]) {
        let count = confirmed(&self.shared.router.status());
        let arguments = match row.name.as_str() {
            "wait" => wait_arguments(argv[1], argv[2]),
            _ => wait_arguments(argv[2], argv[3]),
        };
        self.reply(|reply| match arguments {
            Err(error) => reply.error(&error),
            Ok(_) if row.name == "wait" => reply.size(count),
            Ok(_) => {
                reply.array(2);
                reply.integer(1);
                reply.size(count);
            }
        });
    }
}

/// Returns when so many have confirmed, or the time is over.
async fn until_confirmed(router: &Router, wanted: usize, timeout: Option<Duration>) {
    let started = Instant::now();
    let mut step = WAIT_STEP;
    while confirmed(&router.status()) < wanted {
        let left = timeout.map(|timeout| timeout.saturating_sub(started.elapsed()));
        if left == Some(Duration::ZERO) {
            return;
        }
        tokio::time::sleep(left.map_or(step, |left| left.min(step))).await;
        step = (step * 5 / 4).min(WAIT_STEP_MAX);
    }
}

/// Who makes a digest has it.
static DIGEST_TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The longest DEBUG SLEEP.
const DEBUG_SLEEP_MAX: Duration = Duration::from_secs(3600);

/// The number of replicas, and how long to wait; None for as long as it takes.
fn wait_arguments(count: &[u8], timeout_ms: &[u8]) -> Result<(usize, Option<Duration>)> {
    let count = parse_integer(count).ok_or(Error::NotInteger)?;
    let timeout_ms =
        parse_integer(timeout_ms).ok_or_else(|| Error::err("timeout is not an integer or out of range"))?;
    let timeout_ms = u64::try_from(timeout_ms).map_err(|_| Error::err("timeout is negative"))?;
    Ok((usize::try_from(count).unwrap_or(0), (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms))))
}
