//! A GPU through cudarc's driver API: context, stream, modules, memory.
//!
//! Invariant: nothing here panics on a machine without a driver: presence is asked for before the first symbol is loaded.

mod buffer;
mod counters;
mod failure;
mod graph;
mod pinned;
mod usage;

pub use buffer::Buffer;
pub use counters::Counters;
pub use failure::NoDevice;
pub use graph::Graph;
pub use pinned::Pinned;

use crate::fatbins::{ARCHITECTURES, FATBINS};
use crate::launch::{Geometry, Gpu, Kernel, LaunchError, Launcher, Ptr, TensorMap};
use bytemuck::Pod;
use counters::Counting;
use cudarc::driver::{result, sys};
use failure::{driver, out_of_memory, words};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, PoisonError};
use usage::Usage;

type Attribute = sys::CUdevice_attribute_enum;

/// A GPU with one stream. Clones share it.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    gpu: Gpu,
    ordinal: i32,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    functions: Mutex<Functions>,
    counting: Counting,
    usage: Usage,
}

#[derive(Default)]
struct Functions {
    modules: HashMap<&'static str, Handle<sys::CUmodule>>,
    functions: HashMap<Kernel, Function>,
}

/// A kernel and the dynamic shared memory that it may ask for.
#[derive(Clone, Copy)]
struct Function {
    handle: Handle<sys::CUfunction>,
    shared: u32,
}

