//! Talks to the admin APIs of one or several Seawalls.

use super::Exit;
use super::args::{Operator, Output};
use super::output;
use crate::http::Body;
use anyhow::{Context, anyhow, bail};
use http::{HeaderValue, Method, Request, header};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use std::time::Duration;

/// Where the admin API is when nothing is said.
const DEFAULT: &str = "http://127.0.0.1:8461";

/// One admin API.
pub(super) struct Admin {
    base: String,
    token: Option<HeaderValue>,
    client: Client<HttpConnector, Body>,
}

/// Asks each admin API in turn and shows each answer. Fails when one fails, after all were asked.
pub(super) fn each(
    operator: &Operator,
    ask: impl AsyncFn(&Admin) -> anyhow::Result<Value>,
    show: impl Fn(&Value) -> String,
) -> Exit {
    each_within(Duration::from_secs(30), operator, ask, show)
}

/// [`each`] with a time for each answer of its own.
#[expect(clippy::needless_pass_by_value, reason = "closures are written at the call")]
pub(super) fn each_within(
    limit: Duration,
    operator: &Operator,
    ask: impl AsyncFn(&Admin) -> anyhow::Result<Value>,
    show: impl Fn(&Value) -> String,
) -> Exit {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Exit::Failed(error.into()),
    };
    let bases = if operator.admin.is_empty() { vec![DEFAULT.to_owned()] } else { operator.admin.clone() };
    let mut failures = Vec::new();
    for base in &bases {
        let result = runtime.block_on(async {
            let admin = Admin::new(base, operator)?;
            tokio::time::timeout(limit, ask(&admin))
                .await
                .unwrap_or_else(|_| Err(anyhow!("no answer within {} s", limit.as_secs())))
        });
        match result {
            Ok(value) => {
                if bases.len() > 1 && operator.output == Output::Table {
                    output::say(&format!("== {base}"));
                }
                output::data(&match operator.output {
                    Output::Json => serde_json::to_string_pretty(&value).unwrap_or_default(),
                    Output::Table => show(&value),
                });
            }
            Err(error) => failures.push(format!("{base}: {error:#}")),
        }
    }
    if failures.is_empty() { Exit::Done } else { Exit::Failed(anyhow!(failures.join("\n"))) }
}

// === impl Admin ===

impl Admin {
    fn new(base: &str, operator: &Operator) -> anyhow::Result<Self> {
        let base = base.trim_end_matches('/').to_owned();
        if !base.starts_with("http://") {
            bail!("--admin takes an http:// URL, such as {DEFAULT}");
        }
        let token = match &operator.token_file {
            Some(path) => Some(
                std::fs::read_to_string(path)
                    .with_context(|| format!("--token-file {}: cannot be read", path.display()))?,
            ),
            None => std::env::var("SEAWALL_ADMIN_TOKEN")
                .ok()
                .or_else(|| operator.token.as_ref().map(|token| token.expose().to_owned())),
        };
        let token = token
            .map(|token| {
                let mut value = HeaderValue::from_str(&format!("Bearer {}", token.trim()))
                    .map_err(|_| anyhow!("the admin token holds characters that a header field cannot"))?;
                value.set_sensitive(true);
                anyhow::Ok(value)
            })
            .transpose()?;
        let client = Client::builder(TokioExecutor::new()).build_http();
        Ok(Self { base, token, client })
    }

    /// Sends a request and gives the JSON of a successful answer; an error's own words otherwise.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> anyhow::Result<Value> {
        let (status, text) = self.send_raw(method, path, body).await?;
        let value: Value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        if status.is_success() {
            return Ok(value);
        }
        let detail = value["detail"].as_str().or(value.as_str()).unwrap_or_default();
        bail!(
            "{} {}",
            status.as_u16(),
            if detail.is_empty() { status.canonical_reason().unwrap_or("") } else { detail }
        )
    }

    /// The same without a look at the answer.
    pub(super) async fn send_raw(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> anyhow::Result<(http::StatusCode, String)> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        let body = match body {
            Some(value) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Body::from(value.to_string())
            }
            None => Body::empty(),
        };
        let response = self.client.request(request.body(body)?).await.map_err(|error| {
            anyhow!("{}; is Seawall running, and is this its admin API?", crate::http::body::chain(&error))
        })?;
        let status = response.status();
        let bytes = Body::from(response.into_body()).collect(64 << 20).await?;
        Ok((status, String::from_utf8_lossy(&bytes).into_owned()))
    }
}
