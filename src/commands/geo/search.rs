//! Searching for places: GEOSEARCH, and the older GEORADIUS and GEORADIUSBYMEMBER.

use std::ops::Range;

use super::{
    GROUP, READ, WRITE,
    hash::{Place, Shape},
    number, place_at, reply_distance, reply_place, unit,
};
use crate::{
    args::Args,
    commands::{
        Spec,
        coordination::fence,
        keys::{self, Access, Begin, Find, KeySpec},
        sorted_set,
    },
    error::{Error, Result},
    resp::Reply,
    store::{Ctx, Edge, SortedSet, View, level},
};

/// The key after a word, which is looked for from an argument on; it is overwritten.
const fn stored_after(word: &'static str, from: isize) -> KeySpec {
    KeySpec {
        begin: Begin::Keyword(word, from),
        find: Find::Range { last: 0, step: 1, limit: 0 },
        ..keys::one(1, Access::Ow, "update")
    }
}

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::read("GEOSEARCH", -7, keys::READ, geosearch)
        .about(READ, GROUP, "6.2.0", "Search for places in a circle or a box")
        .syntax(
            "key from=<FROMMEMBER member|FROMLONLAT longitude_latitude=(longitude:double latitude:double)> \
             by=<circle=(BYRADIUS radius:double unit=<M|KM|FT|MI>)|box=(BYBOX width:double height:double \
             unit=<M|KM|FT|MI>)> [order=<ASC|DESC>] [count=(COUNT count:integer [ANY])] [WITHCOORD] [WITHDIST] \
             [WITHHASH]",
        )
        .complexity(AREA_COMPLEXITY)
        .from_level(level::TYPES),
    Spec::write(
        "GEOSEARCHSTORE",
        -8,
        &[keys::one(1, Access::Ow, "update"), keys::one(2, Access::Ro, "access")],
        geosearchstore,
    )
    .about(WRITE, GROUP, "6.2.0", "Search for places in a circle or a box, and store what is found")
    .syntax(
        "destination:key source:key from=<FROMMEMBER member|FROMLONLAT longitude_latitude=(longitude:double \
         latitude:double)> by=<circle=(BYRADIUS radius:double unit=<M|KM|FT|MI>)|box=(BYBOX width:double \
         height:double unit=<M|KM|FT|MI>)> [order=<ASC|DESC>] [count=(COUNT count:integer [ANY])] [STOREDIST]",
    )
    .complexity(AREA_COMPLEXITY)
    .from_level(level::TYPES),
    Spec::write(
        "GEORADIUS",
        -6,
        &[keys::one(1, Access::Ro, "access"), stored_after("STORE", 6), stored_after("STOREDIST", 6)],
        georadius,
    )
    .about(WRITE, GROUP, "3.2.0", "Search for places around a place")
    .syntax(
        "key longitude:double latitude:double radius:double unit=<M|KM|FT|MI> [WITHCOORD] [WITHDIST] [WITHHASH] \
         [count=(COUNT count:integer [ANY@6.2.0])] [order=<ASC|DESC>] [STORE key] [STOREDIST key]",
    )
    .complexity(RADIUS_COMPLEXITY)
    .deprecated("6.2.0", "`GEOSEARCH` and `GEOSEARCHSTORE` with the `BYRADIUS` argument")
    .from_level(level::TYPES),
    Spec::read("GEORADIUS_RO", -6, keys::READ, georadius_ro)
        .about(READ, GROUP, "3.2.10", "Search for places around a place, without a destination")
        .syntax(
            "key longitude:double latitude:double radius:double unit=<M|KM|FT|MI> [WITHCOORD] [WITHDIST] [WITHHASH] \
             [count=(COUNT count:integer [ANY@6.2.0])] [order=<ASC|DESC>]",
        )
        .complexity(RADIUS_COMPLEXITY)
        .deprecated("6.2.0", "`GEOSEARCH` with the `BYRADIUS` argument")
        .from_level(level::TYPES),
    Spec::write(
        "GEORADIUSBYMEMBER",
        -5,
        &[keys::one(1, Access::Ro, "access"), stored_after("STORE", 5), stored_after("STOREDIST", 5)],
        georadiusbymember,
    )
    .about(WRITE, GROUP, "3.2.0", "Search for places around a member")
    .syntax(
        "key member radius:double unit=<M|KM|FT|MI> [WITHCOORD] [WITHDIST] [WITHHASH] [count=(COUNT count:integer \
         [ANY])] [order=<ASC|DESC>] [STORE key] [STOREDIST key]",
    )
    .complexity(RADIUS_COMPLEXITY)
    .deprecated("6.2.0", "`GEOSEARCH` and `GEOSEARCHSTORE` with the `BYRADIUS` and `FROMMEMBER` arguments")
    .from_level(level::TYPES),
    Spec::read("GEORADIUSBYMEMBER_RO", -5, keys::READ, georadiusbymember_ro)
        .about(READ, GROUP, "3.2.10", "Search for places around a member, without a destination")
        .syntax(
            "key member radius:double unit=<M|KM|FT|MI> [WITHCOORD] [WITHDIST] [WITHHASH] [count=(COUNT \
             count:integer [ANY])] [order=<ASC|DESC>]",
        )
        .complexity(RADIUS_COMPLEXITY)
        .deprecated("6.2.0", "`GEOSEARCH` with the `BYRADIUS` and `FROMMEMBER` arguments")
        .from_level(level::TYPES),
];

