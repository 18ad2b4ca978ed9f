//! Functions that act on a request: answers of the module's own, calls to servers, and going on.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use spillway_filter::Answer;
use std::time::Duration;
use wasmtime::Linker;

use super::headers::decode;
use super::memory::{give, read, write_u32};
use super::{Done, Host, MODULE, Status, status};
use crate::context::{CallAsked, MAX_ADDED, MAX_CALLS, MAX_FIELDS};
use crate::state::State;

/// Most bytes of a body that a module makes: of an answer, or of a call.
const MAX_BODY: usize = 1 << 20;

/// Adds the functions.
pub(super) fn add(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.func_wrap(MODULE, "proxy_continue_stream", |mut host: Host<'_>, kind: u32| {
        status(match (kind, host.data_mut().stream()) {
            (0, Some(stream)) => {
                stream.is_paused = false;
                Ok(())
            }
            // An answer is not paused, but for a part of a stream, which goes on with the next.
            (1, Some(_)) => Ok(()),
            _ => Err(Status::BadArgument),
        })
    })?;
    linker.func_wrap(
        MODULE,
        "proxy_send_local_response",
        |mut host: Host<'_>, code: u32, _: u32, _: u32, body: u32, body_size: u32, map: u32, map_size: u32, _: u32| {
            status(answer(&mut host, code, (body, body_size), (map, map_size)))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "proxy_http_call",
        |mut host: Host<'_>,
         name: u32,
         name_size: u32,
         map: u32,
         map_size: u32,
         body: u32,
         body_size: u32,
         _trailers: u32,
         _trailers_size: u32,
         timeout: u32,
         to: u32| {
            let asked = Asked { name: (name, name_size), map: (map, map_size), body: (body, body_size), timeout };
            status(call(&mut host, &asked, to))
        },
    )?;
    // gRPC is not called, so that there is no status of a call.
    linker.func_wrap(MODULE, "proxy_get_status", |mut host: Host<'_>, to_code: u32, to: u32, to_size: u32| {
        status(write_u32(&mut host, to_code, 0).and_then(|()| give(&mut host, b"", to, to_size)))
    })?;
    Ok(())
}

type Fields = Vec<(HeaderName, HeaderValue)>;

/// Headers of a map, and the values of its pseudo-headers.
fn fields(bytes: &[u8]) -> Result<(Vec<(String, String)>, Fields), Status> {
    if bytes.len() > MAX_ADDED {
        return Err(Status::BadArgument);
    }
    let decoded = decode(bytes).ok_or(Status::SerializationFailure)?;
    if decoded.len() > MAX_FIELDS {
        return Err(Status::BadArgument);
    }
    let (mut pseudo, mut fields) = (Vec::new(), Vec::new());
    for (name, value) in decoded {
        if name.starts_with(b":") {
            let text = |bytes: &[u8]| std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Status::BadArgument);
            pseudo.push((text(name)?, text(value)?));
            continue;
        }
        let name = HeaderName::from_bytes(name).map_err(|_| Status::BadArgument)?;
        fields.push((name, HeaderValue::from_bytes(value).map_err(|_| Status::BadArgument)?));
    }
    Ok((pseudo, fields))
}

/// True for a header of the connection, which the gateway sets.
fn is_of_connection(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection" | "content-length" | "transfer-encoding" | "keep-alive" | "te" | "trailer" | "upgrade"
    )
}

fn body_of(host: &Host<'_>, body: (u32, u32)) -> Result<Bytes, Status> {
    let bytes = read(host, body.0, body.1)?;
    if bytes.len() > MAX_BODY {
        return Err(Status::BadArgument);
    }
    Ok(Bytes::copy_from_slice(bytes))
}

fn answer(host: &mut Host<'_>, code: u32, body: (u32, u32), map: (u32, u32)) -> Done {
    let code = u16::try_from(code).ok().filter(|code| (200..600).contains(code)).ok_or(Status::BadArgument)?;
    let status = StatusCode::from_u16(code).map_err(|_| Status::BadArgument)?;
    let (_, mut headers) = fields(read(host, map.0, map.1)?)?;
    headers.retain(|(name, _)| !is_of_connection(name));
    let body = body_of(host, body)?;
    let state = host.data_mut();
    let Some(stream) = state.stream() else { return Err(Status::BadArgument) };
    if !stream.may_answer {
        state.refused = Some("proxy_send_local_response");
        return Err(Status::Unimplemented);
    }
    // The first answer counts.
    stream.local.get_or_insert(Answer { status, headers, body });
    Ok(())
}

/// A call as the module asks for it, by addresses.
struct Asked {
    name: (u32, u32),
    map: (u32, u32),
    body: (u32, u32),
    timeout: u32,
}

fn call(host: &mut Host<'_>, asked: &Asked, to: u32) -> Done {
    write_u32(host, to, 0)?;
    let facts = host.data().facts.clone();
    let name = std::str::from_utf8(read(host, asked.name.0, asked.name.1)?).map_err(|_| Status::BadArgument)?;
    let url = facts.calls.get(name).ok_or(Status::BadArgument)?;
    let (pseudo, fields) = fields(read(host, asked.map.0, asked.map.1)?)?;
    let of = |wanted: &str| pseudo.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    let method = of(":method").unwrap_or("GET").parse::<Method>().map_err(|_| Status::BadArgument)?;
    let path = of(":path").filter(|path| path.starts_with('/')).ok_or(Status::BadArgument)?;
    if method == Method::CONNECT {
        return Err(Status::BadArgument);
    }
    let mut request = http::Request::builder().method(method).uri(format!("{url}{path}"));
    if let Some(authority) = of(":authority").filter(|authority| !authority.is_empty()) {
        request = request.header(http::header::HOST, authority);
    }
    for (name, value) in fields.into_iter().filter(|(name, _)| !is_of_connection(name) && *name != http::header::HOST) {
        request = request.header(name, value);
    }
    let request = request.body(body_of(host, asked.body)?).map_err(|_| Status::BadArgument)?;
    let timeout = Duration::from_millis(asked.timeout.into()).min(facts.wait);
    let state = host.data_mut();
    // Modules look their calls up by these numbers, whatever stream they belong to.
    state.last_call = state.last_call.wrapping_add(1).max(1);
    let id = state.last_call;
    let Some(stream) = state.stream() else {
        state.refused = Some("proxy_http_call");
        return Err(Status::Unimplemented);
    };
    // What is asked for when the request has gone on would be told to nobody.
    if !stream.may_answer || stream.asked.len() >= MAX_CALLS || stream.calls >= u32::try_from(MAX_CALLS).unwrap_or(0) {
        return Err(Status::InternalFailure);
    }
    stream.calls += 1;
    stream.asked.push(CallAsked { id, request, timeout });
    write_u32(host, to, id)
}
