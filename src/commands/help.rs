//! HELP of a container, from the rows of its subcommands, in Redis's format.

use super::{Spec, syntax, table};
use crate::{
    args::Args,
    error::{Error, Result},
    resp::Reply,
};

/// Answers a call of a container's HELP.
pub fn help(args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let container = table::lookup(args.at(0)).ok_or_else(|| Error::err("there is no such command"))?;
    let lines: Vec<String> = lines(container);
    reply.array(lines.len());
    lines.iter().for_each(|line| reply.simple(line));
    Ok(())
}

fn lines(container: &Spec) -> Vec<String> {
    let first = format!("{} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:", container.name);
    let is_help = |spec: &&Spec| spec.own_name() == "HELP";
    let (last, others): (Vec<&Spec>, Vec<&Spec>) = container.subcommands.iter().partition(is_help);
    let described = others.into_iter().chain(last).flat_map(|spec| {
        let call = format!("{} {}", spec.own_name(), syntax::usage(spec.syntax));
        [call.trim_end().to_owned(), format!("    {}.", spec.summary.trim_end_matches('.'))]
    });
    std::iter::once(first).chain(described).collect()
}
