//! Header and trailer fields as they came: in order, repeated, with the case of the sender.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Fields in the order of the wire. Values are Latin-1, so that every byte has one character.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(pub Vec<(String, String)>);

impl Fields {
    pub fn new() -> Fields {
        Fields::default()
    }

    /// The same fields and one more; for building.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Fields {
        self.push(name, value);
        self
    }

    pub fn push(&mut self, name: &str, value: &str) {
        self.0.push((name.to_owned(), value.to_owned()));
    }

    /// The value of the first field of this name, in any case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        self.0.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }

    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Whether a comma-separated list field contains this member.
    pub fn lists(&self, name: &str, member: &str) -> bool {
        self.all(name).iter().flat_map(|v| v.split(',')).any(|m| m.trim().eq_ignore_ascii_case(member))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(n, v)| (n.as_str(), v.as_str()))
    }

    pub(crate) fn from_map(map: &HeaderMap) -> Fields {
        Fields(map.iter().map(|(n, v)| (n.as_str().to_owned(), latin1(v.as_bytes()))).collect())
    }

    pub(crate) fn to_map(&self) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in self.iter() {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("field name");
            map.append(name, HeaderValue::from_bytes(&bytes_of(value)).expect("field value"));
        }
        map
    }

    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        for (name, value) in self.iter() {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(&bytes_of(value));
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// Every byte as the character of the same number.
pub fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|&b| char::from(b)).collect()
}

fn bytes_of(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).expect("Latin-1")).collect()
}
