//! Lists: reading, finding and changing elements by index or value.

use crate::commands::{
    Spec, keys,
    list::{GROUP, READ, WRITE},
};
use crate::{
    args::{Args, parse_integer},
    error::{Error, Result},
    resp::Reply,
    store::{Ctx, End, List, View},
};

/// Writes that never need memory.
const TAKE: &[&str] = &["write"];

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::read("LRANGE", 4, keys::READ, lrange)
        .about(READ, GROUP, "1.0.0", "Get a range of elements from a list")
        .syntax("key start:integer stop:integer")
        .complexity(
            "O(S+N) where S is the distance of start offset from HEAD for small lists, from nearest \
             end for large lists",
        ),
    Spec::read("LINDEX", 3, keys::READ, lindex)
        .about(READ, GROUP, "1.0.0", "Get an element from a list by its index")
        .syntax("key index:integer")
        .complexity("O(N) where N is the number of elements to traverse to get to the element at index"),
    Spec::read("LPOS", -3, keys::READ, lpos)
        .about(READ, GROUP, "6.0.6", "Return the index of matching elements on a list")
        .syntax("key element [RANK rank:integer] [COUNT num-matches:integer] [MAXLEN len:integer]")
        .complexity("O(N) where N is the number of elements in the list, for the average case"),
    Spec::write("LSET", 4, keys::UPDATE, lset)
        .about(WRITE, GROUP, "1.0.0", "Set the value of an element in a list by its index")
        .syntax("key index:integer element")
        .complexity("O(N) where N is the length of the list"),
    Spec::write("LINSERT", 5, keys::INSERT, linsert)
        .about(WRITE, GROUP, "2.2.0", "Insert an element before or after another element in a list")
        .syntax("key where=<BEFORE|AFTER> pivot element")
        .complexity("O(N) where N is the number of elements to traverse before seeing the value pivot"),
    Spec::write("LREM", 4, keys::DELETE, lrem)
        .about(TAKE, GROUP, "1.0.0", "Remove elements from a list")
        .syntax("key count:integer element")
        .complexity("O(N+M) where N is the length of the list and M is the number of elements removed"),
    Spec::write("LTRIM", 4, keys::DELETE, ltrim)
        .about(TAKE, GROUP, "1.0.0", "Trim a list to the specified range")
        .syntax("key start:integer stop:integer")
        .complexity("O(N) where N is the number of elements to be removed by the operation"),
];

/// The first element of a range and its number of elements; both ends are inclusive, and negative indexes
/// count from the end.
fn range_of(len: usize, start: i64, end: i64) -> (usize, usize) {
    let len = len as i64;
    let from_left = |index: i64| if index < 0 { index.saturating_add(len) } else { index };
    let (start, end) = (from_left(start).max(0), from_left(end).min(len - 1));
    if start > end { (0, 0) } else { (start as usize, (end - start + 1) as usize) }
}

/// The index of an element; negative ones count from the end. None if it is out of range.
fn index_of(len: usize, index: i64) -> Option<usize> {
    let index = if index < 0 { index.saturating_add(len as i64) } else { index };
    usize::try_from(index).ok().filter(|&index| index < len)
}

fn lrange(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (start, end) = (args.integer(2)?, args.integer(3)?);
    let Some(list) = view.value::<List>(args.at(1))? else {
        reply.array(0);
        return Ok(());
    };
    let (first, count) = range_of(list.len(), start, end);
    view.check_elements(count)?;
    reply.array(count);
    list.iter_from(first).take(count).for_each(|element| reply.bulk(element));
    Ok(())
}

fn lindex(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let Some(list) = view.value::<List>(args.at(1))? else {
        reply.null();
        return Ok(());
    };
    let index = index_of(list.len(), args.integer(2)?);
    reply.bulk_or_null(index.and_then(|index| list.get(index)));
    Ok(())
}

/// The options of LPOS.
struct Search {
    /// Which match to return first, counted from 1; negative from the end; never 0.
    rank: i64,
    /// The number of matches; 0 for all, None for a single one that is not in an array.
    count: Option<usize>,
    /// How many elements to compare; 0 for all.
    looks_max: usize,
}

impl Search {
    fn parse(args: &Args<'_>, first: usize) -> Result<Search> {
        let mut search = Search { rank: 1, count: None, looks_max: 0 };
        for index in (first..args.len()).step_by(2) {
            let value = args.get(index + 1).ok_or(Error::Syntax)?;
            let size = |what: &str| {
                let size = parse_integer(value).and_then(|size| usize::try_from(size).ok());
                size.ok_or_else(|| Error::err(format!("{what} can't be negative")))
            };
            if args.is(index, "RANK") {
                search.rank = rank_of(args, index + 1)?;
            } else if args.is(index, "COUNT") {
                search.count = Some(size("COUNT")?);
            } else if args.is(index, "MAXLEN") {
                search.looks_max = size("MAXLEN")?;
            } else {
                return Err(Error::Syntax);
            }
        }
        Ok(search)
    }

