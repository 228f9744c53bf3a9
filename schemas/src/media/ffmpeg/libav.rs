//! libav behind safe types: with `frame`, every pointer and every `unsafe` of the feature `ffmpeg`.
//!
//! In: the bytes of a file. Out: packets, frames, and what the container says. Never: a file or socket opened by libav, a
//! decoder that starts threads or is shared between them, a frame larger than the limits.

use std::ffi::{CStr, c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::Once;

use ffmpeg_sys_next as ffi;

use super::frame::Frame;
use crate::media::{MediaError, MediaLimits};

/// Bytes that libav asks for at a time.
const IO_BUFFER: usize = 32 << 10;

/// More streams than any clip has; a header may claim thousands.
const MAX_STREAMS: c_int = 64;

/// Containers that hold sound or video, by the first of libav's names. Others of its formats are playlists that open other
/// files, text that is rendered, or raw data that anything could be.
const FORMATS: [&str; 32] = [
    "mov",
    "matroska",
    "avi",
    "asf",
    "mpeg",
    "mpegvideo",
    "mpegts",
    "ogg",
    "flv",
    "ac3",
    "eac3",
    "dts",
    "truehd",
    "wav",
    "w64",
    "au",
    "caf",
    "aiff",
    "gif",
    "mp3",
    "aac",
    "flac",
    "wv",
    "ape",
    "tta",
    "tak",
    "amr",
    "rm",
    "mxf",
    "nut",
    "ivf",
    "voc",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Video,
    Sound,
}

impl Kind {
    fn of_libav(self) -> ffi::AVMediaType {
        match self {
            Self::Video => ffi::AVMediaType::AVMEDIA_TYPE_VIDEO,
            Self::Sound => ffi::AVMediaType::AVMEDIA_TYPE_AUDIO,
        }
    }
}

pub(super) fn corrupt(detail: impl Into<String>) -> MediaError {
    MediaError::Corrupt { detail: detail.into() }
}

/// libav's words for an error code.
fn words(code: c_int) -> String {
    let mut text = [0_u8; 128];
    // SAFETY: `av_strerror` writes at most the length it is given, and ends the text with a zero.
    unsafe { ffi::av_strerror(code, text.as_mut_ptr().cast(), text.len()) };
    CStr::from_bytes_until_nul(&text).map_or_else(|_| code.to_string(), |text| text.to_string_lossy().into_owned())
}

fn checked(code: c_int, place: &str) -> Result<c_int, MediaError> {
    match code {
        0.. => Ok(code),
        ffi::AVERROR_EOF => Err(MediaError::Truncated { detail: format!("{place}: the file ends inside it") }),
        ffi::AVERROR_DECODER_NOT_FOUND | ffi::AVERROR_PATCHWELCOME => Err(MediaError::UnsupportedCodec {
            codec: format!("of {place} ({})", words(code)),
            remedy: "re-encode it with a common codec",
        }),
        code => Err(corrupt(format!("{place}: {}", words(code)))),
    }
}

/// What libav reads from.
struct Source<'a> {
    bytes: &'a [u8],
    at: u64,
}

