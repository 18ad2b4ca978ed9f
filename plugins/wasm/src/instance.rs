//! An instance of a module: starts it, and calls its hooks, each within its time.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::{Store, TypedFunc, WasmParams, WasmResults};

use crate::abi::wasi::Exit;
use crate::compiled::Compiled;
use crate::context::{CallAnswer, Context};
use crate::failure::{Failure, StartError, text_of};
use crate::host::Host;
use crate::state::{Facts, ROOT, State};

/// Longest time of each call while a module starts: it may read its configuration and compile patterns.
const START_TIME: Duration = Duration::from_secs(1);

/// Decision of a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Continue,
    Pause,
}

impl Action {
    fn of(number: u32) -> Self {
        if number == 1 { Self::Pause } else { Self::Continue }
    }
}

/// Function that is told of an answer: context, call, headers, bytes of the body, trailers.
type CallAnswered = TypedFunc<(u32, u32, u32, u32, u32), ()>;

/// Functions of the module; `None` for one that it has not.
struct Functions {
    context_create: Option<TypedFunc<(u32, u32), ()>>,
    request_headers: Option<TypedFunc<(u32, u32, u32), u32>>,
    request_body: Option<TypedFunc<(u32, u32, u32), u32>>,
    response_headers: Option<TypedFunc<(u32, u32, u32), u32>>,
    response_body: Option<TypedFunc<(u32, u32, u32), u32>>,
    http_call_response: Option<CallAnswered>,
    done: Option<TypedFunc<u32, u32>>,
    log: Option<TypedFunc<u32, ()>>,
    delete: Option<TypedFunc<u32, ()>>,
}

/// Running instance.
pub(crate) struct Instance {
    host: Arc<Host>,
    store: Store<State>,
    functions: Functions,
    time: Duration,
}

impl Instance {
    /// Starts an instance with its configuration.
    ///
    /// # Errors
    ///
    /// The module does not start, or refuses its configuration.
    pub(crate) fn start(host: &Arc<Host>, module: &Compiled, facts: Arc<Facts>) -> Result<Self, StartError> {
        let wrong = |e: &wasmtime::Error| StartError::Module(format!("does not start: {}", text_of(e)));
        let time = facts.time;
        let config = u32::try_from(facts.config.len())
            .map_err(|_| StartError::Config("the configuration is too long for a module of 32 bits".to_owned()))?;
        let mut store = Store::new(host.engine(), State::new(facts));
        store.limiter(|state| &mut state.limits);
        store.set_epoch_deadline(host.begin_call(START_TIME));
        let instance = module.pre().instantiate(&mut store).map_err(|e| wrong(&e))?;
        store.data_mut().memory = instance.get_memory(&mut store, "memory");
        let mut find = Finder { instance, store: &mut store };
        let allocate = match find.function("proxy_on_memory_allocate") {
            Some(allocate) => Some(allocate),
            None => find.function("malloc"),
        };
        let (initialize, start) = (find.function::<(), ()>("_initialize"), find.function::<(), ()>("_start"));
        let (vm_start, configure) = (find.function("proxy_on_vm_start"), find.function("proxy_on_configure"));
        let functions = Functions {
            context_create: find.function("proxy_on_context_create"),
            request_headers: find.function("proxy_on_request_headers"),
            request_body: find.function("proxy_on_request_body"),
            response_headers: find.function("proxy_on_response_headers"),
            response_body: find.function("proxy_on_response_body"),
            http_call_response: find.function("proxy_on_http_call_response"),
            done: find.function("proxy_on_done"),
            log: find.function("proxy_on_log"),
            delete: find.function("proxy_on_delete"),
        };
        store.data_mut().allocate = allocate;
        let mut started = Self { host: host.clone(), store, functions, time: START_TIME };
        if let Some(start) = initialize.or(start) {
            started.store.set_epoch_deadline(started.host.begin_call(START_TIME));
            match start.call(&mut started.store, ()) {
                // A program may end its `main` so.
                Err(e) if e.downcast_ref::<Exit>() == Some(&Exit(0)) => {}
                done => done.map_err(|e| wrong(&e))?,
            }
        }
        started.configure(config, vm_start.as_ref(), configure.as_ref())?;
        started.time = time;
        Ok(started)
    }

    fn configure(
        &mut self,
        config: u32,
        vm_start: Option<&TypedFunc<(u32, u32), u32>>,
        configure: Option<&TypedFunc<(u32, u32), u32>>,
    ) -> Result<(), StartError> {
        let create = self.functions.context_create.clone();
        self.optional(ROOT, create, (ROOT, 0)).map_err(|e| Self::not_started("proxy_on_context_create", &e))?;
        for (name, hook, size) in [("proxy_on_vm_start", vm_start, 0), ("proxy_on_configure", configure, config)] {
            let taken = self.optional(ROOT, hook.cloned(), (ROOT, size)).map_err(|e| Self::not_started(name, &e))?;
            if taken == Some(0) {
                let message =
                    format!("the module refuses its configuration (`{name}` returned false); its log may say why");
                return Err(StartError::Config(message));
            }
        }
        Ok(())
    }

