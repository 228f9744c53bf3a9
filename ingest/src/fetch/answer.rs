//! What a host's answer says: whether to ask again, when, and whether the medium may be taken at all.
//!
//! In: statuses, headers, errors of the client. Out: [`Fault`], pauses, places in a body. Never: I/O.

use std::time::{Duration, SystemTime};

use imp_schemas::reject::RejectReason;
use reqwest::header::{CONTENT_RANGE, HeaderMap, RETRY_AFTER};
use reqwest::{Response, StatusCode};

use crate::text::Refusal;

/// Why a try brought no medium.
#[derive(Debug)]
pub(super) enum Fault {
    /// Another try would end the same way.
    Final(Refusal),
    /// Worth another try, not before the pause that the host asks for, if it does.
    Again(Refusal, Option<Duration>),
}

/// Directives of `X-Robots-Tag` that keep a medium out, those of img2dataset; `none` means noindex too.
const OPT_OUTS: [&str; 5] = ["noai", "noimageai", "noindex", "noimageindex", "none"];
/// Directives with a value, which are no names of robots though a colon follows.
const VALUED: [&str; 4] = ["unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"];

/// The header by which the host keeps `robot` away from this medium, if one does.
pub(super) fn opt_out(headers: &HeaderMap, robot: &str) -> Option<String> {
    for value in headers.get_all("x-robots-tag").iter().filter_map(|value| value.to_str().ok()) {
        let (whom, directives) = match value.split_once(':') {
            Some((name, rest)) if !name.contains(',') && !VALUED.contains(&name.trim().to_lowercase().as_str()) => {
                (Some(name.trim()), rest)
            }
            _ => (None, value),
        };
        let is_meant = whom.is_none_or(|name| name == "*" || name.eq_ignore_ascii_case(robot));
        let opts_out = |directive: &str| OPT_OUTS.contains(&directive.trim().to_lowercase().as_str());
        if is_meant && directives.split(',').any(opts_out) {
            return Some(format!("X-Robots-Tag: {value}"));
        }
    }
    let reserved = headers.get_all("tdm-reservation").iter().any(|value| value.as_bytes().trim_ascii() == b"1");
    reserved.then(|| "TDM-Reservation: 1".to_owned())
}

/// The pause that `Retry-After` asks for: seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(SystemTime::now()).unwrap_or_default())
}

/// What to do about a status that is neither success nor redirect.
pub(super) fn refused(response: &Response) -> Fault {
    let status = response.status();
    let refusal = (RejectReason::HttpStatus, status.to_string());
    let again = [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT];
    if status.is_server_error() || again.contains(&status) {
        return Fault::Again(refusal, retry_after(response.headers()));
    }
    Fault::Final(refusal)
}

/// First byte and size of the whole, from `Content-Range: bytes 5-9/10`; the size may be unknown.
pub(super) fn part_of(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let (range, size) = headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.trim().parse().ok()?, size.trim().parse().ok()))
}

/// What to do about a request that got no answer.
pub(super) fn unanswered(error: reqwest::Error) -> Fault {
    let (is_dns, is_timeout, is_builder) = (error.is_dns(), error.is_timeout(), error.is_builder());
    let detail = chain(&error.without_url());
    if is_dns {
        return Fault::Final((RejectReason::Dns, detail));
    }
    if is_builder {
        return Fault::Final((RejectReason::MalformedRow, detail));
    }
    Fault::Again((if is_timeout { RejectReason::Timeout } else { RejectReason::Connect }, detail), None)
}

/// An error with its causes; the innermost says what happened.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let said = source.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        cause = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn an_opt_out_counts_when_it_means_us() {
        let cases = [
            (&[][..], false),
            (&[("x-robots-tag", "noai")], true),
            (&[("x-robots-tag", "nofollow, NoImageAI")], true),
            (&[("x-robots-tag", "none")], true),
            (&[("x-robots-tag", "nofollow")], false),
            (&[("x-robots-tag", "otherbot: noindex")], false),
            (&[("x-robots-tag", "Imp-Ingest: noindex, nofollow")], true),
            (&[("x-robots-tag", "*: noai")], true),
            (&[("x-robots-tag", "max-snippet: 20, noindex")], true),
            (&[("x-robots-tag", "unavailable_after: 25 Jun 2030 15:00:00 PST")], false),
            (&[("x-robots-tag", "all"), ("x-robots-tag", "noindex")], true),
            (&[("tdm-reservation", "1")], true),
            (&[("tdm-reservation", "0")], false),
        ];
        for (pairs, want) in cases {
            assert_eq!(opt_out(&headers(pairs), "imp-ingest").is_some(), want, "{pairs:?}");
        }
    }

    #[test]
    fn a_pause_is_read_as_seconds_or_as_a_date() {
        assert_eq!(retry_after(&headers(&[("retry-after", "7")])), Some(Duration::from_secs(7)));
        let past = headers(&[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")]);
        assert_eq!(retry_after(&past), Some(Duration::ZERO));
        assert_eq!(retry_after(&headers(&[("retry-after", "soon")])), None);
        assert_eq!(retry_after(&headers(&[])), None);
    }

    #[test]
    fn a_part_says_where_it_begins() {
        assert_eq!(part_of(&headers(&[("content-range", "bytes 5-9/10")])), Some((5, Some(10))));
        assert_eq!(part_of(&headers(&[("content-range", "bytes 5-9/*")])), Some((5, None)));
        assert_eq!(part_of(&headers(&[("content-range", "bytes */10")])), None);
        assert_eq!(part_of(&headers(&[("content-range", "pages 1-2/3")])), None);
    }
}
