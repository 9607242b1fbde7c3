//! What a client's certificate says of it, as text that every header field takes.

use std::fmt::Write as _;
use std::net::IpAddr;

use aws_lc_rs::digest::{SHA256, digest};
use x509_parser::asn1_rs::{Any, ToDer as _};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// A subject that is longer, and names beyond this, are left out: VMs take heads of 8 KiB or little more.
const MOST: usize = 3072;
/// How Windows names the user of a card: a user principal name.
const UPN: &str = "1.3.6.1.4.1.311.20.2.3";

/// Visible ASCII and blanks only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// A distinguished name, the most specific part first (RFC 4514): `CN=alice,O=Example`. Empty, if it is too long.
    pub subject: String,
    /// The alternative names, each with its kind: `DNS:a.test,URI:spiffe://a.test/b,IP:10.0.0.1,email:a@a.test`.
    pub san: String,
    /// The SHA-256 of the certificate, in hexadecimal digits.
    pub fingerprint: String,
}

impl Identity {
    /// Of one that was verified.
    pub(crate) fn of(der: &[u8]) -> Identity {
        let mut fingerprint = String::with_capacity(64);
        for byte in digest(&SHA256, der).as_ref() {
            _ = write!(fingerprint, "{byte:02x}");
        }
        match X509Certificate::from_der(der) {
            Ok((_, certificate)) => Identity {
                subject: distinguished(certificate.subject()),
                san: alternative(&certificate),
                fingerprint,
            },
            // So unusual that only those can read it who verify it: it is known by its fingerprint.
            Err(_) => Identity { subject: String::new(), san: String::new(), fingerprint },
        }
    }
}

/// Nothing, if it is too long: a part of a name may be the whole of another.
fn distinguished(name: &X509Name<'_>) -> String {
    let parts: Vec<_> = name.iter_rdn().collect();
    let mut out = String::new();
    for (index, part) in parts.iter().rev().enumerate() {
        for (place, attribute) in part.iter().enumerate() {
            match (index, place) {
                (0, 0) => {}
                (_, 0) => out.push(','),
                _ => out.push('+'),
            }
            write_attribute(&mut out, attribute);
        }
    }
    if out.len() > MOST { String::new() } else { out }
}

fn write_attribute(out: &mut String, attribute: &AttributeTypeAndValue<'_>) {
    let oid = attribute.attr_type().to_id_string();
    let short = match oid.as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "STREET",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        _ => "",
    };
    match attribute.as_str() {
        Ok(text) if !short.is_empty() => {
            out.extend([short, "="]);
            escape(out, text);
        }
        // RFC 4514, section 2.4: what has no known text is its bytes, with what says of which type they are.
        _ => {
            out.extend([if short.is_empty() { oid.as_str() } else { short }, "=#"]);
            for byte in attribute.attr_value().to_der_vec().unwrap_or_default() {
                _ = write!(out, "{byte:02x}");
            }
        }
    }
}

/// RFC 4514, section 2.4; everything beyond visible ASCII by its bytes.
fn escape(out: &mut String, text: &str) {
    let last = text.len().saturating_sub(1);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' => out.extend(['\\', byte as char]),
            b'#' if at == 0 => out.push_str("\\#"),
            b' ' if at == 0 || at == last => out.push_str("\\ "),
            b' '..=b'~' => out.push(byte as char),
            _ => _ = write!(out, "\\{byte:02X}"),
        }
    }
}

fn alternative(certificate: &X509Certificate<'_>) -> String {
    let names = certificate.extensions().iter().filter_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    let mut out = String::new();
    for name in names.flatten() {
        let (begin, comma) = (out.len(), if out.is_empty() { "" } else { "," });
        match name {
            GeneralName::DNSName(name) => encode(&mut out, &[comma, "DNS:"], name.as_bytes()),
            GeneralName::RFC822Name(name) => encode(&mut out, &[comma, "email:"], name.as_bytes()),
            GeneralName::URI(name) => encode(&mut out, &[comma, "URI:"], name.as_bytes()),
            GeneralName::IPAddress(bytes) => {
                if let Some(address) = address(bytes) {
                    _ = write!(out, "{comma}IP:{address}");
                }
            }
            GeneralName::OtherName(kind, value) if kind.to_id_string() == UPN => {
                if let Some(name) = principal(value) {
                    encode(&mut out, &[comma, "UPN:"], name);
                }
            }
            _ => {}
        }
        if out.len() > MOST {
            out.truncate(begin);
            break;
        }
    }
    out
}

