//! The administration: HTTP and JSON on a unix socket, or on a loopback address for those who know the token.
//!
//! Only puts what is asked into the inbox of the control thread, and says what comes of it.

mod routes;

use std::cell::RefCell;
use std::convert::Infallible;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use bytes::Bytes;
use http::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::AbortHandle;

use crate::config::{Admin, Listen, Token};
use crate::control::{self, Ask, Refused, Reply};

use self::routes::Found;

/// A configuration of ten thousand sites has a tenth of this.
const LARGEST: usize = 32 * 1024 * 1024;
/// More operators at a time than there are.
const AT_A_TIME: usize = 64;
/// How long a request head may take, and one connection altogether.
const HEAD: Duration = Duration::from_secs(10);
const CONNECTION: Duration = Duration::from_secs(600);

/// Where operators are heard, which may change.
pub(crate) struct Server {
    asks: UnboundedSender<Ask>,
    /// Where that is now.
    listen: Listen,
    task: Option<Task>,
    /// The place and the socket of the process before.
    inherited: Option<(String, OwnedFd)>,
}

/// What it takes to be heard elsewhere.
pub(crate) struct Prepared {
    listen: Listen,
    /// `None`: where it was, or nowhere.
    bound: Option<Bound>,
}

enum Bound {
    Unix(UnixListener, Socket),
    Tcp(TcpListener),
}

/// Accepts until dropped.
struct Task {
    accepting: AbortHandle,
    /// The same socket, for a successor.
    listener: OwnedFd,
    /// What those who come by TCP have to know, which may change.
    token: Option<Rc<RefCell<Token>>>,
    socket: Option<Socket>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The file of a socket, removed with it unless another has taken its place.
struct Socket {
    path: PathBuf,
    /// None: it is another process's by now.
    inode: Option<u64>,
}

impl Socket {
    fn is_ours(&mut self) {
        self.inode = fs::metadata(&self.path).ok().map(|found| found.ino());
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if fs::metadata(&self.path).is_ok_and(|found| Some(found.ino()) == self.inode) {
            _ = fs::remove_file(&self.path);
        }
    }
}

impl Server {
    /// Listens nowhere. What the process before listened on is taken where the configuration names the same place.
    pub(crate) fn new(asks: UnboundedSender<Ask>, inherited: Option<(String, OwnedFd)>) -> Server {
        Server { asks, listen: Listen::Off, task: None, inherited }
    }

    /// Listens as the configuration says, from nowhere. In a local runtime.
    ///
    /// # Errors
    /// It cannot, and the file says that it should.
    pub(crate) fn open(&mut self, admin: &Admin) -> Result<(), String> {
        self.commit(self.prepare(admin)?);
        self.inherited = None;
        Ok(())
    }

    /// Binds what is to be listened on, if that is another place than now.
    ///
    /// # Errors
    /// It cannot be bound, and the file says that it should.
    pub(crate) fn prepare(&self, admin: &Admin) -> Result<Prepared, String> {
        match self.bind(&admin.listen) {
            Ok(bound) => Ok(Prepared { listen: admin.listen.clone(), bound }),
            Err(reason) if admin.written => Err(reason),
            Err(reason) => {
                tracing::warn!("this gateway cannot be administrated: {reason}");
                Ok(Prepared { listen: Listen::Off, bound: None })
            }
        }
    }

    fn bind(&self, listen: &Listen) -> Result<Option<Bound>, String> {
        if self.listen.is_same_place(listen) {
            return Ok(None);
        }
        let failed = |error: io::Error| format!("cannot listen on {listen}: {}", reason(&error));
        let inherited = self.inherited.as_ref().filter(|(place, _)| *place == listen.to_string());
        let inherited = inherited.map(|(_, socket)| socket.try_clone()).transpose().map_err(failed)?;
        match listen {
            Listen::Off => Ok(None),
            Listen::Unix(path) => bind_unix(path, inherited).map(Some).map_err(failed),
            Listen::Tcp(address, _) => bind_tcp(*address, inherited).map(Some).map_err(failed),
        }
    }

    /// Listens there from now on, and no more where it did. Returns whether that is another place.
    pub(crate) fn commit(&mut self, prepared: Prepared) -> bool {
        let Prepared { listen, bound } = prepared;
        let (asks, gate) = (self.asks.clone(), Arc::new(Semaphore::new(AT_A_TIME)));
        let moved = bound.is_some() || self.listen != Listen::Off && listen == Listen::Off;
        match (bound, &listen, &self.task) {
            (Some(bound), _, _) => {
                tracing::info!("administration listens on {listen}");
                self.task = Task::start(bound, &listen, asks, gate);
            }
            (None, Listen::Off, _) => self.task = None,
            (None, Listen::Tcp(_, next), Some(Task { token: Some(token), .. })) => {
                token.borrow_mut().clone_from(next);
            }
            (None, _, _) => {}
        }
        self.listen = listen;
        moved
    }

