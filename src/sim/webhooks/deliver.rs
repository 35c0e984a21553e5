//! Sends what is planned: on-time deliveries in their order, late ones when they are due, refused ones again.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::super::shared::Shared;
use super::Planned;

type Http = Client<HttpConnector, Full<Bytes>>;

/// The longest wait between two attempts.
const RETRY_MAX: Duration = Duration::from_secs(3600);

/// Sends until nobody can plan anything any more; what is under way ends with the task.
pub(in crate::sim) async fn run(shared: Weak<Shared>, mut planned: mpsc::UnboundedReceiver<Planned>) {
    let client: Http = Client::builder(TokioExecutor::new()).build_http();
    let mut sending = JoinSet::new();
    let mut slots = (0, Arc::new(Semaphore::new(1)));
    loop {
        tokio::select! {
            one = planned.recv() => {
                let Some(one) = one else { break };
                if slots.0 != one.settings.concurrency {
                    slots = (one.settings.concurrency, Arc::new(Semaphore::new(one.settings.concurrency)));
                }
                // Taken here and in order: who is on time does not overtake.
                let slot = if one.delay.is_zero() { Arc::clone(&slots.1).acquire_owned().await.ok() } else { None };
                let (shared, client) = (shared.clone(), client.clone());
                sending.spawn(async move {
                    tokio::time::sleep(one.delay).await;
                    let first = attempt(&client, &one).await;
                    drop(slot);
                    settle(&shared, &client, &one, first).await;
                });
            }
            Some(_) = sending.join_next() => {}
        }
    }
}

/// Notes how the first attempt ended, and tries again while it is not exactly 200.
async fn settle(shared: &Weak<Shared>, client: &Http, planned: &Planned, first: Result<u16, String>) {
    let mut outcome = first;
    let mut wait = planned.settings.retry;
    for number in 1.. {
        let Some(shared) = shared.upgrade() else { return };
        let is_done = outcome == Ok(200) || number >= planned.settings.attempts;
        let now = shared.now();
        shared.webhooks().attempted(planned, number, outcome, now);
        drop(shared);
        if is_done {
            return;
        }
        tokio::time::sleep(wait).await;
        wait = wait.saturating_mul(2).min(RETRY_MAX);
        outcome = attempt(client, planned).await;
    }
}

async fn attempt(client: &Http, planned: &Planned) -> Result<u16, String> {
    let settings = &planned.settings;
    let mut request = Request::post(settings.url.clone())
        .header(CONTENT_TYPE, "application/json")
        .header("user-agent", "Flexport-Simulator");
    for (name, value) in settings.signatures(&planned.body, planned.is_badly_signed) {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(planned.body.clone())).map_err(|error| error.to_string())?;
    let exchange = async {
        let response = client.request(request).await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        // Read to its end, so that the connection can be used again.
        let _ = response.into_body().collect().await;
        Ok(status)
    };
    tokio::time::timeout(settings.timeout, exchange)
        .await
        .unwrap_or_else(|_| Err("no answer in time".to_owned()))
}
