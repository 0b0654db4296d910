//! SORT: the elements of a list, a set or a sorted set in another order.

use std::{borrow::Cow, cmp::Ordering};

use super::GROUP;
use crate::{
    args::{Args, parse_float},
    commands::{
        Spec,
        coordination::fence,
        keys::{self, Access, Begin, Find, KeySpec},
    },
    error::{Error, Result},
    resp::Reply,
    store::{BYTES_OF_AN_ELEMENT, Ctx, Deadline, End, Hash, List, Set, SortedSet, View, level},
};

const COMPLEXITY: &str = "O(N+M*log(M)) where N is the number of elements in the list or set to sort, and M the number \
                          of returned elements. When the elements are not sorted, complexity is O(N).";
const ACL: &[&str] = &["set", "sortedset", "list", "dangerous"];

/// Keys that cannot be told from the call.
const fn unknown(access: Access, uses: &'static str, notes: &'static str) -> KeySpec {
    KeySpec { begin: Begin::Unknown, find: Find::Unknown, notes, ..keys::one(1, access, uses) }
}

const SORTED: KeySpec = keys::one(1, Access::Ro, "access");
const BY_AND_GET: KeySpec = unknown(
    Access::Ro,
    "access",
    "For the optional BY/GET keyword. It is marked 'unknown' because the key names derive from the content of the key \
     we sort",
);
const STORED: KeySpec = unknown(
    Access::Ow,
    "update",
    "For the optional STORE keyword. It is marked 'unknown' because the keyword can appear anywhere in the argument \
     array",
);

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::write("SORT", -2, &[SORTED, BY_AND_GET, STORED], sort)
        .about(&["write", "denyoom"], GROUP, "1.0.0", "Sort a list, a set or a sorted set")
        .syntax(
            "key [BY pattern:pattern#1] [LIMIT offset_count=(offset:integer count:integer)] [GET pattern:pattern#1...*] \
             [order=<ASC|DESC>] [sorting=ALPHA] [STORE destination:key#2]",
        )
        .complexity(COMPLEXITY)
        .acl(ACL)
        .from_level(level::TYPES),
    Spec::read("SORT_RO", -2, &[SORTED, BY_AND_GET], sort_ro)
        .about(&["readonly"], GROUP, "7.0.0", "Sort a list, a set or a sorted set, without a destination")
        .syntax(
            "key [BY pattern:pattern#1] [LIMIT offset_count=(offset:integer count:integer)] [GET pattern:pattern#1...*] \
             [order=<ASC|DESC>] [sorting=ALPHA]",
        )
        .complexity(COMPLEXITY)
        .acl(ACL)
        .from_level(level::TYPES),
];

/// A call.
#[derive(Default)]
struct Query<'a> {
    /// Sort by what is at these keys. Without a `*` the elements are not sorted.
    by: Option<&'a [u8]>,
    /// Reply with what is at these keys instead of the elements.
    gets: Vec<&'a [u8]>,
    offset: i64,
    /// The most elements; negative for all.
    count: i64,
    descends: bool,
    by_text: bool,
    destination: Option<&'a [u8]>,
}

