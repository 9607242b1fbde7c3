//! Reading cookies out of a request. HTTP/2 and HTTP/3 may split them over several fields (RFC 9113,
//! section 8.2.3), so all of them are read.

use http::HeaderMap;
use http::header::COOKIE;

/// The (name, value) pairs of all `Cookie` fields, as sent: values keep their quotes.
pub(crate) fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    headers.get_all(COOKIE).iter().flat_map(|field| field.as_bytes().split(|byte| *byte == b';')).filter_map(
        |pair| {
            let equals = pair.iter().position(|byte| *byte == b'=')?;
            let (name, value) = pair.split_at_checked(equals)?;
            Some((name.trim_ascii(), value.strip_prefix(b"=")?.trim_ascii()))
        },
    )
}

/// The values of the cookies of this name, in order.
pub(crate) fn values<'h>(headers: &'h HeaderMap, name: &str) -> impl Iterator<Item = &'h [u8]> {
    cookies(headers).filter(move |(found, _)| *found == name.as_bytes()).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn all_fields_are_read() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("a=1; b = two;bare;c=\"x=y\"; =nameless"));
        headers.append(COOKIE, HeaderValue::from_static("a=3;A=4;"));
        let found: Vec<_> = cookies(&headers).map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
        let expected: [(&[u8], &[u8]); 6] = [
            (b"a", b"1"),
            (b"b", b"two"),
            (b"c", b"\"x=y\""),
            (b"", b"nameless"),
            (b"a", b"3"),
            (b"A", b"4"),
        ];
        assert_eq!(found, expected.map(|(n, v)| (n.to_vec(), v.to_vec())));
        assert_eq!(values(&headers, "a").collect::<Vec<_>>(), [b"1", b"3"]);
        assert_eq!(values(&headers, "z").count(), 0);
    }
}
