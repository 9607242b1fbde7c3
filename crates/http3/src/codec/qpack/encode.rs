//! From fields to a field section.

use http::StatusCode;

use super::table::{ENTRIES, Name, PLACES};
use super::{huffman, integer};

/// The static table's first `:status`, for those that have no entry of their own.
const STATUS: u64 = 24;

/// Writes one field section.
#[derive(Debug)]
pub struct Encoder<'o> {
    out: &'o mut Vec<u8>,
}

impl<'o> Encoder<'o> {
    pub fn new(out: &'o mut Vec<u8>) -> Encoder<'o> {
        // Required insert count and base: nothing refers to the dynamic table.
        out.extend_from_slice(&[0, 0]);
        Encoder { out }
    }

    /// The `:status` of a response; it stands before all fields.
    pub fn status(&mut self, status: StatusCode) {
        let index = match status.as_u16() {
            103 => 24,
            200 => 25,
            304 => 26,
            404 => 27,
            503 => 28,
            100 => 63,
            204 => 64,
            206 => 65,
            302 => 66,
            400 => 67,
            403 => 68,
            421 => 69,
            425 => 70,
            500 => 71,
            _ => {
                integer::encode(0x50, STATUS, 4, self.out);
                return self.string(status.as_str().as_bytes(), 7, 0);
            }
        };
        integer::encode(0xc0, index, 6, self.out);
    }

    /// A field; its name is in lower case.
    pub fn field(&mut self, name: &str, value: &[u8]) {
        let known = PLACES.binary_search_by(|(known, _)| (*known).cmp(name)).ok();
        let Some((_, first)) = known.and_then(|at| PLACES.get(at)) else {
            self.string(name.as_bytes(), 3, 0x20);
            return self.string(value, 7, 0);
        };
        let of_this_name = ENTRIES
            .iter()
            .enumerate()
            .skip(usize::from(*first))
            .take_while(|(_, entry)| matches!(&entry.name, Name::Field(field) if field.as_str() == name));
        for (index, entry) in of_this_name {
            if entry.value.as_bytes() == value {
                return integer::encode(0xc0, index as u64, 6, self.out);
            }
        }
        integer::encode(0x50, u64::from(*first), 4, self.out);
        self.string(value, 7, 0);
    }

    /// A string whose length has so many bits in its first byte, after the bit that says Huffman.
    fn string(&mut self, text: &[u8], bits: u32, flags: u8) {
        let encoded = huffman::encoded_len(text);
        if encoded < text.len() {
            integer::encode(flags | (1 << bits), encoded as u64, bits, self.out);
            huffman::encode(text, self.out);
        } else {
            integer::encode(flags, text.len() as u64, bits, self.out);
            self.out.extend_from_slice(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Problem, decode};
    use super::*;

    #[test]
    fn the_places_are_where_the_table_says() {
        assert!(PLACES.is_sorted());
        for (index, entry) in ENTRIES.iter().enumerate() {
            let Name::Field(name) = &entry.name else { continue };
            let at = PLACES.binary_search_by(|(known, _)| (*known).cmp(name.as_str())).unwrap();
            assert!(usize::from(PLACES[at].1) <= index, "{name}");
        }
    }

    #[test]
    fn every_status_comes_back() -> Result<(), Problem> {
        for code in 100..=999 {
            let status = StatusCode::from_u16(code).unwrap();
            let mut out = Vec::new();
            Encoder::new(&mut out).status(status);
            assert_eq!(decode(&out, 100)?.pseudos.status.unwrap(), status.as_str());
        }
        Ok(())
    }

    #[test]
    fn what_the_table_has_takes_a_byte_or_two() {
        for (name, value) in [("content-type", "text/plain"), ("vary", "origin"), ("accept-ranges", "bytes")]
        {
            let mut out = Vec::new();
            Encoder::new(&mut out).field(name, value.as_bytes());
            assert_eq!(out.len(), 3, "{name}");
        }
    }
}
