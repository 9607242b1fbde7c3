//! Packets on their way from the worker that got them to the worker whose they are.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use quinn::udp::RecvMeta;

/// Bytes that may wait for a worker: what its socket may hold too.
const LIMIT: usize = 4 * 1024 * 1024;

/// What other workers have received for this one. What does not fit is dropped, like what does not fit into
/// a socket's buffer: QUIC sends it again.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// Whether there is anything, so that the owner need not lock to see that there is nothing.
    filled: AtomicBool,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    packets: VecDeque<(RecvMeta, Box<[u8]>)>,
    bytes: usize,
    owner: Option<Waker>,
    dropped: bool,
}

impl Inbox {
    /// Puts in datagrams that came together from one sender: `meta` as the socket gave it, but for the length.
    pub(super) fn put(&self, meta: &RecvMeta, datagrams: &[u8]) {
        let mut waiting = self.lock();
        let cost = cost(datagrams);
        if waiting.bytes + cost > LIMIT {
            if !std::mem::replace(&mut waiting.dropped, true) {
                drop(waiting);
                tracing::warn!(
                    "a worker has no room for QUIC packets that others received for it; they are lost"
                );
            }
            return;
        }
        waiting.bytes += cost;
        waiting.packets.push_back((RecvMeta { len: datagrams.len(), ..*meta }, datagrams.into()));
        self.filled.store(true, Ordering::Release);
        if let Some(owner) = waiting.owner.take() {
            drop(waiting);
            owner.wake();
        }
    }

    /// Takes out what fits, and says how many buffers that filled.
    pub(super) fn take(&self, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> usize {
        if !self.filled.load(Ordering::Acquire) {
            return 0;
        }
        let mut waiting = self.lock();
        let mut taken = 0;
        for (buffer, place) in buffers.iter_mut().zip(metas) {
            let Some((meta, datagrams)) = waiting.packets.pop_front() else { break };
            waiting.bytes -= cost(&datagrams);
            // A buffer is as large as what a socket gives at a time, and this came from a socket.
            if let Some(buffer) = buffer.get_mut(..datagrams.len()) {
                buffer.copy_from_slice(&datagrams);
                *place = meta;
                taken += 1;
            }
        }
        self.filled.store(!waiting.packets.is_empty(), Ordering::Release);
        taken
    }

    /// Has the owner woken when there is something. False: there is something already.
    pub(super) fn wait(&self, owner: &Waker) -> bool {
        let mut waiting = self.lock();
        if !waiting.packets.is_empty() {
            return false;
        }
        match &mut waiting.owner {
            Some(registered) => registered.clone_from(owner),
            none => *none = Some(owner.clone()),
        }
        true
    }

    /// Has the owner look again although nothing has come.
    pub(super) fn rouse(&self) {
        let owner = self.lock().owner.take();
        if let Some(owner) = owner {
            owner.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a packet takes of the limit: small ones have a price too.
fn cost(datagrams: &[u8]) -> usize {
    datagrams.len() + size_of::<(RecvMeta, Box<[u8]>)>()
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    fn take(inbox: &Inbox, buffers: usize) -> Vec<Vec<u8>> {
        let mut bytes = vec![[0; 1500]; buffers];
        let mut slices: Vec<_> = bytes.iter_mut().map(|b| IoSliceMut::new(b)).collect();
        let mut metas = vec![RecvMeta::default(); buffers];
        let taken = inbox.take(&mut slices, &mut metas);
        (0..taken).map(|n| bytes[n][..metas[n].len].to_vec()).collect()
    }

    #[test]
    fn packets_come_out_in_order_and_wake_their_owner_once() {
        let inbox = Inbox::default();
        assert!(inbox.wait(Waker::noop()));
        for byte in 0..5_u8 {
            inbox.put(&RecvMeta::default(), &[byte; 3]);
        }
        assert!(!inbox.wait(Waker::noop()), "there is something already");
        assert_eq!(take(&inbox, 3), [[0; 3], [1; 3], [2; 3]]);
        assert_eq!(take(&inbox, 3), [[3; 3], [4; 3]]);
        assert_eq!(take(&inbox, 3), Vec::<Vec<u8>>::new());
        assert!(inbox.wait(Waker::noop()));
    }

    #[test]
    fn a_flood_is_bounded_and_passes() {
        let inbox = Inbox::default();
        for _ in 0..LIMIT / 100 {
            inbox.put(&RecvMeta::default(), &[7; 100]);
        }
        let mut held = 0;
        loop {
            let taken = take(&inbox, 32);
            if taken.is_empty() {
                break;
            }
            held += taken.len();
        }
        assert_eq!(held, LIMIT / cost(&[7; 100]));
        assert_eq!(inbox.lock().bytes, 0);
        inbox.put(&RecvMeta::default(), b"again");
        assert_eq!(take(&inbox, 1), [b"again"]);
    }
}
