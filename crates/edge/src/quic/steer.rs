//! Which worker's packet it is: the rule, and the same rule as a program for the kernel.
//!
//! Owns the layout of a port's sockets and of the two bytes at the head of our connection ids. The first
//! bit names the set of sockets, the other fifteen, modulo the number of workers, the worker. The rule:
//!
//! - a short header (RFC 8999, section 5.2) has an id of ours, so it says itself whose it is;
//! - so does a long header whose destination id is as long as ours are;
//! - any other long header is a client's first, and its random id is dealt out among the newest workers,
//!   so that all of the client's first packets reach the same one.
//!
//! Two bytes and not one, because machines have more cores than a byte beside the set could name.

use std::io;
use std::num::NonZero;
use std::os::fd::{AsFd, AsRawFd};

use libc::{
    BPF_ABS, BPF_ADD, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_MOD,
    BPF_RET, sock_filter,
};

use super::cid::LENGTH;

const BPF_A: u32 = 0x10;
/// The first bit of a QUIC packet: a long header (RFC 8999, section 5.1).
const LONG: u8 = 0x80;
/// The bits that tell a first packet of version 1, and what they are there (RFC 9000, section 17.2).
const INITIAL: (u8, u8) = (0xf0, 0xc0);
const SHORTEST: usize = 1200;
/// The bit of an id's first two bytes that names the set.
const SECOND: u16 = 0x8000;
/// How many workers the rest of those bits can tell apart.
const MOST: u16 = 0x7fff;

/// The sockets of one address and port, one `SO_REUSEPORT` group: sets times workers, and their order in the
/// group is the order in which they were bound: the first set's workers, then the second's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    sets: Sets,
    workers: NonZero<u16>,
}

/// How many processes can own sockets of a group at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sets {
    One,
    /// A process and its successor.
    Two,
}

/// One process's part of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    First,
    Second,
}

impl Set {
    #[must_use]
    pub fn other(self) -> Set {
        match self {
            Set::First => Set::Second,
            Set::Second => Set::First,
        }
    }
}

/// Whose a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    /// `None`: the newest process's.
    pub(super) set: Option<Set>,
    pub(super) worker: u16,
}

/// The destination id of a client's first packet: an Initial, in a datagram as long as such a one must be (RFC 9000,
/// section 14.1), whose id is none of ours.
pub(super) fn first_id(datagram: &[u8]) -> Option<&[u8]> {
    match *datagram {
        [first, _, _, _, _, length, ..]
            if first & INITIAL.0 == INITIAL.1
                && usize::from(length) != LENGTH
                && datagram.len() >= SHORTEST =>
        {
            datagram.get(6..6 + usize::from(length))
        }
        _ => None,
    }
}

impl Group {
    /// `None` if ids cannot tell that many workers apart, or there is none.
    #[must_use]
    pub fn new(sets: Sets, workers: usize) -> Option<Group> {
        let workers = NonZero::new(u16::try_from(workers).ok()?)?;
        (workers.get() <= MOST).then_some(Group { sets, workers })
    }

    #[must_use]
    pub fn workers(&self) -> u16 {
        self.workers.get()
    }

