//! `basicAuth`: names and passwords (RFC 7617) from a file.

mod turns;
mod users;

use std::io::ErrorKind as IoErrorKind;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::channel::oneshot;
use http::{StatusCode, header};
use schemars::JsonSchema;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use spillway_config::values::FilePath;
use spillway_filter::{
    BuildContext, ErrorKind, FieldError, Filter, FilterFactory, Flow, HeaderChange, Refusal, RequestView, Stage,
    Waited, define,
};

use turns::Turns;
use users::Users;

/// Longest time for which a password that was right is not checked again: each check takes a thread tens of milliseconds, and a page
/// is made of many requests. An edit of the file ends it.
const KEPT: Duration = Duration::from_mins(5);
/// Most passwords that are kept as right.
const MOST_KEPT: u64 = 10_000;
/// Longest name and password together, in bytes. bcrypt reads 72 bytes of a password.
const MAX_CREDENTIALS: usize = 1 << 10;
/// Delay after which a retry is worth while when too many passwords wait for their check.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Asks for a name and a password, which stand in a file. For routes of people with `authentication: none`; programs use keys or
/// tokens.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BasicAuth {
    /// File with a user on each line, as `htpasswd -B` writes it: `NAME:HASH`, by bcrypt of a cost up to 14.
    users_file: FilePath,
    /// Name of what is protected, which browsers show.
    #[serde(default = "realm")]
    realm: String,
    /// True passes `Authorization` on to the servers.
    #[serde(default)]
    keep_authorization: bool,
}

fn realm() -> String {
    "spillway".to_owned()
}

fn compile(written: &BasicAuth) -> Result<(String, Option<Users>), Vec<FieldError>> {
    let mut errors = Vec::new();
    let is_plain = |letter: char| (letter.is_ascii_graphic() || letter == ' ') && !matches!(letter, '"' | '\\');
    if written.realm.is_empty() || written.realm.len() > 128 || !written.realm.chars().all(is_plain) {
        let why = "expected 1 to 128 visible ASCII letters and blanks, without quotes and backslashes";
        errors.push(FieldError::at(["realm"], why));
    }
    let users = match spillway_config::read_text(&written.users_file) {
        Ok(text) => Users::read(&text).map(Some),
        // Reported by itself.
        Err(error) if error.kind() == IoErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("cannot read the file: {error}")),
    };
    let users = users.unwrap_or_else(|why| {
        errors.push(FieldError::at(["usersFile"], why));
        None
    });
    let challenge = format!("Basic realm=\"{}\", charset=\"UTF-8\"", written.realm);
    if errors.is_empty() { Ok((challenge, users)) } else { Err(errors) }
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    let check = |written: &BasicAuth| compile(written).err().unwrap_or_default();
    define("basicAuth", check, |written: BasicAuth, cx: &BuildContext<'_>| {
        let (challenge, users) = compile(&written).map_err(|mut errors| errors.swap_remove(0))?;
        let users = users.ok_or_else(|| FieldError::at(["usersFile"], "the file does not exist"))?;
        let right = moka::sync::Cache::builder().max_capacity(MOST_KEPT).time_to_live(KEPT).build();
        let passwords = Passwords { users, right, key: rand::random() };
        let turns = cx.states.get_or_insert("passwords", Turns::new);
        let keeps = written.keep_authorization;
        Ok(Arc::new(Asks { challenge, passwords: Arc::new(passwords), turns, keeps }) as Arc<dyn Filter>)
    })
}

/// Key of a name with its password.
type Key = [u8; 32];

/// Users, and the passwords that were right a while ago.
struct Passwords {
    users: Users,
    right: moka::sync::Cache<Key, ()>,
    /// Secret of the keys of `right`: without it nothing tells which password a key belongs to.
    key: [u8; 32],
}

impl Passwords {
    fn key(&self, credentials: &[u8]) -> Key {
        Sha256::new_with_prefix(self.key).chain_update(credentials).finalize().into()
    }

    /// Checks a name with its password. Takes tens of milliseconds.
    fn check(&self, credentials: &Credentials) -> bool {
        let key = self.key(&credentials.0);
        let chosen = self.key(credentials.name().as_bytes());
        let chosen = chosen.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let (hash, is_known) = self.users.hash(credentials.name(), chosen);
        // The crate compares in constant time. A name that is not there costs what another user costs.
        let is_right = bcrypt::verify(credentials.password(), hash).unwrap_or(false) & is_known;
        if is_right {
            self.right.insert(key, ());
        }
        is_right
    }
}

