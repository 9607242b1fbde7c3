//! From one process to the next: a new program takes the place of the running one, with its sockets and what it knows.
//!
//! ```text
//! old: starts the new one, a socket pair as its standard input
//! old -> new  the testament (a frame of JSON), then the sockets
//! new         reads, binds, starts its workers; accepts nothing
//! new -> old  "ready", or "refused" and why
//! old -> new  "take over"
//! new         listens; new QUIC connections are led to it
//! new -> old  "done"
//! old         accepts nothing any more and drains; its end of the pair closes when it ends
//! ```
//!
//! Until "done" the old process can go on as if nothing had happened, and does so if the new one ends, refuses or is silent.
//! If the old one ends before, the new one takes over by itself.

mod testament;

use std::ffi::OsString;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use foregate_edge::quic::Set;
use foregate_edge::{Handed, Heritage, Kind};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg, sockopt::socket_peercred,
};
use serde::{Deserialize, Serialize};

use crate::cli::complain;

use self::testament::Spot;
pub(crate) use self::testament::{LookedUp, Remembered, Said, Seen, Testament, Verdict};

/// Versions that are understood.
const UNDERSTOOD: std::ops::RangeInclusive<u32> = 1..=2;
/// The number of the process before, in the environment of its successor.
const VARIABLE: &str = "FOREGATE_SUCCESSOR_OF";
/// How long the successor may take to be ready: it reads a configuration.
const READY: Duration = Duration::from_secs(60);
/// And to listen.
const DONE: Duration = Duration::from_secs(10);
/// One that serves for so long without an accident goes on.
const SURE: Duration = Duration::from_millis(200);
/// No testament is larger: most of it is the configuration.
const LARGEST: usize = 64 * 1024 * 1024;
/// Files in one message; the kernel takes 253.
const FILES: usize = 128;

/// What one says to the other afterwards.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Word {
    word: String,
    reason: String,
}

const READY_WORD: &str = "ready";
const REFUSED: &str = "refused";
const TAKE_OVER: &str = "take over";
const DONE_WORD: &str = "done";
/// The kind of the socket on which operators are heard.
const ADMIN: &str = "admin";

impl Word {
    fn of(word: &str) -> Word {
        Word { word: word.to_owned(), reason: String::new() }
    }

    fn refused(reason: &str) -> Word {
        Word { word: REFUSED.to_owned(), reason: reason.to_owned() }
    }
}

/// Remembers which program this is: its file may be another one by the time it is asked for.
pub(crate) fn remember_program() {
    program();
}

fn program() -> Option<&'static PathBuf> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    PROGRAM.get_or_init(find_program).as_ref()
}

/// As it was called: the way to it may lead over links, and those elsewhere by then.
fn find_program() -> Option<PathBuf> {
    let itself = std::env::current_exe().ok()?;
    let called = PathBuf::from(std::env::args_os().next()?);
    let places: Vec<PathBuf> = if called.components().count() > 1 {
        std::path::absolute(called).into_iter().collect()
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join(&called)).collect()
    };
    let is_itself = |place: &PathBuf| fs::canonicalize(place).is_ok_and(|real| real == itself);
    Some(places.into_iter().find(is_itself).unwrap_or(itself))
}

/// A process that is to take over.
#[derive(Debug)]
pub(crate) struct Successor {
    child: Child,
    channel: UnixStream,
    pub(crate) program: String,
}

impl Successor {
    /// Starts it.
    ///
    /// # Errors
    /// A sentence on why there is none.
    pub(crate) fn start() -> Result<Successor, String> {
        let program = program().ok_or("it is not known which program this is")?;
        let (channel, other) = UnixStream::pair().map_err(|error| format!("no socket pair: {error}"))?;
        let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
        let child = Command::new(program)
            .args(arguments)
            .env(VARIABLE, std::process::id().to_string())
            // It is of this process: the other one shall answer for itself.
            .env_remove("WATCHDOG_PID")
            .stdin(Stdio::from(OwnedFd::from(other)))
            .spawn()
            .map_err(|error| format!("{} cannot be started: {error}", program.display()))?;
        Ok(Successor { child, channel, program: program.display().to_string() })
    }

