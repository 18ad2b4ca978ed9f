//! Files and batches in the API of OpenAI. Such a request is authenticated, limited, counted and traced as any other; the gateway
//! answers it before a route of the file is looked for.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream;
use http::{HeaderValue, Method, StatusCode, header};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use spillway_config::values;
use spillway_filter::{Answer, ErrorKind, Refusal};
use tokio::io::AsyncReadExt;

use super::answers::send;
use super::asking::{decode_body, hold_body};
use super::limiting;
use crate::batch::{BatchOrigin, Batches, ENDPOINTS, FileRecord, INPUT, NewBatch, Page, StoreError, StoredProof};
use crate::clock;
use crate::coding::Coding;
use crate::downstream::{ClientSession, Nothing, deliver};
use crate::exchange::{ConnectionInfo, End, Exchange, RequestBody, expects_continue, too_slow};
use crate::gateway::Gateway;
use crate::message::ResponseHead;
use crate::protocol;
use crate::routing::Candidates;
use crate::topology::BatchPlan;
use crate::upstream::finish_response;

/// Most bytes of a field of an upload that is not the file.
const MAX_FIELD: usize = 1 << 10;
/// Most bytes of a file's name.
const MAX_NAME: usize = 512;
/// Bytes of a form after which a field or a part of the file must have been read: the head of a part is much shorter.
const MAX_UNREAD: usize = 256 << 10;
/// Most fields of an upload.
const MAX_FIELDS: usize = 16;
/// Bytes of a file that are read at a time.
const PART: usize = 64 << 10;
/// Most pairs of `metadata`, and bytes of a key and of a value, as OpenAI has them.
const METADATA: (usize, usize, usize) = (16, 64, 512);
/// Most entries of a list: of files, and of batches.
const MOST_LISTED: (u32, u32) = (10_000, 100);
/// Entries of a list of batches that asks for no number.
const LISTED: u32 = 20;
/// Bounds of `expires_after.seconds`, as OpenAI has them.
const EXPIRES_AFTER: std::ops::RangeInclusive<u64> = 3_600..=2_592_000;

/// The plan of `batch`, if the request is about files or batches.
pub(super) fn plan(candidates: &Candidates<'_>, exchange: &Exchange) -> Option<Arc<BatchPlan>> {
    let plan = exchange.snapshot.batch.as_ref()?;
    candidates.only().is_some_and(|route| Arc::ptr_eq(route, &plan.route)).then(|| plan.clone())
}

/// Request about files or batches, by its method and path.
#[derive(Debug, PartialEq, Eq)]
enum Ask {
    Upload,
    Files,
    File(String),
    DeleteFile(String),
    Content(String),
    Create,
    Batches,
    Batch(String),
    Cancel(String),
}

impl Ask {
    /// Reads method and path. The error has the methods that the path has, none where there is no such path.
    fn read(method: &Method, path: &str) -> Result<Self, &'static str> {
        let mut parts = path.trim_matches('/').split('/').skip(1);
        let (kind, id, further, end) = (parts.next(), parts.next(), parts.next(), parts.next());
        let is_get = matches!(*method, Method::GET | Method::HEAD);
        if end.is_some() {
            return Err("");
        }
        match (kind, id, further) {
            (Some("files"), None, _) if *method == Method::POST => Ok(Self::Upload),
            (Some("files"), None, _) if is_get => Ok(Self::Files),
            (Some("files" | "batches"), None, _) if *method != Method::POST && !is_get => Err("GET, POST"),
            (Some("files"), Some(id), None) if is_get => Ok(Self::File(id.to_owned())),
            (Some("files"), Some(id), None) if *method == Method::DELETE => Ok(Self::DeleteFile(id.to_owned())),
            (Some("files"), Some(_), None) => Err("GET, DELETE"),
            (Some("files"), Some(id), Some("content")) if is_get => Ok(Self::Content(id.to_owned())),
            (Some("files"), Some(_), Some("content")) => Err("GET"),
            (Some("batches"), None, _) if *method == Method::POST => Ok(Self::Create),
            (Some("batches"), None, _) => Ok(Self::Batches),
            (Some("batches"), Some(id), None) if is_get => Ok(Self::Batch(id.to_owned())),
            (Some("batches"), Some(_), None) => Err("GET"),
            (Some("batches"), Some(id), Some("cancel")) if *method == Method::POST => Ok(Self::Cancel(id.to_owned())),
            (Some("batches"), Some(_), Some("cancel")) => Err("POST"),
            _ => Err(""),
        }
    }
}