/// Name and password as they came: `name:password`, in UTF-8.
struct Credentials(Vec<u8>);

impl Credentials {
    /// Credentials of a request; `None` where it has none that can be read.
    fn of(x: &RequestView<'_>) -> Option<Self> {
        let mut values = x.headers.get_all(header::AUTHORIZATION).iter();
        let value = values.next().filter(|_| values.next().is_none())?.to_str().ok()?;
        let (scheme, encoded) = value.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("basic") || encoded.len() > 2 * MAX_CREDENTIALS {
            return None;
        }
        let decoded = STANDARD.decode(encoded.trim_start()).ok().filter(|text| text.len() <= MAX_CREDENTIALS)?;
        let text = std::str::from_utf8(&decoded).ok()?;
        // bcrypt ends a password at a zero byte.
        let is_sound = text.contains(':') && !text.chars().any(char::is_control);
        is_sound.then_some(Self(decoded))
    }

    fn colon(&self) -> usize {
        self.0.iter().position(|byte| *byte == b':').unwrap_or(self.0.len())
    }

    fn name(&self) -> &str {
        std::str::from_utf8(self.0.get(..self.colon()).unwrap_or_default()).unwrap_or_default()
    }

    fn password(&self) -> &[u8] {
        self.0.get(self.colon() + 1..).unwrap_or_default()
    }
}

/// Filter with its users.
struct Asks {
    challenge: String,
    passwords: Arc<Passwords>,
    turns: Arc<Turns>,
    keeps: bool,
}

/// Refusal of a request without a name and a password that belong together. It is the same for a wrong name.
fn refused(challenge: &str) -> Box<Refusal> {
    let message = "this needs a name and a password: send `Authorization: Basic`";
    let refusal = Refusal::new(StatusCode::UNAUTHORIZED, ErrorKind::Authentication, "login_required", message);
    Box::new(refusal.challenge(challenge.to_owned()))
}

fn busy() -> Box<Refusal> {
    let message = "too many passwords wait to be checked; try again";
    let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Overloaded, "logins_busy", message);
    Box::new(refusal.retry_after(RETRY_AFTER))
}

/// Result for a request that passes.
fn passed(keeps: bool) -> Waited {
    let mut waited = Waited::default();
    if !keeps {
        waited.rewrite.request_headers.push(HeaderChange { name: header::AUTHORIZATION, values: Vec::new() });
    }
    waited
}

impl Filter for Asks {
    fn stage(&self) -> Stage {
        Stage::Guard
    }

