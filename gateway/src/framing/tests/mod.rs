//! Tests of the grammar case by case, then against httparse, with which the session parses fields. The tests of
//! `downstream/http1.rs` read whole connections.

mod harness;

use proptest::prelude::*;

use super::*;
use harness::ReadConnection;

/// Bytes of a head, and of trailers, that the readers of these tests allow.
const MOST: u64 = 512;

/// Reads `bytes` in parts of the given sizes, in turn.
fn read(bytes: &[u8], sizes: &[usize]) -> ReadConnection {
    harness::read(bytes, sizes, MOST)
}

fn violation(bytes: &[u8]) -> Option<Violation> {
    let whole = read(bytes, &[usize::MAX >> 1]);
    assert_eq!(whole, read(bytes, &[1]), "{:?}", bytes.escape_ascii().to_string());
    whole.violation
}

#[test]
fn messages_end_where_their_framing_says() {
    let messages: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\n\r\n",
        b"\r\nGET / HTTP/1.0\r\nHost: a\r\nX-Empty:\r\nX: \t a \x80b \r\n\r\n",
        b"POST /x?y HTTP/1.1\r\ncontent-LENGTH: \t5 \r\n\r\nhello",
        b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Lengths: 7\r\nTransfer-Encodings: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: Chunked \r\n\r\n5\r\nhello\r\n00A ;a=b; c = \"d\\\";\" ;e\r\n0123456789\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding:chunked\r\n\r\n0000000000000000\r\nX: y\r\nContent-Length: 9\r\n\r\n",
        b"GET /after HTTP/1.1\r\n\r\n",
    ];
    for sizes in [&[1][..], &[3, 1, 7], &[4096]] {
        let read = read(&messages.concat(), sizes);
        assert_eq!(read.messages, messages, "{sizes:?}: {:?}", read.violation);
        assert_eq!((read.rest, read.violation), (Vec::new(), None));
    }
}

#[test]
fn what_breaks_the_grammar_of_a_head_is_named() {
    use Violation::*;
    for (bytes, expected) in [
        (&b"\0"[..], RequestLine),
        (b"\n", LineEnd),
        (b"\rG", LineEnd),
        (b"G(T / HTTP/1.1\r\n", RequestLine),
        (b"GET  / HTTP/1.1\r\n", RequestLine),
        (b"GET / x HTTP/1.1\r\n", RequestLine),
        (b"GET /\r\n", RequestLine),
        (b"GET /\x7f HTTP/1.1\r\n", RequestLine),
        (b"GET / HTTP/1.2\r\n", Version),
        (b"GET / HTTP/2.0\r\n", Version),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Version),
        (b"GET / HTTP/1.x\r\n", RequestLine),
        (b"GET / HTTP/11.1\r\n", RequestLine),
        (b"GET / http/1.1\r\n", RequestLine),
        (b"GET / HTTP/1.1 \r\n", LineEnd),
        (b"GET / HTTP/1.1\n", LineEnd),
        (b"GET / HTTP/1.1\r\nHost: a\n", LineEnd),
        (b"GET / HTTP/1.1\r\nHost: a\rX", LineEnd),
        (b"GET / HTTP/1.1\r\n\n", LineEnd),
        (b"GET / HTTP/1.1\r\nHost : a\r\n", Field),
        (b"GET / HTTP/1.1\r\nHost\r\n", Field),
        (b"GET / HTTP/1.1\r\n: a\r\n", Field),
        (b"GET / HTTP/1.1\r\nX: a\r\n b\r\n", Field),
        (b"GET / HTTP/1.1\r\nX: \0\r\n", Field),
        (b"POST / HTTP/1.1\r\nContent-Length: \r\n", Length),
        (b"POST / HTTP/1.1\r\nContent-Length: +5\r\n", Length),
        (b"POST / HTTP/1.1\r\nContent-Length: -5\r\n", Length),
        (b"POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n", Length),
        (b"POST / HTTP/1.1\r\nContent-Length: 5 5\r\n", Length),
        (b"POST / HTTP/1.1\r\nContent-Length: 0x5\r\n", Length),
        (b"POST / HTTP/1.1\r\nContent-Length: 9223372036854775808\r\n", Length),
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n", Length),
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n", TwoLengths),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n", TwoLengths),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Coding),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n", Coding),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n", Coding),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked x\r\n", Coding),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked;q=1\r\n", Coding),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: \r\n", Coding),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n", Coding),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n", UnknownCoding),
    ] {
        assert_eq!(violation(bytes), Some(expected), "{:?}", bytes.escape_ascii().to_string());
    }
}

