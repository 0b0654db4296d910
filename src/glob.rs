//! Glob patterns as Redis matches them (KEYS, SCAN MATCH, PSUBSCRIBE, ACL): bytes, not characters.
//!
//! `*` any bytes, `?` one byte, `[a-c]` and `[^a-c]` one byte of a set, `\` takes the next byte as it is. A
//! pattern is never malformed: a set without an end goes to the end of the pattern, as in Redis.

/// Whether all of `text` matches `pattern`. Takes at most about (pattern length) * (text length) steps.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut pattern_at, mut text_at) = (0, 0);
    // Where to go on if what follows the last star does not match: the star takes one byte more. Earlier stars
    // need no second try, because the last one takes whatever they could.
    let mut star: Option<(usize, usize)> = None;
    while text_at < text.len() {
        let step = match pattern.get(pattern_at) {
            Some(b'*') => {
                star = Some((pattern_at + 1, text_at));
                pattern_at += 1;
                continue;
            }
            Some(_) => match_one(&pattern[pattern_at..], text[text_at]),
            None => None,
        };
        match (step, star) {
            (Some(used), _) => {
                pattern_at += used;
                text_at += 1;
            }
            (None, Some((after_star, taken))) => {
                star = Some((after_star, taken + 1));
                (pattern_at, text_at) = (after_star, taken + 1);
            }
            (None, None) => return false,
        }
    }
    pattern[pattern_at..].iter().all(|&byte| byte == b'*')
}

/// Matches one byte by the beginning of a pattern that is not empty; gives how much of the pattern it used.
fn match_one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'[', set @ ..] => {
            let (is_member, used) = match_set(set, byte);
            is_member.then_some(1 + used)
        }
        [b'\\', literal, ..] => (*literal == byte).then_some(2),
        [literal, ..] => (*literal == byte).then_some(1),
        [] => None,
    }
}

/// Whether a byte is of the set that begins after its `[`; and how long the set is, its `]` included.
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
    use super::matches;

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
    fn hostile_patterns_are_not_slow() {
        let pattern = "a*".repeat(100) + "b";
        assert!(!matches(pattern.as_bytes(), "a".repeat(10_000).as_bytes()));
    }
}