/// Answers a request about files or batches.
pub(super) async fn answer(
    gateway: &Gateway,
    plan: &BatchPlan,
    connection: &ConnectionInfo,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    let head = session.req_header();
    let ask = Ask::read(&head.method, head.uri.path()).map_err(|methods| unknown_path(methods, session, exchange))?;
    limiting::before_body(Some(&plan.route), false, session, exchange).await?;
    let held = match ask {
        Ask::Create => {
            let held = hold(gateway, plan, connection.limits.body_timeout.0, session, exchange).await;
            held.inspect_err(|_| exchange.ledger.release_entries(exchange.judged.taken))?
        }
        _ => Bytes::new(),
    };
    limiting::filters(&plan.route, session, exchange).await?;
    if let Some((limit, refusal)) = exchange.over_limit.take() {
        exchange.ledger.release();
        exchange.refused_by = Some(limit);
        return Err(refusal.into());
    }
    // The route requires a caller.
    let Some(caller) = exchange.caller.clone() else { return Err(super::access::no_route(session)) };
    let (owner, batches) = (&*caller.name, &plan.state);
    let shown = match ask {
        Ask::Upload => upload(batches, owner, session, exchange).await?.shown(),
        Ask::Files => {
            let page = page(session, MOST_LISTED.0, MOST_LISTED.0, true)?;
            let (files, has_more) = batches.files(owner, page).await.map_err(|e| refusal(&e))?;
            listed(files.iter().map(FileRecord::shown).collect(), has_more)
        }
        Ask::File(id) => batches.file(owner, &id).await.map_err(|e| refusal(&e))?.shown(),
        Ask::DeleteFile(id) => {
            batches.delete_file(owner, &id).await.map_err(|e| refusal(&e))?;
            json!({"id": id, "object": "file", "deleted": true})
        }
        Ask::Content(id) => {
            let (file, bytes) = batches.content(owner, &id).await.map_err(|e| refusal(&e))?;
            return content(&file, bytes, session, exchange).await;
        }
        Ask::Create => {
            let new = new_batch(&held, owner, batches, &connection.listener, session, exchange)?;
            batches
                .create(new)
                .await
                .map_err(|e| match e {
                    StoreError::Unknown => {
                        let message =
                            "There is no file of this caller with this id: send it with `POST /v1/files` first.";
                        Refusal::invalid("invalid_value", message).param("input_file_id")
                    }
                    e => refusal(&e),
                })?
                .shown()
        }
        Ask::Batches => {
            let page = page(session, LISTED, MOST_LISTED.1, false)?;
            let (all, has_more) = batches.batches(owner, page).await.map_err(|e| refusal(&e))?;
            listed(all.iter().map(|batch| batch.shown()).collect(), has_more)
        }
        Ask::Batch(id) => batches.batch(owner, &id).await.map_err(|e| refusal(&e))?.shown(),
        Ask::Cancel(id) => {
            let batch = batches.cancel(owner, &id).await.map_err(|e| refusal(&e))?;
            if batch.status.is_over() {
                let message = "The batch has ended, so there is nothing to cancel.";
                let refusal = Refusal::new(StatusCode::CONFLICT, ErrorKind::InvalidRequest, "batch_has_ended", message);
                return Err(refusal.into());
            }
            batch.shown()
        }
    };
    let mut head = ResponseHead::new(StatusCode::OK, 4);
    let _ = head.insert_header(header::CONTENT_TYPE, "application/json");
    send(session, exchange, head, Bytes::from(shown.to_string())).await.map_err(|_| End::ClientGone)
}

