//! A real S3-protocol server over HTTP on loopback, in this process, for tests.
//!
//! In: nothing. Out: an endpoint, credentials, a bucket. Never: a fixed port, a folder that outlives the server, a
//! request without a signature. Signatures, XML, ranges and listings are those of `s3s`; objects are files (`s3s-fs`).
//! The thin layer in front makes "create if absent" atomic, which `s3s-fs` only checks before it writes, writes down what was
//! asked, and can turn requests away, answer late or break off, to show what a client does then.

mod faults;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as Lock, MutexGuard as LockGuard, PoisonError};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpRequest, HttpResponse};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Notify};

use faults::CutBody;
pub use faults::{Asked, Faults, Kind};

const ACCESS_KEY: &str = "imp-test-key";
const SECRET_KEY: &str = "imp-test-secret";
const BUCKET: &str = "imp-test";

/// The server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum S3ServerError {
    #[error("cannot make the server's folder")]
    Folder { source: std::io::Error },
    #[error("cannot serve folder `{}`: {detail}", path.display())]
    FileSystem { path: PathBuf, detail: String },
    #[error("cannot start the server's thread")]
    Thread { source: std::io::Error },
    #[error("cannot listen on 127.0.0.1")]
    Listen { source: std::io::Error },
}

/// A running server; it stops, and its objects go, when this is dropped.
pub struct S3Server {
    address: SocketAddr,
    folder: Arc<TempDir>,
    gate: Arc<Gate>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What stands in front of the S3 service.
#[derive(Default)]
struct Gate {
    /// Held while an object is created, so that of two creators one loses, whichever door they come through.
    creating: Arc<Mutex<()>>,
    n_to_refuse: AtomicU64,
    n_requests: AtomicU64,
    record: Lock<Record>,
    stop: Notify,
}

#[derive(Default)]
struct Record {
    faults: Option<Faults>,
    /// Part of a key, and how late a request for such a key is answered.
    late: Option<(String, Duration)>,
    /// Requests since the faults were set.
    n: u64,
    log: Vec<Asked>,
}

impl Gate {
    fn record(&self) -> LockGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl S3Server {
    /// Starts a server with one empty bucket, on a port of its own.
    ///
    /// # Errors
    /// See [`S3ServerError`].
    pub fn start() -> Result<Self, S3ServerError> {
        let folder = tempfile::tempdir().map_err(|source| S3ServerError::Folder { source })?;
        std::fs::create_dir(folder.path().join(BUCKET)).map_err(|source| S3ServerError::Folder { source })?;
        Self::serve(Arc::new(folder), Arc::default())
    }

    /// A second server for the same bucket, with faults and a log of its own: two clients on two networks.
    ///
    /// # Errors
    /// See [`S3ServerError`].
    pub fn second_door(&self) -> Result<Self, S3ServerError> {
        Self::serve(Arc::clone(&self.folder), Arc::clone(&self.gate.creating))
    }

    fn serve(folder: Arc<TempDir>, creating: Arc<Mutex<()>>) -> Result<Self, S3ServerError> {
        let files = s3s_fs::FileSystem::new(folder.path())
            .map_err(|e| S3ServerError::FileSystem { path: folder.path().to_owned(), detail: format!("{e:?}") })?;
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").map_err(|source| S3ServerError::Listen { source })?;
        socket.set_nonblocking(true).map_err(|source| S3ServerError::Listen { source })?;
        let address = socket.local_addr().map_err(|source| S3ServerError::Listen { source })?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("s3-server-io")
            .enable_all()
            .build()
            .map_err(|source| S3ServerError::Thread { source })?;
        let gate = Arc::new(Gate { creating, ..Gate::default() });
        let serving = Arc::clone(&gate);
        let thread = std::thread::Builder::new()
            .name("s3-server".to_owned())
            .spawn(move || runtime.block_on(serve(socket, service, serving)))
            .map_err(|source| S3ServerError::Thread { source })?;
        Ok(Self { address, folder, gate, thread: Some(thread) })
    }

    /// `http://127.0.0.1:<port>`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A store's address below the server's bucket.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// The `AWS_*` variables with which a child process reaches the server.
    pub fn env(&self) -> Vec<(String, String)> {
        let pairs = [
            ("AWS_ENDPOINT", self.endpoint()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
        ];
        pairs.map(|(name, value)| (name.to_owned(), value)).into()
    }

    /// The same, for `Store::open_with` in this process.
    pub fn options(&self) -> Vec<(String, String)> {
        self.env().into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect()
    }

    /// Answers the next `n` requests with 503, as S3 does when it wants a client to slow down.
    pub fn refuse_next(&self, n: u64) {
        self.gate.n_to_refuse.store(n, Ordering::SeqCst);
    }

    /// Lets a share of the requests go wrong from now on; `None` ends it.
    pub fn faults(&self, faults: Option<Faults>) {
        let mut record = self.gate.record();
        (record.faults, record.n) = (faults, 0);
    }

    /// Answers requests whose key holds `part` by `delay` late.
    pub fn late(&self, part: &str, delay: Duration) {
        self.gate.record().late = Some((part.to_owned(), delay));
    }

    /// Every request since the start or since the log was last taken, in the order of their answers.
    pub fn take_log(&self) -> Vec<Asked> {
        std::mem::take(&mut self.gate.record().log)
    }

    /// Requests since the start, refused ones included.
    pub fn n_requests(&self) -> u64 {
        self.gate.n_requests.load(Ordering::SeqCst)
    }

    /// The folder whose files are the bucket's objects, to break one on purpose.
    pub fn bucket_folder(&self) -> PathBuf {
        self.folder.path().join(BUCKET)
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.gate.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            // A server that panicked has already failed the requests that a test looks at.
            let _ = thread.join();
        }
    }
}

async fn serve(socket: std::net::TcpListener, service: S3Service, gate: Arc<Gate>) {
    let Ok(listener) = TcpListener::from_std(socket) else { return };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = gate.stop.notified() => return,
        };
        let Ok((stream, _)) = accepted else { continue };
        let (service, gate) = (service.clone(), Arc::clone(&gate));
        tokio::spawn(async move {
            let handler = hyper::service::service_fn(|request: hyper::Request<hyper::body::Incoming>| {
                let (service, gate) = (service.clone(), Arc::clone(&gate));
                async move { answer(request.map(Body::from), &service, &gate).await }
            });
            // A client that hangs up is no fault of the server, and a broken connection is what a test asked for.
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), handler).await;
        });
    }
}

