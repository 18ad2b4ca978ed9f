//! Promises to listeners: stored files are found again and are private, times of renewal, publication of challenges.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::tls::ServerTls;
use crate::tls::testing::Authority;

fn acme() -> Arc<Acme> {
    Arc::new(Acme::new(Arc::new(Metrics::new())))
}

fn written(folder: &Path, domains: &[&str]) -> schema::Acme {
    let text = serde_json::json!({"directory": "https://ca.test/dir", "domains": domains, "storage": folder});
    serde_json::from_value(text).unwrap()
}

fn store(folder: &Path, domains: &[&str], names: &[&str]) {
    let made = Authority::new().server(names);
    let storage = Storage::new(&written(folder, domains));
    storage.store_certificate(&storage.pair(&made.cert, &made.key).unwrap()).unwrap();
}

#[test]
fn a_certificate_is_found_again_by_its_names_and_is_for_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("deep/acme");
    store(&state, &["a.test", "b.test"], &["a.test", "b.test"]);
    let files: Vec<_> = std::fs::read_dir(&state).unwrap().map(|file| file.unwrap()).collect();
    assert_eq!(files.len(), 1, "nothing half-written is left");
    assert_eq!(files[0].metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(state.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    let found = |domains: &[&str]| acme().certificate(&written(&state, domains)).unwrap().pair().is_some();
    assert!(found(&["a.test", "b.test"]));
    assert!(found(&["A.test", "b.test"]));
    assert!(!found(&["a.test"]), "another order");
    // A file for other names is not served, and a broken one does not prevent the start.
    store(&state, &["c.test"], &["d.test"]);
    assert!(!found(&["c.test"]));
    std::fs::write(files[0].path(), "junk").unwrap();
    assert!(!found(&["a.test", "b.test"]));
}

#[test]
fn a_file_is_whole_however_many_write_it() {
    let folder = tempfile::tempdir().unwrap();
    let storage = Storage::new(&written(folder.path(), &["a.test"]));
    let pairs: Vec<CertificatePair> = (0..4)
        .map(|_| Authority::new().server(&["a.test"]))
        .map(|made| storage.pair(&made.cert, &made.key).unwrap())
        .collect();
    std::thread::scope(|threads| {
        for pair in &pairs {
            threads.spawn(|| (0..20).for_each(|_| storage.store_certificate(pair).unwrap()));
        }
        for _ in 0..100 {
            // Certificate and key are of one writer, or reading would fail.
            storage.certificate().into_iter().for_each(|stored| drop(stored.unwrap()));
        }
    });
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing half-written is left");
}

#[test]
fn a_certificate_is_renewed_in_time_and_not_without_end() {
    let days = |days: i64| days * 86_400;
    let ninety = (0, days(90));
    assert_eq!(renewal(ninety, None, 0.0), days(60), "a third is left");
    assert_eq!(renewal(ninety, None, 1.0), days(57), "up to a tenth of that earlier");
    assert_eq!(renewal(ninety, Some(Duration::from_secs(86_400)), 0.0), days(89));
    assert_eq!(
        renewal(ninety, Some(Duration::from_secs(86_400 * 365)), 0.5),
        days(30),
        "never before a third has passed"
    );
    assert_eq!(renewal((days(5), days(2)), None, 0.0), days(2), "times without sense");
}

#[test]
fn pauses_grow_to_a_bound_and_an_authority_that_has_had_enough_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let managed = acme().certificate(&written(folder.path(), &["a.test"])).unwrap();
    let minutes = |failures| managed.pause(failures, &OrderError::TooSlow).as_secs() / 60;
    assert!((2..=5).contains(&minutes(1)));
    assert!((10..=20).contains(&minutes(3)));
    assert!((180..=360).contains(&minutes(1000)));
    let problem = serde_json::json!({"type": "urn:ietf:params:acme:error:rateLimited", "detail": "too many"});
    let limited = instant_acme::Error::Api(serde_json::from_value(problem).unwrap());
    assert!(managed.pause(1, &limited.into()) >= TOO_MANY);
}

#[test]
fn the_same_certificate_is_one_and_a_change_makes_another() {
    let folder = tempfile::tempdir().unwrap();
    let acme = acme();
    let first = acme.certificate(&written(folder.path(), &["a.test"])).unwrap();
    assert!(Arc::ptr_eq(&first, &acme.certificate(&written(folder.path(), &["a.test"])).unwrap()));
    assert!(!Arc::ptr_eq(&first, &acme.certificate(&written(folder.path(), &["b.test"])).unwrap()));
}

#[test]
fn a_challenge_is_shown_until_it_is_over() {
    let challenges = Arc::new(Challenges::default());
    assert_eq!(challenges.text("/.well-known/acme-challenge/t"), None);
    let shown = challenges.publish_text("t", "t.proof");
    assert_eq!(challenges.text("/.well-known/acme-challenge/t").as_deref(), Some("t.proof"));
    for path in ["/.well-known/acme-challenge/", "/.well-known/acme-challenge/u", "/t", "t", ""] {
        assert_eq!(challenges.text(path), None, "{path}");
    }
    let (first, second) =
        (challenges.publish_certificate("A.test", &[7; 32]), challenges.publish_certificate("a.test", &[8; 32]));
    drop(first);
    assert_eq!(challenges.certificates(), 1, "the other order's is still shown");
    drop((shown, second));
    assert!(challenges.certificates() == 0 && challenges.text("/.well-known/acme-challenge/t").is_none());
}

#[test]
fn a_listener_shows_what_it_has_until_the_certificate_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let (cert_file, key_file) = Authority::new().server(&["other.test", "*.b.test"]).write(folder.path(), "other");
    let listener = |with_other: bool| {
        let certificates = with_other.then(|| serde_json::json!({"certFile": cert_file, "keyFile": key_file}));
        let obtained = serde_json::to_value(written(folder.path(), &["a.test", "x.b.test"])).unwrap();
        let text = serde_json::json!({"certificates": certificates.into_iter().collect::<Vec<_>>(), "acme": obtained});
        ServerTls::read(&serde_json::from_value(text).unwrap(), &acme()).unwrap()
    };
    let (alone, beside) = (listener(false), listener(true));
    assert_eq!((alone.certificates().count(), beside.certificates().count()), (0, 1));
    assert!(alone.challenge.is_some(), "the challenge is tls-alpn-01 when nothing is said");
    store(folder.path(), &["a.test", "x.b.test"], &["a.test", "x.b.test"]);
    let (alone, beside) = (listener(false), listener(true));
    assert_eq!((alone.certificates().count(), beside.certificates().count()), (1, 2));
    assert!(beside.answers_for("a.test", "x.b.test"), "one certificate for both");
    assert!(beside.answers_for("other.test", "y.b.test") && !beside.answers_for("other.test", "a.test"));
}