/// Called by libav: copies the next bytes.
unsafe extern "C" fn read(source: *mut c_void, buffer: *mut u8, size: c_int) -> c_int {
    // SAFETY: libav hands back the pointer it was given, which `Input` keeps alive and touches nowhere else.
    let source = unsafe { &mut *source.cast::<Source<'_>>() };
    let rest = usize::try_from(source.at).ok().and_then(|at| source.bytes.get(at..)).unwrap_or_default();
    let n = rest.len().min(usize::try_from(size).unwrap_or(0));
    if n == 0 {
        return ffi::AVERROR_EOF;
    }
    // SAFETY: `buffer` has room for `size` bytes, `n` is not more, and it is libav's own memory, not `rest`.
    unsafe { ptr::copy_nonoverlapping(rest.as_ptr(), buffer, n) };
    source.at += n as u64;
    n as c_int
}

/// Called by libav: moves as `lseek` does, so past the end too.
unsafe extern "C" fn seek(source: *mut c_void, offset: i64, whence: c_int) -> i64 {
    // SAFETY: as in `read`.
    let source = unsafe { &mut *source.cast::<Source<'_>>() };
    let len = source.bytes.len() as i64;
    let base = match whence & !ffi::AVSEEK_FORCE {
        ffi::AVSEEK_SIZE => return len,
        0 => 0,
        1 => i64::try_from(source.at).unwrap_or(len),
        2 => len,
        _ => return -1,
    };
    match base.checked_add(offset).map(u64::try_from) {
        Some(Ok(at)) => {
            source.at = at;
            at as i64
        }
        _ => -1,
    }
}

/// What the container says about a stream.
#[derive(Debug, Clone)]
pub(super) struct StreamFacts {
    /// libav's short name.
    pub codec: String,
    pub seconds_per_tick: f64,
    /// Seconds, where a header says so.
    pub claimed: Option<f64>,
}

/// An opened container.
pub(super) struct Input<'a> {
    context: *mut ffi::AVFormatContext,
    io: *mut ffi::AVIOContext,
    source: *mut Source<'a>,
}

impl<'a> Input<'a> {
    /// Recognises the container and reads its headers; `None` if it is none of `FORMATS`.
    pub(super) fn open(bytes: &'a [u8], limits: &MediaLimits) -> Result<Option<Self>, MediaError> {
        static QUIET: Once = Once::new();
        // SAFETY: sets a number, once. What libav would print, its error codes say.
        QUIET.call_once(|| unsafe { ffi::av_log_set_level(ffi::AV_LOG_QUIET) });
        let no_memory = || corrupt("libav got no memory");
        let source = Box::into_raw(Box::new(Source { bytes, at: 0 }));
        let mut input = Self { context: ptr::null_mut(), io: ptr::null_mut(), source };
        // SAFETY: each pointer is checked before it is used, and `Drop` frees whichever were made.
        unsafe {
            let buffer = ffi::av_malloc(IO_BUFFER);
            if buffer.is_null() {
                return Err(no_memory());
            }
            let size = IO_BUFFER as c_int;
            input.io = ffi::avio_alloc_context(buffer.cast(), size, 0, source.cast(), Some(read), None, Some(seek));
            if input.io.is_null() {
                ffi::av_free(buffer);
                return Err(no_memory());
            }
            let mut format = ptr::null();
            if ffi::av_probe_input_buffer2(input.io, &raw mut format, c"".as_ptr(), ptr::null_mut(), 0, 0) < 0 {
                return Ok(None);
            }
            let names = CStr::from_ptr((*format).name).to_string_lossy();
            if !names.split(',').next().is_some_and(|name| FORMATS.contains(&name)) {
                return Ok(None);
            }
            input.context = ffi::avformat_alloc_context();
            if input.context.is_null() {
                return Err(no_memory());
            }
            (*input.context).pb = input.io;
            (*input.context).max_streams = MAX_STREAMS;
            (*input.context).error_recognition = ffi::AV_EF_CRCCHECK | ffi::AV_EF_BUFFER;
            // A failure frees the context and sets the pointer to null.
            let code = ffi::avformat_open_input(&raw mut input.context, c"".as_ptr(), format, ptr::null_mut());
            checked(code, "the container's header")?;
            input.look_ahead(limits)?;
        }
        Ok(Some(input))
    }

    /// Lets libav decode a few frames, which some containers need to say what is in them, under the limits.
    ///
    /// # Safety
    /// `self.context` is open.
    unsafe fn look_ahead(&mut self, limits: &MediaLimits) -> Result<(), MediaError> {
        // SAFETY: one dictionary per stream, as libav wants; each is freed whatever the outcome.
        unsafe {
            let n = (*self.context).nb_streams as usize;
            let mut options: Vec<*mut ffi::AVDictionary> = vec![ptr::null_mut(); n];
            let max_pixels = i64::try_from(limits.max_pixels).unwrap_or(i64::MAX);
            for dictionary in &mut options {
                ffi::av_dict_set_int(dictionary, c"max_pixels".as_ptr(), max_pixels, 0);
                ffi::av_dict_set_int(dictionary, c"threads".as_ptr(), 1, 0);
            }
            let first = if n == 0 { ptr::null_mut() } else { options.as_mut_ptr() };
            let code = ffi::avformat_find_stream_info(self.context, first);
            for dictionary in &mut options {
                ffi::av_dict_free(dictionary);
            }
            checked(code, "the streams' headers").map(|_| ())
        }
    }

    fn streams(&self) -> &[*mut ffi::AVStream] {
        // SAFETY: libav keeps `nb_streams` valid pointers there, and null only where there are none.
        unsafe {
            let n = (*self.context).nb_streams as usize;
            if n == 0 { &[] } else { std::slice::from_raw_parts((*self.context).streams, n) }
        }
    }

    /// The first stream of a kind that is no cover picture.
    pub(super) fn first(&self, kind: Kind) -> Option<usize> {
        self.streams().iter().position(|&stream| {
            // SAFETY: a stream of an open container has its parameters.
            unsafe {
                (*(*stream).codecpar).codec_type == kind.of_libav()
                    && (*stream).disposition & ffi::AV_DISPOSITION_ATTACHED_PIC == 0
            }
        })
    }

    pub(super) fn facts(&self, stream_idx: usize) -> StreamFacts {
        // SAFETY: as in `first`; a codec's name is static, and there is one for every number.
        unsafe {
            let stream = self.streams()[stream_idx];
            let codec = CStr::from_ptr(ffi::avcodec_get_name((*(*stream).codecpar).codec_id));
            let base = (*stream).time_base;
            let seconds_per_tick = f64::from(base.num) / f64::from(base.den.max(1));
            let guessed = (*self.context).duration_estimation_method
                == ffi::AVDurationEstimationMethod::AVFMT_DURATION_FROM_BITRATE;
            let ticks = Some((*stream).duration).filter(|ticks| *ticks > 0);
            let whole = Some((*self.context).duration).filter(|us| *us > 0).map(|us| us as f64 * 1e-6);
            let claimed = ticks.map(|ticks| ticks as f64 * seconds_per_tick).or(whole).filter(|_| !guessed);
            StreamFacts { codec: codec.to_string_lossy().into_owned(), seconds_per_tick, claimed }
        }
    }

    /// Reads the next packet of `stream_idx`; false at the end.
    pub(super) fn next(&mut self, stream_idx: usize, packet: &mut Packet) -> Result<bool, MediaError> {
        loop {
            // SAFETY: both are open; a packet that holds something is emptied first.
            let code = unsafe {
                ffi::av_packet_unref(packet.0.as_ptr());
                ffi::av_read_frame(self.context, packet.0.as_ptr())
            };
            if code == ffi::AVERROR_EOF {
                return Ok(false);
            }
            checked(code, "the next packet")?;
            // SAFETY: the call succeeded, so the fields are set.
            if usize::try_from(unsafe { packet.0.as_ref() }.stream_index) == Ok(stream_idx) {
                return Ok(true);
            }
        }
    }
}

impl Drop for Input<'_> {
    fn drop(&mut self) {
        // SAFETY: each was made by `open` and is freed once, the context before what it reads from.
        unsafe {
            if !self.context.is_null() {
                ffi::avformat_close_input(&raw mut self.context);
            }
            if !self.io.is_null() {
                ffi::av_freep((&raw mut (*self.io).buffer).cast());
                ffi::avio_context_free(&raw mut self.io);
            }
            drop(Box::from_raw(self.source));
        }
    }
}

