//! One medium by `http(s)://`: tries, redirects, the rest of a body that broke.
//!
//! In: an address. Out: all of the body, or why not. Never: a body longer than allowed (its header is believed when it says
//! too much, and nothing is allocated for what it says), a redirect to another kind of address, a second try without a pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use imp_schemas::reject::RejectReason;
use reqwest::header::{ACCEPT_ENCODING, ETAG, HeaderValue, IF_RANGE, LAST_MODIFIED, LOCATION, RANGE};
use reqwest::{Client, Response, StatusCode, Url, redirect};

use super::answer::{self, Fault};
use super::gate::{Gate, Gone, Held};
use crate::config::FetchConfig;
use crate::error::IngestError;
use crate::text::Refusal;

const MAX_REDIRECTS: usize = 5;
/// A try that brought as much does not count as failed: a large body over a bad line gets there in the end.
const PROGRESS: u64 = 1 << 20;
const MAX_BACKOFF: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Http {
    client: Client,
    config: FetchConfig,
    /// How headers call us.
    robot: String,
    n_requests: AtomicU64,
}

/// What has come in so far, over all tries.
#[derive(Debug, Default)]
struct Body {
    held: Held,
    /// Tells whether the rest is still the rest of the same body.
    validator: Option<HeaderValue>,
}

/// The time that a try has left; runs only while the network is waited for.
struct Clock {
    left: Duration,
}

impl Clock {
    /// `None` if `wait` took longer than `longest`, or than the try has left.
    async fn within<F: Future>(&mut self, longest: Duration, wait: F) -> Option<F::Output> {
        let started = Instant::now();
        let done = tokio::time::timeout(longest.min(self.left), wait).await;
        self.left = self.left.saturating_sub(started.elapsed());
        done.ok()
    }
}

impl Http {
    pub(super) fn new(config: &FetchConfig) -> Result<Self, IngestError> {
        let user_agent = config.user_agent();
        let robot = user_agent.split(['/', ' ']).next().unwrap_or_default().to_owned();
        let failed = |source| IngestError::HttpClient { source };
        let mut client = Client::builder()
            .user_agent(user_agent)
            .no_proxy()
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(Duration::from_secs_f64(config.connect_timeout_s))
            .pool_max_idle_per_host(config.n_per_host)
            .pool_idle_timeout(Duration::from_secs(20));
        if let Some(proxy) = &config.proxy {
            client = client.proxy(reqwest::Proxy::all(proxy).map_err(failed)?);
        }
        Ok(Self {
            client: client.build().map_err(failed)?,
            config: config.clone(),
            robot,
            n_requests: AtomicU64::new(0),
        })
    }

    pub(super) fn n_requests(&self) -> u64 {
        self.n_requests.load(Ordering::Relaxed)
    }

    /// Gets `url` for the ticket `id` of `gate`.
    pub(super) async fn get(&self, gate: &Gate, id: u64, url: &str, max_bytes: u64) -> Result<Vec<u8>, Refusal> {
        let malformed = |detail: String| (RejectReason::MalformedRow, format!("`{url}` is no address: {detail}"));
        let url = Url::parse(url).map_err(|e| malformed(e.to_string()))?;
        if !is_http(&url) {
            return Err(malformed(format!("its scheme is {}, wanted http, https or s3", url.scheme())));
        }
        let mut body = Body::default();
        let mut n_failed = 0;
        for attempt in 0.. {
            let n_before = body.held.len();
            let fault = match self.attempt(gate, id, &url, max_bytes, &mut body).await {
                Ok(()) => return Ok(body.held.bytes),
                Err(fault) => fault,
            };
            gate.leave(id);
            let (mut refusal, after) = match fault {
                Fault::Final(refusal) => return Err(refusal),
                Fault::Again(refusal, after) => (refusal, after),
            };
            if body.held.len() < n_before + PROGRESS {
                n_failed += 1;
            }
            if n_failed >= self.config.n_tries {
                refusal.1 = format!("{} ({n_failed} tries)", refusal.1);
                return Err(refusal);
            }
            let after = after.unwrap_or_default();
            if after > Duration::from_secs_f64(self.config.max_retry_after_s) {
                refusal.1 = format!("{}, wants to be left alone for {} s", refusal.1, after.as_secs());
                return Err(refusal);
            }
            tokio::time::sleep(after.max(self.backoff(url.as_str(), attempt))).await;
        }
        Err(stopped())
    }

    /// Doubles with every try, and lies within half and one and a half of that by the hash of address and try.
    fn backoff(&self, url: &str, attempt: u32) -> Duration {
        let digest = blake3::Hasher::new().update(url.as_bytes()).update(&attempt.to_le_bytes()).finalize();
        let draw = f64::from(digest.as_bytes()[0]) / 256.0;
        let seconds = self.config.backoff_s * f64::from(1 << attempt.min(16)) * (0.5 + draw);
        Duration::from_secs_f64(seconds).min(MAX_BACKOFF)
    }

