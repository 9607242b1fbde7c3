//! hyper's HTTP/2 client, towards a VM.

use std::future::Future;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::handshake;
use tokio::io::duplex;
use tokio::sync::mpsc;
use tokio::task::spawn_local;

use crate::body::{Fed, data, fed, read, trailers};
use crate::wire::{Local, TokioIo, all_idle};

/// Sends `request` to a VM that does as `vm` says.
async fn exchange<A>(
    request: Request<Fed>,
    vm: impl Fn(Request<h2::RecvStream>, h2::server::SendResponse<Bytes>) -> A + 'static,
) -> hyper::Result<Response<Incoming>>
where
    A: Future<Output = ()> + 'static,
{
    let (theirs, ours) = duplex(1 << 20);
    spawn_local(async move {
        let mut connection = h2::server::handshake(theirs).await.unwrap();
        while let Some(Ok((request, answer))) = connection.accept().await {
            spawn_local(vm(request, answer));
        }
    });
    let (mut sender, connection) = handshake(Local, TokioIo(ours)).await.unwrap();
    spawn_local(connection);
    sender.send_request(request).await
}

fn post(body: Fed) -> Request<Fed> {
    Request::post("http://a/").body(body).unwrap()
}

/// Demand: 1xx of the VM is handed on before the final answer.
#[tokio::test(flavor = "local", start_paused = true)]
async fn interim_answers() {
    let (seen, mut interim) = mpsc::unbounded_channel();
    let mut request = post(fed([]));
    hyper::ext::on_informational(&mut request, move |interim| seen.send(interim.status()).unwrap());
    let answer = exchange(request, |_, mut answer| async move {
        answer.send_informational(Response::builder().status(103).body(()).unwrap()).unwrap();
        answer.send_response(Response::new(()), true).unwrap();
    })
    .await
    .unwrap();
    assert_eq!(answer.status(), 200);
    assert!(interim.try_recv().is_err());
}

/// Demand: gRPC: `te: trailers` is kept, trailers pass both ways without `Trailer`.
#[tokio::test(flavor = "local", start_paused = true)]
async fn trailers_both_ways() {
    let mut request = post(fed([data("abc"), trailers(&[("x", "y")])]));
    request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    let answer = exchange(request, |request, mut answer| async move {
        assert_eq!(request.headers()["te"], "trailers");
        let mut body = request.into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "abc");
        assert!(body.data().await.is_none());
        let end = body.trailers().await.unwrap().unwrap();
        answer.send_response(Response::new(()), false).unwrap().send_trailers(end).unwrap();
    })
    .await
    .unwrap();
    assert_eq!(read(answer.into_body()).await.unwrap(), "||x: y");
}

/// Demand: an answer cut short is an error.
#[tokio::test(flavor = "local", start_paused = true)]
async fn answer_cut_short() {
    /// 3 of 9 bytes, then RST_STREAM with `reason`, or END_STREAM.
    async fn cut(reason: Option<h2::Reason>) -> hyper::Result<String> {
        let answer = exchange(post(fed([])), move |_, mut answer| async move {
            let head = Response::builder().header("content-length", "9").body(()).unwrap();
            let mut body = answer.send_response(head, false).unwrap();
            body.send_data("abc".into(), reason.is_none()).unwrap();
            // Once the bytes are out: a reset overtakes what is queued.
            all_idle().await;
            if let Some(reason) = reason {
                body.send_reset(reason);
            }
        })
        .await
        .unwrap();
        read(answer.into_body()).await
    }

    cut(None).await.unwrap_err();
    cut(Some(h2::Reason::CANCEL)).await.unwrap_err();
    // hyper takes this for the end of the body, whatever the length says.
    assert_eq!(cut(Some(h2::Reason::NO_ERROR)).await.unwrap(), "abc");
}
