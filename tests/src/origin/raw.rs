//! An origin that answers with literal bytes, however wrong, and keeps what it received.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::{JoinHandle, JoinSet},
};

use crate::{
    eventually_async,
    ports::{Lease, lease},
    wire::find,
};

/// A listening origin of literal bytes.
pub struct Raw {
    lease: Lease,
    received: Arc<Mutex<Vec<Vec<u8>>>>,
    task: JoinHandle<()>,
}

/// Starts an origin that answers each head it receives with `answer`; an empty answer means silence.
/// With `close` it closes after the first answer.
pub async fn raw(answer: impl Into<Vec<u8>>, close: bool) -> Raw {
    let answer: Arc<[u8]> = answer.into().into();
    let lease = lease();
    let bind = || async { TcpListener::bind(("127.0.0.1", lease.port)).await.ok() };
    let listener = eventually_async("the origin's port", bind).await;
    let received: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let kept = received.clone();
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let (answer, kept) = (answer.clone(), kept.clone());
            connections.spawn(async move {
                let number = {
                    let mut kept = kept.lock().unwrap();
                    kept.push(Vec::new());
                    kept.len() - 1
                };
                let (mut buffer, mut pending) = (vec![0; 64 * 1024], Vec::new());
                while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    kept.lock().unwrap()[number].extend_from_slice(&buffer[..n]);
                    pending.extend_from_slice(&buffer[..n]);
                    while let Some(at) = find(&pending, b"\r\n\r\n") {
                        pending.drain(..at + 4);
                        if stream.write_all(&answer).await.is_err() || close {
                            return;
                        }
                    }
                }
            });
        }
    });
    Raw { lease, received, task }
}

impl Raw {
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.lease.port)
    }

    /// The bytes of every connection so far.
    pub fn received(&self) -> Vec<Vec<u8>> {
        self.received.lock().unwrap().clone()
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.task.abort();
    }
}