impl<'a> Query<'a> {
    fn parse(args: &Args<'a>, may_store: bool) -> Result<Query<'a>> {
        let mut query = Query { count: -1, ..Query::default() };
        let mut index = 2;
        while index < args.len() {
            let left = args.len() - index - 1;
            let taken = match () {
                () if args.is(index, "ASC") || args.is(index, "DESC") => {
                    query.descends = args.is(index, "DESC");
                    0
                }
                () if args.is(index, "ALPHA") => {
                    query.by_text = true;
                    0
                }
                () if args.is(index, "LIMIT") && left >= 2 => {
                    (query.offset, query.count) = (args.integer(index + 1)?, args.integer(index + 2)?);
                    2
                }
                () if may_store && args.is(index, "STORE") && left >= 1 => {
                    query.destination = args.get(index + 1);
                    1
                }
                () if args.is(index, "BY") && left >= 1 => {
                    query.by = args.get(index + 1);
                    1
                }
                () if args.is(index, "GET") && left >= 1 => {
                    query.gets.extend(args.get(index + 1));
                    1
                }
                () => return Err(Error::Syntax),
            };
            index += 1 + taken;
        }
        Ok(query)
    }

    /// The elements that are wanted, in their order.
    fn run<'v>(&self, view: &View<'v>, source: &Source<'v>) -> Result<Vec<Cow<'v, [u8]>>> {
        let mut is_sorted = self.by.is_none_or(|pattern| pattern.contains(&b'*'));
        let (mut by, mut by_text) = (self.by.filter(|_| is_sorted), self.by_text);
        if !is_sorted && self.destination.is_some() && matches!(source, Source::Set(_)) {
            // What is stored has an order that does not depend on how a set is stored.
            (is_sorted, by, by_text) = (true, None, true);
        }
        let mut elements = source.elements();
        if is_sorted {
            elements = self.sorted(view, elements, by, by_text)?;
        } else if self.descends && !matches!(source, Source::Set(_)) {
            elements.reverse();
        }
        let len = elements.len();
        let offset = usize::try_from(self.offset).unwrap_or(0).min(len);
        let count = usize::try_from(self.count).unwrap_or(len).min(len - offset);
        Ok(elements.drain(offset..offset + count).collect())
    }

    fn sorted<'v>(
        &self,
        view: &View<'v>,
        elements: Vec<Cow<'v, [u8]>>,
        by: Option<&[u8]>,
        by_text: bool,
    ) -> Result<Vec<Cow<'v, [u8]>>> {
        let weigh = |element: Cow<'v, [u8]>| {
            let text = match by {
                Some(pattern) => looked_up(view, pattern, &element),
                None => Some(element.clone()),
            };
            let weight = match text {
                text if by_text => Weight::Text(text),
                Some(text) => Weight::Number(number(&text)?),
                None => Weight::Number(0.0),
            };
            Ok((weight, element))
        };
        let mut weighed = elements.into_iter().map(weigh).collect::<Result<Vec<_>>>()?;
        // As in Redis, what is only shown is compared as C compares texts, which end at a zero byte.
        let is_whole = self.destination.is_some();
        weighed.sort_by(|(a, element), (b, other)| {
            let order = match (a, b) {
                (Weight::Number(a), Weight::Number(b)) => a.total_cmp(b).then_with(|| element.cmp(other)),
                (Weight::Text(a), Weight::Text(b)) if is_whole => a.cmp(b),
                (Weight::Text(a), Weight::Text(b)) => a.as_deref().map(c_text).cmp(&b.as_deref().map(c_text)),
                _ => Ordering::Equal,
            };
            if self.descends { order.reverse() } else { order }
        });
        Ok(weighed.into_iter().map(|(_, element)| element).collect())
    }

    /// What is told of an element: itself, or what its keys hold.
    fn told<'v>(&self, view: &View<'v>, element: Cow<'v, [u8]>) -> Vec<Option<Cow<'v, [u8]>>> {
        if self.gets.is_empty() {
            return vec![Some(element)];
        }
        self.gets.iter().map(|pattern| looked_up(view, pattern, &element)).collect()
    }

    /// How many elements it touches, with what is looked up for them.
    fn touched(&self, source: &Source<'_>) -> usize {
        let patterns = self.gets.iter().chain(&self.by);
        let of_each: usize = patterns.map(|pattern| 1 + pattern.len() / BYTES_OF_AN_ELEMENT).sum();
        source.len().saturating_mul(1 + of_each)
    }
}

/// By what an element is sorted.
enum Weight<'v> {
    Number(f64),
    Text(Option<Cow<'v, [u8]>>),
}

