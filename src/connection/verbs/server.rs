//! TIME, ROLE, WAIT, WAITAOF, DEBUG SLEEP, DEBUG DIGEST, MODULE LIST. WAIT rarely waits: a write
//! is acknowledged only after a majority has it on disk.

use std::time::{Duration, Instant, SystemTime};

use kvorum_raft::{Member, Role, Status};

use crate::connection::{
    Connection,
    clients::Unblock,
    presence::Interrupted,
    verb::{Verb, flags, groups},
};
use crate::{
    args::{Args, parse_float, parse_integer},
    commands::{InMulti, Spec, Timeout},
    error::{Error, Result},
    resp::Reply,
    router::Router,
};

/// The rows of this family.
pub(in crate::connection) const VERBS: &[Verb] = &[
    Verb::wait_outside(
        Spec::connection("DEBUG", -2)
            .about(flags::ADMIN, groups::SERVER, "1.0.0", "A container for debugging commands")
            .complexity("Depends on subcommand")
            .internal()
            .in_multi(InMulti::Refused),
        |connection, argv| Box::pin(connection.debug(argv)),
    ),
    Verb::container(
        Spec::connection("MODULE", -2)
            .about(&[], groups::SERVER, "4.0.0", "A container for module commands")
            .complexity("Depends on subcommand"),
        &[Verb::now(
            Spec::connection("MODULE|LIST", 2)
                .about(
                    &["admin", "noscript"],
                    groups::SERVER,
                    "4.0.0",
                    "List all modules loaded by the server",
                )
                .complexity("O(N) where N is the number of loaded modules")
                .tips(&["nondeterministic_output_order"]),
            module_list,
        )],
    ),
    Verb::alone(
        Spec::connection("ROLE", 1)
            .about(
                flags::QUIET_FAST,
                groups::SERVER,
                "2.8.12",
                "Return the role of the instance in the context of replication",
            )
            .complexity("O(1)")
            .acl(&["admin", "dangerous"]),
        role,
    ),
    Verb::alone(
        Spec::connection("TIME", 1)
            .about(flags::FAST, groups::SERVER, "2.6.0", "Return the current server time")
            .complexity("O(1)")
            .tips(&["nondeterministic_output"]),
        time,
    ),
    Verb::wait(
        Spec::connection("WAIT", 3)
            .about(
                &["noscript"],
                "generic",
                "3.0.0",
                "Says how many other nodes have the writes of this connection, and waits until so many do",
            )
            .syntax("numreplicas:integer timeout:integer")
            .complexity("O(1)")
            .acl(&["connection"])
            .tips(&["request_policy:all_shards", "response_policy:agg_min"])
            .timeout(Timeout::ArgumentMs(2)),
        |connection, argv| Box::pin(connection.wait_replicas(argv)),
        waited,
    ),
    Verb::wait(
        Spec::connection("WAITAOF", 4)
            .about(
                &["noscript"],
                "generic",
                "7.2.0",
                "Says how many nodes have the writes of this connection on disk, and waits until so many do",
            )
            .syntax("numlocal:integer numreplicas:integer timeout:integer")
            .timeout(Timeout::ArgumentMs(3)),
        |connection, argv| Box::pin(connection.wait_aof(argv)),
        waited_aof,
    ),
];

/// How often WAIT checks for confirmations, at first and later: no event reports them.
const WAIT_STEP: Duration = Duration::from_millis(5);
const WAIT_STEP_MAX: Duration = Duration::from_millis(100);

/// TIME shows the node's wall clock, as clients expect. Deadlines go by the log clock; they are set and shown
/// as times of the leader's wall clock.
pub(in crate::connection) fn time(_: &mut Connection, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    reply.array(2);
    reply.bulk_integer(now.as_secs() as i64);
    reply.bulk_integer(i64::from(now.subsec_micros()));
    Ok(())
}

pub(in crate::connection) fn module_list(_: &mut Connection, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.array(0);
    Ok(())
}

/// A member's RESP host and port, as it published them; until then its peer host, with port 0.
pub(in crate::connection) fn resp_address(member: &Member) -> (String, u16) {
    let address = member.endpoints.get("resp").unwrap_or(&member.peer);
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "0"));
    let port = if member.endpoints.contains_key("resp") { port.parse().unwrap_or(0) } else { 0 };
    (host.trim_matches(['[', ']']).to_owned(), port)
}

