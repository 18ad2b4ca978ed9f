//! Models without a file: when loading is tried, how long a request waits, and the share of the memory budget.

use std::path::Path;

use super::*;

fn written(source: &Path) -> Model {
    let text = serde_json::json!({"name": "m", "source": source, "keepWarm": false, "idleUnload": "10ms"});
    serde_json::from_value(text).unwrap()
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_is_tried_again_after_a_while() {
    let folder = tempfile::tempdir().unwrap();
    let model = LoadedModel::for_tests(&written(&folder.path().join("missing.gguf")));
    let soon = || Instant::now() + Duration::from_secs(60);
    assert_eq!(model.engine(soon()).await.err(), Some(NotLoaded::Failed(RELOAD_AFTER)));
    let Err(NotLoaded::Failed(left)) = model.engine(soon()).await else { panic!() };
    assert!(left <= RELOAD_AFTER && left > Duration::ZERO, "it was not tried at once");
    assert!(!model.sample().is_loaded);
    model.state.lock().failed.as_mut().unwrap().0 -= RELOAD_AFTER;
    assert_eq!(model.engine(soon()).await.err(), Some(NotLoaded::Failed(RELOAD_AFTER)), "now it was");
}

#[tokio::test]
async fn nobody_waits_longer_for_a_model_than_it_may() {
    let folder = tempfile::tempdir().unwrap();
    let model = LoadedModel::for_tests(&written(&folder.path().join("missing.gguf")));
    let _turn = model.loading.clone().lock_owned().await;
    let deadline = Instant::now() + Duration::from_millis(50);
    assert_eq!(model.engine(deadline).await.err(), Some(NotLoaded::Loading));
}

#[test]
fn a_model_that_is_kept_warm_keeps_its_share_while_it_is_not_loaded() {
    let (memory, source) = (ModelMemory::new(Some(100)), Path::new("missing.gguf"));
    let warm = LoadedModel::within(&Model { keep_warm: true, ..written(source) }, 60, &memory);
    let cold = LoadedModel::within(&written(source), 60, &memory);
    let share = |model: &LoadedModel| model.take_share().map_err(|e| e.of("m").to_string());
    // As if it was loaded and had ended.
    let first = share(&warm).unwrap();
    drop((first.hold(), first));
    assert_eq!(memory.taken(), 60);
    assert!(share(&cold).err().unwrap().contains("in use"));
    assert!(share(&warm).is_ok(), "it is its own");
    assert_eq!(memory.taken(), 60);
    // A thread that hangs has memory there: another share is needed, and released with the model.
    let hangs = share(&warm).unwrap().hold();
    assert!(share(&warm).is_err());
    drop(hangs);
    assert!(share(&warm).is_ok());
    // A model that replaces it needs no memory beside it.
    warm.release_share();
    assert_eq!(memory.taken(), 0);
    assert!(share(&warm).is_ok());
    drop(warm);
    assert_eq!(memory.taken(), 0);
    drop(share(&cold).unwrap());
    assert_eq!(memory.taken(), 0, "one that is loaded on demand keeps nothing");
}

#[test]
fn a_load_that_hangs_keeps_its_memory_and_the_processor_needs_more() {
    let memory = ModelMemory::new(Some(100));
    for (keep_warm, needs, fits) in [(true, 60, false), (false, 60, false), (false, 40, true)] {
        let written = Model { keep_warm, ..written(Path::new("missing.gguf")) };
        let model = LoadedModel::within(&written, needs, &memory);
        let mut inside = None;
        let loaded = model.load_by(|_, hold| {
            inside = Some(hold()?);
            // The GPU hangs.
            drop(hold()?);
            Err(NoEngine::Load(spillway_engine::LoadError::NoDevice("none".into())))
        });
        match loaded.err().unwrap() {
            NoEngine::Hangs(no) => assert!(!fits && no.taken == needs && no.needed == needs),
            NoEngine::Load(_) => assert!(fits),
            NoEngine::Room(no) => panic!("{no}"),
        }
        drop(model);
        assert_eq!(memory.taken(), needs, "the thread inside has it, whatever became of the model");
        drop(inside);
        assert_eq!(memory.taken(), 0);
    }
}

#[test]
fn a_share_is_one_sequence_at_least_and_all_at_most() {
    let places = [(16, 0.25), (16, 0.0), (2, 0.25), (3, 0.5), (4, 1.0)].map(|(n, share)| share_of(n, share));
    assert_eq!(places, [4, 0, 1, 1, 4]);
}
