//! Pure. The catalogue of Seawall's own answers, in Flexport's envelope or as RFC 9457 problem details.
//!
//! A client of Flexport's looks at `_object`, `version` and `error`; our refusals keep that shape, so that it fails
//! in the way it knows. `Accept: application/problem+json` gets the same facts as RFC 9457.

use crate::error::ProxyError;
use crate::http::Body;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use std::time::Duration;

/// One of our own codes with its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// What clients match on.
    pub name: &'static str,
    /// The HTTP status.
    pub status: StatusCode,
}

/// How the request wants its answer.
#[derive(Clone, Debug)]
pub struct Asked {
    /// `server.public_url`, without a slash at its end.
    pub public_url: std::sync::Arc<str>,
    /// Path and query as asked.
    pub target: String,
    /// `Flexport-Version` as asked, or 2.
    pub version: Value,
    /// Whether `Accept` asks for `application/problem+json`.
    pub wants_problem: bool,
}

// === impl Asked ===

impl Asked {
    /// The request's URL as Flexport would give it in `self`.
    pub fn url(&self) -> String {
        format!("{}{}", self.public_url, self.target)
    }
}

/// The code of an error.
pub fn code(error: &ProxyError) -> Code {
    let (name, status) = match error {
        ProxyError::BreakerOpen { .. } => ("seawall_breaker_open", StatusCode::SERVICE_UNAVAILABLE),
        ProxyError::Overloaded { .. } => ("seawall_overloaded", StatusCode::SERVICE_UNAVAILABLE),
        ProxyError::RateLimited { .. } => ("seawall_rate_limited", StatusCode::TOO_MANY_REQUESTS),
        ProxyError::HeadTimeout | ProxyError::DeadlineBeforeSending => {
            ("seawall_upstream_timeout", StatusCode::GATEWAY_TIMEOUT)
        }
        ProxyError::Connect(_) | ProxyError::Unsent(_) | ProxyError::Cut(_) => {
            ("seawall_upstream_unreachable", StatusCode::BAD_GATEWAY)
        }
        ProxyError::QueueFull { .. } => ("seawall_queue_full", StatusCode::SERVICE_UNAVAILABLE),
        ProxyError::StoreFailed(_) => ("seawall_store_failed", StatusCode::INSUFFICIENT_STORAGE),
        ProxyError::OutcomeUnknown { .. } => ("seawall_outcome_unknown", StatusCode::GATEWAY_TIMEOUT),
        ProxyError::OrderConflict { .. } => ("seawall_order_conflict", StatusCode::CONFLICT),
        ProxyError::KeyReused => ("seawall_key_reused", StatusCode::UNPROCESSABLE_ENTITY),
        ProxyError::KeyInFlight { .. } => ("seawall_key_in_flight", StatusCode::CONFLICT),
        ProxyError::Unauthorized { .. } => ("seawall_unauthorized", StatusCode::UNAUTHORIZED),
        ProxyError::BodyTooLarge { .. } => ("seawall_body_too_large", StatusCode::PAYLOAD_TOO_LARGE),
        ProxyError::Draining => ("seawall_draining", StatusCode::SERVICE_UNAVAILABLE),
        ProxyError::BadRequest { .. } | ProxyError::RequestBody(_) => {
            ("seawall_bad_request", StatusCode::BAD_REQUEST)
        }
        ProxyError::NotFound(_) => ("seawall_not_found", StatusCode::NOT_FOUND),
        ProxyError::Conflict { .. } => ("seawall_conflict", StatusCode::CONFLICT),
        ProxyError::Internal(_) => ("seawall_internal", StatusCode::INTERNAL_SERVER_ERROR),
    };
    Code { name, status }
}

