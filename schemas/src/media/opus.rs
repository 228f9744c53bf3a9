//! Opus packets → samples at 48 kHz.
//!
//! In: the identification header and the packets that a container holds. Out: interleaved samples, without the encoder's
//! lead-in. Never: containers, concealment: a packet that is missing or damaged is an error.
//! Source: RFC 7845 (header, channel mapping, pre-skip, end trimming); the decoding itself is libopus 1.3.1's,
//! carried over into Rust by `unsafe-libopus`, which keeps its pointers: they are held here and nowhere else.

use std::ptr::NonNull;

use unsafe_libopus::{
    OPUS_OK, OpusMSDecoder, opus_multistream_decode_float, opus_multistream_decoder_create,
    opus_multistream_decoder_destroy,
};

use super::MediaError;
use super::audio::unsupported;

/// Hz: Opus has no other output than this and its divisors.
pub(super) const RATE: u32 = 48_000;

/// More than the eight of mapping family 1 have no meaning by position, and would not be mixed rightly.
const MAX_CHANNELS: usize = 8;

/// Samples per channel of the longest packet, 120 ms.
const MAX_PACKET: usize = 5_760;

pub(super) struct Decoder {
    streams: Streams,
    n_channels: usize,
    /// Samples per channel that are the encoder's lead-in, as yet to be dropped.
    left_of_lead_in: usize,
    pcm: Vec<f32>,
}

impl Decoder {
    /// From the `OpusHead` packet, as Ogg, Matroska and (through symphonia) MP4 hold it.
    pub(super) fn new(head: &[u8]) -> Result<Self, MediaError> {
        let corrupt = |what: &str| MediaError::Corrupt { detail: format!("an Opus header {what}") };
        let Some((&[version, n_channels, skip_0, skip_1, _, _, _, _, _, _, family], mapping)) =
            head.strip_prefix(b"OpusHead").and_then(<[u8]>::split_first_chunk::<11>)
        else {
            return Err(corrupt("of less than 19 bytes"));
        };
        let n_channels = usize::from(n_channels);
        let (n_streams, n_coupled, mapping) = match (family, mapping) {
            (0, _) if matches!(n_channels, 1 | 2) => (1, n_channels - 1, &[0, 1][..n_channels]),
            (1, [n_streams, n_coupled, mapping @ ..]) if (1..=MAX_CHANNELS).contains(&n_channels) => {
                let mapping = mapping.get(..n_channels).ok_or_else(|| corrupt("without its channel mapping"))?;
                (usize::from(*n_streams), usize::from(*n_coupled), mapping)
            }
            (0 | 1, _) => return Err(corrupt(&format!("of {n_channels} channels in mapping family {family}"))),
            _ => return Err(unsupported(&format!("opus with channel mapping family {family}"))),
        };
        // More streams than channels would only be decoded to be thrown away.
        if n_streams > n_channels {
            return Err(corrupt(&format!("of {n_streams} streams for {n_channels} channels")));
        }
        let streams = Streams::new(n_channels, n_streams, n_coupled, mapping)
            .map_err(|error| corrupt(&format!("that contradicts itself: {error}")))?;
        // MP4 holds the same fields as version 0 and in the other byte order.
        let order = if version == 0 { u16::from_be_bytes } else { u16::from_le_bytes };
        let left_of_lead_in = usize::from(order([skip_0, skip_1]));
        let pcm = vec![0.0; MAX_PACKET * n_channels];
        Ok(Self { streams, n_channels, left_of_lead_in, pcm })
    }

    pub(super) fn n_channels(&self) -> usize {
        self.n_channels
    }

    /// Samples per channel before the first that is to be heard.
    pub(super) fn lead_in(&self) -> usize {
        self.left_of_lead_in
    }

    /// Replaces `out` by a packet's samples, interleaved, full scale ±1.
    pub(super) fn decode(&mut self, packet: &[u8], out: &mut Vec<f32>) -> Result<(), String> {
        out.clear();
        if packet.is_empty() {
            return Err("an empty packet".to_owned());
        }
        let n = self.streams.decode(packet, &mut self.pcm, self.n_channels)?;
        let n_dropped = self.left_of_lead_in.min(n);
        self.left_of_lead_in -= n_dropped;
        let heard = self.pcm.get(n_dropped * self.n_channels..n * self.n_channels).unwrap_or_default();
        out.extend_from_slice(heard);
        Ok(())
    }
}

/// libopus' decoder of all the streams of a packet; owned, so that it is freed once and used by one thread at a time.
struct Streams(NonNull<OpusMSDecoder>);

impl Streams {
    fn new(n_channels: usize, n_streams: usize, n_coupled: usize, mapping: &[u8]) -> Result<Self, &'static str> {
        debug_assert_eq!(mapping.len(), n_channels);
        let mut error = OPUS_OK;
        let (n_channels, n_streams, n_coupled) = (n_channels as i32, n_streams as i32, n_coupled as i32);
        // SAFETY: `mapping` has one entry per channel, which is all that is read of it; `error` outlives the call.
        let decoder = unsafe {
            opus_multistream_decoder_create(
                RATE as i32,
                n_channels,
                n_streams,
                n_coupled,
                mapping.as_ptr(),
                &raw mut error,
            )
        };
        NonNull::new(decoder).filter(|_| error == OPUS_OK).map(Self).ok_or_else(|| message(error))
    }

    /// Samples per channel, at most `MAX_PACKET`.
    fn decode(&mut self, packet: &[u8], pcm: &mut [f32], n_channels: usize) -> Result<usize, String> {
        let len = i32::try_from(packet.len()).map_err(|_| "a packet of more than 2 GB".to_owned())?;
        let room = (pcm.len() / n_channels) as i32;
        // SAFETY: the decoder is ours alone, `packet` has `len` bytes, and `pcm` room for `room` samples of each channel.
        let n =
            unsafe { opus_multistream_decode_float(self.0.as_mut(), packet.as_ptr(), len, pcm.as_mut_ptr(), room, 0) };
        usize::try_from(n).map_err(|_| message(n).to_owned())
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `opus_multistream_decoder_create` and is not used afterwards.
        unsafe { opus_multistream_decoder_destroy(self.0.as_ptr()) };
    }
}

fn message(code: i32) -> &'static str {
    match code {
        -1 => "an argument is out of range",
        -4 => "the packet is damaged",
        -5 => "the packet asks for what libopus does not do",
        _ => "libopus fails",
    }
}
