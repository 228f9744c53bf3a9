//! What one device has for our own kernels, beside dfdx's tensors: functions, products, mirrors of the parameters.
//!
//! In: a dfdx device. Out: launches on the stream that dfdx works on, so that nothing has to wait for anything. Never: a stream of
//! its own.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{self, CUfunction};
use cudarc::driver::{CudaDevice, DriverError, result};
use dfdx::prelude::{Cuda, CudaError, Gradients, Storage};

use super::buffer::Buf;
use super::gemm::{Epilogue, Gemm, Product};
use super::mirror::Mirrors;
use super::profile::Profile;
use super::staging::{self, Staging};
use crate::ops::Precision;

/// A vector of dfdx's, as gradients and moments are.
pub(super) type Values = <Cuda as Storage<f32>>::Vec;

/// Our kernels, compiled by the build: PTX and the names in it.
const MODULES: [(&str, &[&str]); 4] = [
    (
        include_str!(concat!(env!("OUT_DIR"), "/norms.ptx")),
        &[
            "norm_forward_256",
            "norm_forward_512",
            "norm_forward_768",
            "norm_forward_1024",
            "norm_forward_2048",
            "norm_backward_256",
            "norm_backward_512",
            "norm_backward_768",
            "norm_backward_1024",
            "norm_backward_2048",
            "norm_backward_bias_256",
            "norm_backward_bias_512",
            "norm_backward_bias_768",
            "norm_backward_bias_1024",
            "norm_backward_bias_2048",
            "head_norm_forward",
            "head_norm_backward",
        ],
    ),
    (
        include_str!(concat!(env!("OUT_DIR"), "/elementwise.ptx")),
        &[
            "to_bf16",
            "to_bf16_strided",
            "gelu_forward",
            "gelu_backward",
            "add_bias",
            "through_gelu",
            "column_sums",
            "add_partials",
            "add_columns",
            "add_into",
            "tubes",
            "pool_forward",
            "pool_backward",
            "add_places",
            "sum_places",
            "sum_listed",
            "squares",
            "scale",
            "average",
        ],
    ),
    (
        include_str!(concat!(env!("OUT_DIR"), "/attention.ptx")),
        &[
            "attention_dot",
            "attention_forward_32",
            "attention_forward_64",
            "attention_forward_128",
            "attention_backward_keys_32",
            "attention_backward_keys_64",
            "attention_backward_keys_128",
            "attention_backward_queries_32",
            "attention_backward_queries_64",
            "attention_backward_queries_128",
        ],
    ),
    (
        include_str!(concat!(env!("OUT_DIR"), "/experts.ptx")),
        &[
            "transpose",
            "route",
            "choose",
            "routing_stats",
            "gather_rows",
            "combine",
            "combine_backward",
            "dispatch_backward",
        ],
    ),
];

/// Shared memory of a block on compute capability 8.0 and newer, at least.
const SHARED_BYTES: usize = 99 << 10;

/// One device.
pub(super) struct Context {
    pub device: Arc<CudaDevice>,
    pub precision: Precision,
    gemm: Gemm,
    functions: HashMap<&'static str, CUfunction>,
    mirrors: Mutex<Mirrors>,
    zeros: Mutex<Option<Arc<Values>>>,
    pub profile: Profile,
    staging: Mutex<Staging>,
}

// SAFETY: handles of functions and of cuBLASLt may be used by any thread; what changes is behind mutexes.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

static CONTEXTS: Mutex<Vec<Arc<Context>>> = Mutex::new(Vec::new());

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens device `ordinal`, whose fused ops compute in `precision`.
///
/// # Errors
/// The driver's: no such device, no room, or kernels that it cannot run.
pub fn open(ordinal: usize, seed: u64, precision: Precision) -> Result<Cuda, CudaError> {
    let dev = Cuda::try_build(ordinal, seed)?;
    let context = Context::new(device_of(&dev)?, precision)?;
    locked(&CONTEXTS).push(Arc::new(context));
    Ok(dev)
}

/// What dfdx runs on.
fn device_of(dev: &Cuda) -> Result<Arc<CudaDevice>, CudaError> {
    let one: Values = dev.try_alloc_len(1)?;
    Ok(one.device())
}

