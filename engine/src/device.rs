//! Choice of the device for a model, and the reason: adapters of wgpu. Opens the device and collects its errors; runs
//! nothing. The CPU needs no opening: see [`crate::exec::cpu`].

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::LoadError;

/// Value of [`DeviceInfo::kind`] for the CPU.
pub(crate) const CPU: &str = "CPU";

/// Requested device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The best GPU present, in the order discrete, integrated, virtual; else the CPU.
    #[default]
    Auto,
    /// The CPU's own vector units.
    Cpu,
    /// Software Vulkan on the CPU: slow, for trying the GPU code without a GPU.
    Software,
    /// The first adapter whose name contains this text, ignoring case.
    Name(String),
    /// The adapter at this index of the list that the log prints.
    Index(usize),
}

/// Device that a model runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Name of the adapter or the processor.
    pub name: String,
    /// `CPU`, `Vulkan`, `Metal`, ...
    pub backend: String,
    /// `CPU`, `discrete GPU`, `integrated GPU`, `virtual GPU`, `software`, `other`.
    pub kind: &'static str,
    /// The driver and its version; for a CPU its vector unit, such as `AVX-512 VNNI`, and the number of threads.
    pub driver: String,
    /// Reason for the choice.
    pub reason: String,
}

/// An open device.
pub(crate) struct Opened {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) info: DeviceInfo,
    pub(crate) faults: DeviceFaults,
    pub(crate) subgroups: bool,
    /// Names adapter and driver: key of the pipeline cache that is kept between runs.
    pub(crate) identity: String,
}

/// Faults that the device reported asynchronously: validation errors, lack of memory, loss of the device.
#[derive(Clone, Default)]
pub(crate) struct DeviceFaults(Arc<Mutex<Option<String>>>);

impl DeviceFaults {
    pub(crate) fn record(&self, what: &str) {
        self.report(what.to_owned());
    }

    fn report(&self, what: String) {
        tracing::error!(event = "device_fault", reason = %what);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
    }

    /// Takes the first report since the last call.
    pub(crate) fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Device or file whose first step has not returned. A retry would block another thread and hold the memory of
/// another model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HangSource {
    /// A GPU, by name: blocks every model on it.
    Gpu(String),
    /// A model file on the CPU. The CPU itself is never lost: a hang comes from reading weights off a disk that has
    /// gone, or from swapping. Models of other files must not be refused for it.
    File(PathBuf),
}

impl HangSource {
    /// Entry for a model of this file on this device.
    pub(crate) fn on(device: &DeviceInfo, source: &Path) -> Self {
        if device.kind == CPU { Self::File(source.to_owned()) } else { Self::Gpu(device.name.clone()) }
    }
}

/// One entry for each thread that has not returned from a first step.
static HANGING: Mutex<Vec<HangSource>> = Mutex::new(Vec::new());

/// Entry of one thread in [`HANGING`]; removed on drop, while the entries of other threads remain.
#[derive(Debug)]
pub(crate) struct HangMark(HangSource);

impl HangMark {
    pub(crate) fn new(source: HangSource) -> Self {
        HANGING.lock().unwrap_or_else(PoisonError::into_inner).push(source.clone());
        Self(source)
    }
}

impl Drop for HangMark {
    fn drop(&mut self) {
        let mut all = HANGING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = all.iter().position(|source| *source == self.0) {
            all.swap_remove(at);
        }
    }
}

/// True while any first step has not returned.
pub(crate) fn anything_hangs() -> bool {
    !HANGING.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
}

/// Returns [`LoadError::Hangs`] if this entry is marked as hanging.
pub(crate) fn refuse(source: &HangSource, device: &str, kind: &'static str) -> Result<(), LoadError> {
    match HANGING.lock().unwrap_or_else(PoisonError::into_inner).contains(source) {
        true => Err(LoadError::Hangs { device: device.to_owned(), kind }),
        false => Ok(()),
    }
}

/// Returns [`LoadError::Hangs`] if this GPU is marked as hanging.
pub(crate) fn refuse_gpu(name: &str, kind: &'static str) -> Result<(), LoadError> {
    refuse(&HangSource::Gpu(name.to_owned()), name, kind)
}