    /// One try: follows redirects to a body and reads it to its end.
    async fn attempt(&self, gate: &Gate, id: u64, url: &Url, max: u64, body: &mut Body) -> Result<(), Fault> {
        let mut clock = Clock { left: Duration::from_secs_f64(self.config.timeout_s) };
        let longest = Duration::from_secs_f64(self.config.connect_timeout_s + self.config.idle_timeout_s);
        let mut at = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let host: Option<Arc<str>> = Some(at.host_str().unwrap_or_default().into());
            gate.enter(id, &host).await?;
            let mut request = self.client.get(at.clone()).header(ACCEPT_ENCODING, "identity");
            if let (Some(validator), n @ 1..) = (&body.validator, body.held.len()) {
                request = request.header(RANGE, format!("bytes={n}-")).header(IF_RANGE, validator);
            }
            let silent = || {
                let detail = format!("no answer in {:.1} s", longest.as_secs_f64().min(self.config.timeout_s));
                Fault::Again((RejectReason::Timeout, detail), None)
            };
            self.n_requests.fetch_add(1, Ordering::Relaxed);
            let answer = clock.within(longest, request.send()).await.ok_or_else(silent)?;
            let response = answer.map_err(answer::unanswered)?;
            let location = response.headers().get(LOCATION).filter(|_| response.status().is_redirection());
            let Some(location) = location else {
                return self.receive(gate, id, response, max, body, &mut clock).await;
            };
            let location = String::from_utf8_lossy(location.as_bytes()).into_owned();
            at = at.join(&location).ok().filter(is_http).ok_or_else(|| {
                let detail = format!("{} to `{location}`, wanted http or https", response.status());
                Fault::Final((RejectReason::HttpStatus, detail))
            })?;
        }
        let detail = format!("more than {MAX_REDIRECTS} redirects, the last to `{at}`");
        Err(Fault::Final((RejectReason::HttpStatus, detail)))
    }

    async fn receive(
        &self,
        gate: &Gate,
        id: u64,
        mut response: Response,
        max: u64,
        body: &mut Body,
        clock: &mut Clock,
    ) -> Result<(), Fault> {
        let status = response.status();
        let part = answer::part_of(response.headers()).filter(|_| status == StatusCode::PARTIAL_CONTENT);
        let goes_on = part.is_some_and(|(start, _)| start == body.held.len());
        if !goes_on {
            body.held.clear(gate, id);
            body.validator = None;
        }
        if status == StatusCode::RANGE_NOT_SATISFIABLE || (status == StatusCode::PARTIAL_CONTENT && !goes_on) {
            let detail = format!("{status} for the rest of a broken body");
            return Err(Fault::Again((RejectReason::HttpStatus, detail), None));
        }
        if !status.is_success() {
            return Err(answer::refused(&response));
        }
        if self.config.respect_opt_out
            && let Some(header) = answer::opt_out(response.headers(), &self.robot)
        {
            return Err(Fault::Final((RejectReason::Disallowed, header)));
        }
        if !goes_on {
            body.validator = validator(&response);
        }
        let total = part.and_then(|(_, total)| total).or_else(|| Some(body.held.len() + response.content_length()?));
        let too_large =
            |found: &str| Err(Fault::Final((RejectReason::TooLarge, format!("{found} bytes, the limit is {max}"))));
        if let Some(total) = total.filter(|&total| total > max) {
            return too_large(&total.to_string());
        }
        loop {
            let chunk = match clock.within(self.idle(), response.chunk()).await {
                None => return Err(self.stalled(body, total)),
                Some(Err(error)) => return Err(broken(body, total, &answer::chain(&error.without_url()))),
                Some(Ok(None)) => break,
                Some(Ok(Some(chunk))) => chunk,
            };
            if body.held.len() + chunk.len() as u64 > max {
                return too_large("more");
            }
            body.held.append(gate, id, &chunk, total).await?;
        }
        if total.is_some_and(|total| body.held.len() < total) {
            return Err(broken(body, total, "the host said it was done"));
        }
        if body.held.len() == 0 {
            return Err(Fault::Final((RejectReason::EmptyFile, format!("{status} with 0 bytes"))));
        }
        Ok(())
    }

    fn idle(&self) -> Duration {
        Duration::from_secs_f64(self.config.idle_timeout_s)
    }

    fn stalled(&self, body: &Body, total: Option<u64>) -> Fault {
        let (idle, all) = (self.config.idle_timeout_s, self.config.timeout_s);
        let detail = format!("{}, then nothing for {idle:.1} s or not all in {all:.1} s", progress(body, total));
        Fault::Again((RejectReason::Timeout, detail), None)
    }
}

impl From<Gone> for Fault {
    fn from(Gone: Gone) -> Self {
        Self::Final(stopped())
    }
}

fn stopped() -> Refusal {
    (RejectReason::Unreadable, "given up before it was there".to_owned())
}

fn is_http(url: &Url) -> bool {
    matches!(url.scheme(), "http" | "https")
}

fn broken(body: &Body, total: Option<u64>, cause: &str) -> Fault {
    Fault::Again((RejectReason::Truncated, format!("{}: {cause}", progress(body, total))), None)
}

fn progress(body: &Body, total: Option<u64>) -> String {
    let of = total.map_or(String::new(), |total| format!(" of {total}"));
    format!("{}{of} bytes came", body.held.len())
}

/// What `If-Range` may hold: a strong etag, else the date of the last change.
fn validator(response: &Response) -> Option<HeaderValue> {
    let etag = response.headers().get(ETAG).filter(|etag| !etag.as_bytes().starts_with(b"W/"));
    etag.or_else(|| response.headers().get(LAST_MODIFIED)).cloned()
}
