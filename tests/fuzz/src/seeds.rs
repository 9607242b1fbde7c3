//! What the engine begins with: inputs that each come to another place, with names that say where.
//!
//! `cargo run -p foregate-fuzz --bin seeds` writes them into `tests/fuzz/seeds`, where inputs that once were
//! findings stand beside them.

pub(crate) mod phrases;

use std::path::PathBuf;

use self::phrases::{Phrase, data, frame, request, section};
use crate::connection::client::{reading, step};

/// A fuzz target: its name, and what takes an input.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 4] = [
    ("frames", crate::frames),
    ("qpack", crate::qpack),
    ("connection", crate::connection),
    ("http1", crate::http1),
];

/// Where a target's seeds are.
#[must_use]
pub fn folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target)
}

/// An input, and whose it is.
pub struct Seed {
    pub target: &'static str,
    pub name: &'static str,
    pub bytes: Vec<u8>,
}

/// Those that are made here.
#[must_use]
pub fn all() -> Vec<Seed> {
    let seed = |target| move |(name, bytes)| Seed { target, name, bytes };
    let frames = frames().into_iter().map(seed("frames"));
    let qpack = qpack().into_iter().map(seed("qpack"));
    let connection = connection().into_iter().map(seed("connection"));
    frames.chain(qpack).chain(connection).chain(http1().into_iter().map(seed("http1"))).collect()
}