    /// Has the kernel steer the packets of this group, by any of its sockets; replaces the program that
    /// was there. Clients' first packets go to the set `newest`.
    ///
    /// # Errors
    /// The kernel has no such programs, or is not allowed to take them.
    pub fn attach(&self, socket: impl AsFd, newest: Set) -> io::Result<()> {
        let mut program = self.program(newest);
        let filter = libc::sock_fprog {
            len: u16::try_from(program.len()).map_err(io::Error::other)?,
            filter: program.as_mut_ptr(),
        };
        let length = libc::socklen_t::try_from(size_of_val(&filter)).map_err(io::Error::other)?;
        // SAFETY: the descriptor is borrowed for the call; the option's value is a `sock_fprog` of the
        // length given, whose pointer and count are those of `program`, alive until the kernel has copied it.
        #[allow(unsafe_code, reason = "no crate we use offers SO_ATTACH_REUSEPORT_CBPF")]
        let result = unsafe {
            libc::setsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_REUSEPORT_CBPF,
                (&raw const filter).cast(),
                length,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Whose this datagram is. What is too short to be QUIC is anybody's.
    pub(super) fn owner(&self, datagram: &[u8]) -> Owner {
        match *datagram {
            [first, a, b, ..] if first & LONG == 0 => self.owner_of([a, b]),
            [_, _, _, _, _, length, a, b, ..] if usize::from(length) == LENGTH => self.owner_of([a, b]),
            [_, _, _, _, _, _, a, b, ..] => {
                Owner { set: None, worker: u16::from_be_bytes([a, b]) % self.workers }
            }
            _ => Owner { set: None, worker: 0 },
        }
    }

    /// Who issued the id that begins with these bytes.
    pub(super) fn owner_of(&self, tag: [u8; 2]) -> Owner {
        let tag = u16::from_be_bytes(tag);
        let set = match self.sets {
            Sets::One => None,
            Sets::Two if tag & SECOND == 0 => Some(Set::First),
            Sets::Two => Some(Set::Second),
        };
        Owner { set, worker: (tag & !SECOND) % self.workers }
    }

    /// The first bytes of an id of this worker, as random as they can be.
    pub(super) fn tag(&self, set: Set, worker: u16, random: u16) -> [u8; 2] {
        let turns = SECOND / self.workers;
        let tag = random % turns * self.workers.get() + worker;
        let set = if set == Set::Second { SECOND } else { 0 };
        (tag | set).to_be_bytes()
    }

    /// `owner` for the kernel: from a datagram the index of the socket that gets it. The kernel reads from
    /// behind the UDP header, and a program that reads beyond the end gives 0.
    fn program(&self, newest: Set) -> [sock_filter; 18] {
        let workers = u32::from(self.workers.get());
        let offset = |set| if (self.sets, set) == (Sets::Two, Set::Second) { workers } else { 0 };
        [
            step(BPF_LD | BPF_B | BPF_ABS, 0),
            jump(BPF_JSET, LONG.into(), 2),
            // A short header.
            step(BPF_LD | BPF_H | BPF_ABS, 1),
            step(BPF_JMP, 7),
            // A long one: how long is its id?
            step(BPF_LD | BPF_B | BPF_ABS, 5),
            jump(BPF_JEQ, LENGTH as u32, 4),
            // A client's first.
            step(BPF_LD | BPF_H | BPF_ABS, 6),
            step(BPF_ALU | BPF_MOD | BPF_K, workers),
            step(BPF_ALU | BPF_ADD | BPF_K, offset(newest)),
            step(BPF_RET | BPF_A, 0),
            step(BPF_LD | BPF_H | BPF_ABS, 6),
            // The first two bytes of an id of ours.
            jump(BPF_JSET, SECOND.into(), 2),
            step(BPF_ALU | BPF_MOD | BPF_K, workers),
            step(BPF_RET | BPF_A, 0),
            step(BPF_ALU | BPF_AND | BPF_K, (!SECOND).into()),
            step(BPF_ALU | BPF_MOD | BPF_K, workers),
            step(BPF_ALU | BPF_ADD | BPF_K, offset(Set::Second)),
            step(BPF_RET | BPF_A, 0),
        ]
    }
}

/// An instruction; for `BPF_JMP`, how many to leave out.
fn step(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// If the test holds, leaves out so many instructions.
fn jump(test: u32, k: u32, over: u8) -> sock_filter {
    sock_filter { code: (BPF_JMP | test | BPF_K) as u16, jt: over, jf: 0, k }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise"
)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};
    use std::time::Duration;

    use proptest::prelude::*;
    use socket2::{Domain, Socket, Type};

    use super::*;

    /// Runs a program as the kernel does.
    fn interpret(program: &[sock_filter], datagram: &[u8]) -> u32 {
        let (mut a, mut at) = (0_u32, 0_usize);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            let (code, at_k) = (u32::from(code), k as usize);
            at += 1;
            if code == BPF_LD | BPF_B | BPF_ABS {
                let Some(byte) = datagram.get(at_k) else { return 0 };
                a = (*byte).into();
            } else if code == BPF_LD | BPF_H | BPF_ABS {
                let Some(pair) = datagram.get(at_k..at_k + 2) else { return 0 };
                a = u16::from_be_bytes([pair[0], pair[1]]).into();
            } else if code == BPF_JMP {
                at += at_k;
            } else if code == BPF_JMP | BPF_JSET | BPF_K {
                at += usize::from(if a & k == 0 { jf } else { jt });
            } else if code == BPF_JMP | BPF_JEQ | BPF_K {
                at += usize::from(if a == k { jt } else { jf });
            } else if code == BPF_ALU | BPF_AND | BPF_K {
                a &= k;
            } else if code == BPF_ALU | BPF_MOD | BPF_K {
                a %= k;
            } else if code == BPF_ALU | BPF_ADD | BPF_K {
                a += k;
            } else if code == BPF_RET | BPF_A {
                return a;
            } else {
                panic!("an instruction this interpreter does not know: {code:#x}");
            }
        }
    }

