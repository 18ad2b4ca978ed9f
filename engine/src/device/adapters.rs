//! Adapters of wgpu: finds and opens them, and collects their errors; runs nothing.

use std::sync::{Arc, Mutex, PoisonError};

use super::{DeviceChoice, DeviceInfo, block_on, refuse_gpu};
use crate::LoadError;

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
