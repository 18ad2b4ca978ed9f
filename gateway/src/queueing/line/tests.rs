//! The algebra of the line, with time as a number.

use proptest::prelude::*;

use super::*;

const WAIT: Duration = Duration::from_secs(1);

fn line(max_depth: usize) -> (Line, Instant) {
    (Line::new(LineRules { max_depth, max_wait: WAIT }), Instant::now())
}

fn tenant(name: &str) -> Party {
    Party::Tenant(name.into())
}

fn name(entry: &LineEntry) -> String {
    match &entry.party {
        Party::Tenant(name) => name.to_string(),
        Party::Address(network) => format!("{network:?}"),
    }
}

/// Adds a waiter that must get an entry and displace none.
fn enter(line: &mut Line, now: Instant, who: &str, priority: i32) -> LineEntry {
    let mut lost = Vec::new();
    let entry = line.enter(now, tenant(who), priority, now + WAIT, &mut lost).unwrap();
    assert!(lost.is_empty(), "{lost:?}");
    entry
}

/// Calls and admits `count` waiters, and returns their names.
fn serve(line: &mut Line, now: Instant, count: usize) -> String {
    let mut served = Vec::new();
    for _ in 0..count {
        let Some(entry) = line.call(now) else { break };
        served.push(name(&entry));
        line.admitted(now);
    }
    served.join("")
}

#[test]
fn tenants_have_their_turns_however_many_requests_they_send() {
    let (mut line, now) = line(100);
    for _ in 0..6 {
        enter(&mut line, now, "a", 0);
    }
    enter(&mut line, now, "b", 0);
    enter(&mut line, now, "c", 0);
    enter(&mut line, now, "b", 0);
    assert_eq!(serve(&mut line, now, 20), "abcabaaaa");
    assert_eq!(line.depth(), 0);
}

#[test]
fn a_higher_priority_goes_first() {
    let (mut line, now) = line(100);
    for (who, priority) in [("low", -1), ("mid", 0), ("top", 10), ("mid", 0), ("top", 10)] {
        enter(&mut line, now, who, priority);
    }
    assert_eq!(serve(&mut line, now, 20), "toptopmidmidlow");
}

#[test]
fn the_oldest_goes_first_until_the_line_has_stood_for_as_long_as_one_may_wait() {
    let (mut line, start) = line(100);
    let mut places = Vec::new();
    for n in 0..12u64 {
        let now = start + Duration::from_millis(n * 100);
        places.push(enter(&mut line, now, "a", 0).id());
    }
    let mut called = |at: u64| {
        let now = start + Duration::from_millis(at);
        let entry = line.call(now).unwrap();
        line.admitted(now);
        entry.id()
    };
    assert_eq!(called(900), places[0], "a burst: first come, first served");
    assert_eq!(called(1100), places[11], "it stands: the newest");
    assert_eq!(called(1200), places[10]);
    let now = start + Duration::from_millis(1300);
    assert_eq!(serve(&mut line, now, 20).len(), 9);
    let later = start + Duration::from_millis(1400);
    let (first, _) = (enter(&mut line, later, "a", 0).id(), enter(&mut line, later, "a", 0));
    assert_eq!(line.call(later).unwrap().id(), first, "it was empty: first come, first served again");
}

#[test]
fn a_waiter_that_found_no_slot_keeps_its_position() {
    let (mut line, now) = line(100);
    for who in ["a", "b", "a", "c"] {
        enter(&mut line, now, who, 0);
    }
    let first = line.call(now).unwrap();
    assert_eq!((name(&first).as_str(), line.depth()), ("a", 4));
    line.back(now, first.clone());
    assert_eq!(line.call(now).unwrap().id(), first.id());
    line.back(now, first);
    assert_eq!(serve(&mut line, now, 9), "abca");
}

