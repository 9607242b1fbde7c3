//! A network in memory: two ends, and what one sends the other receives, whole and in order.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

/// One end, as quinn wants it.
#[derive(Debug)]
pub(crate) struct End {
    address: SocketAddr,
    incoming: Arc<Mutex<Queue>>,
    outgoing: Arc<Mutex<Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    datagrams: VecDeque<Vec<u8>>,
    reader: Option<Waker>,
}

/// Both ends.
pub(crate) fn pair() -> [Arc<End>; 2] {
    let [one, other]: [Arc<Mutex<Queue>>; 2] = Default::default();
    let end = |port, incoming: &Arc<Mutex<Queue>>, outgoing: &Arc<Mutex<Queue>>| {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Arc::new(End { address, incoming: incoming.clone(), outgoing: outgoing.clone() })
    };
    // Ports of nobody: nothing is ever bound.
    [end(1, &one, &other), end(2, &other, &one)]
}

impl End {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    fn peer(&self) -> SocketAddr {
        SocketAddr::new(self.address.ip(), 3 - self.address.port())
    }
}

impl AsyncUdpSocket for End {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        assert_eq!(transmit.destination, self.peer());
        let mut queue = self.outgoing.lock().unwrap();
        queue.datagrams.push_back(transmit.contents.to_vec());
        if let Some(reader) = queue.reader.take() {
            reader.wake();
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut queue = self.incoming.lock().unwrap();
        let mut count = 0;
        for (buffer, meta) in buffers.iter_mut().zip(metas) {
            let Some(datagram) = queue.datagrams.pop_front() else { break };
            let length = datagram.len();
            buffer[..length].copy_from_slice(&datagram);
            *meta = RecvMeta::default();
            (meta.addr, meta.len, meta.stride) = (self.peer(), length, length);
            count += 1;
        }
        if count == 0 {
            queue.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
