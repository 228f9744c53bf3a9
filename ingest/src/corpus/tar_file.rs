//! The members of one tar, plain or compressed, without trust in its headers.
//!
//! In: a tar and which members are wanted. Out: texts, and the places of media; members of a compressed tar are unpacked to
//! a spool file, so that every medium is a range of some file. Never: writes under a member's name, follows a link,
//! allocates what a header claims.

use std::fs::File;
use std::io::{BufReader, Read, Seek, Write};
use std::path::Path;
use std::sync::Arc;

use imp_schemas::reject::RejectReason;
use tempfile::NamedTempFile;

use super::{Depth, MAX_SIDECAR_BYTES, Place, is_litter};
use crate::error::IngestError;
use crate::text::{Refusal, safe_path};

/// Bytes of a long name or a PAX header; a larger one is no name.
const MAX_HEADER_BYTES: u64 = 1 << 20;

/// A compressed tar may unpack to this many times its size, or to [`SMALL_SPOOL`] if that is more: film and sound do not
/// compress tenfold, zeros do a thousandfold.
const MAX_EXPANSION: u64 = 200;
/// Less for the fuzzer, which would spend its time on writing gigabytes.
const SMALL_SPOOL: u64 = if cfg!(feature = "fuzzing") { 16 << 20 } else { 1 << 30 };

/// Bytes that a compressed file of `n_bytes` may unpack to.
pub(super) fn max_unpacked(n_bytes: u64) -> u64 {
    SMALL_SPOOL.max(n_bytes.saturating_mul(MAX_EXPANSION))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    Medium,
    Text,
    Nothing,
}

#[derive(Debug)]
pub(super) enum Content {
    Medium(Place),
    Text(Vec<u8>),
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) row: u64,
    /// As safe as it is if `content` is no refusal; else as found.
    pub(super) path: String,
    pub(super) content: Result<Content, Refusal>,
}

/// How the reading ended.
#[derive(Debug, Default)]
pub(super) struct TarEnd {
    pub(super) spool: Option<NamedTempFile>,
    pub(super) n_ignored: u64,
    /// The member at which the tar is cut or damaged, and how; what stood before is kept.
    pub(super) broken: Option<(u64, Refusal)>,
}

/// Hands every wanted member of the tar at `path` to `take`, in order; media of a compressed tar have a place only at
/// [`Depth::Media`].
///
/// # Errors
/// The tar cannot be opened, or the spool not be written. A damaged tar is no error: see [`TarEnd::broken`].
pub(super) fn read_tar(
    path: &Path,
    max_media_bytes: u64,
    depth: Depth,
    wants: &dyn Fn(&str) -> Want,
    take: &mut dyn FnMut(Member),
) -> Result<TarEnd, IngestError> {
    let unreadable = |source| IngestError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(unreadable)?;
    let file_len = file.metadata().map_err(unreadable)?.len();
    let mut magic = [0; 4];
    let n_magic = file.read(&mut magic).map_err(unreadable)?;
    file.rewind().map_err(unreadable)?;
    let mut walk = Walk {
        path,
        file_len,
        max_media_bytes,
        depth,
        wants,
        take,
        spool: None,
        spooled: 0,
        end: TarEnd::default(),
        failed: None,
    };
    match &magic[..n_magic] {
        [] => walk.end.broken = Some((0, (RejectReason::EmptyFile, "the tar is empty".to_owned()))),
        [0x1f, 0x8b, ..] => walk.stream(&mut flate2::read::MultiGzDecoder::new(BufReader::new(file)))?,
        [0x28, 0xb5, 0x2f, 0xfd] => walk.stream(&mut zstd::Decoder::new(file).map_err(unreadable)?)?,
        _ => {
            let mut archive = tar::Archive::new(BufReader::new(file));
            let entries = archive.entries_with_seek().map_err(unreadable)?;
            walk.entries(entries, true);
        }
    }
    if let Some(source) = walk.failed {
        return Err(IngestError::Read { path: std::env::temp_dir(), source });
    }
    let mut end = walk.end;
    end.spool = walk.spool.map(|(file, _)| file);
    Ok(end)
}

struct Walk<'a> {
    path: &'a Path,
    file_len: u64,
    max_media_bytes: u64,
    depth: Depth,
    wants: &'a dyn Fn(&str) -> Want,
    take: &'a mut dyn FnMut(Member),
    spool: Option<(NamedTempFile, Arc<Path>)>,
    spooled: u64,
    end: TarEnd,
    /// The spool could not be written.
    failed: Option<std::io::Error>,
}