    /// The index in the group of the socket that `owner` means.
    fn index(group: &Group, newest: Set, datagram: &[u8]) -> u32 {
        let owner = group.owner(datagram);
        let second = group.sets == Sets::Two && owner.set.unwrap_or(newest) == Set::Second;
        u32::from(owner.worker) + if second { u32::from(group.workers()) } else { 0 }
    }

    fn groups() -> impl Strategy<Value = Group> {
        let sets = prop_oneof![Just(Sets::One), Just(Sets::Two)];
        (sets, 1..=usize::from(MOST)).prop_map(|(sets, workers)| Group::new(sets, workers).unwrap())
    }

    fn set() -> impl Strategy<Value = Set> {
        prop_oneof![Just(Set::First), Just(Set::Second)]
    }

    proptest! {
        #[test]
        fn the_program_is_the_rule(
            group in groups(),
            newest in set(),
            mut datagram in proptest::collection::vec(any::<u8>(), 8..40),
            ours in any::<bool>(),
        ) {
            if ours {
                datagram[5] = LENGTH as u8;
            }
            let steered = interpret(&group.program(newest), &datagram);
            prop_assert_eq!(steered, index(&group, newest, &datagram));
        }

        #[test]
        fn a_tag_names_its_issuer(
            group in groups(),
            set in set(),
            worker in any::<u16>(),
            random in any::<u16>(),
        ) {
            let worker = worker % group.workers();
            let owner = group.owner_of(group.tag(set, worker, random));
            prop_assert_eq!(owner.worker, worker);
            prop_assert_eq!(owner.set, (group.sets == Sets::Two).then_some(set));
        }

        #[test]
        fn what_is_too_short_is_still_somebodys(
            group in groups(),
            datagram in proptest::collection::vec(any::<u8>(), 0..8),
        ) {
            let steered = interpret(&group.program(Set::First), &datagram);
            prop_assert!(steered < 2 * u32::from(group.workers()));
            prop_assert!(group.owner(&datagram).worker < group.workers());
        }
    }

    #[test]
    fn tags_use_the_room_they_have() {
        let group = Group::new(Sets::One, 3).unwrap();
        let tags: std::collections::HashSet<_> =
            (0..SECOND).map(|random| group.tag(Set::First, 1, random)).collect();
        assert_eq!(tags.len(), usize::from(SECOND / 3));
        assert_eq!(Group::new(Sets::One, usize::from(MOST) + 1), None);
        assert_eq!(Group::new(Sets::One, 0), None);
    }

    /// The kernel's own interpreter, on a group of two sets of two workers.
    #[test]
    fn the_kernel_steers_as_the_rule_says() {
        let group = Group::new(Sets::Two, 2).unwrap();
        let mut sockets = Vec::<UdpSocket>::new();
        for _ in 0..4 {
            let port = sockets.first().map_or(0, |first| first.local_addr().unwrap().port());
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
            socket.set_reuse_port(true).unwrap();
            socket.bind(&std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            sockets.push(socket.into());
        }
        let to = sockets[0].local_addr().unwrap();
        let from = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        for newest in [Set::First, Set::Second] {
            group.attach(&sockets[1], newest).unwrap();
            for worker in 0..2 {
                for set in [Set::First, Set::Second] {
                    for random in [0, 1, 77, 0xffff] {
                        let tag = group.tag(set, worker, random);
                        let short = [&[0x40], &tag[..], &[0; 30]].concat();
                        let ours = [&[0xe0, 0, 0, 0, 1, LENGTH as u8], &tag[..], &[0; 30]].concat();
                        let first = [&[0xc0, 0, 0, 0, 1, 8], &tag[..], &[0; 30]].concat();
                        for datagram in [short, ours, first] {
                            from.send_to(&datagram, to).unwrap();
                            let index = index(&group, newest, &datagram) as usize;
                            let mut buffer = [0; 64];
                            let length = sockets[index].recv(&mut buffer).unwrap();
                            assert_eq!(buffer[..length], datagram, "{newest:?} {set:?} {worker} {random}");
                        }
                    }
                }
            }
        }
    }
}
