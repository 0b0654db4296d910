//! Changing the settings of the whole cluster, which are part of the state (`store/settings.rs`).

use kvorum_raft::Need;

use crate::{
    error::{Error, Result},
    proposal::{self, Setting},
    resp::Protocol,
    router::Router,
    store::ClusterSetting,
};

/// Sets all of these at once, or, if `is_default`, those that were never set.
pub async fn set(router: &Router, changes: &[(ClusterSetting, u64)], is_default: bool) -> Result<()> {
    let Some(level) = changes.iter().map(|(setting, _)| setting.level()).max() else { return Ok(()) };
    if router.status().apply_level == 0 {
        // There was no entry yet that could have one: the first tells which.
        router.tick().await?;
    }
    if router.status().apply_level < level {
        return Err(Error::err(format!(
            "the cluster does not know this setting yet: it is not at apply level {level}, which it reaches when all \
             members have this version"
        )));
    }
    router.check_room(Need::Entry, 0)?;
    let mut proposal = Vec::new();
    for (setting, value) in changes {
        let (name, digits) = (setting.name().as_bytes(), value.to_string());
        proposal::put_setting(&mut proposal, &Setting { name, digits: digits.as_bytes(), is_default });
    }
    let reply = router.call(&proposal, changes.len(), Protocol::Resp2).await;
    match reply.strip_prefix(b"-") {
        None => Ok(()),
        Some(error) => {
            let line = error.split(|&byte| byte == b'\r').next().unwrap_or_default();
            Err(Error::Other(String::from_utf8_lossy(line).into_owned().into()))
        }
    }
}
