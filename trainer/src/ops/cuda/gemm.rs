//! Matrix products in bf16 with sums in f32, through cuBLASLt; plans are kept by shape.
//!
//! In: row-major operands, either of them transposed, one or a batch. Out: row-major, bf16 or f32. Never: a search at every call: the
//! first product of a shape tries some algorithms, the others use the fastest. Which one that is can differ from run to run, and with it
//! the last bits of a sum.

use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use cudarc::cublas::result::CublasError as BlasError;
use cudarc::cublas::sys::cublasStatus_t as BlasStatus;
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::CudaDevice;
use dfdx::prelude::CudaError;

use super::buffer::Buf;

/// What algorithms may use besides their operands.
const WORKSPACE_BYTES: usize = 64 << 20;

/// Algorithms that are tried on a product, how often, and from how many multiply-adds on: what cuBLASLt thinks fastest need not be.
const CANDIDATES: usize = 8;
const TRIES: usize = 3;
const WORTH_TRYING: f64 = 1e9;

/// A bf16 operand, row-major.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operand {
    pub at: u64,
    /// Values from one stored row to the next.
    pub ld: usize,
    /// The product is with the transpose of what is stored.
    pub transposed: bool,
    /// Values from one matrix of a batch to the next.
    pub stride: usize,
}

impl Operand {
    pub fn new(at: u64, ld: usize) -> Self {
        Self { at, ld, transposed: false, stride: 0 }
    }

    pub fn t(self) -> Self {
        Self { transposed: true, ..self }
    }

    pub fn stride(self, stride: usize) -> Self {
        Self { stride, ..self }
    }
}

/// What happens to the product on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Epilogue {
    Plain,
    /// GELU; what it was applied to goes to the address besides, in the output's layout.
    Gelu,
    /// Times the slope of GELU at what the address holds.
    GeluSlope,
}

/// `[rows, columns]`, each the sum of `inner` products.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    pub rows: usize,
    pub columns: usize,
    pub inner: usize,
    pub batch: usize,
    pub a: Operand,
    pub b: Operand,
    pub to: u64,
    pub ld_to: usize,
    pub stride_to: usize,
    /// f32 and added to what is there, instead of bf16.
    pub accumulate: bool,
    /// f32 instead of bf16.
    pub wide: bool,
    pub epilogue: Epilogue,
    pub aux: u64,
}

impl Product {
    /// bf16 out.
    pub fn new([rows, inner, columns]: [usize; 3], a: Operand, b: Operand, to: u64) -> Self {
        Self {
            rows,
            columns,
            inner,
            batch: 1,
            a,
            b,
            to,
            ld_to: columns,
            stride_to: rows * columns,
            accumulate: false,
            wide: false,
            epilogue: Epilogue::Plain,
            aux: 0,
        }
    }

    /// f32 out, added to what is there.
    pub fn added(self) -> Self {
        Self { accumulate: true, wide: true, ..self }
    }

    /// f32 out.
    pub fn wide(self) -> Self {
        Self { wide: true, ..self }
    }

    pub fn batch(self, batch: usize) -> Self {
        Self { batch, ..self }
    }

    pub fn epilogue(self, epilogue: Epilogue, aux: u64) -> Self {
        Self { epilogue, aux, ..self }
    }

