//! The server under test, with a service that does everything the gateway does with a request.

use std::future::poll_fn;
use std::pin::pin;

use bytes::Bytes;
use foregate_http3::{Code, Connection, Error, Incoming, RecvStream, SendStream, Settings, Tunnel};
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Small, so that an input reaches it.
const SETTINGS: Settings = Settings { max_field_section_size: 512 };
/// More than all windows together.
const LARGE: usize = 20 * 1024;
const PIECE: usize = 3000;

/// The two steps of leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goodbye {
    Begin,
    Finish,
}

/// Serves until the connection is over; panics if a request of it did.
pub(super) async fn serve(quic: quinn::Connection, mut said: mpsc::UnboundedReceiver<Goodbye>) {
    let Ok(mut connection) = Connection::start(quic, SETTINGS) else { return };
    let mut requests = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(goodbye) = said.recv() => match goodbye {
                Goodbye::Begin => connection.begin_goaway(),
                Goodbye::Finish => connection.finish_goaway(),
            },
            incoming = connection.accept() => match incoming {
                Ok(incoming) => _ = requests.spawn_local(answer(incoming)),
                Err(_) => break,
            },
        }
    }
    connection.close(Code::H3_NO_ERROR);
    while let Some(ended) = requests.join_next().await {
        // What it could not send is no finding.
        _ = ended.unwrap();
    }
}

async fn answer(mut incoming: Incoming) -> Result<(), Error> {
    let head = match incoming.head().await {
        Ok(head) => head,
        Err(Error::TooLarge) => {
            let (_recv, send) = incoming.into_streams();
            return respond(send, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, 0).await;
        }
        Err(error) => return Err(error),
    };
    let (recv, mut send) = incoming.into_streams();
    if head.protocol.is_some() {
        return echo(recv, send).await;
    }
    match head.parts.uri.path() {
        "/never" => return Err(send.stopped().await),
        "/early" => {
            let _unread = recv;
            return respond(send, StatusCode::OK, 0).await;
        }
        _ => {}
    }
    if head.parts.headers.contains_key("expect") {
        send.interim(StatusCode::CONTINUE, &HeaderMap::new());
        flush(&mut send).await?;
    }
    tokio::select! {
        error = send.stopped() => return Err(error),
        body = read(recv, head.content_length) => body?,
    }
    let length = if head.parts.uri.path() == "/large" { LARGE } else { 5 };
    respond(send, StatusCode::OK, length).await
}

/// Reads a body to its end, which is where it was said to be.
async fn read(mut recv: RecvStream, announced: Option<u64>) -> Result<(), Error> {
    let mut length = 0;
    let mut trailers = false;
    while let Some(frame) = poll_fn(|cx| recv.poll_body(cx)).await {
        let frame = frame?;
        assert!(!trailers, "something after the trailers");
        match frame.data_ref() {
            Some(data) => length += data.len() as u64,
            None => trailers = true,
        }
        assert!(announced.is_none_or(|announced| length <= announced), "a longer body");
    }
    assert!(announced.is_none_or(|announced| length == announced), "a shorter body");
    assert!(recv.is_over());
    Ok(())
}

async fn respond(mut send: SendStream, status: StatusCode, length: usize) -> Result<(), Error> {
    let mut headers = HeaderMap::new();
    headers.insert("content-length", HeaderValue::from(length));
    send.head(status, &headers);
    let body = Bytes::from(vec![b'x'; length]);
    for start in (0..length).step_by(PIECE) {
        send.data(body.slice(start..length.min(start + PIECE)));
        flush(&mut send).await?;
    }
    if length > 0 {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-length", HeaderValue::from(length));
        send.trailers(&trailers);
    }
    flush(&mut send).await?;
    send.finish();
    Ok(())
}

async fn flush(send: &mut SendStream) -> Result<(), Error> {
    poll_fn(|cx| send.poll_flush(cx)).await
}

async fn echo(recv: RecvStream, mut send: SendStream) -> Result<(), Error> {
    send.head(StatusCode::OK, &HeaderMap::new());
    flush(&mut send).await?;
    let (mut from, mut to) = tokio::io::split(Tunnel::new(recv, send));
    let copied = pin!(tokio::io::copy(&mut from, &mut to)).await;
    if copied.is_ok() {
        // It may have been stopped meanwhile.
        _ = to.shutdown().await;
    }
    Ok(())
}
