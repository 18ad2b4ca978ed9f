//! Values of metric labels as enums: a label has a fixed list of values, and no caller can add one.

use std::marker::PhantomData;

/// A label whose values are known.
pub trait Label: Copy + 'static {
    /// Every value, in the order of the enum.
    const ALL: &'static [Self];

    /// Value as metrics, logs and spans show it.
    fn as_str(self) -> &'static str;

    /// Index of this value in [`Label::ALL`].
    fn index(self) -> usize;
}

/// Declares an enum that is a [`Label`].
macro_rules! label {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident => $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)+];

            fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label! {
    /// State of a batch, in the words of OpenAI's API.
    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(rename_all = "snake_case")]
    BatchStatus {
        /// The input is being read.
        Validating => "validating",
        /// The input was refused.
        Failed => "failed",
        /// Lines are being answered.
        InProgress => "in_progress",
        /// All lines have ended; the files of results are being written.
        Finalizing => "finalizing",
        /// The results are there.
        Completed => "completed",
        /// The time was over before all lines had ended.
        Expired => "expired",
        /// Its caller has cancelled it; lines that run are ended.
        Cancelling => "cancelling",
        /// It was cancelled.
        Cancelled => "cancelled",
    }
}

label! {
    /// End of one try of a line of a batch.
    LineEnded {
        /// Answered with success.
        Completed => "completed",
        /// Ended with another answer, or with none.
        Failed => "failed",
        /// Its server failed, and it is tried again.
        Retried => "retried",
        /// No target had room, or a limit of its caller was reached; it waits.
        NoRoom => "no_room",
        /// A caller needed its place; it waits.
        Displaced => "displaced",
    }
}

label! {
    /// Outcome of a probe at a target.
    ProbeResult {
        /// The answer is as expected.
        Passed => "passed",
        /// The answer is another one than expected.
        Failed => "failed",
        /// The answer could not be compared: the model for embeddings is not loaded or has no time.
        Unjudged => "unjudged",
        /// There was no answer, or one that says that the server cannot answer now.
        Unanswered => "unanswered",
        /// Not asked, or taken back: there was no room beside that for callers.
        Busy => "busy",
        /// Not asked: no server was there that is not ejected, drained or unhealthy, or the model is not loaded.
        Unavailable => "unavailable",
        /// Not asked: `maxPerHour` or `maxTokensPerHour` was reached.
        OverBudget => "over_budget",
    }
}

label! {
    /// Outcome of a signal for a request.
    SignalOutcome {
        /// It has a value.
        Computed => "computed",
        /// The conversation has no text that it reads, or cannot be read.
        NoText => "no_text",
        /// The text is longer than `maxText`.
        TooLong => "too_long",
        /// The model had no answer within `timeout`, the examples had no vectors yet, or no thread was free for a long text.
        Late => "late",
        /// The model is not loaded or failed.
        Failed => "failed",
    }
}

label! {
    /// Change in what a target answers to probes.
    ProbeChange {
        /// The server names a model that it has not named before.
        Model => "model",
        /// The server names a fingerprint that it has not named before.
        Fingerprint => "fingerprint",
        /// The mean similarity of a probe has moved.
        Mean => "mean",
    }
}

label! {
    /// Outcome of an attempt at an endpoint.
    AttemptEnd {
        /// The whole answer was read.
        Answered => "answered",
        /// The endpoint said that it is full.
        Full => "full",
        /// The attempt failed, before the head of an answer or after it.
        Failed => "failed",
        /// The client left, or broke the framing of its request.
        ClientGone => "client_gone",
        /// The client did not send its body in time.
        ClientSlow => "client_slow",
        /// Another attempt answered first.
        GivenUp => "given_up",
    }
}

label! {
    /// Outcome of a label that a caller has sent.
    FeedbackEnd {
        /// The first label of its request was counted.
        Recorded => "recorded",
        /// An earlier label of the request was replaced in all figures.
        Replaced => "replaced",
        /// A label that says what was said before.
        Unchanged => "unchanged",
        /// No request with this id is remembered for the caller.
        Unknown => "unknown",
        /// The time for labels of the request was over, or its route or target is gone.
        Late => "late",
        /// Requests of several consumers have the id.
        Ambiguous => "ambiguous",
        /// The body or the caller was refused.
        Refused => "refused",
    }
}

