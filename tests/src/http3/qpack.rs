//! Field sections (RFC 9204): heads put together line by line, in every representation there is, and the
//! decoder for what comes back.

use super::{
    frame::{HEADERS, frame},
    huffman,
    statics::STATIC_TABLE,
};
use crate::fields::{Fields, latin1};

/// The prefix of a section without references to the dynamic table.
pub const PREFIX: [u8; 2] = [0, 0];

/// An integer with a prefix of so many bits, below these flags (RFC 7541, section 5.1).
pub fn integer(flags: u8, prefix: u32, value: u64) -> Vec<u8> {
    let full = (1_u64 << prefix) - 1;
    if value < full {
        return vec![flags | value as u8];
    }
    let mut out = vec![flags | full as u8];
    let mut rest = value - full;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
    out
}

/// A string whose length has a prefix of so many bits, below these flags and the bit for Huffman.
pub fn string(flags: u8, prefix: u32, text: &[u8], coded: bool) -> Vec<u8> {
    if coded {
        let code = huffman::encode(text);
        return [integer(flags | 1 << prefix, prefix, code.len() as u64), code].concat();
    }
    [integer(flags, prefix, text.len() as u64), text.to_vec()].concat()
}

/// An indexed field line (section 4.5.2), from the static table.
pub fn indexed(index: u64) -> Vec<u8> {
    integer(0xc0, 6, index)
}

/// A literal with the name of a static entry (section 4.5.4).
pub fn named(index: u64, value: &str) -> Vec<u8> {
    [integer(0x50, 4, index), string(0, 7, &bytes(value), false)].concat()
}

/// A literal field line with a literal name (section 4.5.6).
pub fn literal(name: &str, value: &str) -> Vec<u8> {
    [string(0x20, 3, &bytes(name), false), string(0, 7, &bytes(value), false)].concat()
}

/// The same in the Huffman code, name and value.
pub fn literal_coded(name: &str, value: &str) -> Vec<u8> {
    [string(0x20, 3, &bytes(name), true), string(0, 7, &bytes(value), true)].concat()
}

/// A literal nobody may ever put into an index: with the N bit.
pub fn literal_never_indexed(name: &str, value: &str) -> Vec<u8> {
    [string(0x30, 3, &bytes(name), false), string(0, 7, &bytes(value), false)].concat()
}

fn bytes(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).expect("Latin-1")).collect()
}

/// The field lines of a request or of trailers, in order. Text is Latin-1.
#[derive(Clone, Debug)]
pub struct Head(Vec<Line>);

#[derive(Clone, Debug)]
struct Line {
    name: String,
    bytes: Vec<u8>,
}

impl Head {
    pub fn empty() -> Head {
        Head(Vec::new())
    }

    /// The pseudo-header fields of a request to `shop.test`.
    pub fn request(method: &str, path: &str) -> Head {
        Head::empty()
            .field(":method", method)
            .field(":scheme", "https")
            .field(":authority", "shop.test")
            .field(":path", path)
    }

    pub fn get(path: &str) -> Head {
        Head::request("GET", path)
    }

    pub fn post(path: &str) -> Head {
        Head::request("POST", path)
    }

    /// The same and this field, as a literal.
    #[must_use]
    pub fn field(mut self, name: &str, value: &str) -> Head {
        self.0.push(Line { name: name.to_owned(), bytes: literal(name, value) });
        self
    }

    /// The same with this field before all others.
    #[must_use]
    pub fn first(mut self, name: &str, value: &str) -> Head {
        self.0.insert(0, Line { name: name.to_owned(), bytes: literal(name, value) });
        self
    }

    /// The same without the fields of this name.
    #[must_use]
    pub fn without(mut self, name: &str) -> Head {
        self.0.retain(|line| line.name != name);
        self
    }