#[test]
fn entries_of_a_full_line_are_shared_and_a_higher_priority_displaces() {
    let (mut line, now) = line(4);
    let places: Vec<u64> = (0..4).map(|_| enter(&mut line, now, "a", 0).id()).collect();
    let mut lost = Vec::new();
    let mut come = |line: &mut Line, who: &str, priority: i32| {
        lost.clear();
        let entered = line.enter(now, tenant(who), priority, now + WAIT, &mut lost).map(|_| ());
        (entered, lost.clone())
    };
    assert_eq!(come(&mut line, "a", 0), (Err(NoEntry::Full), vec![]), "its own newest has no better claim");
    assert_eq!(come(&mut line, "b", 0), (Ok(()), vec![places[3]]), "the newest of the one who has most");
    assert_eq!(come(&mut line, "b", 0), (Ok(()), vec![places[2]]));
    assert_eq!(come(&mut line, "b", 0), (Err(NoEntry::Full), vec![]), "two and two");
    assert_eq!(come(&mut line, "c", -1), (Err(NoEntry::Full), vec![]), "a lower priority takes no place");
    let (entered, displaced) = come(&mut line, "c", 1);
    assert_eq!((entered, displaced.len()), (Ok(()), 1));
    assert_eq!(line.depth(), 4);
    assert_eq!(name(&line.call(now).unwrap()), "c");
}

#[test]
fn a_waiter_that_cannot_be_reached_in_time_is_moved_on() {
    let (mut line, start) = line(1000);
    // Ten a second are admitted, for two seconds; the line is emptied in between, so that it does not stand.
    let mut now = start;
    for _ in 0..20 {
        enter(&mut line, now, "a", 0);
        now += Duration::from_millis(100);
        assert_eq!(serve(&mut line, now, 1), "a");
    }
    let mut held = 0;
    let refused = loop {
        match line.enter(now, tenant("a"), 0, now + WAIT, &mut Vec::new()) {
            Ok(_) => held += 1,
            Err(no) => break no,
        }
        assert!(held < 100);
    };
    assert_eq!((held, refused), (10, NoEntry::TooLate), "a second holds ten");
    let wait = line.drained_in(now).unwrap().as_secs_f64();
    assert!((1.0..1.2).contains(&wait), "eleven at ten a second: {wait}");
    enter(&mut line, now, "b", 0);
    assert_eq!(line.depth(), 11, "another tenant's turn comes soon");
}

#[test]
fn while_the_line_stands_the_oldest_are_moved_on_before_their_time() {
    let (mut line, start) = line(1000);
    let (mut now, mut moved_on, mut admitted) = (start, Vec::new(), Vec::new());
    let mut ages: HashMap<u64, Instant> = HashMap::new();
    // Thirty a second come, ten a second are admitted.
    for n in 0..300u32 {
        let mut lost = Vec::new();
        if let Ok(entry) = line.enter(now, tenant("a"), 0, now + WAIT, &mut lost) {
            ages.insert(entry.id(), now);
        }
        if n > 60 {
            moved_on.extend(lost.iter().filter_map(|id| ages.get(id)).map(|since| now - *since));
        }
        if n % 3 == 0
            && let Some(entry) = line.call(now)
        {
            line.admitted(now);
            if n > 60 {
                admitted.push(now - ages[&entry.id()]);
            }
        }
        now += Duration::from_millis(33);
    }
    assert!(!moved_on.is_empty());
    assert!(moved_on.iter().all(|age| *age < WAIT), "nobody is held to the end in vain: {moved_on:?}");
    admitted.sort();
    let median = admitted[admitted.len() / 2];
    assert!(median < Duration::from_millis(50), "most of those who are served are served at once: {median:?}");
    assert!(line.depth() <= 11, "{}", line.depth());
}

#[derive(Debug, Clone)]
enum Step {
    Enter { who: u8, priority: i32, wait: u16 },
    Call,
    Admit(usize),
    Back(usize),
    GoneCalled(usize),
    Leave(usize),
    Pass(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..4, -1i32..2, 1u16..2000).prop_map(|(who, priority, wait)| Step::Enter { who, priority, wait }),
        3 => Just(Step::Call),
        2 => any::<usize>().prop_map(Step::Admit),
        1 => any::<usize>().prop_map(Step::Back),
        1 => any::<usize>().prop_map(Step::GoneCalled),
        2 => any::<usize>().prop_map(Step::Leave),
        2 => (0u16..700).prop_map(Step::Pass),
    ]
}

