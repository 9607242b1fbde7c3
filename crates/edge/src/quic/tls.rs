//! TLS of a QUIC connection, chosen by the name the client asks for.
//!
//! quinn takes its configuration before the client has said anything. So a connection begins with the one for everybody,
//! and what the client says is kept until its first message is whole (it may come in several packets, and in any pieces);
//! then the session is exchanged for one of the site's own, if that is another, and hears it all.

use std::any::Any;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use foregate_certs::TlsServer;
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicServerConfig};
use quinn_proto::crypto::{
    ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, ServerConfig, Session, UnsupportedVersion,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectionId, Side, TransportError, TransportErrorCode};
use rustls::server::{Accepted, Acceptor};

use crate::Live;
use crate::terms::Terms;

/// The type of the client's first message (RFC 8446, section 4).
const CLIENT_HELLO: u8 = 1;
/// What TLS takes before a message: its type and its length.
const HEADER: usize = 4;
/// Those of browsers take two KiB, and with the certificates that are in a session's ticket some more.
const MAX_HELLO: usize = 32 * 1024;
/// What one record of TLS holds (RFC 8446, section 5.1).
const RECORD: usize = 16 * 1024;
/// What is said to a client whose first message cannot be read, and where the fault is ours (RFC 8446, section 6.2).
const DECODE_ERROR: u8 = 50;
const INTERNAL_ERROR: u8 = 80;

/// The configuration for everybody: the one with which a connection begins.
pub(super) fn open(tls: &TlsServer) -> Result<QuicServerConfig, NoInitialCipherSuite> {
    QuicServerConfig::try_from(tls.quic_for_everybody().clone())
}

/// Chooses for one connection, which came to this address of ours.
pub(super) struct Choice {
    open: Arc<QuicServerConfig>,
    /// quinn keeps this as long as the connection, which should not keep a snapshot: the session takes it.
    from: Mutex<Option<From>>,
}

/// What there is to choose from.
struct From {
    live: Arc<Live>,
    tls: Arc<TlsServer>,
    local: IpAddr,
}

impl Choice {
    pub(super) fn new(
        open: Arc<QuicServerConfig>,
        live: Arc<Live>,
        tls: Arc<TlsServer>,
        local: IpAddr,
    ) -> Choice {
        Choice { open, from: Mutex::new(Some(From { live, tls, local })) }
    }
}

impl ServerConfig for Choice {
    fn initial_keys(&self, version: u32, dst_cid: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        self.open.initial_keys(version, dst_cid)
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.open.retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(self: Arc<Self>, version: u32, params: &TransportParameters) -> Box<dyn Session> {
        let session = self.open.clone().start_session(version, params);
        let from = self.from.lock().unwrap_or_else(PoisonError::into_inner).take();
        let unheard =
            from.map(|from| Box::new(Unheard { from, version, params: *params, hello: Vec::new() }));
        Box::new(Chosen { session, terms: None, unheard })
    }
}

/// A session that becomes the site's own with the client's first message.
struct Chosen {
    session: Box<dyn Session>,
    terms: Option<Terms>,
    unheard: Option<Box<Unheard>>,
}

/// What it takes to choose.
struct Unheard {
    from: From,
    version: u32,
    params: TransportParameters,
    /// As much as has come of it.
    hello: Vec<u8>,
}

impl Unheard {
    /// Whether the message is whole, or is no such message, which the session says best.
    ///
    /// # Errors
    /// It is too long.
    fn is_whole(&self) -> Result<bool, TransportError> {
        Ok(match self.hello.get(..HEADER) {
            Some(&[CLIENT_HELLO, a, b, c]) => {
                let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                if length > MAX_HELLO {
                    return Err(refused(DECODE_ERROR, "the client's first message is too long"));
                }
                self.hello.len() >= HEADER + length
            }
            Some(_) => true,
            None => self.hello.first().is_some_and(|kind| *kind != CLIENT_HELLO),
        })
    }

    /// What the client is shown and held to. None, if its message cannot be read, which the session says best.
    fn terms(&self) -> Option<Terms> {
        let accepted = parse(&self.hello)?;
        let hello = accepted.client_hello();
        let From { live, local, .. } = &self.from;
        Some(Terms::of(live, hello.server_name(), hello.signature_schemes(), *local))
    }

