//! Login of operators through an issuer by OpenID Connect: the authorization code flow with PKCE (OpenID Connect Core 1.0, section 3.1;
//! RFC 7636; RFC 9700). Owns the sessions, and the key that seals logins under way; inputs are `admin.oidc`, and the description and
//! keys of the issuer.
//!
//! A login belongs to the browser that began it: without its cookie an answer of the issuer is refused, so nobody can log somebody
//! else in. A session id is made by the login that it belongs to, so none can be chosen before. The way back is always the page
//! itself: no address comes from a request.

mod pending;
mod sessions;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use spillway_config::schema::AdminLogin;
use spillway_config::values::ValueError;
use spillway_filter::HttpClient;
use tokio::sync::Semaphore;

use self::pending::{Pending, RandomError, Seal, random_text};
use self::sessions::Sessions;
use super::AdminState;
use super::access::{self, Client, problem};
use crate::clock::unix_now;
use crate::http_client::Http;
use crate::identity::{Description, IdTokens};
use crate::telemetry::Metrics;
use crate::tls::TlsError;

/// Time for a login at the issuer, seconds: a person types a password and a code.
const LOGIN_TIME: u64 = 600;
/// Longest call to the issuer: one that takes longer is as good as down.
const CALL: Duration = Duration::from_secs(5);
/// Time for which the description of the issuer is used.
const DESCRIPTION_TIME: Duration = Duration::from_secs(600);
/// Most codes that are exchanged at a time, so that browsers cannot make the gateway flood the issuer.
const MAX_EXCHANGES: usize = 8;
/// Longest name of a person, in characters.
const MAX_NAME: usize = 128;
/// Longest word of an issuer about a refusal that is repeated, bytes; those of RFC 6749 have at most 25.
const MAX_WORD: usize = 64;