label! {
    /// Reason why the backends of a route do not answer a request.
    SpillReason {
        /// Every endpoint is full.
        Saturated => "saturated",
        /// The queue is full.
        QueueFull => "queue_full",
        /// The wait would be longer than `maxWait`.
        QueueTooLong => "queue_too_long",
        /// The time in the queue is over.
        QueueTimeout => "queue_timeout",
        /// No endpoint may have traffic, or all attempts failed.
        Unavailable => "unavailable",
        /// The request is over a limit whose rule has `onExceeded: spill`.
        OverLimit => "over_limit",
    }
}

label! {
    /// Reason why a spill that a route has did not take a request.
    NotSpilled {
        /// The caller sent `x-spillway-fallback: never`.
        CallerRefuses => "caller_refuses",
        /// The request is not one for text that a built-in model writes, or its body could not be held.
        Operation => "operation",
        /// The consumer's `models` or the route's `spill` do not let it.
        NotAllowed => "not_allowed",
        /// A field asks for a form of answer that the model does not write.
        UnsupportedField => "unsupported_field",
        /// The request is invalid for any server.
        InvalidRequest => "invalid_request",
        /// The prompt is longer than the context of the model or `spill.maxPromptTokens`.
        PromptTooLong => "prompt_too_long",
        /// The spill has no room either.
        Busy => "busy",
        /// The model or stand-in failed.
        Failed => "failed",
    }
}

label! {
    /// Outcome of the copy of a request.
    MirrorEnd {
        /// The copy was answered, with any status.
        Answered => "answered",
        /// No whole answer came in time.
        Failed => "failed",
        /// A bound was reached and no copy was sent.
        Skipped => "skipped",
    }
}

label! {
    /// Outcome of a request that was drawn for the shadow of a rollout.
    PairEnd {
        /// Both versions have answered, well or not.
        Compared => "compared",
        /// A bound was reached and no copy was sent.
        Skipped => "skipped",
        /// The answer to the caller says nothing of the stable version: the caller left, or something else answered.
        Unmatched => "unmatched",
    }
}

label! {
    /// End of a socket: of a connection behind an upgrade.
    SocketEnd {
        /// The client closed it.
        Client => "client",
        /// The server closed it.
        Server => "server",
        /// The connection with the client broke.
        ClientLost => "client_lost",
        /// The connection with the server broke.
        ServerLost => "server_lost",
        /// The client read nothing for the listener's `limits.writeTimeout`.
        ClientSlow => "client_slow",
        /// The server read nothing for the time that it may take to read a part of a request.
        ServerSlow => "server_slow",
        /// No byte passed for `timeouts.socketIdle`.
        Idle => "idle",
        /// `timeouts.socketLifetime` is over.
        Lifetime => "lifetime",
        /// The endpoint is drained, or an edit has removed its route or endpoint.
        Drained => "drained",
        /// The caller may not go on: its key or certificate has expired, or an edit has removed it.
        Policy => "policy",
        /// A limit or budget in tokens of the caller is reached.
        Limit => "limit",
        /// The client broke the framing of WebSocket.
        ClientMalformed => "client_malformed",
        /// The server broke the framing of WebSocket.
        ServerMalformed => "server_malformed",
        /// The gateway stops.
        ShuttingDown => "shutting_down",
    }
}

label! {
    /// Outcome of a wait in a queue.
    QueueEnd {
        /// The request got a slot.
        Admitted => "admitted",
        /// The queue was full.
        Full => "full",
        /// The request went where it need not wait.
        MovedOn => "moved_on",
        /// The wait reached its limit.
        Timeout => "timeout",
        /// The client left.
        Abandoned => "abandoned",
    }
}

label! {
    /// Reason to close a connection before it carried a request.
    ConnectionRefusal {
        /// `limits.maxConnections` of the listener.
        Limit => "limit",
        /// `limits.maxConnectionsPerAddress` of the listener.
        AddressLimit => "address_limit",
        /// The process has no file descriptors to spare.
        Descriptors => "descriptors",
        /// The handshake took too long.
        Timeout => "timeout",
        /// The header of the PROXY protocol is missing or wrong.
        ProxyProtocol => "proxy_protocol",
        /// The TLS handshake failed.
        Tls => "tls",
        /// The client's certificate was refused.
        ClientCertificate => "client_certificate",
        /// A certificate authority looked at an ACME challenge, which is no request.
        Challenge => "challenge",
    }
}

