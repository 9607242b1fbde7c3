//! A QUIC connection, and what the gateway opens on it of its own accord.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{Arc, Mutex},
    time::Duration,
};

use quinn::{ConnectionError, RecvStream, SendStream, VarInt, crypto::rustls::QuicClientConfig};

use super::{
    frame::{CONTROL, DECODER, ENCODER, settings, varint},
    stream::{Frame, Frames, Stream},
};
use crate::{Authority, Dial};

/// What a client offers.
pub struct Options {
    pub alpn: &'static [u8],
    /// Bytes the gateway may have under way to it, on all streams together.
    pub window: u32,
    /// And on one stream, if that is less.
    pub stream_window: u32,
    /// Unidirectional streams that the gateway may open.
    pub streams: u32,
    /// Whether the gateway's streams are read. If not, the test accepts them itself.
    pub watch: bool,
    /// Remembers sessions from one connection to the next; without it nothing is remembered.
    pub tls: Option<rustls::ClientConfig>,
}

impl Options {
    /// Those of a client that comes back, and then sends early data where it may.
    pub fn returning() -> Options {
        let mut tls = Authority::shared().client(&[b"h3"]);
        tls.enable_early_data = true;
        Options { tls: Some(tls), ..Options::default() }
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            alpn: b"h3",
            window: 8 << 20,
            stream_window: u32::MAX,
            streams: 100,
            watch: true,
            tls: None,
        }
    }
}

/// What came on streams that the gateway opened.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The types of its unidirectional streams.
    pub streams: Vec<u64>,
    /// The frames on its control stream.
    pub control: Vec<Frame>,
    /// What came on its encoder and decoder streams, in this order.
    pub qpack: [Vec<u8>; 2],
    /// The types of those that ended: by FIN, by reset, or within a frame.
    pub ended: Vec<u64>,
    /// How many bidirectional streams it opened.
    pub bidirectional: usize,
}

/// A connection of a client that does only what it is told.
pub struct Connection {
    pub quic: quinn::Connection,
    pub endpoint: quinn::Endpoint,
    seen: Arc<Mutex<Seen>>,
}

impl Connection {
    /// Connects and opens nothing: not even a control stream.
    pub async fn connect(dial: &Dial, options: Options) -> Result<Connection, ConnectionError> {
        let (endpoint, connecting) = Connection::dial(dial, &options);
        Ok(Connection::over(endpoint, connecting.await?, &options))
    }

    /// Connects and can send at once, if the gateway has allowed that before. Resolves to whether what was
    /// sent before the end of the handshake was taken.
    pub fn early(dial: &Dial, options: &Options) -> Option<(Connection, quinn::ZeroRttAccepted)> {
        let (endpoint, connecting) = Connection::dial(dial, options);
        let (quic, accepted) = connecting.into_0rtt().ok()?;
        Some((Connection::over(endpoint, quic, options), accepted))
    }

    fn dial(dial: &Dial, options: &Options) -> (quinn::Endpoint, quinn::Connecting) {
        let socket = UdpSocket::bind(SocketAddr::new(dial.from, 0)).unwrap();
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = quinn::Endpoint::new(quinn::EndpointConfig::default(), None, socket, runtime).unwrap();
        let mut transport = quinn::TransportConfig::default();
        // A gateway that is gone without a word is noticed within the harness's patience.
        transport.max_idle_timeout(Some(Duration::from_secs(15).try_into().unwrap()));
        let stream = options.stream_window.min(options.window);
        transport.stream_receive_window(stream.into()).receive_window(options.window.into());
        transport.max_concurrent_uni_streams(options.streams.into());
        let tls = options.tls.clone().unwrap_or_else(|| Authority::shared().client(&[options.alpn]));
        let tls = QuicClientConfig::try_from(tls).unwrap();
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(Arc::new(transport));
        let connecting = endpoint.connect_with(config, dial.https, &dial.name).unwrap();
        (endpoint, connecting)
    }

    fn over(endpoint: quinn::Endpoint, quic: quinn::Connection, options: &Options) -> Connection {
        let seen = Arc::<Mutex<Seen>>::default();
        if options.watch {
            tokio::spawn(watch(quic.clone(), seen.clone()));
        }
        Connection { quic, endpoint, seen }
    }

    /// What the gateway has opened and sent of its own accord so far.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    /// Opens a request stream and sends nothing on it.
    pub async fn open(&self) -> Stream {
        let (send, recv) = self.quic.open_bi().await.unwrap_or_else(|e| panic!("no request stream: {e}"));
        Stream::new(send, recv)
    }

    /// Opens a request stream, sends these bytes and ends its direction.
    pub async fn request(&self, bytes: impl AsRef<[u8]>) -> Stream {
        let mut stream = self.open().await;
        stream.finish(bytes).await;
        stream
    }

    /// Opens a request stream and sends these bytes on it; more may follow.
    pub async fn begin(&self, bytes: impl AsRef<[u8]>) -> Stream {
        let mut stream = self.open().await;
        stream.write(bytes).await;
        stream
    }

    /// Opens a unidirectional stream and sends these bytes, the type included. Dropping it ends it.
    pub async fn unidirectional(&self, bytes: impl AsRef<[u8]>) -> SendStream {
        let mut send = self.quic.open_uni().await.unwrap_or_else(|e| panic!("no stream: {e}"));
        let _ = send.write_all(bytes.as_ref()).await;
        send
    }

    /// Opens a unidirectional stream of this type.
    pub async fn typed(&self, kind: u64, bytes: impl AsRef<[u8]>) -> SendStream {
        self.unidirectional([&varint(kind)[..], bytes.as_ref()].concat()).await
    }

    /// Opens the control stream with an empty SETTINGS frame.
    pub async fn control(&self) -> SendStream {
        self.typed(CONTROL, settings(&[])).await
    }

    /// Waits for the gateway's next unidirectional stream; for connections that are not watched.
    pub async fn accept(&self) -> (u64, Frames) {
        let recv: RecvStream = self.quic.accept_uni().await.unwrap_or_else(|e| panic!("no stream: {e}"));
        let mut frames = Frames::new(recv);
        let kind = frames.varint().await.unwrap_or_else(|e| panic!("{e:?}")).expect("a stream type");
        (kind, frames)
    }

    /// Ends the connection as a client that is content.
    pub fn close(&self) {
        self.quic.close(VarInt::from_u32(0x100), b"");
    }
}

async fn watch(quic: quinn::Connection, seen: Arc<Mutex<Seen>>) {
    loop {
        tokio::select! {
            stream = quic.accept_uni() => match stream {
                Ok(recv) => drop(tokio::spawn(follow(recv, seen.clone()))),
                Err(_) => return,
            },
            stream = quic.accept_bi() => match stream {
                Ok(_) => seen.lock().unwrap().bidirectional += 1,
                Err(_) => return,
            },
        }
    }
}

async fn follow(recv: RecvStream, seen: Arc<Mutex<Seen>>) {
    let mut frames = Frames::new(recv);
    let Ok(Some(kind)) = frames.varint().await else { return };
    seen.lock().unwrap().streams.push(kind);
    if kind == CONTROL {
        while let Ok(Some(frame)) = frames.next().await {
            seen.lock().unwrap().control.push(frame);
        }
    } else {
        while let Ok(Some(bytes)) = frames.bytes().await {
            if let ENCODER | DECODER = kind {
                seen.lock().unwrap().qpack[usize::from(kind == DECODER)].extend_from_slice(&bytes);
            }
        }
    }
    seen.lock().unwrap().ended.push(kind);
}
