//! Takes an array apart that this server has written, without copying its long values. A transaction's replies need it:
//! those of commands of the connection come between the others.

use super::Replies;

/// What is left of an array's elements.
pub struct Elements(Replies);

impl Elements {
    /// The elements of an array. Err with all of it if it is null, an error or nothing.
    pub fn of(mut replies: Replies) -> Result<Elements, Replies> {
        let first = replies.parts(0).next().unwrap_or_default();
        if first.first() != Some(&b'*') || first.starts_with(b"*-1") {
            return Err(replies);
        }
        let header = first.iter().position(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        replies.split_to(header);
        Ok(Elements(replies))
    }

    /// The next element, whatever that contains.
    pub fn next_element(&mut self) -> Replies {
        let len = len_of_first(&self.0);
        self.0.split_to(len)
    }
}

/// The length of the first reply.
fn len_of_first(replies: &Replies) -> usize {
    let mut parts = replies.parts(0);
    // `rest` is what follows in the present part, of which the first `skipped` bytes are content.
    let (mut rest, mut skipped): (&[u8], usize) = (&[], 0);
    let (mut passed, mut missing) = (0, 1);
    while missing > 0 {
        while skipped >= rest.len() {
            skipped -= rest.len();
            rest = parts.next().expect("a reply that this server wrote is whole");
        }
        let line = &rest[skipped..];
        let end = line.iter().position(|&byte| byte == b'\n').expect("a line is in one piece");
        let number = || {
            let digits = line.get(1..end.saturating_sub(1)).unwrap_or_default();
            // A null has a negative number, and nothing follows it.
            crate::args::parse_integer(digits).and_then(|number| usize::try_from(number).ok())
        };
        (rest, skipped) = (&line[end + 1..], 0);
        missing -= 1;
        match line[0] {
            b'$' | b'=' => skipped = number().map_or(0, |len| len + 2),
            b'*' | b'~' | b'>' => missing += number().unwrap_or(0),
            b'%' => missing += 2 * number().unwrap_or(0),
            _ => {}
        }
        passed += end + 1 + skipped;
    }
    passed
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::Elements;
    use crate::{
        error::Error,
        resp::{Protocol, Replies, Reply},
    };

    #[test]
    fn an_array_is_taken_apart_where_its_elements_end() {
        let value = Bytes::from(vec![b'\n'; 100_000]);
        let elements: [&dyn Fn(&mut Reply); 12] = [
            &|reply| reply.ok(),
            &|reply| reply.error(&Error::Syntax),
            &|reply| reply.integer(-7),
            &|reply| reply.bulk(b"$9\r\n"),
            &|reply| reply.null(),
            &|reply| reply.null_array(),
            &|reply| reply.bulk_or_share(&value, || value.clone()),
            &|reply| {
                reply.map(2);
                (0..2).for_each(|_| reply.bulk_or_share(&value, || value.clone()));
                reply.double(1.5);
                reply.set(0);
            },
            &|reply| {
                reply.array(2);
                reply.array(1);
                reply.bulk(b"");
                reply.boolean(true);
            },
            &|reply| reply.verbatim("txt", "text"),
            &|reply| reply.bulk_or_share(&value, || value.clone()),
            &|reply| reply.array(0),
        ];
        for protocol in [Protocol::Resp2, Protocol::Resp3] {
            let mut whole = Reply::new(Replies::default(), protocol);
            whole.array(elements.len());
            elements.iter().for_each(|write| write(&mut whole));
            let mut taken = Elements::of(whole.into_buffer()).ok().unwrap();
            for (number, write) in elements.iter().enumerate() {
                let mut alone = Reply::new(Replies::default(), protocol);
                write(&mut alone);
                let element = taken.next_element();
                let is_shared = element.parts(0).any(|part| part.as_ptr() == value.as_ptr());
                assert_eq!(is_shared, [6, 7, 10].contains(&number));
                assert!(element.into_bytes() == alone.into_buffer().into_bytes(), "{protocol:?} {number}");
            }
            assert!(taken.0.is_empty());
        }
    }

    #[test]
    fn what_is_no_array_stays_whole() {
        for text in ["", "*-1\r\n", "_\r\n", "-ERR no\r\n"] {
            let replies = Replies::from(text.as_bytes().to_vec());
            assert_eq!(Elements::of(replies).err().unwrap().into_bytes(), text.as_bytes());
        }
    }
}
