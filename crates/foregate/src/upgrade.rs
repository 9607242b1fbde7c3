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

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
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
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use crate::config::File;

/// What this program says. One that says less understands it all the same: what it does not know it passes over.
const VERSION: u32 = 1;
/// Versions that are understood.
const UNDERSTOOD: std::ops::RangeInclusive<u32> = 1..=2;
/// The number of the process before, in the environment of its successor.
const VARIABLE: &str = "FOREGATE_SUCCESSOR_OF";
/// How long the successor may take to be ready: it reads a configuration.
const READY: Duration = Duration::from_secs(60);
/// And to listen.
const DONE: Duration = Duration::from_secs(10);
/// No testament is larger: most of it is the configuration.
const LARGEST: usize = 64 * 1024 * 1024;
/// Files in one message; the kernel takes 253.
const FILES: usize = 128;

/// What a process tells its successor.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Testament {
    version: u32,
    /// The program's, for the log.
    program: String,
    workers: usize,
    second_set: bool,
    spots: Vec<Spot>,
    /// Hexadecimal digits.
    pub(crate) quic_secret: String,
    /// As they are kept.
    pub(crate) ticket_keys: Vec<String>,
    /// What is served: name and text.
    files: Vec<(String, String)>,
    pub(crate) overrides: Vec<Said>,
    pub(crate) verdicts: Vec<Verdict>,
    /// How long the drain may take.
    pub(crate) drain_ms: u64,
}

/// Sockets that follow.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Spot {
    address: Option<SocketAddr>,
    dual: bool,
    /// "http", "https", "http3".
    kind: String,
    sockets: usize,
}

/// What an operator has said of a backend.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Said {
    pub(crate) pool: String,
    pub(crate) backend: String,
    /// "drain", "maintenance".
    pub(crate) duty: Option<String>,
    pub(crate) weight: Option<u32>,
    pub(crate) by: String,
}

/// What was found out of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Verdict {
    pub(crate) pool: String,
    pub(crate) address: String,
    pub(crate) up: bool,
}

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

impl Word {
    fn of(word: &str) -> Word {
        Word { word: word.to_owned(), reason: String::new() }
    }

    fn refused(reason: &str) -> Word {
        Word { word: REFUSED.to_owned(), reason: reason.to_owned() }
    }
}

impl Testament {
    pub(crate) fn new(files: &[File]) -> Testament {
        let files = files.iter().map(|file| (file.name.clone(), file.text.clone())).collect();
        Testament {
            version: VERSION,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            files,
            ..Testament::default()
        }
    }

    pub(crate) fn files(&self) -> Vec<File> {
        self.files.iter().map(|(name, text)| File { name: name.clone(), text: text.clone() }).collect()
    }
}

/// Remembers which program this is: its file may be another one by the time it is asked for.
pub(crate) fn remember_program() {
    program();
}

fn program() -> Option<&'static PathBuf> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    PROGRAM.get_or_init(|| std::env::current_exe().ok()).as_ref()
}

/// A process that is ready to take over.
#[derive(Debug)]
pub(crate) struct Successor {
    child: Child,
    channel: UnixStream,
    pub(crate) program: String,
}

/// Starts a successor and waits until it is ready. Blocks.
///
/// # Errors
/// A sentence on why there is none; nothing is left of it.
pub(crate) fn raise(mut testament: Testament, heritage: Heritage) -> Result<Successor, String> {
    let program = program().ok_or("it is not known which program this is")?;
    let (channel, other) = UnixStream::pair().map_err(|error| format!("no socket pair: {error}"))?;
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let child = Command::new(program)
        .args(arguments)
        .env(VARIABLE, std::process::id().to_string())
        .stdin(Stdio::from(OwnedFd::from(other)))
        .spawn()
        .map_err(|error| format!("{} cannot be started: {error}", program.display()))?;
    let mut successor = Successor { child, channel, program: program.display().to_string() };
    testament.workers = heritage.workers;
    testament.second_set = heritage.set == Set::Second;
    testament.spots = heritage.sockets.iter().map(spot).collect();
    let sockets: Vec<OwnedFd> = heritage.sockets.into_iter().flat_map(|handed| handed.sockets).collect();
    let begun = Instant::now();
    let said = send_frame(&mut successor.channel, &testament)
        .and_then(|()| send_files(&successor.channel, &sockets))
        .and_then(|()| hear(&mut successor.channel, READY.saturating_sub(begun.elapsed())));
    match said {
        Ok(said) if said.word == READY_WORD => Ok(successor),
        Ok(said) if said.word == REFUSED => Err(successor.dismiss(&said.reason)),
        Ok(_) => Err(successor.dismiss("it says something else than that it is ready")),
        Err(error) => Err(successor.dismiss(&trouble(&error))),
    }
}