/// Reason why a login cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The secret cannot be read.
    #[error("clientSecret: {0}")]
    Secret(#[from] ValueError),
    /// The authorities cannot be read.
    #[error("caFile: {0}")]
    Authorities(#[from] TlsError),
    /// The origin is none.
    #[error("publicUrl: {0}")]
    PublicUrl(#[from] url::ParseError),
    /// The system has no random bytes.
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// Reason why a person is not let in.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("This browser has not begun this login, or began it too long ago.")]
    NotBegun,
    #[error("This login took longer than ten minutes.")]
    Late,
    #[error("This answer belongs to another login.")]
    Foreign,
    #[error("This login has been used already.")]
    Used,
    #[error("The issuer refused the login ({0}).")]
    Refused(String),
    #[error("The issuer sent neither a code nor an error.")]
    NoCode,
    #[error("The issuer does not answer as expected; the log of the gateway says more.")]
    Issuer,
    #[error("The issuer's token about you is not accepted; the log of the gateway says why.")]
    Token,
    #[error("You are known to the issuer, and not among those who may use this gateway (admin.oidc.allow).")]
    NotAllowed,
    #[error("Too many logins are under way. Try again in a moment.")]
    Busy,
    #[error("The gateway cannot begin a login now; its log says why.")]
    Random,
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::NotBegun | Self::Late | Self::Foreign | Self::Used | Self::NoCode => StatusCode::BAD_REQUEST,
            Self::Refused(_) | Self::NotAllowed | Self::Token => StatusCode::FORBIDDEN,
            Self::Issuer => StatusCode::BAD_GATEWAY,
            Self::Busy | Self::Random => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Page for the browser that came back. No part of it is markup: a refusal has words of this file, or letters of the issuer.
    fn page(&self) -> Response {
        let text = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Not signed in · Spillway</title></head>\
             <body><main><h1>Not signed in</h1><p>{self}</p><p><a href=\"/auth/login\">Sign in again</a></p></main></body></html>\n"
        );
        (self.status(), [(header::CONTENT_TYPE, "text/html; charset=utf-8")], text).into_response()
    }
}

impl From<RandomError> for Refusal {
    fn from(error: RandomError) -> Self {
        failed(&error);
        Self::Random
    }
}

fn failed(reason: &dyn std::fmt::Display) {
    tracing::warn!(event = "admin_login_failed", %reason);
}

/// Login through one issuer.
pub struct Login {
    written: AdminLogin,
    secret: Option<String>,
    /// Origin at which browsers reach the admin address.
    origin: String,
    tokens: IdTokens,
    http: Arc<dyn HttpClient>,
    seal: Seal,
    sessions: Sessions,
    description: tokio::sync::Mutex<Option<(Instant, Arc<Description>)>>,
    exchanges: Semaphore,
}

/// Answer that the issuer sends back with a browser.
#[derive(Deserialize)]
pub(super) struct Answer {
    code: Option<String>,
    state: Option<String>,
    error: Option<String>,
    iss: Option<String>,
}

impl Login {
    /// Prepares the login and begins to fetch the keys of its issuer. Must be called in a runtime.
    ///
    /// # Errors
    /// A secret or a file cannot be read.
    pub fn new(written: &AdminLogin, metrics: Arc<Metrics>) -> Result<Self, LoginError> {
        let (secret, origin) = Self::judge(written)?;
        let http: Arc<dyn HttpClient> = match &written.ca_file {
            Some(file) => Arc::new(Http::with_roots(crate::tls::roots(file)?.0)),
            None => Arc::new(Http::default()),
        };
        http.prepare();
        Ok(Self {
            secret,
            origin,
            tokens: IdTokens::begin(&written.issuer, &written.client_id, http.clone(), metrics),
            http,
            seal: Seal::new()?,
            sessions: Sessions::new(&written.sessions),
            description: tokio::sync::Mutex::default(),
            exchanges: Semaphore::new(MAX_EXCHANGES),
            written: written.clone(),
        })
    }

    /// Reads what a login needs, without beginning anything. Returns the secret and the origin.
    ///
    /// # Errors
    /// A secret or a file cannot be read.
    pub fn judge(written: &AdminLogin) -> Result<(Option<String>, String), LoginError> {
        let secret = written.client_secret.as_ref().map(crate::credentials::secret).transpose()?;
        if let Some(file) = &written.ca_file {
            crate::tls::check_authorities(file)?;
        }
        Ok((secret, url::Url::parse(&written.public_url)?.origin().ascii_serialization()))
    }

    /// Person of the session whose cookie the request has.
    pub(super) fn person(&self, headers: &HeaderMap) -> Option<Arc<str>> {
        self.sessions.person(cookie(headers, self.session_cookie())?, Instant::now())
    }

    /// True for a request of the page itself: browsers name the origin of each change, and no page can name another.
    pub(super) fn is_own_origin(&self, headers: &HeaderMap) -> bool {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        origins.next().is_some_and(|origin| origin.as_bytes() == self.origin.as_bytes()) && origins.next().is_none()
    }

    fn is_secure(&self) -> bool {
        self.origin.starts_with("https:")
    }

    // The prefix binds a cookie to this host: no other host of the domain can set it (RFC 6265bis, 4.1.3.2).
    fn session_cookie(&self) -> &'static str {
        if self.is_secure() { "__Host-spillway-session" } else { "spillway-session" }
    }

    fn login_cookie(&self) -> &'static str {
        if self.is_secure() { "__Host-spillway-login" } else { "spillway-login" }
    }

    /// `Set-Cookie` of a value for so many seconds; 0 removes it.
    fn set(&self, name: &str, value: &str, seconds: u64, same_site: &str) -> HeaderValue {
        let secure = if self.is_secure() { "; Secure" } else { "" };
        let text = format!("{name}={value}; Path=/; HttpOnly; SameSite={same_site}; Max-Age={seconds}{secure}");
        // Names are of this file, and values are base64url.
        HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""))
    }

    fn redirect_uri(&self) -> String {
        format!("{}/auth/callback", self.origin)
    }

    async fn description(&self) -> Result<Arc<Description>, Refusal> {
        let mut held = self.description.lock().await;
        if let Some((at, known)) = &*held
            && at.elapsed() < DESCRIPTION_TIME
        {
            return Ok(known.clone());
        }
        match self.tokens.describe().await {
            Ok(described) => {
                let described = Arc::new(described);
                *held = Some((Instant::now(), described.clone()));
                Ok(described)
            }
            Err(reason) => {
                failed(&reason);
                held.as_ref().map(|(_, known)| known.clone()).ok_or(Refusal::Issuer)
            }
        }
    }

    /// Endpoint of the issuer; one of https has no endpoint of http.
    fn endpoint(&self, name: &str, written: Option<&String>) -> Result<url::Url, Refusal> {
        let parsed = written.and_then(|text| url::Url::parse(text).ok());
        let needs = if self.written.issuer.starts_with("https:") { &["https"][..] } else { &["https", "http"] };
        parsed.filter(|url| needs.contains(&url.scheme())).ok_or_else(|| {
            failed(&format_args!("the description of the issuer has no `{name}` with {}", needs.join(" or ")));
            Refusal::Issuer
        })
    }

    async fn begin(&self) -> Result<Response, Refusal> {
        let description = self.description().await?;
        let mut to = self.endpoint("authorization_endpoint", description.authorization_endpoint.as_ref())?;
        let pending = Pending::begin(unix_now())?;
        let scopes: Vec<&str> =
            std::iter::once("openid").chain(self.written.scopes.iter().map(String::as_str)).collect();
        to.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.written.client_id)
            .append_pair("redirect_uri", &self.redirect_uri())
            .append_pair("scope", &scopes.join(" "))
            .append_pair("state", &pending.state)
            .append_pair("nonce", &pending.nonce)
            .append_pair("code_challenge", &URL_SAFE_NO_PAD.encode(Sha256::digest(&pending.verifier)))
            .append_pair("code_challenge_method", "S256");
        let place = HeaderValue::from_str(to.as_str()).map_err(|_| Refusal::Issuer)?;
        // The browser comes back from another site, to which a strict cookie would not be sent.
        let cookie = self.set(self.login_cookie(), &self.seal.close(&pending)?, LOGIN_TIME, "Lax");
        Ok((StatusCode::SEE_OTHER, [(header::LOCATION, place), (header::SET_COOKIE, cookie)]).into_response())
    }

    /// Judges what came back with a browser. Returns the id of the new session, and its person.
    async fn conclude(&self, headers: &HeaderMap, answer: Answer) -> Result<(String, Arc<str>), Refusal> {
        let sealed = cookie(headers, self.login_cookie()).ok_or(Refusal::NotBegun)?;
        let pending = self.seal.open(sealed).ok_or(Refusal::NotBegun)?;
        if unix_now().saturating_sub(pending.at) >= LOGIN_TIME {
            return Err(Refusal::Late);
        }
        // RFC 9207: an answer that names another issuer is that of another login.
        if answer.state.as_ref() != Some(&pending.state) || answer.iss.is_some_and(|iss| iss != self.written.issuer) {
            return Err(Refusal::Foreign);
        }
        if let Some(error) = answer.error {
            return Err(Refusal::Refused(word(&error)));
        }
        let code = answer.code.ok_or(Refusal::NoCode)?;
        let token = self.exchange(&code, &pending.verifier).await?;
        let claims = self.tokens.verify(&token, &pending.nonce).await.map_err(|reason| {
            failed(&reason.as_str());
            Refusal::Token
        })?;
        if !self.allows(&claims) {
            return Err(Refusal::NotAllowed);
        }
        let (id, person) = (random_text()?, person(&claims, &self.written.name));
        if !self.sessions.begin(&id, &pending.state, person.clone(), Instant::now()) {
            return Err(Refusal::Used);
        }
        Ok((id, person))
    }

    /// Exchanges a code for an id token.
    async fn exchange(&self, code: &str, verifier: &str) -> Result<String, Refusal> {
        let _one = self.exchanges.try_acquire().map_err(|_| Refusal::Busy)?;
        let description = self.description().await?;
        let unusable = |reason: &dyn std::fmt::Display| {
            failed(&format_args!("the token endpoint: {reason}"));
            Refusal::Issuer
        };
        let request = self.token_request(&description, code, verifier)?;
        let answer = self.http.call(request, CALL).await.map_err(|e| unusable(&e))?;
        let body: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
        let text = |name: &str| body.get(name).and_then(Value::as_str);
        if answer.status() == StatusCode::OK {
            return text("id_token").map(str::to_owned).ok_or_else(|| unusable(&"the answer has no `id_token`"));
        }
        match text("error") {
            // A code that was used, is too old, or is of another client (RFC 6749, 5.2).
            Some(error) if answer.status().is_client_error() => Err(Refusal::Refused(word(error))),
            _ => Err(unusable(&format_args!("it answered {}", answer.status()))),
        }
    }

    /// Request that exchanges a code, with the proof of the client that the issuer takes.
    fn token_request(
        &self,
        description: &Description,
        code: &str,
        verifier: &str,
    ) -> Result<http::Request<Bytes>, Refusal> {
        let to = self.endpoint("token_endpoint", description.token_endpoint.as_ref())?;
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "authorization_code")
            .append_pair("code", code)
            .append_pair("redirect_uri", &self.redirect_uri())
            .append_pair("code_verifier", verifier)
            .append_pair("client_id", &self.written.client_id);
        let mut request = http::Request::post(to.as_str())
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::ACCEPT, "application/json");
        let methods = description.token_endpoint_auth_methods_supported.as_deref();
        if let Some(secret) = &self.secret {
            if methods.is_none_or(|methods| methods.iter().any(|method| method == "client_secret_basic")) {
                // RFC 6749, 2.3.1: both are encoded as in a form first.
                let encoded = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
                let pair = format!("{}:{}", encoded(&self.written.client_id), encoded(secret));
                request = request.header(header::AUTHORIZATION, format!("Basic {}", STANDARD.encode(pair)));
            } else {
                form.append_pair("client_secret", secret);
            }
        }
        request.body(Bytes::from(form.finish())).map_err(|e| {
            failed(&e);
            Refusal::Issuer
        })
    }

    /// True for claims that fit an entry of `allow`.
    fn allows(&self, claims: &Value) -> bool {
        self.written.allow.iter().any(|allowed| {
            let is_allowed =
                |value: &Value| value.as_str().is_some_and(|text| allowed.values.iter().any(|one| one == text));
            let fits = match claims.get(&allowed.claim) {
                Some(Value::Array(values)) => values.iter().any(is_allowed),
                Some(value) => is_allowed(value),
                None => false,
            };
            fits && (allowed.claim != "email" || is_verified(claims))
        })
    }
}