/// Reads a JSON body.
async fn hold(
    gateway: &Gateway,
    plan: &BatchPlan,
    within: Duration,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<Bytes, End> {
    hold_body(gateway, session, exchange, plan.route.max_body, within).await?;
    decode_body(session, exchange, plan.route.max_body).await?;
    match &exchange.body {
        RequestBody::Held(held) => Ok(held.bytes.clone()),
        RequestBody::Unread => Err(End::ClientGone),
    }
}

fn listed(data: Vec<Value>, has_more: bool) -> Value {
    let id = |entry: Option<&Value>| entry.and_then(|entry| entry.get("id")).cloned();
    let (first, last) = (id(data.first()), id(data.last()));
    json!({"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more})
}

/// Refusal of a path that is none, or of a method that it lacks.
fn unknown_path(methods: &'static str, session: &ClientSession, exchange: &Exchange) -> End {
    if methods.is_empty() {
        return super::access::no_route(session);
    }
    let method = &session.req_header().method;
    let message = format!("this path has no {method}; expected {methods}");
    let refusal =
        Refusal::new(StatusCode::METHOD_NOT_ALLOWED, ErrorKind::InvalidRequest, "method_not_allowed", message);
    let id = exchange.request_id.to_str().unwrap_or_default();
    let rendered = protocol::render(&refusal, exchange.error_dialect(), id);
    let mut headers = rendered.headers;
    headers.push((header::ALLOW, HeaderValue::from_static(methods)));
    headers.push((header::CONTENT_TYPE, rendered.content_type));
    End::Answer(Box::new(Answer { status: rendered.status, headers, body: rendered.body }))
}

fn refusal(error: &StoreError) -> Refusal {
    match error {
        // The same words for what never was and for another consumer's: nobody can probe.
        StoreError::Unknown => {
            let message = "There is nothing of this caller with this id: it never was, was deleted, or is too old.";
            Refusal::new(StatusCode::NOT_FOUND, ErrorKind::NotFound, "not_found", message)
        }
        StoreError::InUse => {
            let message = "The file is the input of a batch that has not ended: cancel the batch first.";
            Refusal::new(StatusCode::CONFLICT, ErrorKind::InvalidRequest, "file_in_use", message)
        }
        StoreError::Uploading => {
            let message = "As many files are being sent as may at a time (`batch.maxUploads`); send this one again.";
            Refusal::new(StatusCode::TOO_MANY_REQUESTS, ErrorKind::RateLimited, "too_many_uploads", message)
                .retry_after(Duration::from_secs(1))
        }
        StoreError::Full(what) => {
            let message = format!("No room: {what}. Delete files, or wait until batches have ended.");
            Refusal::new(StatusCode::TOO_MANY_REQUESTS, ErrorKind::RateLimited, "storage_full", message)
        }
        StoreError::File(_) | StoreError::Io { .. } => {
            tracing::error!(event = "batches_failed", reason = %error);
            let message = "The store of files and batches does not answer; the gateway's log says why.";
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Internal, "store_unavailable", message)
                .retry_after(Duration::from_secs(1))
        }
    }
}

/// Reads the query of a list.
fn page(session: &ClientSession, listed: u32, most: u32, has_purposes: bool) -> Result<Page, Refusal> {
    let mut page = Page { after: None, limit: listed, ascending: false, purpose: None };
    let query = session.req_header().uri.query().unwrap_or_default();
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "after" => page.after = Some(value.into_owned()).filter(|id| !id.is_empty()),
            "limit" => {
                let limit = value.parse().ok().filter(|limit| (1..=most).contains(limit));
                page.limit = limit.ok_or_else(|| {
                    Refusal::invalid("invalid_value", format!("`limit` is no number from 1 to {most}.")).param("limit")
                })?;
            }
            "order" if value == "asc" => page.ascending = true,
            "order" if value == "desc" => page.ascending = false,
            "order" => {
                return Err(Refusal::invalid("invalid_value", "`order` is neither `asc` nor `desc`.").param("order"));
            }
            "purpose" if has_purposes => page.purpose = Some(value.into_owned()),
            // As servers of the API do with what they do not know.
            _ => {}
        }
    }
    Ok(page)
}

/// Body of `POST /v1/batches`.
#[derive(Deserialize)]
struct Written {
    input_file_id: Option<String>,
    endpoint: Option<String>,
    completion_window: Option<String>,
    metadata: Option<Map<String, Value>>,
}

