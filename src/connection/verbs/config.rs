//! CONFIG GET, SET, RESETSTAT, REWRITE. Parameters belong to this node and are not replicated, but for the
//! settings of the whole cluster; nothing is written to a file, so REWRITE is refused.

use std::{borrow::Cow, collections::BTreeSet};

use crate::connection::{
    Connection,
    settings::{self, SetError},
    verb::{Verb, flags, groups},
};
use crate::{
    args::Args,
    cluster_settings,
    commands::Spec,
    error::{Error, Result},
    resp::Reply,
    store::{ClusterSetting, Unit},
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
        Verb::wait(
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
            |connection, argv| Box::pin(connection.set_parameters(argv)),
            |connection, args, reply| {
                if let Some((setting, _)) = checked(connection, args)?.first() {
                    return Err(failed(setting.name(), "it can not be set in a transaction"));
                }
                apply(connection, args);
                reply.ok();
                Ok(())
            },
        ),
    ],
)];

pub(in crate::connection) fn get(
    connection: &mut Connection,
    args: &Args<'_>,
    reply: &mut Reply,
) -> Result<()> {
    let mut all = connection.shared.settings.all();
    for setting in ClusterSetting::ALL {
        let value = connection.shared.router.machine().setting(setting);
        all.insert(setting.name(), value.unwrap_or(setting.default_value()).to_string());
    }
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

impl Connection {
    /// CONFIG SET parameter value ...: all values are checked before the first is set. Those that belong to the
    /// whole cluster go through the log first: if they cannot, nothing was set.
    async fn set_parameters(&mut self, argv: &[&[u8]]) {
        let args = Args::new(argv);
        let result = match checked(self, &args) {
            Ok(changes) => cluster_settings::set(&self.shared.router, &changes, false).await,
            Err(error) => Err(error),
        };
        if result.is_ok() {
            apply(self, &args);
        }
        self.reply(|reply| match &result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        });
    }
}

/// Names in lower case, and values.
fn pairs<'a>(args: &Args<'a>) -> impl Iterator<Item = (String, Cow<'a, str>)> + use<'a> {
    let pairs = args.from(2).chunks_exact(2);
    pairs
        .map(|pair| (String::from_utf8_lossy(pair[0]).to_ascii_lowercase(), String::from_utf8_lossy(pair[1])))
}

/// Checks all values; returns those of settings of the whole cluster.
fn checked(connection: &Connection, args: &Args<'_>) -> Result<Vec<(ClusterSetting, u64)>> {
    if !args.from(2).len().is_multiple_of(2) {
        return Err(Error::Arity("config|set".into()));
    }
    let mut seen = BTreeSet::new();
    for (name, _) in pairs(args) {
        if !seen.insert(name.clone()) {
            return Err(failed(&name, "duplicate parameter"));
        }
    }
    let mut changes = Vec::new();
    for (name, value) in pairs(args) {
        if let Some(setting) = ClusterSetting::named(name.as_bytes()) {
            let (number, why) = match setting.unit() {
                Unit::Bytes => (settings::bytes(&value), "argument must be a memory value"),
                Unit::Count => (value.parse().ok(), "argument couldn't be parsed into an integer"),
            };
            let number = number.ok_or_else(|| failed(&name, why))?;
            if (1..setting.least()).contains(&number) {
                return Err(failed(&name, &format!("argument must be 0 or at least {}", setting.least())));
            }
            changes.push((setting, number));
            continue;
        }
        let set = connection.shared.settings.set(&name, &value, false);
        set.map_err(|error| match error {
            SetError::Unknown => {
                Error::err(format!("Unknown option or number of arguments for CONFIG SET - '{name}'"))
            }
            SetError::Immutable => failed(&name, "can't set immutable config"),
            SetError::Invalid(why) => failed(&name, &why),
        })?;
    }
    Ok(changes)
}

/// Sets what belongs to this node.
fn apply(connection: &Connection, args: &Args<'_>) {
    for (name, value) in pairs(args).filter(|(name, _)| ClusterSetting::named(name.as_bytes()).is_none()) {
        // It was checked.
        let _ = connection.shared.settings.set(&name, &value, true);
    }
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