#[test]
fn what_breaks_the_grammar_of_chunks_is_named() {
    use Violation::*;
    let long = [&b"5;"[..], &[b'a'; MAX_CHUNK_LINE as usize]].concat();
    for (body, expected) in [
        (&b"\r\n"[..], ChunkLine),
        (b";a\r\n", ChunkLine),
        (b" 5\r\n", ChunkLine),
        (b"5 \r\n", ChunkLine),
        (b"0x5\r\n", ChunkLine),
        (b"-5\r\n", ChunkLine),
        (b"8000000000000000\r\n", ChunkLine),
        (b"00000000000000005\r\n", ChunkLine),
        (b"5\n", ChunkLine),
        (b"5\rh", LineEnd),
        (b"5;a\n", ChunkLine),
        (b"5;a\0\r\n", ChunkLine),
        (b"5;a=\"\x01\"\r\n", ChunkLine),
        (b"5;a=\r\n", ChunkLine),
        (b"5;=b\r\n", ChunkLine),
        (b"5;a=\"b\r\n", ChunkLine),
        (b"5;a=\"b\"c\r\n", ChunkLine),
        (b"5;a b\r\n", ChunkLine),
        (b"5;\r\n", ChunkLine),
        (&long, ChunkLineTooLong),
        (b"5\r\nhello\n", ChunkEnd),
        (b"5\r\nhello\r\r", ChunkEnd),
        (b"5\r\nhello!\r\n", ChunkEnd),
        (b"0\r\n\n", LineEnd),
        (b"0\r\nX\r\n", Trailer),
        (b"0\r\nX y\r\n", Trailer),
        (b"0\r\n X: y\r\n", Trailer),
        (b"0\r\nX: \x01\r\n", Trailer),
        (b"0\r\nX: y\n", LineEnd),
    ] {
        let bytes = [b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", body].concat();
        assert_eq!(violation(&bytes), Some(expected), "{:?}", body.escape_ascii().to_string());
    }
}

#[test]
fn a_head_and_trailers_have_bounds_that_are_reached_and_not_passed() {
    let most = usize::try_from(MOST).unwrap();
    let head = |length: usize| {
        let (before, after) = ("GET / HTTP/1.1\r\nX: ", "\r\n\r\n");
        [before.as_bytes(), &vec![b'x'; length - before.len() - after.len()], after.as_bytes()].concat()
    };
    assert_eq!(violation(&head(most)), None);
    assert_eq!(violation(&head(most + 1)), Some(Violation::HeadTooLong));
    assert_eq!(violation(&[b"GET /", &[b'x'; 600][..]].concat()), Some(Violation::TargetTooLong));
    assert_eq!(violation(&[b'M'; 600]), Some(Violation::TargetTooLong));
    assert_eq!(violation(&b"\r\n".repeat(300)), Some(Violation::TargetTooLong), "empty lines count");
    let begun = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n";
    let trailers = |length: usize| [&begun[..], b"X: ", &vec![b'x'; length - 7][..], b"\r\n\r\n"].concat();
    assert_eq!(violation(&trailers(most)), None);
    assert_eq!(violation(&trailers(most + 1)), Some(Violation::TrailersTooLong));

    let mut framer = Framer::new(1 << 20);
    let fields = |count: usize| [&b"GET / HTTP/1.1\r\n"[..], &b"a:b\r\n".repeat(count), b"\r\n"].concat();
    assert_eq!(framer.scan_head(&fields(256)), Ok((fields(256).len(), true)));
    assert!(framer.is_between());
    assert_eq!(framer.scan_head(&fields(257)), Err(Violation::TooManyFields));
    assert_eq!(framer.violation(), Some(Violation::TooManyFields));
}

#[test]
fn a_scan_ends_where_the_part_of_the_message_does() {
    let mut framer = Framer::new(1000);
    let head = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(framer.scan_head(&[&head[..], b"3\r\nabc"].concat()), Ok((head.len(), true)));
    assert_eq!((framer.scan_framing(b"3\r\nabc\r\n"), framer.opaque()), (Ok(3), 3));
    framer.skip(3);
    assert_eq!((framer.scan_framing(b"\r\n0\r\nA: b\r\n\r\nGET"), framer.is_in_trailers()), (Ok(5), true));
    assert_eq!((framer.scan_framing(b"A: b\r\n\r\nGET"), framer.is_between()), (Ok(8), true));
    assert_eq!(framer.scan_head(b"GET"), Ok((3, false)));
}

/// Strategy of bytes in which valid and invalid requests are likely.
fn connections() -> impl Strategy<Value = Vec<u8>> {
    let parts: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\n",
        b"POST /a\"b HTTP/1.1\r\n",
        b"PUT http://a/ HTTP/1.0\r\n",
        b"Host: a\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"X-Y: \tz\x80 \r\n",
        b"\r\n",
        b"\r\n",
        b"hello",
        b"5\r\nhello\r\n",
        b"1;a=\"b\"\r\nx\r\n",
        b"0\r\n\r\n",
        b"0\r\nX: y\r\n\r\n",
        b"\r",
        b"\n",
        b" ",
        b":",
        b"\0",
        b"9",
        b"f",
    ];
    let part = prop_oneof![9 => proptest::sample::select(parts.to_vec()).prop_map(<[u8]>::to_vec), 1 => any::<u8>().prop_map(|b| vec![b])];
    let whole = prop_oneof![
        Just(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec()),
        Just(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n".to_vec()),
        Just(Vec::new())
    ];
    proptest::collection::vec((whole, proptest::collection::vec(part, 0..6)), 1..4)
        .prop_map(|all| all.into_iter().flat_map(|(head, parts)| [head, parts.concat()].concat()).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn how_bytes_arrive_changes_nothing(bytes in connections(), sizes in proptest::collection::vec(1usize..40, 1..8)) {
        let whole = read(&bytes, &[usize::MAX >> 1]);
        prop_assert_eq!(&whole, &read(&bytes, &sizes));
        prop_assert_eq!(&whole, &read(&bytes, &[1]));
    }

    #[test]
    fn a_head_ends_where_the_parser_behind_ends_it(bytes in connections()) {
        let read = read(&bytes, &[4096]);
        let parse = |bytes: &[u8]| {
            let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS as usize];
            httparse::Request::new(&mut fields).parse(bytes)
        };
        for (message, fields) in read.messages.iter().zip(&read.fields) {
            // Empty lines before the request line are no end of it.
            let start = 2 * message.chunks(2).take_while(|pair| pair == b"\r\n").count();
            let end = start + 4 + message[start..].windows(4).position(|end| end == b"\r\n\r\n").unwrap();
            prop_assert!(!matches!(parse(&message[..end]), Ok(httparse::Status::Partial)));
            let mut parsed = [httparse::EMPTY_HEADER; MAX_FIELDS as usize];
            let mut parsed = httparse::Request::new(&mut parsed);
            if parsed.parse(message).is_ok() {
                let parsed: Vec<_> = parsed.headers.iter().map(|f| (f.name.as_bytes().to_vec(), f.value.to_vec())).collect();
                prop_assert_eq!(fields, &parsed);
            }
            for cut in 0..end {
                prop_assert!(!matches!(parse(&message[..cut]), Ok(httparse::Status::Complete(_))));
            }
        }
        // What is no whole message here must not be one there.
        if let Ok(httparse::Status::Complete(end)) = parse(&read.rest) {
            let begun = read.rest.get(end - 4..end);
            prop_assert_eq!(begun, Some(&b"\r\n\r\n"[..]));
        }
    }
}
