//! Promises of a store, over two handles of one file. `tests/tests/keys.rs` has the same of a Redis server and two gateways.

use super::*;

fn change(id: &str, before: Option<&str>, after: Option<&str>) -> Change {
    Change { id: id.to_owned(), before: before.map(str::to_owned), after: after.map(str::to_owned), most: 2 }
}

#[tokio::test]
async fn a_change_is_made_of_what_is_there_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let (first, second) = (SqliteKeys::open(&path).unwrap(), SqliteKeys::open(&path).unwrap());
    assert_eq!(first.load().await.unwrap(), Contents::default());
    let Written::Done(revision) = first.change(&change("a", None, Some("1"))).await.unwrap() else { panic!() };
    assert_eq!(second.revision().await.unwrap(), revision);
    // A second key of the id, and a change of a document that is not there, change nothing.
    for wrong in [change("a", None, Some("2")), change("a", Some("2"), Some("3")), change("b", Some("1"), None)] {
        assert_eq!(second.change(&wrong).await.unwrap(), Written::Differs, "{wrong:?}");
    }
    assert_eq!(second.change(&change("a", Some("1"), Some("2"))).await.unwrap(), Written::Done(revision + 1));
    assert_eq!(second.change(&change("b", None, Some("1"))).await.unwrap(), Written::Done(revision + 2));
    assert_eq!(first.change(&change("c", None, Some("1"))).await.unwrap(), Written::Full);
    let document = |id: &str, text: &str| (id.to_owned(), text.to_owned());
    let all = Contents { revision: revision + 2, documents: vec![document("a", "2"), document("b", "1")] };
    assert_eq!((first.load().await.unwrap(), second.load().await.unwrap().revision), (all, revision + 2));
    assert_eq!(first.change(&change("a", Some("2"), None)).await.unwrap(), Written::Done(revision + 3));
    assert_eq!(second.change(&change("c", None, Some("1"))).await.unwrap(), Written::Done(revision + 4));
    drop(first);
    SqliteKeys::judge(&path).unwrap();
}

#[test]
fn a_file_of_another_program_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.db");
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    for refused in [SqliteKeys::judge(&path), SqliteKeys::open(&path).map(|_| ())] {
        assert!(refused.unwrap_err().to_string().contains("another program"));
    }
}
