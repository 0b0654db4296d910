//! CONFIG GET, SET, RESETSTAT, REWRITE.

use super::{Session, settings::SetError, table};
use crate::{
    args::Args,
    error::{Error, Result},
    resp::Reply,
};

pub(super) fn get(session: &mut Session, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let all = session.shared.settings.all();
    let fitting = |name: &str| args.from(2).iter().find(|pattern| super::fits(pattern, name));
    let shown: Vec<_> = all.iter().filter_map(|(name, value)| Some((name, value, fitting(name)?))).collect();
    reply.map(shown.len());
    for (name, value, asked) in shown {
        // A name is given back as it was asked for.
        let is_name = asked.eq_ignore_ascii_case(name.as_bytes());
        reply.bulk(if is_name { asked } else { name.as_bytes() });
        reply.bulk(value.as_bytes());
    }
    Ok(())
}

pub(super) fn set(session: &mut Session, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let pairs = args.from(2);
    if !pairs.len().is_multiple_of(2) {
        return Err(Error::Arity("config|set".into()));
    }
    let names = || pairs.chunks_exact(2).map(|pair| pair[0]);
    for (index, name) in names().enumerate() {
        if names().take(index).any(|before| before.eq_ignore_ascii_case(name)) {
            return Err(failed(&String::from_utf8_lossy(name).to_ascii_lowercase(), "duplicate parameter"));
        }
    }
    // All are checked before the first is set.
    for apply in [false, true] {
        for pair in pairs.chunks_exact(2) {
            let name = String::from_utf8_lossy(pair[0]).to_ascii_lowercase();
            let value = String::from_utf8_lossy(pair[1]);
            session.shared.settings.set(&name, &value, apply).map_err(|error| match error {
                SetError::Unknown => {
                    Error::err(format!("Unknown option or number of arguments for CONFIG SET - '{name}'"))
                }
                SetError::Immutable => failed(&name, "can't set immutable config"),
                SetError::Invalid(why) => failed(&name, &why),
            })?;
        }
    }
    reply.ok();
    Ok(())
}

fn failed(name: &str, why: &str) -> Error {
    Error::err(format!("CONFIG SET failed (possibly related to argument '{name}') - {why}"))
}

pub(super) fn resetstat(session: &mut Session, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    session.shared.stats.reset();
    table::rows().iter().for_each(|row| row.counters.reset());
    reply.ok();
    Ok(())
}

pub(super) fn rewrite(_: &mut Session, _: &Args<'_>, _: &mut Reply) -> Result<()> {
    Err(Error::err("The server is running without a config file"))
}

pub(super) fn help(_: &mut Session, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    super::help(
        reply,
        "CONFIG",
        &[
            "GET <pattern>",
            "    Return parameters matching the glob-like <pattern> and their values.",
            "SET <directive> <value>",
            "    Set the configuration <directive> to <value>.",
            "RESETSTAT",
            "    Reset statistics reported by the INFO command.",
            "REWRITE",
            "    Rewrite the configuration file.",
        ],
    );
    Ok(())
}