/// What a header says.
struct Head {
    path: Vec<u8>,
    len: u64,
    /// Of the body, in the file; only a plain tar has its bodies there.
    offset: u64,
    kind: tar::EntryType,
    is_plain: bool,
}

/// Why reading goes no further.
enum Stop {
    Broken(Refusal),
    Spool(std::io::Error),
}

impl Walk<'_> {
    fn stream(&mut self, stream: &mut dyn Read) -> Result<(), IngestError> {
        let max_bytes = max_unpacked(self.file_len);
        let mut archive = tar::Archive::new(Unpacked { stream, left: max_bytes, max_bytes });
        let path = self.path.to_owned();
        let entries = archive.entries().map_err(|source| IngestError::Read { path, source })?;
        self.entries(entries, false);
        Ok(())
    }

    fn entries<R: Read>(&mut self, entries: tar::Entries<'_, R>, is_plain: bool) {
        let mut row = 0;
        let mut long_name: Option<Vec<u8>> = None;
        // Raw: long names and PAX headers come as members, and are read here with a limit.
        for entry in entries.raw(true) {
            let this_row = row;
            let stop = match entry {
                Err(error) => Err(Stop::Broken(refusal_of(&error))),
                Ok(mut entry) => {
                    let (kind, len) = (entry.header().entry_type(), entry.size());
                    if kind.is_gnu_longname() {
                        read_header(&mut entry, len).map(|name| {
                            long_name = Some(name.split(|&b| b == 0).next().unwrap_or_default().to_vec());
                        })
                    } else if kind.is_pax_local_extensions() {
                        read_header(&mut entry, len).and_then(|pax| pax_name(&pax, &mut long_name))
                    } else if kind.is_gnu_longlink() || kind.is_pax_global_extensions() {
                        Ok(())
                    } else {
                        let path = long_name.take().unwrap_or_else(|| entry.header().path_bytes().into_owned());
                        let head = Head { path, len, offset: entry.raw_file_position(), kind, is_plain };
                        row += 1;
                        self.member(this_row, &head, &mut entry)
                    }
                }
            };
            match stop {
                Ok(()) => {}
                Err(Stop::Broken(refusal)) => {
                    self.end.broken = Some((this_row, refusal));
                    return;
                }
                Err(Stop::Spool(error)) => {
                    self.failed = Some(error);
                    return;
                }
            }
        }
    }

    fn member(&mut self, row: u64, head: &Head, body: &mut dyn Read) -> Result<(), Stop> {
        let found = String::from_utf8_lossy(&head.path).into_owned();
        if head.kind.is_dir() || found.ends_with('/') {
            return Ok(());
        }
        // As `safe_path` reads it: tars of Windows part their names by backslashes.
        let slashed = found.replace('\\', "/");
        let want = if is_litter(&slashed) { Want::Nothing } else { (self.wants)(&slashed) };
        if want == Want::Nothing {
            self.end.n_ignored += 1;
            return self.check_extent(head);
        }
        let refused = |refusal| Member { row, path: found.clone(), content: Err(refusal) };
        let path = match self.usable_path(head, &found) {
            Ok(path) => path,
            Err(refusal) => {
                (self.take)(refused(refusal));
                return self.check_extent(head);
            }
        };
        self.check_extent(head)?;
        let limit = if want == Want::Text { MAX_SIDECAR_BYTES } else { self.max_media_bytes };
        if head.len > limit {
            let detail = format!("the member has {} bytes, the limit is {limit}", head.len);
            (self.take)(refused((RejectReason::TooLarge, detail)));
            return Ok(());
        }
        let content = match want {
            Want::Medium if head.is_plain => {
                Content::Medium(Place::File { file: Arc::from(self.path), offset: head.offset, len: head.len })
            }
            Want::Medium if self.depth == Depth::Words => Content::Medium(Place::nowhere()),
            Want::Medium => Content::Medium(self.unpack(head.len, body)?),
            Want::Text | Want::Nothing => {
                let mut bytes = Vec::new();
                body.take(limit).read_to_end(&mut bytes).map_err(|e| Stop::Broken(refusal_of(&e)))?;
                whole(bytes.len() as u64, head.len)?;
                Content::Text(bytes)
            }
        };
        (self.take)(Member { row, path, content: Ok(content) });
        Ok(())
    }

    fn usable_path(&self, head: &Head, found: &str) -> Result<String, Refusal> {
        if std::str::from_utf8(&head.path).is_err() {
            return Err((RejectReason::InvalidText, format!("the member's name `{found}` is not UTF-8")));
        }
        if head.kind.is_symlink() || head.kind.is_hard_link() {
            return Err((RejectReason::UnsafePath, "the member is a link, wanted a file".to_owned()));
        }
        if !head.kind.is_file() && !head.kind.is_contiguous() {
            let detail = format!("the member is of type {:?}, wanted a file", head.kind);
            return Err((RejectReason::Unreadable, detail));
        }
        safe_path(found)
    }

    /// A plain tar shows at once whether a member ends within it.
    fn check_extent(&self, head: &Head) -> Result<(), Stop> {
        let is_body = head.kind.is_file() || head.kind.is_contiguous();
        match head.offset.checked_add(head.len) {
            Some(end) if !head.is_plain || !is_body || end <= self.file_len => Ok(()),
            _ => {
                let left = self.file_len.saturating_sub(head.offset);
                let detail = format!("a member claims {} bytes, the tar has {left} left", head.len);
                Err(Stop::Broken((RejectReason::Truncated, detail)))
            }
        }
    }

    fn unpack(&mut self, len: u64, body: &mut dyn Read) -> Result<Place, Stop> {
        if self.spooled + len > max_unpacked(self.file_len) {
            return Err(Stop::Broken((RejectReason::TooLarge, TooMuch(max_unpacked(self.file_len)).to_string())));
        }
        let (spool, file) = match &mut self.spool {
            Some(open) => open,
            None => {
                let spool = NamedTempFile::new().map_err(Stop::Spool)?;
                let file = Arc::from(spool.path());
                self.spool.insert((spool, file))
            }
        };
        let (mut buffer, mut copied) = (vec![0; 64 << 10], 0);
        while copied < len {
            let n_wanted = buffer.len().min((len - copied) as usize);
            let n_read = body.read(&mut buffer[..n_wanted]).map_err(|e| Stop::Broken(refusal_of(&e)))?;
            if n_read == 0 {
                break;
            }
            spool.write_all(&buffer[..n_read]).map_err(Stop::Spool)?;
            copied += n_read as u64;
        }
        let offset = self.spooled;
        let file = Arc::clone(file);
        self.spooled += copied;
        whole(copied, len)?;
        Ok(Place::File { file, offset, len })
    }
}

