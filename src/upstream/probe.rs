//! Active probes: one cheap read of a group that is not well and has no traffic of its own.
//!
//! Without them a night's queue of bookings would never drain: creates wait for their group's reads to recover, and
//! with no other traffic nobody reads. A probe is an ordinary call in its own lane, judged like any other: it counts
//! as a read probe where the breaker is half-open, and trips or closes nothing against real traffic.

use crate::config::Snapshot;
use crate::context::{BoxFuture, Call, Credential, Lane, Upstream, UpstreamRequest, WholeUntil};
use crate::flexport::routes::PROBES;
use crate::http::Body;
use http::{HeaderValue, Method, Request, header};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// What the probes ask of those who know.
pub trait Target: Send + Sync + 'static {
    /// The configuration now.
    fn config(&self) -> Arc<Snapshot>;
    /// Whether a read of this group would help its breakers (not closed, and their wait has passed).
    fn needs_probe(&self, group: &str) -> bool;
    /// As whom to ask: the alias, or in passthrough that of the oldest queued record of the group.
    fn credential(&self, group: &'static str) -> BoxFuture<Credential>;
}

/// How often the groups are looked at.
const LOOK: Duration = Duration::from_millis(250);
/// What a probe has beyond the time of one attempt: that the attempt did not answer must be known by its own limit,
/// and not look like somebody's impatience.
const GRACE: Duration = Duration::from_secs(3);

/// Probes until cancelled.
pub async fn run(target: Arc<dyn Target>, upstream: Upstream, cancel: CancellationToken) {
    let mut last: HashMap<&'static str, Instant> = HashMap::new();
    let mut under_way = tokio::task::JoinSet::new();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = looks.tick() => {}
        }
        while under_way.try_join_next().is_some() {}
        let config = target.config();
        if !config.settings.probe.enabled {
            continue;
        }
        for (group, path) in PROBES {
            let is_due = last.get(group).is_none_or(|at| at.elapsed() >= *config.settings.probe.interval);
            if !is_due || !target.needs_probe(group) {
                continue;
            }
            last.insert(group, Instant::now());
            let credential = target.credential(group);
            let (config, upstream) = (config.clone(), upstream.clone());
            // Side by side: a probe that hangs must not keep the other groups waiting. It ends by its own limits.
            under_way.spawn(async move {
                let request = call(&config, path, credential.await);
                let last = request.call.deadline + GRACE;
                let result = upstream.oneshot(request).await;
                let outcome = match result {
                    Ok(response) => {
                        let status = response.status();
                        match tokio::time::timeout_at(last, response.into_body().collect(4 << 20)).await {
                            Ok(Ok(_)) => format!("answered {status}"),
                            Ok(Err(error)) => error.to_string(),
                            Err(_) => format!("answered {status}, and did not come to an end"),
                        }
                    }
                    Err(error) => error.to_string(),
                };
                tracing::debug!(group, outcome, "probed");
            });
        }
    }
}

fn call(config: &Arc<Snapshot>, path: &'static str, credential: Credential) -> UpstreamRequest {
    let mut request = Request::new(Body::empty());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = http::Uri::from_static(path);
    let fields = request.headers_mut();
    fields.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    fields.insert(
        header::USER_AGENT,
        HeaderValue::from_static(concat!("Seawall/", env!("CARGO_PKG_VERSION"), " (probe)")),
    );
    let bare = path.split('?').next().unwrap_or(path);
    let deadline = Instant::now() + *config.settings.upstream.timeout + GRACE;
    let call = Call {
        lane: Lane::Probe,
        route: config.routes.find(&Method::GET, bare).clone(),
        is_read: true,
        config: config.clone(),
        credential,
        deadline,
        is_hurried: false,
        whole_until: Some(WholeUntil::new(deadline)),
        before_send: None,
        observer: None,
        slot: None,
        resends_unsent: false,
    };
    UpstreamRequest { request, call }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use crate::error::ProxyError;
    use http::Response;
    use std::sync::Mutex;

    /// Groups that are not well, and what was asked.
    struct World {
        config: Mutex<Arc<Snapshot>>,
        ill: Vec<&'static str>,
        asked: Mutex<Vec<(Instant, String, Lane, String)>>,
    }

    impl Target for World {
        fn config(&self) -> Arc<Snapshot> {
            self.config.lock().unwrap().clone()
        }

        fn needs_probe(&self, group: &str) -> bool {
            self.ill.contains(&group)
        }

        fn credential(&self, group: &'static str) -> BoxFuture<Credential> {
            let token = format!("Bearer of {group}").parse().unwrap();
            Box::pin(std::future::ready(Credential::Passed(token)))
        }
    }

    fn world(ill: &[&'static str]) -> Arc<World> {
        let config = Mutex::new(Arc::new(Snapshot::of(Settings::default()).unwrap()));
        Arc::new(World { config, ill: ill.to_vec(), asked: Mutex::default() })
    }

    /// Probes for as long; what is asked for shipments never gets an answer.
    async fn run_for(world: &Arc<World>, span: Duration) {
        let seen = world.clone();
        let upstream = Upstream::new(tower::service_fn(move |UpstreamRequest { request, call }| {
            let path = request.uri().path().to_owned();
            let Credential::Passed(token) = &call.credential else { panic!("{:?}", call.credential) };
            let token = token.to_str().unwrap().to_owned();
            seen.asked.lock().unwrap().push((Instant::now(), path.clone(), call.lane, token));
            async move {
                if path == "/shipments" {
                    std::future::pending::<()>().await;
                }
                Ok::<_, ProxyError>(Response::new(Body::empty()))
            }
        }));
        let cancel = CancellationToken::new();
        let probes = tokio::spawn(run(world.clone(), upstream, cancel.clone()));
        tokio::time::sleep(span).await;
        cancel.cancel();
        probes.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_is_probed_once_an_interval_as_its_oldest_record_and_a_probe_that_hangs_keeps_nobody() {
        let world = world(&["shipments", "ports"]);
        run_for(&world, Duration::from_secs(21)).await;
        let asked = world.asked.lock().unwrap().clone();
        for (group, path) in [("shipments", "/shipments"), ("ports", "/ports")] {
            let mine: Vec<_> = asked.iter().filter(|(_, asked, ..)| asked == path).collect();
            assert_eq!(mine.len(), 5, "at 0, 5, 10, 15 and 20 s: {mine:?}");
            assert!(mine.windows(2).all(|pair| pair[1].0 - pair[0].0 >= Duration::from_secs(5)), "{mine:?}");
            let token = format!("Bearer of {group}");
            assert!(mine.iter().all(|(_, _, lane, with)| *lane == Lane::Probe && *with == token), "{mine:?}");
        }
        assert_eq!(asked.len(), 10, "no group that is well is asked");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reload_turns_probes_off_and_on() {
        let world = world(&["ports"]);
        let set = |is_enabled| {
            let mut settings = Settings::default();
            settings.probe.enabled = is_enabled;
            *world.config.lock().unwrap() = Arc::new(Snapshot::of(settings).unwrap());
        };
        set(false);
        run_for(&world, Duration::from_secs(20)).await;
        assert!(world.asked.lock().unwrap().is_empty());
        set(true);
        run_for(&world, Duration::from_secs(1)).await;
        assert_eq!(world.asked.lock().unwrap().len(), 1);
    }
}
