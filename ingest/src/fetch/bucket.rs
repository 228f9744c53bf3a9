//! One medium by `s3://`, through object_store: retries and the rest of a broken body are its own.
//!
//! In: `s3://bucket/key`. Out: the object. Never: more bytes than allowed, a key read as anything but its letters.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::TryStreamExt;
use imp_schemas::reject::RejectReason;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, ObjectStoreExt, RetryConfig};

use super::answer::chain;
use super::gate::{Gate, Held};
use crate::config::FetchConfig;
use crate::text::Refusal;

/// Longest time that retries of one object may take.
const MAX_RETRY: Duration = Duration::from_secs(120);

/// The buckets met so far, a client each.
#[derive(Debug)]
pub(super) struct Buckets {
    config: FetchConfig,
    options: Vec<(String, String)>,
    open: Mutex<HashMap<String, Arc<dyn ObjectStore>>>,
    n_requests: AtomicU64,
}

impl Buckets {
    pub(super) fn new(config: &FetchConfig, options: &[(String, String)]) -> Self {
        Self {
            config: config.clone(),
            options: options.to_vec(),
            open: Mutex::default(),
            n_requests: AtomicU64::new(0),
        }
    }

    /// Without object_store's own repeats.
    pub(super) fn n_requests(&self) -> u64 {
        self.n_requests.load(Ordering::Relaxed)
    }

    /// Gets `url` for the ticket `id` of `gate`.
    pub(super) async fn get(&self, gate: &Gate, id: u64, url: &str, max_bytes: u64) -> Result<Vec<u8>, Refusal> {
        let malformed = |detail: &str| (RejectReason::MalformedRow, format!("`{url}` is no address: {detail}"));
        let place = url.strip_prefix("s3://").and_then(|rest| rest.split_once('/'));
        let (bucket, key) = place.ok_or_else(|| malformed("wanted s3://bucket/key"))?;
        let key = Path::parse(key).map_err(|e| malformed(&e.to_string()))?;
        let store = self.bucket(bucket).map_err(|e| unreadable(&e))?;
        let stopped = |_| (RejectReason::Unreadable, "given up before it was there".to_owned());
        gate.enter(id, &None).await.map_err(stopped)?;
        self.n_requests.fetch_add(1, Ordering::Relaxed);
        let got = store.get(&key).await.map_err(|e| unreadable(&e))?;
        let n_bytes = got.meta.size;
        if n_bytes > max_bytes {
            return Err((RejectReason::TooLarge, format!("{n_bytes} bytes, the limit is {max_bytes}")));
        }
        let mut chunks = got.into_stream();
        let mut held = Held::default();
        while let Some(chunk) = chunks.try_next().await.map_err(|e| unreadable(&e))? {
            held.append(gate, id, &chunk, Some(n_bytes)).await.map_err(stopped)?;
        }
        match held.len() {
            0 if n_bytes == 0 => Err((RejectReason::EmptyFile, "the object has 0 bytes".to_owned())),
            n if n < n_bytes => Err((RejectReason::Truncated, format!("{n} of {n_bytes} bytes came"))),
            _ => Ok(held.bytes),
        }
    }

    fn bucket(&self, name: &str) -> object_store::Result<Arc<dyn ObjectStore>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = open.get(name) {
            return Ok(Arc::clone(store));
        }
        let seconds = Duration::from_secs_f64;
        let client = ClientOptions::new()
            .with_connect_timeout(seconds(self.config.connect_timeout_s))
            .with_timeout(seconds(self.config.timeout_s));
        let backoff = BackoffConfig { init_backoff: seconds(self.config.backoff_s), ..BackoffConfig::default() };
        let max_retries = self.config.n_tries.saturating_sub(1) as usize;
        // Options of the client come first: those of the user, such as `aws_allow_http`, are put on top.
        let mut builder = AmazonS3Builder::new().with_client_options(client).with_bucket_name(name);
        builder = builder.with_retry(RetryConfig { backoff, max_retries, retry_timeout: MAX_RETRY });
        for (option, value) in &self.options {
            // As `Store` does, which hands all options on: one that S3 does not know is not ours to judge.
            if let Ok(option) = option.parse::<AmazonS3ConfigKey>() {
                builder = builder.with_config(option, value);
            }
        }
        let store: Arc<dyn ObjectStore> = Arc::new(builder.build()?);
        open.insert(name.to_owned(), Arc::clone(&store));
        Ok(store)
    }
}

fn unreadable(error: &object_store::Error) -> Refusal {
    match error {
        object_store::Error::NotFound { .. } => (RejectReason::MissingFile, "the object does not exist".to_owned()),
        error => (RejectReason::Unreadable, chain(error)),
    }
}
