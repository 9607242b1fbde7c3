//! From a field section to fields.

use std::cell::RefCell;
use std::ops::Range;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::integer::{self, Integer};
use super::table::{ENTRIES, Entry, Name, Pseudo};
use super::{Problem, huffman};

/// What each field counts beside its bytes (RFC 9114, section 4.2.2).
const OVERHEAD: u64 = 32;
/// What a thread keeps from one section to the next.
const KEPT: usize = 16 * 1024;

/// A decoded field section.
#[derive(Debug, Default)]
pub struct Fields {
    pub pseudos: Pseudos,
    pub headers: HeaderMap,
}

/// The pseudo-header fields of a section, each at most once and all before the others.
#[derive(Debug, Default)]
pub struct Pseudos {
    pub method: Option<Bytes>,
    pub scheme: Option<Bytes>,
    pub authority: Option<Bytes>,
    pub path: Option<Bytes>,
    pub protocol: Option<Bytes>,
    pub status: Option<Bytes>,
}

impl Pseudos {
    fn place(&mut self, name: Pseudo) -> &mut Option<Bytes> {
        match name {
            Pseudo::Method => &mut self.method,
            Pseudo::Scheme => &mut self.scheme,
            Pseudo::Authority => &mut self.authority,
            Pseudo::Path => &mut self.path,
            Pseudo::Protocol => &mut self.protocol,
            Pseudo::Status => &mut self.status,
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        [&self.method, &self.scheme, &self.authority, &self.path, &self.protocol, &self.status]
            .iter()
            .all(|value| value.is_none())
    }
}

/// Decodes a whole field section.
///
/// Besides what the map itself needs, and names that no table knows, one allocation holds all texts.
///
/// # Errors
/// [`Problem::TooLarge`] where the section counts more than `limit` bytes by RFC 9114, section 4.2.2;
/// [`Problem::Malformed`] where a field cannot be part of a message; else what is wrong with the encoding.
pub fn decode(section: &[u8], limit: u64) -> Result<Fields, Problem> {
    SCRATCH.with_borrow_mut(|scratch| {
        let lines = scratch.read(section, limit);
        let fields = lines.and_then(|()| scratch.fields());
        scratch.clear();
        fields
    })
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Where a section is taken apart before anything is allocated for it.
#[derive(Default)]
struct Scratch {
    text: Vec<u8>,
    lines: Vec<Line>,
}

struct Line {
    name: Part,
    value: Part,
}

/// A name or a value.
enum Part {
    /// Of the table's entry.
    Table(&'static Entry),
    /// Stands here in the text.
    Text(Range<usize>),
}

impl Scratch {
    fn clear(&mut self) {
        self.text.clear();
        self.text.shrink_to(KEPT);
        self.lines.clear();
        self.lines.shrink_to(KEPT / size_of::<Line>());
    }

    /// Takes the section apart (RFC 9204, section 4.5).
    fn read<'s>(&mut self, section: &'s [u8], limit: u64) -> Result<(), Problem> {
        let whole = |read: Option<Integer<'s>>| read.ok_or(Problem::Truncated);
        let required = whole(integer::decode(section, 8)?)?;
        if required.value != 0 {
            return Err(Problem::Dynamic);
        }
        // With nothing inserted the base is what the delta says, and nothing refers to it; but it has a sign.
        let base = whole(integer::decode(required.rest, 7)?)?;
        if base.flags != 0 {
            return Err(Problem::Base);
        }
        let mut rest = base.rest;
        let mut size = 0;
        while let Some(first) = rest.first() {
            let line = match first {
                // Indexed field line; the next bit says that it is of the static table.
                0x80.. => {
                    let index = whole(integer::decode(rest, 6)?)?;
                    rest = index.rest;
                    let entry = entry(index.flags & 0x40 != 0, index.value)?;
                    Line { name: Part::Table(entry), value: Part::Table(entry) }
                }
                // Literal with name reference; 0x20 asks intermediaries not to index, which we never do.
                0x40..0x80 => {
                    let index = whole(integer::decode(rest, 4)?)?;
                    let name = entry(index.flags & 0x10 != 0, index.value)?;
                    let (value, after) = self.string(index.rest, 7)?;
                    rest = after;
                    Line { name: Part::Table(name), value: Part::Text(value) }
                }
                // Literal with literal name.
                0x20..0x40 => {
                    let (name, after) = self.string(rest, 3)?;
                    let (value, after) = self.string(after, 7)?;
                    rest = after;
                    Line { name: Part::Text(name), value: Part::Text(value) }
                }
                // With a post-base index, which only the dynamic table has.
                0x00..0x20 => return Err(Problem::Dynamic),
            };
            let length = |part: &Part, of: fn(&Entry) -> usize| match part {
                Part::Table(entry) => of(entry),
                Part::Text(range) => range.len(),
            };
            size +=
                (length(&line.name, Entry::name_len) + length(&line.value, |entry| entry.value.len())) as u64;
            size += OVERHEAD;
            if size > limit {
                return Err(Problem::TooLarge);
            }
            self.lines.push(line);
        }
        Ok(())
    }

    /// A string whose length has so many bits in its first byte, after the bit that says Huffman.
    fn string<'s>(&mut self, bytes: &'s [u8], bits: u32) -> Result<(Range<usize>, &'s [u8]), Problem> {
        let Integer { flags, value, rest } = integer::decode(bytes, bits)?.ok_or(Problem::Truncated)?;
        let length = usize::try_from(value).map_err(|_| Problem::Truncated)?;
        let (string, rest) = rest.split_at_checked(length).ok_or(Problem::Truncated)?;
        let start = self.text.len();
        if flags & (1 << bits) == 0 {
            self.text.extend_from_slice(string);
        } else {
            self.text.reserve(huffman::decoded_bound(string.len()));
            huffman::decode(string, &mut self.text)?;
        }
        Ok((start..self.text.len(), rest))
    }

    fn fields(&self) -> Result<Fields, Problem> {
        let malformed = |reason| Err(Problem::Malformed(reason));
        let text = shared(&self.text);
        let mut fields = Fields::default();
        fields.headers.try_reserve(self.lines.len()).map_err(|_| Problem::TooLarge)?;
        let mut regular = false;
        for Line { name, value } in &self.lines {
            let literal;
            let name = match name {
                Part::Table(entry) => &entry.name,
                Part::Text(range) => {
                    literal = self.name(range.clone())?;
                    &literal
                }
            };
            match name {
                Name::Pseudo(_) if regular => {
                    return malformed("a pseudo-header field stands after other fields");
                }
                Name::Pseudo(pseudo) => {
                    let value = match value {
                        Part::Table(entry) => Bytes::from_static(entry.value.as_bytes()),
                        Part::Text(range) => text.slice(range.clone()),
                    };
                    if fields.pseudos.place(*pseudo).replace(value).is_some() {
                        return malformed("a pseudo-header field stands there twice");
                    }
                }
                Name::Field(name) => {
                    regular = true;
                    let value = match value {
                        Part::Table(entry) => HeaderValue::from_static(entry.value),
                        Part::Text(range) => {
                            let value =
                                HeaderValue::from_maybe_shared(text.slice(self.trimmed(range.clone())));
                            value
                                .map_err(|_| Problem::Malformed("a field value has a forbidden character"))?
                        }
                    };
                    fields.headers.try_append(name, value).map_err(|_| Problem::TooLarge)?;
                }
            }
        }
        Ok(fields)
    }

    fn name(&self, range: Range<usize>) -> Result<Name, Problem> {
        let name = self.text.get(range).unwrap_or_default();
        if name.first() == Some(&b':') {
            let pseudo = Pseudo::named(name).ok_or(Problem::Malformed("an unknown pseudo-header field"))?;
            return Ok(Name::Pseudo(pseudo));
        }
        if let Ok(at) = COMMON.binary_search_by(|common| common.as_str().as_bytes().cmp(name))
            && let Some(common) = COMMON.get(at)
        {
            return Ok(Name::Field(common.clone()));
        }
        match HeaderName::from_lowercase(name) {
            Ok(name) => Ok(Name::Field(name)),
            Err(_) if name.iter().any(u8::is_ascii_uppercase) => {
                Err(Problem::Malformed("a field name has an upper-case letter"))
            }
            Err(_) => Err(Problem::Malformed("a field name has a forbidden character")),
        }
    }

    /// Without the white space around it, which is no part of a value (RFC 9110, section 5.5).
    fn trimmed(&self, mut range: Range<usize>) -> Range<usize> {
        let blank = |at: usize| matches!(self.text.get(at), Some(b' ' | b'\t'));
        while range.start < range.end && blank(range.start) {
            range.start += 1;
        }
        while range.start < range.end && blank(range.end - 1) {
            range.end -= 1;
        }
        range
    }
}

fn entry(of_static_table: bool, index: u64) -> Result<&'static Entry, Problem> {
    if !of_static_table {
        return Err(Problem::Dynamic);
    }
    let index = usize::try_from(index).map_err(|_| Problem::StaticIndex)?;
    ENTRIES.get(index).ok_or(Problem::StaticIndex)
}