label! {
    /// Reason why a request is no HTTP/1 or breaks a limit of its framing.
    MalformedReason {
        /// The head could not be parsed, or names its host twice.
        Request => "request",
        /// The request line.
        RequestLine => "request_line",
        /// The target is too long.
        TargetTooLong => "target_too_long",
        /// The header is longer than `maxHeaderBytes`.
        HeaderTooLong => "header_too_long",
        /// There are too many fields.
        TooManyFields => "too_many_fields",
        /// A field.
        Field => "field",
        /// The end of a line.
        LineEnd => "line_end",
        /// The length of the body.
        Length => "length",
        /// The transfer coding.
        TransferCoding => "transfer_coding",
        /// A chunk.
        Chunk => "chunk",
        /// The trailers.
        Trailers => "trailers",
    }
}

label! {
    /// Reason to refuse a request's body for want of memory or time.
    BodyRefusal {
        /// The caller holds all that one caller may.
        Caller => "caller",
        /// All requests together hold all that they may.
        Process => "process",
        /// The body arrived too slowly while memory was short.
        Slow => "slow",
        /// Too many large bodies wait to be read.
        Busy => "busy",
    }
}

label! {
    /// End of a look into the shared store of answers.
    CacheLookup {
        /// An answer that counts is there.
        Hit => "hit",
        /// No answer is there.
        Miss => "miss",
        /// The answer is from before a purge.
        Forgotten => "forgotten",
        /// The value is no answer to what was asked, or too long: no gateway of this version has written it.
        Malformed => "malformed",
        /// The server was not connected, or the connection broke.
        Unreachable => "unreachable",
        /// The server did not answer in time.
        TimedOut => "timeout",
        /// The server answered with an error.
        Failed => "failed",
        /// Not asked: too many requests were looking.
        Busy => "busy",
    }
}

label! {
    /// End of an answer on its way to the shared store.
    CacheWrite {
        /// Kept.
        Written => "written",
        /// Dropped: too many answers waited, or too many bytes.
        Full => "full",
        /// Dropped: its content type is too long.
        Unfit => "unfit",
        /// Dropped: the server was not connected, or the connection broke.
        Unreachable => "unreachable",
        /// Refused by the server, such as for want of memory.
        Failed => "failed",
    }
}

label! {
    /// End of a rollout.
    RolloutEnd {
        /// The candidate gets all requests.
        Promoted => "promoted",
        /// The candidate gets no request.
        Aborted => "aborted",
    }
}

label! {
    /// Finding about a metric of a rollout.
    RolloutFinding {
        /// Past its threshold.
        Worse => "worse",
        /// Within its threshold.
        Fine => "fine",
        /// Neither, yet.
        Undecided => "undecided",
    }
}

label! {
    /// End of a notification.
    NotificationEnd {
        /// The receiver confirmed it.
        Delivered => "delivered",
        /// Attempts or time of the event were over.
        GivenUp => "given_up",
        /// A newer event took its place, because too many waited.
        Dropped => "dropped",
        /// The receiver answered 410, and wants none until the next edit.
        Gone => "gone",
        /// An edit removed the receiver, or the process ended.
        Lost => "lost",
    }
}

/// A series for each value of a label.
pub struct ByLabel<L, M> {
    series: Box<[M]>,
    label: PhantomData<L>,
}

impl<L: Label, M> ByLabel<L, M> {
    /// Series made by `make`, one for each value.
    pub fn new(make: impl FnMut(L) -> M) -> Self {
        Self { series: L::ALL.iter().copied().map(make).collect(), label: PhantomData }
    }

    /// Series of one value; `None` of a default, which has no series.
    pub fn get(&self, label: L) -> Option<&M> {
        self.series.get(label.index())
    }

    /// Handle on the series of one value.
    pub fn series(&self, label: L) -> M
    where
        M: Clone + Default,
    {
        self.get(label).cloned().unwrap_or_default()
    }

    /// Every value with its series.
    pub fn iter(&self) -> impl Iterator<Item = (L, &M)> {
        L::ALL.iter().copied().zip(&self.series)
    }
}

impl<L, M> Default for ByLabel<L, M> {
    fn default() -> Self {
        Self { series: Box::default(), label: PhantomData }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn indices_agree<L: Label>() {
        for (place, label) in L::ALL.iter().enumerate() {
            assert_eq!(label.index(), place, "{}", label.as_str());
        }
    }

    #[test]
    fn an_index_is_the_place_in_the_list() {
        indices_agree::<AttemptEnd>();
        indices_agree::<SpillReason>();
        indices_agree::<MalformedReason>();
    }
}