impl Successor {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it take over, and waits until it has. Blocks. What is returned is to be held until this process ends, which is how
    /// the other one learns of it.
    ///
    /// # Errors
    /// It has not; nothing is left of it.
    pub(crate) fn take_over(mut self) -> Result<UnixStream, String> {
        let said =
            send_frame(&mut self.channel, &Word::of(TAKE_OVER)).and_then(|()| hear(&mut self.channel, DONE));
        match said {
            Ok(said) if said.word == DONE_WORD => Ok(self.channel),
            Ok(_) => Err(self.dismiss("it does not say that it listens")),
            Err(error) => Err(self.dismiss(&trouble(&error))),
        }
    }

    /// Ends it. Returns what is to be said of it.
    fn dismiss(mut self, why: &str) -> String {
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
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => "it has gone".to_owned(),
        _ => error.to_string(),
    }
}

/// What a successor has from the process before it.
#[derive(Debug)]
pub(crate) struct Inherited {
    pub(crate) testament: Testament,
    pub(crate) heritage: Option<Heritage>,
    channel: UnixStream,
}

/// What was said to this process at its start, if it is a successor. Blocks.
///
/// # Errors
/// It is one, and cannot do what it is for.
pub(crate) fn inherit() -> Result<Option<Inherited>, String> {
    let parent = std::env::var(VARIABLE).ok().and_then(|pid| pid.parse::<i32>().ok());
    let own = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    // The variable may be an old one, from a process further up.
    if parent.is_none() || parent != own {
        return Ok(None);
    }
    let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
    let mut channel = UnixStream::from(stdin);
    let read = receive(&mut channel);
    match read {
        Ok((testament, heritage)) => Ok(Some(Inherited { testament, heritage: Some(heritage), channel })),
        Err(reason) => {
            _ = send_frame(&mut channel, &Word::refused(&reason));
            Err(format!("this process cannot take over: {reason}"))
        }
    }
}

fn receive(channel: &mut UnixStream) -> Result<(Testament, Heritage), String> {
    channel.set_read_timeout(Some(DONE)).map_err(|error| error.to_string())?;
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
    let mut sockets = Vec::new();
    for spot in &testament.spots {
        let own = files.by_ref().take(spot.sockets).collect();
        let (Some(address), Some(kind)) = (spot.address, kind(&spot.kind)) else {
            // Of a later version: nobody here knows what it is for.
            continue;
        };
        sockets.push(Handed { address, dual: spot.dual, kind, sockets: own });
    }
    let set = if testament.second_set { Set::Second } else { Set::First };
    let workers = testament.workers;
    Ok((testament, Heritage { workers, set, sockets }))
}

impl Inherited {
    /// Says that all is ready, and waits to be let. Blocks. If the process before has gone, this one is let too; then it is
    /// true.
    pub(crate) fn ready(&mut self) -> bool {
        let timeout = self.channel.set_read_timeout(None);
        let said = timeout
            .and_then(|()| send_frame(&mut self.channel, &Word::of(READY_WORD)))
            .and_then(|()| receive_frame::<Word>(&mut self.channel));
        !said.is_ok_and(|said| said.word == TAKE_OVER)
    }

    /// Says that it serves. Returns what ends with the process before.
    pub(crate) fn done(mut self) -> io::Result<UnixStream> {
        send_frame(&mut self.channel, &Word::of(DONE_WORD))?;
        self.channel.set_nonblocking(true)?;
        Ok(self.channel)
    }