/// True if the issuer has verified the address of a person; others may be anybody's.
fn is_verified(claims: &Value) -> bool {
    claims.get("email_verified").is_some_and(|is| *is == Value::Bool(true) || is.as_str() == Some("true"))
}

/// Name of a person for logs.
fn person(claims: &Value, name: &str) -> Arc<str> {
    let text = |name: &str| claims.get(name).and_then(Value::as_str).filter(|text| !text.trim().is_empty());
    let named = text(name).filter(|_| name != "email" || is_verified(claims)).or_else(|| text("sub"));
    named.unwrap_or_default().chars().filter(|c| !c.is_control()).take(MAX_NAME).collect::<String>().into()
}

/// Word of an issuer that may be shown: letters and underscores.
fn word(text: &str) -> String {
    let is_word = text.len() <= MAX_WORD && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if is_word { text.to_owned() } else { "without a reason that can be shown".to_owned() }
}

/// Value of a cookie; `None` where it is missing or there are two.
fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let sent = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = sent.flat_map(|list| list.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let mut found = pairs.filter(|(found, _)| *found == name).map(|(_, value)| value);
    found.next().filter(|_| found.next().is_none())
}

fn off() -> Response {
    problem(StatusCode::NOT_FOUND, "nobody logs in here: configure admin.oidc")
}