/// What could be taken for the end of a name is percent-encoded: nobody gets two names by one with a comma in it.
fn encode(out: &mut String, before: &[&str], name: &[u8]) {
    out.extend(before.iter().copied());
    for byte in name {
        match byte {
            b'!'..=b'~' if *byte != b',' => out.push(*byte as char),
            _ => _ = write!(out, "%{byte:02X}"),
        }
    }
}

/// The text within, which is tagged twice.
fn principal(value: &[u8]) -> Option<&[u8]> {
    let (_, tagged) = Any::from_der(value).ok()?;
    let (_, text) = Any::from_der(tagged.data).ok()?;
    Some(text.data)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use rcgen::string::Ia5String;
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair, SanType};

    use super::*;

    fn identity(names: Vec<SanType>, subject: &[(DnType, &str)]) -> Identity {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in subject {
            params.distinguished_name.push(kind.clone(), DnValue::Utf8String((*value).to_owned()));
        }
        Identity::of(params.self_signed(&KeyPair::generate().unwrap()).unwrap().der())
    }

    #[test]
    fn what_a_certificate_says_is_one_field_value_and_cannot_be_taken_for_more() {
        let text = |text: &str| Ia5String::try_from(text).unwrap();
        let shown = identity(
            vec![
                SanType::DnsName(text("a.test")),
                SanType::URI(text("spiffe://a.test/b,DNS:admin.test")),
                SanType::Rfc822Name(text("a b@a.test")),
                SanType::OtherName((vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3], "alice@a.test".into())),
                SanType::OtherName((vec![1, 2, 3], "nobody knows".into())),
                SanType::IpAddress([10, 0, 0, 1].into()),
                SanType::IpAddress("2001:db8::1".parse().unwrap()),
            ],
            &[
                (DnType::CountryName, "DE"),
                (DnType::OrganizationName, "A, \"B\" + C=\\<D>;"),
                (DnType::CustomDnType(vec![1, 2, 3, 4]), "x"),
                (DnType::CommonName, " #Zo\u{eb}\r\nX: 1 "),
            ],
        );
        assert_eq!(
            shown.san,
            "DNS:a.test,URI:spiffe://a.test/b%2CDNS:admin.test,email:a%20b@a.test,UPN:alice@a.test,IP:10.0.0.1,IP:2001:db8::1"
        );
        assert_eq!(
            shown.subject,
            "CN=\\ #Zo\\C3\\AB\\0D\\0AX: 1\\ ,1.2.3.4=#0c0178,O=A\\, \\\"B\\\" \\+ C=\\\\\\<D\\>\\;,C=DE"
        );
        assert_eq!(shown.fingerprint.len(), 64);
        assert_eq!(identity(vec![], &[(DnType::CommonName, "#1")]).subject, "CN=\\#1");
    }

    #[test]
    fn what_is_too_long_for_a_head_is_left_out() {
        let names = (0..1000).map(|n| SanType::DnsName(Ia5String::try_from(format!("{n}.a.test")).unwrap()));
        let shown = identity(
            names.collect(),
            &[(DnType::OrganizationName, &"x".repeat(5000)), (DnType::CommonName, "a")],
        );
        assert!(shown.san.len() <= MOST && shown.san.len() > MOST - 20 && shown.san.ends_with(".a.test"));
        assert_eq!(shown.subject, "", "half of it would be somebody else");
    }

    #[test]
    fn what_cannot_be_read_is_known_by_its_fingerprint() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let nobody = Identity { subject: String::new(), san: String::new(), fingerprint: empty.to_owned() };
        assert_eq!(Identity::of(b""), nobody);
    }
}
