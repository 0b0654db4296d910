//! `kvorum clock`: shows the offset of the log clock from the wall clock of each member, and starts or stops
//! closing it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::status;
use crate::admin::api::{ClockPace, Cluster, Problem};

/// How long a change of the pace may take.
const TIMEOUT: Duration = Duration::from_secs(30);

pub(super) const HELP: &str = "\
Show how far the log's clock is ahead of the wall clock of each member (negative: behind).

Times that clients name (EXAT, PXAT, EXPIREAT, PEXPIREAT) and are shown (EXPIRETIME) are of the wall clock, \
however far the log's clock is from it. Times to live and locks are measured by the log's clock, which never \
jumps: it nears the wall clock by a millisecond a second.

A log's clock that is ahead of the wall clock, as after a start with wrong wall clocks, can wait for it: with \
--close it goes at half speed until they meet, which takes twice the distance, and ends by itself. In the \
meantime times to live, locks, leases and rate limits last up to twice as long, and none ends early. Mend wrong \
wall clocks first.";

/// Asks one member, and each of the others for its own clock.
#[derive(Args, Debug)]
pub struct Clock {
    /// HTTP address of any member
    #[arg(long, env = "KVORUM_URL", default_value = "http://127.0.0.1:8379")]
    http: String,
    /// Run the log clock at half speed until the wall clock of the leader catches up
    #[arg(long, conflicts_with = "stop")]
    close: bool,
    /// Run it at normal speed again
    #[arg(long)]
    stop: bool,
}

pub(super) fn run(clock: Clock) -> Result<()> {
    let url = status::url_of(&clock.http);
    if clock.close || clock.stop {
        set_pace(&url, &ClockPace { closing: clock.close })?;
    }
    let asked = status::cluster(&url).with_context(|| format!("cannot ask {url}"))?;
    for (member, own) in asked.members.iter().zip(status::own_views(&asked)) {
        let ahead = own.map_or_else(|| "it does not answer".to_owned(), |own| ahead_of(&own));
        println!("node {}: {ahead}", member.id);
    }
    if asked.clock_closing {
        println!("the log's clock goes at half speed: it meets the wall clock after twice the distance");
    }
    Ok(())
}

fn ahead_of(cluster: &Cluster) -> String {
    match cluster.clock_ahead_ms {
        None => "it has not heard the time".to_owned(),
        Some(ms) if ms < 0 => format!("the log's clock is {} ms behind its wall clock", ms.unsigned_abs()),
        Some(ms) => format!("the log's clock is {ms} ms ahead of its wall clock"),
    }
}

fn set_pace(url: &str, pace: &ClockPace) -> Result<()> {
    let config =
        ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).build();
    let asked = ureq::Agent::from(config).post(format!("{url}/v1/cluster/clock")).send_json(pace);
    let mut response = asked.with_context(|| format!("cannot ask {url}"))?;
    if response.status().is_success() {
        return Ok(());
    }
    let problem = response.body_mut().read_json::<Problem>();
    bail!(
        "{url} answered {}: {}",
        response.status(),
        problem.map(|problem| problem.detail).unwrap_or_default()
    )
}
