//! Functions of header maps and of properties.

use wasmtime::Linker;

use super::memory::{give, read_two, read_with_state, write_u32};
use super::{Done, Host, MODULE, Status, status};
use crate::context::{NoChange, Table};
use crate::state::{ROOT, State};

/// Most bytes of a map that a module sets.
const MAX_MAP: usize = 1 << 20;

impl From<NoChange> for Status {
    fn from(_: NoChange) -> Self {
        Self::BadArgument
    }
}

/// Adds the functions.
pub(super) fn add(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.func_wrap(MODULE, "proxy_get_header_map_size", |mut host: Host<'_>, map: u32, to: u32| {
        status(size(&mut host, map, to))
    })?;
    linker.func_wrap(MODULE, "proxy_get_header_map_pairs", |mut host: Host<'_>, map: u32, to: u32, to_size: u32| {
        status(pairs(&mut host, map, to, to_size))
    })?;
    linker.func_wrap(MODULE, "proxy_set_header_map_pairs", |mut host: Host<'_>, map: u32, at: u32, size: u32| {
        status(set_pairs(&mut host, map, at, size))
    })?;
    linker.func_wrap(
        MODULE,
        "proxy_get_header_map_value",
        |mut host: Host<'_>, map: u32, key: u32, key_size: u32, to: u32, to_size: u32| {
            status(value(&mut host, map, (key, key_size), to, to_size))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "proxy_add_header_map_value",
        |mut host: Host<'_>, map: u32, key: u32, key_size: u32, at: u32, size: u32| {
            status(change(&mut host, map, (key, key_size), (at, size), Table::add))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "proxy_replace_header_map_value",
        |mut host: Host<'_>, map: u32, key: u32, key_size: u32, at: u32, size: u32| {
            status(change(&mut host, map, (key, key_size), (at, size), Table::replace))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "proxy_remove_header_map_value",
        |mut host: Host<'_>, map: u32, key: u32, key_size: u32| {
            status(change(&mut host, map, (key, key_size), (0, 0), |table, name, _| table.remove(name)))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "proxy_get_property",
        |mut host: Host<'_>, path: u32, path_size: u32, to: u32, to_size: u32| {
            status(property(&mut host, (path, path_size), to, to_size))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "proxy_set_property",
        |mut host: Host<'_>, path: u32, path_size: u32, at: u32, size: u32| {
            status(set_property(&mut host, (path, path_size), (at, size)))
        },
    )?;
    Ok(())
}

/// Map of this number; `None` if there is none now. Trailers are not shown, and gRPC is not called.
fn table(state: &mut State, map: u32) -> Result<Option<&mut Table>, Status> {
    match map {
        0 => Ok(state.stream().map(|stream| &mut stream.request)),
        2 => Ok(state.stream().and_then(|stream| stream.response.as_mut())),
        6 => Ok(state.answer.as_mut().map(|answer| &mut answer.headers)),
        1 | 3 | 4 | 5 | 7 => Ok(None),
        _ => Err(Status::BadArgument),
    }
}

fn size(host: &mut Host<'_>, map: u32, to: u32) -> Done {
    let bytes = table(host.data_mut(), map)?.map_or(4, |table| encoded_length(table));
    write_u32(host, to, u32::try_from(bytes).map_err(|_| Status::InternalFailure)?)
}

fn encoded_length(table: &Table) -> usize {
    table.iter().map(|(name, value)| name.len() + value.len() + 10).sum::<usize>() + 4
}

/// A map: the number of its fields, the lengths of each, and the fields, each with a zero byte at its end.
fn encode(table: &Table) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(encoded_length(table));
    out.extend_from_slice(&u32::try_from(table.len()).ok()?.to_le_bytes());
    for (name, value) in table.iter() {
        out.extend_from_slice(&u32::try_from(name.len()).ok()?.to_le_bytes());
        out.extend_from_slice(&u32::try_from(value.len()).ok()?.to_le_bytes());
    }
    for part in table.iter().flat_map(|(name, value)| [name, value]) {
        out.extend_from_slice(part);
        out.push(0);
    }
    Some(out)
}

/// Fields of an encoded map. No bytes, or one that is zero, are an empty map.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    if bytes.is_empty() || bytes == [0] {
        return Some(Vec::new());
    }
    let number = |at: usize| {
        let four = bytes.get(at..at.checked_add(4)?)?;
        usize::try_from(u32::from_le_bytes(four.try_into().ok()?)).ok()
    };
    let count = number(0)?;
    // Each field has lengths of 8 bytes, so that no count is larger than the bytes allow.
    let mut at = count.checked_mul(8)?.checked_add(4).filter(|at| *at <= bytes.len())?;
    let mut take = |length: usize| {
        let end = at.checked_add(length)?;
        let part = bytes.get(at..end)?;
        at = end.checked_add(1)?;
        (bytes.get(end) == Some(&0)).then_some(part)
    };
    (0..count).map(|n| Some((take(number(4 + n * 8)?)?, take(number(8 + n * 8)?)?))).collect()
}

fn pairs(host: &mut Host<'_>, map: u32, to: u32, to_size: u32) -> Done {
    let encoded = match table(host.data_mut(), map)? {
        Some(table) => encode(table).ok_or(Status::InternalFailure)?,
        None => vec![0; 4],
    };
    give(host, &encoded, to, to_size)
}