    /// The session for that, if it is not the one for everybody.
    fn own(&self, terms: &Terms) -> Result<Option<Box<dyn Session>>, TransportError> {
        if terms.rules.clients.is_none() && !terms.early_data {
            return Ok(None);
        }
        let config = self.from.tls.quic(&terms.rules, terms.early_data).cloned();
        let config = config.and_then(|config| QuicServerConfig::try_from(config).ok());
        let config =
            config.ok_or_else(|| refused(INTERNAL_ERROR, "there is no TLS configuration for this site"))?;
        Ok(Some(Arc::new(config).start_session(self.version, &self.params)))
    }
}

fn refused(alert: u8, reason: &str) -> TransportError {
    TransportError { code: TransportErrorCode::crypto(alert), frame: None, reason: reason.to_owned() }
}

/// The client's first message, which TLS over TCP has in records.
fn parse(hello: &[u8]) -> Option<Accepted> {
    let mut acceptor = Acceptor::default();
    for part in hello.chunks(RECORD) {
        let [high, low] = u16::try_from(part.len()).ok()?.to_be_bytes();
        let record = [&[0x16, 3, 1, high, low], part].concat();
        let mut unread = &record[..];
        while !unread.is_empty() {
            acceptor.read_tls(&mut unread).ok()?;
        }
        if let Some(accepted) = acceptor.accept().ok()? {
            return Some(accepted);
        }
    }
    None
}

impl Session for Chosen {
    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        let Some(unheard) = &mut self.unheard else {
            return match self.terms {
                Some(_) => self.session.read_handshake(buf),
                None => Err(refused(INTERNAL_ERROR, "there is nothing to choose from")),
            };
        };
        unheard.hello.extend_from_slice(buf);
        if !unheard.is_whole()? {
            return Ok(false);
        }
        if let Some(terms) = unheard.terms() {
            if let Some(own) = unheard.own(&terms)? {
                self.session = own;
            }
            self.terms = Some(terms);
        }
        let hello = self.unheard.take().map(|unheard| unheard.hello).unwrap_or_default();
        match self.session.read_handshake(&hello) {
            // Nothing goes on that was not chosen.
            Ok(_) if self.terms.is_none() => {
                Err(refused(DECODE_ERROR, "the client's first message cannot be read"))
            }
            heard => heard,
        }
    }

