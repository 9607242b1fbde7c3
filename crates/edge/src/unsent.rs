//! How much of what was written to a TCP connection is still on its way.

use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};

use rustix::net::{RecvFlags, Shutdown, recv, shutdown};
use tokio::net::TcpStream;

/// How many pieces are taken at a time of what nobody wants.
const PIECES: usize = 64;
/// The state in which a connection is no more, as the kernel numbers them.
const TCP_CLOSE: u8 = 7;

/// The socket of a connection that somebody else owns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unsent(RawFd);

impl Unsent {
    /// Of a connection that lives at least as long as this is asked.
    pub(crate) fn of(stream: &TcpStream) -> Unsent {
        Unsent(stream.as_raw_fd())
    }

    /// Bytes that the client's system has not acknowledged, and still may.
    pub(crate) fn bytes(self) -> usize {
        if self.is_over() {
            return 0;
        }
        let mut bytes: libc::c_int = 0;
        // SAFETY: the request writes one `c_int` to where its argument points, which is one. Whatever the descriptor is by then,
        // nothing else is written.
        #[allow(unsafe_code, reason = "no crate we use offers TIOCOUTQ")]
        let result = unsafe { libc::ioctl(self.0, libc::TIOCOUTQ, &raw mut bytes) };
        if result == 0 { usize::try_from(bytes).unwrap_or(0) } else { 0 }
    }

    /// Both sides have said goodbye, or one has broken it off.
    pub(crate) fn is_over(self) -> bool {
        let (mut state, mut length): (u8, libc::socklen_t) = (0, 1);
        // SAFETY: no more than `length` bytes are written, which is the one that there is: the state is the first of the record.
        #[allow(unsafe_code, reason = "no crate we use offers TCP_INFO")]
        let result = unsafe {
            libc::getsockopt(
                self.0,
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                (&raw mut state).cast(),
                &raw mut length,
            )
        };
        result != 0 || state == TCP_CLOSE
    }

    /// Says that nothing more comes, and takes what the client still sends: what nobody has read when a connection is closed
    /// makes the system break it off, and forget what is on its way. Returns whether something has come.
    pub(crate) fn take_leave(self) -> bool {
        // SAFETY: by `of` the connection still lives.
        #[allow(unsafe_code, reason = "somebody else owns it")]
        let socket = unsafe { BorrowedFd::borrow_raw(self.0) };
        // Mostly it was said already.
        _ = shutdown(socket, Shutdown::Write);
        let mut aside = [0; 4096];
        let mut taken = || recv(socket, &mut aside, RecvFlags::DONTWAIT).is_ok_and(|(taken, _)| taken > 0);
        // Others want to be served too; the rest is taken the next time.
        (0..PIECES).take_while(|_| taken()).count() > 0
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
    #[tokio::test]
    async fn what_nobody_will_ever_take_does_not_count() {
        for resets in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (mut server, _) = listener.accept().await.unwrap();
            while tokio::time::timeout(Duration::from_millis(50), server.write_all(&[0; 4096])).await.is_ok()
            {
            }
            let unsent = Unsent::of(&server);
            assert!(unsent.bytes() > 0 && !unsent.is_over());
            if resets {
                drop(client);
            } else {
                assert!(!unsent.take_leave());
                let mut client = client;
                client.write_all(b"thanks").await.unwrap();
                while client.read(&mut [0; 65536]).await.unwrap() > 0 {}
                while unsent.bytes() > 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                assert!(!unsent.is_over(), "the client has not said goodbye");
                assert!(unsent.take_leave() && !unsent.take_leave());
            }
            while !unsent.is_over() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(unsent.bytes(), 0);
        }
    }
}
