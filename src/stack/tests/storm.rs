//! An upstream with a quota.

use super::*;

/// An upstream with a token bucket.
struct Bucket {
    tokens: f64,
    filled: Instant,
    /// When something arrived, and whether it was limited.
    arrived: Vec<(Instant, bool)>,
}

const QUOTA: f64 = 40.0;

// === impl Bucket ===

impl Bucket {
    fn take(&mut self) -> StatusCode {
        let now = Instant::now();
        self.tokens = (self.tokens + (now - self.filled).as_secs_f64() * QUOTA).min(QUOTA);
        self.filled = now;
        let is_limited = self.tokens < 1.0;
        self.arrived.push((now, is_limited));
        if is_limited {
            return StatusCode::TOO_MANY_REQUESTS;
        }
        self.tokens -= 1.0;
        StatusCode::OK
    }
}

#[tokio::test(start_paused = true)]
async fn a_429_storm_stays_outside_the_gates_and_uses_the_quota() {
    fastrand::seed(7);
    let world = World::new();
    let bucket = Arc::new(Mutex::new(Bucket { tokens: QUOTA, filled: Instant::now(), arrived: Vec::new() }));
    let upstream = world.stack({
        let bucket = bucket.clone();
        move |request| {
            let bucket = bucket.clone();
            // It answers after a tenth of a second; the quota is asked in the beginning.
            attempt(request, async move {
                let status = bucket.lock().unwrap().take();
                sleep(100 * MS).await;
                said(status)
            })
        }
    });
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for call in 0..60 * 300_u32 {
        sleep_until(began + Duration::from_secs(1) * call / 60).await;
        let mut upstream = upstream.clone();
        let request = world.call(&Method::GET, "/shipments", Lane::LiveRead);
        callers.spawn(async move { upstream.call(request).await.map(|response| response.status()) });
    }
    while callers.join_next().await.is_some() {}

    let arrived = std::mem::take(&mut bucket.lock().unwrap().arrived);
    let limited = arrived.iter().filter(|(_, is_limited)| *is_limited).count();
    assert!(limited > 5, "it was a storm: {limited}");
    assert!(limited * 20 < arrived.len(), "below 5 %: {limited} of {}", arrived.len());

    // A gate begins when the first 429 of it is known, and lasts 7 s at least.
    let mut shut: Option<(Instant, Instant)> = None;
    let mut shut_for = Duration::ZERO;
    let mut first_seconds = Vec::new();
    for (at, is_limited) in &arrived {
        if let Some((from, until)) = shut {
            assert!(*at < from || *at >= until, "an attempt left inside a gate: {:?}", *at - began);
            if *at >= until {
                shut_for += *at - from;
                shut = None;
                first_seconds.push(*at);
            }
        }
        if *is_limited && shut.is_none() {
            shut = Some((*at + 101 * MS, *at + 100 * MS + Duration::from_secs(7)));
        }
    }
    for opened in first_seconds {
        let together = arrived.iter().filter(|(at, _)| *at >= opened && *at < opened + 50 * MS).count();
        assert!(together <= 5, "waiters woke together: {together}");
    }
    let open_for = Duration::from_secs(300).saturating_sub(shut_for);
    let goodput = f64::from(u32::try_from(arrived.len() - limited).unwrap()) / open_for.as_secs_f64();
    assert!(goodput >= 0.9 * QUOTA, "goodput {goodput:.1}/s in {open_for:?}");
    let state = world.breakers.get("shipments:read").unwrap().state;
    assert_eq!(state, crate::breaker::State::Closed, "429 says nothing of health");
}