/// The answer for an error, complete with its fields but those that trace adds to every answer.
pub fn response(error: &ProxyError, asked: &Asked) -> Response<Body> {
    let Code { name, status } = code(error);
    let message = error.to_string();
    let (content_type, body) = if asked.wants_problem {
        let body = json!({
            "type": format!("urn:seawall:{name}"),
            "title": status.canonical_reason().unwrap_or(name),
            "status": status.as_u16(),
            "detail": message,
            "instance": asked.url(),
            "code": name,
        });
        ("application/problem+json", body)
    } else {
        let error = json!({
            "_object": "/api/error",
            "status": status.as_u16(),
            "code": name,
            "message": message,
        });
        ("application/json", envelope(asked, &Value::Null, &error))
    };
    let mut response = json_response(status, content_type, &body);
    let headers = response.headers_mut();
    match error {
        ProxyError::BreakerOpen { scope, retry_after } => {
            let seconds = whole_seconds(*retry_after);
            headers.insert(header::RETRY_AFTER, seconds.into());
            if let Ok(value) = HeaderValue::from_str(&format!("open; scope={scope}; retry-after={seconds}")) {
                headers.insert("seawall-breaker", value);
            }
        }
        ProxyError::RateLimited { retry_after }
        | ProxyError::QueueFull { retry_after, .. }
        | ProxyError::OrderConflict { retry_after, .. } => {
            headers.insert(header::RETRY_AFTER, whole_seconds(*retry_after).into());
        }
        ProxyError::Overloaded { .. } | ProxyError::Draining | ProxyError::KeyInFlight { .. } => {
            headers.insert(header::RETRY_AFTER, 1.into());
        }
        ProxyError::Unauthorized { .. } => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"seawall\""));
        }
        ProxyError::OutcomeUnknown { key, is_durable, .. } => {
            if let Some(Ok(key)) = key.as_deref().map(HeaderValue::from_str) {
                headers.insert("idempotency-key", key);
            }
            if !is_durable {
                headers.insert("seawall-durability", HeaderValue::from_static("none"));
            }
        }
        _ => {}
    }
    let ticket = match error {
        ProxyError::OutcomeUnknown { write_id, .. } | ProxyError::OrderConflict { write_id, .. } => {
            Some(*write_id)
        }
        ProxyError::KeyInFlight { write_id } => *write_id,
        _ => None,
    };
    if let Some(write_id) = ticket {
        let id = write_id.to_string();
        if let Ok(location) = HeaderValue::from_str(&format!("{}{}", asked.public_url, ticket_path(&id))) {
            headers.insert(header::LOCATION, location);
        }
        if let Ok(id) = HeaderValue::from_str(&id) {
            headers.insert("seawall-write-id", id);
        }
    }
    headers.insert("seawall-source", HeaderValue::from_static("seawall"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The path of a ticket on the data listener.
pub fn ticket_path(id: &str) -> String {
    format!("/_seawall/writes/{id}")
}

/// Flexport's envelope in its key order.
pub fn envelope(asked: &Asked, data: &Value, error: &Value) -> Value {
    json!({
        "_object": "/api/response",
        "self": asked.url(),
        "version": asked.version,
        "data": data,
        "error": error,
    })
}

/// A response with a JSON body.
pub fn json_response(status: StatusCode, content_type: &'static str, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Rounded up, at least one: `Retry-After: 0` would ask for a hot loop.
pub fn whole_seconds(span: Duration) -> u64 {
    (span.as_secs() + u64::from(span.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(wants_problem: bool) -> Asked {
        Asked {
            public_url: "http://seawall:8460".into(),
            target: "/shipments?page=2".to_owned(),
            version: json!(2),
            wants_problem,
        }
    }

    #[tokio::test]
    async fn a_refusal_keeps_flexports_shape() {
        let error = ProxyError::BreakerOpen {
            scope: "shipments:read".to_owned(),
            retry_after: Duration::from_millis(4_200),
        };
        let response = response(&error, &asked(false));
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "5");
        assert_eq!(response.headers()["seawall-breaker"], "open; scope=shipments:read; retry-after=5");
        let body = response.into_body().collect(4096).await.unwrap();
        assert_eq!(
            std::str::from_utf8(&body).unwrap(),
            "{\"_object\":\"/api/response\",\"self\":\"http://seawall:8460/shipments?page=2\",\"version\":2,\
             \"data\":null,\"error\":{\"_object\":\"/api/error\",\"status\":503,\"code\":\"seawall_breaker_open\",\
             \"message\":\"the breaker of shipments:read is open\"}}"
        );
    }

    #[test]
    fn an_unknown_outcome_names_its_ticket() {
        let write_id = crate::ids::WriteId::random();
        let error = ProxyError::OutcomeUnknown { write_id, key: Some("k".into()), is_durable: false };
        let response = response(&error, &asked(true));
        assert_eq!(response.headers()["idempotency-key"], "k");
        assert_eq!(response.headers()["seawall-durability"], "none");
        assert_eq!(response.status(), 504);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert_eq!(
            response.headers()["location"],
            *format!("http://seawall:8460/_seawall/writes/{write_id}")
        );
        assert_eq!(response.headers()["seawall-write-id"], *write_id.to_string());
    }
}
