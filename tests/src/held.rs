//! What lasts: downloads over every version that a VM holds until it is told, and a WebSocket it echoes.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::{Client, Exchange, Fields, Gateway, Origin, Version, get, origin, within};

/// What a held download holds, piece by piece.
const PIECES: [&str; 2] = ["first", " last"];

/// A VM of this name that holds `/held` until `release` is notified, and echoes WebSockets at `/ws`.
pub async fn holding(name: &str, release: &Arc<Notify>) -> Origin {
    let bell = release.clone();
    origin()
        .named(name)
        .on("/held", move |call| {
            let bell = bell.clone();
            Box::pin(async move {
                let [first, last] = PIECES;
                call.start(200, &Fields::new(), None).await;
                call.write(first.into()).await.unwrap();
                bell.notified().await;
                call.write(last.into()).await.unwrap();
                call.finish(&Fields::new()).await;
            })
        })
        .on("/ws", |call| Box::pin(call.websocket()))
        .start()
        .await
}

/// A download under way, on a connection of its own.
pub struct Held {
    version: Version,
    pub client: Client,
    exchange: Exchange,
}

impl Held {
    /// Begins one of what a [`holding`] VM holds.
    pub async fn begin(client: Client, version: Version) -> Held {
        let mut exchange = client.open(&get("/held")).await.unwrap();
        assert_eq!(exchange.down.head(&mut Vec::new()).await.unwrap().0, 200, "{version:?}");
        Held { version, client, exchange }
    }

    /// One over each version.
    pub async fn all(gw: &Gateway, name: &str) -> Vec<Held> {
        let mut held = Vec::new();
        for version in Version::ALL {
            held.push(Held::begin(gw.client(version, name).await, version).await);
        }
        held
    }

    /// Checks that it is broken off, within a time that is long enough for it.
    pub async fn is_cut(mut self) {
        let version = self.version;
        let end = within("an end", async { while let Ok(Some(_)) = self.exchange.down.data().await {} });
        end.await;
        let again = self.client.send(&get("/")).await;
        assert!(again.is_err(), "{version:?}: {again:?}");
    }

    /// Checks that it comes to its end, whole.
    pub async fn ends_whole(mut self) {
        let (version, mut body) = (self.version, Vec::new());
        while let Some(piece) = self.exchange.down.data().await.unwrap_or_else(|e| panic!("{version:?}: {e}"))
        {
            body.extend_from_slice(&piece);
        }
        assert_eq!(body, PIECES.concat().as_bytes(), "{version:?}");
    }
}