impl Context {
    /// The context of a device; one that was not opened by [`open`] computes in f32.
    pub fn of(dev: &Cuda) -> Result<Arc<Self>, CudaError> {
        let device = device_of(dev)?;
        let mut contexts = locked(&CONTEXTS);
        if let Some(found) = contexts.iter().find(|c| Arc::ptr_eq(&c.device, &device)) {
            return Ok(found.clone());
        }
        let made = Arc::new(Self::new(device, Precision::F32)?);
        contexts.push(made.clone());
        Ok(made)
    }

    fn new(device: Arc<CudaDevice>, precision: Precision) -> Result<Self, CudaError> {
        device.bind_to_thread()?;
        keep_freed_memory(&device)?;
        let mut functions = HashMap::new();
        for (ptx, names) in MODULES {
            let image = CString::new(ptx).map_err(|_| DriverError(sys::CUresult::CUDA_ERROR_INVALID_PTX))?;
            // SAFETY: the image is PTX, ends with zero, and outlives the call.
            let module = unsafe { result::module::load_data(image.as_ptr().cast()) }?;
            for &name in names {
                let symbol = CString::new(name).map_err(|_| DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND))?;
                // SAFETY: the module was loaded above and is never unloaded.
                let function = unsafe { result::module::get_function(module, symbol) }?;
                let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                let fixed = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
                let mut n_fixed = 0;
                // SAFETY: the function is one of the module's; the first call writes through the address of a local.
                unsafe {
                    sys::cuFuncGetAttribute(&mut n_fixed, fixed, function).result()?;
                    sys::cuFuncSetAttribute(function, attribute, SHARED_BYTES as i32 - n_fixed).result()?;
                }
                functions.insert(name, function);
            }
        }
        let gemm = Gemm::new(&device)?;
        let (mirrors, staging) = (Mutex::new(Mirrors::default()), Mutex::new(Staging::new()?));
        Ok(Self {
            device,
            precision,
            gemm,
            functions,
            mirrors,
            zeros: Mutex::new(None),
            profile: Profile::default(),
            staging,
        })
    }

    /// A product.
    ///
    /// # Safety
    /// As [`Gemm::run`].
    pub unsafe fn product(&self, product: &Product) -> Result<(), CudaError> {
        let Product { rows, columns, inner, batch, .. } = product;
        // In a batch cuBLASLt's GELU costs more than a pass of its own.
        if *batch > 1 && product.epilogue != Epilogue::Plain {
            let n = product.stride_to * batch;
            let plain = product.epilogue(Epilogue::Plain, 0);
            let aux = product.aux;
            // SAFETY: the caller's promise: what the epilogue writes or reads besides has the output's layout.
            return unsafe {
                if product.epilogue == Epilogue::Gelu {
                    self.product(&Product { to: aux, ..plain })?;
                    self.launch_over("gelu_forward", n.div_ceil(4), args![aux, product.to, n as u64])
                } else {
                    self.product(&plain)?;
                    self.launch_over("gelu_backward", n.div_ceil(4), args![aux, product.to, n as u64])
                }
            };
        }
        self.profile.time(&self.device, format_args!("product {rows}x{inner}x{columns}x{batch}"), || {
            // SAFETY: the caller's promise.
            unsafe { self.gemm.run(product) }
        })
    }

    /// Starts a kernel on dfdx's stream.
    ///
    /// # Safety
    /// The arguments must be those of the kernel, in number, order and type, and addresses must hold what it reads and writes.
    pub unsafe fn launch(
        &self,
        name: &str,
        grid: [usize; 3],
        block: u32,
        shared: usize,
        args: &[Arg],
    ) -> Result<(), CudaError> {
        let Some(&function) = self.functions.get(name) else {
            return Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND).into());
        };
        if grid.contains(&0) {
            return Ok(());
        }
        let mut params: Vec<*mut c_void> = args.iter().map(Arg::address).collect();
        let grid = (grid[0] as u32, grid[1] as u32, grid[2] as u32);
        let stream = *self.device.cu_stream();
        self.profile.time(&self.device, name, || {
            // SAFETY: the caller's promise; `args` outlives the call, which copies them.
            unsafe { result::launch_kernel(function, grid, (block, 1, 1), shared as u32, stream, &mut params) }?;
            Ok(())
        })
    }

    /// As [`Context::launch`], for kernels that stride over any number of values.
    ///
    /// # Safety
    /// As [`Context::launch`].
    pub unsafe fn launch_over(&self, name: &str, n: usize, args: &[Arg]) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        unsafe { self.launch(name, [n.div_ceil(256).min(132 * 16), 1, 1], 256, 0, args) }
    }

    pub fn mirrors(&self) -> MutexGuard<'_, Mirrors> {
        locked(&self.mirrors)
    }

    /// At least `n` zeros that nobody writes.
    pub fn zeros(&self, dev: &Cuda, n: usize) -> Result<Arc<Values>, CudaError> {
        let mut zeros = locked(&self.zeros);
        if let Some(zeros) = zeros.as_ref().filter(|z| dev.len(z) >= n) {
            return Ok(zeros.clone());
        }
        let made = Arc::new(dev.try_alloc_len(n)?);
        *zeros = Some(made.clone());
        Ok(made)
    }

    /// Uninitialised memory for `n` values of `bytes` bytes.
    pub fn alloc(&self, n: usize, bytes: usize) -> Result<Buf, CudaError> {
        Ok(Buf::new(&self.device, n * bytes)?)
    }

    /// Makes sure of room for `n` more values of f32: where dfdx copies a vector it does not ask, and panics without.
    pub fn room(&self, n: usize) -> Result<(), CudaError> {
        self.alloc(n, 4).map(drop)
    }

    /// Values of the host on the device.
    pub fn upload<T: Copy>(&self, values: &[T]) -> Result<Buf, CudaError> {
        let n_bytes = size_of_val(values);
        if n_bytes < staging::LEAST {
            return Ok(Buf::of(&self.device, values)?);
        }
        let to = Buf::new(&self.device, n_bytes)?;
        // SAFETY: `T` is plain data without padding wherever this is called (numbers); there is room for it.
        unsafe {
            let bytes = std::slice::from_raw_parts(values.as_ptr().cast(), n_bytes);
            locked(&self.staging).copy(&self.device, bytes, to.ptr())?;
        }
        Ok(to)
    }
}

