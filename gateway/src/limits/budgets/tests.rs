//! Promises to rules: windows of the calendar, amounts that fit or do not, accounts that outlive the process.

use super::calendar::DAY;
use super::*;
use crate::clock::unix_now;

const NOON: u64 = 1_795_521_600; // 2026-11-24T12:00:00Z

fn tokens(tokens: u64) -> Amount {
    Amount { tokens, nanos: 0 }
}

fn install(budgets: &Budgets, path: &Path) {
    budgets.install(budgets.open(path).unwrap().unwrap());
}

#[test]
fn days_and_months_begin_at_midnight_utc() {
    assert_eq!(window(Period::Day, NOON).1, NOON + 12 * 3600);
    assert_eq!(window(Period::Month, NOON).1, 1_796_083_200, "2026-12-01");
    let december = window(Period::Month, 1_796_083_200);
    assert_eq!(december.0, window(Period::Month, NOON).0 + 1);
    assert_eq!(december.1, 1_798_761_600, "2027-01-01");
    assert_eq!(window(Period::Month, 1_709_164_800).1, 1_709_251_200, "2024-02-29 ends February");
}

#[test]
fn a_budget_is_taken_whole_or_not_and_begins_anew() {
    let budgets = Budgets::new(8, Counter::default());
    let account = budgets.account("a", Period::Day);
    let most = (Some(100), None);
    assert!(account.take(tokens(60), most, NOON));
    assert!(!account.take(tokens(60), most, NOON));
    let day = account.window(NOON);
    account.settle(tokens(60), tokens(10), day);
    assert!(account.take(tokens(90), most, NOON));
    assert!(!account.take(tokens(0), most, NOON), "it is spent");
    let tomorrow = NOON + DAY;
    assert!(account.take(tokens(100), most, tomorrow));
    account.settle(tokens(90), tokens(5), day);
    assert_eq!(account.spent(tomorrow).tokens, 105, "what yesterday's request used after midnight is today's");
    assert!(!account.take(tokens(1), most, NOON), "a clock that goes back opens nothing");
    assert!(account.take(tokens(30), (None, None), NOON));
    account.settle(tokens(30), tokens(2), account.window(NOON));
    assert_eq!(account.spent(NOON).tokens, 107, "nor is what is taken then charged twice");
}

#[test]
fn what_is_spent_survives_a_restart() {
    let now = unix_now();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/budgets.db");
    let budgets = Budgets::new(8, Counter::default());
    install(&budgets, &path);
    let amount = Amount { tokens: 7, nanos: 11 };
    assert!(budgets.account("a", Period::Month).take(amount, (None, None), now));
    assert!(budgets.account("a", Period::Day).take(tokens(1), (None, None), now));
    budgets.close();
    let again = Budgets::new(8, Counter::default());
    let held = again.account("a", Period::Month);
    install(&again, &path);
    assert_eq!(held.spent(now), amount);
    assert_eq!(again.account("a", Period::Day).spent(now), tokens(1));
    assert!(again.open(&folder.path().join("other.db")).is_err());
}

/// As of a gateway that hands over to another one: both spend for a while, and each must know of the other.
#[tokio::test]
async fn two_processes_add_to_one_file_and_see_what_the_other_has_spent() {
    let now = unix_now();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("budgets.db");
    let (old, new) = (Budgets::new(8, Counter::default()), Budgets::new(8, Counter::default()));
    install(&old, &path);
    let most = (Some(1_000), None);
    let account = old.account("a", Period::Day);
    assert!(account.take(tokens(100), most, now));
    let day = account.window(now);
    // The new one has read the file while the old one goes on.
    let opened = new.open(&path).unwrap().unwrap();
    assert!(account.take(tokens(400), most, now));
    assert!(old.account("late", Period::Day).take(tokens(5), most, now));
    assert!(old.exchange());
    new.install(opened);
    assert!(new.exchange());
    let successor = new.account("a", Period::Day);
    successor.known().await;
    assert_eq!(successor.spent(now), tokens(500));
    assert!(!successor.take(tokens(501), most, now), "what the old one has spent is not there to be spent again");
    assert!(successor.take(tokens(300), most, now));
    // A stream of the old one ends, with more than was reserved for it, and one with less.
    account.settle(tokens(100), tokens(140), day);
    account.settle(tokens(400), tokens(250), day);
    old.close();
    assert!(new.exchange());
    assert_eq!(successor.spent(now), tokens(690));
    successor.settle(tokens(300), tokens(10), day);
    new.close();
    let (mut rows, _) = File::open(&path).unwrap().read_some(8).unwrap();
    rows.sort_by(|(a, _), (b, _)| a.0.cmp(&b.0));
    let of: Vec<_> = rows.iter().map(|((consumer, _), spent)| (consumer.as_str(), spent.tokens)).collect();
    assert_eq!(of, [("a", 400), ("late", 5)]);
}

