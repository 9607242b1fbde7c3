//! What a certificate says of itself, for those who look after it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

/// Who has issued a certificate, and how long it is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// A distinguished name.
    pub issuer: String,
    /// Hexadecimal digits.
    pub serial: String,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

impl Facts {
    /// None, if it is so unusual that only those can read it who verify it.
    pub(crate) fn of(der: &[u8]) -> Option<Facts> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let validity = certificate.validity();
        Some(Facts {
            issuer: certificate.issuer().to_string(),
            serial: certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
            not_before: time(validity.not_before.timestamp()),
            not_after: time(validity.not_after.timestamp()),
        })
    }

    /// How long it is good altogether.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }
}

pub(crate) fn time(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    time.unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SerialNumber, date_time_ymd};

    use super::*;

    #[test]
    fn they_are_what_was_certified() {
        let mut params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "Some Authority");
        params.serial_number = Some(SerialNumber::from_slice(&[0x0a, 0xff]));
        (params.not_before, params.not_after) = (date_time_ymd(2026, 1, 1), date_time_ymd(2026, 1, 31));
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let facts = Facts::of(certificate.der()).unwrap();
        assert!(facts.issuer.contains("CN=Some Authority"), "{facts:?}");
        assert_eq!((facts.serial.as_str(), facts.lifetime()), ("0aff", Duration::from_secs(30 * 86_400)));
        assert_eq!(facts.not_before, time(1_767_225_600));
        assert_eq!(Facts::of(b"nonsense"), None);
    }
}
