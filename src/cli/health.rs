//! `seawall health live|ready`: for container health checks, which have no curl.

use super::Exit;
use super::args::{HealthCommand, Operator};
use super::client;
use anyhow::bail;
use http::Method;
use serde_json::Value;

pub(super) fn run(operator: &Operator, command: HealthCommand) -> Exit {
    let path = match command {
        HealthCommand::Live => "/livez",
        HealthCommand::Ready => "/readyz",
    };
    client::each(
        operator,
        async |admin| {
            let (status, text) = admin.send_raw(Method::GET, path, None).await?;
            if !status.is_success() {
                bail!("{}", text.trim());
            }
            Ok(Value::String(text.trim().to_owned()))
        },
        |value| value.as_str().unwrap_or_default().to_owned(),
    )
}