    fn on_request(&self, x: &mut RequestView<'_>) -> Flow {
        let Some(credentials) = Credentials::of(x) else { return Flow::Refuse(refused(&self.challenge)) };
        let keeps = self.keeps;
        if self.passwords.right.contains_key(&self.passwords.key(&credentials.0)) {
            return Flow::Wait(Box::pin(std::future::ready(passed(keeps))));
        }
        let (answer, judged) = oneshot::channel();
        let passwords = self.passwords.clone();
        let is_taken = self.turns.submit(x.client, move || {
            // A caller that has left waits for nothing.
            if !answer.is_canceled() {
                let _ = answer.send(passwords.check(&credentials));
            }
        });
        if !is_taken {
            return Flow::Refuse(busy());
        }
        let challenge = self.challenge.clone();
        // The queue bounds the wait, and so does the deadline of the request.
        Flow::Wait(Box::pin(async move {
            match judged.await {
                Ok(true) => passed(keeps),
                Ok(false) => Waited { refusal: Some(refused(&challenge)), ..Waited::default() },
                Err(_) => Waited { refusal: Some(busy()), ..Waited::default() },
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use spillway_filter::testing::{FilterBuilder, TestRequest, wait};

    use super::*;

    fn filter(keeps: bool) -> (tempfile::TempDir, Arc<dyn Filter>) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users.htpasswd");
        let users = format!("ann:{}\nbob:{}\n", bcrypt::hash("sécret: 1", 4).unwrap(), bcrypt::hash("", 4).unwrap());
        std::fs::write(&file, users).unwrap();
        let config = json!({"usersFile": file, "realm": "Staging", "keepAuthorization": keeps});
        (folder, FilterBuilder::new().build(&*factory(), &config))
    }

    fn basic(text: &str) -> String {
        format!("Basic {}", STANDARD.encode(text))
    }

    /// Headers that are removed where the request passes; status, code and challenge of the refusal.
    fn decided(filter: &dyn Filter, authorization: &str) -> Result<Vec<String>, (u16, &'static str, Option<String>)> {
        let told = |refusal: Box<Refusal>| {
            (refusal.status.as_u16(), refusal.code, refusal.challenge.map(|challenge| challenge.to_string()))
        };
        match TestRequest::get("/x").header("authorization", authorization).decide(filter) {
            Flow::Refuse(refusal) => Err(told(refusal)),
            flow => {
                let waited = wait(flow);
                match waited.refusal {
                    Some(refusal) => Err(told(refusal)),
                    None => {
                        let changes = waited.rewrite.request_headers.iter();
                        Ok(changes.filter(|it| it.values.is_empty()).map(|it| it.name.to_string()).collect())
                    }
                }
            }
        }
    }

    #[test]
    fn only_a_name_with_its_password_passes() {
        let (_folder, filter) = filter(false);
        // Twice: the second is known.
        for _ in 0..2 {
            assert_eq!(decided(&*filter, &basic("ann:sécret: 1")), Ok(vec!["authorization".to_owned()]));
        }
        assert!(decided(&*filter, &basic("ann:sécret: 1").replace("Basic", "bASIC ")).is_ok());
        assert!(decided(&*filter, &basic("bob:")).is_ok());
        let challenge = Some("Basic realm=\"Staging\", charset=\"UTF-8\"".to_owned());
        for wrong in [
            basic("ann:secret: 1"),
            basic("ann:"),
            basic("bob:sécret: 1"),
            basic("eve:sécret: 1"),
            basic("ann"),
            basic("ann:sécret: 1\0"),
            basic(&format!("ann:{}", "x".repeat(MAX_CREDENTIALS))),
            "Basic ???".to_owned(),
            "Basic".to_owned(),
            basic("ann:sécret: 1").replace("Basic", "Bearer"),
        ] {
            assert_eq!(decided(&*filter, &wrong), Err((401, "login_required", challenge.clone())), "{wrong}");
        }
        let twice =
            TestRequest::get("/x").header("authorization", &basic("ann:sécret: 1")).header("authorization", "x");
        assert!(matches!(twice.decide(&*filter), Flow::Refuse(_)));
        assert!(matches!(TestRequest::get("/x").decide(&*filter), Flow::Refuse(_)));
    }

    #[test]
    fn a_server_gets_the_password_only_where_the_file_says_so() {
        let (_folder, filter) = filter(true);
        assert_eq!(decided(&*filter, &basic("ann:sécret: 1")), Ok(Vec::new()));
    }

    #[test]
    fn passwords_that_cannot_wait_are_told_so() {
        let users = Users::read(&format!("ann:{}", bcrypt::hash("a", 4).unwrap())).unwrap();
        let passwords = Passwords { users, right: moka::sync::Cache::new(1), key: [7; 32] };
        // Nothing is ever checked: no thread takes the work.
        let turns = Arc::new(Turns::with(0, 1, 1));
        let filter = Asks { challenge: "Basic".to_owned(), passwords: Arc::new(passwords), turns, keeps: false };
        assert_eq!(decided(&filter, &basic("ann:a")), Err((503, "logins_busy", None)));
        // A password that was right a moment ago waits for nothing.
        filter.passwords.right.insert(filter.passwords.key(b"ann:a"), ());
        assert!(decided(&filter, &basic("ann:a")).is_ok());
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users.htpasswd");
        std::fs::write(&file, "ann:$apr1$x$hunter2").unwrap();
        for (config, path) in [
            (json!({"usersFile": file}), vec!["usersFile"]),
            (json!({"usersFile": "/nowhere", "realm": "a\"b"}), vec!["realm"]),
            (json!({"usersFile": "/nowhere", "realm": ""}), vec!["realm"]),
        ] {
            let errors = factory().check(&config);
            assert_eq!(errors.len(), 1, "{config}: {errors:?}");
            assert_eq!(errors[0].path, path, "{config}");
            assert!(!errors[0].message.contains("hunter2"));
        }
        assert!(factory().check(&json!({"usersFile": "/nowhere"})).is_empty(), "reported with all others");
    }
}
