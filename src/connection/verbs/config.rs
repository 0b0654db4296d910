//! CONFIG GET, SET, RESETSTAT, REWRITE. Parameters belong to this node and are not replicated; nothing is
//! written to a file, so REWRITE is refused.

use crate::connection::{
    Connection,
    settings::SetError,
    verb::{Verb, flags, groups},
};
use crate::{
    args::Args,
    commands::Spec,
    error::{Error, Result},
    resp::Reply,
};

/// The rows of this family.
pub(in crate::connection) const VERBS: &[Verb] = &[Verb::container(
    Spec::connection("CONFIG", -2)
        .about(&[], groups::SERVER, "2.0.0", "A container for server configuration commands")
        .complexity("Depends on subcommand"),
    &[
        Verb::now(
            Spec::connection("CONFIG|GET", -3)
                .about(flags::ADMIN, groups::SERVER, "2.0.0", "Get the values of configuration parameters")
                .syntax("parameter=(parameter)...")
                .complexity("O(N) when N is the number of configuration parameters provided"),
            get,
        ),
        Verb::now(
            Spec::connection("CONFIG|HELP", 2)
                .about(
                    flags::LOADING,
                    groups::SERVER,
                    "5.0.0",
                    "Show helpful text about the different subcommands",
                )
                .complexity("O(1)"),
            crate::connection::help,
        ),
        Verb::alone(
            Spec::connection("CONFIG|RESETSTAT", 2)
                .about(flags::ADMIN, groups::SERVER, "2.0.0", "Reset the stats returned by INFO")
                .complexity("O(1)"),
            resetstat,
        ),
        Verb::now(
            Spec::connection("CONFIG|REWRITE", 2)
                .about(
                    flags::ADMIN,
                    groups::SERVER,
                    "2.8.0",
                    "Rewrite the configuration file with the in memory configuration",
                )
                .complexity("O(1)"),
            rewrite,
        ),
        Verb::alone(
            Spec::connection("CONFIG|SET", -4)
                .about(
                    flags::ADMIN,
                    groups::SERVER,
                    "2.0.0",
                    "Set configuration parameters to the given values",
                )
                .syntax("parameter_value=(parameter value)...")
                .complexity("O(N) when N is the number of configuration parameters provided")
                .tips(&["request_policy:all_nodes", "response_policy:all_succeeded"]),
            set,
        ),
    ],
)];

pub(in crate::connection) fn get(
    connection: &mut Connection,
    args: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    let all = connection.shared.settings.all();
    let fitting = |name: &str| args.from(2).iter().find(|pattern| crate::connection::fits(pattern, name));
    let shown: Vec<_> = all.iter().filter_map(|(name, value)| Some((name, value, fitting(name)?))).collect();
    reply.map(shown.len());
    for (name, value, asked) in shown {
        // The name is returned as the client spelled it.
        let is_name = asked.eq_ignore_ascii_case(name.as_bytes());
        reply.bulk(if is_name { asked } else { name.as_bytes() });
        reply.bulk(value.as_bytes());
    }
    Ok(())
}

pub(in crate::connection) fn set(
    connection: &mut Connection,
    args: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
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
    // All values are checked before the first is set.
    for apply in [false, true] {
        for pair in pairs.chunks_exact(2) {
            let name = String::from_utf8_lossy(pair[0]).to_ascii_lowercase();
            let value = String::from_utf8_lossy(pair[1]);
            connection.shared.settings.set(&name, &value, apply).map_err(|error| match error {
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

pub(in crate::connection) fn resetstat(
    connection: &mut Connection,
    _: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    connection.shared.stats.reset();
    reply.ok();
    Ok(())
}

pub(in crate::connection) fn rewrite(_: &mut Connection, _: &Args<'_>, _: &mut Reply) -> Result<()> {
    Err(Error::err("The server is running without a config file"))
}