    fn key(&self) -> Key {
        let alignment = |at: u64| if at == 0 { 256 } else { 1 << at.trailing_zeros().min(8) };
        Key {
            sizes: [self.rows, self.columns, self.inner, self.batch],
            strides: [self.a.ld, self.b.ld, self.ld_to, self.a.stride, self.b.stride, self.stride_to],
            transposed: [self.a.transposed, self.b.transposed],
            wide: self.wide,
            accumulate: self.accumulate,
            epilogue: self.epilogue,
            alignment: [alignment(self.a.at), alignment(self.b.at), alignment(self.to)],
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    sizes: [usize; 4],
    strides: [usize; 6],
    transposed: [bool; 2],
    wide: bool,
    accumulate: bool,
    epilogue: Epilogue,
    alignment: [u32; 3],
}

/// What cuBLASLt wants to know of a shape.
struct Plan {
    desc: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    to: sys::cublasLtMatrixLayout_t,
    algo: sys::cublasLtMatmulAlgo_t,
}

/// The products of a device.
pub(super) struct Gemm {
    handle: sys::cublasLtHandle_t,
    device: Arc<CudaDevice>,
    workspace: Buf,
    plans: Mutex<HashMap<Key, Plan>>,
}

fn failed(error: CublasError) -> CudaError {
    let status = match error.0 {
        sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED => BlasStatus::CUBLAS_STATUS_NOT_SUPPORTED,
        sys::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE => BlasStatus::CUBLAS_STATUS_INVALID_VALUE,
        sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => BlasStatus::CUBLAS_STATUS_ALLOC_FAILED,
        sys::cublasStatus_t::CUBLAS_STATUS_ARCH_MISMATCH => BlasStatus::CUBLAS_STATUS_ARCH_MISMATCH,
        _ => BlasStatus::CUBLAS_STATUS_EXECUTION_FAILED,
    };
    CudaError::Blas(BlasError(status))
}

impl Gemm {
    pub fn new(device: &Arc<CudaDevice>) -> Result<Self, CudaError> {
        let handle = result::create_handle().map_err(failed)?;
        let workspace = Buf::new(device, WORKSPACE_BYTES)?;
        Ok(Self { handle, device: device.clone(), workspace, plans: Mutex::new(HashMap::new()) })
    }

    /// # Safety
    /// The addresses must hold matrices of those sizes.
    pub unsafe fn run(&self, product: &Product) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        unsafe { self.try_run(product) }.map_err(failed)
    }

    unsafe fn try_run(&self, product: &Product) -> Result<(), CublasError> {
        if product.rows == 0 || product.columns == 0 || product.inner == 0 {
            return Ok(());
        }
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let key = product.key();
        if !plans.contains_key(&key) {
            let plan = self.plan(product, &key)?;
            plans.insert(key.clone(), plan);
        }
        let plan = &plans[&key];
        // SAFETY: the caller's promise.
        unsafe { self.start(product, plan, &plan.algo) }
    }

    /// # Safety
    /// As [`Gemm::run`].
    unsafe fn start(
        &self,
        product: &Product,
        plan: &Plan,
        algo: &sys::cublasLtMatmulAlgo_t,
    ) -> Result<(), CublasError> {
        if product.epilogue != Epilogue::Plain {
            use sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER as AUX;
            set(plan.desc, AUX, &product.aux)?;
        }
        let (alpha, beta) = (1.0_f32, if product.accumulate { 1.0_f32 } else { 0.0 });
        let pointer = |at: u64| at as *const c_void;
        let stream = (*self.device.cu_stream()).cast();
        // SAFETY: the caller's promise; row-major matrices are the transposes of what cuBLAS sees, so the operands change places.
        unsafe {
            result::matmul(
                self.handle,
                plan.desc,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                pointer(product.b.at),
                plan.b,
                pointer(product.a.at),
                plan.a,
                pointer(product.to),
                plan.to,
                product.to as *mut c_void,
                plan.to,
                algo,
                self.workspace.ptr() as *mut c_void,
                WORKSPACE_BYTES,
                stream,
            )
        }
    }

    fn plan(&self, product: &Product, key: &Key) -> Result<Plan, CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Desc;
        use sys::cublasLtMatmulPreferenceAttributes_t as Pref;
        use sys::cudaDataType_t::{CUDA_R_16BF, CUDA_R_32F};
        let desc = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, CUDA_R_32F)?;
        let op = |transposed: bool| i32::from(transposed);
        set(desc, Desc::CUBLASLT_MATMUL_DESC_TRANSA, &op(product.b.transposed))?;
        set(desc, Desc::CUBLASLT_MATMUL_DESC_TRANSB, &op(product.a.transposed))?;
        let epilogue = match product.epilogue {
            Epilogue::Plain => None,
            Epilogue::Gelu => Some(sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_GELU_AUX),
            Epilogue::GeluSlope => Some(sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DGELU),
        };
        if let Some(epilogue) = epilogue {
            set(desc, Desc::CUBLASLT_MATMUL_DESC_EPILOGUE, &(epilogue as u32))?;
            set(desc, Desc::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &product.aux)?;
            set(desc, Desc::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &(product.ld_to as i64))?;
            set(desc, Desc::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE, &(product.stride_to as i64))?;
        }
        let stored = |transposed: bool, rows: usize, columns: usize| {
            if transposed { (columns, rows) } else { (rows, columns) }
        };
        let (a_rows, a_columns) = stored(product.a.transposed, product.rows, product.inner);
        let (b_rows, b_columns) = stored(product.b.transposed, product.inner, product.columns);
        let half = CUDA_R_16BF;
        let batch = product.batch;
        let a = layout(half, (a_columns, a_rows), product.a.ld, (batch, product.a.stride))?;
        let b = layout(half, (b_columns, b_rows), product.b.ld, (batch, product.b.stride))?;
        let out = if product.wide { CUDA_R_32F } else { half };
        let to = layout(out, (product.columns, product.rows), product.ld_to, (batch, product.stride_to))?;
        let preference = result::create_matmul_pref()?;
        let prefer = |attribute, value: *const c_void, n: usize| {
            // SAFETY: the preference was made above; the value is of the size given.
            unsafe { result::set_matmul_pref_attribute(preference, attribute, value, n) }
        };
        let most = WORKSPACE_BYTES as u64;
        prefer(Pref::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const most).cast(), size_of::<u64>())?;
        let [of_a, of_b, of_to] = key.alignment;
        for (attribute, bytes) in [
            (Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, of_b),
            (Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, of_a),
            (Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, of_to),
            (Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, of_to),
        ] {
            prefer(attribute, (&raw const bytes).cast(), size_of::<u32>())?;
        }
        let mut found = [MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit(); CANDIDATES];
        let mut n_found = 0;
        // SAFETY: everything was made above; there is room for as many results as are asked for. The preference is not used again.
        unsafe {
            let all = (CANDIDATES as i32, found.as_mut_ptr().cast());
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                desc,
                b,
                a,
                to,
                to,
                preference,
                all.0,
                all.1,
                &mut n_found,
            )
            .result()?;
            result::destroy_matmul_pref(preference)?;
        }
        // SAFETY: so many were written.
        let found = found[..n_found.max(0) as usize].iter().map(|result| unsafe { result.assume_init_ref() });
        let mut algos = found.filter(|result| result.state.result().is_ok()).map(|result| result.algo);
        let first = algos.next().ok_or(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED))?;
        let mut plan = Plan { desc, a, b, to, algo: first };
        let multiply_adds = product.rows as f64 * product.columns as f64 * (product.inner * product.batch) as f64;
        if multiply_adds >= WORTH_TRYING {
            // Without room to try them the one that cuBLASLt puts first will do.
            plan.algo = self.fastest(product, &plan, std::iter::once(first).chain(algos)).unwrap_or(first);
        }
        Ok(plan)
    }

    /// Of some algorithms the one that is done first on this very product; what it computes goes nowhere.
    fn fastest(
        &self,
        product: &Product,
        plan: &Plan,
        algos: impl Iterator<Item = sys::cublasLtMatmulAlgo_t>,
    ) -> Result<sys::cublasLtMatmulAlgo_t, CublasError> {
        let failed = |_| CublasError(sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED);
        let n_values = product.stride_to * (product.batch - 1) + product.ld_to * product.rows;
        let to = Buf::new(&self.device, n_values * if product.wide { 4 } else { 2 }).map_err(failed)?;
        let aux = match product.epilogue {
            Epilogue::Gelu => Some(Buf::new(&self.device, n_values * 2).map_err(failed)?),
            Epilogue::Plain | Epilogue::GeluSlope => None,
        };
        let aside = Product { to: to.ptr(), aux: aux.as_ref().map_or(product.aux, Buf::ptr), ..*product };
        let (mut best, mut chosen) = (f64::INFINITY, plan.algo);
        for algo in algos {
            let mut seconds = f64::INFINITY;
            for _ in 0..TRIES {
                self.device.synchronize().map_err(failed)?;
                let begin = Instant::now();
                // SAFETY: as the caller of `run` promised, but for where it goes, which was made above.
                if unsafe { self.start(&aside, plan, &algo) }.is_err() {
                    break;
                }
                self.device.synchronize().map_err(failed)?;
                seconds = seconds.min(begin.elapsed().as_secs_f64());
            }
            if seconds < best {
                (best, chosen) = (seconds, algo);
            }
        }
        Ok(chosen)
    }
}

