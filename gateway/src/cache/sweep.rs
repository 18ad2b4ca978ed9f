//! Purge of a route in the shared store of answers: moves its generation, which is what makes all gateways forget, then frees
//! the memory of the answers in steps that hold the server up for a moment each.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Client, RedisResult};
use spillway_filter::{KeptAnswers, NotPurged};

use super::{RouteKeys, new_generation, patient};

/// Keys that the server looks at in one step: below a millisecond.
const STEP: usize = 1000;
/// Longest time of a purge: an operator waits for it. Answers that are left behind are not served, and expire.
const LONGEST: Duration = Duration::from_secs(20);

/// Forgets the answers of a route, or only counts them.
pub(super) async fn purge(client: &Client, keys: &RouteKeys, dry_run: bool) -> Result<KeptAnswers, NotPurged> {
    let unconfirmed = |reason: String| {
        let done = if dry_run { "counted" } else { "forgotten" };
        NotPurged(format!("the store of `state.cache.redis` did not confirm that the answers are {done}: {reason}"))
    };
    let mut connection = client
        .get_multiplexed_async_connection_with_config(&patient())
        .await
        .map_err(|e| unconfirmed(e.to_string()))?;
    if !dry_run {
        let mut move_on = redis::cmd("SET");
        move_on.arg(&keys.generation).arg(&new_generation().0[..]);
        move_on.query_async::<()>(&mut connection).await.map_err(|e| unconfirmed(e.to_string()))?;
    }
    let mut kept = KeptAnswers::default();
    let swept = tokio::time::timeout(LONGEST, sweep(&mut connection, keys, dry_run, &mut kept)).await;
    match swept.unwrap_or_else(|_| Err((redis::ErrorKind::Io, "it has too many keys to look at all in time").into())) {
        Ok(()) => Ok(kept),
        Err(e) if dry_run => Err(unconfirmed(e.to_string())),
        Err(e) => {
            // The generation has moved: no gateway serves what is left.
            tracing::warn!(event = "cache_store_unswept", reason = %e, answers = kept.answers, "the rest expires");
            Ok(kept)
        }
    }
}

async fn sweep(
    connection: &mut MultiplexedConnection,
    keys: &RouteKeys,
    dry_run: bool,
    kept: &mut KeptAnswers,
) -> RedisResult<()> {
    let pattern = format!("{}*", literal(&keys.answers));
    let mut cursor: u64 = 0;
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(STEP);
        let (next, found) = scan.query_async::<(u64, Vec<Vec<u8>>)>(connection).await?;
        if !found.is_empty() {
            let mut pipe = redis::pipe();
            // A value that is no text is none of ours, and has no length.
            pipe.ignore_errors();
            for key in &found {
                pipe.cmd("STRLEN").arg(key);
            }
            if !dry_run {
                pipe.cmd("UNLINK").arg(&found);
            }
            let replies = pipe.query_async::<Vec<RedisResult<u64>>>(connection).await?;
            for length in replies.into_iter().take(found.len()).flatten().filter(|length| *length > 0) {
                kept.answers += 1;
                kept.bytes = kept.bytes.saturating_add(length);
            }
        }
        if next == 0 {
            return Ok(());
        }
        cursor = next;
    }
}

/// Text of a pattern that stands for itself.
fn literal(text: &str) -> String {
    text.chars()
        .flat_map(|c| matches!(c, '*' | '?' | '[' | ']' | '\\' | '^').then_some('\\').into_iter().chain([c]))
        .collect()
}
