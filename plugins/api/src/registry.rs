//! Registry of filters: the one place that lists built-in and users' filters. Provides names, schemas and checks to
//! the configuration language, and builds the filters that requests pass.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use spillway_config::{ExpressionPlace, FieldError, FilterCatalog};

use crate::{
    AnswerStores, Classifiers, Counter, CounterSpec, Counters, Embedders, Filter, GrpcClient, HttpClient, Pricing,
    SharedStates,
};

/// Environment in which a filter is built.
pub struct BuildContext<'a> {
    /// Name of the route whose chain holds the filter.
    pub route: &'a str,
    /// Path prefixes that the route matches, in the form in which paths are compared (`spillway_config::path::key`).
    pub prefixes: &'a [&'a str],
    /// State that outlives a reload.
    pub states: &'a SharedStates,
    /// Client for calls to other servers.
    pub http: &'a Arc<dyn HttpClient>,
    /// Client for streams of gRPC messages.
    pub grpc: &'a Arc<dyn GrpcClient>,
    /// Built-in models that turn texts into vectors.
    pub embedders: &'a dyn Embedders,
    /// Built-in models that classify texts.
    pub classifiers: &'a dyn Classifiers,
    /// Counters of all filters.
    pub counters: &'a Counters,
    /// Store of answers that several gateways share; `None` where the configuration has none.
    pub answers: Option<&'a dyn AnswerStores>,
    /// Prices of models.
    pub prices: &'a Arc<dyn Pricing>,
}

impl BuildContext<'_> {
    /// Counter of the route with these values of its labels, which the configuration bounds: never what a caller sends.
    ///
    /// # Errors
    /// A declaration that no page of metrics can show ([`Counters::counter`]).
    pub fn counter(&self, spec: CounterSpec, values: &[&str]) -> Result<Counter, FieldError> {
        self.counters.counter(spec, self.route, values)
    }

    /// Counter of the route that counts billionths and is shown in whole units, for money.
    ///
    /// # Errors
    /// As [`Self::counter`].
    pub fn counter_of_billionths(&self, spec: CounterSpec, values: &[&str]) -> Result<Counter, FieldError> {
        self.counters.counter_of_billionths(spec, self.route, values)
    }
}

