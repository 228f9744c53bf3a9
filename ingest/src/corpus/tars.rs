//! WebDataset tars: members of one stem are one sample.
//!
//! In: tars. Out: samples; the key of `a/000017.seg.jpg` is `a/000017`, its extension `seg.jpg`, as WebDataset has it.

use imp_schemas::reject::Reject;

use super::origin::Input;
use super::samples::Samples;
use super::tar_file::{Content, Want, read_tar};
use super::{Depth, Found, Sidecar, is_medium};
use crate::config::CorpusConfig;
use crate::error::IngestError;

pub(super) fn read(input: &Input, corpus: &CorpusConfig, depth: Depth) -> Result<Found, IngestError> {
    let name = &input.name;
    let local = input.fetch()?;
    let mut samples = Samples::default();
    let wants = |member: &str| {
        let (_, extension) = key_and_extension(member);
        match Sidecar::of(&extension) {
            Some(_) => Want::Text,
            None if is_medium(corpus.kind, &extension) => Want::Medium,
            None => Want::Nothing,
        }
    };
    let end = read_tar(&local.path, corpus.limits.max_media_bytes(), depth, &wants, &mut |member| {
        let (key, extension) = key_and_extension(&member.path);
        let key = if corpus.tar_in_key { format!("{}/{key}", stem(name)) } else { key };
        let source = format!("{name}/{}", member.path);
        match member.content {
            Ok(Content::Medium(medium)) => samples.medium(&key, source, member.row, medium),
            Ok(Content::Text(bytes)) => {
                if let Some(kind) = Sidecar::of(&extension) {
                    samples.text(&key, &source, member.row, kind, kind.read(&bytes, &member.path));
                }
            }
            Err(refusal) => samples.refuse(&key, &source, member.row, refusal),
        }
    })?;
    let mut found = samples.finish(false);
    found.n_ignored += end.n_ignored;
    found.spools.extend(end.spool);
    // The places of a plain tar's media are ranges of the tar itself.
    found.spools.extend(local.fetched);
    if let Some((row, (reason, detail))) = end.broken {
        let (source, key) = (name.clone(), String::new());
        found.rejects.push(Reject { source, row, key, reason, detail, first_bytes: Vec::new() });
    }
    Ok(found)
}

/// Splits a member's path at the first dot of its name; the extension is in lower case.
fn key_and_extension(path: &str) -> (String, String) {
    let name_at = path.rfind('/').map_or(0, |at| at + 1);
    match path[name_at..].find('.') {
        Some(dot) => (path[..name_at + dot].to_owned(), path[name_at + dot + 1..].to_ascii_lowercase()),
        None => (path.to_owned(), String::new()),
    }
}

fn stem(tar: &str) -> &str {
    let name_at = tar.rfind('/').map_or(0, |at| at + 1);
    tar[name_at..].find('.').map_or(tar, |dot| &tar[..name_at + dot])
}