    /// Says why it cannot.
    pub(crate) fn refuse(mut self, reason: &str) {
        _ = send_frame(&mut self.channel, &Word::refused(reason));
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
fn send_frame(channel: &mut UnixStream, what: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(what)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    channel.write_all(&length.to_be_bytes())?;
    channel.write_all(&text)
}

fn receive_frame<T: for<'de> Deserialize<'de>>(channel: &mut UnixStream) -> io::Result<T> {
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

fn hear(channel: &mut UnixStream, patience: Duration) -> io::Result<Word> {
    channel.set_read_timeout(Some(patience.max(Duration::from_millis(1))))?;
    receive_frame(channel)
}

/// Files travel beside a byte each message.
fn send_files(channel: &UnixStream, files: &[OwnedFd]) -> io::Result<()> {
    for some in files.chunks(FILES) {
        let borrowed: Vec<_> = some.iter().map(|file| file.as_fd()).collect();
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        if !rights.push(SendAncillaryMessage::ScmRights(&borrowed)) {
            return Err(io::Error::other("too many files"));
        }
        sendmsg(channel, &[IoSlice::new(b"f")], &mut rights, SendFlags::empty())?;
    }
    Ok(())
}

fn receive_files(channel: &UnixStream, count: usize) -> io::Result<Vec<OwnedFd>> {
    let mut files = Vec::new();
    while files.len() < count {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let received =
            recvmsg(channel, &mut [IoSliceMut::new(&mut byte)], &mut rights, RecvFlags::CMSG_CLOEXEC)?;
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

    #[test]
    fn what_is_handed_over_arrives() {
        let (mut old, mut new) = UnixStream::pair().unwrap();
        let sockets: Vec<_> = (0..300).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<_> = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
        let files: Vec<OwnedFd> = sockets.into_iter().map(OwnedFd::from).collect();
        let mut testament = Testament::new(&[File { name: "/a.toml".to_owned(), text: "x".repeat(200_000) }]);
        testament.workers = 4;
        testament.spots = vec![
            Spot { address: Some(addresses[0]), dual: true, kind: "http3".to_owned(), sockets: 299 },
            Spot {
                address: Some(addresses[299]),
                dual: false,
                kind: "carrier pigeon".to_owned(),
                sockets: 1,
            },
        ];
        let sender = std::thread::spawn(move || {
            send_frame(&mut old, &testament).unwrap();
            send_files(&old, &files).unwrap();
            hear(&mut old, DONE).unwrap()
        });
        let (testament, heritage) = receive(&mut new).unwrap();
        assert_eq!(testament.files()[0].text.len(), 200_000);
        assert_eq!(heritage.sockets.len(), 1, "what nobody knows is closed");
        let arrived = heritage.sockets.into_iter().flat_map(|handed| handed.sockets);
        for (socket, address) in arrived.map(std::net::UdpSocket::from).zip(addresses) {
            assert_eq!(socket.local_addr().unwrap(), address);
        }
        send_frame(&mut new, &Word::of(READY_WORD)).unwrap();
        assert_eq!(sender.join().unwrap().word, READY_WORD);
    }

    #[test]
    fn another_version_is_understood_or_refused() {
        let say = |text: &str| {
            let (mut old, mut new) = UnixStream::pair().unwrap();
            let length = u32::try_from(text.len()).unwrap();
            old.write_all(&length.to_be_bytes()).unwrap();
            old.write_all(text.as_bytes()).unwrap();
            drop(old);
            receive(&mut new)
        };
        let (testament, _) =
            say(r#"{ "version": 2, "workers": 3, "more": { "than": ["we", "know"] } }"#).unwrap();
        assert_eq!((testament.workers, testament.overrides.len()), (3, 0));
        assert!(say(r#"{ "version": 9, "program": "7.0" }"#).unwrap_err().contains("restart instead"));
        assert!(say("{").is_err());
        assert!(say(r#"{ "version": 1, "spots": [{ "sockets": 1 }] }"#).unwrap_err().contains("the sockets"));
    }
}
