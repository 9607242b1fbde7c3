//! What a TLS client is shown and held to, by the name it asks for: the same on TCP and QUIC.

use std::net::IpAddr;
use std::sync::Arc;

use foregate_certs::Certificate;
use foregate_routing::{Site, TlsRules, TlsVersion};
use rustls::SignatureScheme;

use crate::Live;

/// Chosen before the handshake goes on, and what the connection may be asked for depends on it to its end.
#[derive(Clone)]
pub(crate) struct Terms {
    /// In lower case.
    pub(crate) sni: Option<Box<str>>,
    /// None: there is none for this name, and the handshake fails.
    pub(crate) certificate: Option<Arc<Certificate>>,
    pub(crate) rules: TlsRules,
    /// The site takes requests in 0-RTT.
    pub(crate) early_data: bool,
}

impl Terms {
    /// For a client that asks for this name and can check these signatures, at this address of ours.
    pub(crate) fn of(live: &Live, sni: Option<&str>, schemes: &[SignatureScheme], local: IpAddr) -> Terms {
        let sni = sni.map(|name| name.to_ascii_lowercase().into_boxed_str());
        let certificate = live.certificates.present(sni.as_deref(), schemes).cloned();
        let site = named_site(live, sni.as_deref(), local);
        Terms {
            certificate,
            rules: site.map_or(TlsRules::open(TlsVersion::V1_3), |site| site.tls),
            early_data: site.is_some_and(|site| site.early_data),
            sni,
        }
    }
}

/// The site a TLS client asks for. Who names no host has gone to an address, and will ask for that.
pub(crate) fn named_site<'l>(live: &'l Live, sni: Option<&str>, local: IpAddr) -> Option<&'l Arc<Site>> {
    let address = sni.is_none().then(|| local.to_canonical().to_string());
    let host = sni.or(address.as_deref()).unwrap_or_default();
    live.routing.host(host, local).map(|found| found.site)
}