fn http1() -> Vec<(&'static str, Vec<u8>)> {
    // Heads of up to 400 and 40 bytes from clients, and of up to 400 from VMs, after HEAD and after GET.
    let [client, small, after_head, vm] = [2, 1, 0x42, 0x82];
    let with = |choice: u8, lengths: [u8; 4], text: &str| [&[choice][..], &lengths, text.as_bytes()].concat();
    vec![
        ("get", with(client, [1, 9, 40, 3], "GET /a?b HTTP/1.1\r\nHost: x\r\nCookie: a=1; b\r\n\r\n")),
        (
            "pipelined",
            with(
                client,
                [7, 1, 1, 60],
                "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc\r\nGET /2 HTTP/1.0\r\n\r\n",
            ),
        ),
        (
            "chunks-and-trailers",
            with(
                client,
                [2, 3, 5, 9],
                "PUT http://x/y HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n\
                 5;e=\"f\"\r\nabcde\r\n00\r\nX-Sum: 1\r\n\r\n",
            ),
        ),
        ("bare-line-feeds", with(client, [1, 1, 2, 1], "GET / HTTP/1.1\nHost: x\n\nGET / HTTP/1.1\r\n\n")),
        (
            "two-framings",
            with(
                client,
                [30, 1, 30, 1],
                "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            ),
        ),
        (
            "hop-by-hop",
            with(
                client,
                [20, 20, 1, 1],
                "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade, x-a\r\nX-A: 1\r\nUpgrade: h2c\r\n\r\n",
            ),
        ),
        ("options-of-all", with(client, [5, 5, 5, 5], "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")),
        (
            "head-beyond-the-limit",
            with(small, [3, 1, 1, 9], "GET /0123456789012345678901234567890123 HTTP/1.1\r\n"),
        ),
        (
            "empty-lines",
            with(
                small,
                [1, 1, 1, 1],
                "\r\n\n\r\n\r\n\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n",
            ),
        ),
        (
            "answers",
            with(
                vm,
                [11, 1, 4, 80],
                "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok\
                 HTTP/1.1 204 No Content\r\n\r\nHTTP/1.0 200 OK\r\n\r\nto the end",
            ),
        ),
        (
            "chunked-answer",
            with(
                vm,
                [6, 6, 1, 6],
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            ),
        ),
        (
            "answers-to-head",
            with(
                after_head,
                [1, 50, 1, 50],
                "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nHTTP/1.1 304 Not Modified\r\n\r\n",
            ),
        ),
        (
            "answer-with-two-lengths",
            with(vm, [9, 9, 9, 9], "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
        ),
    ]
}

fn frames() -> Vec<(&'static str, Vec<u8>)> {
    // Limits of 100 and 16 bytes, without and with a tunnel.
    let [usual, small, tunnel] = [2, 1, 0x82];
    let with = |choice: u8, lengths: [u8; 4], frames: &[Vec<u8>]| {
        [&[choice][..], &lengths, &frames.concat()].concat()
    };
    let head = || frame(0x01, b"head");
    let settings = || frame(0x04, &[0x06, 0x40, 0x64, 0x01, 0x00]);
    vec![
        (
            "request",
            with(usual, [1, 2, 3, 4], &[head(), data(b"some "), data(b""), data(b"body"), frame(1, b"t")]),
        ),
        (
            "request-with-unknown-frames",
            with(usual, [9, 0, 1, 30], &[frame(0x21, b"grease"), head(), frame(0x40, b"")]),
        ),
        ("request-cut-short", with(usual, [5, 5, 5, 5], &[head(), vec![0x00, 0x44, 0x00, b'x']])),
        ("head-beyond-the-limit", with(small, [3, 7, 1, 1], &[frame(1, &[b'h'; 40]), data(b"body")])),
        ("head-of-2-to-the-61", with(usual, [1, 1, 1, 1], &[phrases::beginning(1, 1 << 61), vec![7; 30]])),
        (
            "unknown-of-2-to-the-61",
            with(usual, [16, 1, 2, 1], &[phrases::beginning(0x21, 1 << 61), vec![7; 30]]),
        ),
        ("tunnel", with(tunnel, [2, 2, 2, 2], &[head(), data(b"some"), data(b"more"), head()])),
        ("data-first", with(usual, [1, 0, 0, 1], &[data(b"x"), head()])),
        (
            "lengths-in-eight-bytes",
            with(usual, [3, 3, 3, 3], &[b"\xc0\0\0\0\0\0\0\x01\xc0\0\0\0\0\0\0\x02hi".to_vec()]),
        ),
        (
            "control",
            with(usual, [4, 1, 9, 2], &[settings(), frame(0x07, &[0]), frame(0x0d, &[5]), frame(0x21, b"x")]),
        ),
        (
            "control-priorities",
            with(
                usual,
                [6, 1, 1, 9],
                &[settings(), frame(0xf_0700, b"\x04u=1, i"), frame(0xf_0700, b"\x00u=7")],
            ),
        ),
        ("control-too-long", with(usual, [1, 8, 1, 8], &[settings(), phrases::beginning(0x0d, 5000)])),
        ("control-without-settings", with(usual, [1, 1, 1, 1], &[frame(0x07, &[0]), settings()])),
        ("control-settings-twice", with(usual, [2, 3, 4, 5], &[settings(), settings()])),
        (
            "control-goaway-grows",
            with(usual, [2, 3, 4, 5], &[settings(), frame(0x07, &[4]), frame(0x07, &[8])]),
        ),
    ]
}

fn qpack() -> Vec<(&'static str, Vec<u8>)> {
    // A limit of 4080 bytes unless the case is about it.
    let with = |limit: u8, cut: u8, bytes: &[u8]| [&[limit, cut][..], bytes].concat();
    let of = |fields: &[(&str, &str)]| with(255, 3, &section(fields));
    let get = [(":method", "GET"), (":scheme", "https"), (":authority", "shop.test"), (":path", "/a?b=c")];
    let and = |more: &[(&'static str, &'static str)]| of(&[&get[..], more].concat());
    vec![
        ("get", and(&[("accept", "*/*"), ("user-agent", "Mozilla/5.0"), ("priority", "u=1, i")])),
        ("get-with-cookies", and(&[("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers")])),
        (
            "get-with-host",
            of(&[(":method", "GET"), (":scheme", "https"), (":path", "/"), ("host", "shop.test")]),
        ),
        (
            "post",
            of(&[&[(":method", "POST")], &get[1..], &[("content-length", "12"), ("x-own", "\u{e9}~")]]
                .concat()),
        ),
        (
            "options-all",
            of(&[(":method", "OPTIONS"), (":scheme", "http"), (":authority", "[::1]:80"), (":path", "*")]),
        ),
        ("connect", of(&[(":method", "CONNECT"), (":authority", "shop.test:443")])),
        (
            "connect-websocket",
            of(&[&[(":method", "CONNECT"), (":protocol", "websocket")], &get[1..]].concat()),
        ),
        ("trailers", of(&[("grpc-status", "0"), ("x-checksum", "abc")])),
        ("connection-field", and(&[("connection", "close")])),
        ("two-lengths", and(&[("content-length", "1"), ("content-length", "1")])),
        ("blanks-around-a-value", with(255, 1, b"\0\0\x21x\x08 \t a b \t")),
        ("beyond-the-limit", with(8, 9, &[&[0, 0][..], &[0xc0 | 29; 40]].concat())),
        (
            "static-indices",
            with(255, 2, &[&[0, 0][..], &(0xc0..0xff).collect::<Vec<u8>>(), b"\xff\x23\xff\x24"].concat()),
        ),
        (
            "every-representation",
            with(255, 4, b"\0\0\xd1\x51\x02/x\x71\x02/y\x21a\x01b\x33abc\x82\x1c\x7f\x80\x10\x20"),
        ),
        ("huffman-text", with(255, 5, b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff")),
        ("huffman-padding", with(255, 1, b"\x1f\xff")),
        ("huffman-end-of-string", with(255, 1, b"\x3f\xff\xff\xff")),
        ("encoder-stream", with(255, 1, b"\x20\x20\x20")),
        ("encoder-insertion", with(255, 1, b"\xc0\x01x")),
        ("decoder-stream", with(255, 2, b"\x44\x7f\x80\x01\x40")),
        ("endless-integer", with(255, 2, &[&[0x7f][..], &[0x80; 12]].concat())),
    ]
}

fn connection() -> Vec<(&'static str, Vec<u8>)> {
    use Phrase as P;
    // Windows of 64 KiB and of one byte.
    let [wide, narrow] = [3, 0];
    let tell = |phrase: Phrase| vec![step::TELL, phrase as u8];
    let ask = |phrase: Phrase| vec![step::ASK, phrase as u8];
    let ask_and = |how: u8, phrase: Phrase| vec![how << 4 | step::ASK, phrase as u8];
    let say = |stream: u8, phrase: Phrase| vec![stream << 4 | step::SAY, phrase as u8];
    let say_and_pause = |stream: u8, phrase: Phrase| vec![stream << 4 | step::SAY_AND_PAUSE, phrase as u8];
    let write = |stream: u8, bytes: &[u8]| {
        [&[stream << 4 | step::WRITE_AND_PAUSE, bytes.len() as u8], bytes].concat()
    };
    let on = |what: u8, stream: u8| vec![stream << 4 | what];
    let pause = || vec![step::PAUSE];
    let with = |windows: u8, steps: &[Vec<u8>]| [&[windows][..], &steps.concat()].concat();
    let control = || tell(P::Control);
    vec![
        ("get", with(wide, &[control(), ask(P::Get), on(step::FINISH, 1), pause()])),
        (
            "get-byte-by-byte",
            with(
                wide,
                &[
                    [control(), vec![step::OPEN]].concat(),
                    request("GET", "/", &[]).iter().flat_map(|byte| write(1, &[*byte])).collect(),
                    on(step::FINISH, 1),
                ],
            ),
        ),
        (
            "get-raw",
            with(
                wide,
                &[vec![step::OPEN], write(0, &request("GET", "/x", &[("x-own", "1")])), on(step::FINISH, 0)],
            ),
        ),
        (
            "post-and-trailers",
            with(
                wide,
                &[
                    control(),
                    ask(P::Post),
                    say(1, P::Hello),
                    say_and_pause(1, P::Trailers),
                    on(step::FINISH, 1),
                ],
            ),
        ),
        (
            "post-too-long",
            with(
                wide,
                &[control(), ask(P::Post), say(1, P::Hello), say_and_pause(1, P::Hello), on(step::FINISH, 1)],
            ),
        ),
        ("post-too-short", with(wide, &[control(), ask(P::Post), on(step::FINISH, 1), pause()])),
        ("expect", with(wide, &[control(), ask(P::Expect), pause(), say(1, P::Hello), on(step::FINISH, 1)])),
        (
            "answered-early",
            with(wide, &[control(), ask(P::Early), pause(), say_and_pause(1, P::Hello), on(step::RESET, 1)]),
        ),
        (
            "large-by-single-bytes",
            with(narrow, &[control(), ask_and(reading::BYTEWISE, P::Large), on(step::FINISH, 1), pause()]),
        ),
        (
            "large-unread",
            with(
                wide,
                &[
                    control(),
                    ask_and(reading::NOT, P::Large),
                    on(step::FINISH, 1),
                    pause(),
                    on(step::STOP, 1),
                ],
            ),
        ),
        (
            "two-large-with-priorities",
            with(
                narrow,
                &[
                    control(),
                    ask(P::Large),
                    on(step::FINISH, 1),
                    ask(P::Urgent),
                    on(step::FINISH, 2),
                    pause(),
                    say(0, P::PriorityUpdate),
                    pause(),
                ],
            ),
        ),
        ("never-answered", with(wide, &[control(), ask(P::Never), pause(), on(step::STOP, 1)])),
        (
            "rapid-reset",
            with(
                wide,
                &[
                    control(),
                    ask(P::Get),
                    on(step::RESET, 1),
                    ask(P::Get),
                    on(step::RESET, 2),
                    on(step::STOP, 2),
                ],
            ),
        ),
        (
            "tunnel",
            with(
                wide,
                &[
                    control(),
                    ask(P::WebSocket),
                    pause(),
                    say_and_pause(1, P::Hello),
                    say(1, P::Hello),
                    on(step::FINISH, 1),
                ],
            ),
        ),
        (
            "tunnel-broken",
            with(wide, &[control(), ask(P::WebSocket), pause(), say_and_pause(1, P::Trailers)]),
        ),
        (
            "connect",
            with(
                wide,
                &[control(), ask(P::Connect), pause(), say_and_pause(1, P::Hello), on(step::FINISH, 1)],
            ),
        ),
        (
            "head-too-large",
            with(wide, &[control(), ask(P::TooLarge), pause(), say(1, P::Hello), on(step::FINISH, 1)]),
        ),
        ("head-of-2-to-the-61", with(wide, &[control(), ask(P::EndlessHead), pause(), write(1, &[7; 60])])),
        (
            "frame-of-2-to-the-61",
            with(wide, &[control(), ask(P::Post), say(1, P::EndlessUnknown), pause(), write(1, &[7; 60])]),
        ),
        ("malformed", with(wide, &[control(), ask(P::Malformed), pause(), ask(P::Get), on(step::FINISH, 2)])),
        (
            "qpack-streams",
            with(
                wide,
                &[
                    control(),
                    tell(P::EncoderStream),
                    tell(P::DecoderStream),
                    pause(),
                    on(step::FINISH, 1),
                    pause(),
                ],
            ),
        ),
        (
            "control-frames",
            with(
                wide,
                &[
                    control(),
                    say(0, P::PriorityUpdate),
                    say(0, P::Grease),
                    say(0, P::MaxPushId),
                    say_and_pause(0, P::Goaway),
                ],
            ),
        ),
        ("control-twice", with(wide, &[control(), control(), pause()])),
        ("control-closed", with(wide, &[control(), pause(), on(step::FINISH, 0), pause()])),
        (
            "goaway",
            with(
                wide,
                &[
                    control(),
                    ask(P::Never),
                    pause(),
                    vec![step::LEAVE],
                    pause(),
                    vec![step::LEAVE],
                    ask(P::Get),
                    on(step::FINISH, 2),
                    pause(),
                ],
            ),
        ),
        (
            "more-streams-than-allowed",
            with(
                wide,
                &[control(), (0..10).flat_map(|_| ask(P::Never)).collect(), on(step::STOP, 3), ask(P::Get)],
            ),
        ),
    ]
}
