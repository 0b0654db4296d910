//! `--join`: a node without data asks a member to add it, until it is a member or is refused for good.
//! Another server may answer at that address, so only a refusal in a member's own words is final.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use kvorum_raft::NodeId;
use serde::Deserialize;
use tracing::{info, warn};

use super::api::{BUSY, NewMember, Problem};
use crate::connection::Shared;

/// The pause after the first failed attempt; it doubles with each.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long a member may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Asks `url` to add this node, unless it belongs to a cluster already. Err is a final refusal.
pub async fn join(shared: Arc<Shared>, url: String) -> Result<(), String> {
    let mut pause = PAUSE_MIN;
    loop {
        let status = shared.router.status();
        let me = status.members.iter().find(|member| member.id == status.node_id);
        if status.cluster_id.is_some() || me.is_some() {
            info!("this node belongs to a cluster; --join is not needed");
            return Ok(());
        }
        let disk = Some(shared.router.node().disk_id());
        let member = NewMember { id: status.node_id, peer: shared.peer_address.clone(), disk };
        let target = format!("{}/v1/cluster/members", url.trim_end_matches('/'));
        info!(%target, id = member.id, peer = %member.peer, "asking to be added to the cluster");
        let asked = tokio::task::spawn_blocking(move || ask(&target, &member)).await;
        match asked.context("the request was aborted").and_then(|asked| asked) {
            Ok(None) => {
                info!("added as a learner; it becomes a voter when it has caught up");
                return Ok(());
            }
            Ok(Some(refusal)) => return Err(refusal),
            Err(error) => warn!("not added yet, trying again in {pause:?}: {error:#}"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// The answer of a member that has added a node.
#[derive(Deserialize)]
struct Added {
    id: NodeId,
}

/// None if the node was added; Some is a final refusal.
fn ask(target: &str, member: &NewMember) -> Result<Option<String>> {
    let config =
        ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).build();
    let mut response = ureq::Agent::from(config).post(target).send_json(member)?;
    let status = response.status();
    if status.is_success() {
        // Another server at this address may say yes to anything.
        let added: Option<Added> = response.body_mut().read_json().ok();
        if added.is_some_and(|added| added.id == member.id) {
            return Ok(None);
        }
        anyhow::bail!("{target} answered {status}, but not as a member of a cluster does");
    }
    let problem = response.body_mut().read_json::<Problem>();
    let (kind, detail) = problem.map(|problem| (problem.kind, problem.detail)).unwrap_or_default();
    let answer = format!("{target} answered {status}: {detail}");
    // Only a refusal in a member's own words is final, not that of another server at this address.
    let is_final = matches!(status.as_u16(), 409 | 422) && !detail.is_empty() && kind != BUSY;
    if is_final { Ok(Some(answer)) } else { anyhow::bail!("{answer}") }
}
