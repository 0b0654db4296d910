//! Glob patterns as Redis matches them (KEYS, SCAN MATCH, PSUBSCRIBE, ACL): bytes, not characters.
//!
//! `*` matches any bytes, `?` one byte, `[a-c]` and `[^a-c]` one byte of a set; `\` escapes the next byte. A
//! pattern is never malformed: a set without its `]` extends to the end of the pattern, as in Redis.

use std::cell::Cell;

/// Steps that a [`Matcher`] may take in all, besides [`STEPS_A_BYTE`] for each byte of text: a few
/// milliseconds.
const STEPS_MAX: u64 = 1 << 22;
/// Steps allowed for each byte of text. No pattern shorter than this many bytes needs more.
const STEPS_A_BYTE: u64 = 64;

/// A pattern, with a bound on the work: linear in the text that it is compared with. Without the bound the
/// work is the product of both lengths, which is minutes for one pattern and one text of a megabyte each.
///
/// Invariant: a match that would exceed the bound counts as no match, and sets `has_given_up`.
#[derive(Debug)]
pub struct Matcher<'a> {
    pattern: &'a [u8],
    steps_left: Cell<u64>,
    has_given_up: Cell<bool>,
}

impl<'a> Matcher<'a> {
    /// With the bound.
    pub fn new(pattern: &'a [u8]) -> Matcher<'a> {
        Matcher { pattern, steps_left: Cell::new(STEPS_MAX), has_given_up: Cell::new(false) }
    }

    /// Without the bound.
    pub fn unbounded(pattern: &'a [u8]) -> Matcher<'a> {
        Matcher { steps_left: Cell::new(u64::MAX), ..Matcher::new(pattern) }
    }

    /// Whether all of `text` matches; false, too, when the bound is reached.
    pub fn matches(&self, text: &[u8]) -> bool {
        let mut left = self.steps_left.get().saturating_add(STEPS_A_BYTE * (text.len() as u64 + 1));
        let result = matches_within(self.pattern, text, &mut left);
        self.steps_left.set(left);
        self.has_given_up.set(self.has_given_up.get() || result.is_none());
        result == Some(true)
    }

    /// Whether a match was abandoned because it would have taken too many steps.
    pub fn has_given_up(&self) -> bool {
        self.has_given_up.get()
    }
}

/// Whether all of `text` matches `pattern`. Takes at most about (pattern length) * (text length) steps.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    matches_within(pattern, text, &mut { u64::MAX }).expect("no text is so long")
}

/// The same in at most `steps_left` steps. None if it takes more.
fn matches_within(pattern: &[u8], text: &[u8], steps_left: &mut u64) -> Option<bool> {
    let (mut pattern_at, mut text_at) = (0, 0);
    // Where to resume when what follows the last star does not match: the star then takes one more byte.
    // Earlier stars need no backtracking, because the last one can take whatever they could.
    let mut star: Option<(usize, usize)> = None;
    while text_at < text.len() {
        let (is_match, used) = match pattern.get(pattern_at) {
            Some(b'*') => {
                star = Some((pattern_at + 1, text_at));
                pattern_at += 1;
                *steps_left = steps_left.checked_sub(1)?;
                continue;
            }
            Some(_) => match_one(&pattern[pattern_at..], text[text_at]),
            None => (false, 0),
        };
        *steps_left = steps_left.checked_sub(used.max(1) as u64)?;
        match star {
            _ if is_match => {
                pattern_at += used;
                text_at += 1;
            }
            Some((after_star, taken)) => {
                star = Some((after_star, taken + 1));
                (pattern_at, text_at) = (after_star, taken + 1);
            }
            None => return Some(false),
        }
    }
    Some(pattern[pattern_at..].iter().all(|&byte| byte == b'*'))
}

/// Whether the first element of a nonempty pattern matches a byte, and the length of that element.
fn match_one(pattern: &[u8], byte: u8) -> (bool, usize) {
    match pattern {
        [b'?', ..] => (true, 1),
        [b'[', set @ ..] => {
            let (is_member, used) = match_set(set, byte);
            (is_member, 1 + used)
        }
        [b'\\', literal, ..] => (*literal == byte, 2),
        [literal, ..] => (*literal == byte, 1),
        [] => (false, 0),
    }
}

/// Whether a byte is in the set, given from after its `[`, and the length of the set including its `]`.
fn match_set(set: &[u8], byte: u8) -> (bool, usize) {
    let is_negated = set.first() == Some(&b'^');
    let mut at = usize::from(is_negated);
    let mut is_member = false;
    loop {
        match &set[at..] {
            [] => break,
            [b']', ..] => {
                at += 1;
                break;
            }
            [b'\\', literal, ..] => {
                is_member |= *literal == byte;
                at += 2;
            }
            [first, b'-', last, ..] => {
                is_member |= (*first.min(last)..=*first.max(last)).contains(&byte);
                at += 3;
            }
            [literal, ..] => {
                is_member |= *literal == byte;
                at += 1;
            }
        }
    }
    (is_member != is_negated, at)
}

#[cfg(test)]
mod tests {
    use super::{Matcher, matches};

    #[test]
    fn patterns_match_as_in_redis() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-c-", false),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h[ae]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("h[a-", "h-", true),
            ("h[a", "ha", true),
            ("h[", "h", false),
            ("[^]a", "xa", true),
            (r"\*", "*", true),
            (r"\*", "a", false),
            (r"a\", r"a\", true),
            (r"[\]]", "]", true),
            ("a**", "a", true),
            ("a?", "a", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_matcher_gives_up() {
        let text = "a".repeat(1 << 16);
        for pattern in [format!("*{}b", "a".repeat(1 << 15)), format!("*[{}]", "b".repeat(1 << 15))] {
            let matcher = Matcher::new(pattern.as_bytes());
            assert!(!matcher.matches(text.as_bytes()) && matcher.has_given_up());
        }
        let matcher = Matcher::new(b"*abcabcabcabcabcabcabcabcabcabcabc*d");
        (0..300).for_each(|_| assert!(!matcher.matches(text.as_bytes())));
        assert!(!matcher.has_given_up());
    }

    #[test]
    fn hostile_patterns_are_not_slow() {
        let pattern = "a*".repeat(100) + "b";
        assert!(!matches(pattern.as_bytes(), "a".repeat(10_000).as_bytes()));
    }
}