/// The bytes of a compressed tar, until they are more than it may unpack to: also what is only skipped takes its time.
struct Unpacked<'a> {
    stream: &'a mut dyn Read,
    left: u64,
    max_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("the tar unpacks to more than {0} bytes")]
struct TooMuch(u64);

impl Read for Unpacked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n_read = self.stream.read(buffer)?;
        self.left =
            self.left.checked_sub(n_read as u64).ok_or_else(|| std::io::Error::other(TooMuch(self.max_bytes)))?;
        Ok(n_read)
    }
}

fn whole(found: u64, wanted: u64) -> Result<(), Stop> {
    if found == wanted {
        return Ok(());
    }
    let detail = format!("a member has {found} bytes, its header says {wanted}");
    Err(Stop::Broken((RejectReason::Truncated, detail)))
}

fn read_header(entry: &mut dyn Read, len: u64) -> Result<Vec<u8>, Stop> {
    if len > MAX_HEADER_BYTES {
        let detail = format!("a header of {len} bytes, the limit is {MAX_HEADER_BYTES}");
        return Err(Stop::Broken((RejectReason::TooLarge, detail)));
    }
    let mut bytes = Vec::new();
    entry.take(MAX_HEADER_BYTES).read_to_end(&mut bytes).map_err(|e| Stop::Broken(refusal_of(&e)))?;
    whole(bytes.len() as u64, len)?;
    Ok(bytes)
}

fn pax_name(pax: &[u8], long_name: &mut Option<Vec<u8>>) -> Result<(), Stop> {
    for extension in tar::PaxExtensions::new(pax) {
        let extension = extension.map_err(|e| Stop::Broken(refusal_of(&e)))?;
        match extension.key_bytes() {
            b"path" => *long_name = Some(extension.value_bytes().to_vec()),
            b"size" => {
                let detail = "a PAX header gives a size of its own, which is for members above 8 GiB".to_owned();
                return Err(Stop::Broken((RejectReason::TooLarge, detail)));
            }
            _ => {}
        }
    }
    Ok(())
}

fn refusal_of(error: &std::io::Error) -> Refusal {
    if let Some(too_much) = error.get_ref().and_then(|cause| cause.downcast_ref::<TooMuch>()) {
        return (RejectReason::TooLarge, too_much.to_string());
    }
    let text = error.to_string();
    let is_cut = error.kind() == std::io::ErrorKind::UnexpectedEof || text.contains("entire block");
    let reason = if is_cut { RejectReason::Truncated } else { RejectReason::Corrupt };
    (reason, format!("the tar cannot be read further: {text}"))
}
