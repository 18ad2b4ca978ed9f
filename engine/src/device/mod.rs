//! Choice of the device for a model, and the reason. The CPU needs no opening: see [`crate::exec::cpu`].

#[cfg(feature = "gpu")]
mod adapters;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

#[cfg(feature = "gpu")]
pub(crate) use adapters::{DeviceFaults, Opened, find, open};

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
#[cfg(any(test, feature = "gpu"))]
pub(crate) fn refuse_gpu(name: &str, kind: &'static str) -> Result<(), LoadError> {
    refuse(&HangSource::Gpu(name.to_owned()), name, kind)
}

/// Reason to skip the search for adapters, which takes some tenths of a second: a build without GPU support, or a Linux machine
/// without any GPU device. `None` elsewhere.
pub(crate) fn no_gpu() -> Option<&'static str> {
    if !cfg!(feature = "gpu") {
        return Some("this build has no GPU support");
    }
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

/// Refusal of a GPU by a build that has no support for one.
#[cfg(not(feature = "gpu"))]
pub(crate) fn unsupported() -> LoadError {
    let why =
        "this build has no GPU support: write `device: cpu`, or build with the feature `gpu`, which is on by default";
    LoadError::NoDevice(why.to_owned())
}

/// As with GPU support, where it would look for the requested adapter.
#[cfg(not(feature = "gpu"))]
pub(crate) fn find(_: &DeviceChoice) -> Result<DeviceInfo, LoadError> {
    Err(unsupported())
}

/// Blocks this thread until a future is ready. Futures of wgpu on native targets are ready at once or woken by a
/// driver's thread.
#[cfg(any(test, feature = "gpu"))]
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
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
