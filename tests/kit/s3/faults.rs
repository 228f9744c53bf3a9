//! What goes wrong with requests to the S3 server, and the log of what was asked.
//!
//! In: shares and a seed. Out: for the n-th request since then, what goes wrong with it: the same n, the same fault.
//! Never: an answer with wrong bytes; what goes wrong is seen as wrong by whoever looks at lengths and statuses.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use imp_schemas::rng::{Role, rng_for};
use s3s::{Body, HttpRequest, StdError};

/// What was sent before a body breaks off gets this long to leave: hyper drops what it has not written by then.
const BEFORE_CUT: Duration = Duration::from_millis(20);
/// How long a slow answer takes.
const SLOW: Duration = Duration::from_millis(300);

/// Shares of the requests that go wrong in each way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Faults {
    /// Answered with 503.
    pub share_refused: f64,
    /// Answered late.
    pub share_slow: f64,
    /// The connection breaks: half-way through the body of an answer, or, where the answer has none, when the work is done and
    /// the answer not sent yet.
    pub share_cut: f64,
    pub seed: u64,
}

/// One request, as it was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub method: String,
    /// Below the bucket.
    pub key: String,
    /// `Range`, as it was asked for.
    pub range: Option<String>,
    /// `Content-Length` of the answer, 0 without one.
    pub n_bytes: u64,
    pub status: u16,
    pub fault: Option<Kind>,
}

/// What went wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Refused,
    Slow,
    Cut,
}

impl Faults {
    /// What goes wrong with request `n`, if anything does.
    pub(super) fn of(&self, n: u64) -> Option<Kind> {
        let draw = rng_for(self.seed, Role::Synth, &[n]).unit();
        let kinds = [(self.share_refused, Kind::Refused), (self.share_slow, Kind::Slow), (self.share_cut, Kind::Cut)];
        let mut below = 0.0;
        kinds.into_iter().find_map(|(share, kind)| {
            let is_hit = (below..below + share).contains(&draw);
            below += share;
            is_hit.then_some(kind)
        })
    }
}

impl Kind {
    pub(super) async fn delay(self) {
        if self == Self::Slow {
            tokio::time::sleep(SLOW).await;
        }
    }
}

/// What a request says before it is answered.
pub(super) fn asked_of(request: &HttpRequest, bucket: &str) -> Asked {
    let path = request.uri().path().trim_start_matches('/');
    let key = path.strip_prefix(bucket).map_or(path, |key| key.trim_start_matches('/'));
    let range = request.headers().get("range").and_then(|range| range.to_str().ok());
    Asked {
        method: request.method().to_string(),
        key: key.to_owned(),
        range: range.map(str::to_owned),
        n_bytes: 0,
        status: 0,
        fault: None,
    }
}

/// An answer's body that breaks off.
pub(super) struct CutBody {
    inner: Body,
    /// Bytes before it does.
    left: usize,
    sleep: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl CutBody {
    pub(super) fn new(inner: Body, left: usize) -> Self {
        Self { inner, left, sleep: None }
    }

    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(BEFORE_CUT)));
        sleep.as_mut().poll(cx).map(|()| Some(Err(StdError::from("cut on purpose"))))
    }
}

impl HttpBody for CutBody {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        if self.left == 0 {
            return self.poll_cut(cx);
        }
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(mut bytes) => {
                    bytes.truncate(self.left);
                    self.left -= bytes.len();
                    Poll::Ready(Some(Ok(Frame::data(bytes))))
                }
                Err(frame) => Poll::Ready(Some(Ok(frame))),
            },
            Poll::Ready(None) => self.poll_cut(cx),
            other => other,
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