const AREA_COMPLEXITY: &str = "O(N+log(M)) where N is the number of elements in the grid-aligned bounding box area \
                               around the shape provided as the filter and M is the number of items inside the shape";
const RADIUS_COMPLEXITY: &str = "O(N+log(M)) where N is the number of elements inside the bounding box of the circular \
                                 area delimited by center and radius and M is the number of items inside the index.";

/// Which command it is: what it takes, and where its options begin.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// GEOSEARCH.
    Search,
    /// GEOSEARCHSTORE.
    SearchStore,
    /// GEORADIUS, which may store.
    Around { stores: bool },
    /// GEORADIUSBYMEMBER, which may store.
    AroundMember { stores: bool },
}

/// Where a centre comes from.
#[derive(Clone, Copy, PartialEq)]
enum From {
    Member,
    Place,
}

/// A search.
struct Query<'a> {
    /// What is searched; None if it is missing.
    set: Option<&'a SortedSet>,
    centre: Option<Place>,
    /// Where the centre was taken from, by GEOSEARCH.
    from: Option<From>,
    /// In metres.
    shape: Option<Shape>,
    /// How many metres the unit has.
    unit: f64,
    /// The destination.
    store: Option<&'a [u8]>,
    stores_distance: bool,
    with_distance: bool,
    with_score: bool,
    with_place: bool,
    /// Ascending or descending by distance.
    order: Option<bool>,
    /// The most results; 0 for all.
    count: usize,
    /// The first that are found will do.
    any: bool,
}

/// A member that was found.
struct Found<'a> {
    member: &'a [u8],
    score: f64,
    place: Place,
    /// In metres.
    distance: f64,
}

