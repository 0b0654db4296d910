//! The handle: start a node, propose, read barriers, status, membership.
//!
//! Files: `opening.rs` opens what is on the disk, `core.rs` is what the parts of a running node share,
//! `peer_table.rs` its connections, `frames.rs` what it answers to peers, and `tasks.rs` what it does by
//! itself. `supervised.rs` ends the node with any of its tasks, and `readiness.rs` and `status.rs` tell
//! others how it is.

pub(crate) mod core;
pub(crate) mod frames;
pub(crate) mod opening;
pub(crate) mod peer_table;
pub(crate) mod readiness;
pub(crate) mod status;
pub(crate) mod supervised;
pub(crate) mod tasks;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use openraft::{Config, ServerState, SnapshotPolicy};
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::Instant,
};

use crate::{
    AdminError, Counters, Machine, Member, NodeConfig, NodeId, ReadLevel, Role, StartError, Status,
    Unavailable,
    agreement::Agreements,
    clock::{Clock, closing},
    elections::{Elections, candidacy, contact::Contact, leader_watch, pings},
    identity::{Identity, Introduction, address},
    log::LogStore,
    membership::{AdminRequest, formation, last_contact_ms, report},
    net::{
        admission::Admission, horizon::Horizon, interest::Interest, raft_network::Factory, serve,
        transport::Listener,
    },
    node::{
        core::{Core, Raft},
        opening::{RECEIVED, io_error, listen, open_data},
        peer_table::PeerTable,
        supervised::Supervised,
    },
    pages::{self, PAGES, PageStore},
    platform::Platform,
    proposals::propose::{Limits, Proposer},
    reads::rounds::{Pace, Rounds},
    snapshot::{
        checkpoint::Checkpointer,
        common_checkpoint,
        transfer::{Receiver, Sender},
    },
    space::{
        room::{Need, Rooms},
        room_watch,
    },
    state::{adapter::StateMachine, applier::Applier, progress::Progress},
    types::{GROUP, MemberNode, Metrics},
};

/// The time between the starts of overlapping read rounds, where a round takes longer than this: over long
/// links.
const READ_PAUSE: Duration = Duration::from_millis(4);

/// How often a node checks whether its peers belong to another cluster, and how long it waits for their
/// greetings.
const STRANGERS_STEP: Duration = Duration::from_millis(500);

/// A running node. Cheap to clone.
pub struct Node<M: Machine> {
    pub(crate) core: Arc<Core<M>>,
    /// Finishes when the last of the node's tasks has.
    tasks: Arc<Mutex<Option<JoinHandle<()>>>>,
    peer_address: String,
}

impl<M: Machine> Clone for Node<M> {
    fn clone(&self) -> Self {
        Node { core: self.core.clone(), tasks: self.tasks.clone(), peer_address: self.peer_address.clone() }
    }
}

impl<M: Machine> Node<M> {
    /// Opens the data, loads the last checkpoint, and joins the group, over TCP.
    pub async fn start(config: NodeConfig, machine: Arc<M>) -> Result<Node<M>, StartError> {
        Node::start_on(Platform::system(), config, machine).await
    }

