//! Reading parameters out of a query, as forms write them: `a=1&b=two+words%21`.

use std::borrow::Cow;

use crate::path::escaped;

/// The decoded values of the parameters of this name, in order; a parameter without `=` has the value "".
pub(crate) fn values<'q>(query: Option<&'q str>, name: &str) -> impl Iterator<Item = Cow<'q, [u8]>> {
    query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).filter_map(move |pair| {
        let (found, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(found) == name.as_bytes()).then(|| decode(value))
    })
}

/// Decodes `%XX` and `+`; a `%` that begins no escape is itself. Borrowed when there is nothing to decode.
fn decode(text: &str) -> Cow<'_, [u8]> {
    if !text.bytes().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        out.push(match (first, after) {
            (b'+', _) => b' ',
            (b'%', [high, low, beyond @ ..]) => match escaped(*high, *low) {
                Some(byte) => {
                    rest = beyond;
                    byte
                }
                None => b'%',
            },
            (byte, _) => *byte,
        });
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(query: &str, name: &str) -> Vec<String> {
        values(Some(query), name).map(|value| String::from_utf8_lossy(&value).into_owned()).collect()
    }

    #[test]
    fn parameters_are_decoded() {
        assert_eq!(all("v=2&w=x", "v"), ["2"]);
        assert_eq!(all("v=a+b%21%zz%4&v=&v", "v"), ["a b!%zz%4", "", ""]);
        assert_eq!(all("%76=1&V=2&&=3", "v"), ["1"]);
        assert_eq!(all("a=b=c", "a"), ["b=c"]);
        assert_eq!(all("v=%ff", "v"), ["\u{fffd}"]);
        assert_eq!(values(None, "").count(), 0);
        assert_eq!(values(Some(""), "").count(), 0);
    }
}
