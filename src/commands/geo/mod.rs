//! Places in sorted sets: the score of a member is the number of its place (`hash.rs`). Searching is in `search.rs`.

mod hash;
pub mod search;

use hash::Place;

use super::sorted_set;
use crate::{
    args::{Args, parse_float},
    commands::{Spec, keys},
    error::{Error, Result},
    resp::Reply,
    store::{Ctx, SortedSet, View, level},
};

const GROUP: &str = "geo";
const READ: &[&str] = &["readonly"];
const WRITE: &[&str] = &["write", "denyoom"];

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::write("GEOADD", -5, keys::UPDATE, geoadd)
        .about(WRITE, GROUP, "3.2.0", "Add places, or move them")
        .syntax(
            "key [condition=<NX|XX>@6.2.0] [change=CH@6.2.0] longitude_latitude_member=(longitude:double \
             latitude:double member)...",
        )
        .complexity("O(log(N)) for each item added, where N is the number of elements in the sorted set.")
        .from_level(level::TYPES),
    Spec::read("GEODIST", -4, keys::READ, geodist)
        .about(READ, GROUP, "3.2.0", "Get the distance between two places")
        .syntax("key member1 member2 [unit=<M|KM|FT|MI>]")
        .complexity("O(log(N))")
        .from_level(level::TYPES),
    Spec::read("GEOHASH", -2, keys::READ, geohash)
        .about(READ, GROUP, "3.2.0", "Get the geohashes of places")
        .syntax("key member...")
        .complexity(
            "O(log(N)) for each member requested, where N is the number of elements in the sorted set.",
        )
        .from_level(level::TYPES),
    Spec::read("GEOPOS", -2, keys::READ, geopos)
        .about(READ, GROUP, "3.2.0", "Get the longitudes and latitudes of places")
        .syntax("key member...")
        .complexity("O(N) where N is the number of members requested.")
        .from_level(level::TYPES),
];

/// The place whose longitude and latitude are the arguments from `index` on.
fn place_at(args: &Args<'_>, index: usize) -> Result<Place> {
    let place = Place { longitude: args.float(index)?, latitude: args.float(index + 1)? };
    if place.is_valid() {
        return Ok(place);
    }
    let Place { longitude, latitude } = place;
    Err(Error::err(format!("invalid longitude,latitude pair {longitude:.6},{latitude:.6}")))
}

/// How many metres a unit has.
fn unit(text: &[u8]) -> Result<f64> {
    let units = [("m", 1.0), ("km", 1000.0), ("ft", 0.3048), ("mi", 1609.34)];
    let found = units.iter().find(|(name, _)| text.eq_ignore_ascii_case(name.as_bytes()));
    found
        .map(|(_, metres)| *metres)
        .ok_or_else(|| Error::err("unsupported unit provided. please use M, KM, FT, MI"))
}

/// The argument at `index` as a number; `what` is the error.
fn number(args: &Args<'_>, index: usize, what: &str) -> Result<f64> {
    parse_float(args.at(index)).ok_or_else(|| Error::err(what))
}

fn geoadd(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let is_option = |index: &usize| ["NX", "XX", "CH"].iter().any(|word| args.is(*index, word));
    let first = (2..args.len()).find(|index| !is_option(index)).unwrap_or(args.len());
    let has = |word: &str| (2..first).any(|index| args.is(index, word));
    if !(args.len() - first).is_multiple_of(3) || (has("NX") && has("XX")) {
        return Err(Error::Syntax);
    }
    let places =
        (first..args.len()).step_by(3).map(|index| Ok((place_at(args, index)?.score(), args.at(index + 2))));
    let places = places.collect::<Result<Vec<_>>>()?;
    let scores: Vec<String> = places.iter().map(|(score, _)| score.to_string()).collect();
    let mut argv = args.from(0)[..first].to_vec();
    for (score, (_, member)) in scores.iter().zip(&places) {
        argv.extend([score.as_bytes(), *member]);
    }
    sorted_set::zadd(ctx, &Args::new(&argv), reply)
}

fn geodist(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let metres = match args.len() {
        4 => 1.0,
        5 => unit(args.at(4))?,
        _ => return Err(Error::Syntax),
    };
    let set = view.value::<SortedSet>(args.at(1))?;
    let place = |index: usize| set?.score(args.at(index)).map(Place::of_score);
    match (place(2), place(3)) {
        (Some(a), Some(b)) => reply_distance(a.distance(b) / metres, reply),
        _ => reply.null(),
    }
    Ok(())
}

/// A distance, with four digits after the point.
fn reply_distance(distance: f64, reply: &mut Reply) {
    reply.bulk(format!("{distance:.4}").as_bytes());
}

fn geohash(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let set = view.value::<SortedSet>(args.at(1))?;
    reply.array(args.len() - 2);
    for member in args.from(2) {
        let text = set.and_then(|set| set.score(member)).map(|score| Place::of_score(score).text());
        reply.bulk_or_null(text.as_ref().map(<[u8; 11]>::as_slice));
    }
    Ok(())
}

fn geopos(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let set = view.value::<SortedSet>(args.at(1))?;
    reply.array(args.len() - 2);
    for member in args.from(2) {
        match set.and_then(|set| set.score(member)) {
            Some(score) => reply_place(Place::of_score(score), reply),
            None => reply.null_array(),
        }
    }
    Ok(())
}

/// Longitude and latitude, with at most 17 digits after the point.
fn reply_place(place: Place, reply: &mut Reply) {
    reply.array(2);
    for degrees in [place.longitude, place.latitude] {
        let text = format!("{degrees:.17}");
        let text = text.trim_end_matches('0').trim_end_matches('.');
        reply.decimal(if text == "-0" { "0" } else { text });
    }
}