    /// As `start`, on the given platform.
    pub async fn start_on(
        platform: Platform,
        mut config: NodeConfig,
        machine: Arc<M>,
    ) -> Result<Node<M>, StartError> {
        let started = Instant::now();
        config.validate()?;
        let platform = platform.with_space_of(&config);
        let (clock, hello) = (Clock::new(platform.wall.clone()).into(), introduction(&config, &*machine));
        let identity = Arc::new(Identity::open(&config.dir, config.id, hello, &clock, &platform)?);
        let listener = listen(&platform, &config).await?;
        let peer_address = publish(&mut config, &*listener, &identity)?;
        let table = Arc::new(PeerTable::new(platform.clone(), identity.clone(), &config));
        let (log, pages, progress) = open_data(&config, &table, &*machine, started).await?;
        let contact = Arc::new(Contact::new(&config, log.store(GROUP)));
        let proposer = Arc::new(Proposer::new(config.id, limits(&config), contact.watch_refusal()));
        let parts = (clock.clone(), proposer.clone(), identity.apply_level());
        let checkpointer = Arc::new(checkpointer(&config, platform, machine, parts, (pages, progress)));
        let snapshots = Arc::new(Sender::new(checkpointer.clone()));
        let receiver = Receiver::new(&checkpointer, config.dir.join(RECEIVED), log.store(GROUP));
        let (interest, elections) = (Arc::new(Interest::new()), Elections::default());
        let factory = Factory {
            group: GROUP,
            peers: table.clone(),
            snapshots: snapshots.clone(),
            interest: interest.clone(),
            clock: clock.clone(),
            timing: contact.timing.clone(),
            rivals: elections.rivals.clone(),
            votes: log.store(GROUP),
        };
        let state =
            StateMachine { applier: checkpointer.applier.clone(), checkpointer: checkpointer.clone() };
        let raft = consensus(&config, factory, log.store(GROUP), state).await?;
        let core = Arc::new(Core {
            identity,
            table,
            raft,
            votes: log.store(GROUP),
            log,
            clock,
            applier: checkpointer.applier.clone(),
            proposer,
            checkpointer,
            snapshots,
            receiver,
            reads: Rounds::default(),
            ticks: Rounds::default(),
            confirmed: Mutex::default(),
            changing: Semaphore::new(1),
            interest,
            agreements: Agreements::default(),
            rooms: Rooms::default(),
            leader: watch::Sender::new(None),
            timing: contact.timing.clone(),
            contact,
            elections,
            admission: Admission::default(),
            forming: Mutex::default(),
            changes: watch::Sender::new(0),
            caught_up: AtomicBool::new(false),
            stop: watch::Sender::new(false),
            read_rounds: AtomicU64::new(0),
            leader_changes: AtomicU64::new(0),
            set_aside: pages::all_aside(&config.dir.join(PAGES)).unwrap_or_default(),
            config,
        });
        let node = Node { core, tasks: Arc::default(), peer_address };
        node.begin(listener).await.map(|()| node)
    }

    /// Starts to communicate with peers. Which disk is whose is learnt first: openraft's metrics report it
    /// only after a while.
    async fn begin(&self, listener: Box<dyn Listener>) -> Result<(), StartError> {
        let core = &self.core;
        let members = core.raft.with_raft_state(|state| state.membership_state.effective().clone()).await;
        let members = members.map_err(|error| io_error("cannot start consensus", error))?;
        core.identity.learn_members(members.membership().nodes());
        if core.raft.is_initialized().await.unwrap_or(false) {
            core.identity.note_entries();
        }
        tasks::learn_retired(core);
        let votes = core.votes.clone();
        core.identity.judge_by(core.matched(), move || Horizon::of(&votes));
        let applier = core.applier.clone();
        core.votes.guard(move || applier.index(), core.table.platform.contradiction.clone());
        let noted = core.checkpointer.note_state().await;
        noted.map_err(|error| io_error("cannot use the pages", error))?;
        self.spawn_tasks(listener);
        Ok(())
    }