    /// The same with another value, in the place of the first field of this name.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Head {
        let line = self.0.iter_mut().find(|line| line.name == name).expect("a field of this name");
        line.bytes = literal(name, value);
        self
    }

    /// The same and a line in whatever representation.
    #[must_use]
    pub fn line(mut self, bytes: Vec<u8>) -> Head {
        self.0.push(Line { name: String::new(), bytes });
        self
    }

    /// The encoded field section.
    pub fn section(&self) -> Vec<u8> {
        PREFIX.into_iter().chain(self.0.iter().flat_map(|line| line.bytes.clone())).collect()
    }

    /// The HEADERS frame.
    pub fn frame(&self) -> Vec<u8> {
        frame(HEADERS, &self.section())
    }

    /// The HEADERS frame and what follows it.
    pub fn and(&self, rest: impl AsRef<[u8]>) -> Vec<u8> {
        [&self.frame()[..], rest.as_ref()].concat()
    }
}

/// Reads a section that may use no dynamic table: this client has none (section 3.2.3).
pub fn decode(section: &[u8]) -> Result<Fields, String> {
    let mut rest = section;
    let required = take_integer(&mut rest, 8)?;
    let base = take_integer(&mut rest, 7)?;
    if (required, base) != (0, 0) {
        return Err(format!("a section with Required Insert Count {required} and base {base}"));
    }
    let mut fields = Fields::new();
    while let Some(&first) = rest.first() {
        let (name, value) = if first & 0xc0 == 0xc0 {
            let (name, value) = entry(take_integer(&mut rest, 6)?)?;
            (name.to_owned(), value.to_owned())
        } else if first & 0xd0 == 0x50 {
            let (name, _) = entry(take_integer(&mut rest, 4)?)?;
            (name.to_owned(), take_string(&mut rest, 7)?)
        } else if first & 0xe0 == 0x20 {
            (take_string(&mut rest, 3)?, take_string(&mut rest, 7)?)
        } else {
            return Err(format!("a reference to the dynamic table: {first:#x}"));
        };
        fields.push(&name, &value);
    }
    Ok(fields)
}

fn entry(index: u64) -> Result<(&'static str, &'static str), String> {
    let at = usize::try_from(index).unwrap_or(usize::MAX);
    STATIC_TABLE.get(at).copied().ok_or_else(|| format!("static entry {index}"))
}

fn take_integer(from: &mut &[u8], prefix: u32) -> Result<u64, String> {
    let (&first, mut rest) = from.split_first().ok_or("an integer cut short")?;
    let full = (1_u64 << prefix) - 1;
    let mut value = u64::from(first) & full;
    let mut shift = 0;
    while value >= full {
        let (&byte, after) = rest.split_first().ok_or("an integer cut short")?;
        rest = after;
        value += u64::from(byte & 0x7f).checked_shl(shift).ok_or("an integer too large")?;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    *from = rest;
    Ok(value)
}

fn take_string(from: &mut &[u8], prefix: u32) -> Result<String, String> {
    let coded = from.first().is_some_and(|b| b >> prefix & 1 == 1);
    let length = take_integer(from, prefix)?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let (text, rest) = from.split_at_checked(length).ok_or("a string cut short")?;
    *from = rest;
    if coded {
        return huffman::decode(text).map(|t| latin1(&t)).ok_or_else(|| "Huffman code".to_owned());
    }
    Ok(latin1(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_representation_is_read_again() {
        let long = "x".repeat(300);
        let head = Head::empty()
            .field(":status", "200")
            .line(indexed(98))
            .line(named(92, "foregate"))
            .line(literal_coded("x-coded", &long))
            .line(literal_never_indexed("x-secret", "\u{e9}"));
        let fields = decode(&head.section()).unwrap();
        let expected = Fields::new()
            .with(":status", "200")
            .with("x-frame-options", "sameorigin")
            .with("server", "foregate")
            .with("x-coded", &long)
            .with("x-secret", "\u{e9}");
        assert_eq!(fields, expected);
    }

    /// RFC 9204, appendix B.1.
    #[test]
    fn the_example_of_the_rfc() {
        let section = b"\0\0\x51\x0b/index.html";
        assert_eq!(decode(section).unwrap(), Fields::new().with(":path", "/index.html"));
        assert_eq!(Head::empty().line(named(1, "/index.html")).section(), section);
        assert!(decode(b"\x02\0\x80").is_err());
        assert_eq!(integer(0, 5, 1337), [31, 154, 10]);
    }
}