    /// Where it listens, as the configuration writes it.
    pub(crate) fn place(&self) -> String {
        self.listen.to_string()
    }

    /// For a successor: where this is, and the socket.
    pub(crate) fn bequeath(&self) -> Option<(String, OwnedFd)> {
        let socket = self.task.as_ref()?.listener.try_clone().ok()?;
        Some((self.place(), socket))
    }

    /// There is no process before this one any more that might go on.
    pub(crate) fn is_alone(&mut self) {
        if let Some(socket) = self.task.as_mut().and_then(|task| task.socket.as_mut()) {
            socket.is_ours();
        }
    }

    /// A successor listens there by now. Who is connected is still answered.
    pub(crate) fn hand_over(&mut self) {
        self.listen = Listen::Off;
        // The file is the successor's.
        if let Some(socket) = self.task.take().as_mut().and_then(|task| task.socket.as_mut()) {
            socket.inode = None;
        }
    }
}

impl Task {
    /// None if there are too many open files.
    fn start(
        bound: Bound,
        listen: &Listen,
        asks: UnboundedSender<Ask>,
        gate: Arc<Semaphore>,
    ) -> Option<Task> {
        let listener = match &bound {
            Bound::Unix(listener, _) => listener.as_fd().try_clone_to_owned(),
            Bound::Tcp(listener) => listener.as_fd().try_clone_to_owned(),
        };
        let listener = listener
            .inspect_err(|error| tracing::error!("this gateway cannot be administrated: {error}"))
            .ok()?;
        Some(match (bound, listen) {
            (Bound::Unix(bound, socket), _) => {
                let accepting = tokio::task::spawn_local(accept_unix(bound, asks, gate)).abort_handle();
                Task { accepting, listener, token: None, socket: Some(socket) }
            }
            (Bound::Tcp(bound), Listen::Tcp(_, token)) => {
                let token = Rc::new(RefCell::new(token.clone()));
                let accepting = accept_tcp(bound, token.clone(), asks, gate);
                let accepting = tokio::task::spawn_local(accepting).abort_handle();
                Task { accepting, listener, token: Some(token), socket: None }
            }
            // Nobody could prove that they may.
            (Bound::Tcp(_), _) => return None,
        })
    }
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another program listens there; stop it, or write another place as admin.listen".to_owned()
        }
        io::ErrorKind::AlreadyExists => {
            "there is something that is no socket; remove it, or write another place as admin.listen"
                .to_owned()
        }
        io::ErrorKind::PermissionDenied => format!(
            "{error}; let this user write to the folder (RuntimeDirectory=foregate in a systemd unit), or write another \
             place as admin.listen"
        ),
        _ => error.to_string(),
    }
}

/// The socket that is there, or a new one in the place of one that nobody listens on any more.
fn bind_unix(path: &Path, inherited: Option<OwnedFd>) -> io::Result<Bound> {
    let is_inherited = inherited.is_some();
    let listener = match inherited {
        Some(socket) => {
            let listener = std::os::unix::net::UnixListener::from(socket);
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)?
        }
        None => {
            if let Some(folder) = path.parent() {
                fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
            }
            make_room(path)?;
            let listener = UnixListener::bind(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
            listener
        }
    };
    let mut socket = Socket { path: path.to_owned(), inode: None };
    // One that is inherited is the other process's until that has gone.
    if !is_inherited {
        socket.is_ours();
    }
    Ok(Bound::Unix(listener, socket))
}

/// Removes a socket that nobody listens on any more, and nothing else.
fn make_room(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) => return Err(io::ErrorKind::AlreadyExists.into()),
        // There is nothing, or binding tells what is wrong.
        Err(_) => return Ok(()),
    }
    // Who listens and does not accept would have us wait.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let knock = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&knock, &SocketAddrUnix::new(path)?) {
        Err(rustix::io::Errno::CONNREFUSED) => fs::remove_file(path),
        Ok(()) | Err(_) => Err(io::ErrorKind::AddrInUse.into()),
    }
}

fn bind_tcp(address: SocketAddr, inherited: Option<OwnedFd>) -> io::Result<Bound> {
    let listener = match inherited {
        Some(socket) => std::net::TcpListener::from(socket),
        None => std::net::TcpListener::bind(address)?,
    };
    listener.set_nonblocking(true)?;
    Ok(Bound::Tcp(TcpListener::from_std(listener)?))
}