    /// Failure of a hook while the module starts.
    fn not_started(hook: &str, failure: &Failure) -> StartError {
        let reason = match failure {
            Failure::Timeout => format!("it ran longer than {} ms", START_TIME.as_millis()),
            other => other.to_string(),
        };
        StartError::Config(format!("the module does not start with this configuration: `{hook}` failed: {reason}"))
    }

    /// Calls a function of the module for a context.
    fn call<P: WasmParams, R: WasmResults>(
        &mut self,
        context: u32,
        function: &TypedFunc<P, R>,
        parameters: P,
    ) -> Result<R, Failure> {
        self.store.data_mut().current = context;
        self.store.set_epoch_deadline(self.host.begin_call(self.time));
        let returned = function.call(&mut self.store, parameters);
        let state = self.store.data_mut();
        let absent = state.refused.take();
        match returned {
            Ok(result) if state.allocate.is_some() => Ok(result),
            Ok(_) => Err(Failure::Trap("its allocator failed".to_owned())),
            Err(error) => Err(match (Failure::from(error), absent) {
                (Failure::Trap(reason), Some(name)) => {
                    Failure::Trap(format!("{reason}; it had asked for `{name}`, which there is not here"))
                }
                (failure, _) => failure,
            }),
        }
    }

    fn optional<P: WasmParams, R: WasmResults>(
        &mut self,
        context: u32,
        function: Option<TypedFunc<P, R>>,
        parameters: P,
    ) -> Result<Option<R>, Failure> {
        function.map(|function| self.call(context, &function, parameters)).transpose()
    }

    /// Makes the context of a stream.
    ///
    /// # Errors
    ///
    /// There are too many, or the module fails.
    pub(crate) fn create(&mut self, context: Context) -> Result<u32, Failure> {
        let id = self.store.data_mut().add(context).ok_or(Failure::Busy)?;
        self.optional(id, self.functions.context_create.clone(), (id, ROOT))?;
        Ok(id)
    }

    /// Context of a stream.
    ///
    /// # Errors
    ///
    /// Ended.
    pub(crate) fn context(&mut self, id: u32) -> Result<&mut Context, Failure> {
        self.store.data_mut().contexts.get_mut(&id).map(|context| &mut **context).ok_or(Failure::Gone)
    }

    /// Shows the head of the request.
    pub(crate) fn request_headers(&mut self, id: u32, ends: bool) -> Result<Action, Failure> {
        let count = number(self.context(id)?.request.len());
        let hook = self.functions.request_headers.clone();
        Ok(self.optional(id, hook, (id, count, ends.into()))?.map_or(Action::Continue, Action::of))
    }

    /// Shows the body of the request, which is whole.
    pub(crate) fn request_body(&mut self, id: u32) -> Result<Action, Failure> {
        let size = number(self.context(id)?.request_body.bytes().len());
        let hook = self.functions.request_body.clone();
        Ok(self.optional(id, hook, (id, size, 1))?.map_or(Action::Continue, Action::of))
    }

    /// Shows the head of the answer.
    pub(crate) fn response_headers(&mut self, id: u32, ends: bool) -> Result<(), Failure> {
        let count = number(self.context(id)?.response.as_ref().map_or(0, crate::context::Table::len));
        let hook = self.functions.response_headers.clone();
        self.optional(id, hook, (id, count, ends.into()))?;
        Ok(())
    }

    /// Shows the body of the answer, or what is held of it.
    pub(crate) fn response_body(&mut self, id: u32, ends: bool) -> Result<Action, Failure> {
        let size = number(self.context(id)?.response_body.bytes().len());
        let hook = self.functions.response_body.clone();
        Ok(self.optional(id, hook, (id, size, ends.into()))?.map_or(Action::Continue, Action::of))
    }

    /// Tells of the answer to a call; `None` where there is none.
    pub(crate) fn call_answered(&mut self, call: u32, answer: Option<CallAnswer>) -> Result<(), Failure> {
        let answer = answer.unwrap_or_default();
        // A call without an answer has no headers and no body.
        let (headers, body) = (number(answer.headers.len()), number(answer.body.bytes().len()));
        self.store.data_mut().answer = Some(answer);
        let hook = self.functions.http_call_response.clone();
        // Without the hook a paused request would wait for ever.
        let told = self.optional(ROOT, hook, (ROOT, call, headers, body, 0)).map(|_| ());
        self.store.data_mut().answer = None;
        told
    }

    /// Ends a stream: its hooks are told, and its context is gone whatever they say.
    pub(crate) fn end(&mut self, id: u32) -> Result<(), Failure> {
        if !self.store.data().contexts.contains_key(&id) {
            return Ok(());
        }
        let (done, log, delete) =
            (self.functions.done.clone(), self.functions.log.clone(), self.functions.delete.clone());
        let ended = self
            .optional(id, done, id)
            .and_then(|_| self.optional(id, log, id))
            .and_then(|_| self.optional(id, delete, id));
        self.store.data_mut().contexts.remove(&id);
        ended.map(|_| ())
    }
}

fn number(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

struct Finder<'s> {
    instance: wasmtime::Instance,
    store: &'s mut Store<State>,
}

impl Finder<'_> {
    /// Function of a name. Its type was checked when the module was compiled.
    fn function<P: WasmParams, R: WasmResults>(&mut self, name: &str) -> Option<TypedFunc<P, R>> {
        self.instance.get_typed_func(&mut *self.store, name).ok()
    }
}