    /// Gives it all it needs, and waits until it is ready. Blocks.
    ///
    /// # Errors
    /// A sentence on why it is not going to be; nothing is left of it.
    pub(crate) fn prepare(
        self,
        mut testament: Testament,
        heritage: Heritage,
        admin: Option<(String, OwnedFd)>,
    ) -> Result<Successor, String> {
        testament.workers = heritage.workers;
        testament.second_set = heritage.set == Set::Second;
        testament.spots = heritage.sockets.iter().map(spot).collect();
        let mut sockets: Vec<OwnedFd> =
            heritage.sockets.into_iter().flat_map(|handed| handed.sockets).collect();
        if let Some((place, socket)) = admin {
            let (kind, place) = (ADMIN.to_owned(), Some(place));
            testament.spots.push(Spot { kind, place, sockets: 1, ..Spot::default() });
            sockets.push(socket);
        }
        let mut channel = Until(&self.channel, Instant::now() + READY);
        let said = send_frame(&mut channel, &testament)
            .and_then(|()| send_files(&channel, &sockets))
            .and_then(|()| receive_frame::<Word>(&mut channel));
        match said {
            Ok(said) if said.word == READY_WORD => Ok(self),
            Ok(said) if said.word == REFUSED => Err(self.dismiss(&said.reason)),
            Ok(_) => Err(self.dismiss("it says something else than that it is ready")),
            Err(error) => Err(self.dismiss(&trouble(&error))),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it take over, and waits until it has. Blocks. What is returned is to be held until this process ends, which is how
    /// the other one learns of it.
    ///
    /// # Errors
    /// It has not; nothing is left of it.
    pub(crate) fn take_over(self) -> Result<UnixStream, String> {
        let mut channel = Until(&self.channel, Instant::now() + DONE);
        let said =
            send_frame(&mut channel, &Word::of(TAKE_OVER)).and_then(|()| receive_frame::<Word>(&mut channel));
        match said {
            Ok(said) if said.word == DONE_WORD => match channel.stays_open(SURE) {
                true => Ok(self.channel),
                false => Err(self.dismiss("it has gone")),
            },
            Ok(_) => Err(self.dismiss("it does not say that it listens")),
            Err(error) => Err(self.dismiss(&trouble(&error))),
        }
    }

    /// Ends it. Returns what is to be said of it. Until it has ended its channel stays open: it takes over by itself when that
    /// is closed.
    pub(crate) fn dismiss(mut self, why: &str) -> String {
        let ended = match self.child.try_wait() {
            Ok(Some(status)) => Some(status),
            _ => {
                // A moment for what it has to say in the log.
                std::thread::sleep(Duration::from_millis(100));
                let ended = self.child.try_wait().ok().flatten();
                _ = self.child.kill();
                _ = self.child.wait();
                ended
            }
        };
        match ended {
            Some(status) => format!("the new program ended before it served ({status}); its log says why"),
            None => format!("the new program does not serve: {why}"),
        }
    }
}

fn trouble(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "it takes too long".to_owned(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            "it has gone".to_owned()
        }
        _ => error.to_string(),
    }
}

/// What a successor has from the process before it.
#[derive(Debug)]
pub(crate) struct Inherited {
    pub(crate) testament: Testament,
    pub(crate) heritage: Option<Heritage>,
    /// Where operators are heard, and the socket.
    pub(crate) admin: Option<(String, OwnedFd)>,
    channel: UnixStream,
}

/// What was said to this process at its start, if it is a successor. Blocks. One whose predecessor has ended in the middle of
/// that is none.
///
/// # Errors
/// It is one, and cannot do what it is for.
pub(crate) fn inherit() -> Result<Option<Inherited>, String> {
    let predecessor = std::env::var(VARIABLE).ok().and_then(|pid| pid.parse::<i32>().ok());
    if predecessor.is_none() {
        return Ok(None);
    }
    let stdin = io::stdin();
    // The variable may be an old one, from a process further up. Who has made the channel is told even after its end.
    let made_by = socket_peercred(stdin.as_fd()).ok().map(|other| other.pid.as_raw_nonzero().get());
    if predecessor != made_by {
        return Ok(None);
    }
    let channel = stdin.as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
    let inherited = receive(UnixStream::from(channel));
    if matches!(inherited, Ok(None)) {
        // What was on its way there would still be listened on.
        close_standard_input();
        complain(
            "foregate: the process before this one has ended before it handed over; this one starts anew",
        );
    }
    inherited
}

fn close_standard_input() {
    if let Ok(nothing) = fs::File::open("/dev/null") {
        // Without it the start tells that the addresses are in use.
        _ = rustix::stdio::dup2_stdin(nothing);
    }
}

fn receive(channel: UnixStream) -> Result<Option<Inherited>, String> {
    let until = Instant::now() + DONE;
    match receive_all(&mut Until(&channel, until)) {
        Ok((testament, heritage, admin)) => {
            Ok(Some(Inherited { testament, heritage: Some(heritage), admin, channel }))
        }
        Err(reason) => match send_frame(&mut Until(&channel, until), &Word::refused(&reason)) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(None),
            _ => Err(format!("this process cannot take over: {reason}")),
        },
    }
}

/// What is handed over.
type Estate = (Testament, Heritage, Option<(String, OwnedFd)>);

