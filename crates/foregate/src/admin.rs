//! The administration: HTTP and JSON on a unix socket, or on a loopback address for those who know the token.
//!
//! Only puts what is asked into the inbox of the control thread, and says what comes of it.

mod routes;

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
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
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::AbortHandle;

use crate::config::{Admin, Listen, Token};
use crate::control::{Ask, Refused, Reply};

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
    admin: Admin,
    task: Option<Task>,
}

/// What it takes to be heard elsewhere.
pub(crate) struct Prepared {
    admin: Admin,
    /// `None`: where it was, or nowhere.
    bound: Option<Bound>,
}

enum Bound {
    Unix(UnixListener, Socket),
    Tcp(TcpListener, Token),
}

/// Accepts until dropped.
struct Task {
    accepting: AbortHandle,
    _socket: Option<Socket>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The file of a socket, removed with it unless another has taken its place.
struct Socket {
    path: PathBuf,
    inode: u64,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if fs::metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            _ = fs::remove_file(&self.path);
        }
    }
}

impl Server {
    /// Listens nowhere.
    pub(crate) fn new(asks: UnboundedSender<Ask>) -> Server {
        Server { asks, admin: Admin { listen: Listen::Off, written: false }, task: None }
    }

    /// Listens as the configuration says, from nowhere. In a local runtime.
    ///
    /// # Errors
    /// It cannot, and the file says that it should.
    pub(crate) fn open(&mut self, admin: &Admin) -> Result<(), String> {
        match self.prepare(admin) {
            Ok(prepared) => self.commit(prepared),
            Err(reason) if admin.written => return Err(reason),
            Err(reason) => tracing::warn!("this gateway cannot be administrated: {reason}"),
        }
        Ok(())
    }

    /// Listens nowhere any more, and returns where it did. Who is connected is still answered.
    pub(crate) fn close(&mut self) -> Admin {
        self.task = None;
        std::mem::replace(&mut self.admin, Admin { listen: Listen::Off, written: false })
    }

    /// Binds what is to be listened on, if that is another place than now.
    ///
    /// # Errors
    /// It cannot be bound.
    pub(crate) fn prepare(&self, admin: &Admin) -> Result<Prepared, String> {
        let stays = match (&self.admin.listen, &admin.listen) {
            (Listen::Tcp(now, known), Listen::Tcp(next, token)) if now == next && known != token => {
                return Err(format!(
                    "{now} cannot change its token while the gateway runs; write another port too"
                ));
            }
            (now, next) => now == next,
        };
        let failed = |error: io::Error| format!("cannot listen on {}: {}", admin.listen, reason(&error));
        let bound = match &admin.listen {
            _ if stays => None,
            Listen::Off => None,
            Listen::Unix(path) => Some(bind(path).map_err(failed)?),
            Listen::Tcp(address, token) => {
                let listener = std::net::TcpListener::bind(address).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                Some(Bound::Tcp(TcpListener::from_std(listener).map_err(failed)?, token.clone()))
            }
        };
        Ok(Prepared { admin: admin.clone(), bound })
    }

    /// Listens there from now on, and no more where it did.
    pub(crate) fn commit(&mut self, prepared: Prepared) {
        let Prepared { admin, bound } = prepared;
        if let Some(bound) = bound {
            let (asks, gate) = (self.asks.clone(), Arc::new(Semaphore::new(AT_A_TIME)));
            tracing::info!("administration listens on {}", admin.listen);
            self.task = Some(match bound {
                Bound::Unix(listener, socket) => {
                    let accepting =
                        tokio::task::spawn_local(accept_unix(listener, asks, gate)).abort_handle();
                    Task { accepting, _socket: Some(socket) }
                }
                Bound::Tcp(listener, token) => {
                    let accepting =
                        tokio::task::spawn_local(accept_tcp(listener, token, asks, gate)).abort_handle();
                    Task { accepting, _socket: None }
                }
            });
        } else if admin.listen == Listen::Off {
            self.task = None;
        }
        self.admin = admin;
    }
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another program listens there; stop it, or write another place as admin.listen".to_owned()
        }
        io::ErrorKind::PermissionDenied => format!(
            "{error}; let this user write to the folder (RuntimeDirectory=foregate in a systemd unit), or write another \
             place as admin.listen"
        ),
        _ => error.to_string(),
    }
}

/// Binds a socket in the place of one that nobody listens on any more.
fn bind(path: &Path) -> io::Result<Bound> {
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
        // There is none, or what is there is no socket, and then it is not removed.
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    let inode = fs::metadata(path)?.ino();
    Ok(Bound::Unix(listener, Socket { path: path.to_owned(), inode }))
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

async fn accept_tcp(listener: TcpListener, token: Token, asks: UnboundedSender<Ask>, gate: Arc<Semaphore>) {
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
    token: Option<Token>,
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
    let (reply, answered) = oneshot::channel();
    let gone = || Refused::new(StatusCode::SERVICE_UNAVAILABLE, "the gateway is about to end");
    if asker.asks.send(Ask { request, by: asker.by.clone(), reply: Some(reply) }).is_err() {
        return Ok(respond(Err(gone())));
    }
    Ok(respond(answered.await.unwrap_or_else(|_| Err(gone()))))
}

/// Compared in constant time: how much of a guess was right is not to be measured.
fn may(asker: &Asker, headers: &HeaderMap) -> bool {
    let Some(Token(token)) = &asker.token else { return true };
    let given = headers
        .get(AUTHORIZATION)
        .map(HeaderValue::as_bytes)
        .and_then(|value| value.strip_prefix(b"Bearer "));
    given.is_some_and(|given| verify_slices_are_equal(given, token.as_bytes()).is_ok())
}

fn respond(reply: Reply) -> Response<Full<Bytes>> {
    let (status, value): (StatusCode, Value) = match reply {
        Ok(value) => (StatusCode::OK, value),
        Err(refused) => (refused.status, json!({ "error": refused.message })),
    };
    json_response(status, format!("{value:#}\n").into())
}

fn json_response(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
