//! Choice of the executor for a model, and the reason: a GPU through wgpu, or the CPU.

use crate::artifact::ModelFile;
use crate::device::{self, CPU, DeviceChoice, HangSource};
use crate::exec::cpu::{Cores, Cpu, CpuUnit};
#[cfg(feature = "gpu")]
use crate::exec::gpu::Gpu;
use crate::exec::{Executor, Sizes};
use crate::{DeviceInfo, LoadError, LoadOptions};

/// A model with the executor that holds its weights.
pub(super) struct ModelOnDevice<M> {
    pub(super) model: M,
    pub(super) executor: Box<dyn Executor>,
    pub(super) device: DeviceInfo,
}

/// Finds the requested device and loads the weights with `give`. With [`DeviceChoice::Auto`] a GPU that refuses is
/// replaced by the CPU.
pub(super) fn load<M>(
    file: &ModelFile,
    sizes: Sizes,
    options: &LoadOptions,
    give: impl Fn(&mut dyn Executor) -> Result<M, LoadError>,
) -> Result<ModelOnDevice<M>, LoadError> {
    let target = match &options.device {
        DeviceChoice::Cpu => on_cpu(file, sizes, options, "device: cpu".into(), &give)?,
        DeviceChoice::Auto => match device::no_gpu() {
            Some(why) => on_cpu(file, sizes, options, format!("device: auto, {why}"), &give)?,
            None => match on_gpu(sizes, options, &give) {
                Ok(target) => target,
                Err(LoadError::NoDevice(why)) => on_cpu(file, sizes, options, format!("device: auto, {why}"), &give)?,
                Err(e) => {
                    tracing::warn!(event = "gpu_refused", model = %options.name, reason = %e, instead = "CPU");
                    on_cpu(file, sizes, options, format!("device: auto, and the GPU refused: {e}"), &give)?
                }
            },
        },
        _ => on_gpu(sizes, options, &give)?,
    };
    let DeviceInfo { name, kind, driver, reason, .. } = &target.device;
    tracing::info!(event = "device", model = %options.name, device = %name, kind, driver = %driver, reason = %reason);
    Ok(target)
}

/// Device that would be tried first, without opening it.
pub(crate) fn find(choice: &DeviceChoice) -> Result<DeviceInfo, LoadError> {
    let cpu = |reason: String| {
        let unit = CpuUnit::best();
        let driver = format!("{}, {} threads by default", unit.name(), Cores::here().threads());
        DeviceInfo { name: processor(), backend: CPU.into(), kind: CPU, driver, reason }
    };
    match choice {
        DeviceChoice::Cpu => Ok(cpu("device: cpu".into())),
        DeviceChoice::Auto => match device::no_gpu() {
            Some(why) => Ok(cpu(format!("device: auto, {why}"))),
            None => match device::find(choice) {
                Err(LoadError::NoDevice(why)) => Ok(cpu(format!("device: auto, {why}"))),
                found => found,
            },
        },
        _ => device::find(choice),
    }
}

#[cfg(not(feature = "gpu"))]
fn on_gpu<M>(
    _: Sizes,
    _: &LoadOptions,
    _: &dyn Fn(&mut dyn Executor) -> Result<M, LoadError>,
) -> Result<ModelOnDevice<M>, LoadError> {
    Err(device::unsupported())
}

#[cfg(feature = "gpu")]
fn on_gpu<M>(
    sizes: Sizes,
    options: &LoadOptions,
    give: &dyn Fn(&mut dyn Executor) -> Result<M, LoadError>,
) -> Result<ModelOnDevice<M>, LoadError> {
    let opened = device::open(&options.device)?;
    let device = opened.info.clone();
    let mut executor = Box::new(Gpu::new(opened, sizes, options.cache_dir.clone(), false)?);
    let model = give(executor.as_mut())?;
    executor.ready()?;
    Ok(ModelOnDevice { model, executor, device })
}

fn on_cpu<M>(
    file: &ModelFile,
    sizes: Sizes,
    options: &LoadOptions,
    reason: String,
    give: &dyn Fn(&mut dyn Executor) -> Result<M, LoadError>,
) -> Result<ModelOnDevice<M>, LoadError> {
    device::refuse(&HangSource::File(options.source.clone()), &processor(), CPU)?;
    let unit = options.cpu.unit.unwrap_or_else(CpuUnit::best);
    let threads = {
        let here = Cores::here();
        options.cpu.cores.map_or_else(|| here.threads(), |cores| cores.get().min(here.logical))
    };
    let mut executor = Box::new(Cpu::new(unit, threads, sizes)?);
    executor.forget_with(file.page_releaser());
    let model = give(executor.as_mut())?;
    executor.ready()?;
    let threads = executor.threads();
    let driver = format!("{}, {threads} {}", unit.name(), if threads == 1 { "thread" } else { "threads" });
    let device = DeviceInfo { name: processor(), backend: CPU.into(), kind: CPU, driver, reason };
    Ok(ModelOnDevice { model, executor, device })
}

/// Name of the CPU, as the system reports it.
fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}