fn receive_all(channel: &mut Until<'_>) -> Result<Estate, String> {
    let testament: Testament = receive_frame(channel).map_err(|error| format!("the testament: {error}"))?;
    if !UNDERSTOOD.contains(&testament.version) {
        return Err(format!(
            "the program before it, {}, speaks version {} of the hand-over, and this one, {}, versions {} to {}; \
             restart instead",
            testament.program,
            testament.version,
            env!("CARGO_PKG_VERSION"),
            UNDERSTOOD.start(),
            UNDERSTOOD.end()
        ));
    }
    let count = testament.spots.iter().map(|spot| spot.sockets).sum();
    let mut files =
        receive_files(channel, count).map_err(|error| format!("the sockets: {error}"))?.into_iter();
    let (mut sockets, mut admin) = (Vec::new(), None);
    for spot in &testament.spots {
        let mut own = files.by_ref().take(spot.sockets).collect::<Vec<_>>();
        if let (ADMIN, Some(place)) = (spot.kind.as_str(), &spot.place) {
            admin = own.pop().map(|socket| (place.clone(), socket));
            continue;
        }
        let (Some(address), Some(kind)) = (spot.address, kind(&spot.kind)) else {
            // Of a later version: nobody here knows what it is for.
            continue;
        };
        sockets.push(Handed { address, dual: spot.dual, kind, sockets: own });
    }
    let set = if testament.second_set { Set::Second } else { Set::First };
    let workers = testament.workers;
    Ok((testament, Heritage { workers, set, sockets }, admin))
}

impl Inherited {
    /// Says that all is ready, and waits to be let. Blocks. If the process before has gone, this one is let too; then it is
    /// true.
    pub(crate) fn ready(&mut self) -> bool {
        let timeouts =
            self.channel.set_write_timeout(Some(DONE)).and_then(|()| self.channel.set_read_timeout(None));
        let said = timeouts
            .and_then(|()| send_frame(&mut self.channel, &Word::of(READY_WORD)))
            .and_then(|()| receive_frame::<Word>(&mut self.channel));
        !said.is_ok_and(|said| said.word == TAKE_OVER)
    }

    /// Says that it serves. Returns what ends with the process before; none, if it has ended.
    pub(crate) fn done(mut self) -> Option<UnixStream> {
        send_frame(&mut self.channel, &Word::of(DONE_WORD)).ok()?;
        self.channel.set_nonblocking(true).ok()?;
        Some(self.channel)
    }

    /// Says why it cannot.
    pub(crate) fn refuse(self, reason: &str) {
        _ = send_frame(&mut Until(&self.channel, Instant::now() + DONE), &Word::refused(reason));
    }
}

/// A channel, and when it is given up.
struct Until<'c>(&'c UnixStream, Instant);

impl Until<'_> {
    fn left(&self) -> io::Result<Duration> {
        let left = self.1.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Until<'_> {
    /// Whether the other side is still there after so long.
    fn stays_open(&mut self, long: Duration) -> bool {
        self.1 = Instant::now() + long;
        loop {
            match self.read(&mut [0]) {
                Ok(0) => return false,
                // What a later version may say is not for us.
                Ok(_) => {}
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return true,
                    _ => return false,
                },
            }
        }
    }
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.set_read_timeout(Some(self.left()?))?;
        self.0.read(buffer)
    }
}

impl Write for Until<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.set_write_timeout(Some(self.left()?))?;
        self.0.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn spot(handed: &Handed) -> Spot {
    let kind = match handed.kind {
        Kind::Http => "http",
        Kind::Https => "https",
        Kind::Http3 => "http3",
    };
    Spot {
        address: Some(handed.address),
        dual: handed.dual,
        kind: kind.to_owned(),
        place: None,
        sockets: handed.sockets.len(),
    }
}

fn kind(name: &str) -> Option<Kind> {
    match name {
        "http" => Some(Kind::Http),
        "https" => Some(Kind::Https),
        "http3" => Some(Kind::Http3),
        _ => None,
    }
}

/// A length of four bytes, and JSON.
fn send_frame(channel: &mut impl Write, what: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(what)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    channel.write_all(&length.to_be_bytes())?;
    channel.write_all(&text)
}

