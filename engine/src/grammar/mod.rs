//! Constrained decoding: sets of tokens that may come next. Grammars are llguidance's; this module supplies the
//! model's tokens, bounds the cost of a schema, and keeps the last compiled grammars.

mod schema;

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};

use crate::GrammarError;
use crate::text::Tokenizer;

/// Longest schema, in bytes of JSON text.
const MAX_SCHEMA: usize = 64 << 10;
/// Compiled grammars kept, because applications ask for the same few again and again.
const MAX_CACHED: usize = 16;
/// Whitespace between two parts of a JSON text: a space, or a new line with its indentation. A small model that may
/// write blank lines repeats them.
const BLANKS: &str = r"\x20|\x0A[\x20\x09]{0,20}";
/// Bounds of one grammar, in llguidance's units: some 20 ms to build it (50,000 units of fuel a millisecond) and 10
/// ms for the mask of one step. States take up to 20 MB (2 kB each), and the grammar has at most 50,000 symbols.
const BUILD_FUEL: u64 = 1_000_000;
const STEP_FUEL: u64 = 140_000;
const LEXER_STATES: usize = 10_000;
const GRAMMAR_SIZE: usize = 50_000;

/// Required structure of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Structure<'a> {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema allows; the schema as JSON text. Objects that list their properties and say no more have no
    /// others.
    JsonSchema(&'a str),
    /// Text in which each tool call follows a schema.
    Calls(&'a CallSyntax),
}

/// Tool calls within a text, as [`ToolStyle::calls`](crate::ToolStyle::calls) makes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallSyntax {
    /// Lark grammar, with `SCHEMA` in place of the schema of a call.
    pub(crate) lark: &'static str,
    /// JSON Schema of a call, as JSON text.
    pub(crate) schema: String,
}

/// A compiled grammar at its beginning; clones are independent.
#[derive(Clone)]
pub struct Grammar {
    matcher: Box<Matcher>,
}

impl Grammar {
    pub(crate) fn into_matcher(self) -> Box<Matcher> {
        self.matcher
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Grammar")
    }
}

/// Compiles grammars for one model. The model's token trie (some 2 MB) is built with the first grammar.
pub(crate) struct Grammars {
    tokenizer: Arc<Tokenizer>,
    factory: OnceLock<Result<ParserFactory, String>>,
    kept: Mutex<Vec<KeptGrammar>>,
}

/// Compiled grammar with its source.
struct KeptGrammar {
    lark: &'static str,
    schema: Box<str>,
    grammar: Grammar,
}

impl Grammars {
    pub(crate) fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, factory: OnceLock::new(), kept: Mutex::new(Vec::new()) }
    }

    /// Compiles or reuses a grammar. Takes some milliseconds, the first call some hundred.
    pub(crate) fn compile(&self, structure: Structure<'_>) -> Result<Grammar, GrammarError> {
        let (lark, text) = match structure {
            Structure::JsonObject => ("", r#"{"type":"object"}"#),
            Structure::JsonSchema(text) => ("", text),
            Structure::Calls(calls) => (calls.lark, calls.schema.as_str()),
        };
        if text.len() > MAX_SCHEMA {
            return Err(GrammarError::TooLarge { bytes: text.len(), most: MAX_SCHEMA });
        }
        let kept = |found: &KeptGrammar| found.lark == lark && *found.schema == *text;
        {
            let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = all.iter().position(kept) {
                let found = all.remove(at);
                let grammar = found.grammar.clone();
                all.push(found);
                return Ok(grammar);
            }
        }
        let grammar = self.build(lark, text)?;
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.iter().any(kept) {
            if all.len() >= MAX_CACHED {
                all.remove(0);
            }
            all.push(KeptGrammar { lark, schema: text.into(), grammar: grammar.clone() });
        }
        Ok(grammar)
    }

    fn build(&self, lark: &str, text: &str) -> Result<Grammar, GrammarError> {
        let mut schema: serde_json::Value =
            serde_json::from_str(text).map_err(|e| GrammarError::Invalid(format!("not JSON: {e}")))?;
        if !schema.is_object() {
            return Err(GrammarError::Invalid("expected a JSON object".into()));
        }
        schema::rewrite(&mut schema).map_err(GrammarError::Invalid)?;
        let options = JsonCompileOptions { whitespace_pattern: Some(BLANKS.into()), ..JsonCompileOptions::default() };
        options.apply_to(&mut schema);
        let factory = self.factory.get_or_init(|| factory(&self.tokenizer).map_err(|e| e.to_string()));
        let factory = factory.as_ref().map_err(|e| GrammarError::Tokens(e.clone()))?;
        let grammar = if lark.is_empty() {
            TopLevelGrammar::from_json_schema(schema)
        } else {
            TopLevelGrammar::from_lark(lark.replacen("SCHEMA", &schema.to_string(), 1))
        };
        let parser = factory.create_parser(grammar);
        let mut matcher = Box::new(Matcher::new(parser));
        if let Some(error) = matcher.get_error() {
            return Err(GrammarError::Invalid(first_line(&error)));
        }
        // An unsatisfiable schema is found here and not in the middle of an answer.
        match matcher.compute_mask() {
            Ok(mask) if !mask.is_zero() => Ok(Grammar { matcher }),
            Ok(_) => Err(GrammarError::Invalid("nothing satisfies the schema".into())),
            // The library's word for a place where no token may follow.
            Err(e) if e.to_string().contains("NoExtensionBias") => {
                Err(GrammarError::Invalid("nothing satisfies the schema".into()))
            }
            Err(e) => Err(GrammarError::Invalid(first_line(&e.to_string()))),
        }
    }
}

/// First line of the library's message, at most 300 characters: the rest is states and traces.
pub(crate) fn first_line(error: &str) -> String {
    error.lines().next().unwrap_or_default().chars().take(300).collect()
}

fn factory(tokenizer: &Tokenizer) -> Result<ParserFactory, Box<dyn std::error::Error>> {
    let size = u32::try_from(tokenizer.vocabulary())?;
    let ends: Vec<u32> = (0..size).filter(|token| tokenizer.is_end(*token)).collect();
    let Some(end) = tokenizer.eos().or(ends.first().copied()) else {
        return Err("the tokenizer has no token that ends an answer".into());
    };
    let words: Vec<Vec<u8>> = (0..size).map(|token| tokenizer.bytes_of(token).to_vec()).collect();
    let trie = TokTrie::from(&TokRxInfo::new(size, end), &words);
    let trie = if ends.is_empty() { trie } else { trie.with_eos_tokens(&ends) };
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    // Slices speed up the masks of free strings, the common case in JSON.
    let slices = llguidance::earley::SlicedBiasComputer::json_slices();
    let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)?;
    factory.quiet();
    let limits = factory.limits_mut();
    limits.initial_lexer_fuel = BUILD_FUEL;
    limits.step_lexer_fuel = STEP_FUEL;
    limits.max_lexer_states = LEXER_STATES;
    limits.max_grammar_size = GRAMMAR_SIZE;
    limits.verbose_errors = false;
    Ok(factory)
}