/// A driver handle; the driver allows its use from every thread.
#[derive(Clone, Copy)]
struct Handle<T>(T);
// SAFETY: driver handles are process-wide names, and calls are made with the context bound.
unsafe impl<T> Send for Handle<T> {}
// SAFETY: `Inner` only holds driver handles, which are process-wide, and a mutex.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Device {
    /// Opens GPU `ordinal` (its primary context) and makes a stream.
    ///
    /// # Errors
    /// See [`NoDevice`].
    pub fn open(ordinal: i32) -> Result<Self, NoDevice> {
        // SAFETY: only looks for a library.
        if !unsafe { sys::is_culib_present() } {
            return Err(NoDevice::NoDriver);
        }
        result::init().map_err(|_| NoDevice::NoGpu(ordinal))?;
        let device = result::device::get(ordinal).map_err(|_| NoDevice::NoGpu(ordinal))?;
        let attribute = |which: Attribute| -> Result<u32, LaunchError> {
            // SAFETY: `device` is valid.
            let value = unsafe { result::device::get_attribute(device, which) };
            value
                .map(|v| v.max(0) as u32)
                .map_err(driver("asking the GPU for its facts"))
        };
        let name = result::device::get_name(device).map_err(driver("asking for the GPU's name"))?;
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability < (8, 0) {
            let (major, minor) = capability;
            return Err(NoDevice::TooOld { name, major, minor });
        }
        // SAFETY: `device` is valid; the context is released in `Inner::drop`.
        let context =
            unsafe { result::primary_ctx::retain(device) }.map_err(driver("opening the GPU"))?;
        // SAFETY: `context` is valid.
        unsafe { result::ctx::set_current(context) }.map_err(driver("opening the GPU"))?;
        let gpu = Gpu {
            name,
            capability,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_per_block: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
            l2: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
            // SAFETY: `device` is valid.
            memory: unsafe { result::device::total_mem(device) }
                .map_err(driver("asking for the GPU's memory"))? as u64,
            hopper: capability == (9, 0)
                && ARCHITECTURES.contains(&"sm_90a")
                && std::env::var_os("MEDFT_PORTABLE").is_none_or(|v| v != "1"),
        };
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(driver("making a stream"))?;
        Ok(Device(Arc::new(Inner {
            gpu,
            ordinal,
            device,
            context,
            stream,
            functions: Mutex::default(),
            counting: Counting::default(),
            usage: Usage::default(),
        })))
    }

    /// Number of the GPU.
    pub fn ordinal(&self) -> i32 {
        self.0.ordinal
    }

    /// What it was asked for so far.
    pub fn counters(&self) -> Counters {
        self.0.counting.now()
    }

    /// Version of the driver's CUDA, as (13, 0).
    pub fn driver_version(&self) -> (u32, u32) {
        let mut version = 0;
        // SAFETY: writes one int.
        let _ = unsafe { sys::cuDriverGetVersion(&raw mut version) };
        (
            version.max(0) as u32 / 1000,
            version.max(0) as u32 % 1000 / 10,
        )
    }

    /// The context and stream, for a second wrapper that shares them.
    pub fn raw(&self) -> (sys::CUcontext, sys::CUstream) {
        (self.0.context, self.0.stream)
    }

    /// Makes this the calling thread's context. Every method does so itself.
    fn bind(&self) -> Result<(), LaunchError> {
        // SAFETY: the context lives as long as `self`.
        unsafe { result::ctx::set_current(self.0.context) }.map_err(driver("using the GPU"))
    }

    /// Free and total memory, bytes.
    ///
    /// # Errors
    /// The driver's.
    pub fn free_memory(&self) -> Result<(u64, u64), LaunchError> {
        self.bind()?;
        let (free, total) = result::mem_get_info().map_err(driver("asking for free memory"))?;
        Ok((free as u64, total as u64))
    }

    /// Most bytes that buffers took together, since [`Device::forget_peak`].
    pub fn peak(&self) -> u64 {
        self.0.usage.peak()
    }

    /// Counts the peak anew, from what buffers take now.
    pub fn forget_peak(&self) {
        self.0.usage.forget();
    }

    /// Memory for `len` elements, contents unspecified, aligned to 256 bytes.
    ///
    /// # Errors
    /// [`LaunchError::OutOfMemory`].
    pub fn alloc<T>(&self, len: usize) -> Result<Buffer<T>, LaunchError> {
        self.bind()?;
        let bytes = Buffer::<T>::bytes(len);
        self.0.counting.allocation();
        // SAFETY: freed once, in `Buffer::drop`.
        let address = unsafe { result::malloc_sync(bytes) }.map_err(|e| {
            if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                out_of_memory(bytes)
            } else {
                driver("reserving GPU memory")(e)
            }
        })?;
        self.0.usage.reserved(bytes as u64);
        Ok(Buffer {
            device: self.clone(),
            ptr: Ptr::new(address),
            len,
        })
    }

    /// Memory holding a copy of `from`.
    ///
    /// # Errors
    /// As [`Device::alloc`].
    pub fn upload<T: Pod>(&self, from: &[T]) -> Result<Buffer<T>, LaunchError> {
        let buffer = self.alloc(from.len())?;
        self.write(buffer.ptr(), from)?;
        Ok(buffer)
    }

    /// Copies `from` to the device, behind what the stream holds; returns when `from` may be changed again.
    ///
    /// # Errors
    /// The driver's.
    pub fn write<T: Pod>(&self, to: Ptr<T>, from: &[T]) -> Result<(), LaunchError> {
        if from.is_empty() {
            return Ok(());
        }
        self.bind()?;
        let copy = || {
            // SAFETY: the caller owns `from.len()` elements at `to`; pageable memory is staged before the call returns.
            unsafe { result::memcpy_htod_async(to.address(), from, self.0.stream) }
        };
        self.0
            .counting
            .wait(copy)
            .map_err(driver("copying to the GPU"))
    }

    /// Copies `to.len()` elements from the device; waits for the stream.
    ///
    /// # Errors
    /// The driver's, those of earlier kernels among them.
    pub fn read<T: Pod>(&self, from: Ptr<T>, to: &mut [T]) -> Result<(), LaunchError> {
        if to.is_empty() {
            return self.synchronize();
        }
        self.bind()?;
        let copy = || {
            // SAFETY: the caller owns `to.len()` elements at `from`.
            unsafe { result::memcpy_dtoh_async(to, from.address(), self.0.stream) }
        };
        let copied = self.0.counting.wait(copy);
        copied.map_err(driver("copying from the GPU"))?;
        self.synchronize()
    }

    /// Copies within the device.
    ///
    /// # Errors
    /// The driver's.
    pub fn copy<T>(&self, to: Ptr<T>, from: Ptr<T>, len: usize) -> Result<(), LaunchError> {
        self.bind()?;
        // SAFETY: the caller owns both ranges.
        unsafe {
            result::memcpy_dtod_async(
                to.address(),
                from.address(),
                len * size_of::<T>(),
                self.0.stream,
            )
        }
        .map_err(driver("copying on the GPU"))
    }

    /// Copies `rows` rows of `columns` elements within the device, between matrices of other strides (elements).
    ///
    /// # Errors
    /// The driver's.
    pub fn copy_rows<T>(
        &self,
        [to, from]: [Ptr<T>; 2],
        [to_stride, from_stride]: [usize; 2],
        rows: usize,
        columns: usize,
    ) -> Result<(), LaunchError> {
        self.bind()?;
        let kind = sys::CUmemorytype_enum::CU_MEMORYTYPE_DEVICE;
        let size = size_of::<T>();
        let copy = sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: kind,
            srcHost: std::ptr::null(),
            srcDevice: from.address(),
            srcArray: std::ptr::null_mut(),
            srcPitch: from_stride * size,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: kind,
            dstHost: std::ptr::null_mut(),
            dstDevice: to.address(),
            dstArray: std::ptr::null_mut(),
            dstPitch: to_stride * size,
            WidthInBytes: columns * size,
            Height: rows,
        };
        // SAFETY: the caller owns both ranges.
        unsafe { sys::cuMemcpy2DAsync_v2(&raw const copy, self.0.stream) }
            .result()
            .map_err(driver("copying on the GPU"))
    }

    /// Fills `len` elements with one byte.
    ///
    /// # Errors
    /// The driver's.
    pub fn fill<T>(&self, to: Ptr<T>, byte: u8, len: usize) -> Result<(), LaunchError> {
        if len == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the caller owns the range.
        unsafe { result::memset_d8_async(to.address(), byte, len * size_of::<T>(), self.0.stream) }
            .map_err(driver("clearing GPU memory"))
    }

    /// Waits for everything that was launched.
    ///
    /// # Errors
    /// The first error of a kernel.
    pub fn synchronize(&self) -> Result<(), LaunchError> {
        self.bind()?;
        let wait = || {
            // SAFETY: the stream lives as long as `self`.
            unsafe { result::stream::synchronize(self.0.stream) }
        };
        self.0
            .counting
            .wait(wait)
            .map_err(driver("computing on the GPU"))
    }

    /// Whether the stream has passed `event`.
    fn passed(&self, event: sys::CUevent) -> Result<bool, LaunchError> {
        self.bind()?;
        // SAFETY: the handle is valid.
        match unsafe { result::event::query(event) } {
            Ok(()) => Ok(true),
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            Err(e) => Err(driver("computing on the GPU")(e)),
        }
    }

    /// Waits until the stream has passed `event`.
    fn wait_for(&self, event: sys::CUevent) -> Result<(), LaunchError> {
        if self.passed(event)? {
            return Ok(());
        }
        let wait = || {
            // SAFETY: the handle is valid.
            unsafe { result::event::synchronize(event) }
        };
        self.0
            .counting
            .wait(wait)
            .map_err(driver("computing on the GPU"))
    }

    /// Milliseconds that the GPU spends on what `work` launches.
    ///
    /// # Errors
    /// The work's or the driver's.
    pub fn time<E: From<LaunchError>>(
        &self,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<f32, E> {
        self.bind()?;
        let event = || {
            result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)
                .map_err(driver("making an event"))
        };
        let (start, end) = (event()?, event()?);
        let record = |e| {
            // SAFETY: both handles are valid.
            unsafe { result::event::record(e, self.0.stream) }.map_err(driver("timing"))
        };
        record(start)?;
        work()?;
        record(end)?;
        self.wait_for(end)?;
        // SAFETY: valid events, destroyed once.
        let milliseconds = unsafe {
            let milliseconds = result::event::elapsed(start, end).map_err(driver("timing"))?;
            let _ = (result::event::destroy(start), result::event::destroy(end));
            milliseconds
        };
        Ok(milliseconds)
    }

    /// Records what `work` launches as a graph that can be launched again.
    ///
    /// # Errors
    /// The work's or the driver's.
    pub fn record<E: From<LaunchError>>(
        &self,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<Graph, E> {
        self.bind()?;
        // SAFETY: the stream is valid and not capturing: `record` is the only place that captures.
        unsafe {
            result::stream::begin_capture(
                self.0.stream,
                sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
            )
        }
        .map_err(driver("recording a graph"))?;
        let done = work();
        // SAFETY: capture was begun above.
        let graph = unsafe { result::stream::end_capture(self.0.stream) }
            .map_err(driver("recording a graph"));
        done?;
        let graph = graph?;
        self.0.counting.graph();
        let mut exec = std::ptr::null_mut();
        // SAFETY: `graph` is valid and destroyed once; the executable is destroyed in `Graph::drop`.
        unsafe {
            let made = sys::cuGraphInstantiateWithFlags(&raw mut exec, graph, 0).result();
            let _ = result::graph::destroy(graph);
            made.map_err(driver("making a graph"))?;
        }
        Ok(Graph {
            device: self.clone(),
            exec,
        })
    }

    /// Looks a kernel up; loads its family's module on first use. Ensures that it may use `shared` bytes.
    fn function(&self, kernel: Kernel, shared: u32) -> Result<sys::CUfunction, LaunchError> {
        let mut known = self
            .0
            .functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = known.functions.get(&kernel)
            && function.shared >= shared
        {
            return Ok(function.handle.0);
        }
        let module = match known.modules.get(kernel.family) {
            Some(module) => module.0,
            None => {
                let image = FATBINS.iter().find(|(family, _)| *family == kernel.family);
                let (_, image) = image.ok_or_else(|| {
                    LaunchError::Unsupported(format!(
                        "this build has no `{}` kernels for any GPU",
                        kernel.family
                    ))
                })?;
                // SAFETY: a whole fatbin, as the driver wants it.
                let module = unsafe { result::module::load_data(image.as_ptr().cast::<c_void>()) }
                    .map_err(|e| {
                        if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                            return out_of_memory(image.len());
                        }
                        let (major, minor) = self.0.gpu.capability;
                        LaunchError::Driver {
                            doing: format!(
                                "loading the `{}` kernels for compute capability {major}.{minor}",
                                kernel.family
                            ),
                            message: words(&e),
                        }
                    })?;
                known.modules.insert(kernel.family, Handle(module));
                module
            }
        };
        let name =
            CString::new(kernel.name).map_err(|e| LaunchError::Unsupported(e.to_string()))?;
        // SAFETY: the module is loaded and never unloaded.
        let function =
            unsafe { result::module::get_function(module, name) }.map_err(driver(kernel.name))?;
        // Static and dynamic together need it above 48 KiB; asking for less does no harm.
        if shared > 0 {
            // SAFETY: a valid function.
            unsafe {
                result::function::set_function_attribute(
                    function,
                    sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    shared as i32,
                )
            }
            .map_err(driver(kernel.name))?;
        }
        let handle = Handle(function);
        known.functions.insert(kernel, Function { handle, shared });
        Ok(function)
    }
}