async fn accept_unix(listener: UnixListener, asks: UnboundedSender<Ask>, gate: Arc<Semaphore>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let by = stream.peer_cred().map_or_else(
                    |_| "the admin socket".to_owned(),
                    |who| match who.pid() {
                        Some(pid) => format!("uid {} (pid {pid})", who.uid()),
                        None => format!("uid {}", who.uid()),
                    },
                );
                serve(stream, Asker { by, token: None, asks: asks.clone() }, &gate);
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn accept_tcp(
    listener: TcpListener,
    token: Rc<RefCell<Token>>,
    asks: UnboundedSender<Ask>,
    gate: Arc<Semaphore>,
) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let by = format!("{peer} with the token");
                serve(stream, Asker { by, token: Some(token.clone()), asks: asks.clone() }, &gate);
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Who asks over one connection.
struct Asker {
    by: String,
    /// What they have to know.
    token: Option<Rc<RefCell<Token>>>,
    asks: UnboundedSender<Ask>,
}

/// Serves one connection; closes it at once if there are too many.
fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, asker: Asker, gate: &Arc<Semaphore>) {
    let Ok(permit) = gate.clone().try_acquire_owned() else { return };
    let asker = Rc::new(asker);
    let service = service_fn(move |request| answer(asker.clone(), request));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), service);
    tokio::task::spawn_local(async move {
        // Who goes away is no event.
        _ = tokio::time::timeout(CONNECTION, connection).await;
        drop(permit);
    });
}

async fn answer(asker: Rc<Asker>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if !may(&asker, request.headers()) {
        let refused = Refused::new(
            StatusCode::UNAUTHORIZED,
            "the token is missing or wrong: Authorization: Bearer ...",
        );
        let mut response = respond(Err(refused));
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return Ok(response);
    }
    let (head, body) = request.into_parts();
    let found = match routes::find(&head.method, head.uri.path(), head.uri.query()) {
        Ok(found) => found,
        Err(routes::NotFound::Path) => {
            let message = format!("there is no {}; /openapi.json tells what there is", head.uri.path());
            return Ok(respond(Err(Refused::new(StatusCode::NOT_FOUND, message))));
        }
        Err(routes::NotFound::Method(allowed)) => {
            let message = format!("{} is asked with {allowed}", head.uri.path());
            let mut response = respond(Err(Refused::new(StatusCode::METHOD_NOT_ALLOWED, message)));
            if let Ok(allowed) = HeaderValue::from_str(&allowed) {
                response.headers_mut().insert(ALLOW, allowed);
            }
            return Ok(response);
        }
    };
    let body = match (&head.method, Limited::new(body, LARGEST).collect().await) {
        (&Method::GET, _) => Bytes::new(),
        (_, Ok(body)) => body.to_bytes(),
        (_, Err(_)) => {
            let refused =
                Refused::new(StatusCode::PAYLOAD_TOO_LARGE, "the body cannot be read, or is too large");
            return Ok(respond(Err(refused)));
        }
    };
    let request = match found {
        Found::Document => return Ok(json_response(StatusCode::OK, routes::OPENAPI.into())),
        Found::Request(read) => match read(&body) {
            Ok(request) => request,
            Err(message) => return Ok(respond(Err(Refused::new(StatusCode::BAD_REQUEST, message)))),
        },
    };
    let configures = matches!(
        request,
        control::Request::Reload(_) | control::Request::Put { .. } | control::Request::Rollback(_)
    );
    let (reply, answered) = oneshot::channel();
    let gone = || Refused::new(StatusCode::SERVICE_UNAVAILABLE, "the gateway is about to end");
    if asker.asks.send(Ask { request, by: asker.by.clone(), reply: Some(reply) }).is_err() {
        return Ok(respond(Err(gone())));
    }
    let reply = answered.await.unwrap_or_else(|_| Err(gone()));
    if let Err(refused) = &reply
        && configures
    {
        // Whoever looks after the gateway may not be the one who asked.
        let (by, path) = (&asker.by, head.uri.path());
        tracing::error!(by, "{path}: nothing follows:\n{}", refused.message);
    }
    Ok(respond(reply))
}

/// Compared in constant time: how much of a guess was right is not to be measured.
fn may(asker: &Asker, headers: &HeaderMap) -> bool {
    let Some(token) = &asker.token else { return true };
    let given = headers
        .get(AUTHORIZATION)
        .map(HeaderValue::as_bytes)
        .and_then(|value| value.strip_prefix(b"Bearer "));
    given.is_some_and(|given| verify_slices_are_equal(given, token.borrow().0.as_bytes()).is_ok())
}

fn respond(reply: Reply) -> Response<Full<Bytes>> {
    let (status, value): (StatusCode, Value) = match reply {
        Ok(value) => (StatusCode::OK, value),
        Err(refused) => (refused.status, json!({ "error": refused.message })),
    };
    let mut response = json_response(status, format!("{value:#}\n").into());
    if status == StatusCode::MISDIRECTED_REQUEST {
        // By the next one somebody else is reached.
        response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn json_response(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