    /// A [`Terms`].
    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.session.handshake_data()?;
        Some(Box::new(self.terms.clone()?))
    }

    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        self.session.initial_keys(dst_cid, side)
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.session.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.session.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.session.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.session.is_handshaking()
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.session.transport_parameters()
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        self.session.write_handshake(buf)
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.session.next_1rtt_keys()
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.session.is_valid_retry(orig_dst_cid, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.session.export_keying_material(output, label, context)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop at the first surprise")]
mod tests {
    use std::net::Ipv4Addr;

    use foregate_certs::{Certificate, CertificateStore, ClientAuth};
    use foregate_routing::{HostPattern, SiteSpec, SnapshotBuilder, TlsRules, TlsVersion};
    use proptest::prelude::*;
    use quinn_proto::crypto::ClientConfig as _;
    use quinn_proto::crypto::rustls::QuicClientConfig;
    use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
    use rustls::{ClientConfig, RootCertStore};

    use super::*;
    use crate::Settings;

    struct Choices {
        everybody: Arc<QuicServerConfig>,
        live: Arc<Live>,
        tls: Arc<TlsServer>,
        local: IpAddr,
    }

    /// Three sites: one for everybody, one with 0-RTT, and one that asks who comes. And what clients trust.
    fn choice() -> (Choices, RootCertStore) {
        let names = ["open.test", "early.test", "asks.test"].map(str::to_owned);
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let (pem, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let certificate = Arc::new(Certificate::from_pem(pem.as_bytes(), key.as_bytes()).unwrap());
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("clients.pem");
        std::fs::write(&file, pem).unwrap();
        let clients = Arc::new(ClientAuth::load(&file, None, true).unwrap());
        let mut builder = SnapshotBuilder::new(None);
        let nobody = TlsRules::open(TlsVersion::V1_3);
        let asking = TlsRules { clients: Some(clients.rules()), ..nobody };
        for (host, early_data, tls) in
            [("open.test", false, nobody), ("early.test", true, nobody), ("asks.test", true, asking)]
        {
            builder.add_site(SiteSpec {
                name: host.into(),
                hosts: vec![HostPattern::Exact(host.into())],
                addresses: None,
                http3: true,
                early_data,
                redirect_to_https: true,
                hsts: None,
                tls,
                response_headers: Vec::new(),
                routes: Vec::new(),
            });
        }
        let certificates = Arc::new(CertificateStore::new(vec![certificate], Vec::new(), Vec::new()));
        let tls = Arc::new(TlsServer::new(&certificates, std::slice::from_ref(&clients), None).unwrap());
        let live = Live {
            routing: builder.build(),
            transports: Vec::new(),
            certificates,
            clients: vec![clients],
            on_demand: false,
            settings: Arc::new(Settings::default()),
        };
        let everybody = Arc::new(open(&tls).unwrap());
        (Choices { everybody, live: Arc::new(live), tls, local: Ipv4Addr::LOCALHOST.into() }, roots)
    }

    fn params() -> TransportParameters {
        TransportParameters::read(Side::Client, &mut &[][..]).unwrap()
    }

    fn client(roots: &RootCertStore, host: &str, alpn: &[u8], retries: bool) -> Box<dyn Session> {
        let mut provider = default_provider();
        if retries {
            // The first, of which the key is sent, is none of ours.
            provider.kx_groups = vec![kx_group::MLKEM768, kx_group::X25519];
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let config = Arc::new(QuicClientConfig::try_from(config).unwrap());
        config.start_session(1, host, &params()).unwrap()
    }

    fn server(choices: &Choices) -> Box<dyn Session> {
        let Choices { everybody, live, tls, local } = choices;
        let choice = Choice::new(everybody.clone(), live.clone(), tls.clone(), *local);
        Arc::new(choice).start_session(1, &params())
    }

    fn terms(session: &dyn Session) -> Option<Terms> {
        session.handshake_data().map(|data| *data.downcast::<Terms>().unwrap())
    }

    /// Both say what they have to say, in pieces of this size, until they are done or one of them is not content.
    fn shake(client: &mut dyn Session, server: &mut dyn Session, piece: usize) -> Result<(), TransportError> {
        for _ in 0..10 {
            for turn in [true, false] {
                let (from, to): (&mut dyn Session, &mut dyn Session) =
                    if turn { (&mut *client, &mut *server) } else { (&mut *server, &mut *client) };
                // Each level of encryption is a stream of its own.
                loop {
                    let mut said = Vec::new();
                    let keys = from.write_handshake(&mut said);
                    for piece in said.chunks(piece) {
                        to.read_handshake(piece)?;
                    }
                    if keys.is_none() && said.is_empty() {
                        break;
                    }
                }
            }
        }
        assert!(!client.is_handshaking());
        Ok(())
    }

    #[test]
    fn the_name_decides_in_whatever_pieces_it_comes() {
        let (choice, roots) = choice();
        for piece in [1, 7, 100, 1 << 20] {
            for retries in [false, true] {
                for (host, early, asks) in [
                    ("open.test", false, false),
                    ("early.test", true, false),
                    ("EARLY.test", true, false),
                    ("asks.test", false, true),
                ] {
                    let (mut client, mut server) = (client(&roots, host, b"h3", retries), server(&choice));
                    assert!(terms(&*server).is_none() && server.is_handshaking());
                    let done = shake(&mut *client, &mut *server, piece);
                    let terms = terms(&*server).unwrap();
                    let what = format!("{host} {piece} {retries}");
                    assert_eq!(terms.sni.as_deref(), Some(&*host.to_ascii_lowercase()), "{what}");
                    assert_eq!((terms.early_data, terms.rules.clients.is_some()), (early, asks), "{what}");
                    assert!(terms.certificate.is_some(), "{what}");
                    match done {
                        Ok(()) => assert!(!asks && !server.is_handshaking(), "{what}"),
                        // RFC 8446, section 6.2: certificate_required.
                        Err(error) => {
                            assert!(asks && error.code == TransportErrorCode::crypto(116), "{what}: {error}")
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_told_once_is_told_once() {
        let (choice, roots) = choice();
        let (mut client, mut server) = (client(&roots, "early.test", b"h3", false), server(&choice));
        let mut hello = Vec::new();
        assert!(client.write_handshake(&mut hello).is_none());
        let (last, rest) = hello.split_last().unwrap();
        for byte in rest {
            assert!(!server.read_handshake(&[*byte]).unwrap());
            assert!(server.write_handshake(&mut Vec::new()).is_none() && terms(&*server).is_none());
            assert!(server.early_crypto().is_none() && server.transport_parameters().unwrap().is_none());
        }
        assert!(server.read_handshake(&[*last]).unwrap());
        assert!(terms(&*server).is_some() && server.transport_parameters().unwrap().is_some());
    }

    /// Near the limits of messages and of records what is read for choosing and what the session takes must be the same:
    /// quinn panics where a session is ready and says nothing of itself.
    #[test]
    fn a_long_hello_is_heard_or_refused() {
        let (choice, roots) = choice();
        let mut client = client(&roots, "early.test", b"h3", false);
        let mut hello = Vec::new();
        client.write_handshake(&mut hello);
        // Extensions are the last of it, and padding is one more (RFC 7685).
        let session_id = HEADER + 2 + 32;
        let suites = session_id + 1 + usize::from(hello[session_id]);
        let methods = suites + 2 + usize::from(hello[suites]) * 256 + usize::from(hello[suites + 1]);
        let extensions = methods + 1 + usize::from(hello[methods]);
        for body in [16_379, 16_380, 16_384, 16_385, 32_767, 32_768, 32_769, 65_511, 65_512, 65_535] {
            let mut long = hello.clone();
            long.extend([0, 21]);
            long.extend(u16::try_from(body + HEADER - hello.len() - 4).unwrap().to_be_bytes());
            long.resize(body + HEADER, 0);
            let all = u16::try_from(long.len() - extensions - 2).unwrap();
            long[extensions..extensions + 2].copy_from_slice(&all.to_be_bytes());
            long[1..4].copy_from_slice(&u32::try_from(body).unwrap().to_be_bytes()[1..]);
            let mut server = server(&choice);
            match server.read_handshake(&long) {
                Ok(ready) => assert!(ready && body <= MAX_HELLO && terms(&*server).is_some(), "{body}"),
                Err(error) => assert!(body > MAX_HELLO, "{body}: {error}"),
            }
        }
    }

    #[test]
    fn who_asks_for_something_else_is_refused_as_ever() {
        let (choice, roots) = choice();
        for (host, alpn, alert) in
            [("open.test", &b"hq"[..], 120), ("none.test", b"h3", 49), ("asks.test", b"hq", 120)]
        {
            let (mut client, mut server) = (client(&roots, host, alpn, false), server(&choice));
            let error = shake(&mut *client, &mut *server, 50).unwrap_err();
            assert_eq!(error.code, TransportErrorCode::crypto(alert), "{host}: {error}");
        }
        // No message of a client, one that is too long, and one that only looks like one.
        for bytes in [&[2, 0, 0, 0][..], &[1, 1, 0, 0], &[1, 0, 0, 4, 1, 2, 3, 4], &[0x16, 3, 1, 0]] {
            assert!(server(&choice).read_handshake(bytes).is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_a_client_sends_is_kept_for_long(mut bytes in prop::collection::vec(any::<u8>(), 5..200), at in 0usize..300) {
            let (choice, roots) = choice();
            let mut client = client(&roots, "early.test", b"h3", false);
            let mut hello = Vec::new();
            client.write_handshake(&mut hello);
            // A good one, broken somewhere.
            hello.splice(at..(at + 3).min(hello.len()), bytes.iter().copied());
            let mut broken = server(&choice);
            let heard = broken.read_handshake(&hello);
            prop_assert!(!matches!(heard, Ok(true)) || terms(&*broken).is_some());
            // One that never ends.
            (bytes[0], bytes[1]) = (CLIENT_HELLO, 0);
            let mut endless = server(&choice);
            let more = vec![0; MAX_HELLO];
            let ended = endless.read_handshake(&bytes).is_err() || endless.read_handshake(&more).is_err();
            prop_assert!(ended);
        }
    }
}