/// What C takes for the text.
fn c_text(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// A weight, as C's `strtod` reads it: empty text is 0.
fn number(text: &[u8]) -> Result<f64> {
    let trimmed = text.trim_ascii_start();
    let is_nothing = text.is_empty();
    // The two zeros are one number.
    let number = if is_nothing { Some(0.0) } else { parse_float(trimmed).map(|number| number + 0.0) };
    number.ok_or_else(|| Error::err("One or more scores can't be converted into double"))
}

/// What a pattern leads to: the element itself for `#`; otherwise the string at the key that has the element in
/// place of the `*`, or a field of the hash there.
fn looked_up<'v>(view: &View<'v>, pattern: &[u8], element: &Cow<'v, [u8]>) -> Option<Cow<'v, [u8]>> {
    if pattern == b"#" {
        return Some(element.clone());
    }
    let star = pattern.iter().position(|&byte| byte == b'*')?;
    let after = &pattern[star + 1..];
    let arrow = after.windows(2).position(|pair| pair == b"->").filter(|at| at + 2 < after.len());
    let key = [&pattern[..star], element, &after[..arrow.unwrap_or(after.len())]].concat();
    match arrow {
        Some(at) => view.value::<Hash>(&key).ok().flatten()?.get(&after[at + 2..]).map(Cow::Borrowed),
        None => view.string(&key).ok().flatten().map(Cow::Borrowed),
    }
}

/// What is sorted.
enum Source<'v> {
    List(&'v List),
    Set(&'v Set),
    Sorted(&'v SortedSet),
    Missing,
}

impl<'v> Source<'v> {
    fn at(view: &View<'v>, key: &[u8]) -> Result<Source<'v>> {
        if let Ok(list) = view.value::<List>(key) {
            return Ok(list.map_or(Source::Missing, Source::List));
        }
        if let Ok(Some(set)) = view.value::<Set>(key) {
            return Ok(Source::Set(set));
        }
        Ok(view.value::<SortedSet>(key)?.map_or(Source::Missing, Source::Sorted))
    }

    fn len(&self) -> usize {
        match self {
            Source::List(list) => list.len(),
            Source::Set(set) => set.len(),
            Source::Sorted(set) => set.len(),
            Source::Missing => 0,
        }
    }

    fn elements(&self) -> Vec<Cow<'v, [u8]>> {
        match self {
            Source::List(list) => list.iter().map(Cow::Borrowed).collect(),
            Source::Set(set) => set.iter().map(|member| member.into_name()).collect(),
            Source::Sorted(set) => set.iter().map(|(member, _)| Cow::Borrowed(member)).collect(),
            Source::Missing => Vec::new(),
        }
    }
}

fn show(view: &View<'_>, source: &Source<'_>, query: &Query<'_>, reply: &mut Reply) -> Result<()> {
    let elements = query.run(view, source)?;
    reply.array(elements.len() * query.gets.len().max(1));
    for element in elements {
        query.told(view, element).iter().for_each(|told| reply.bulk_or_null(told.as_deref()));
    }
    Ok(())
}

fn sort_ro(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (query, source) = (Query::parse(args, false)?, Source::at(view, args.at(1))?);
    view.check_elements(query.touched(&source))?;
    show(view, &source, &query, reply)
}

fn sort(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let query = Query::parse(args, true)?;
    let touched = query.touched(&Source::at(&ctx.view(), args.at(1))?);
    ctx.check_elements(touched)?;
    let view = ctx.view();
    let Some(destination) = query.destination else {
        // Only the node whose client waits needs to sort.
        return if reply.is_on() {
            show(&view, &Source::at(&view, args.at(1))?, &query, reply)
        } else {
            Ok(())
        };
    };
    fence::admit_key(&view, destination)?;
    let elements = query.run(&view, &Source::at(&view, args.at(1))?)?.into_iter();
    let told = elements.flat_map(|element| query.told(&view, element));
    // What is looked up may be large, and the same many times: it is not copied before it is known to fit.
    let told: Vec<Cow<'_, [u8]>> = told.map(Option::unwrap_or_default).collect();
    ctx.check_memory_of(told.iter().map(|told| told.len()), 1)?;
    let told: Vec<Vec<u8>> = told.into_iter().map(Cow::into_owned).collect();
    let list = ctx.build::<List>(|list, pages| {
        told.iter().for_each(|element| list.push(End::Right, element, pages));
    });
    ctx.put(destination, list, Deadline::None);
    reply.size(told.len());
    Ok(())
}
