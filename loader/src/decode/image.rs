//! Pictures → pixels of a batch: reduce, crop, resize, all antialiased.
//!
//! In: decoded pictures. Out: u8 sRGB of the size that was asked for. Never: a pixel outside the crop counts, a resize
//! without antialiasing, a second copy of the source.
//! Source: Pillow's bilinear (a triangle widened by the reduction factor; plain bilinear when enlarging).

use fast_image_resize::images::{CroppedImage, Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use imp_schemas::media::Picture;

use crate::augment::CropBox;
use crate::error::ContentFault;

/// Resizes on one thread; keeps its buffers.
#[derive(Debug, Default)]
pub struct Pixels {
    resizer: Resizer,
}

/// Width and height of a picture whose shorter side is reduced to `side`.
pub fn reduced_size(width: usize, height: usize, side: Option<usize>) -> (usize, usize) {
    let shorter = width.min(height);
    let Some(side) = side.filter(|&side| side < shorter) else { return (width, height) };
    let scaled = |length: usize| ((length * side + shorter / 2) / shorter).max(1);
    (scaled(width), scaled(height))
}

impl Pixels {
    /// `picture` with its shorter side at `side` pixels; unchanged if it is that small, or if `side` is `None`.
    pub fn reduce(&mut self, picture: Picture, side: Option<usize>) -> Result<Picture, ContentFault> {
        let (width, height) = reduced_size(picture.width, picture.height, side);
        if (width, height) == (picture.width, picture.height) {
            return Ok(picture);
        }
        let mut rgb = vec![0; width * height * 3];
        let whole = CropBox { left: 0, top: 0, width: picture.width, height: picture.height };
        self.crop_resize(&picture, whole, width, height, &mut rgb)?;
        Ok(Picture { width, height, rgb })
    }

    /// Writes the part `crop` of `picture` at `width` × `height` to `out`, `[height, width, 3]`.
    pub fn crop_resize(
        &mut self,
        picture: &Picture,
        crop: CropBox,
        width: usize,
        height: usize,
        out: &mut [u8],
    ) -> Result<(), ContentFault> {
        let impossible = |found: String| ContentFault::Impossible { what: "a picture that cannot be resized:", found };
        let size = |n: usize| u32::try_from(n).map_err(|_| impossible(format!("{n} pixels on a side")));
        let wrong = |e: &dyn std::fmt::Display| impossible(e.to_string());
        let source = ImageRef::new(size(picture.width)?, size(picture.height)?, &picture.rgb, PixelType::U8x3)
            .map_err(|e| wrong(&e))?;
        // A view of the crop, not the resizer's own crop option, which lets pixels outside the box count.
        let cropped =
            CroppedImage::new(&source, size(crop.left)?, size(crop.top)?, size(crop.width)?, size(crop.height)?)
                .map_err(|e| wrong(&e))?;
        let mut target =
            Image::from_slice_u8(size(width)?, size(height)?, out, PixelType::U8x3).map_err(|e| wrong(&e))?;
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).use_alpha(false);
        self.resizer.resize(&cropped, &mut target, &options).map_err(|e| wrong(&e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(real_data)]
    use testkit::golden::{Golden, Values};

    #[cfg(real_data)]
    fn levels(golden: &Golden, name: &str) -> (Vec<usize>, Vec<u8>) {
        let tensor = golden.tensor(name).unwrap();
        let Values::U8(values) = &tensor.values else { panic!("{name} is not u8") };
        (tensor.shape.clone(), values.clone())
    }

    #[cfg(real_data)]
    #[test]
    fn a_crop_is_resized_as_pillow_resizes_it() {
        // Too large for the repository's own copy.
        let shared = std::env::var_os("IMP_SHARED").expect("IMP_SHARED names the folder with data/ and golden/");
        let golden = Golden::read(&std::path::Path::new(&shared).join("golden"), "image").unwrap();
        let cases =
            ["photo_a", "photo_b", "small_422", "tiny_420", "baseline_420", "progressive_420", "png_rgb", "gray_jpeg"];
        for case in cases {
            let (shape, rgb) = levels(&golden, &format!("{case}/decoded"));
            let picture = Picture { height: shape[0], width: shape[1], rgb };
            let b: Vec<usize> = golden.i32s(&format!("{case}/crop_box")).unwrap().iter().map(|&v| v as usize).collect();
            let crop = CropBox { left: b[0], top: b[1], width: b[2] - b[0], height: b[3] - b[1] };
            for side in [64, 224] {
                let mut got = vec![0; side * side * 3];
                Pixels::default().crop_resize(&picture, crop, side, side, &mut got).unwrap();
                let (_, want) = levels(&golden, &format!("{case}/resized_{side}"));
                let differences: Vec<u64> = got.iter().zip(&want).map(|(a, b)| u64::from(a.abs_diff(*b))).collect();
                let mean = differences.iter().sum::<u64>() as f64 / differences.len() as f64;
                let max = differences.iter().max().copied().unwrap_or(0);
                // The limits of the reference numbers' README for a resize that starts from the given decode.
                assert!(mean <= 0.3 && max <= 2, "{case} at {side}: mean {mean:.3}, max {max}");
                assert_eq!(got.len(), want.len());
            }
        }
    }

    #[test]
    fn the_working_copy_has_the_side_asked_for_and_never_grows() {
        let picture = |width: usize, height: usize| Picture { width, height, rgb: vec![7; width * height * 3] };
        let size = |p: Picture| (p.width, p.height);
        let mut pixels = Pixels::default();
        assert_eq!(size(pixels.reduce(picture(360, 288), Some(72)).unwrap()), (90, 72));
        assert_eq!(size(pixels.reduce(picture(50, 60), Some(72)).unwrap()), (50, 60));
        assert_eq!(size(pixels.reduce(picture(50, 60), None).unwrap()), (50, 60));
    }
}
