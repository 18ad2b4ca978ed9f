//! Pairs of APIs between which calls that are answered whole are translated. Conversations have a neutral form between all APIs
//! ([`super::translate`]); such a call has a form of its own for each pair. One place lists the pairs, so that no API knows
//! another.

use super::dialect::Dialect;
use super::openai::counts;
use super::operation::Operation;
use super::registry::{ANTHROPIC, OIP, OIP_GRPC, OLLAMA, OPENAI};
use super::translate::{CallTranslator, ServerKind, TokenCounts};
use super::{anthropic, oip, ollama};

/// Translator of an operation that callers of a dialect have in common with servers of another and that is answered whole;
/// `None` where the two have no such operation in common.
pub fn call_translator(
    caller: &'static dyn Dialect,
    operation: Operation,
    server: ServerKind,
) -> Option<&'static dyn CallTranslator> {
    match operation {
        Operation::CountTokens => counter(caller, server),
        Operation::Embeddings if (caller, server.dialect) == (OLLAMA, OPENAI) => Some(&ollama::Embeddings),
        Operation::Inference(_) if (caller, server.dialect) == (OIP, OIP_GRPC) => Some(&oip::HttpToGrpc),
        Operation::Inference(_) if (caller, server.dialect) == (OIP_GRPC, OIP) => Some(&oip::GrpcToHttp),
        _ => None,
    }
}

/// Translator of a count of tokens.
fn counter(caller: &'static dyn Dialect, server: ServerKind) -> Option<&'static dyn CallTranslator> {
    static MESSAGES_AT_RESPONSES: TokenCounts =
        TokenCounts { caller: &anthropic::COUNT_CALLER, server: &counts::RESPONSES };
    static MESSAGES_AT_TOKENIZE: TokenCounts =
        TokenCounts { caller: &anthropic::COUNT_CALLER, server: &counts::TOKENIZE };
    static RESPONSES_AT_MESSAGES: TokenCounts = TokenCounts { caller: &counts::CALLER, server: &anthropic::COUNTS };
    static RESPONSES_AT_TOKENIZE: TokenCounts = TokenCounts { caller: &counts::CALLER, server: &counts::TOKENIZE };
    let (is_anthropics, is_openais) = (caller == ANTHROPIC, caller == OPENAI);
    match server {
        ServerKind { dialect, .. } if dialect == ANTHROPIC && is_openais => Some(&RESPONSES_AT_MESSAGES),
        ServerKind { dialect, has_tokenize: true, .. } if dialect == OPENAI && is_openais => {
            Some(&RESPONSES_AT_TOKENIZE)
        }
        ServerKind { dialect, has_tokenize: true, .. } if dialect == OPENAI && is_anthropics => {
            Some(&MESSAGES_AT_TOKENIZE)
        }
        ServerKind { dialect, has_responses: true, .. } if dialect == OPENAI && is_anthropics => {
            Some(&MESSAGES_AT_RESPONSES)
        }
        _ => None,
    }
}
