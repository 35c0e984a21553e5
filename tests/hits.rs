//! What a hit allocates does not grow with the body: 4 KB and 700 KB over a real socket.
//!
//! A binary of its own, since its allocator counts every byte.

#![expect(clippy::unwrap_used, reason = "helpers of tests stand outside of test functions")]

#[allow(dead_code, unreachable_pub, reason = "each suite uses its part of what they share")]
#[path = "it/support/mod.rs"]
mod support;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;
use support::scripted::{self, Scripted};
use support::{Proxy, TOKEN};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const HITS: usize = 100;
/// More for a hit on the long body than on the short one, at most: a socket takes it in more pieces.
const MOST: usize = 8 << 10;

/// Bytes that were ever allocated.
fn allocated() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated + usize::try_from(stats.bytes_reallocated.max(0)).unwrap()
}

/// Asks once and reads the answer, which has this length, into a buffer that is there already.
async fn hit(stream: &mut TcpStream, request: &[u8], buffer: &mut [u8], length: usize) -> usize {
    stream.write_all(request).await.unwrap();
    let (mut read, mut whole) = (0, None);
    while whole.is_none_or(|whole| read < whole) {
        let count = stream.read(&mut buffer[read..]).await.unwrap();
        assert!(count > 0, "it stays open");
        read += count;
        if whole.is_none() {
            whole = buffer[..read].windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4 + length);
        }
    }
    read
}

#[tokio::test]
async fn a_hit_allocates_nothing_that_grows_with_the_body() {
    let upstream = Scripted::start(|arrived| async move {
        let length: usize =
            arrived.head.uri.query().unwrap().strip_prefix("length=").unwrap().parse().unwrap();
        let mut response = scripted::json(200, &format!("\"{}\"", "x".repeat(length - 2)));
        response.headers_mut().insert("cache-control", "max-age=3600".parse().unwrap());
        response
    })
    .await;
    let sets = ["telemetry.access_log=false", "probe.enabled=false"];
    let proxy = Proxy::start(&upstream.url, &sets).await;
    let mut buffer = vec![0; 1 << 20];
    let mut taken = Vec::new();
    for length in [4_000, 700_000] {
        let path = format!("/ports?length={length}");
        proxy.get(&path).await;
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        let host = proxy.addr();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {TOKEN}\r\n\r\n").into_bytes();
        // What a connection and a first hit need.
        for _ in 0..3 {
            let read = hit(&mut stream, &request, &mut buffer, length).await;
            let head = String::from_utf8_lossy(&buffer[..read.min(1000)]).into_owned();
            assert!(head.contains("seawall-source: cache"), "{head}");
        }
        // The least of some rounds: what else runs in this process allocates too.
        let mut least = usize::MAX;
        for _ in 0..5 {
            let before = allocated();
            for _ in 0..HITS {
                hit(&mut stream, &request, &mut buffer, length).await;
            }
            least = least.min((allocated() - before) / HITS);
        }
        taken.push(least);
    }
    eprintln!("bytes for a hit: {taken:?}");
    assert!(taken[1] < taken[0] + MOST, "bytes for a hit on 4 KB and on 700 KB: {taken:?}");
    assert_eq!(upstream.arrived().len(), 2);
}