fn kind(device: wgpu::DeviceType) -> (u8, &'static str) {
    match device {
        wgpu::DeviceType::DiscreteGpu => (0, "discrete GPU"),
        wgpu::DeviceType::IntegratedGpu => (1, "integrated GPU"),
        wgpu::DeviceType::VirtualGpu => (2, "virtual GPU"),
        wgpu::DeviceType::Other => (3, "other"),
        wgpu::DeviceType::Cpu => (4, "software"),
    }
}

const INSTALL: &str = "install a Vulkan driver (software Vulkan: `apt-get install libvulkan1 mesa-vulkan-drivers`), or \
    use `device: cpu`";

/// Reason to skip the search for adapters, which takes some tenths of a second: a Linux machine without any GPU
/// device. `None` elsewhere.
pub(crate) fn no_gpu() -> Option<&'static str> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    // Device files of kernel drivers, of Nvidia's driver, of WSL.
    let is_gpu = |name: &str| name.starts_with("renderD") || name.starts_with("nvidia") || name == "dxg";
    let has = |folder: &str| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.file_name().to_str().is_some_and(is_gpu))
    };
    (!has("/dev") && !has("/dev/dri")).then_some("this machine has no GPU device")
}

/// Finds the requested adapter without opening it.
pub(crate) fn find(choice: &DeviceChoice) -> Result<DeviceInfo, LoadError> {
    let (_, infos) = adapters();
    let (index, reason) = choose(choice, &infos)?;
    let info = infos.get(index).ok_or_else(|| LoadError::NoDevice(format!("no adapter: {INSTALL}")))?;
    Ok(describe(info, reason))
}

fn describe(info: &wgpu::AdapterInfo, reason: String) -> DeviceInfo {
    DeviceInfo {
        name: info.name.clone(),
        backend: format!("{:?}", info.backend),
        kind: kind(info.device_type).1,
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        reason,
    }
}

fn adapters() -> (Vec<wgpu::Adapter>, Vec<wgpu::AdapterInfo>) {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::PRIMARY;
    descriptor.flags = wgpu::InstanceFlags::empty();
    let instance = wgpu::Instance::new(descriptor);
    let adapters = block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    let infos: Vec<_> = adapters.iter().map(wgpu::Adapter::get_info).collect();
    for (index, info) in infos.iter().enumerate() {
        tracing::debug!(event = "adapter", index, name = %info.name, kind = kind(info.device_type).1, driver = %info.driver_info);
    }
    (adapters, infos)
}

/// Opens the requested adapter.
pub(crate) fn open(choice: &DeviceChoice) -> Result<Opened, LoadError> {
    let (adapters, infos) = adapters();
    let (index, reason) = choose(choice, &infos)?;
    let nothing = || LoadError::NoDevice(format!("no adapter: {INSTALL}"));
    let (adapter, info) = (adapters.get(index).ok_or_else(nothing)?, infos.get(index).ok_or_else(nothing)?);
    refuse_gpu(&info.name, kind(info.device_type).1)?;
    let available = adapter.features();
    let subgroups = available.contains(wgpu::Features::SUBGROUP) && info.subgroup_min_size >= 8;
    let mut features = wgpu::Features::IMMEDIATES;
    if subgroups {
        features |= wgpu::Features::SUBGROUP;
    }
    features |= available & wgpu::Features::PIPELINE_CACHE;
    let refused = |reason: String| LoadError::Device { device: info.name.clone(), reason };
    if !available.contains(wgpu::Features::IMMEDIATES) {
        return Err(refused("the adapter has no immediates (push constants); choose another one with `device`".into()));
    }
    let request = wgpu::DeviceDescriptor {
        label: Some("spillway"),
        required_features: features,
        required_limits: adapter.limits(),
        ..wgpu::DeviceDescriptor::default()
    };
    let (device, queue) = block_on(adapter.request_device(&request)).map_err(|e| refused(e.to_string()))?;
    let faults = DeviceFaults::default();
    let recorded = faults.clone();
    device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| recorded.report(e.to_string())));
    let recorded = faults.clone();
    device.set_device_lost_callback(move |reason, message| {
        if reason != wgpu::DeviceLostReason::Destroyed {
            recorded.report(format!("the device was lost: {message}"));
        }
    });
    let described = describe(info, reason);
    let (driver, version) = (&described.driver, env!("CARGO_PKG_VERSION"));
    let identity = format!("{}|{driver}|{}|{:?}|{version}", info.name, info.device, info.backend);
    Ok(Opened { device, queue, info: described, faults, subgroups, identity })
}

