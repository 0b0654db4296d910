//! Reading and writing the serialized form of pages: LEB128 varints and length-prefixed bytes.
//!
//! The page store guards pages with its own CRC. Decoding is total nevertheless: any input gives a value or
//! an error that says what was expected, never a panic, and never an allocation larger than the input.

/// The first byte of every page and head.
pub const FORMAT: u8 = 1;

/// Appends a LEB128 varint.
#[inline]
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed number as a zigzag varint, short when it is near 0.
pub fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)).cast_unsigned());
}

/// Appends length-prefixed bytes.
#[inline]
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A cursor over serialized bytes.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    /// Reads `bytes` from the beginning.
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input { rest: bytes }
    }

    /// Reads a page or head: checks its format byte.
    pub fn page(bytes: &'a [u8]) -> Result<Input<'a>, String> {
        let mut input = Input::new(bytes);
        match input.byte()? {
            FORMAT => Ok(input),
            other => Err(format!("format {other} is not known to this version")),
        }
    }

    /// The next byte.
    pub fn byte(&mut self) -> Result<u8, String> {
        let (&byte, rest) = self.rest.split_first().ok_or("a byte is missing")?;
        self.rest = rest;
        Ok(byte)
    }

    /// A LEB128 varint.
    pub fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a varint is longer than ten bytes".into())
    }

    /// A signed number.
    pub fn signed(&mut self) -> Result<i64, String> {
        let value = self.varint()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// A count or size.
    pub fn size(&mut self) -> Result<usize, String> {
        usize::try_from(self.varint()?).map_err(|_| "a size is out of range".into())
    }

    /// Length-prefixed bytes.
    pub fn bytes(&mut self) -> Result<&'a [u8], String> {
        let len = self.size()?;
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or("bytes are missing")?;
        self.rest = rest;
        Ok(bytes)
    }

    /// Bytes prefixed with their length in four bytes, little-endian.
    pub fn fixed_bytes(&mut self) -> Result<&'a [u8], String> {
        let (len, rest) = self.rest.split_first_chunk::<4>().ok_or("a length is missing")?;
        let (bytes, rest) =
            rest.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or("bytes are missing")?;
        self.rest = rest;
        Ok(bytes)
    }

    /// A floating-point number of eight bytes.
    pub fn double(&mut self) -> Result<f64, String> {
        let (bytes, rest) = self.rest.split_first_chunk::<8>().ok_or("a number is missing")?;
        self.rest = rest;
        Ok(f64::from_le_bytes(*bytes))
    }

    /// Whether nothing is left.
    pub fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// All that is left.
    pub fn take_rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Checks that nothing is left.
    pub fn end(&self) -> Result<(), String> {
        if self.rest.is_empty() { Ok(()) } else { Err(format!("{} bytes too many", self.rest.len())) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Input, put_bytes, put_signed, put_varint};

    #[test]
    fn what_is_written_is_read() {
        let mut out = Vec::new();
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            put_varint(&mut out, value);
        }
        for value in [0, -1, 1, -86_400_000, i64::MIN, i64::MAX] {
            put_signed(&mut out, value);
        }
        put_bytes(&mut out, b"key");
        let mut input = Input::new(&out);
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            assert_eq!(input.varint(), Ok(value));
        }
        for value in [0, -1, 1, -86_400_000, i64::MIN, i64::MAX] {
            assert_eq!(input.signed(), Ok(value));
        }
        assert_eq!(input.bytes(), Ok(b"key".as_slice()));
        assert_eq!(input.end(), Ok(()));
        assert!(input.byte().is_err());
    }

    #[test]
    fn malformed_bytes_are_errors() {
        assert!(Input::new(&[0x80; 11]).varint().is_err());
        assert!(Input::new(&[5, 1, 2]).bytes().is_err());
        assert!(Input::page(&[99]).is_err());
        assert!(Input::page(&[]).is_err());
    }
}
