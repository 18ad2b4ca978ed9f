//! Checks of `models`: keys without effect, and limits that leave nothing.

use super::{Context, at};
use crate::schema::ModelTask;

pub(super) fn all(cx: &mut Context<'_>) {
    let config = cx.config;
    for (n, model) in config.models.iter().enumerate() {
        if model.keep_warm && model.idle_unload.is_some() {
            let message = "no effect: it takes effect only with `keepWarm: false`, and this model stays loaded";
            cx.error(at!["models", n, "idleUnload"], message);
        }
        if model.idle_unload.is_some_and(|idle| idle.0.is_zero()) {
            cx.error(
                at!["models", n, "idleUnload"],
                "0s unloads the model before it has answered anything; expected a longer time",
            );
        }
        if matches!(model.task, Some(ModelTask::Embedding | ModelTask::Rerank)) {
            for key in model.keys_for_text() {
                let message =
                    "no effect: it takes effect only where a model writes text, and this one encodes it; remove it";
                cx.error(at!["models", n, key], message);
            }
        }
        if let (Some(cache), Some(memory)) = (model.kv_cache, model.memory)
            && cache.0 >= memory.0
        {
            let message = "leaves nothing of `memory` for the weights: lower it, or raise `memory`";
            cx.error(at!["models", n, "kvCache"], message);
        }
    }
}