/// A piece of a stream, as stored.
pub(super) struct Packet(NonNull<ffi::AVPacket>);

impl Packet {
    pub(super) fn new() -> Result<Self, MediaError> {
        // SAFETY: makes an empty packet, or gives null.
        let packet = unsafe { ffi::av_packet_alloc() };
        NonNull::new(packet).map(Self).ok_or_else(|| corrupt("libav got no memory"))
    }

    fn get(&self) -> &ffi::AVPacket {
        // SAFETY: the packet is ours and was made by `av_packet_alloc`.
        unsafe { self.0.as_ref() }
    }

    /// Holds a copy of `bytes`, to be shown at `pts`.
    pub(super) fn fill(&mut self, bytes: &[u8], pts: i64) -> Result<(), MediaError> {
        let size = c_int::try_from(bytes.len()).map_err(|_| corrupt("a packet of more than 2 GiB"))?;
        // SAFETY: what the packet held is released; on success its data are `size` bytes of its own.
        unsafe {
            ffi::av_packet_unref(self.0.as_ptr());
            checked(ffi::av_new_packet(self.0.as_ptr(), size), "memory for a packet")?;
            let packet = self.0.as_mut();
            ptr::copy_nonoverlapping(bytes.as_ptr(), packet.data, bytes.len());
            packet.pts = pts;
            packet.dts = ffi::AV_NOPTS_VALUE;
        }
        Ok(())
    }