/// Sends a browser to the issuer.
pub(super) async fn begin(State(state): State<Arc<dyn AdminState>>) -> Response {
    match state.login() {
        Some(login) => login.begin().await.unwrap_or_else(|refusal| refusal.page()),
        None => off(),
    }
}

/// Lets the person in with whom a browser comes back.
pub(super) async fn conclude(
    State(state): State<Arc<dyn AdminState>>,
    Query(answer): Query<Answer>,
    request: Request,
) -> Response {
    let Some(login) = state.login() else { return off() };
    // The body of a request cannot be shared by threads, so no part of it is kept over a wait.
    let (client, headers) = (Client::of(&request), request.into_parts().0.headers);
    let concluded = login.conclude(&headers, answer).await;
    let (who, mut response) = match &concluded {
        Ok((id, person)) => {
            let cookie = login.set(login.session_cookie(), id, login.sessions.lifetime().as_secs(), "Strict");
            let head = [(header::LOCATION, HeaderValue::from_static("/")), (header::SET_COOKIE, cookie)];
            (format!("person {person}"), (StatusCode::SEE_OTHER, head).into_response())
        }
        Err(refusal) => ("unknown".to_owned(), refusal.page()),
    };
    response.headers_mut().append(header::SET_COOKIE, login.set(login.login_cookie(), "", 0, "Lax"));
    state.audit(client, &who, "GET", "/auth/callback", response.status().as_u16());
    response
}

