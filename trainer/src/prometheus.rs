//! The loader's totals for Prometheus, over HTTP: `--serve-metrics ADDR`.
//!
//! In: a [`Watch`]. Out: `GET /metrics` in the OpenMetrics text format, computed when it is asked for. Never: a request that holds
//! up a batch, a metric that a run depends on.

use std::net::SocketAddr;

use imp_loader::{LoaderStats, StageSeconds, Watch};
use imp_schemas::store::disk_cache::DiskCacheStats;
use imp_schemas::store::sealed::ReadingStats;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

/// An address at which metrics cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics at {address}: {detail}; name a free address and port, such as 127.0.0.1:9400")]
pub struct ServeError {
    address: SocketAddr,
    detail: String,
}

/// A bound address.
pub struct Endpoint(tiny_http::Server);

impl Endpoint {
    /// # Errors
    /// The address cannot be bound.
    pub fn bind(address: SocketAddr) -> Result<Self, ServeError> {
        tiny_http::Server::http(address).map(Self).map_err(|e| ServeError { address, detail: e.to_string() })
    }

    /// Serves `watch` until the process ends.
    pub fn serve(self, watch: Watch) {
        let thread = std::thread::Builder::new().name("imp-metrics".to_owned());
        if let Err(error) = thread.spawn(move || answer(&self.0, watch)) {
            eprintln!("warning: metrics are not served, a thread cannot be started: {error}");
        }
    }
}

fn answer(server: &tiny_http::Server, watch: Watch) {
    let mut registry = Registry::with_prefix("imp_loader");
    registry.register_collector(Box::new(Totals(watch)));
    for request in server.incoming_requests() {
        let mut text = String::new();
        let known = request.url() == "/metrics" && encode(&mut text, &registry).is_ok();
        let answered = if known {
            let kind = ("Content-Type", "application/openmetrics-text; version=1.0.0; charset=utf-8");
            let header = tiny_http::Header::from_bytes(kind.0, kind.1);
            let response = tiny_http::Response::from_string(text);
            request.respond(match header {
                Ok(header) => response.with_header(header),
                Err(()) => response,
            })
        } else {
            request.respond(tiny_http::Response::from_string("metrics are at /metrics\n").with_status_code(404))
        };
        // Whoever asked may have gone.
        drop(answered);
    }
}

#[derive(Debug)]
struct Totals(Watch);

impl Collector for Totals {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        // All by name: a new total must find its place below.
        let LoaderStats { media_bytes, cache_bytes, n_cache_hits, stages, substituted, n_without_sound, reading } =
            self.0.stats();
        let ReadingStats { n_requests, n_hedges, n_hedges_won, disk } = reading;
        let has_disk = disk.is_some();
        let DiskCacheStats { n_hits, n_misses, hit_bytes, stored_bytes, used_bytes, fault } = disk.unwrap_or_default();
        let all = [
            ("fetch", stages.fetch),
            ("decode", stages.decode),
            ("assemble", stages.assemble),
            ("trainer", stages.trainer),
        ];
        let seconds = ConstCounter::new(0.0);
        let mut family = encoder.encode_descriptor(
            "stage",
            "Time of a stage's threads together, by what they did",
            Some(&Unit::Seconds),
            seconds.metric_type(),
        )?;
        for (stage, StageSeconds { waits_for_input, works, waits_for_output, .. }) in all {
            for (state, value) in
                [("waits_for_input", waits_for_input), ("works", works), ("waits_for_output", waits_for_output)]
            {
                let labels = [("stage", stage), ("state", state)];
                ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        let threads = ConstGauge::new(0i64);
        let mut family =
            encoder.encode_descriptor("stage_threads", "Threads of a stage", None, threads.metric_type())?;
        for (stage, seconds) in all {
            let labels = [("stage", stage)];
            ConstGauge::new(i64::try_from(seconds.n_threads).unwrap_or(i64::MAX))
                .encode(family.encode_family(&labels)?)?;
        }
        let counters = [
            ("media_read_bytes", "Encoded media read from the store", media_bytes),
            ("decoded_cache_hits", "Decoded forms found in memory", n_cache_hits),
            ("without_sound", "Examples passed over because their video has no sound track", n_without_sound),
            ("range_requests", "Requests for ranges of shards in a remote store, second tries among them", n_requests),
            ("hedged_requests", "Second tries of requests that fell silent", n_hedges),
            ("hedges_won", "Second tries that were answered first", n_hedges_won),
        ];
        let of_disk = [
            ("disk_cache_hits", "Runs of blocks found on the disk", n_hits),
            ("disk_cache_misses", "Runs of blocks not found on the disk", n_misses),
            ("disk_cache_hit_bytes", "Bytes found on the disk", hit_bytes),
            ("disk_cache_stored_bytes", "Bytes that this process put on the disk", stored_bytes),
        ];
        for (name, help, value) in counters.into_iter().chain(of_disk.into_iter().filter(|_| has_disk)) {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let gauges = [
            ("decoded_cache_bytes", "Decoded forms held in memory", cache_bytes),
            ("substituted_records", "Distinct records whose content made no example", substituted.len()),
        ];
        let used = usize::try_from(used_bytes).unwrap_or(usize::MAX);
        let of_disk = [
            ("disk_cache_bytes", "Bytes that the disk cache's folder takes", used),
            ("disk_cache_failed", "1 if nothing more can be written to the disk cache", usize::from(fault.is_some())),
        ];
        for (name, help, value) in gauges.into_iter().chain(of_disk.into_iter().filter(|_| has_disk)) {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}