    /// Ticks; `None` where the container does not say.
    pub(super) fn pts(&self) -> Option<i64> {
        Some(self.get().pts).filter(|pts| *pts != ffi::AV_NOPTS_VALUE)
    }

    pub(super) fn starts(&self) -> bool {
        self.get().flags & ffi::AV_PKT_FLAG_KEY != 0
    }

    /// It is decoded for others' sake and not shown.
    pub(super) fn is_hidden(&self) -> bool {
        self.get().flags & ffi::AV_PKT_FLAG_DISCARD != 0
    }

    pub(super) fn is_cut(&self) -> bool {
        self.get().flags & ffi::AV_PKT_FLAG_CORRUPT != 0
    }

    /// Where it was read from; for some containers that is a header before it.
    pub(super) fn offset(&self) -> Option<usize> {
        usize::try_from(self.get().pos).ok()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        let packet = self.get();
        if packet.data.is_null() {
            return &[];
        }
        // SAFETY: libav keeps `size` bytes there as long as the packet lives.
        unsafe { std::slice::from_raw_parts(packet.data, usize::try_from(packet.size).unwrap_or(0)) }
    }
}

impl Drop for Packet {
    fn drop(&mut self) {
        let mut packet = self.0.as_ptr();
        // SAFETY: ours, freed once.
        unsafe { ffi::av_packet_free(&raw mut packet) };
    }
}

/// A decoder of one stream and one call; the pointer keeps it on its thread.
pub(super) struct Codec(NonNull<ffi::AVCodecContext>);

impl Codec {
    pub(super) fn open(input: &Input<'_>, stream_idx: usize, limits: &MediaLimits) -> Result<Self, MediaError> {
        let name = input.facts(stream_idx).codec;
        let stream = input.streams()[stream_idx];
        // SAFETY: the stream's parameters are valid while `input` is; `Codec` frees the context when anything fails.
        unsafe {
            let params = (*stream).codecpar;
            let found = u64::try_from((*params).width).unwrap_or(0) * u64::try_from((*params).height).unwrap_or(0);
            if found > limits.max_pixels {
                return Err(MediaError::TooLarge { what: "pixels of a frame", found, limit: limits.max_pixels });
            }
            let decoder = ffi::avcodec_find_decoder((*params).codec_id);
            if decoder.is_null() {
                return Err(MediaError::UnsupportedCodec {
                    codec: name,
                    remedy: "the system's libav has no decoder for it: re-encode it with a common codec",
                });
            }
            let context = NonNull::new(ffi::avcodec_alloc_context3(decoder));
            let codec = Self(context.ok_or_else(|| corrupt("libav got no memory"))?);
            let context = codec.0.as_ptr();
            checked(ffi::avcodec_parameters_to_context(context, params), &format!("{name}, its parameters"))?;
            (*context).pkt_timebase = (*stream).time_base;
            Self::hold_to(context, limits);
            checked(ffi::avcodec_open2(context, decoder, ptr::null_mut()), &format!("{name}, its parameters"))?;
            Ok(codec)
        }
    }