/// Reads a request for a batch.
fn new_batch(
    body: &[u8],
    owner: &str,
    batches: &Batches,
    listener: &str,
    session: &ClientSession,
    exchange: &Exchange,
) -> Result<NewBatch, Refusal> {
    let written: Written = serde_json::from_slice(body)
        .map_err(|e| Refusal::invalid("invalid_json", format!("The body is no JSON of a batch: {e}.")))?;
    let missing = |name: &'static str| {
        Refusal::invalid("missing_required_parameter", format!("`{name}` is missing.")).param(name)
    };
    let input_file = written.input_file_id.ok_or_else(|| missing("input_file_id"))?;
    let endpoint = written.endpoint.ok_or_else(|| missing("endpoint"))?;
    if !ENDPOINTS.contains(&endpoint.as_str()) {
        let known = ENDPOINTS.map(|known| format!("`{known}`")).join(", ");
        let message = format!("`endpoint` is `{}`; expected one of {known}.", protocol::shown(&endpoint));
        return Err(Refusal::invalid("invalid_value", message).param("endpoint"));
    }
    let window = written.completion_window.ok_or_else(|| missing("completion_window"))?;
    let most = batches.max_window();
    let length = window.parse::<values::Duration>().ok().map(|length| length.0);
    let length = length.filter(|length| (Duration::from_secs(1)..=most).contains(length)).ok_or_else(|| {
        let most = values::Duration(most);
        let message = format!("`completion_window` is no time from 1s to {most}, such as `24h`.");
        Refusal::invalid("invalid_value", message).param("completion_window")
    })?;
    if let Some(metadata) = &written.metadata {
        check_metadata(metadata)?;
    }
    let proof = exchange.caller_proof().ok_or_else(|| {
        let message = "Nothing shows who this caller is for longer than this request, so no batch can be made for it.";
        Refusal::new(StatusCode::FORBIDDEN, ErrorKind::Permission, "permission_denied", message)
    })?;
    let origin = BatchOrigin {
        listener: listener.to_owned(),
        host: super::target::host_of(session.req_header()).unwrap_or("localhost").to_owned(),
        client: exchange.client,
        credential: exchange.credential,
        proof: StoredProof::from(&proof),
    };
    let owner = owner.to_owned();
    Ok(NewBatch { owner, origin, endpoint, input_file, window: (window, length), metadata: written.metadata })
}

fn check_metadata(metadata: &Map<String, Value>) -> Result<(), Refusal> {
    let (pairs, key, value) = METADATA;
    let is_fit =
        |(name, text): (&String, &Value)| name.len() <= key && text.as_str().is_some_and(|text| text.len() <= value);
    if metadata.len() > pairs || !metadata.iter().all(is_fit) {
        let message = format!(
            "`metadata` has more than {pairs} pairs, a key of over {key} bytes, or a value that is no text of at most {value}."
        );
        return Err(Refusal::invalid("invalid_value", message).param("metadata"));
    }
    Ok(())
}