proptest! {
    #[test]
    fn no_waiter_is_lost_or_counted_twice(steps in proptest::collection::vec(step(), 1..200), max_depth in 1usize..12) {
        let (mut line, mut now) = line(max_depth);
        let (mut waiting, mut called): (Vec<LineEntry>, Vec<LineEntry>) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Enter { who, priority, wait } => {
                    let mut lost = Vec::new();
                    let until = now + Duration::from_millis(wait.into());
                    let entered = line.enter(now, tenant(&who.to_string()), priority, until, &mut lost);
                    for id in lost {
                        let before = waiting.len();
                        waiting.retain(|entry| entry.id() != id);
                        prop_assert_eq!(waiting.len() + 1, before, "only one who waits is moved on");
                    }
                    waiting.extend(entered.ok());
                }
                Step::Call => match line.call(now) {
                    Some(entry) => {
                        let best = waiting.iter().map(|p| p.priority).max();
                        prop_assert_eq!(Some(entry.priority), best, "the highest priority first");
                        let before = waiting.len();
                        waiting.retain(|p| p.id() != entry.id());
                        prop_assert_eq!(waiting.len() + 1, before);
                        called.push(entry);
                    }
                    None => prop_assert!(waiting.is_empty(), "somebody is called whenever somebody waits"),
                },
                Step::Admit(n) if !called.is_empty() => {
                    called.swap_remove(n % called.len());
                    line.admitted(now);
                }
                Step::Back(n) if !called.is_empty() => {
                    let entry = called.swap_remove(n % called.len());
                    line.back(now, entry.clone());
                    waiting.push(entry);
                }
                Step::GoneCalled(n) if !called.is_empty() => {
                    called.swap_remove(n % called.len());
                    line.gone_called(now);
                }
                Step::Leave(n) if !waiting.is_empty() => {
                    let entry = waiting.swap_remove(n % waiting.len());
                    prop_assert!(line.leave(now, &entry));
                    prop_assert!(!line.leave(now, &entry), "nobody leaves twice");
                }
                Step::Pass(millis) => now += Duration::from_millis(millis.into()),
                _ => {}
            }
            prop_assert_eq!(line.depth(), waiting.len() + called.len());
            prop_assert!(line.depth() <= max_depth);
        }
        for entry in waiting {
            line.leave(now, &entry);
        }
        for _ in called {
            line.gone_called(now);
        }
        prop_assert_eq!(line.depth(), 0);
        prop_assert!(line.tiers.is_empty(), "nothing is left behind: {:?}", line.tiers);
    }

    #[test]
    fn among_tenants_who_always_wait_none_is_ahead_by_more_than_one(
        backlog in proptest::collection::vec(1usize..40, 2..6), calls in 1usize..60,
    ) {
        let (mut line, now) = line(1000);
        for (who, count) in backlog.iter().enumerate() {
            for _ in 0..*count {
                enter(&mut line, now, &who.to_string(), 0);
            }
        }
        let mut left = backlog.clone();
        let mut served = vec![0usize; backlog.len()];
        for _ in 0..calls {
            let Some(entry) = line.call(now) else { break };
            line.admitted(now);
            let who: usize = name(&entry).parse().unwrap();
            served[who] += 1;
            left[who] -= 1;
            let waiting = served.iter().zip(&left).filter(|(_, left)| **left > 0).map(|(served, _)| *served);
            let (least, most) = (waiting.clone().min(), served.iter().max().copied());
            if let (Some(least), Some(most)) = (least, most) {
                prop_assert!(most <= least + 1, "{served:?} of {backlog:?}");
            }
        }
    }
}
