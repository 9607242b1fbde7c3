//! The `tcp` probe: the port accepts connections. Nothing is sent, and TLS is not spoken.

use std::sync::Arc;
use std::time::Duration;

use foregate_routing::Endpoint;
use foregate_upstream::Client;
use tokio::time::timeout;

use super::Unwell;

pub(super) struct TcpProbe {
    client: Client,
    endpoint: Arc<Endpoint>,
    timeout: Duration,
}

impl TcpProbe {
    pub(super) fn new(endpoint: &Arc<Endpoint>, timeout: Duration) -> TcpProbe {
        TcpProbe { client: Client::default(), endpoint: endpoint.clone(), timeout }
    }

    pub(super) async fn run(&self) -> Result<(), Unwell> {
        match timeout(self.timeout, self.client.touch(&self.endpoint)).await {
            Ok(touched) => touched.map_err(Unwell::Failed),
            Err(_) => Err(Unwell::Silent(self.timeout)),
        }
    }
}

#[cfg(test)]
mod tests {
    use foregate_routing::Address;
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    async fn probe(address: std::net::SocketAddr) -> Result<(), String> {
        let vm = Endpoint::new("api".into(), Address::Ip(address));
        TcpProbe::new(&vm, Duration::from_millis(1500)).run().await.map_err(|unwell| unwell.to_string())
    }

    #[tokio::test]
    async fn an_open_port_is_well() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        assert_eq!(probe(listener.local_addr().unwrap()).await, Ok(()));
    }

    #[tokio::test]
    async fn a_closed_port_is_not() {
        // Bound, but not listening: nobody else can take the port meanwhile.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let refused = probe(socket.local_addr().unwrap()).await.unwrap_err();
        assert!(refused.contains("Connection refused"), "{refused}");
    }

    #[tokio::test(start_paused = true)]
    async fn nor_is_silence() {
        let full = crate::testing::full();
        assert_eq!(probe(full.address).await, Err("no answer within 1.5s".to_owned()));
    }
}
