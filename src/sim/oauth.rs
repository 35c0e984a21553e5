//! Pure. `POST /oauth/token`: tokens that live a day, and the ten a day that a client may ask for.
//!
//! Issued tokens are JWTs in form; their signature is of the simulator and says nothing. Time is the simulator's
//! clock. What the real API answers above the budget nobody documents; here it is a 429.

use std::collections::{HashMap, VecDeque};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::tokens::Tokens;

/// How long a token lives.
const LIFE: SignedDuration = SignedDuration::from_hours(24);
/// The day in which requests are counted.
const DAY: SignedDuration = SignedDuration::from_hours(24);
const AUDIENCE: &str = "https://api.flexport.com";

/// What was issued, and to whom.
#[derive(Debug, Default)]
pub(super) struct Oauth {
    issued: HashMap<String, Issued>,
    asked: HashMap<String, VecDeque<Timestamp>>,
}

#[derive(Debug)]
struct Issued {
    client: String,
    expires: Timestamp,
}

/// An answer of the token endpoint, which has no envelope.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) body: Value,
}

// === impl Oauth ===

impl Oauth {
    /// Answers a request for a token; `budget` is how many a client may ask for in a day.
    pub(super) fn issue(
        &mut self,
        body: &Value,
        tokens: &Tokens,
        budget: Option<u32>,
        now: Timestamp,
    ) -> Reply {
        for field in ["client_id", "client_secret", "audience", "grant_type"] {
            if body[field].as_str().is_none_or(str::is_empty) {
                return Reply::refused(
                    StatusCode::BAD_REQUEST,
                    "invalid_request",
                    &format!("{field} is missing"),
                );
            }
        }
        if body["grant_type"] != "client_credentials" {
            let what = "grant_type must be client_credentials";
            return Reply::refused(StatusCode::BAD_REQUEST, "unsupported_grant_type", what);
        }
        if body["audience"].as_str().map(|audience| audience.trim_end_matches('/')) != Some(AUDIENCE) {
            let what = format!("audience must be {AUDIENCE}");
            return Reply::refused(StatusCode::FORBIDDEN, "access_denied", &what);
        }
        let client = body["client_id"].as_str().unwrap_or_default();
        let asked = self.asked.entry(client.to_owned()).or_default();
        while asked.front().is_some_and(|first| now.duration_since(*first) >= DAY) {
            asked.pop_front();
        }
        if let Some(budget) = budget.filter(|budget| asked.len() >= *budget as usize) {
            let what = format!(
                "at most {budget} token requests a day are allowed; keep the token, it lives 24 hours"
            );
            return Reply::refused(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", &what);
        }
        asked.push_back(now);
        if !tokens.is_client(client, body["client_secret"].as_str().unwrap_or_default()) {
            return Reply::refused(
                StatusCode::UNAUTHORIZED,
                "access_denied",
                "unknown client or wrong secret",
            );
        }
        let expires = now.saturating_add(LIFE).unwrap_or(Timestamp::MAX);
        let token = jwt(client, self.issued.len() as u64, now, expires);
        self.issued.insert(token.clone(), Issued { client: client.to_owned(), expires });
        let body = json!({"access_token": token, "expires_in": LIFE.as_secs(), "token_type": "Bearer"});
        Reply { status: StatusCode::OK, body }
    }

    /// The client that a token was issued to.
    pub(super) fn client(&self, token: &str) -> Option<&str> {
        self.issued.get(token).map(|issued| issued.client.as_str())
    }

    /// Whether a token was issued here and has expired.
    pub(super) fn is_expired(&self, token: &str, now: Timestamp) -> bool {
        self.issued.get(token).is_some_and(|issued| issued.expires <= now)
    }
}

// === impl Reply ===

impl Reply {
    fn refused(status: StatusCode, error: &str, description: &str) -> Self {
        Self { status, body: json!({"error": error, "error_description": description}) }
    }
}

fn jwt(client: &str, number: u64, now: Timestamp, expires: Timestamp) -> String {
    let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let head = part(json!({"alg": "HS256", "typ": "JWT"}));
    let claims = part(json!({
        "iss": "seawall-simulator",
        "sub": client,
        "aud": AUDIENCE,
        "iat": now.as_second(),
        "exp": expires.as_second(),
        "jti": number,
    }));
    let signed = format!("{head}.{claims}");
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, b"seawall-simulator"), signed.as_bytes());
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body() -> Value {
        json!({"client_id": "c", "client_secret": "s", "audience": AUDIENCE, "grant_type": "client_credentials"})
    }

    #[test]
    fn ten_a_day_and_then_again() {
        let now: Timestamp = "2026-05-01T00:00:00Z".parse().unwrap();
        let (mut oauth, tokens) = (Oauth::default(), Tokens::default());
        let mut ask = |now| oauth.issue(&body(), &tokens, Some(10), now).status;
        assert!((0..10).all(|_| ask(now) == StatusCode::OK));
        assert_eq!(ask(now), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(ask(now + DAY), StatusCode::OK);
    }

    #[test]
    fn a_token_lives_a_day_and_no_two_are_alike() {
        let now: Timestamp = "2026-05-01T00:00:00Z".parse().unwrap();
        let (mut oauth, tokens) = (Oauth::default(), Tokens::default());
        let mut token =
            || oauth.issue(&body(), &tokens, None, now).body["access_token"].as_str().unwrap().to_owned();
        let (first, second) = (token(), token());
        assert_ne!(first, second);
        assert_eq!(first.split('.').count(), 3);
        assert_eq!(oauth.client(&first), Some("c"));
        assert!(!oauth.is_expired(&first, now) && oauth.is_expired(&first, now + LIFE));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let now: Timestamp = "2026-05-01T00:00:00Z".parse().unwrap();
        for (field, value, error) in [
            ("client_secret", json!(""), "invalid_request"),
            ("grant_type", json!("password"), "unsupported_grant_type"),
            ("audience", json!("http://127.0.0.1"), "access_denied"),
        ] {
            let mut body = body();
            body[field] = value;
            let reply = Oauth::default().issue(&body, &Tokens::default(), None, now);
            assert_eq!(reply.body["error"], error);
            assert!(reply.body["error_description"].as_str().unwrap().contains(field));
        }
    }
}