/// The other members that are in contact with the leader.
pub(in crate::connection) fn online(status: &Status) -> impl Iterator<Item = &Member> {
    status.members.iter().filter(|member| member.id != status.node_id && member.is_in_contact)
}

/// The address of the leader that this follower knows, and whether the follower serves because it hears it:
/// what Redis calls a link that is up.
pub(in crate::connection) fn master_of(status: &Status) -> ((String, u16), bool) {
    let leader = status.members.iter().find(|member| Some(member.id) == status.leader_id);
    (leader.map(resp_address).unwrap_or_default(), leader.is_some() && status.not_ready.is_none())
}

pub(in crate::connection) fn role(
    connection: &mut Connection,
    _: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    let status = connection.shared.router.status();
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
    let ((host, port), is_up) = master_of(&status);
    reply.array(5);
    reply.bulk(b"slave");
    reply.bulk(host.as_bytes());
    reply.integer(i64::from(port));
    reply.bulk(if is_up { b"connected" } else { b"connect" });
    reply.integer(status.applied_index as i64);
    Ok(())
}

/// How many other members have on disk what this node has applied. A write is acknowledged when a majority
/// has it, so on any node it is at least a majority minus one; the leader knows the exact number.
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

/// WAIT in a transaction, where nothing waits: the present count.
fn waited(connection: &mut Connection, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    wait_arguments(args.at(1), args.at(2))?;
    reply.size(confirmed(&connection.shared.router.status()));
    Ok(())
}

/// The same for WAITAOF.
fn waited_aof(connection: &mut Connection, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    wait_arguments(args.at(2), args.at(3))?;
    reply.array(2);
    reply.integer(1);
    reply.size(confirmed(&connection.shared.router.status()));
    Ok(())
}

impl Connection {
    /// WAIT numreplicas timeout.
    pub(in crate::connection) async fn wait_replicas(&mut self, argv: &[&[u8]]) {
        match wait_arguments(argv[1], argv[2]) {
            Err(error) => self.reply(|reply| reply.error(&error)),
            Ok((wanted, timeout)) => {
                self.wait_confirmed(wanted, timeout, |count, reply| reply.size(count)).await;
            }
        }
    }

    /// WAITAOF numlocal numreplicas timeout: what is confirmed is on disk, on this node too.
    pub(in crate::connection) async fn wait_aof(&mut self, argv: &[&[u8]]) {
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

    /// Replies with the number of confirmations once there are enough, the timeout has passed, or the wait is
    /// interrupted.
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

    /// DEBUG SLEEP: blocks this connection, where Redis blocks all. DEBUG DIGEST: the index of the last entry
    /// that this node has applied, and the digest of all content at that point, 32 hex digits: equal on all
    /// nodes at equal indexes.
    pub(in crate::connection) async fn debug(&mut self, argv: &[&[u8]]) {
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

    /// DEBUG DRIFT key value, in tests only: sets a key of database 0 on this node alone.
    #[cfg(all(feature = "simulation", debug_assertions))]
    fn drift(&mut self, key: &[u8], value: &[u8]) {
        let mut request = Vec::new();
        crate::proposal::put_call(&mut request, 0, &[b"SET", key, value]);
        self.shared.router.machine().drift(&request);
        self.reply(Reply::ok);
    }

    async fn digest(&mut self) {
        // One at a time: entries must be applied between two of them.
        let shared = self.shared.clone();
        let _turn = shared.digest_turn.lock().await;
        let shared = shared.clone();
        // It walks over all content, which would block other connections of this thread for too long.
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
}

/// Returns once this many have confirmed, or the timeout has passed.
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

/// The longest DEBUG SLEEP.
const DEBUG_SLEEP_MAX: Duration = Duration::from_secs(3600);

/// The number of replicas, and the timeout; None for no limit.
fn wait_arguments(count: &[u8], timeout_ms: &[u8]) -> Result<(usize, Option<Duration>)> {
    let count = parse_integer(count).ok_or(Error::NotInteger)?;
    let timeout_ms =
        parse_integer(timeout_ms).ok_or_else(|| Error::err("timeout is not an integer or out of range"))?;
    let timeout_ms = u64::try_from(timeout_ms).map_err(|_| Error::err("timeout is negative"))?;
    Ok((usize::try_from(count).unwrap_or(0), (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms))))
}