fn set_pairs(host: &mut Host<'_>, map: u32, at: u32, size: u32) -> Done {
    let (bytes, state) = read_with_state(host, at, size)?;
    let table = table(state, map)?.ok_or(Status::BadArgument)?;
    if bytes.len() > MAX_MAP {
        return Err(Status::BadArgument);
    }
    let fields = decode(bytes).ok_or(Status::SerializationFailure)?;
    Ok(table.set_all(&fields)?)
}

fn value(host: &mut Host<'_>, map: u32, key: (u32, u32), to: u32, to_size: u32) -> Done {
    let (key, state) = read_with_state(host, key.0, key.1)?;
    let found = table(state, map)?.and_then(|table| table.get(key)).ok_or(Status::NotFound)?;
    give(host, &found, to, to_size)
}

fn change(
    host: &mut Host<'_>,
    map: u32,
    key: (u32, u32),
    value: (u32, u32),
    by: impl Fn(&mut Table, &[u8], &[u8]) -> Result<(), NoChange>,
) -> Done {
    let (key, value, state) = read_two(host, key, value)?;
    let table = table(state, map)?.ok_or(Status::BadArgument)?;
    Ok(by(table, key, value)?)
}

fn property(host: &mut Host<'_>, path: (u32, u32), to: u32, to_size: u32) -> Done {
    let (path, state) = read_with_state(host, path.0, path.1)?;
    let found = property_of(state, path).ok_or(Status::NotFound)?;
    give(host, &found, to, to_size)
}

/// Value of a property, whose names are separated by zero bytes. docs/extend/wasm.md has the table.
fn property_of(state: &mut State, path: &[u8]) -> Option<Vec<u8>> {
    if let Some(own) = state.stream().and_then(|stream| stream.own_property(path)) {
        return Some(own.to_vec());
    }
    let path = path.strip_suffix(&[0]).unwrap_or(path);
    let mut names = path.split(|byte| *byte == 0).map(|name| std::str::from_utf8(name).unwrap_or_default());
    let (first, second, third) = (names.next()?, names.next(), names.next());
    let text = |text: &str| Some(text.as_bytes().to_vec());
    match (first, second) {
        ("plugin_name", None) => return text(&state.facts.name),
        ("plugin_root_id", None) => return text(&state.facts.root_id),
        ("route_name", None) | ("xds", Some("route_name")) => return text(&state.facts.route),
        _ => {}
    }
    let stream = state.stream()?;
    let facts = &stream.facts;
    let number = |number: u64| Some(number.to_le_bytes().to_vec());
    match (first, second?) {
        ("request", "path") => text(&facts.target()),
        ("request", "url_path") => text(&facts.path),
        ("request", "query") => text(&facts.query),
        ("request", "host") => text(&facts.host),
        ("request", "scheme") => text(facts.scheme),
        ("request", "method") => text(&facts.method),
        ("request", "size") => number(u64::try_from(stream.request_body.bytes().len()).ok()?),
        ("request", "headers") => stream.request.get(third?.as_bytes()),
        ("source", "address") => text(&facts.client?.to_string()),
        ("response", "code") => number(stream.status?.into()),
        ("response", "headers") => stream.response.as_ref()?.get(third?.as_bytes()),
        ("spillway", "consumer") => text(facts.consumer.as_deref()?),
        ("spillway", "tenant") => text(facts.tenant.as_deref()?),
        ("spillway", "model") => text(facts.model.as_deref()?),
        _ => None,
    }
}

fn set_property(host: &mut Host<'_>, path: (u32, u32), value: (u32, u32)) -> Done {
    let (path, value, state) = read_two(host, path, value)?;
    if state.current == ROOT {
        return Err(Status::BadArgument);
    }
    Ok(state.stream().ok_or(Status::BadArgument)?.set_property(path, value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_read_as_they_are_written() {
        let mut table = Table::default();
        table.pseudo.push((":status", "200".to_owned()));
        table.add(b"X-A", b"1").unwrap();
        table.add(b"x-empty", b"").unwrap();
        let encoded = encode(&table).unwrap();
        assert_eq!(encoded.len(), encoded_length(&table));
        let fields = decode(&encoded).unwrap();
        assert_eq!(fields, [(&b":status"[..], &b"200"[..]), (b"x-a", b"1"), (b"x-empty", b"")]);
        for cut in 1..encoded.len() {
            assert!(decode(&encoded[..cut]).is_none() || cut == 0, "{cut}");
        }
    }

    #[test]
    fn maps_that_are_none_are_refused() {
        assert_eq!(decode(&[]), Some(Vec::new()));
        assert_eq!(decode(&[0]), Some(Vec::new()));
        assert_eq!(decode(&[0, 0, 0, 0]), Some(Vec::new()));
        for wrong in [
            &[255; 4][..],
            &[1, 0, 0, 0],
            &[1, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 0],
            b"\x01\0\0\0\x01\0\0\0\0\0\0\0ab\0",
        ] {
            assert_eq!(decode(wrong), None, "{wrong:?}");
        }
    }
}
