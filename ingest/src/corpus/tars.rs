//! WebDataset tars: members of one stem are one sample.
//!
//! In: tars. Out: samples; the key of `a/000017.seg.jpg` is `a/000017`, its extension `seg.jpg`, as WebDataset has it.

use std::path::PathBuf;

use imp_schemas::reject::Reject;

use super::samples::Samples;
use super::tar_file::{Content, Want, read_tar};
use super::{Found, Sidecar, is_medium};
use crate::config::CorpusConfig;
use crate::error::IngestError;

pub(super) fn read(corpus: &CorpusConfig, tars: &[(String, PathBuf)]) -> Result<Found, IngestError> {
    let mut found = Found::default();
    for (name, path) in tars {
        let mut samples = Samples::default();
        let wants = |member: &str| {
            let (_, extension) = key_and_extension(member);
            match Sidecar::of(&extension) {
                Some(_) => Want::Text,
                None if is_medium(corpus.kind, &extension) => Want::Medium,
                None => Want::Nothing,
            }
        };
        let end = read_tar(path, corpus.limits.max_media_bytes(), &wants, &mut |member| {
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
        let mut of_tar = samples.finish(false);
        of_tar.n_ignored += end.n_ignored;
        of_tar.spools.extend(end.spool);
        if let Some((row, (reason, detail))) = end.broken {
            let (source, key) = (name.clone(), String::new());
            of_tar.rejects.push(Reject { source, row, key, reason, detail, first_bytes: Vec::new() });
        }
        found.append(of_tar);
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
