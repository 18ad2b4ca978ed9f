//! A device that fails, panics or hangs ends the requests that run on it and nothing else.

use super::*;
use crate::device;

#[test]
fn a_device_that_fails_is_set_up_again_and_only_its_requests_fail() {
    for fault in [Fault::Error, Fault::Panic] {
        let world = World { end: -9.0, row_time: Duration::from_micros(100), ..World::default() };
        let refusals = Faults { refusals: 2, ..Faults::default() };
        let scene = Scene::with(sizes(2, 8 * PAGE, 20), &options(8), world, refusals).unwrap();
        let ask = || scene.handle.submit(Generate { max_tokens: Some(100), ..Generate::new(words(1, 1, 40)) });
        let before = all(&ask().unwrap()).answers;
        let running = ask().unwrap();
        while !matches!(running.recv_blocking().unwrap(), Event::Text { .. }) {}
        scene.faults.lock().unwrap().next.push_back(fault);
        assert!(matches!(all(&running).end, Err(EngineError::Device(_))));
        // Not dead: busy, then ready, with nothing left of the old device's cache.
        let started = Instant::now();
        let after = loop {
            match ask() {
                Ok(events) => match all(&events) {
                    All { answers, end: Ok(finished) } => break (answers, finished),
                    All { end: Err(e), .. } => assert!(matches!(e, EngineError::Device(_)), "{e:?}"),
                },
                Err(busy) => assert_eq!(busy.reason, BusyReason::Recovering),
            }
            assert!(started.elapsed() < Duration::from_secs(30));
            std::thread::sleep(Duration::from_millis(2));
        };
        assert_eq!(after.1.cached_tokens, 0);
        assert_eq!(before.len(), after.0.len());
        let stats = scene.handle.stats();
        assert_eq!((stats.faults, stats.is_ready), (1, true));
        assert_eq!(scene.faults.lock().unwrap().on_processor.len(), 4);
    }
}

#[test]
fn a_device_that_hangs_fails_its_requests_in_time() {
    let scene = Scene::new(sizes(2, 8 * PAGE, 20), &options(8), World { end: -9.0, ..World::default() });
    scene.faults.lock().unwrap().next.push_back(Fault::Hang(Duration::from_secs(2)));
    let started = Instant::now();
    let running = scene.submit(Generate { max_tokens: Some(5), ..Generate::new(words(1, 1, 40)) });
    assert!(matches!(all(&running).end, Err(EngineError::Device(_))));
    assert!(started.elapsed() < Duration::from_secs(2), "it was told before the device came back");
    assert!(!scene.handle.stats().is_ready);
    let busy = scene.handle.submit(Generate::new(words(1, 1, 4))).unwrap_err();
    assert_eq!(busy.reason, BusyReason::Recovering);
    while !scene.handle.stats().is_ready {
        assert!(started.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(5));
    }
    let after = scene.submit(Generate { max_tokens: Some(5), ..Generate::new(words(1, 1, 40)) });
    assert!(all(&after).end.is_ok());
    assert_eq!(scene.faults.lock().unwrap().on_processor.len(), 2);
}

#[test]
fn a_complete_answer_is_read_to_its_end_while_the_device_is_away() {
    for fault in [Fault::Error, Fault::Hang(Duration::from_secs(5))] {
        let refusals = Faults { refusals: usize::MAX, ..Faults::default() };
        let world = World { end: -9.0, ..World::default() };
        let scene = Scene::with(sizes(2, 8 * PAGE, 40), &options(8), world, refusals).unwrap();
        // Of some, the last events find as many in the channel as may wait for a reader.
        let written = |tokens| {
            let events = unread(&scene, tokens);
            scene.idle();
            (tokens, events)
        };
        let complete: Vec<_> = (58..=63).map(written).collect();
        scene.faults.lock().unwrap().next.push_back(fault);
        assert!(all(&scene.submit(Generate::new(words(1, 1, 4)))).end.is_err());
        assert!(!scene.handle.stats().is_ready);
        for (tokens, events) in complete {
            let (told, end) = std::sync::mpsc::channel();
            std::thread::spawn(move || told.send(all(&events).end));
            let end = end.recv_timeout(Duration::from_secs(4)).expect("its end does not wait for the device");
            assert!(end.is_ok(), "{tokens} tokens: {end:?}");
        }
        assert!(!scene.handle.stats().is_ready, "the device is still away");
    }
}