/// Takes a file (RFC 7578) as it arrives: nothing of it but a part is held in memory.
async fn upload(
    batches: &Arc<Batches>,
    owner: &str,
    session: &mut ClientSession,
    exchange: &Exchange,
) -> Result<FileRecord, End> {
    let head = session.req_header();
    if Coding::of(&head.headers) != Coding::Identity {
        let message = "A file is taken as it is: send the form without `Content-Encoding`.";
        return Err(End::refuse(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ErrorKind::InvalidRequest,
            "unsupported_content_encoding",
            message,
        )));
    }
    let content_type = session.get_header(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let boundary = content_type.and_then(|value| multer::parse_boundary(value).ok()).ok_or_else(|| {
        let message = "The body is no form: send `multipart/form-data` with `purpose` and `file`.";
        End::refuse(Refusal::invalid("invalid_form", message))
    })?;
    let declared =
        session.get_header(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    // A form has some more bytes than its file.
    if declared.is_some_and(|length| length > batches.max_file().saturating_add(64 << 10)) {
        return Err(too_long(batches));
    }
    if expects_continue(session) {
        session.write_continue_response().await.map_err(|_| End::ClientGone)?;
    }
    let pause = exchange.body_pause;
    let unread = AtomicUsize::new(0);
    let parts = stream::try_unfold(&mut *session, |session| async {
        // The reader of the form takes parts for as long as they are there: now it has to look at each.
        tokio::task::yield_now().await;
        let read = clock::within(pause, session.read_request_body()).await;
        let part = read.map_err(|_| Unread::TooSlow)?.map_err(|_| Unread::Gone)?;
        let length = part.as_ref().map_or(0, Bytes::len);
        if unread.fetch_add(length, Ordering::Relaxed) > MAX_UNREAD {
            return Err(Unread::TooMuch);
        }
        Ok::<_, Unread>(part.map(|part| (part, session)))
    });
    let parts = Box::pin(parts);
    let mut form = multer::Multipart::new(parts, boundary);
    let (mut file, mut purpose, mut keep, mut anchor) = (None, None, None, None);
    let mut fields = 0;
    while let Some(mut field) = form.next_field().await.map_err(|e| malformed(&e))? {
        unread.store(0, Ordering::Relaxed);
        fields += 1;
        if fields > MAX_FIELDS {
            return Err(End::refuse(Refusal::invalid("invalid_form", "The form has too many fields.")));
        }
        match field.name().map(str::to_owned).as_deref() {
            Some("file") if file.is_none() => {
                let name = field.file_name().unwrap_or("file").to_owned();
                if name.len() > MAX_NAME || name.chars().any(char::is_control) {
                    let message =
                        format!("The name of the file has control characters, or more than {MAX_NAME} bytes.");
                    return Err(End::refuse(Refusal::invalid("invalid_value", message).param("file")));
                }
                let mut upload = batches.upload(owner).await.map_err(|e| refusal(&e))?;
                while let Some(part) = field.chunk().await.map_err(|e| malformed(&e))? {
                    unread.store(0, Ordering::Relaxed);
                    if !upload.write(&part).await.map_err(|e| refusal(&e))? {
                        return Err(too_long(batches));
                    }
                }
                file = Some((name, upload));
            }
            Some("purpose") if purpose.is_none() => purpose = Some(text(&mut field).await?),
            Some("expires_after[anchor]") if anchor.is_none() => anchor = Some(text(&mut field).await?),
            Some("expires_after[seconds]") if keep.is_none() => {
                let seconds = text(&mut field).await?.parse().ok().filter(|seconds| EXPIRES_AFTER.contains(seconds));
                keep = Some(seconds.map(Duration::from_secs).ok_or_else(|| {
                    let message = "`expires_after[seconds]` is no number from 3600 to 2592000.";
                    End::refuse(Refusal::invalid("invalid_value", message).param("expires_after"))
                })?);
            }
            _ => {
                let message = "The form has a field twice, or one other than `file`, `purpose` and `expires_after`.";
                return Err(End::refuse(Refusal::invalid("unsupported_parameter", message)));
            }
        }
    }
    if keep.is_some() != anchor.is_some() || anchor.is_some_and(|anchor| anchor != "created_at") {
        let message = "`expires_after` has not both `anchor`, which is `created_at`, and `seconds`.";
        return Err(End::refuse(Refusal::invalid("invalid_value", message).param("expires_after")));
    }
    match purpose.as_deref() {
        Some(INPUT) => {}
        Some(_) => {
            let message = "`purpose` is not `batch`: files are kept for batches alone.";
            return Err(End::refuse(Refusal::invalid("invalid_value", message).param("purpose")));
        }
        None => {
            let message = "`purpose` is missing; expected `batch`.";
            return Err(End::refuse(Refusal::invalid("missing_required_parameter", message).param("purpose")));
        }
    }
    let Some((name, upload)) = file else {
        let message = "`file` is missing.";
        return Err(End::refuse(Refusal::invalid("missing_required_parameter", message).param("file")));
    };
    Ok(upload.finish(name, keep).await.map_err(|e| refusal(&e))?)
}

/// Reason why a form could not be read.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error("the client was too slow")]
    TooSlow,
    #[error("the client has gone")]
    Gone,
    #[error("the head of a part is too long")]
    TooMuch,
}

fn malformed(error: &multer::Error) -> End {
    if let multer::Error::StreamReadFailed(unread) = error {
        return match unread.downcast_ref::<Unread>() {
            Some(Unread::TooSlow) => too_slow(),
            Some(Unread::TooMuch) => End::refuse(Refusal::invalid("invalid_form", "The head of a part is too long.")),
            _ => End::ClientGone,
        };
    }
    End::refuse(Refusal::invalid("invalid_form", format!("The form cannot be read: {error}.")))
}

fn too_long(batches: &Batches) -> End {
    let message = format!("The file is longer than {} bytes (`batch.maxFile`).", batches.max_file());
    End::refuse(
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorKind::InvalidRequest, "file_too_large", message).param("file"),
    )
}