/// Ends the session of a browser.
pub(super) async fn end(State(state): State<Arc<dyn AdminState>>, request: Request) -> Response {
    let Some(login) = state.login() else { return off() };
    let headers = request.headers();
    let refused = access::refuse_change(headers).or_else(|| (!login.is_own_origin(headers)).then(access::foreign));
    let (who, response) = match refused {
        Some(refused) => ("unknown".to_owned(), refused),
        None => {
            let ended = cookie(headers, login.session_cookie()).and_then(|id| login.sessions.end(id));
            let who = ended.map_or_else(|| "unknown".to_owned(), |person| format!("person {person}"));
            let mut answer = axum::Json(serde_json::json!({ "signedOut": true })).into_response();
            answer.headers_mut().append(header::SET_COOKIE, login.set(login.session_cookie(), "", 0, "Strict"));
            (who, answer)
        }
    };
    state.audit(Client::of(&request), &who, "POST", "/auth/logout", response.status().as_u16());
    response
}

/// Tells which proofs the gateway takes, and who is logged in.
pub(super) async fn show(State(state): State<Arc<dyn AdminState>>, headers: HeaderMap) -> Response {
    let login = state.login();
    let person = login.and_then(|login| login.person(&headers));
    let has_token = state.token_matches(None).is_some();
    axum::Json(serde_json::json!({ "login": login.is_some(), "token": has_token, "person": person.as_deref() }))
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_found_among_others_and_not_twice() {
        for (sent, expected) in [
            ("a=1; spillway-session=x; b=2", Some("x")),
            ("spillway-session=x", Some("x")),
            ("xspillway-session=x", None),
            ("spillway-session=x; spillway-session=y", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::COOKIE, HeaderValue::from_static(sent));
            assert_eq!(cookie(&headers, "spillway-session"), expected, "{sent}");
        }
    }

    #[test]
    fn a_word_of_an_issuer_is_no_markup() {
        assert_eq!(word("access_denied"), "access_denied");
        for wrong in ["<script>", "a b", &"x".repeat(65)] {
            assert_eq!(word(wrong), "without a reason that can be shown", "{wrong}");
        }
    }

    #[test]
    fn a_person_has_the_name_of_a_verified_address_or_the_subject() {
        let named = |claims: Value| person(&claims, "email").to_string();
        assert_eq!(named(serde_json::json!({"sub": "7", "email": "a@b.c", "email_verified": true})), "a@b.c");
        assert_eq!(named(serde_json::json!({"sub": "7", "email": "a@b.c"})), "7");
        assert_eq!(named(serde_json::json!({"sub": "7\n8"})), "78");
    }
}
