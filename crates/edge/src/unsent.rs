//! How much of what was written to a TCP connection is still on its way.

use std::os::fd::{AsRawFd as _, RawFd};

use tokio::net::TcpStream;

/// The socket of a connection that somebody else owns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unsent(RawFd);

impl Unsent {
    /// Of a connection that lives at least as long as this is asked.
    pub(crate) fn of(stream: &TcpStream) -> Unsent {
        Unsent(stream.as_raw_fd())
    }

    /// Bytes that the client's system has not acknowledged.
    pub(crate) fn bytes(self) -> usize {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the request writes one `c_int` to where its argument points, which is one. Whatever the descriptor is by then,
        // nothing else is written.
        #[allow(unsafe_code, reason = "no crate we use offers TIOCOUTQ")]
        let result = unsafe { libc::ioctl(self.0, libc::TIOCOUTQ, &raw mut bytes) };
        if result == 0 { usize::try_from(bytes).unwrap_or(0) } else { 0 }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_is_not_acknowledged_counts() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        socket2::SockRef::from(&client).set_recv_buffer_size(32 * 1024).unwrap();
        socket2::SockRef::from(&server).set_send_buffer_size(32 * 1024).unwrap();
        assert_eq!(Unsent::of(&server).bytes(), 0);
        // More than the client's system takes without its program.
        while tokio::time::timeout(Duration::from_millis(50), server.write_all(&[0; 4096])).await.is_ok() {}
        let held = Unsent::of(&server).bytes();
        assert!(held > 4096, "{held}");
        let mut client = client;
        tokio::spawn(async move { while client.read(&mut [0; 65536]).await.unwrap() > 0 {} });
        while Unsent::of(&server).bytes() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
