//! A real HTTP server on loopback, in this process, that serves a folder and misbehaves on purpose.
//!
//! In: a folder, faults by path or for a share of the paths. Out: addresses, and a log of what was asked. Never: a fixed port,
//! a file outside of its folder, a fault that depends on anything but the path, the seed and how often it was asked for.
//! Bodies know `Range` and `If-Range`; an etag changes with the bytes.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, LOCATION, RANGE, RETRY_AFTER};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use imp_schemas::rng::{Role, rng_for};
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// Bytes of a body's pieces.
const PIECE: usize = 16 << 10;
/// What was sent before a body breaks off gets this long to leave: hyper drops what it has not written by then.
const BEFORE_CUT: Duration = Duration::from_millis(20);

/// What goes wrong with one path. `times` faults come first, then the file as it is.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// A status without the file; for 429 and 503 with `Retry-After`, if given.
    Status { status: u16, retry_after_s: Option<u64>, times: u64 },
    /// A pause before every piece of this many bytes.
    Slow { piece: usize, pause: Duration },
    /// Takes the request and says nothing.
    Silent { times: u64 },
    /// Closes the connection after this many bytes of what was asked for.
    Cut { after: usize, times: u64 },
    /// As [`Fault::Cut`], and the server knows no ranges: it sends all of the file every time.
    CutWithoutRanges { after: usize, times: u64 },
    /// Another body, with another etag, from the second request on; the first is cut after this many bytes.
    Replaced { after: usize, with: Vec<u8> },
    /// `Content-Length` is larger than the file by this many bytes.
    TooLong { by: u64 },
    /// Another address.
    Redirect { to: String },
    /// The file, with one header more.
    Header { name: &'static str, value: String },
    /// Bytes without an end; with the length that is claimed, if any.
    Endless { claims: Option<u64> },
}

/// One request, as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    pub path: String,
    pub range: Option<String>,
    pub user_agent: String,
    pub at: Instant,
}

/// The server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum HttpServerError {
    #[error("cannot start the server's thread")]
    Thread { source: std::io::Error },
    #[error("cannot listen on 127.0.0.1")]
    Listen { source: std::io::Error },
}

/// A running server; it stops when this is dropped.
pub struct HttpServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    folder: PathBuf,
    state: Mutex<State>,
    stop: Notify,
}

#[derive(Default)]
struct State {
    faults: HashMap<String, Fault>,
    /// Seed, share, fault; the first that a path's draw falls into.
    shares: Vec<(u64, f64, Fault)>,
    n_asked: BTreeMap<String, u64>,
    log: Vec<Asked>,
    n_active: usize,
    peak_active: usize,
}

impl HttpServer {
    /// Serves `folder` on a port of its own.
    ///
    /// # Errors
    /// See [`HttpServerError`].
    pub fn start(folder: &Path) -> Result<Self, HttpServerError> {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").map_err(|source| HttpServerError::Listen { source })?;
        socket.set_nonblocking(true).map_err(|source| HttpServerError::Listen { source })?;
        let address = socket.local_addr().map_err(|source| HttpServerError::Listen { source })?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("http-server-io")
            .enable_all()
            .build()
            .map_err(|source| HttpServerError::Thread { source })?;
        let shared = Arc::new(Shared { folder: folder.to_owned(), state: Mutex::default(), stop: Notify::default() });
        let serving = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("http-server".to_owned())
            .spawn(move || {
                runtime.block_on(serve(socket, serving));
                runtime.shutdown_background();
            })
            .map_err(|source| HttpServerError::Thread { source })?;
        Ok(Self { address, shared, thread: Some(thread) })
    }

    /// The address of a path of the folder.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// The same under another name of this machine, which is another host to a client.
    pub fn url_by_name(&self, path: &str) -> String {
        format!("http://localhost:{}/{path}", self.address.port())
    }

    /// What happens to `path` from now on.
    pub fn set(&self, path: &str, fault: Fault) {
        self.shared.lock().faults.insert(path.to_owned(), fault);
    }

    /// What happens to a share of the paths, drawn by `seed` and path; of several shares, each takes its own part.
    pub fn set_share(&self, seed: u64, share: f64, fault: Fault) {
        self.shared.lock().shares.push((seed, share, fault));
    }