/// Waits until the model is ready after it was not.
fn ready_again(handle: &SchedulerHandle, faults: u64) {
    let started = Instant::now();
    while !handle.stats().is_ready || handle.stats().faults < faults {
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", handle.stats());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_gpu_that_is_lost_makes_way_for_the_processor_where_the_choice_is_ours() {
    let ask = |scene: &Scene| {
        all(&scene.submit(Generate { max_tokens: Some(5), ..Generate::new(words(1, 1, 40)) })).end.map(|_| ())
    };
    let world = || World { end: -9.0, ..World::default() };
    // The GPU cannot be set up any more.
    let ours = LoadOptions { device: DeviceChoice::Auto, ..options(8) };
    let refusals = |refusals| Faults { refusals, ..Faults::default() };
    let scene = Scene::with(sizes(2, 8 * PAGE, 20), &ours, world(), refusals(usize::MAX)).unwrap();
    assert_eq!(scene.handle.thread.placement().device.kind, "discrete GPU");
    scene.faults.lock().unwrap().next.push_back(Fault::Error);
    assert!(matches!(ask(&scene), Err(EngineError::Device(_))));
    ready_again(&scene.handle, 1);
    assert_eq!(ask(&scene), Ok(()));
    let placement = scene.handle.thread.placement();
    assert_eq!(placement.device.kind, "CPU");
    assert!(placement.device.reason.contains("none yet") && placement.rate > 0.0, "{placement:?}");
    assert_eq!(scene.faults.lock().unwrap().on_processor, [false, false, true]);
    // The GPU recovers each time and fails again: the third fault is the last.
    let scene = Scene::new(sizes(2, 8 * PAGE, 20), &ours, world());
    for faults in 1..=3 {
        scene.faults.lock().unwrap().next.push_back(Fault::Error);
        assert!(matches!(ask(&scene), Err(EngineError::Device(_))));
        ready_again(&scene.handle, faults);
        assert_eq!(ask(&scene), Ok(()));
    }
    assert_eq!(scene.handle.thread.placement().device.kind, "CPU");
    assert_eq!(scene.faults.lock().unwrap().on_processor, [false, false, false, true]);
    // A GPU named in the options is never replaced.
    let scene = Scene::with(sizes(2, 8 * PAGE, 20), &options(8), world(), refusals(1)).unwrap();
    scene.faults.lock().unwrap().next.push_back(Fault::Panic);
    assert!(matches!(ask(&scene), Err(EngineError::Device(_))));
    ready_again(&scene.handle, 1);
    assert_eq!(scene.faults.lock().unwrap().on_processor, [false; 3]);
}

#[test]
fn a_gpu_that_cannot_run_its_first_step_makes_way_too() {
    let ours = LoadOptions { device: DeviceChoice::Auto, ..options(8) };
    let scene = Scene::with(sizes(2, 8 * PAGE, 20), &ours, World::default(), Faults::first(Fault::Error)).unwrap();
    assert_eq!(scene.handle.thread.placement().device.kind, "CPU");
    assert!(scene.handle.thread.placement().device.reason.contains("out of memory"));
}

#[test]
fn a_device_that_hangs_in_its_first_step_is_not_waited_for() {
    let hang = || Faults::first(Fault::Hang(Duration::from_secs(3)));
    for device in [DeviceChoice::Index(0), DeviceChoice::Auto] {
        let options = LoadOptions { device, name: "hangs, a decoder".into(), ..options(8) };
        let started = Instant::now();
        let scene = Scene::with(sizes(2, 8 * PAGE, 20), &options, World::default(), hang());
        let fault = scene.err().unwrap();
        assert!(matches!(fault, LoadError::Hangs { kind: "discrete GPU", .. }), "{fault}");
        assert!(started.elapsed() < Duration::from_secs(3), "it was told before the device came back");
    }
}

#[test]
fn what_is_held_for_a_models_memory_is_held_until_its_thread_has_given_it_back() {
    let wait = Duration::from_secs(30);
    let (faults, dropped) = Faults::default().held();
    let scene = Scene::with(sizes(2, 8 * PAGE, 20), &options(8), World::default(), faults).unwrap();
    // A device that is set up again keeps the guard of the same model.
    scene.faults.lock().unwrap().next.push_back(Fault::Error);
    assert!(all(&scene.submit(Generate::new(words(1, 1, 4)))).end.is_err());
    ready_again(&scene.handle, 1);
    assert!(dropped.try_recv().is_err());
    drop(scene);
    assert_eq!(dropped.recv_timeout(wait), Ok(0), "the memory goes first");

    let hang = Duration::from_secs(3);
    let (faults, dropped) = Faults::first(Fault::Hang(hang)).held();
    let options = LoadOptions { name: "hangs, with memory".into(), ..options(8) };
    let started = Instant::now();
    assert!(Scene::with(sizes(2, 8 * PAGE, 20), &options, World::default(), faults).is_err());
    let early = dropped.try_recv();
    assert!(early.is_err() || started.elapsed() >= hang, "the thread that hangs has the memory");
    assert_eq!(early.or_else(|_| dropped.recv_timeout(wait)), Ok(0));
}

#[test]
fn a_device_that_hangs_is_left_alone_until_its_own_thread_has_come_back() {
    let (hang, name) = (Duration::from_secs(3), "hangs, for one of two");
    let options = LoadOptions { name: name.into(), ..options(8) };
    let scene = |faults| Scene::with(sizes(2, 8 * PAGE, 20), &options, World::default(), faults);
    let refused = || device::refuse_gpu(name, "discrete GPU").is_err();
    let started = Instant::now();
    assert!(scene(Faults::first(Fault::Hang(hang))).is_err());
    assert!(refused() || started.elapsed() >= hang);
    // An engine that is loaded meanwhile.
    assert!(scene(Faults::default()).is_ok());
    assert!(refused() || started.elapsed() >= hang, "another engine's first run says nothing of this one's");
    while refused() {
        assert!(started.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_defect_outside_a_step_ends_the_engine_and_says_so() {
    let world = World { copies: true, copy_panics: true, end: -9.0, ..World::default() };
    let scene = Scene::new(sizes(4, 8 * PAGE, 40), &options(8), world);
    let ask = |choices, length| {
        let choices = NonZeroU32::new(choices).unwrap();
        Generate { choices, max_tokens: Some(20), ..Generate::new(words(1, 1, length)) }
    };
    let other = scene.submit(ask(1, 5));
    let end = all(&scene.submit(ask(2, 40))).end;
    assert!(matches!(&end, Err(EngineError::Defect(why)) if why.contains("a defect outside")), "{end:?}");
    assert!(matches!(all(&other).end, Ok(_) | Err(EngineError::Defect(_))));
    assert!(scene.handle.thread.has_ended() && !scene.handle.stats().is_ready);
    assert_eq!(scene.handle.submit(ask(1, 5)).unwrap_err().reason, BusyReason::Stopped);
    assert_eq!(scene.handle.stats().active, 0);
}

#[test]
fn an_engine_that_ends_while_it_recovers_ends() {
    let refusals = Faults { refusals: usize::MAX, ..Faults::default() };
    let scene = Scene::with(sizes(2, 8 * PAGE, 20), &options(8), World::default(), refusals).unwrap();
    scene.faults.lock().unwrap().next.push_back(Fault::Error);
    assert!(all(&scene.submit(Generate::new(words(1, 1, 4)))).end.is_err());
    let Scene { handle, world, .. } = scene;
    drop(handle);
    let started = Instant::now();
    // The thread holds the last but one of the world's owners.
    while Arc::strong_count(&world) > 1 {
        assert!(started.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(5));
    }
}