    fn spawn_tasks(&self, listener: Box<dyn Listener>) {
        let core = &self.core;
        let mut tasks = Supervised::default();
        tasks.spawn(
            "peers",
            serve::serve(listener, core.admission.clone(), core.clone(), core.stop.subscribe()),
        );
        tasks.spawn("proposals", core.proposer.clone().run(core.clone()));
        tasks.spawn("limits of time", core.proposer.clone().sweep(core.clone()));
        tasks.spawn("leadership", tasks::follow(core.clone()));
        tasks.spawn("identity", tasks::save_members(core.clone()));
        tasks.spawn("upkeep", tasks::upkeep(core.clone(), self.peer_address.clone()));
        tasks.spawn("deadlines", tasks::tick_for_deadlines(core.clone()));
        tasks.spawn("disk", tasks::watch_disk(core.clone()));
        tasks.spawn("reports", report::exchange_reports(core.clone()));
        tasks.spawn("distances", pings::measure(core.clone()));
        tasks.spawn("elections", candidacy::stand(core.clone()));
        tasks.spawn("contact", leader_watch::watch(core.clone()));
        tasks.spawn("questions to the leader", leader_watch::ask_leader(core.clone()));
        tasks.spawn("readiness", readiness::watch(core.clone()));
        tasks.spawn("clock", closing::watch(core.clone()));
        tasks.spawn("room", room_watch::watch(core.clone()));
        let reading = core.clone();
        tasks.spawn("reads", async move {
            reading.reads.run(Pace::Every(READ_PAUSE), || reading.read_round()).await
        });
        let ticking = core.clone();
        tasks.spawn("ticks", async move { ticking.ticks.run(Pace::OneByOne, || ticking.tick_round()).await });
        let writing = core.clone();
        tasks.spawn("checkpoints", async move {
            loop {
                let durable = writing.checkpointer.next().await;
                // "Building" the snapshot tells openraft of the checkpoint; it then purges the log behind it.
                if let Err(error) = writing.raft.trigger().snapshot().await {
                    tracing::debug!(%error, "the log could not be purged");
                }
                durable.announce();
            }
        });
        tasks.spawn("checkpoints of all", common_checkpoint::ask(core.clone()));
        if core.config.bootstrap.is_some() {
            let forming = core.clone();
            tasks.spawn("forming", async move {
                formation::form_cluster(forming).await;
                // Its part is done, but a supervised task must not end.
                std::future::pending().await
            });
        }
        let (stop, fatal) = (core.stop.subscribe(), core.table.platform.fatal.clone());
        *self.tasks.lock() = Some(tokio::spawn(tasks.watch(stop, fatal)));
    }

    /// Returns when this node must not go on: its data is of another cluster than that of most of its peers,
    /// or of one that was given up; its version cannot follow its cluster; its disk is an older copy of
    /// itself; or its state differs from that of a majority after the same log.
    pub async fn among_strangers(&self) -> StartError {
        let (core, config) = (&self.core, &self.core.config);
        let (mut acquaintances, mut leader) = (BTreeMap::new(), core.leader.subscribe());
        loop {
            let peers = config.bootstrap.clone().unwrap_or_else(|| core.identity.peers());
            let others = peers.keys().filter(|id| **id != config.id).count();
            if let (Some(ours), Some(peer)) = (core.identity.cluster_id(), core.identity.stranger(others)) {
                return StartError::OtherCluster { dir: config.dir.clone(), ours, peer };
            }
            if let Some(why) = core.identity.outgrown() {
                return StartError::Config(why);
            }
            if let Some(why) = core.identity.distrusted_state() {
                return StartError::StateDiffers(why);
            }
            if let Some((peer, why)) = core.identity.went_back() {
                return StartError::WentBack { dir: config.dir.clone(), peer, why };
            }
            if core.leader.borrow().is_none() {
                // While there is a leader, the old cluster lives, whatever was recovered from a part of it.
                if let (Some(ours), Some((peer, theirs))) =
                    (core.identity.cluster_id(), core.identity.successor())
                {
                    return StartError::Recovered { dir: config.dir.clone(), ours, peer, theirs };
                }
                // Nobody else may have a reason to contact this node.
                core.table.greet_all(&mut acquaintances, &peers, STRANGERS_STEP).await;
            }
            // At once when the leader falls silent: the peers say if they do not want this node any more.
            // Cannot fail: the sender lives in `core`.
            let _ = tokio::time::timeout(STRANGERS_STEP, leader.changed()).await;
        }
    }