/// An error breaks the connection.
async fn answer(request: HttpRequest, service: &S3Service, gate: &Gate) -> std::io::Result<HttpResponse> {
    gate.n_requests.fetch_add(1, Ordering::SeqCst);
    let mut asked = faults::asked_of(&request, BUCKET);
    let late = {
        let mut record = gate.record();
        record.n += 1;
        asked.fault = record.faults.and_then(|faults| faults.of(record.n - 1));
        record.late.as_ref().filter(|(part, _)| asked.key.contains(part)).map(|(_, delay)| *delay)
    };
    if let Some(delay) = late {
        tokio::time::sleep(delay).await;
    }
    let fault = asked.fault;
    let is_head = request.method() == "HEAD";
    let refused = gate.n_to_refuse.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
    let response = if refused.is_ok() || fault == Some(Kind::Refused) {
        plain(503, "<Error><Code>SlowDown</Code><Message>refused on purpose</Message></Error>")
    } else {
        if let Some(fault) = fault {
            fault.delay().await;
        }
        serve_one(request, service, gate).await
    };
    let length = response.headers().get("content-length").and_then(|n| n.to_str().ok()?.parse::<u64>().ok());
    asked.n_bytes = length.unwrap_or(0);
    asked.status = response.status().as_u16();
    gate.record().log.push(asked);
    if fault != Some(Kind::Cut) {
        return Ok(response);
    }
    let left = usize::try_from(length.unwrap_or(0) / 2).unwrap_or(usize::MAX);
    if left == 0 || is_head {
        return Err(std::io::Error::other("cut on purpose"));
    }
    Ok(response.map(|inner| Body::http_body_unsync(CutBody::new(inner, left))))
}

async fn serve_one(request: HttpRequest, service: &S3Service, gate: &Gate) -> HttpResponse {
    let creates = request.headers().contains_key("if-none-match") && request.method() == "PUT";
    let _creating = if creates { Some(gate.creating.lock().await) } else { None };
    match service.call(request).await {
        Ok(response) => response,
        Err(error) => plain(500, &format!("<Error><Code>InternalError</Code><Message>{error:?}</Message></Error>")),
    }
}

