//! A whole connection: real QUIC in memory, a client that does what the input says, and a small service.
//!
//! The clock is tokio's own, which stands still while anything can run. So a pause lets everything happen that
//! can happen, costs no time, and an input does the same each time.

pub(crate) mod client;
mod service;
mod tls;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use quinn::{ClientConfig, Endpoint, EndpointConfig, TokioRuntime, TransportConfig, VarInt};
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{sleep, timeout};

use crate::input::Input;
use crate::seeds::phrases;
use crate::wire;

/// So long on a clock that runs only while nothing else does is for ever.
const FOR_EVER: Duration = Duration::from_secs(10);
/// What the client lets the service have in flight, of one stream.
const WINDOWS: [u32; 4] = [1, 16, 1024, 64 * 1024];
/// What the service lets its clients have: little, so that an input comes to the limits.
const STREAMS: u32 = 8;
const STREAM_WINDOW: u32 = 4 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024;

/// An input is a choice of the client's windows, and what it does, step by step.
///
/// Whatever that is: nothing panics, a neighbour on another connection is served, and when the client is gone
/// nothing of its connection is left.
pub fn connection(input: &[u8]) {
    thread_local! {
        static RIG: Rig = Rig::new();
    }
    RIG.with(|rig| rig.runtime.block_on(rig.play(Input(input))));
}

/// What inputs share: making it takes longer than most of them.
struct Rig {
    runtime: LocalRuntime,
    client: Endpoint,
    server: Endpoint,
    configs: [ClientConfig; 4],
    neighbour: Neighbour,
}

/// A connection that is well-behaved, and has been there all along.
struct Neighbour {
    quic: quinn::Connection,
    _control: quinn::SendStream,
    _goodbyes: mpsc::UnboundedSender<service::Goodbye>,
    _serving: JoinHandle<()>,
}

impl Rig {
    fn new() -> Rig {
        let mut builder = Builder::new_current_thread();
        let runtime = builder.enable_all().start_paused(true).build_local(LocalOptions::default()).unwrap();
        let [near, far] = wire::pair();
        let to = far.address();
        let (mut server_config, client_config) = tls::configs();
        server_config.transport_config(Arc::new(transport(|transport| {
            transport
                .max_concurrent_bidi_streams(STREAMS.into())
                .max_concurrent_uni_streams(STREAMS.into())
                .stream_receive_window(STREAM_WINDOW.into())
                .receive_window(CONNECTION_WINDOW.into())
                .send_window(CONNECTION_WINDOW.into());
        })));
        let configs = WINDOWS.map(|window| {
            let mut config = client_config.clone();
            config.transport_config(Arc::new(transport(|transport| {
                transport.stream_receive_window(window.into()).receive_window((window * 4).into());
            })));
            config
        });
        let endpoint = |server, socket| {
            let config = EndpointConfig::default();
            Endpoint::new_with_abstract_socket(config, server, socket, Arc::new(TokioRuntime)).unwrap()
        };
        let (client, server, neighbour) = runtime.block_on(async {
            let (client, server) = (endpoint(None, near), endpoint(Some(server_config), far));
            let (quic, goodbyes, serving) = connect(&client, &server, configs[3].clone(), to).await;
            let mut control = quic.open_uni().await.unwrap();
            control.write_all(&phrases::control()).await.unwrap();
            let neighbour = Neighbour { quic, _control: control, _goodbyes: goodbyes, _serving: serving };
            (client, server, neighbour)
        });
        Rig { runtime, client, server, configs, neighbour }
    }

    async fn play(&self, mut input: Input<'_>) {
        let config = self.configs[usize::from(input.byte()) % self.configs.len()].clone();
        let to = self.server.local_addr().unwrap();
        let (quic, goodbyes, serving) = connect(&self.client, &self.server, config, to).await;
        let mut client = client::Client::new(quic.clone(), goodbyes);
        client.follow(input).await;

        self.neighbour.is_served().await;
        client.leave();
        timeout(FOR_EVER, serving).await.expect("the connection does not end with its client").unwrap();
        // Until QUIC has forgotten it.
        sleep(FOR_EVER).await;
        assert_eq!((self.client.open_connections(), self.server.open_connections()), (1, 1));
    }
}

impl Neighbour {
    async fn is_served(&self) {
        static GET: LazyLock<Vec<u8>> = LazyLock::new(|| phrases::request("GET", "/", &[]));
        let asked = async {
            let (mut send, mut recv) = self.quic.open_bi().await.unwrap();
            send.write_all(&GET).await.unwrap();
            send.finish().unwrap();
            recv.read_to_end(1024).await.unwrap()
        };
        let response = timeout(FOR_EVER, asked).await.expect("nobody answers the neighbour");
        assert_eq!(client::statuses(&response), ["200"]);
    }
}

async fn connect(
    client: &Endpoint,
    server: &Endpoint,
    config: ClientConfig,
    to: std::net::SocketAddr,
) -> (quinn::Connection, mpsc::UnboundedSender<service::Goodbye>, JoinHandle<()>) {
    let connecting = client.connect_with(config, to, "shop.test").unwrap();
    let accepted = async { server.accept().await.unwrap().await.unwrap() };
    let (quic, accepted) = tokio::join!(connecting, accepted);
    let (goodbyes, said) = mpsc::unbounded_channel();
    (quic.unwrap(), goodbyes, spawn_local(service::serve(accepted, said)))
}

fn transport(change: impl FnOnce(&mut TransportConfig)) -> TransportConfig {
    let mut transport = TransportConfig::default();
    // Nothing that only the clock brings about: the neighbour must outlive it.
    transport.max_idle_timeout(None).mtu_discovery_config(None);
    transport.max_concurrent_bidi_streams(VarInt::from_u32(0));
    change(&mut transport);
    transport
}
