//! The kernels for programs that live in `cust` 0.3: the same machine code, launched in their context and on their stream.
//!
//! Holds [`CustLauncher`], nothing else: memory, events and graphs stay the program's own (a `DeviceBuffer`'s address makes a [`Ptr`]).
//! `cust` has neither cuTensorMapEncodeTiled nor cuLaunchKernelEx, so the kernels that copy by TMA are out of its reach: [`Gpu::hopper`] is
//! false here and every op takes its portable form. Invariant: a launch makes the launcher's context current first, as `cust` itself does not.
//!
//! Feature `cust` links libcuda: such a program does not start without a driver, and building it takes `CUDA_LIBRARY_PATH` (README.md says how).

use crate::fatbins::FATBINS;
use crate::launch::{Geometry, Gpu, Kernel, LaunchError, Launcher, Ptr, TensorMap};
use bytemuck::Pod;
use cust::context::{Context, CurrentContext};
use cust::error::CudaError;
use cust::module::Module;
use cust::stream::Stream;
use cust::sys;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

type Attribute = sys::CUdevice_attribute_enum;

/// Launches this crate's kernels in a `cust` context.
pub struct CustLauncher<'a> {
    context: &'a Context,
    stream: &'a Stream,
    gpu: Gpu,
    modules: Mutex<HashMap<&'static str, Module>>,
}

/// Dynamic shared memory that a kernel may have without being asked for, bytes.
const SHARED_AT_ONCE: u32 = 48 << 10;

fn driver(doing: &str) -> impl FnOnce(CudaError) -> LaunchError + '_ {
    move |e| LaunchError::Driver {
        doing: doing.to_string(),
        message: format!("{e} ({e:?})"),
    }
}

/// What a raw call of the driver answered: `cust` keeps its own translation to itself.
fn answer(doing: &str, code: sys::CUresult) -> Result<(), LaunchError> {
    match code {
        sys::CUresult::CUDA_SUCCESS => Ok(()),
        code => Err(LaunchError::Driver {
            doing: doing.to_string(),
            message: format!("{code:?}"),
        }),
    }
}

impl<'a> CustLauncher<'a> {
    /// Kernels go to `stream`, which belongs to `context`. Modules are loaded on first use and unloaded with the launcher.
    ///
    /// # Errors
    /// A GPU older than compute capability 8.0; the driver's refusal.
    pub fn new(context: &'a Context, stream: &'a Stream) -> Result<Self, LaunchError> {
        CurrentContext::set_current(context).map_err(driver("using the GPU"))?;
        let asking = "asking the GPU for its facts";
        let device = CurrentContext::get_device().map_err(driver(asking))?;
        let attribute = |which: Attribute| -> Result<u32, LaunchError> {
            let mut value = 0;
            // SAFETY: writes one int; the device is that of a live context.
            let code = unsafe { sys::cuDeviceGetAttribute(&raw mut value, which, device.as_raw()) };
            answer(asking, code)?;
            Ok(value.max(0) as u32)
        };
        let gpu = Gpu {
            name: device.name().map_err(driver(asking))?,
            capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_per_block: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
            l2: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
            memory: device.total_memory().map_err(driver(asking))? as u64,
            hopper: false,
        };
        if gpu.capability < (8, 0) {
            let (name, (major, minor)) = (gpu.name, gpu.capability);
            return Err(LaunchError::Unsupported(format!(
                "{name} has compute capability {major}.{minor}; the kernels need 8.0 (Ampere) or newer"
            )));
        }
        Ok(CustLauncher {
            context,
            stream,
            gpu,
            modules: Mutex::default(),
        })
    }

    fn bind(&self) -> Result<(), LaunchError> {
        CurrentContext::set_current(self.context).map_err(driver("using the GPU"))
    }
}

fn load(family: &str) -> Result<Module, LaunchError> {
    let image = FATBINS.iter().find(|(name, _)| *name == family);
    let (_, image) = image.ok_or_else(|| {
        LaunchError::Unsupported(format!("this build has no `{family}` kernels for any GPU"))
    })?;
    Module::from_fatbin(image, &[]).map_err(driver(&format!("loading the `{family}` kernels")))
}

impl Launcher for CustLauncher<'_> {
    fn gpu(&self) -> &Gpu {
        &self.gpu
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
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let module = match modules.entry(kernel.family) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => new.insert(load(kernel.family)?),
        };
        let function = module
            .get_function(kernel.name)
            .map_err(driver(kernel.name))?;
        if shared > SHARED_AT_ONCE {
            let most =
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function of a loaded module; `cust` itself has no words for this attribute.
            let code = unsafe { sys::cuFuncSetAttribute(function.to_raw(), most, shared as i32) };
            answer(kernel.name, code)?;
        }
        let arguments = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        // SAFETY: the kernel takes one struct of this layout (sizes are asserted on both sides); the driver copies it before it returns.
        unsafe {
            self.stream
                .launch(&function, (x, y, z), block, shared, &arguments)
        }
        .map_err(driver(kernel.name))
    }

    fn tensor_map(
        &self,
        _: Ptr<half::bf16>,
        _: usize,
        _: usize,
        _: usize,
        _: u32,
        _: u32,
    ) -> Result<TensorMap, LaunchError> {
        Err(LaunchError::Unsupported(
            "`cust` cannot describe a matrix to the copy engine (it has no cuTensorMapEncodeTiled): launch the Hopper kernels through \
             `device::Device`, or the portable form of this op"
                .to_string(),
        ))
    }
}

impl Drop for CustLauncher<'_> {
    fn drop(&mut self) {
        // The modules are unloaded next: what the stream still holds of them is finished first. Errors are of no use to anyone here.
        let _ = self.bind();
        let _ = self.stream.synchronize();
    }
}