    /// Proposes `bytes` for the log. Never blocks and never fails itself: `local` is given to
    /// `Machine::apply` on this node, or told why not. A follower forwards the proposal to the leader. Large
    /// bytes that are owned are not copied.
    pub fn propose<'a>(&self, bytes: impl Into<Cow<'a, [u8]>>, local: M::Local) {
        self.core.proposer.propose(bytes.into(), local);
    }

    /// Returns when a read of the local machine gives what `level` promises. Concurrent calls share their
    /// rounds.
    pub async fn barrier(&self, level: ReadLevel) -> Result<(), Unavailable> {
        self.core.barrier(level).await
    }

    /// Returns when the entry at `index` is applied here.
    pub async fn applied(&self, index: u64) -> Result<(), Unavailable> {
        self.core.applied(index).await
    }

    /// Moves the log clock: proposes an empty entry and waits until it is applied here.
    pub async fn tick(&self) -> Result<(), Unavailable> {
        let index = self.core.joined(&self.core.ticks).await?;
        self.core.applied(index).await
    }

    /// The log clock, estimated at this moment, in milliseconds since the Unix epoch.
    pub fn clock_ms(&self) -> u64 {
        self.core.clock.estimate_ms()
    }

    /// The address at which peers reach this node.
    pub fn peer_address(&self) -> &str {
        &self.peer_address
    }

    /// This node's view of itself and the group.
    pub fn status(&self) -> Status {
        let metrics = self.core.metrics();
        let id = self.core.config.id;
        let applied_index = self.core.applier.index();
        // Copied, as it is borrowed again below: a writer that waits between two borrows would block both for
        // ever.
        let leader_id = *self.core.leader.borrow();
        let membership = metrics.membership_config.membership();
        let members = membership.nodes().map(|(id, node)| self.member(*id, node, &metrics)).collect();
        let role = match metrics.state {
            ServerState::Leader => Role::Leader,
            ServerState::Follower => Role::Follower,
            ServerState::Candidate => Role::Candidate,
            ServerState::Learner if membership.get_node(&id).is_some() => Role::Learner,
            ServerState::Learner | ServerState::Shutdown => Role::None,
        };
        Status {
            cluster_id: self.core.identity.cluster_id(),
            node_id: id,
            role,
            term: metrics.current_term,
            leader_id,
            leader_heard_ms: if leader_id == Some(id) {
                Some(0)
            } else {
                self.core.contact.silence().map(|silence| silence.as_millis() as u64)
            },
            last_log_index: metrics.last_log_index.unwrap_or(0),
            // openraft knows of no commits before it hears of one; what is applied was committed.
            committed_index: metrics.cluster_committed.map_or(0, |id| id.index).max(applied_index),
            applied_index,
            checkpoint_index: self.core.checkpointer.last().last_log_id.map_or(0, |id| id.index),
            purged_index: metrics.purged.map_or(0, |id| id.index),
            members,
            not_ready: self.core.not_ready(&metrics),
            clock_ms: self.clock_ms(),
            clock_ahead_us: self.core.clock.ahead_us(),
            clock_is_closing: self.core.applier.is_closing(),
            election_timeout_ms: self.core.timing.election_ms(),
            timeouts_misfit: self.core.timing.misfit(),
            differing: self.core.differing(),
            disk: self.core.space().disk(),
            no_room: self.core.rooms.shortage(Need::Growth),
            apply_level: self.core.applier.level(),
            set_aside: self.core.set_aside.iter().filter(|path| path.exists()).cloned().collect(),
        }
    }

    fn member(&self, id: NodeId, node: &MemberNode, metrics: &Metrics) -> Member {
        let membership = metrics.membership_config.membership();
        let is_self = id == self.core.config.id;
        let leads = metrics.state == ServerState::Leader;
        let matched =
            metrics.replication.as_ref().and_then(|replication| replication.get(&id).copied().flatten());
        // openraft keeps reporting what the member had before its disk went back to an older copy.
        let matched = matched.filter(|_| self.core.identity.old_disk(id).is_none());
        Member {
            id,
            voter: membership.voter_ids().any(|voter| voter == id),
            peer: node.peer.clone(),
            endpoints: node.endpoints.clone(),
            matched_index: if leads && is_self { metrics.last_log_index } else { matched.map(|id| id.index) },
            last_contact_ms: if leads && is_self { Some(0) } else { last_contact_ms(metrics, id) },
            is_in_contact: leads && self.core.is_in_contact(id, metrics),
            round_trip: self.core.identity.distances.shown(id).filter(|_| !is_self),
        }
    }

    /// Changes when role, leader, membership or readiness may have changed.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.core.changes.subscribe()
    }

    /// Changes whenever an entry is applied, to its index.
    pub fn watch_applied(&self) -> watch::Receiver<u64> {
        self.core.applier.watch()
    }

    /// Counters since the start.
    pub fn counters(&self) -> Counters {
        let core = &self.core;
        let log = core.log.stats();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            log_fsyncs: log.fsyncs,
            log_fsync_us_total: log.fsync_us_total,
            log_bytes_written: log.bytes_written,
            entries_proposed: load(&core.proposer.entries),
            proposals: load(&core.proposer.proposals),
            read_rounds: load(&core.read_rounds),
            entries_applied: load(&core.applier.entries),
            checkpoints: load(&core.checkpointer.count),
            checkpoint_pages_written: load(&core.checkpointer.pages_written),
            snapshots_sent: load(&core.snapshots.sent),
            snapshots_installed: load(&core.checkpointer.installed),
            leader_changes: load(&core.leader_changes),
            log_bytes_since_checkpoint: core.checkpointer.bytes_since(),
            log_segments: log.segments,
            peer_connections: core.admission.count().0 as u64,
            peer_connections_put_out: core.admission.count().1,
        }
    }

    /// Adds a member as a learner, which is promoted to voter when it has caught up. Returns when the learner
    /// is in the membership; the promotion follows by itself. Any member may be asked.
    pub async fn add_member(&self, id: NodeId, peer: String) -> Result<(), AdminError> {
        self.core.administer(AdminRequest::Add { id, peer, disk: None }).await
    }

    /// As `add_member`, for a node that asks for itself and says which disk it has: one that has lost the
    /// disk that its id belongs to is refused.
    pub async fn admit(&self, id: NodeId, peer: String, disk: String) -> Result<(), AdminError> {
        self.core.administer(AdminRequest::Add { id, peer, disk: Some(disk) }).await
    }

    /// The id of this node's data directory, created with it.
    pub fn disk_id(&self) -> String {
        self.core.identity.disk_id()
    }

    /// Removes a member. Any member may be asked.
    pub async fn remove_member(&self, id: NodeId) -> Result<(), AdminError> {
        self.core.administer(AdminRequest::Remove { id }).await
    }

    /// Hands leadership to a voter. Any member may be asked. Returns when the new leader is known here.
    pub async fn transfer_leader(&self, to: NodeId) -> Result<(), AdminError> {
        self.core.administer(AdminRequest::Transfer { to }).await
    }

    /// Makes the log clock, where it is ahead of the leader's wall clock, run at half speed until the wall
    /// clock has caught up; or at full speed again. Any member may be asked. Returns when this is applied at
    /// the leader, and here too if that happens soon.
    pub async fn close_clock(&self, close: bool) -> Result<(), AdminError> {
        self.core.administer(AdminRequest::CloseClock { close }).await?;
        // It is done, whether or not this node learns of it.
        let _ = self.tick().await;
        Ok(())
    }

    /// Writes a checkpoint and waits until it is durable. Returns its index.
    pub async fn checkpoint_now(&self) -> Result<u64, AdminError> {
        let durable = self.core.checkpointer.request();
        let written = durable.await.map_err(|_| AdminError::Unknown("this node is stopping".into()))?;
        written.map_err(|why| AdminError::Unavailable(Unavailable::NoRoom(why)))
    }

    /// Whether the disks have room for a write of this many bytes. Cheap; an error means that nothing was
    /// done.
    pub fn check_room(&self, need: Need, bytes: usize) -> Result<(), Unavailable> {
        self.core.rooms.check(need, bytes)
    }

    /// Hands leadership over if there is a successor, writes a checkpoint, and stops.
    pub async fn shutdown(&self) {
        let core = &self.core;
        let grace = Duration::from_secs(2);
        let idle = async {
            while !core.proposer.is_idle() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(grace, idle).await;
        if core.is_leader()
            && let Some(successor) = core.successor()
        {
            let _ = tokio::time::timeout(grace, self.transfer_leader(successor)).await;
        }
        if core.checkpointer.bytes_since() > 0 {
            let _ = self.checkpoint_now().await;
        }
        self.stop().await;
    }

    /// Stops at once: everything acknowledged is already durable.
    pub async fn stop(&self) {
        let core = &self.core;
        core.stop.send_replace(true);
        core.space().give_up();
        core.proposer.stop();
        // openraft's tasks end; an error means that they had ended before.
        let _ = core.raft.shutdown().await;
        let tasks = self.tasks.lock().take();
        if let Some(tasks) = tasks {
            // `stop` ends them.
            let _ = tasks.await;
        }
        core.checkpointer.store().close();
        core.log.close();
        core.identity.close();
    }
}