/// Sets an attribute of a product's description.
fn set<T>(
    desc: sys::cublasLtMatmulDesc_t,
    attribute: sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> Result<(), CublasError> {
    // SAFETY: the description is alive, and the value of the size that it is said to have.
    unsafe { result::set_matmul_desc_attribute(desc, attribute, std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// A column-major layout.
fn layout(
    of: sys::cudaDataType,
    (rows, columns): (usize, usize),
    ld: usize,
    (batch, stride): (usize, usize),
) -> Result<sys::cublasLtMatrixLayout_t, CublasError> {
    use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
    let made = result::create_matrix_layout(of, rows as u64, columns as u64, ld as i64)?;
    if batch > 1 {
        let (count, offset) = (batch as i32, stride as i64);
        // SAFETY: the layout was made above; the values are of the sizes that the attributes have.
        unsafe {
            sys::cublasLtMatrixLayoutSetAttribute(
                made,
                Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                (&raw const count).cast(),
                size_of::<i32>(),
            )
            .result()?;
            sys::cublasLtMatrixLayoutSetAttribute(
                made,
                Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                (&raw const offset).cast(),
                size_of::<i64>(),
            )
            .result()?;
        }
    }
    Ok(made)
}

/// GFLOP/s of the best of some products of 8192 by 8192 bf16 values.
///
/// # Errors
/// The device has no room, or failed.
pub fn ceiling(dev: &dfdx::prelude::Cuda) -> Result<f64, CudaError> {
    const N: usize = 8192;
    let context = super::context::Context::of(dev)?;
    let [a, b, to] = [context.alloc(N * N, 2)?, context.alloc(N * N, 2)?, context.alloc(N * N, 2)?];
    // Numbers near 1 of many values: zeros would need less power, and go faster.
    let values: Vec<u16> = (0..N * N)
        .map(|i| 0x3f00 | ((i as u32).wrapping_mul(2_654_435_761) >> 24) as u16 | ((i & 1) << 15) as u16)
        .collect();
    for buf in [&a, &b] {
        // SAFETY: as many bytes as were asked for.
        unsafe { cudarc::driver::result::memcpy_htod_sync(buf.ptr(), &values) }?;
    }
    let product = Product::new([N, N, N], Operand::new(a.ptr(), N), Operand::new(b.ptr(), N), to.ptr());
    let mut best = f64::INFINITY;
    for _ in 0..30 {
        context.device.synchronize()?;
        let begin = Instant::now();
        // SAFETY: the operands were made above.
        unsafe { context.product(&product) }?;
        context.device.synchronize()?;
        best = best.min(begin.elapsed().as_secs_f64());
    }
    Ok(2.0 * (N as f64).powi(3) / best / 1e9)
}
