//! What is asked of a VM's answer whichever version it came in, and what a missing one says about the VM.

use std::error::Error;
use std::io;

use foregate_exchange::{Failure, Kind};
use http::StatusCode;

/// hyper reads any three digits; RFC 9110, section 15: what lies outside 100 to 599 is not valid.
pub(crate) fn check_status(status: StatusCode) -> Result<(), Failure> {
    if status.as_u16() >= 600 {
        return Err(Failure::because(Kind::BadResponse, "its status is not one of HTTP"));
    }
    Ok(())
}

/// What hyper's error says about the VM, or about the client where the request's body failed.
pub(crate) fn failure(error: hyper::Error) -> Failure {
    if let Some(failure) = Failure::within(&error) {
        return failure;
    }
    let kind = if error.is_parse() {
        Kind::BadResponse
    } else if error.is_timeout() || is_systems_timeout(&error) {
        Kind::HeadTimeout
    } else {
        Kind::Reset
    };
    Failure::because(kind, error)
}

/// hyper's own time-out is that of HTTP/2 pings; the system gives up a VM that acknowledges nothing.
fn is_systems_timeout(error: &hyper::Error) -> bool {
    let mut next = error.source();
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use bytes::Bytes;
    use http::Request;
    use http_body_util::Empty;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::*;

    /// A connection that takes everything and whose reading fails in this way.
    struct Failing(io::ErrorKind);

    impl AsyncRead for Failing {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(self.0.into()))
        }
    }

    impl AsyncWrite for Failing {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_vm_that_acknowledges_nothing_took_too_long() {
        for (error, kind) in [
            (io::ErrorKind::TimedOut, Kind::HeadTimeout),
            (io::ErrorKind::ConnectionReset, Kind::Reset),
            (io::ErrorKind::HostUnreachable, Kind::Reset),
        ] {
            let io = TokioIo::new(Failing(error));
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            let answer = sender.send_request(Request::new(Empty::<Bytes>::new()));
            let (answer, _) = tokio::join!(answer, connection);
            assert_eq!(failure(answer.unwrap_err()).kind(), kind, "{error:?}");
        }
    }
}