    /// The paths of `paths` that one of the shares takes, by the same draw.
    pub fn fault_of(&self, path: &str) -> Option<Fault> {
        self.shared.lock().fault_of(path)
    }

    /// Every request since the start.
    pub fn log(&self) -> Vec<Asked> {
        self.shared.lock().log.clone()
    }

    /// The most requests that were answered at the same time.
    pub fn peak_active(&self) -> usize {
        self.shared.lock().peak_active
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.shared.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            // A server that panicked has already failed the requests that a test looks at.
            let _ = thread.join();
        }
    }
}

/// An address where nobody listens.
///
/// # Errors
/// No port is free.
pub fn closed_port() -> std::io::Result<String> {
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    Ok(format!("http://{address}/"))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file at `path`, if it is one of the folder.
    fn read(&self, path: &str) -> Option<Vec<u8>> {
        let path = Path::new(path);
        let is_inside = path.components().all(|part| matches!(part, Component::Normal(_)));
        is_inside.then(|| std::fs::read(self.folder.join(path)).ok()).flatten()
    }
}

impl State {
    fn fault_of(&self, path: &str) -> Option<Fault> {
        if let Some(fault) = self.faults.get(path) {
            return Some(fault.clone());
        }
        let mut letters = path.bytes().map(u64::from).collect::<Vec<_>>();
        letters.push(path.len() as u64);
        let mut below = 0.0;
        for (seed, share, fault) in &self.shares {
            let draw = rng_for(*seed, Role::Synth, &letters).unit();
            if (below..below + share).contains(&draw) {
                return Some(fault.clone());
            }
            below += share;
        }
        None
    }
}

async fn serve(socket: std::net::TcpListener, shared: Arc<Shared>) {
    let Ok(listener) = TcpListener::from_std(socket) else { return };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.stop.notified() => return,
        };
        let Ok((stream, _)) = accepted else { continue };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let handler = hyper::service::service_fn(|request: Request<Incoming>| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(answer(&request, &shared).await) }
            });
            // A client that hangs up is no fault of the server.
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), handler).await;
        });
    }
}

async fn answer(request: &Request<Incoming>, shared: &Arc<Shared>) -> Response<Served> {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let text = |name: &str| Some(request.headers().get(name)?.to_str().ok()?.to_owned());
    let (fault, n_before) = {
        let mut state = shared.lock();
        let asked = Asked {
            path: path.clone(),
            range: text("range"),
            user_agent: text("user-agent").unwrap_or_default(),
            at: Instant::now(),
        };
        state.log.push(asked);
        state.n_active += 1;
        state.peak_active = state.peak_active.max(state.n_active);
        let n_before = state.n_asked.entry(path.clone()).or_insert(0);
        *n_before += 1;
        let n_before = *n_before - 1;
        (state.fault_of(&path), n_before)
    };
    // Counts the request as active until its body is out, or its connection gone.
    let active = Active(Arc::clone(shared));
    let file = shared.read(&path);
    respond(request.headers(), file, fault, n_before, active).await
}

async fn respond(
    asked: &HeaderMap,
    file: Option<Vec<u8>>,
    fault: Option<Fault>,
    n_before: u64,
    active: Active,
) -> Response<Served> {
    let status = |status: u16, active| {
        let mut response = Response::new(Served::of(Bytes::new(), active));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response
    };
    match fault {
        Some(Fault::Status { status: code, retry_after_s, times }) if n_before < times => {
            let mut response = status(code, active);
            if let Some(seconds) = retry_after_s {
                response.headers_mut().insert(RETRY_AFTER, seconds.into());
            }
            return response;
        }
        Some(Fault::Silent { times }) if n_before < times => std::future::pending().await,
        Some(Fault::Redirect { to }) => {
            let mut response = status(302, active);
            if let Ok(to) = to.parse() {
                response.headers_mut().insert(LOCATION, to);
            }
            return response;
        }
        Some(Fault::Endless { claims }) => {
            let mut response = Response::new(Served { active: Some(active), ..Served::default() });
            response.body_mut().is_endless = true;
            if let Some(n) = claims {
                response.headers_mut().insert(CONTENT_LENGTH, n.into());
            }
            return response;
        }
        Some(Fault::Replaced { ref with, .. }) if n_before > 0 => return whole_or_part(asked, with, active),
        _ => {}
    }
    let Some(file) = file else { return status(404, active) };
    let without_ranges = HeaderMap::new();
    let asked = if matches!(fault, Some(Fault::CutWithoutRanges { .. })) { &without_ranges } else { asked };
    let mut response = whole_or_part(asked, &file, active);
    match fault {
        Some(Fault::Slow { piece, pause }) => {
            let body = response.body_mut();
            (body.piece, body.pause) = (piece.max(1), Some(pause));
        }
        Some(Fault::Cut { after, times } | Fault::CutWithoutRanges { after, times }) if n_before < times => {
            response.body_mut().cut(after);
        }
        Some(Fault::Replaced { after, .. }) => response.body_mut().cut(after),
        Some(Fault::TooLong { by }) => {
            response.body_mut().is_short = true;
            response.headers_mut().insert(CONTENT_LENGTH, (file.len() as u64 + by).into());
        }
        Some(Fault::Header { name, value }) => {
            if let Ok(value) = value.parse() {
                response.headers_mut().insert(name, value);
            }
        }
        _ => {}
    }
    response
}

