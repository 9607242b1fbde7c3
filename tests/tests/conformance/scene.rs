//! One gateway, one VM and one connection, and the verdicts that a case can ask for.

use std::{future::Future, time::Duration};

use foregate_tests::{
    Delivery, Fields, Gateway, GatewayBuilder, Origin, OriginBuilder, Recorded, gateway,
    http3::{Answer, Connection, Head, Options, Outcome, Stream, code, frame::frame},
    origin,
};
use quinn::{ConnectionError, SendStream};

/// The longest a case waits for what must happen. Shorter than the harness's: many cases may fail at once.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("took longer than {PATIENCE:?}: {what}"),
    }
}

/// Polls until there is a value.
pub(crate) async fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    soon(what, async {
        loop {
            match check() {
                Some(value) => return value,
                None => tokio::time::sleep(Duration::from_millis(3)).await,
            }
        }
    })
    .await
}

/// A VM, a gateway that serves it as `shop.test`, and a client's connection with its control stream.
pub(crate) struct Scene {
    pub(crate) vm: Origin,
    pub(crate) gw: Gateway,
    pub(crate) client: Connection,
    /// The client's control stream, for as long as it is not taken.
    pub(crate) control: Option<SendStream>,
}

/// The usual scene: every request is answered with 200 once all of it has come.
pub(crate) async fn scene() -> Scene {
    Scene::of(origin(), gateway()).await
}

/// A scene whose client has opened nothing yet, not even its control stream.
pub(crate) async fn bare() -> Scene {
    Scene::bare(origin(), gateway(), Options::default()).await
}

impl Scene {
    pub(crate) async fn of(vm: OriginBuilder, gw: GatewayBuilder) -> Scene {
        let mut scene = Scene::bare(vm, gw, Options::default()).await;
        scene.control = Some(scene.client.control().await);
        scene
    }

    pub(crate) async fn bare(vm: OriginBuilder, gw: GatewayBuilder, options: Options) -> Scene {
        let vm = vm.start().await;
        let gw = gw.site("shop.test", &vm).start().await;
        let client = soon("a handshake", Connection::connect(&gw.dial("shop.test"), options)).await;
        Scene { vm, gw, client: client.unwrap(), control: None }
    }

    /// More bytes on the client's control stream.
    pub(crate) async fn say(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.control.as_mut().expect("a control stream").write_all(bytes.as_ref()).await;
    }

    /// The connection goes on: a request on it is served, and it was not closed meanwhile.
    pub(crate) async fn goes_on(&self) {
        let answer = self.ask(Head::get("/afterwards").frame()).await;
        assert_eq!(answer.status, 200, "afterwards: {answer:?}");
        assert_eq!(self.client.quic.close_reason(), None);
    }

    /// Sends a whole request and reads its response.
    pub(crate) async fn ask(&self, bytes: impl AsRef<[u8]>) -> Answer {
        let mut stream = self.client.request(bytes).await;
        soon("an answer", stream.answer()).await
    }

    /// Sends a whole request, which must be served, and returns it as the VM saw it.
    pub(crate) async fn served(&self, bytes: impl AsRef<[u8]>) -> Recorded {
        let answer = self.ask(bytes).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let seen = self.vm.only();
        assert_eq!(seen.delivery, Delivery::Complete, "{seen:?}");
        seen
    }

    /// The connection is closed by the gateway with this code, and only the connection: others are served.
    pub(crate) async fn connection_error(&self, expected: u64) {
        self.connection_error_of(&[expected]).await;
    }

    pub(crate) async fn connection_error_of(&self, expected: &[u64]) {
        match soon("CONNECTION_CLOSE", self.client.quic.closed()).await {
            ConnectionError::ApplicationClosed(close) => {
                let code = close.error_code.into_inner();
                assert!(
                    expected.contains(&code),
                    "closed with {code:#x}, expected {expected:#x?}: {close:?}"
                );
            }
            other => panic!("no CONNECTION_CLOSE of the application: {other:?}"),
        }
        self.others_are_served().await;
    }

    /// A new connection is served.
    pub(crate) async fn others_are_served(&self) {
        let dial = self.gw.dial("shop.test");
        let client = soon("a handshake", Connection::connect(&dial, Options::default())).await.unwrap();
        let _control = client.control().await;
        let mut stream = client.request(Head::get("/another").frame()).await;
        assert_eq!(soon("an answer to another", stream.answer()).await.status, 200);
        self.unharmed();
    }

    /// Nothing of the gateway has panicked; its runtime would hide that.
    pub(crate) fn unharmed(&self) {
        let panics = self.gw.log().having(&["panicked"]);
        assert!(panics.is_empty(), "{panics:#?}");
    }

