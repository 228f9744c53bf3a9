//! A decoded frame of libav's → RGB or samples.
//!
//! In: what `libav::Codec` filled. Out: pixels by the arithmetic of `rgb`, samples at full scale ±1. Never: a format that is
//! passed on as another.

use std::ffi::c_int;
use std::ptr::{self, NonNull};

use ffmpeg_sys_next as ffi;

use super::libav::corrupt;
use crate::media::video::Values;
use crate::media::{MediaError, Picture, rgb};

/// What a decoder made: a picture, or some samples of each channel.
pub(super) struct Frame(NonNull<ffi::AVFrame>);

impl Frame {
    pub(super) fn new() -> Result<Self, MediaError> {
        // SAFETY: makes an empty frame, or gives null.
        let frame = unsafe { ffi::av_frame_alloc() };
        NonNull::new(frame).map(Self).ok_or_else(|| corrupt("libav got no memory"))
    }

    fn get(&self) -> &ffi::AVFrame {
        // SAFETY: the frame is ours and was made by `av_frame_alloc`.
        unsafe { self.0.as_ref() }
    }

    /// For libav to fill.
    pub(super) fn as_ptr(&mut self) -> *mut ffi::AVFrame {
        self.0.as_ptr()
    }

    /// Parts of it are missing, or were made up by the decoder.
    pub(super) fn is_broken(&self) -> bool {
        self.get().flags & ffi::AV_FRAME_FLAG_CORRUPT != 0 || self.get().decode_error_flags != 0
    }

    /// Ticks; `None` where neither the container nor the codec say.
    pub(super) fn pts(&self) -> Option<i64> {
        Some(self.get().best_effort_timestamp).filter(|pts| *pts != ffi::AV_NOPTS_VALUE)
    }

    pub(super) fn size(&self) -> (usize, usize) {
        let side = |side: c_int| usize::try_from(side).unwrap_or(0);
        (side(self.get().width), side(self.get().height))
    }

    /// The bytes of a plane, with the distance from row to row; `None` for one that is stored upside down.
    fn plane(&self, plane: usize, width: usize, height: usize) -> Option<(&[u8], usize)> {
        let frame = self.get();
        let stride = usize::try_from(frame.linesize[plane]).ok().filter(|stride| *stride >= width)?;
        let data = NonNull::new(frame.data[plane]).filter(|_| height > 0)?;
        // SAFETY: gives a buffer of the frame's, which lives as long, or null.
        let buffer = unsafe { ffi::av_frame_get_plane_buffer(self.0.as_ptr(), c_int::try_from(plane).ok()?).as_ref() }?;
        let n_before = (data.as_ptr() as usize).checked_sub(buffer.data as usize)?;
        // What stands behind the last row's pixels is there too, mostly, and lets rows be taken as equally long.
        let n_bytes = buffer.size.checked_sub(n_before)?.min(stride * height);
        if n_bytes < stride * (height - 1) + width {
            return None;
        }
        // SAFETY: `n_bytes` from `data` lie in the buffer.
        Some((unsafe { std::slice::from_raw_parts(data.as_ptr(), n_bytes) }, stride))
    }