impl Launcher for Device {
    fn gpu(&self) -> &Gpu {
        &self.0.gpu
    }

    fn launch<P: Pod>(
        &self,
        kernel: Kernel,
        geometry: Geometry,
        params: &P,
    ) -> Result<(), LaunchError> {
        let Geometry {
            grid: [x, y, z],
            block,
            shared,
        } = geometry;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        self.bind()?;
        self.0.counting.launch();
        let function = self.function(kernel, shared)?;
        let mut arguments = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        // SAFETY: the kernel takes one struct of this layout (sizes are asserted on both sides); the driver copies it before it returns.
        unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (block, 1, 1),
                shared,
                self.0.stream,
                &mut arguments,
            )
        }
        .map_err(driver(kernel.name))
    }

    fn tensor_map(
        &self,
        matrix: Ptr<half::bf16>,
        rows: usize,
        columns: usize,
        stride: usize,
        box_rows: u32,
        box_columns: u32,
    ) -> Result<TensorMap, LaunchError> {
        self.bind()?;
        let mut map = std::mem::MaybeUninit::<sys::CUtensorMap>::uninit();
        let (sizes, strides) = ([columns as u64, rows as u64], [2 * stride as u64]);
        let (box_sizes, steps) = ([box_columns, box_rows], [1u32, 1]);
        let swizzle = if box_columns == 64 {
            sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B
        } else {
            sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_NONE
        };
        // SAFETY: all arrays have the rank's length; the driver only encodes the address.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                map.as_mut_ptr(),
                sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2,
                matrix.address() as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                box_sizes.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(driver("describing a matrix to the copy engine"))?;
        // SAFETY: written above; both types are 128 bytes of plain data.
        Ok(unsafe { std::mem::transmute::<sys::CUtensorMap, TensorMap>(map.assume_init()) })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: the last user of stream and context; errors at the end of the process are of no use to anyone.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::stream::synchronize(self.stream);
            let known = self
                .functions
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner);
            for module in known.modules.values() {
                let _ = result::module::unload(module.0);
            }
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}