    /// The stream is reset with this code; the connection goes on.
    pub(crate) async fn stream_error(&self, stream: &mut Stream, expected: u64) {
        match soon("RESET_STREAM", stream.outcome()).await {
            Outcome::Reset { code, .. } => assert_eq!(code, expected, "reset with {code:#x}"),
            other => panic!("no RESET_STREAM: {other:x?}"),
        }
        self.goes_on().await;
        self.unharmed();
    }

    /// RFC 9114, section 4.1.2: a stream error H3_MESSAGE_ERROR, or 400 before the end; the connection goes
    /// on, and no VM ever holds the request for a whole one.
    pub(crate) async fn malformed(&self, stream: &mut Stream) {
        match soon("RESET_STREAM or 400", stream.outcome()).await {
            Outcome::Reset { code, status } => {
                assert_eq!(code, code::H3_MESSAGE_ERROR, "reset with {code:#x}");
                assert!(matches!(status, None | Some(400)), "{status:?} before the reset");
            }
            Outcome::Answered(answer) => assert_eq!(answer.status, 400, "{answer:?}"),
            other @ Outcome::Lost(_) => panic!("the connection is lost: {other:?}"),
        }
        until("what came to the VM is broken off", || {
            let unfinished = self.vm.requests().iter().any(|r| r.delivery == Delivery::Reading);
            (!unfinished).then_some(())
        })
        .await;
        let whole: Vec<Recorded> =
            self.vm.requests().into_iter().filter(|r| r.delivery == Delivery::Complete).collect();
        assert!(whole.is_empty(), "a malformed request came to the VM: {whole:#?}");
        self.goes_on().await;
        self.unharmed();
    }
}

/// A head that is malformed by itself: it never comes to a VM.
pub(crate) async fn malformed(head: Head) {
    let scene = scene().await;
    let mut stream = scene.client.request(head.frame()).await;
    scene.malformed(&mut stream).await;
    let seen: Vec<Recorded> = scene.vm.requests().into_iter().filter(|r| r.target != "/afterwards").collect();
    assert!(seen.is_empty(), "it came to the VM: {seen:#?}");
}

/// Frames that make a malformed message together, before a FIN.
pub(crate) async fn malformed_message(bytes: Vec<u8>) {
    let scene = scene().await;
    let mut stream = scene.client.request(bytes).await;
    scene.malformed(&mut stream).await;
}

/// Bytes on a request stream, without a FIN, that end the connection.
pub(crate) async fn on_request_stream(expected: u64, bytes: Vec<u8>) {
    let scene = scene().await;
    let _stream = scene.client.begin(bytes).await;
    scene.connection_error(expected).await;
}

/// Bytes and a FIN on a request stream that end the connection.
pub(crate) async fn on_whole_request_stream(expected: u64, bytes: Vec<u8>) {
    let scene = scene().await;
    let _stream = scene.client.request(bytes).await;
    scene.connection_error(expected).await;
}

/// Bytes after SETTINGS on the control stream that end the connection.
pub(crate) async fn on_control_stream(expected: u64, bytes: Vec<u8>) {
    let mut scene = scene().await;
    scene.say(bytes).await;
    scene.connection_error(expected).await;
}

/// Bytes after SETTINGS on the control stream that change nothing.
pub(crate) async fn ignored_on_control_stream(bytes: Vec<u8>) {
    let mut scene = scene().await;
    scene.goes_on().await;
    scene.say(bytes).await;
    // Two requests: the bytes have surely arrived before the second.
    scene.goes_on().await;
    scene.goes_on().await;
    scene.unharmed();
}

/// A whole new unidirectional stream, its type included, that ends the connection.
pub(crate) async fn on_new_stream(expected: u64, bytes: Vec<u8>) {
    let scene = scene().await;
    let _stream = scene.client.unidirectional(bytes).await;
    scene.connection_error(expected).await;
}

/// A GET whose frames are served as they stand.
pub(crate) async fn served(bytes: Vec<u8>) {
    let scene = scene().await;
    let seen = scene.served(bytes).await;
    assert_eq!((seen.method.as_str(), seen.target.as_str(), &seen.body[..]), ("GET", "/", &b""[..]));
    scene.goes_on().await;
    scene.unharmed();
}

/// A POST whose DATA frames hold `hello` together.
pub(crate) async fn served_hello(bytes: Vec<u8>) {
    let scene = scene().await;
    let seen = scene.served(bytes).await;
    assert_eq!((seen.method.as_str(), &seen.body[..]), ("POST", &b"hello"[..]));
    scene.goes_on().await;
    scene.unharmed();
}

/// A frame of a type that is reserved to be ignored, with a payload.
pub(crate) fn greased(n: u64) -> Vec<u8> {
    frame(foregate_tests::http3::frame::grease(n), b"to be ignored")
}

/// No fields.
pub(crate) fn none() -> Fields {
    Fields::new()
}