    /// For a stream whose units come with start codes, and `header` its parameter sets.
    pub(super) fn h264(header: &[u8], limits: &MediaLimits) -> Result<Self, MediaError> {
        const PLACE: &str = "h264, its parameters";
        let no_memory = || corrupt("libav got no memory");
        // SAFETY: the context is checked before it is used and frees its extra data; those are padded with zeros, as libav wants.
        unsafe {
            let decoder = ffi::avcodec_find_decoder(ffi::AVCodecID::AV_CODEC_ID_H264);
            if decoder.is_null() {
                return Err(MediaError::UnsupportedCodec {
                    codec: "h264".to_owned(),
                    remedy: "the system's libav has no decoder for it: build without `--features ffmpeg`",
                });
            }
            let codec = Self(NonNull::new(ffi::avcodec_alloc_context3(decoder)).ok_or_else(no_memory)?);
            let context = codec.0.as_ptr();
            let padding = ffi::AV_INPUT_BUFFER_PADDING_SIZE as usize;
            let extra = ffi::av_mallocz(header.len() + padding).cast::<u8>();
            let extra = NonNull::new(extra).ok_or_else(no_memory)?.as_ptr();
            ptr::copy_nonoverlapping(header.as_ptr(), extra, header.len());
            (*context).extradata = extra;
            (*context).extradata_size = c_int::try_from(header.len()).map_err(|e| corrupt(e.to_string()))?;
            Self::hold_to(context, limits);
            checked(ffi::avcodec_open2(context, decoder, ptr::null_mut()), PLACE)?;
            Ok(codec)
        }
    }

    /// One thread, no more pixels than allowed, and damage an error.
    ///
    /// # Safety
    /// `context` is one that was made and not opened.
    unsafe fn hold_to(context: *mut ffi::AVCodecContext, limits: &MediaLimits) {
        // SAFETY: as the caller says.
        unsafe {
            (*context).thread_count = 1;
            (*context).max_pixels = i64::try_from(limits.max_pixels).unwrap_or(i64::MAX);
            (*context).err_recognition =
                ffi::AV_EF_CRCCHECK | ffi::AV_EF_BITSTREAM | ffi::AV_EF_BUFFER | ffi::AV_EF_EXPLODE;
        }
    }

    /// Hands a packet over; `None` is the end of the stream.
    pub(super) fn send(&mut self, packet: Option<&Packet>, place: &str) -> Result<(), MediaError> {
        let packet = packet.map_or(ptr::null(), |packet| packet.0.as_ptr().cast_const());
        // SAFETY: the context is open, and the packet is read, not kept.
        checked(unsafe { ffi::avcodec_send_packet(self.0.as_ptr(), packet) }, place).map(|_| ())
    }

    /// Takes the next frame that is ready; false when there is none.
    pub(super) fn receive(&mut self, frame: &mut Frame, place: &str) -> Result<bool, MediaError> {
        // SAFETY: the context is open; what the frame held is released by the call.
        let code = unsafe { ffi::avcodec_receive_frame(self.0.as_ptr(), frame.as_ptr()) };
        if code == ffi::AVERROR_EOF || code == ffi::AVERROR(ffi::EAGAIN) {
            return Ok(false);
        }
        checked(code, place)?;
        if frame.is_broken() { Err(corrupt(format!("{place}: parts of it are missing or damaged"))) } else { Ok(true) }
    }
}

impl Drop for Codec {
    fn drop(&mut self) {
        let mut context = self.0.as_ptr();
        // SAFETY: ours, freed once.
        unsafe { ffi::avcodec_free_context(&raw mut context) };
    }
}
