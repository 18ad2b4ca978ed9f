//! Observers of an exchange: what its filters follow of it. Shows each part to all of them, in the order of the filters, and
//! splits event streams where one reads events. Empty and without cost where no filter follows.

use http::{StatusCode, header};
use spillway_filter::{EventSplitter, ExchangeEnd, Headers, Observer, Refusal};

/// An observer and the name of its filter.
struct NamedObserver {
    filter: String,
    observer: Box<dyn Observer>,
}

/// Observers of an exchange.
#[derive(Default)]
pub struct Observers {
    all: Vec<NamedObserver>,
    /// Splits the answer, if it is an event stream that an observer reads.
    events: Option<EventSplitter>,
}

/// Refusal of a part of a request's body.
#[derive(Debug)]
pub struct RefusedPart {
    /// Filter that refused.
    pub filter: String,
    /// The refusal.
    pub refusal: Box<Refusal>,
}

impl Observers {
    /// True if no filter follows the exchange.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// True if a filter reads the events of the answer.
    pub fn reads_events(&self) -> bool {
        self.all.iter().any(|named| named.observer.reads_events())
    }

    /// Adds the observer of a filter.
    pub fn add(&mut self, filter: &str, observer: Box<dyn Observer>) {
        self.all.push(NamedObserver { filter: filter.to_owned(), observer });
    }

    /// Shows a part of the request's body.
    pub fn request_body(&mut self, part: &[u8]) -> Result<(), RefusedPart> {
        if part.is_empty() {
            return Ok(());
        }
        for named in &mut self.all {
            if let Err(refusal) = named.observer.on_request_body(part) {
                return Err(RefusedPart { filter: named.filter.clone(), refusal });
            }
        }
        Ok(())
    }

    /// Shows the head of the answer.
    pub fn response_head(&mut self, status: StatusCode, headers: &mut dyn Headers) {
        if self.all.is_empty() {
            return;
        }
        for named in &mut self.all {
            named.observer.on_response_head(status, headers);
        }
        let is_coded = headers.get(&header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
        let reads = !is_coded && self.reads_events();
        self.events = EventSplitter::of(headers.get(&header::CONTENT_TYPE)).filter(|_| reads);
    }

    /// Shows a part of the answer's body, and the events that end in it.
    pub fn response_body(&mut self, part: &[u8]) {
        if self.all.is_empty() || part.is_empty() {
            return;
        }
        for named in &mut self.all {
            named.observer.on_response_body(part);
        }
        let Some(events) = &mut self.events else { return };
        events.feed(part, |event| {
            for named in self.all.iter_mut().filter(|named| named.observer.reads_events()) {
                named.observer.on_response_event(event);
            }
        });
    }

    /// Shows how the exchange ended. No observer is called again.
    pub fn end(&mut self, end: &ExchangeEnd<'_>) {
        for mut named in std::mem::take(&mut self.all) {
            named.observer.on_end(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use spillway_filter::testing::exchange_end;
    use spillway_filter::{Fields, ResponseEvent};

    use super::*;

    #[derive(Clone, Default)]
    struct Notes(Arc<Mutex<Vec<String>>>);

    impl Notes {
        fn add(&self, text: String) {
            self.0.lock().unwrap().push(text);
        }
    }

    struct Noting {
        notes: Notes,
        reads_events: bool,
    }

    impl Observer for Noting {
        fn on_request_body(&mut self, part: &[u8]) -> Result<(), Box<Refusal>> {
            self.notes.add(format!("request {}", String::from_utf8_lossy(part)));
            if part == b"bad" { Err(Box::new(Refusal::invalid("bad", "bad"))) } else { Ok(()) }
        }
        fn on_response_head(&mut self, status: StatusCode, headers: &mut dyn Headers) {
            headers.set(&header::SERVER, "observed".parse().unwrap());
            self.notes.add(format!("head {}", status.as_u16()));
        }
        fn on_response_body(&mut self, part: &[u8]) {
            self.notes.add(format!("body {}", part.len()));
        }
        fn reads_events(&self) -> bool {
            self.reads_events
        }
        fn on_response_event(&mut self, event: &ResponseEvent<'_>) {
            self.notes.add(format!("event {}", String::from_utf8_lossy(&event.data().unwrap())));
        }
        fn on_end(&mut self, end: &ExchangeEnd<'_>) {
            self.notes.add(format!("end {}", end.bytes_out));
        }
    }

    fn observed(reads_events: bool, coding: Option<&str>) -> Vec<String> {
        observed_as("text/event-stream; charset=utf-8", [b"data: 1\n\ndata: ", b"2\n\n"], reads_events, coding)
    }

    fn observed_as(kind: &str, parts: [&[u8]; 2], reads_events: bool, coding: Option<&str>) -> Vec<String> {
        let notes = Notes::default();
        let mut observers = Observers::default();
        observers.add("f", Box::new(Noting { notes: notes.clone(), reads_events }));
        observers.request_body(b"good").unwrap();
        let mut headers = Fields::default();
        headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
        if let Some(coding) = coding {
            headers.insert(header::CONTENT_ENCODING, coding.parse().unwrap());
        }
        observers.response_head(StatusCode::OK, &mut headers);
        assert_eq!(headers[header::SERVER], "observed");
        parts.iter().for_each(|part| observers.response_body(part));
        let end = ExchangeEnd { bytes_out: 18, ..exchange_end() };
        observers.end(&end);
        observers.end(&end);
        assert!(observers.is_empty());
        notes.0.lock().unwrap().clone()
    }

    #[test]
    fn an_observer_sees_each_part_once_and_the_end_last() {
        let plain = ["request good", "head 200", "body 15", "body 3", "end 18"];
        assert_eq!(observed(false, None), plain);
        assert_eq!(observed(true, Some("gzip")), plain, "events of a coded stream cannot be read");
        let with_events = ["request good", "head 200", "body 15", "event 1", "body 3", "event 2", "end 18"];
        assert_eq!(observed(true, None), with_events);
        assert_eq!(observed(true, Some("identity")), with_events);
        let lines = ["request good", "head 200", "body 5", "event {}", "body 5", "event [12]", "end 18"];
        assert_eq!(observed_as("application/x-ndjson", [b"{}\n[1", b"2]\n\n\n"], true, None), lines);
        assert_eq!(observed_as("application/json", [b"{}\n[1", b"2]\n\n\n"], true, None).len(), 5);
    }

    #[test]
    fn a_refused_part_reaches_no_later_observer() {
        let (first, second) = (Notes::default(), Notes::default());
        let mut observers = Observers::default();
        observers.add("first", Box::new(Noting { notes: first.clone(), reads_events: false }));
        observers.add("second", Box::new(Noting { notes: second.clone(), reads_events: false }));
        let refused = observers.request_body(b"bad").unwrap_err();
        assert_eq!((refused.filter.as_str(), refused.refusal.code), ("first", "bad"));
        assert_eq!((first.0.lock().unwrap().len(), second.0.lock().unwrap().len()), (1, 0));
    }
}