impl<'a> Query<'a> {
    fn parse(view: &View<'a>, args: &Args<'a>, form: Form) -> Result<Query<'a>> {
        let source = if form == Form::SearchStore { 2 } else { 1 };
        let mut query = Query {
            set: view.value::<SortedSet>(args.at(source))?,
            centre: None,
            from: None,
            shape: None,
            unit: 1.0,
            store: (form == Form::SearchStore).then(|| args.at(1)),
            stores_distance: false,
            with_distance: false,
            with_score: false,
            with_place: false,
            order: None,
            count: 0,
            any: false,
        };
        let first = match form {
            Form::Search | Form::SearchStore => source + 1,
            Form::Around { .. } => {
                query.centre = Some(place_at(args, 2)?);
                query.take_radius(args, 4)?;
                6
            }
            Form::AroundMember { .. } => {
                if query.set.is_some() {
                    query.take_member(args.at(2))?;
                    query.take_radius(args, 3)?;
                }
                5
            }
        };
        let mut index = first;
        while index < args.len() {
            index += query.take_option(args, index, form)?;
        }
        query.check(args, form)?;
        Ok(query)
    }

    fn take_member(&mut self, member: &[u8]) -> Result<()> {
        // A missing set is an empty result, but the options are read first.
        let Some(set) = self.set else { return Ok(()) };
        let score = set.score(member).ok_or_else(|| Error::err("could not decode requested zset member"))?;
        self.centre = Some(Place::of_score(score));
        Ok(())
    }

    fn take_radius(&mut self, args: &Args<'_>, index: usize) -> Result<()> {
        let radius = number(args, index, "need numeric radius")?;
        if radius < 0.0 {
            return Err(Error::err("radius cannot be negative"));
        }
        self.unit = unit(args.at(index + 1))?;
        self.shape = Some(Shape::Circle { radius: radius * self.unit });
        Ok(())
    }

    fn take_box(&mut self, args: &Args<'_>, index: usize) -> Result<()> {
        let width = number(args, index, "need numeric width")?;
        let height = number(args, index + 1, "need numeric height")?;
        if width < 0.0 || height < 0.0 {
            return Err(Error::err("height or width cannot be negative"));
        }
        self.unit = unit(args.at(index + 2))?;
        self.shape = Some(Shape::Box { width: width * self.unit, height: height * self.unit });
        Ok(())
    }

    /// Reads the option at `index`; returns the number of its arguments, itself included.
    fn take_option(&mut self, args: &Args<'a>, index: usize, form: Form) -> Result<usize> {
        let is = |word: &str| args.is(index, word);
        let (left, searches) = (args.len() - index - 1, matches!(form, Form::Search | Form::SearchStore));
        let may_store = matches!(form, Form::Around { stores: true } | Form::AroundMember { stores: true });
        match () {
            () if is("WITHDIST") => self.with_distance = true,
            () if is("WITHHASH") => self.with_score = true,
            () if is("WITHCOORD") => self.with_place = true,
            () if is("ANY") => self.any = true,
            () if is("ASC") => self.order = Some(true),
            () if is("DESC") => self.order = Some(false),
            () if is("COUNT") && left >= 1 => {
                let count = usize::try_from(args.integer(index + 1)?).ok().filter(|count| *count > 0);
                self.count = count.ok_or_else(|| Error::err("COUNT must be > 0"))?;
                return Ok(2);
            }
            () if may_store && left >= 1 && (is("STORE") || is("STOREDIST")) => {
                (self.store, self.stores_distance) = (Some(args.at(index + 1)), is("STOREDIST"));
                return Ok(2);
            }
            () if form == Form::SearchStore && is("STOREDIST") => self.stores_distance = true,
            () if searches => return self.take_from_or_by(args, index),
            () => return Err(Error::Syntax),
        }
        Ok(1)
    }

    /// Reads where GEOSEARCH searches.
    fn take_from_or_by(&mut self, args: &Args<'a>, index: usize) -> Result<usize> {
        let is = |word: &str| args.is(index, word);
        let left = args.len() - index - 1;
        match () {
            () if is("FROMMEMBER") && left >= 1 && self.from != Some(From::Place) => {
                self.take_member(args.at(index + 1))?;
                self.from = Some(From::Member);
                Ok(2)
            }
            () if is("FROMLONLAT") && left >= 2 && self.from != Some(From::Member) => {
                (self.centre, self.from) = (Some(place_at(args, index + 1)?), Some(From::Place));
                Ok(3)
            }
            () if is("BYRADIUS") && left >= 2 && !matches!(self.shape, Some(Shape::Box { .. })) => {
                self.take_radius(args, index + 1)?;
                Ok(3)
            }
            () if is("BYBOX") && left >= 3 && !matches!(self.shape, Some(Shape::Circle { .. })) => {
                self.take_box(args, index + 1)?;
                Ok(4)
            }
            () => Err(Error::Syntax),
        }
    }

    fn check(&self, args: &Args<'_>, form: Form) -> Result<()> {
        let searches = matches!(form, Form::Search | Form::SearchStore);
        let name = || String::from_utf8_lossy(args.at(0)).into_owned();
        match () {
            () if self.store.is_some() && (self.with_distance || self.with_score || self.with_place) => {
                let what =
                    if form == Form::SearchStore { "GEOSEARCHSTORE" } else { "STORE option in GEORADIUS" };
                Err(Error::err(format!(
                    "{what} is not compatible with WITHDIST, WITHHASH and WITHCOORD options"
                )))
            }
            () if searches && self.from.is_none() => Err(Error::err(format!(
                "exactly one of FROMMEMBER or FROMLONLAT can be specified for {}",
                name()
            ))),
            () if searches && self.shape.is_none() => {
                Err(Error::err(format!("exactly one of BYRADIUS and BYBOX can be specified for {}", name())))
            }
            () if self.any && self.count == 0 => Err(Error::err("the ANY argument requires COUNT argument")),
            () => Ok(()),
        }
    }

    /// The ranks of the members in the cells that cover the shape, cell by cell.
    fn ranks(&self) -> Vec<Range<usize>> {
        let (Some(set), Some(centre), Some(shape)) = (self.set, self.centre, self.shape) else {
            return Vec::new();
        };
        let cells = shape.cells(centre).into_iter().map(|cell| {
            let (min, max) = cell.scores();
            set.rank_of_edge(Edge::BeforeScore(min))..set.rank_of_edge(Edge::BeforeScore(max))
        });
        cells.filter(|ranks| !ranks.is_empty()).collect()
    }

    /// How many members are looked at, at most.
    fn touched(&self) -> usize {
        self.ranks().iter().map(ExactSizeIterator::len).sum()
    }

    fn run(&self) -> Vec<Found<'a>> {
        let (Some(set), Some(centre), Some(shape)) = (self.set, self.centre, self.shape) else {
            return Vec::new();
        };
        let members = self.ranks().into_iter().flat_map(|ranks| set.range(ranks));
        let found = members.filter_map(|(member, score)| {
            let place = Place::of_score(score);
            let distance = shape.distance_within(centre, place)?;
            Some(Found { member, score, place, distance })
        });
        let mut found: Vec<_> = found.take(if self.any { self.count } else { usize::MAX }).collect();
        // The nearest ones are meant, if nothing else is said.
        let is_ascending = self.order.or((self.count > 0 && !self.any).then_some(true));
        if let Some(is_ascending) = is_ascending {
            let by_distance = |a: &Found<'_>, b: &Found<'_>| a.distance.total_cmp(&b.distance);
            found.sort_by(|a, b| if is_ascending { by_distance(a, b) } else { by_distance(b, a) });
        }
        if self.count > 0 {
            found.truncate(self.count);
        }
        found
    }

    fn show(&self, reply: &mut Reply) {
        let found = self.run();
        let details =
            [self.with_distance, self.with_score, self.with_place].into_iter().filter(|is| *is).count();
        reply.array(found.len());
        for Found { member, score, place, distance } in found {
            if details > 0 {
                reply.array(details + 1);
            }
            reply.bulk(member);
            if self.with_distance {
                reply_distance(distance / self.unit, reply);
            }
            if self.with_score {
                reply.integer(score as i64);
            }
            if self.with_place {
                reply_place(place, reply);
            }
        }
    }
}