/// What this node tells its peers about itself.
fn introduction(config: &NodeConfig, machine: &impl Machine) -> Introduction {
    Introduction {
        first_members: config.bootstrap.iter().flat_map(|peers| peers.keys().copied()).collect(),
        apply_level_max: machine.apply_level_max(),
    }
}

/// Decides which addresses of this node are announced to others. Returns the one for peers.
fn publish(
    config: &mut NodeConfig,
    listener: &dyn Listener,
    identity: &Identity,
) -> Result<String, StartError> {
    let known = identity.peers().remove(&config.id);
    let peer = address::published(config, &listener.local_address(), known.as_ref());
    let peer = peer.map_err(StartError::Config)?;
    address::complete(&mut config.endpoints, &peer);
    identity.set_address(&peer);
    Ok(peer)
}

/// Builds what applies entries to the machine and writes its checkpoints.
fn checkpointer<M: Machine>(
    config: &NodeConfig,
    platform: Platform,
    machine: Arc<M>,
    (clock, proposer, level): (Arc<Clock>, Arc<Proposer<M::Local>>, Arc<AtomicU32>),
    (pages, progress): (PageStore, Progress),
) -> Checkpointer<M> {
    let applier = Applier::new(machine, clock, proposer, progress, level, platform.fatal.clone());
    Checkpointer::new(
        GROUP,
        platform,
        Arc::new(applier),
        Arc::new(pages),
        config.checkpoint_log_bytes,
        config.page_cache_bytes,
    )
}

