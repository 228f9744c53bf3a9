//! The error manager that every use of libjpeg has here, and what it unwinds with.
//!
//! In: nothing. Out: a [`jpeg_error_mgr`] under which libjpeg neither prints nor exits: it unwinds with a [`Refused`], which
//! [`guarded`] catches. Never: a damaged file repaired in silence: what libjpeg warns of and goes on with is an error too.

use std::ffi::c_int;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use mozjpeg_sys::{
    J_MESSAGE_CODE, JPEG_LIB_VERSION, JWRN_ADOBE_XFORM, JWRN_JFIF_MAJOR, c_ulong, jpeg_CreateDecompress,
    jpeg_common_struct, jpeg_decompress_struct, jpeg_destroy_decompress, jpeg_error_mgr, jpeg_mem_src,
    jpeg_read_header, jpeg_std_error,
};

/// libjpeg refused the file, or warned of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// One of `mozjpeg_sys::JERR_*` or `JWRN_*`; -1 if the cause is no message of libjpeg.
    pub code: J_MESSAGE_CODE,
    pub message: String,
}

/// Runs calls of libjpeg whose error manager is one of [`errors`].
///
/// # Errors
/// libjpeg refused the file, or Rust code under `work` panicked.
pub fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, Refused> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|cause| match cause.downcast::<Refused>() {
        Ok(refused) => *refused,
        Err(cause) => {
            let text = cause.downcast_ref::<String>().cloned();
            let text = text.or_else(|| cause.downcast_ref::<&str>().map(|&text| text.to_owned()));
            Refused { code: -1, message: text.unwrap_or_else(|| "the codec gave up".to_owned()) }
        }
    })
}

/// libjpeg's decompressor at an address that stays, over bytes that outlive it; freed when it is dropped.
pub struct Decompressor<'a> {
    /// The struct points to it.
    errors: Box<jpeg_error_mgr>,
    info: Box<MaybeUninit<jpeg_decompress_struct>>,
    bytes: PhantomData<&'a [u8]>,
}

impl<'a> Decompressor<'a> {
    /// Reads the header of `bytes`. It, and calls with what [`Self::info`] gives, unwind: only under [`guarded`].
    pub fn open(bytes: &'a [u8]) -> Self {
        // Dropped, and so freed, if reading the header unwinds.
        let mut opened = Self { errors: Box::new(errors()), info: Box::new(MaybeUninit::zeroed()), bytes: PhantomData };
        let Self { errors, info, .. } = &mut opened;
        // SAFETY: a struct of numbers and pointers that may be null: zeroes are valid, as libjpeg's own initialisation relies
        // on. The error manager stays in its box as long as the struct, `bytes` outlives both. Callbacks unwind, which the C
        // code allows: it is compiled with unwind tables (feature `unwinding`), and its functions are declared `C-unwind`.
        unsafe {
            let info = info.assume_init_mut();
            info.common.err = &mut **errors;
            jpeg_CreateDecompress(info, JPEG_LIB_VERSION, size_of::<jpeg_decompress_struct>());
            jpeg_mem_src(info, bytes.as_ptr(), bytes.len() as c_ulong);
            jpeg_read_header(info, 1);
        }
        opened
    }

    /// The struct that libjpeg's functions take.
    ///
    /// # Safety
    /// Only parameters of decoding may be set: its pointers are libjpeg's.
    pub unsafe fn info(&mut self) -> &mut jpeg_decompress_struct {
        // SAFETY: initialised by `open`.
        unsafe { self.info.assume_init_mut() }
    }
}

impl Drop for Decompressor<'_> {
    fn drop(&mut self) {
        // SAFETY: zeroed before libjpeg saw it; destroying a struct that was not created does nothing.
        unsafe { jpeg_destroy_decompress(self.info.assume_init_mut()) }
    }
}

/// A manager whose errors and warnings unwind; only under [`guarded`].
pub fn errors() -> jpeg_error_mgr {
    // SAFETY: a table of function pointers that may be null, numbers and pointers: zeroes are valid, and libjpeg fills it.
    let mut errors: jpeg_error_mgr = unsafe { std::mem::zeroed() };
    // SAFETY: it only writes its defaults into the table.
    unsafe { jpeg_std_error(&mut errors) };
    errors.error_exit = Some(on_error);
    errors.emit_message = Some(on_message);
    errors
}

/// libjpeg cannot go on. Not a panic: no hook is called, nothing is printed.
unsafe extern "C-unwind" fn on_error(info: &mut jpeg_common_struct) {
    resume_unwind(Box::new(refused(info)));
}

/// Level -1 is a warning: libjpeg goes on with data that are not right. Higher levels are traces.
unsafe extern "C-unwind" fn on_message(info: &mut jpeg_common_struct, level: c_int) {
    if level >= 0 {
        return;
    }
    let refused = refused(info);
    // A version number or a colour code that libjpeg does not know changes no pixel that it decodes.
    if !matches!(refused.code, JWRN_JFIF_MAJOR | JWRN_ADOBE_XFORM) {
        resume_unwind(Box::new(refused));
    }
}

fn refused(info: &mut jpeg_common_struct) -> Refused {
    let mut text = [0_u8; 80];
    // SAFETY: libjpeg calls back with the struct whose manager is ours; the manager's own formatter writes at most 80 bytes.
    // The binding takes the buffer by a shared reference, so it is handed over as the raw pointer that the C function wants.
    let code = unsafe {
        let errors = &*info.err;
        if let Some(format) = errors.format_message {
            type Format = unsafe extern "C-unwind" fn(&mut jpeg_common_struct, *mut u8);
            let format =
                std::mem::transmute::<unsafe extern "C-unwind" fn(&mut jpeg_common_struct, &[u8; 80]), Format>(format);
            format(info, text.as_mut_ptr());
        }
        (*info.err).msg_code
    };
    let text = text.split(|&b| b == 0).next().unwrap_or_default();
    Refused { code, message: String::from_utf8_lossy(text).into_owned() }
}