fn receive_frame<T: for<'de> Deserialize<'de>>(channel: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    channel.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > LARGEST {
        return Err(io::Error::other("a frame is too long"));
    }
    let mut text = vec![0; length];
    channel.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Files travel beside a byte each message.
fn send_files(channel: &Until<'_>, files: &[OwnedFd]) -> io::Result<()> {
    for some in files.chunks(FILES) {
        let borrowed: Vec<_> = some.iter().map(|file| file.as_fd()).collect();
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        if !rights.push(SendAncillaryMessage::ScmRights(&borrowed)) {
            return Err(io::Error::other("too many files"));
        }
        channel.0.set_write_timeout(Some(channel.left()?))?;
        sendmsg(channel.0, &[IoSlice::new(b"f")], &mut rights, SendFlags::empty())?;
    }
    Ok(())
}

fn receive_files(channel: &Until<'_>, count: usize) -> io::Result<Vec<OwnedFd>> {
    let mut files = Vec::new();
    while files.len() < count {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        channel.0.set_read_timeout(Some(channel.left()?))?;
        let received =
            recvmsg(channel.0, &mut [IoSliceMut::new(&mut byte)], &mut rights, RecvFlags::CMSG_CLOEXEC)?;
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for message in rights.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = message {
                files.extend(more);
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::File;

    fn soon(channel: &UnixStream) -> Until<'_> {
        Until(channel, Instant::now() + DONE)
    }

    fn long_testament() -> Testament {
        Testament::new(&[File { name: "/a.toml".to_owned(), text: "x".repeat(1_000_000) }])
    }

    #[test]
    fn what_is_handed_over_arrives() {
        let (old, new) = UnixStream::pair().unwrap();
        let sockets: Vec<_> = (0..301).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<_> = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
        let files: Vec<OwnedFd> = sockets.into_iter().map(OwnedFd::from).collect();
        let mut testament = long_testament();
        testament.workers = 4;
        let spot = |kind: &str, sockets| Spot { kind: kind.to_owned(), sockets, ..Spot::default() };
        testament.spots = vec![
            Spot { address: Some(addresses[0]), dual: true, ..spot("http3", 299) },
            Spot { address: Some(addresses[299]), ..spot("carrier pigeon", 1) },
            Spot { place: Some("unix:/x".to_owned()), ..spot(ADMIN, 1) },
        ];
        let sender = std::thread::spawn(move || {
            let mut old = soon(&old);
            send_frame(&mut old, &testament).unwrap();
            send_files(&old, &files).unwrap();
            receive_frame::<Word>(&mut old).unwrap()
        });
        let mut inherited = receive(new).unwrap().unwrap();
        assert_eq!(inherited.testament.files()[0].text.len(), 1_000_000);
        let sockets = inherited.heritage.take().unwrap().sockets;
        assert_eq!(sockets.len(), 1, "what nobody knows is closed");
        let address_of = |socket: OwnedFd| std::net::UdpSocket::from(socket).local_addr().unwrap();
        for (socket, address) in sockets.into_iter().flat_map(|handed| handed.sockets).zip(&addresses) {
            assert_eq!(address_of(socket), *address);
        }
        let (place, socket) = inherited.admin.take().unwrap();
        assert_eq!((place.as_str(), address_of(socket)), ("unix:/x", addresses[300]));
        inherited.refuse("why not");
        let said = sender.join().unwrap();
        assert_eq!((said.word.as_str(), said.reason.as_str()), (REFUSED, "why not"));
    }

    #[test]
    fn nobody_is_waited_for_without_end() {
        let (old, new) = UnixStream::pair().unwrap();
        let until = || Until(&old, Instant::now() + Duration::from_millis(50));
        // It never reads, and more does not fit on the way.
        let error = send_frame(&mut until(), &long_testament()).unwrap_err();
        assert_eq!(trouble(&error), "it takes too long");
        // It never says anything.
        let error = receive_frame::<Word>(&mut until()).unwrap_err();
        assert_eq!(trouble(&error), "it takes too long");
        drop(new);
        assert_eq!(trouble(&receive_frame::<Word>(&mut until()).unwrap_err()), "it has gone");
    }

    #[test]
    fn another_version_is_understood_or_refused() {
        let say = |text: &str| {
            let (mut old, new) = UnixStream::pair().unwrap();
            let length = u32::try_from(text.len()).unwrap();
            old.write_all(&length.to_be_bytes()).unwrap();
            old.write_all(text.as_bytes()).unwrap();
            old.shutdown(std::net::Shutdown::Write).unwrap();
            receive(new)
        };
        let known =
            say(r#"{ "version": 2, "workers": 3, "more": { "than": ["we", "know"] } }"#).unwrap().unwrap();
        assert_eq!((known.testament.workers, known.testament.overrides.len()), (3, 0));
        assert!(say(r#"{ "version": 9, "program": "7.0" }"#).unwrap_err().contains("restart instead"));
        assert!(say("{").is_err());
        assert!(say(r#"{ "version": 1, "spots": [{ "sockets": 1 }] }"#).unwrap_err().contains("the sockets"));
        // Where nobody is there to be told, it is no successor.
        let (mut old, new) = UnixStream::pair().unwrap();
        old.write_all(&[0, 0, 0, 9, b'{']).unwrap();
        drop(old);
        assert!(receive(new).unwrap().is_none());
    }
}