/// Memory that is freed stays with the process for the next of its size, instead of going back to the driver at every wait.
fn keep_freed_memory(device: &CudaDevice) -> Result<(), DriverError> {
    let mut pool = std::ptr::null_mut();
    let mut most = u64::MAX;
    // SAFETY: the device is open, and both calls write through addresses of locals.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&mut pool, *device.cu_device()).result()?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut most).cast()).result()
    }
}

/// Greatest memory that was in use at once on the device of `dev`, MiB, since it was opened.
pub fn peak_mib(dev: &Cuda) -> Result<u64, CudaError> {
    let context = Context::of(dev)?;
    let mut pool = std::ptr::null_mut();
    let mut bytes = 0_u64;
    // SAFETY: as in `keep_freed_memory`.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&mut pool, *context.device.cu_device()).result()?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
        sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast()).result()?;
    }
    Ok(bytes >> 20)
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Arg {
    /// An address, or a `size_t`.
    Wide(u64),
    Int(i32),
    Float(f32),
}

impl Arg {
    fn address(&self) -> *mut c_void {
        match self {
            Self::Wide(v) => std::ptr::from_ref(v).cast_mut().cast(),
            Self::Int(v) => std::ptr::from_ref(v).cast_mut().cast(),
            Self::Float(v) => std::ptr::from_ref(v).cast_mut().cast(),
        }
    }
}

impl From<u64> for Arg {
    fn from(v: u64) -> Self {
        Self::Wide(v)
    }
}

impl From<f32> for Arg {
    fn from(v: f32) -> Self {
        Self::Float(v)
    }
}

/// Sizes are `int` in the kernels but where they count values of whole tensors.
impl From<usize> for Arg {
    fn from(v: usize) -> Self {
        Self::Int(v as i32)
    }
}

/// Builds the arguments of a kernel.
macro_rules! args {
    ($($arg:expr),* $(,)?) => { &[$($crate::ops::cuda::context::Arg::from($arg)),*] };
}
pub(super) use args;

/// The address of a vector of dfdx's.
pub(super) fn address(values: &Values) -> u64 {
    *cudarc::driver::DevicePtr::device_ptr(values)
}

/// The address of a parameter's or tensor's gradient, which is made of zeros if there is none.
macro_rules! gradient {
    ($grads:expr, $of:expr) => {
        $crate::ops::cuda::context::address($grads.get_or_alloc_mut($of)?)
    };
}
pub(super) use gradient;

/// What the type of a tape's gradients is here.
pub(super) type Grads = Gradients<f32, Cuda>;
