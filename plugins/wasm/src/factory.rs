//! Factory of the filter: reads and compiles modules, and starts each with its configuration, when a file is checked and when
//! it is applied. Owns the engine, which is made for the first module.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use parking_lot::Mutex;
use spillway_filter::{BuildContext, FieldError, Filter, FilterFactory, define};

use crate::compiled::{Compiled, MAX_MODULE};
use crate::config::{Wasm, bytes_of, mistakes, server};
use crate::failure::StartError;
use crate::filter::WasmFilter;
use crate::host::Host;
use crate::instance::Instance;
use crate::pool::Pool;
use crate::shared::Shared;
use crate::state::Facts;

/// Most instances of a filter that does not say how many.
const MOST_INSTANCES: usize = 16;

/// Engine, once there is one.
#[derive(Clone, Default)]
pub(crate) struct Modules(Arc<Mutex<Option<Arc<Host>>>>);

impl Modules {
    fn host(&self) -> Result<Arc<Host>, StartError> {
        let mut host = self.0.lock();
        if let Some(host) = &*host {
            return Ok(host.clone());
        }
        Ok(host.insert(Arc::new(Host::new()?)).clone())
    }

    /// Reads and compiles the module of a filter.
    fn compile(&self, config: &Wasm) -> Result<(Arc<Host>, Arc<Compiled>), StartError> {
        let wrong = |why: &dyn std::fmt::Display| StartError::Module(format!("cannot be read: {why}"));
        let length = std::fs::metadata(&*config.module).map_err(|e| wrong(&e))?.len();
        if length > MAX_MODULE {
            let most = MAX_MODULE >> 20;
            return Err(StartError::Module(format!("found {length} bytes; expected a module of at most {most} MiB")));
        }
        let bytes = std::fs::read(&*config.module).map_err(|e| wrong(&e))?;
        let host = self.host()?;
        let module = host.compile(&bytes)?;
        Ok((host, module))
    }
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    let modules = Modules::default();
    let of_build = modules.clone();
    define("wasm", move |config: &Wasm| check(&modules, config), move |config: Wasm, cx| build(&of_build, &config, cx))
}

fn place(config: &Wasm, error: &StartError) -> FieldError {
    let file = config.module.display();
    match error {
        StartError::Module(reason) => FieldError::at(["module"], format!("{file}: {reason}")),
        StartError::Config(reason) => FieldError::at(["config"], format!("{file}: {reason}")),
    }
}

fn check(modules: &Modules, config: &Wasm) -> Vec<FieldError> {
    let errors = mistakes(config);
    // A missing file is reported by its path, as for every file.
    if !errors.is_empty() || !config.module.is_file() {
        return errors;
    }
    let tried = modules.compile(config).and_then(|(host, module)| {
        Instance::start(&host, &module, Arc::new(facts(config, "", Arc::default()))).map(|_| ())
    });
    tried.err().map(|error| place(config, &error)).into_iter().collect()
}

fn facts(config: &Wasm, route: &str, shared: Arc<Shared>) -> Facts {
    let name = config.module.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Facts {
        name,
        root_id: config.root_id.clone(),
        route: route.to_owned(),
        config: bytes_of(&config.config),
        calls: config.calls.iter().filter_map(|(name, url)| Some((name.clone(), server(url)?))).collect(),
        memory: usize::try_from(config.limits.memory.0).unwrap_or(usize::MAX),
        time: config.limits.time.0,
        wait: config.limits.wait.0,
        shared,
    }
}

fn build(modules: &Modules, config: &Wasm, cx: &BuildContext<'_>) -> Result<Arc<dyn Filter>, FieldError> {
    let (host, module) = modules.compile(config).map_err(|error| place(config, &error))?;
    if !config.calls.is_empty() {
        cx.http.prepare();
    }
    let instances = config
        .instances
        .map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from).min(MOST_INSTANCES), usize::from);
    // Data is shared by the filters of a file of modules, and outlives a reload.
    let shared = cx.states.get_or_insert::<Shared>(&config.module.to_string_lossy(), Shared::default);
    let facts = facts(config, cx.route, shared);
    let mut hasher = DefaultHasher::new();
    let limits = (facts.memory, facts.time, facts.wait);
    (module.digest(), &facts.config, &facts.calls, limits, config.on_failure, instances).hash(&mut hasher);
    let key = format!("{}\n{}\n{}\n{:x}", cx.route, config.module.display(), config.root_id, hasher.finish());
    // Instances of an unchanged filter are kept, with the streams in them and their crashes.
    let kept = cx.states.get_or_insert::<Kept>(&key, Kept::default);
    let mut pool = kept.0.lock();
    let pool = match &*pool {
        Some(pool) => pool.clone(),
        None => {
            let made = Pool::new(host, module, Arc::new(facts), config.on_failure, instances);
            pool.insert(Arc::new(made.map_err(|error| place(config, &error))?)).clone()
        }
    };
    let (request_body, response_body) = (config.request_body, config.response_body);
    Ok(Arc::new(WasmFilter { pool, http: cx.http.clone(), request_body, response_body, _kept: kept.clone() }))
}

/// Instances that outlive a reload.
#[derive(Default)]
pub(crate) struct Kept(Mutex<Option<Arc<Pool>>>);