/// The file, or what `Range` asks of it if `If-Range` still names it.
fn whole_or_part(asked: &HeaderMap, file: &[u8], active: Active) -> Response<Served> {
    let etag = format!("\"{:x}-{:x}\"", file.len(), file.iter().map(|&byte| u64::from(byte)).sum::<u64>());
    let is_same = asked.get(IF_RANGE).is_none_or(|value| value.as_bytes() == etag.as_bytes());
    let start =
        asked.get(RANGE).and_then(|range| range.to_str().ok()?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let start = start.filter(|_| is_same).unwrap_or(0);
    if start > 0 && start >= file.len() {
        let mut response = Response::new(Served::of(Bytes::new(), active));
        *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
        return response;
    }
    let mut response = Response::new(Served::of(Bytes::copy_from_slice(&file[start..]), active));
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, (file.len() - start).into());
    if let Ok(etag) = etag.parse() {
        headers.insert(ETAG, etag);
    }
    if start > 0 {
        if let Ok(range) = format!("bytes {start}-{}/{}", file.len() - 1, file.len()).parse() {
            headers.insert(CONTENT_RANGE, range);
        }
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    response
}

struct Active(Arc<Shared>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.lock().n_active -= 1;
    }
}

/// A body that may dribble, break off or never end.
#[derive(Default)]
struct Served {
    rest: Bytes,
    piece: usize,
    pause: Option<Duration>,
    cut_after: Option<usize>,
    /// It ends before its length is reached.
    is_short: bool,
    is_endless: bool,
    sleep: Option<Pin<Box<tokio::time::Sleep>>>,
    active: Option<Active>,
}

impl Served {
    fn of(bytes: Bytes, active: Active) -> Self {
        Self { rest: bytes, piece: PIECE, active: Some(active), ..Self::default() }
    }

    fn cut(&mut self, after: usize) {
        (self.cut_after, self.is_short) = (Some(after), true);
    }

    /// The next piece; `None` at the end.
    fn next(&mut self) -> Option<Result<Bytes, std::io::Error>> {
        if self.is_endless {
            return Some(Ok(Bytes::from_static(&[0xAB; PIECE])));
        }
        let n = self.piece.min(self.rest.len()).min(self.cut_after.unwrap_or(usize::MAX));
        if n == 0 && self.cut_after == Some(0) {
            return Some(Err(std::io::Error::other("cut on purpose")));
        }
        if let Some(left) = &mut self.cut_after {
            *left -= n;
        }
        (n > 0).then(|| Ok(self.rest.split_to(n)))
    }
}

impl Body for Served {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let is_over = self.rest.is_empty() || self.cut_after == Some(0);
        let pause = if is_over && self.is_short { Some(BEFORE_CUT) } else { self.pause };
        if let Some(pause) = pause {
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(pause)));
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.sleep = None;
        }
        let next = self.next();
        // Whoever has the last piece may ask for more at once, and is not to find this request still active.
        if self.rest.is_empty() && !self.is_endless && self.cut_after.is_none() {
            self.active = None;
        }
        Poll::Ready(next.map(|piece| piece.map(Frame::data)))
    }
}