/// At least so many proposals of the largest size may wait: behind one alone, small ones would be refused.
const WAITING_PROPOSALS_MIN: usize = 4;

fn limits(config: &NodeConfig) -> Limits {
    Limits {
        batch_bytes_max: config.entry_bytes_max,
        batch_proposals_max: config.entry_proposals_max,
        proposal_bytes_max: config.proposal_bytes_max,
        waiting_bytes_max: WAITING_PROPOSALS_MIN * config.proposal_bytes_max.max(16 << 20),
        in_flight_max: config.entries_in_flight_max,
        timeout: Duration::from_millis(config.request_timeout_ms),
    }
}

async fn consensus<M: Machine>(
    config: &NodeConfig,
    factory: Factory,
    log: LogStore,
    state: StateMachine<M>,
) -> Result<Raft<M>, StartError> {
    let raft = openraft::Raft::new(config.id, openraft_config(config)?, factory, log, state).await;
    raft.map_err(|error| io_error("cannot start consensus", error))
}

fn openraft_config(config: &NodeConfig) -> Result<Arc<Config>, StartError> {
    let (_, lease) = config.election_timeout_ms;
    let openraft = Config {
        cluster_name: "kvorum".into(),
        heartbeat_interval: config.heartbeat_ms,
        // Elections are started here (`candidacy.rs`). openraft uses the greatest of its timeouts as the
        // lease, and the least as the time that a vote may take.
        enable_elect: false,
        election_timeout_min: lease - 1,
        election_timeout_max: lease,
        max_payload_entries: 256,
        // Checkpoints are started here, not by openraft; it only learns of them.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: config.log_entries_kept,
        // A follower gets a snapshot only when the entries that it needs were purged.
        replication_lag_threshold: u64::MAX,
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        ..Default::default()
    };
    openraft.validate().map(Arc::new).map_err(|error| StartError::Config(error.to_string()))
}
