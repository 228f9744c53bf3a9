//! How media are got from the network.
//!
//! In: `[ingest.fetch]`. Out: [`FetchConfig`], checked: at least one request at a time and one try, times above zero, a user
//! agent that fits a header. Never: a key that changes the bytes of a medium that was got.

use serde::{Deserialize, Serialize};

use super::{broken, within};
use crate::error::IngestError;

/// Manners and patience towards hosts. Times are of the network alone: waiting for memory is not the host's fault.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct FetchConfig {
    /// Requests under way, over all hosts.
    pub(crate) n_in_flight: usize,
    /// Requests under way to one host; `s3://` knows only `n_in_flight`.
    pub(crate) n_per_host: usize,
    pub(crate) connect_timeout_s: f64,
    /// Longest silence: before the answer begins, and between two pieces of its body.
    pub(crate) idle_timeout_s: f64,
    /// Longest time of one try, redirects and body included.
    pub(crate) timeout_s: f64,
    /// Tries of one medium. 1 is no retry.
    pub(crate) n_tries: u32,
    /// Pause before the second try; it doubles with every try, give or take half by the hash of the URL.
    pub(crate) backoff_s: f64,
    /// A host that asks for a longer pause is not asked again.
    pub(crate) max_retry_after_s: f64,
    /// Whom a host's owner can ask: an address of a page or of mail, part of the user agent.
    pub(crate) contact: Option<String>,
    /// Instead of `imp-ingest/VERSION (+contact)`.
    pub(crate) user_agent: Option<String>,
    /// Leaves out media whose host says so: `X-Robots-Tag` with noai, noimageai, noindex, noimageindex or none;
    /// `TDM-Reservation: 1`.
    pub(crate) respect_opt_out: bool,
    /// Proxy for `http(s)://`, as a URL.
    pub(crate) proxy: Option<String>,
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self {
            n_in_flight: 64,
            n_per_host: 8,
            connect_timeout_s: 10.0,
            idle_timeout_s: 20.0,
            timeout_s: 60.0,
            n_tries: 3,
            backoff_s: 0.5,
            max_retry_after_s: 30.0,
            contact: None,
            user_agent: None,
            respect_opt_out: true,
            proxy: None,
        }
    }
}

impl FetchConfig {
    /// Says who asks; what opt-out headers may name is the part before the first `/`.
    pub(crate) fn user_agent(&self) -> String {
        match (&self.user_agent, &self.contact) {
            (Some(agent), _) => agent.clone(),
            (None, Some(contact)) => format!("imp-ingest/{} (+{contact})", env!("CARGO_PKG_VERSION")),
            (None, None) => format!("imp-ingest/{}", env!("CARGO_PKG_VERSION")),
        }
    }
}

pub(super) fn check_fetch(fetch: &FetchConfig) -> Result<(), IngestError> {
    let key = |name: &str| format!("ingest.fetch.{name}");
    within(&key("n_in_flight"), fetch.n_in_flight, 1, 4096)?;
    within(&key("n_per_host"), fetch.n_per_host, 1, 4096)?;
    within(&key("connect_timeout_s"), fetch.connect_timeout_s, 0.01, 600.0)?;
    within(&key("idle_timeout_s"), fetch.idle_timeout_s, 0.01, 3600.0)?;
    within(&key("timeout_s"), fetch.timeout_s, 0.01, 86_400.0)?;
    within(&key("n_tries"), fetch.n_tries, 1, 20)?;
    within(&key("backoff_s"), fetch.backoff_s, 0.0, 60.0)?;
    within(&key("max_retry_after_s"), fetch.max_retry_after_s, 0.0, 3600.0)?;
    for (name, text) in [("contact", &fetch.contact), ("user_agent", &fetch.user_agent)] {
        if let Some(text) = text
            && (text.trim().is_empty() || !text.chars().all(|c| c == ' ' || c.is_ascii_graphic()))
        {
            let rule = "must be printable ASCII and not blank: it goes into a header".to_owned();
            return Err(broken(&key(name), format!("`{text}`"), rule));
        }
    }
    Ok(())
}