fn plain(status: u16, xml: &str) -> HttpResponse {
    let mut response = HttpResponse::new(Body::from(xml.to_owned()));
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use imp_schemas::store::{Listed, Store, StoreError};

    /// What every store promises, whichever it is.
    fn check(store: &Store) {
        let bytes = |text: &'static str| text.as_bytes().to_vec().into();
        assert_eq!(store.list("").unwrap(), []);
        store.put("a/b/one.bin", bytes("0123456789")).unwrap();
        store.put("a/two.bin", bytes("")).unwrap();
        assert_eq!(store.get("a/b/one.bin").unwrap(), "0123456789");
        assert_eq!(store.get_range("a/b/one.bin", 2..5).unwrap(), "234");
        assert_eq!(store.get_ranges("a/b/one.bin", &[0..1, 4..6, 9..10]).unwrap(), ["0", "45", "9"]);
        assert_eq!((store.size("a/two.bin").unwrap(), store.size("a/none.bin").unwrap()), (Some(0), None));
        store.put("a/b/one.bin", bytes("overwritten")).unwrap();
        assert_eq!(store.get("a/b/one.bin").unwrap(), "overwritten");
        let listed = |key: &str, n_bytes| Listed { key: key.to_owned(), n_bytes };
        assert_eq!(store.list("a").unwrap(), [listed("a/b/one.bin", 11), listed("a/two.bin", 0)]);
        assert_eq!(store.list("a/b").unwrap(), [listed("a/b/one.bin", 11)]);
        assert!(store.put_if_absent("a/three.bin", bytes("first")).unwrap());
        assert!(!store.put_if_absent("a/three.bin", bytes("second")).unwrap());
        assert_eq!(store.get("a/three.bin").unwrap(), "first");
        assert!(store.get_range("a/three.bin", 3..9).is_err());
        let missing = store.get("a/none.bin").unwrap_err();
        assert!(matches!(missing, StoreError::NotFound { .. }), "{missing:?}");
        store.delete("a/three.bin").unwrap();
        store.delete("a/three.bin").unwrap();
        assert_eq!(store.size("a/three.bin").unwrap(), None);
        assert!(matches!(store.manifest("world"), Err(StoreError::NoManifest { .. })));
    }

    /// Of many that create the same key at once, one wins, and its bytes stay.
    fn check_creation(store: &Store) {
        for round in 0..4 {
            let key = format!("race/{round}.json");
            let wrote: Vec<(u8, bool)> = std::thread::scope(|scope| {
                let creators: Vec<_> = (0..6)
                    .map(|i| {
                        let (store, key) = (store.clone(), &key);
                        scope.spawn(move || (i, store.put_if_absent(key, vec![i; 4096].into()).unwrap()))
                    })
                    .collect();
                creators.into_iter().map(|creator| creator.join().unwrap()).collect()
            });
            let winners: Vec<u8> = wrote.iter().filter(|(_, won)| *won).map(|(i, _)| *i).collect();
            assert_eq!(winners.len(), 1, "{wrote:?}");
            assert_eq!(store.get(&key).unwrap(), vec![winners[0]; 4096]);
        }
    }

    #[test]
    fn a_local_folder_keeps_what_a_store_promises() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().to_str().unwrap()).unwrap();
        check(&store);
        check_creation(&store);
    }

    #[test]
    fn an_s3_bucket_keeps_what_a_store_promises() {
        let server = S3Server::start().unwrap();
        let store = Store::open_with(&server.url("some/prefix"), &server.options()).unwrap();
        check(&store);
        check_creation(&store);
        assert!(server.n_requests() > 20);
    }

    #[test]
    fn a_client_asks_again_when_the_server_says_slow_down() {
        let server = S3Server::start().unwrap();
        let store = Store::open_with(&server.url("p"), &server.options()).unwrap();
        store.put("a.bin", "bytes".into()).unwrap();
        server.refuse_next(2);
        assert_eq!(store.get("a.bin").unwrap(), "bytes");
    }

    #[test]
    fn a_store_is_the_same_when_a_fifth_of_its_requests_goes_wrong() {
        for seed in 0..4 {
            let server = S3Server::start().unwrap();
            let store = Store::open_with(&server.url("p"), &server.options()).unwrap();
            server.faults(Some(Faults { share_refused: 0.07, share_slow: 0.03, share_cut: 0.1, seed }));
            check(&store);
            check_creation(&store);
            // Of more than one part, so that parts and their end are lost too.
            let file = tempfile::NamedTempFile::new().unwrap();
            let large: Vec<u8> = (0..20_000_000_u32).map(|i| (i % 251) as u8).collect();
            std::fs::write(file.path(), &large).unwrap();
            for round in 0..3 {
                let key = format!("large/{round}.bin");
                store.put_file(&key, file.path()).unwrap();
                assert!(store.get(&key).unwrap() == large, "seed {seed}, round {round}");
            }
            let kinds: std::collections::HashSet<_> =
                server.take_log().iter().filter_map(|asked| asked.fault).map(|kind| kind as u8).collect();
            assert_eq!(kinds.len(), 3, "every kind of fault was met");
        }
    }

    #[test]
    fn the_log_says_what_was_asked_and_how_much_came() {
        let server = S3Server::start().unwrap();
        let store = Store::open_with(&server.url("p"), &server.options()).unwrap();
        store.put("a.bin", "0123456789".into()).unwrap();
        server.take_log();
        store.get_range("a.bin", 2..5).unwrap();
        let log = server.take_log();
        let [asked] = &log[..] else { panic!("one request, not {log:?}") };
        assert_eq!((asked.method.as_str(), asked.key.as_str()), ("GET", "p/a.bin"));
        assert_eq!((asked.range.as_deref(), asked.n_bytes, asked.status), (Some("bytes=2-4"), 3, 206));
    }

    #[test]
    fn a_wrong_secret_is_refused() {
        let server = S3Server::start().unwrap();
        let mut options = server.options();
        for (name, value) in &mut options {
            if name == "aws_secret_access_key" {
                value.push('x');
            }
        }
        let store = Store::open_with(&server.url("p"), &options).unwrap();
        assert!(store.put("a.bin", "bytes".into()).is_err());
    }
}