/// Names that browsers send with every request and `http` does not know: so that they allocate nothing.
static COMMON: [HeaderName; 17] = [
    HeaderName::from_static("device-memory"),
    HeaderName::from_static("downlink"),
    HeaderName::from_static("dpr"),
    HeaderName::from_static("ect"),
    HeaderName::from_static("priority"),
    HeaderName::from_static("rtt"),
    HeaderName::from_static("sec-ch-ua"),
    HeaderName::from_static("sec-ch-ua-mobile"),
    HeaderName::from_static("sec-ch-ua-platform"),
    HeaderName::from_static("sec-fetch-dest"),
    HeaderName::from_static("sec-fetch-mode"),
    HeaderName::from_static("sec-fetch-site"),
    HeaderName::from_static("sec-fetch-user"),
    HeaderName::from_static("sec-gpc"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-requested-with"),
];

/// The text with its reference count, in one allocation where it has a usual size.
fn shared(text: &[u8]) -> Bytes {
    match text.len() {
        0 => Bytes::new(),
        1..=256 => Inline::<256>::share(text),
        257..=1024 => Inline::<1024>::share(text),
        1025..=4096 => Inline::<4096>::share(text),
        _ => Bytes::copy_from_slice(text),
    }
}

struct Inline<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Inline<N> {
    fn share(text: &[u8]) -> Bytes {
        let mut inline = Inline { bytes: [0; N], length: text.len().min(N) };
        for (to, from) in inline.bytes.iter_mut().zip(text) {
            *to = *from;
        }
        Bytes::from_owner(inline)
    }
}

impl<const N: usize> AsRef<[u8]> for Inline<N> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Encoder;
    use super::*;
    use http::StatusCode;
    use proptest::prelude::*;

    const LIMIT: u64 = 64 * 1024;

    fn fields(section: &[u8]) -> Result<Vec<(String, String)>, Problem> {
        let fields = decode(section, LIMIT)?;
        Ok(fields.headers.iter().map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_owned())).collect())
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    /// RFC 9204, appendix B.1.
    #[test]
    fn example_of_the_rfc() {
        let mut section = vec![0x00, 0x00, 0x51, 0x0b];
        section.extend_from_slice(b"/index.html");
        let fields = decode(&section, LIMIT).unwrap();
        assert_eq!(fields.pseudos.path.unwrap(), "/index.html");
        assert!(fields.headers.is_empty());
    }

    #[test]
    fn the_names_are_sorted() {
        assert!(COMMON.is_sorted_by_key(HeaderName::as_str));
    }

    #[test]
    fn every_static_entry_decodes() {
        for (index, entry) in ENTRIES.iter().enumerate() {
            let mut section = vec![0, 0];
            integer::encode(0xc0, index as u64, 6, &mut section);
            let decoded = decode(&section, LIMIT).unwrap();
            match &entry.name {
                Name::Field(name) => assert_eq!(decoded.headers.get(name).unwrap(), entry.value),
                Name::Pseudo(_) => assert!(!decoded.pseudos.is_empty()),
            }
        }
        assert_eq!(decode(&[0, 0, 0xff, 36], LIMIT).unwrap_err(), Problem::StaticIndex);
    }

    #[test]
    fn what_needs_a_dynamic_table_is_refused() {
        // Required insert count; indexed; name reference; the two post-base forms.
        for section in [&[1, 0][..], &[0, 0, 0x80], &[0, 0, 0x40, 0], &[0, 0, 0x10], &[0, 0, 0x00, 0]] {
            assert_eq!(decode(section, LIMIT).unwrap_err(), Problem::Dynamic, "{section:x?}");
        }
    }

    #[test]
    fn a_section_cut_anywhere_is_truncated_or_shorter() {
        let mut out = Vec::new();
        let mut encoder = Encoder::new(&mut out);
        encoder.status(StatusCode::OK);
        encoder.field("x-long-name", b"some value");
        encoder.field("server", b"x");
        for cut in 0..out.len() {
            match decode(&out[..cut], LIMIT) {
                Ok(fields) => assert!(fields.headers.len() < 2),
                Err(problem) => {
                    assert!(matches!(problem, Problem::Truncated | Problem::Huffman), "{problem}")
                }
            }
        }
    }

    #[test]
    fn names_and_values_are_held_to_the_grammar() {
        let literal = |name: &[u8], value: &[u8]| {
            let mut section = vec![0, 0];
            integer::encode(0x20, name.len() as u64, 3, &mut section);
            section.extend_from_slice(name);
            integer::encode(0, value.len() as u64, 7, &mut section);
            section.extend_from_slice(value);
            fields(&section)
        };
        assert_eq!(literal(b"x-a", b" b\t"), Ok(vec![pair("x-a", "b")]));
        for (name, value) in [
            (&b"X-A"[..], &b"b"[..]),
            (b"", b"b"),
            (b"x a", b"b"),
            (b":x", b"b"),
            (b"x-a", b"b\r\nc"),
            (b"x", b"\0"),
        ] {
            assert!(matches!(literal(name, value), Err(Problem::Malformed(_))), "{name:?} {value:?}");
        }
    }

    #[test]
    fn the_limit_counts_as_the_rfc_counts() {
        let mut out = Vec::new();
        Encoder::new(&mut out).field("x-a", b"bb");
        assert!(decode(&out, 37).is_ok());
        assert_eq!(decode(&out, 36).unwrap_err(), Problem::TooLarge);
        // Small on the wire, large in memory.
        let mut bomb = vec![0, 0];
        bomb.resize(LIMIT as usize, 0xc0 | 29);
        assert_eq!(decode(&bomb, LIMIT).unwrap_err(), Problem::TooLarge);
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(fields in prop::collection::vec(("[a-z0-9-]{1,40}", "[!-~]([ -~]{0,300}[!-~])?"), 0..20)) {
            let mut out = Vec::new();
            let mut encoder = Encoder::new(&mut out);
            for (name, value) in &fields {
                encoder.field(name, value.as_bytes());
            }
            let mut expected = HeaderMap::new();
            for (name, value) in &fields {
                expected.append(HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap());
            }
            prop_assert_eq!(decode(&out, LIMIT).unwrap().headers, expected);
        }

        #[test]
        fn any_bytes_end_in_fields_or_an_error(bytes: Vec<u8>) {
            _ = decode(&bytes, LIMIT);
        }
    }
}