    /// Planes of 8-bit 4:2:0, which become RGB by the same arithmetic as those of the decoder in Rust; RGB of anything else.
    pub(super) fn values(&self) -> Result<Values<'_>, MediaError> {
        use ffi::AVPixelFormat as Format;
        let (width, height) = self.size();
        let format = self.get().format;
        let is_full = format == Format::AV_PIX_FMT_YUVJ420P as c_int;
        if is_full || format == Format::AV_PIX_FMT_YUV420P as c_int {
            let (half_width, half_height) = (width.div_ceil(2), height.div_ceil(2));
            let planes = (
                self.plane(0, width, height),
                self.plane(1, half_width, half_height),
                self.plane(2, half_width, half_height),
            );
            if let (Some((y, y_stride)), Some((u, u_stride)), Some((v, v_stride))) = planes {
                let full_range = is_full || self.get().color_range == ffi::AVColorRange::AVCOL_RANGE_JPEG;
                let planes = rgb::Planes { y, u, v, strides: [y_stride, u_stride, v_stride] };
                return Ok(Values::Planes { width, height, planes, full_range });
            }
        }
        self.scaled().map(Values::Picture)
    }

    /// MD5 of an 8-bit 4:2:0 frame's planes, without what stands between rows: ffmpeg's `framemd5`.
    #[cfg(all(test, real_data))]
    pub(super) fn md5(&self) -> Option<String> {
        let (width, height) = self.size();
        let mut raw = Vec::with_capacity(width * height * 3 / 2);
        for (i, [width, height]) in [[width, height], [width.div_ceil(2), height.div_ceil(2)]].into_iter().enumerate() {
            for plane in if i == 0 { 0..1 } else { 1..3 } {
                let (bytes, stride) = self.plane(plane, width, height)?;
                bytes.chunks(stride).for_each(|row| raw.extend(&row[..width]));
            }
        }
        let mut sum = [0_u8; 16];
        // SAFETY: writes 16 bytes, reads as many as are there.
        unsafe { ffi::av_md5_sum(sum.as_mut_ptr(), raw.as_ptr(), raw.len()) };
        Some(sum.iter().map(|b| format!("{b:02x}")).collect())
    }

    /// Any other format, by swscale with the same matrix; what is transparent becomes white.
    fn scaled(&self) -> Result<Picture, MediaError> {
        let (width, height) = self.size();
        let place = || corrupt(format!("a frame of {width} x {height} does not turn into RGB"));
        let frame = self.get();
        // SAFETY: the decoder set a format that libav knows, which the enum lists.
        let format: ffi::AVPixelFormat = unsafe { std::mem::transmute(frame.format) };
        // SAFETY: gives a static table or null.
        let table = unsafe { ffi::av_pix_fmt_desc_get(format).as_ref() }.ok_or_else(place)?;
        let has_alpha = table.flags & u64::try_from(ffi::AV_PIX_FMT_FLAG_ALPHA).unwrap_or(0) != 0;
        let (n_values, wanted) = if has_alpha {
            (4, ffi::AVPixelFormat::AV_PIX_FMT_RGBA)
        } else {
            (3, ffi::AVPixelFormat::AV_PIX_FMT_RGB24)
        };
        // swscale may write past a row's last pixel by the width of its registers.
        let stride = (width * n_values).next_multiple_of(64) + 64;
        let mut out = vec![0_u8; stride * height];
        let (c_width, c_height) = (frame.width, frame.height);
        let flags = ffi::SWS_BILINEAR | ffi::SWS_ACCURATE_RND | ffi::SWS_FULL_CHR_H_INT;
        let none = ptr::null_mut();
        // SAFETY: both pictures have the size that the scaler is made for, and `out` its rows; the scaler is freed.
        let n_rows = unsafe {
            let scaler = ffi::sws_getContext(
                c_width,
                c_height,
                format,
                c_width,
                c_height,
                wanted,
                flags,
                none,
                none,
                ptr::null(),
            );
            if scaler.is_null() {
                return Err(place());
            }
            let matrix = ffi::sws_getCoefficients(ffi::SWS_CS_ITU601);
            let is_full = frame.color_range == ffi::AVColorRange::AVCOL_RANGE_JPEG;
            // Fails for formats without a range, which need none.
            ffi::sws_setColorspaceDetails(scaler, matrix, c_int::from(is_full), matrix, 1, 0, 1 << 16, 1 << 16);
            let to = [out.as_mut_ptr(), none.cast(), none.cast(), none.cast()];
            let strides = [stride as c_int, 0, 0, 0];
            let from = frame.data.as_ptr().cast();
            let n = ffi::sws_scale(scaler, from, frame.linesize.as_ptr(), 0, c_height, to.as_ptr(), strides.as_ptr());
            ffi::sws_freeContext(scaler);
            n
        };
        if n_rows != c_height {
            return Err(place());
        }
        let mut rgb = Vec::with_capacity(width * height * 3);
        for row in out.chunks_exact(stride) {
            for pixel in row[..width * n_values].chunks_exact(n_values) {
                let alpha = pixel.get(3).map_or(255, |a| u32::from(*a));
                let over_white = |c: u8| ((u32::from(c) * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
                rgb.extend(pixel[..3].iter().map(|c| over_white(*c)));
            }
        }
        Ok(Picture { width, height, rgb })
    }

    /// Replaces `out` by the samples, interleaved, full scale ±1; gives rate and channels.
    pub(super) fn samples(&self, out: &mut Vec<f32>) -> Result<(u32, usize), MediaError> {
        use ffi::AVSampleFormat as Format;
        out.clear();
        let frame = self.get();
        let n = usize::try_from(frame.nb_samples).unwrap_or(0);
        let n_channels = usize::try_from(frame.ch_layout.nb_channels).unwrap_or(0);
        let rate = u32::try_from(frame.sample_rate).unwrap_or(0);
        // SAFETY: the decoder set a format that libav knows, which the enum lists.
        let format: Format = unsafe { std::mem::transmute(frame.format) };
        type Read = fn(&[u8]) -> f32;
        let (width, is_planar, read): (usize, bool, Read) = match format {
            Format::AV_SAMPLE_FMT_U8 | Format::AV_SAMPLE_FMT_U8P => {
                (1, format == Format::AV_SAMPLE_FMT_U8P, |b| (f32::from(b[0]) - 128.0) / 128.0)
            }
            Format::AV_SAMPLE_FMT_S16 | Format::AV_SAMPLE_FMT_S16P => {
                let read: Read = |b| f32::from(i16::from_ne_bytes([b[0], b[1]])) / 32_768.0;
                (2, format == Format::AV_SAMPLE_FMT_S16P, read)
            }
            Format::AV_SAMPLE_FMT_S32 | Format::AV_SAMPLE_FMT_S32P => {
                let read: Read = |b| (f64::from(i32::from_ne_bytes([b[0], b[1], b[2], b[3]])) / 2_147_483_648.0) as f32;
                (4, format == Format::AV_SAMPLE_FMT_S32P, read)
            }
            Format::AV_SAMPLE_FMT_FLT | Format::AV_SAMPLE_FMT_FLTP => {
                let read: Read = |b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]]);
                (4, format == Format::AV_SAMPLE_FMT_FLTP, read)
            }
            Format::AV_SAMPLE_FMT_DBL | Format::AV_SAMPLE_FMT_DBLP => {
                let read: Read = |b| f64::from_ne_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32;
                (8, format == Format::AV_SAMPLE_FMT_DBLP, read)
            }
            _ => return Err(corrupt(format!("samples of libav's format {}", frame.format))),
        };
        let n_planes = if is_planar { n_channels } else { 1 };
        let mut planes = Vec::with_capacity(n_planes);
        for plane in 0..n_planes {
            // SAFETY: `extended_data` has a pointer per plane, each to `n` samples of every channel that is in it.
            let data = unsafe {
                let data = *frame.extended_data.add(plane);
                if data.is_null() || n == 0 {
                    return Ok((rate, n_channels));
                }
                std::slice::from_raw_parts(data, n * width * (n_channels / n_planes))
            };
            planes.push(data);
        }
        out.reserve(n * n_channels);
        if is_planar {
            for i in 0..n {
                out.extend(planes.iter().map(|plane| read(&plane[i * width..])));
            }
        } else if let [plane] = planes[..] {
            out.extend(plane.chunks_exact(width).map(read));
        }
        Ok((rate, n_channels))
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        let mut frame = self.0.as_ptr();
        // SAFETY: ours, freed once.
        unsafe { ffi::av_frame_free(&raw mut frame) };
    }
}