/// Builds filters of one kind.
pub trait FilterFactory: Send + Sync {
    /// Key of the filter in `filters`.
    fn name(&self) -> &'static str;
    /// JSON Schema of its configuration.
    fn schema(&self, generator: &mut SchemaGenerator) -> Schema;
    /// Reports mistakes that the schema cannot express.
    fn check(&self, config: &serde_json::Value) -> Vec<FieldError>;
    /// Builds the filter; called only with a configuration that passed `check`.
    fn build(&self, config: &serde_json::Value, cx: &BuildContext<'_>) -> Result<Arc<dyn Filter>, FieldError>;
}

/// Makes a factory from a configuration type: `check` finds mistakes, `build` makes the filter.
pub fn define<C, K, B>(name: &'static str, check: K, build: B) -> Box<dyn FilterFactory>
where
    C: DeserializeOwned + JsonSchema + 'static,
    K: Fn(&C) -> Vec<FieldError> + Send + Sync + 'static,
    B: Fn(C, &BuildContext<'_>) -> Result<Arc<dyn Filter>, FieldError> + Send + Sync + 'static,
{
    Box::new(Defined { name, check, build, config: PhantomData::<fn() -> C> })
}

/// Makes a factory of filters that are made of their configuration alone: `compile` makes the filter, or tells all mistakes.
pub fn define_compiled<C, F, K>(name: &'static str, compile: K) -> Box<dyn FilterFactory>
where
    C: DeserializeOwned + JsonSchema + 'static,
    F: Filter + 'static,
    K: Fn(&C) -> Result<F, Vec<FieldError>> + Copy + Send + Sync + 'static,
{
    let check = move |config: &C| compile(config).err().unwrap_or_default();
    define(name, check, move |config: C, _: &BuildContext<'_>| match compile(&config) {
        Ok(filter) => Ok(Arc::new(filter) as Arc<dyn Filter>),
        Err(mut errors) => Err(errors.swap_remove(0)),
    })
}

/// Makes a factory of a filter that this build has not: a configuration that names it is refused for this reason.
pub fn absent(name: &'static str, reason: &'static str) -> Box<dyn FilterFactory> {
    Box::new(Absent { name, reason })
}

struct Absent {
    name: &'static str,
    reason: &'static str,
}

impl FilterFactory for Absent {
    fn name(&self) -> &'static str {
        self.name
    }
    fn schema(&self, _: &mut SchemaGenerator) -> Schema {
        Schema::default()
    }
    fn check(&self, _: &serde_json::Value) -> Vec<FieldError> {
        vec![FieldError::at([], self.reason)]
    }
    fn build(&self, _: &serde_json::Value, _: &BuildContext<'_>) -> Result<Arc<dyn Filter>, FieldError> {
        Err(FieldError::at([], self.reason))
    }
}

struct Defined<C, K, B> {
    name: &'static str,
    check: K,
    build: B,
    config: PhantomData<fn() -> C>,
}

impl<C, K, B> Defined<C, K, B>
where
    C: DeserializeOwned,
{
    fn decode(config: &serde_json::Value) -> Result<C, FieldError> {
        C::deserialize(config).map_err(|e| FieldError { path: Vec::new(), message: e.to_string() })
    }
}

impl<C, K, B> FilterFactory for Defined<C, K, B>
where
    C: DeserializeOwned + JsonSchema + 'static,
    K: Fn(&C) -> Vec<FieldError> + Send + Sync + 'static,
    B: Fn(C, &BuildContext<'_>) -> Result<Arc<dyn Filter>, FieldError> + Send + Sync + 'static,
{
    fn name(&self) -> &'static str {
        self.name
    }
    fn schema(&self, generator: &mut SchemaGenerator) -> Schema {
        C::json_schema(generator)
    }
    fn check(&self, config: &serde_json::Value) -> Vec<FieldError> {
        match Self::decode(config) {
            Ok(config) => (self.check)(&config),
            Err(error) => vec![error],
        }
    }
    fn build(&self, config: &serde_json::Value, cx: &BuildContext<'_>) -> Result<Arc<dyn Filter>, FieldError> {
        (self.build)(Self::decode(config)?, cx)
    }
}

/// Checks an expression for its place; the error names the mistake.
pub type ExpressionCheck = fn(&str, ExpressionPlace<'_>) -> Result<(), String>;

/// All filters that a configuration may name.
#[derive(Default)]
pub struct Registry {
    factories: BTreeMap<&'static str, Box<dyn FilterFactory>>,
    expression: Option<ExpressionCheck>,
}

impl Registry {
    /// Registers a filter, replacing one of the same name.
    pub fn add(&mut self, factory: Box<dyn FilterFactory>) -> &mut Self {
        self.factories.insert(factory.name(), factory);
        self
    }

    /// Adds the filters of another registry, replacing those of the same names, and its check of expressions.
    pub fn extend(&mut self, other: Self) -> &mut Self {
        self.factories.extend(other.factories);
        self.expression = other.expression.or(self.expression);
        self
    }

    /// Sets the check of expressions.
    pub fn expressions(&mut self, check: ExpressionCheck) -> &mut Self {
        self.expression = Some(check);
        self
    }

    /// Builds the filter `name`.
    pub fn build(
        &self,
        name: &str,
        config: &serde_json::Value,
        cx: &BuildContext<'_>,
    ) -> Result<Arc<dyn Filter>, FieldError> {
        match self.factories.get(name) {
            Some(factory) => factory.build(config, cx),
            None => Err(FieldError { path: Vec::new(), message: format!("unknown filter `{name}`") }),
        }
    }
}

impl FilterCatalog for Registry {
    fn names(&self) -> Vec<&'static str> {
        self.factories.keys().copied().collect()
    }
    fn schema(&self, name: &str, generator: &mut SchemaGenerator) -> Option<Schema> {
        self.factories.get(name).map(|factory| factory.schema(generator))
    }
    fn check(&self, name: &str, config: &serde_json::Value) -> Vec<FieldError> {
        self.factories.get(name).map(|factory| factory.check(config)).unwrap_or_default()
    }
    fn check_expression(&self, expression: &str, place: ExpressionPlace<'_>) -> Result<(), String> {
        self.expression.map_or(Ok(()), |check| check(expression, place))
    }
}
