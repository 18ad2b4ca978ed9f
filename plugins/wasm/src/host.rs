//! Engine of all modules of a process: compiles them once for the same bytes, and ends calls that take too long by a clock of
//! its own. The clock is a thread that this owns; it ticks while modules are called, and sleeps otherwise.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use wasmtime::{Config, Engine, Linker};

use crate::compiled::Compiled;
use crate::failure::StartError;
use crate::state::State;

/// Time between ticks: the resolution of a module's time.
const TICK: Duration = Duration::from_millis(1);
/// Ticks without a new call after which the clock sleeps: longer than the longest call.
const IDLE_TICKS: u32 = 3_000;
/// Stack of a module. The threads that call one have 2 MiB.
const MAX_STACK: usize = 256 << 10;
/// Time for which a compiled module is kept that no filter holds: a reload checks it first, and builds its filter then.
const KEPT: Duration = Duration::from_secs(60);

/// Engine, its clock, and the modules that were compiled.
pub(crate) struct Host {
    engine: Engine,
    linker: Linker<State>,
    clock: Arc<Clock>,
    ticking: Option<JoinHandle<()>>,
    modules: Mutex<HashMap<[u8; 32], Kept>>,
}

struct Kept {
    module: Arc<Compiled>,
    used: Instant,
}

/// State of the clock.
#[derive(Default)]
struct Clock {
    ends: AtomicBool,
    sleeps: AtomicBool,
    /// Calls so far.
    calls: AtomicU64,
}

impl Host {
    /// Starts an engine and its clock.
    ///
    /// # Errors
    ///
    /// The processor or the system lacks what the engine needs, or no thread starts.
    pub(crate) fn new() -> Result<Self, StartError> {
        let wrong = |e: &dyn std::fmt::Display| StartError::Module(format!("no module can run here: {e}"));
        let mut config = Config::new();
        config.epoch_interruption(true).max_wasm_stack(MAX_STACK).parallel_compilation(true);
        let engine = Engine::new(&config).map_err(|e| wrong(&e))?;
        let linker = crate::abi::linker(&engine).map_err(|e| wrong(&e))?;
        let clock = Arc::<Clock>::default();
        let (ticked, of_thread) = (engine.clone(), clock.clone());
        let ticking = std::thread::Builder::new().name("wasm-clock".to_owned());
        let ticking = ticking.spawn(move || tick(&ticked, &of_thread)).map_err(|e| wrong(&e))?;
        Ok(Self { engine, linker, clock, ticking: Some(ticking), modules: Mutex::default() })
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn linker(&self) -> &Linker<State> {
        &self.linker
    }

    /// Ticks after which a call that begins now has taken `time`; wakes the clock.
    pub(crate) fn begin_call(&self, time: Duration) -> u64 {
        self.clock.calls.fetch_add(1, Ordering::SeqCst);
        if self.clock.sleeps.load(Ordering::SeqCst)
            && let Some(ticking) = &self.ticking
        {
            ticking.thread().unpark();
        }
        // The tick that is under way counts for nothing.
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// Compiles a module, or returns it where its bytes were compiled before.
    ///
    /// # Errors
    ///
    /// The bytes are no module, or one that cannot run here.
    pub(crate) fn compile(&self, bytes: &[u8]) -> Result<Arc<Compiled>, StartError> {
        let digest: [u8; 32] = Sha256::digest(bytes).into();
        let now = Instant::now();
        {
            let mut modules = self.modules.lock();
            if let Some(kept) = modules.get_mut(&digest) {
                kept.used = now;
                return Ok(kept.module.clone());
            }
        }
        let module = Arc::new(Compiled::new(self, bytes, digest)?);
        let mut modules = self.modules.lock();
        modules.retain(|_, kept| Arc::strong_count(&kept.module) > 1 || now.duration_since(kept.used) < KEPT);
        modules.insert(digest, Kept { module: module.clone(), used: now });
        Ok(module)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.clock.ends.store(true, Ordering::SeqCst);
        if let Some(ticking) = self.ticking.take() {
            ticking.thread().unpark();
            let _ = ticking.join();
        }
    }
}

fn tick(engine: &Engine, clock: &Clock) {
    let (mut seen, mut idle) = (0, 0);
    while !clock.ends.load(Ordering::SeqCst) {
        std::thread::sleep(TICK);
        engine.increment_epoch();
        let calls = clock.calls.load(Ordering::SeqCst);
        idle = if calls == seen { idle + 1 } else { 0 };
        seen = calls;
        if idle > IDLE_TICKS {
            clock.sleeps.store(true, Ordering::SeqCst);
            // A call that began before it could see that the clock sleeps is seen here.
            if clock.calls.load(Ordering::SeqCst) == seen && !clock.ends.load(Ordering::SeqCst) {
                std::thread::park();
            }
            clock.sleeps.store(false, Ordering::SeqCst);
            idle = 0;
        }
    }
}