fn choose(choice: &DeviceChoice, infos: &[wgpu::AdapterInfo]) -> Result<(usize, String), LoadError> {
    let list = || infos.iter().map(|i| format!("`{}`", i.name)).collect::<Vec<_>>().join(", ");
    if infos.is_empty() {
        return Err(LoadError::NoDevice(format!("this machine has no adapter that can run a model: {INSTALL}")));
    }
    match choice {
        DeviceChoice::Auto | DeviceChoice::Cpu => {
            let real = infos.iter().enumerate().filter(|(_, info)| info.device_type != wgpu::DeviceType::Cpu);
            real.min_by_key(|(_, info)| kind(info.device_type).0)
                .map(|(index, info)| {
                    (index, format!("device: auto took the best of {}: {}", infos.len(), kind(info.device_type).1))
                })
                .ok_or_else(|| LoadError::NoDevice(format!("no GPU found, only {}", list())))
        }
        DeviceChoice::Software => infos
            .iter()
            .position(|info| info.device_type == wgpu::DeviceType::Cpu)
            .map(|index| (index, "device: software".to_owned()))
            .ok_or_else(|| {
                LoadError::NoDevice(format!(
                    "no software Vulkan found, only {}: `apt-get install mesa-vulkan-drivers`",
                    list()
                ))
            }),
        DeviceChoice::Name(name) => infos
            .iter()
            .position(|info| info.name.to_lowercase().contains(&name.to_lowercase()))
            .map(|index| (index, format!("device: {{name: {name}}}")))
            .ok_or_else(|| {
                LoadError::NoDevice(format!("no adapter has `{name}` in its name; expected one of {}", list()))
            }),
        DeviceChoice::Index(index) if *index < infos.len() => Ok((*index, format!("device: {{index: {index}}}"))),
        DeviceChoice::Index(index) => {
            Err(LoadError::NoDevice(format!("no adapter {index}; expected 0 to {}: {}", infos.len() - 1, list())))
        }
    }
}

/// Blocks this thread until a future is ready. Futures of wgpu on native targets are ready at once or woken by a
/// driver's thread.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut cx = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut cx) {
            std::task::Poll::Ready(output) => return output,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_hangs_is_left_alone_until_all_who_are_inside_have_come_back() {
        let card = || HangSource::Gpu("a card".into());
        assert!(refuse_gpu("a card", "discrete GPU").is_ok());
        let (first, second) = (HangMark::new(card()), HangMark::new(card()));
        let told = refuse_gpu("a card", "discrete GPU").unwrap_err();
        assert!(matches!(told, LoadError::Hangs { .. }), "{told}");
        assert!(refuse_gpu("another", "discrete GPU").is_ok());
        drop(second);
        assert!(refuse_gpu("a card", "discrete GPU").is_err(), "the other is still inside");
        drop(first);
        assert!(refuse_gpu("a card", "discrete GPU").is_ok());
    }

    #[test]
    fn on_the_processor_hangs_the_model_of_a_file() {
        let file = |name: &str| HangSource::File(name.into());
        let mark = HangMark::new(file("far/model.gguf"));
        assert!(anything_hangs());
        let told = refuse(&file("far/model.gguf"), "a processor", "CPU").unwrap_err().to_string();
        assert!(told.contains("`a processor` (CPU)") && told.contains("this file"), "{told}");
        assert!(refuse(&file("near/model.gguf"), "a processor", "CPU").is_ok());
        assert!(refuse_gpu("far/model.gguf", "discrete GPU").is_ok());
        drop(mark);
        assert!(refuse(&file("far/model.gguf"), "a processor", "CPU").is_ok());
    }
}