    /// The indexes of the matches, in the order of the search.
    fn run(&self, list: &List, element: &[u8]) -> Vec<usize> {
        let looks_max = if self.looks_max == 0 { usize::MAX } else { self.looks_max };
        let matches_max = match self.count {
            None => 1,
            Some(0) => usize::MAX,
            Some(count) => count,
        };
        let skipped = self.rank.unsigned_abs() as usize - 1;
        let is_match = |&(_, present): &(usize, &[u8])| present == element;
        let last = list.len() - 1;
        if self.rank > 0 {
            let found = list.iter().enumerate().take(looks_max).filter(is_match);
            found.skip(skipped).take(matches_max).map(|(index, _)| index).collect()
        } else {
            let found = list.iter().rev().enumerate().take(looks_max).filter(is_match);
            found.skip(skipped).take(matches_max).map(|(index, _)| last - index).collect()
        }
    }
}

fn rank_of(args: &Args<'_>, index: usize) -> Result<i64> {
    match args.integer(index)? {
        0 => Err(Error::err(
            "RANK can't be zero: use 1 to start from the first match, 2 from the second ... or use negative to \
             start from the end of the list",
        )),
        i64::MIN => Err(Error::err(format!(
            "value is out of range, value must between {} and {}",
            -i64::MAX,
            i64::MAX
        ))),
        rank => Ok(rank),
    }
}

fn lpos(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let search = Search::parse(args, 3)?;
    let found = match view.value::<List>(args.at(1))? {
        Some(list) => {
            let len = list.len();
            view.check_elements(if search.looks_max == 0 { len } else { search.looks_max.min(len) })?;
            search.run(list, args.at(2))
        }
        None => Vec::new(),
    };
    if search.count.is_some() {
        reply.array(found.len());
        found.iter().for_each(|&index| reply.size(index));
    } else {
        match found.first() {
            Some(&index) => reply.size(index),
            None => reply.null(),
        }
    }
    Ok(())
}

fn lset(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let set = ctx.modify(args.at(1), |list: &mut List, pages| {
        let index = index_of(list.len(), args.integer(2)?).ok_or(Error::IndexOutOfRange)?;
        list.set(index, args.at(3), pages);
        Ok(())
    })?;
    set.ok_or(Error::NoSuchKey)?;
    reply.ok();
    Ok(())
}

fn linsert(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let offset = match () {
        _ if args.is(2, "BEFORE") => 0,
        _ if args.is(2, "AFTER") => 1,
        _ => return Err(Error::Syntax),
    };
    let len = ctx.modify(args.at(1), |list: &mut List, pages| {
        pages.check_elements(list.len())?;
        let Some(pivot) = list.iter().position(|element| element == args.at(3)) else {
            pages.unchanged();
            return Ok(-1);
        };
        list.insert(pivot + offset, args.at(4), pages);
        Ok(list.len() as i64)
    })?;
    reply.integer(len.unwrap_or(0));
    Ok(())
}

fn lrem(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let count = args.integer(2)?;
    let from = if count < 0 { End::Right } else { End::Left };
    let max = if count == 0 { usize::MAX } else { count.unsigned_abs() as usize };
    let removed = ctx.modify(args.at(1), |list: &mut List, pages| {
        pages.check_elements(list.len())?;
        let removed = list.remove_equal(args.at(3), max, from, pages);
        if removed == 0 {
            pages.unchanged();
        }
        Ok(removed)
    })?;
    reply.size(removed.unwrap_or(0));
    Ok(())
}

fn ltrim(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (start, end) = (args.integer(2)?, args.integer(3)?);
    ctx.modify(args.at(1), |list: &mut List, pages| {
        let len = list.len();
        let (first, count) = range_of(len, start, end);
        pages.check_elements(len - count)?;
        if count == 0 {
            list.drop_end(End::Left, len, pages);
        } else {
            list.drop_end(End::Right, len - first - count, pages);
            list.drop_end(End::Left, first, pages);
        }
        Ok(())
    })?;
    reply.ok();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::range_of;

    #[test]
    fn ranges_are_those_of_redis() {
        for (start, end, expected) in [
            (0, -1, (0, 3)),
            (1, 1, (1, 1)),
            (-2, -1, (1, 2)),
            (-100, 100, (0, 3)),
            (2, 1, (0, 0)),
            (3, 5, (0, 0)),
            (i64::MIN, i64::MAX, (0, 3)),
            (0, i64::MIN, (0, 0)),
        ] {
            assert_eq!(range_of(3, start, end), expected, "{start} {end}");
        }
    }
}
