//! `kvorum status`: a table of the members, as the asked one knows them and as each reports of itself; and
//! which of them do not serve, and why. CLOCK is the offset of the log clock from the member's wall clock.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use kvorum_raft::{DiskState, NodeId, Role};

use crate::{
    admin::api::{Cluster, Member},
    connection::role_name,
};

/// How long a member may take to answer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Asks one member for the list of members, and each of them for its own progress.
#[derive(Args, Debug)]
pub struct Status {
    /// HTTP address of any member
    #[arg(long, env = "KVORUM_URL", default_value = "http://127.0.0.1:8379")]
    http: String,
}

pub(super) fn run(status: Status) -> Result<()> {
    let url = url_of(&status.http);
    let asked = cluster(&url).with_context(|| format!("cannot ask {url}"))?;
    println!("cluster {}", asked.cluster_id.as_deref().unwrap_or("(not formed yet)"));
    let told = own_views(&asked);
    let members = asked.members.iter().zip(&told);
    let rows: Vec<[String; 12]> = members.map(|(member, own)| row(&asked, member, own.as_ref())).collect();
    print!("{}", table(&HEADER, &rows));
    let is_listed = asked.members.iter().any(|member| member.id == asked.node_id);
    for cluster in told.iter().flatten().chain((!is_listed).then_some(&asked)) {
        if let Some(why) = &cluster.not_ready {
            println!("node {} is not ready: {why}", cluster.node_id);
        } else if cluster.disk.state == DiskState::Low.name() {
            println!("node {}: {} bytes are left on the disk", cluster.node_id, cluster.disk.free_bytes);
        }
        if let Some(why) = &cluster.no_room {
            println!("node {} refuses what needs space: {why}", cluster.node_id);
        }
        for path in &cluster.set_aside {
            println!("{}", set_aside(cluster.node_id, path));
        }
        for id in &cluster.differing {
            println!("node {id} has another log or state than node {}", cluster.node_id);
        }
        if let Some(why) = &cluster.timeouts_misfit {
            println!("node {}: {why}", cluster.node_id);
        }
    }
    if asked.clock_closing {
        println!("the log's clock goes at half speed until it meets the wall clock");
    }
    // A member may still believe in a dead leader: what counts is which member says that it leads and serves.
    let leads = |cluster: &Cluster| cluster.role == role_name(Role::Leader) && cluster.not_ready.is_none();
    if !told.iter().flatten().any(leads) {
        bail!(
            "no member that answers leads: nothing can be written, and LAG is only what node {} knows",
            asked.node_id
        );
    }
    Ok(())
}

/// What to know of pages that a node has set aside.
fn set_aside(node: NodeId, path: &str) -> String {
    let why = if path.contains(".distrusted-") {
        "they differed from the others', and are never used again"
    } else {
        "they could not be read; the node tries them again by itself if it starts without readable pages"
    };
    format!("node {node} has pages set aside in {path}: {why}")
}

/// Adds the scheme to an address, if it has none, and removes a trailing slash.
pub(super) fn url_of(address: &str) -> String {
    let address = address.trim_end_matches('/');
    if address.contains("://") { address.to_owned() } else { format!("http://{address}") }
}

/// What a member reports of itself.
pub(super) fn cluster(url: &str) -> Result<Cluster> {
    let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).build();
    Ok(ureq::Agent::from(config).get(format!("{url}/v1/cluster")).call()?.body_mut().read_json()?)
}

/// CLOCK is the offset of the log clock from the member's wall clock. RTT is the round trip from the asked
/// member to this one, in milliseconds.
const HEADER: [&str; 12] = [
    "ID",
    "ROLE",
    "TERM",
    "LOG",
    "COMMITTED",
    "APPLIED",
    "CHECKPOINT",
    "LAG",
    "CLOCK",
    "RTT",
    "RESP",
    "HTTP",
];

/// What each member reports of itself. All are asked at once: a dead one may not answer until the timeout.
pub(super) fn own_views(asked: &Cluster) -> Vec<Option<Cluster>> {
    std::thread::scope(|scope| {
        let asking: Vec<_> =
            asked.members.iter().map(|member| scope.spawn(|| own_view(asked, member))).collect();
        asking.into_iter().map(|asking| asking.join().ok().flatten()).collect()
    })
}

/// What a member reports of itself, if it answers.
fn own_view(asked: &Cluster, member: &Member) -> Option<Cluster> {
    if member.id == asked.node_id {
        return Some(asked.clone());
    }
    let own = cluster(&format!("http://{}", member.addresses.get("http")?)).ok()?;
    // Another node may answer there: at 127.0.0.1, or if an address was reused.
    (own.node_id == member.id && own.cluster_id == asked.cluster_id).then_some(own)
}

fn row(asked: &Cluster, member: &Member, own: Option<&Cluster>) -> [String; 12] {
    let unknown = || "-".to_owned();
    let address = |name: &str| member.addresses.get(name).cloned().unwrap_or_else(unknown);
    let Some(own) = own else {
        let role = if member.role == "learner" { "learner, unreachable" } else { "unreachable" };
        return [
            member.id.to_string(),
            role.to_owned(),
            unknown(),
            unknown(),
            unknown(),
            unknown(),
            unknown(),
            unknown(),
            unknown(),
            unknown(),
            address("resp"),
            address("http"),
        ];
    };
    [
        member.id.to_string(),
        own.role.clone(),
        own.term.to_string(),
        own.last_log_index.to_string(),
        own.committed_index.to_string(),
        own.applied_index.to_string(),
        own.checkpoint_index.to_string(),
        asked.committed_index.saturating_sub(own.applied_index).to_string(),
        own.clock_ahead_ms.map_or_else(unknown, |ahead_ms| format!("{ahead_ms:+} ms")),
        member.round_trip.map_or_else(unknown, |round_trip| format!("{:.1}", round_trip.least_ms)),
        address("resp"),
        address("http"),
    ]
}

/// Formats a table with aligned columns.
pub(super) fn table<const N: usize>(header: &[&str; N], rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].len()).chain([header[column].len()]).max().unwrap_or(0)
    });
    let mut out = String::new();
    let header: [String; N] = std::array::from_fn(|column| header[column].to_owned());
    for row in [&header].into_iter().chain(rows) {
        let line: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        out.push_str(line.join("  ").trim_end());
        out.push('\n');
    }
    out
}
