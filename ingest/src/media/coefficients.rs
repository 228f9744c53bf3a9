//! Progressive JPEG → baseline JPEG, coefficient by coefficient, through libjpeg. With `heap`, the only unsafe code of ingest.
//!
//! In: the bytes of a JPEG. Out: a baseline JPEG with the same coefficients and Huffman tables of its own, without APPn
//! segments. Never: half a file, a process that exits (libjpeg's errors unwind and are caught here), a repaired file: what
//! libjpeg only warns of is an error.

use std::mem::MaybeUninit;

use imp_schemas::media::libjpeg::{self, Decompressor, Refused};
use mozjpeg_sys::{
    JCP_FASTEST, JINT_COMPRESS_PROFILE, JPEG_LIB_VERSION, boolean, c_int, jpeg_CreateCompress, jpeg_c_set_int_param,
    jpeg_compress_struct, jpeg_copy_critical_parameters, jpeg_destination_mgr, jpeg_destroy_compress, jpeg_error_mgr,
    jpeg_finish_compress, jpeg_finish_decompress, jpeg_read_coefficients, jpeg_write_coefficients,
};

/// Codes the scans of `bytes` anew as one baseline scan.
///
/// # Errors
/// libjpeg finds anything wrong with the file, or no memory for its coefficients.
pub(super) fn to_baseline(bytes: &[u8]) -> Result<Vec<u8>, Refused> {
    let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 8);
    // Both structs are freed when the closure is left, by return or by unwinding.
    libjpeg::guarded(|| transcode(bytes, &mut out)).map(|()| out)
}

/// libjpeg's compressor at an address that stays, freed when it is dropped.
struct Target {
    errors: Box<jpeg_error_mgr>,
    sink: Box<Sink>,
    info: Box<MaybeUninit<jpeg_compress_struct>>,
}

impl Drop for Target {
    fn drop(&mut self) {
        // SAFETY: the struct is zeroed before libjpeg sees it, and destroying one that was not created does nothing.
        unsafe { jpeg_destroy_compress(self.info.assume_init_mut()) }
    }
}

/// Where the compressor writes: libjpeg's part first, so that its pointer is ours.
#[repr(C)]
struct Sink {
    manager: jpeg_destination_mgr,
    buffer: [u8; 1 << 14],
    out: Vec<u8>,
}

fn transcode(bytes: &[u8], out: &mut Vec<u8>) {
    // SAFETY: every pointer handed to libjpeg points into a box that outlives the struct holding it: the error managers and
    // the sink are fields of the same value as their struct. The coefficient arrays belong to
    // `source`, which is dropped after the compressor has written them. All structs of libjpeg are plain C data for which
    // zeroes are valid, as its own initialisation relies on. Callbacks unwind, which the C code allows: it is compiled with
    // unwind tables (feature `unwinding`), and its functions are declared `C-unwind`.
    unsafe {
        let mut source = Decompressor::open(bytes);
        let src = source.info();
        let coefficients = jpeg_read_coefficients(src);

        let mut target = Target {
            errors: Box::new(libjpeg::errors()),
            sink: Box::new(Sink::new()),
            info: Box::new(MaybeUninit::zeroed()),
        };
        let dst = target.info.assume_init_mut();
        dst.common.err = &mut *target.errors;
        jpeg_CreateCompress(dst, JPEG_LIB_VERSION, size_of::<jpeg_compress_struct>());
        dst.dest = (&raw mut *target.sink).cast();
        // Before the defaults are set: any other profile of mozjpeg means progressive.
        jpeg_c_set_int_param(dst, JINT_COMPRESS_PROFILE, JCP_FASTEST as c_int);
        jpeg_copy_critical_parameters(src, dst);
        dst.optimize_coding = 1;
        dst.write_JFIF_header = 0;
        dst.write_Adobe_marker = 0;
        jpeg_write_coefficients(dst, coefficients);
        jpeg_finish_compress(dst);
        jpeg_finish_decompress(src);
        std::mem::swap(out, &mut target.sink.out);
    }
}

impl Sink {
    fn new() -> Self {
        let manager = jpeg_destination_mgr {
            next_output_byte: std::ptr::null_mut(),
            free_in_buffer: 0,
            init_destination: Some(sink_start),
            empty_output_buffer: Some(sink_full),
            term_destination: Some(sink_end),
        };
        Self { manager, buffer: [0; 1 << 14], out: Vec::new() }
    }

    fn rewind(&mut self) {
        self.manager.next_output_byte = self.buffer.as_mut_ptr();
        self.manager.free_in_buffer = self.buffer.len();
    }
}

/// # Safety
/// `info` is a compressor whose destination is a [`Sink`].
unsafe fn sink_of(info: &mut jpeg_compress_struct) -> &mut Sink {
    // SAFETY: the destination is the first field of a `Sink`, which is `repr(C)` and lives as long as the compressor.
    unsafe { &mut *info.dest.cast::<Sink>() }
}

unsafe extern "C-unwind" fn sink_start(info: &mut jpeg_compress_struct) {
    // SAFETY: set in `transcode` for this compressor only.
    unsafe { sink_of(info) }.rewind();
}

unsafe extern "C-unwind" fn sink_full(info: &mut jpeg_compress_struct) -> boolean {
    // SAFETY: set in `transcode` for this compressor only.
    let sink = unsafe { sink_of(info) };
    // libjpeg calls this when the whole buffer is full, whatever the numbers in the manager say.
    sink.out.extend_from_slice(&sink.buffer);
    sink.rewind();
    1
}

unsafe extern "C-unwind" fn sink_end(info: &mut jpeg_compress_struct) {
    // SAFETY: set in `transcode` for this compressor only.
    let sink = unsafe { sink_of(info) };
    let n = sink.buffer.len() - sink.manager.free_in_buffer.min(sink.buffer.len());
    sink.out.extend_from_slice(&sink.buffer[..n]);
}