/// Reads a short field.
async fn text(field: &mut multer::Field<'_>) -> Result<String, End> {
    let mut text = BytesMut::new();
    while let Some(part) = field.chunk().await.map_err(|e| malformed(&e))? {
        text.extend_from_slice(&part);
        if text.len() > MAX_FIELD {
            let message = format!("A field of the form has more than {MAX_FIELD} bytes.");
            return Err(End::refuse(Refusal::invalid("string_above_max_length", message)));
        }
    }
    String::from_utf8(text.to_vec())
        .map_err(|_| End::refuse(Refusal::invalid("invalid_form", "A field of the form is no UTF-8.")))
}

/// Sends the bytes of a file, a part at a time.
async fn content(
    file: &FileRecord,
    mut bytes: tokio::fs::File,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    let mut head = ResponseHead::new(StatusCode::OK, 6);
    let _ = head.insert_header(header::CONTENT_TYPE, "application/octet-stream");
    let _ = head.insert_header(header::CONTENT_LENGTH, HeaderValue::from(file.bytes));
    let _ = head.insert_header(header::CONTENT_DISPOSITION, "attachment");
    finish_response(&mut head, session.req_header(), exchange);
    exchange.outcome.status = head.status.as_u16();
    exchange.rewriting = None;
    let ends = file.bytes == 0 || session.req_header().method == Method::HEAD;
    let gone = |_| End::ClientGone;
    // Each part has `writeTimeout`; the whole may take as long as a slow client needs for it.
    let limits = exchange.write_limits(clock::now() + LONGEST);
    deliver(pin!(session.write_head(Box::new(head), ends)), limits, &mut Nothing).await.map_err(gone)?;
    if ends {
        return Ok(());
    }
    let mut left = file.bytes;
    while left > 0 {
        let mut part = BytesMut::with_capacity(PART);
        let read = bytes.read_buf(&mut part).await;
        let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
        if !read.as_ref().is_ok_and(|read| *read > 0) || length > left {
            // The announced length cannot be reached: the client sees that the answer is cut.
            tracing::error!(
                event = "batches_failed",
                file = file.id,
                reason = "the file is shorter than it was, or cannot be read"
            );
            exchange.outcome.broken = true;
            session.shutdown().await;
            return Ok(());
        }
        left -= length;
        exchange.show(&part);
        let limits = exchange.write_limits(clock::now() + LONGEST);
        let write = session.write_response_body(part.freeze(), left == 0);
        deliver(pin!(write), limits, &mut Nothing).await.map_err(gone)?;
    }
    Ok(())
}

/// Most time for one part of a file.
const LONGEST: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_has_its_methods() {
        let id = "file-1".to_owned();
        for (method, path, expected) in [
            ("POST", "/v1/files", Ok(Ask::Upload)),
            ("GET", "/v1/files", Ok(Ask::Files)),
            ("GET", "/v1/files/", Ok(Ask::Files)),
            ("HEAD", "/v1/files/file-1", Ok(Ask::File(id.clone()))),
            ("DELETE", "/v1/files/file-1", Ok(Ask::DeleteFile(id.clone()))),
            ("GET", "/v1/files/file-1/content", Ok(Ask::Content(id.clone()))),
            ("POST", "/v1/batches", Ok(Ask::Create)),
            ("GET", "/v1/batches", Ok(Ask::Batches)),
            ("GET", "/v1/batches/file-1", Ok(Ask::Batch(id.clone()))),
            ("POST", "/v1/batches/file-1/cancel", Ok(Ask::Cancel(id.clone()))),
            ("PUT", "/v1/files", Err("GET, POST")),
            ("PATCH", "/v1/batches", Err("GET, POST")),
            ("POST", "/v1/files/file-1", Err("GET, DELETE")),
            ("DELETE", "/v1/files/file-1/content", Err("GET")),
            ("DELETE", "/v1/batches/file-1", Err("GET")),
            ("GET", "/v1/batches/file-1/cancel", Err("POST")),
            ("GET", "/v1/files/file-1/other", Err("")),
            ("GET", "/v1/files/file-1/content/x", Err("")),
        ] {
            assert_eq!(Ask::read(&method.parse().unwrap(), path), expected, "{method} {path}");
        }
    }
}