#[tokio::test]
async fn what_is_forgotten_in_memory_is_read_again() {
    let now = unix_now();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("budgets.db");
    let budgets = Budgets::new(4, Counter::default());
    install(&budgets, &path);
    assert!(budgets.account("a", Period::Month).take(tokens(7), (None, None), now));
    // A written account that no rule holds is dropped for others.
    while budgets.accounts.lock().table.contains_key(&("a".to_owned(), Period::Month)) {
        for n in 0..8 {
            budgets.account(&n.to_string(), Period::Day);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let again = budgets.account("a", Period::Month);
    assert!(again.take(tokens(2), (None, None), now), "it is counted before it is known too");
    again.known().await;
    assert_eq!(again.spent(now), tokens(9));
    drop(again);
    budgets.close();
    // More than fit into memory are read when they are asked for.
    let small = Budgets::new(0, Counter::default());
    install(&small, &path);
    let account = small.account("a", Period::Month);
    account.known().await;
    assert_eq!(account.spent(now), tokens(9));
    small.close();
    // A configuration's accounts are made before the file is installed.
    let small = Budgets::new(0, Counter::default());
    let opened = small.open(&path).unwrap().unwrap();
    let account = small.account("a", Period::Month);
    small.install(opened);
    assert!(account.take(tokens(1), (None, None), now));
    account.known().await;
    assert_eq!(account.spent(now), tokens(10));
}

#[test]
fn what_changed_last_is_written_however_many_wait_to_be_read_and_whoever_ends_it() {
    let now = unix_now();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("budgets.db");
    for n in 0..4 {
        let budgets = Budgets::new(0, Counter::default());
        install(&budgets, &path);
        // Every account has to be read first, and more of them are asked for than the thread can know of at once.
        let accounts: Vec<_> =
            (0..2 * READS).map(|n| budgets.account(&format!("consumer {n}"), Period::Month)).collect();
        for account in &accounts {
            assert!(account.take(tokens(1), (None, None), now));
        }
        if n % 2 == 0 {
            budgets.close();
        } else {
            let ended = budgets.writer.lock().take().map(|writer| writer.ended).unwrap();
            assert!(ended.recv().is_err(), "the thread ends with its owner");
        }
    }
    let (rows, _) = File::open(&path).unwrap().read_some(usize::MAX).unwrap();
    assert_eq!(rows.len(), 2 * READS);
    assert!(rows.iter().all(|(_, spent)| spent.tokens == 4), "{:?}", rows.iter().find(|(_, s)| s.tokens != 4));
}

#[test]
fn an_opened_file_that_is_not_installed_changes_nothing() {
    let now = unix_now();
    let folder = tempfile::tempdir().unwrap();
    let budgets = Budgets::new(8, Counter::default());
    let rejected = budgets.open(&folder.path().join("rejected.db")).unwrap().unwrap();
    assert!(budgets.account("a", Period::Day).take(tokens(1), (None, None), now));
    drop(rejected.writer.commands);
    assert!(rejected.writer.ended.recv().is_err(), "its thread ends");
    let (rows, _) = File::open(&folder.path().join("rejected.db")).unwrap().read_some(8).unwrap();
    assert!(rows.is_empty(), "{rows:?}");
    install(&budgets, &folder.path().join("budgets.db"));
    assert!(budgets.open(&folder.path().join("budgets.db")).unwrap().is_none());
}

#[test]
fn a_file_that_cannot_be_used_is_told_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("budgets.db");
    std::fs::write(&path, "this is no database, but a text that is long enough to be one").unwrap();
    let error = Budgets::new(8, Counter::default()).open(&path).err().unwrap().to_string();
    assert!(error.contains("budgets.db"), "{error}");
}

#[test]
fn judging_a_file_changes_nothing_in_it_and_beside_it() {
    let now = unix_now();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("budgets 100%41?mode=rwc#ü.db");
    let budgets = Budgets::new(8, Counter::default());
    install(&budgets, &path);
    assert!(budgets.account("a", Period::Month).take(tokens(7), (None, None), now));
    let state = || {
        let entries = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap());
        let mut all: Vec<_> = entries
            .map(|entry| {
                let modified = entry.metadata().unwrap().modified().unwrap();
                (entry.file_name(), std::fs::read(entry.path()).unwrap(), modified)
            })
            .collect();
        all.sort();
        all
    };
    Budgets::judge(&path).unwrap();
    budgets.close();
    let before = state();
    assert_eq!(before.len(), 1, "{before:?}");
    Budgets::judge(&path).unwrap();
    assert_eq!(state(), before);
    let (rows, _) = File::open(&path).unwrap().read_some(8).unwrap();
    assert_eq!(rows.len(), 1);
    // Empty is a file of budgets that has none yet; another database or text is refused, and left as it was.
    for (name, written, sound) in
        [("empty.db", "", true), ("text.db", "this is no database, but a long enough text", false)]
    {
        let path = folder.path().join(name);
        std::fs::write(&path, written).unwrap();
        let before = state();
        assert_eq!(Budgets::judge(&path).is_ok(), sound, "{name}");
        assert_eq!(state(), before);
    }
    let path = folder.path().join("other.db");
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE budgets (a TEXT)").unwrap();
    let error = Budgets::judge(&path).unwrap_err().to_string();
    assert!(error.contains("consumer"), "{error}");
}
