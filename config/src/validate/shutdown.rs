//! Checks of `shutdown`.

use super::{Context, at};

pub(super) fn all(cx: &mut Context<'_>) {
    let start = cx.config.shutdown.hand_over.start_timeout;
    if start.0.is_zero() {
        cx.error(
            at!["shutdown", "handOver", "startTimeout"],
            "found 0s, in which no process is ready; expected longer than zero",
        );
    }
}
