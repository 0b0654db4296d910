//! `--join`: a node that has no data asks a member to add it, until it is a member.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use tracing::{info, warn};

use super::api::{NewMember, Problem};
use crate::session::Shared;

/// The pause after the first attempt that failed; it doubles.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long a member may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Asks `url` to add this node, unless it belongs to a cluster already.
pub async fn join(shared: Arc<Shared>, url: String) {
    let mut pause = PAUSE_MIN;
    loop {
        let status = shared.router.status();
        let me = status.members.iter().find(|member| member.id == status.node_id);
        if status.cluster_id.is_some() || me.is_some() {
            info!("this node belongs to a cluster; --join is not needed");
            return;
        }
        let member = NewMember { id: status.node_id, peer: shared.peer_address.clone() };
        let target = format!("{}/v1/cluster/members", url.trim_end_matches('/'));
        info!(%target, id = member.id, peer = %member.peer, "asking to be added to the cluster");
        let asked = tokio::task::spawn_blocking(move || ask(&target, &member)).await;
        match asked.context("the request was aborted").and_then(|asked| asked) {
            Ok(()) => {
                info!("added as a learner; it becomes a voter when it has caught up");
                return;
            }
            Err(error) => warn!("not added yet, trying again in {pause:?}: {error:#}"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn ask(target: &str, member: &NewMember) -> Result<()> {
    let config =
        ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).build();
    let mut response = ureq::Agent::from(config).post(target).send_json(member)?;
    if response.status().is_success() {
        return Ok(());
    }
    let status = response.status();
    let detail = response.body_mut().read_json::<Problem>().map(|problem| problem.detail).unwrap_or_default();
    anyhow::bail!("{target} answered {status}: {detail}")
}