/// A search without a destination.
fn show(view: &View<'_>, args: &Args<'_>, form: Form, reply: &mut Reply) -> Result<()> {
    let query = Query::parse(view, args, form)?;
    view.check_elements(query.touched())?;
    query.show(reply);
    Ok(())
}

/// Whether a destination is one that the row's key specifications find: of several, the last one holds, and they find
/// the first.
fn is_named(args: &Args<'_>, form: Form, destination: &[u8]) -> bool {
    let from = match form {
        Form::Around { .. } => 6,
        Form::AroundMember { .. } => 5,
        Form::Search | Form::SearchStore => return true,
    };
    let specs = [stored_after("STORE", from), stored_after("STOREDIST", from)];
    specs.iter().any(|spec| spec.keys(args).contains(&destination))
}

/// A search that may have a destination.
fn show_or_store(ctx: &mut Ctx<'_>, args: &Args<'_>, form: Form, reply: &mut Reply) -> Result<()> {
    let query = Query::parse(&ctx.view(), args, form)?;
    if let Some(destination) = query.store.filter(|key| !is_named(args, form, key)) {
        fence::admit_key(&ctx.view(), destination)?;
    }
    let touched = query.touched();
    ctx.check_elements(touched)?;
    let view = ctx.view();
    let query = Query::parse(&view, args, form)?;
    let Some(destination) = query.store.map(<[u8]>::to_vec) else {
        // Only the node whose client waits needs to look.
        if reply.is_on() {
            query.show(reply);
        }
        return Ok(());
    };
    let found: Vec<(Vec<u8>, f64)> = query
        .run()
        .into_iter()
        .map(|found| {
            let score = if query.stores_distance { found.distance / query.unit } else { found.score };
            (found.member.to_vec(), score)
        })
        .collect();
    ctx.check_memory_of(found.iter().map(|(member, _)| member.len()), 2)?;
    sorted_set::store(ctx, &destination, &found, reply);
    Ok(())
}

fn geosearch(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    show(view, args, Form::Search, reply)
}

fn geosearchstore(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    show_or_store(ctx, args, Form::SearchStore, reply)
}

fn georadius(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    show_or_store(ctx, args, Form::Around { stores: true }, reply)
}

fn georadius_ro(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    show(view, args, Form::Around { stores: false }, reply)
}

fn georadiusbymember(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    show_or_store(ctx, args, Form::AroundMember { stores: true }, reply)
}

fn georadiusbymember_ro(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    show(view, args, Form::AroundMember { stores: false }, reply)
}
