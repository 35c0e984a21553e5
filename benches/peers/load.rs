//! The load: keep-alive HTTP/1.1 connections, one request after the other on each. Every answer is looked at, so
//! that nothing but right answers is ever measured.

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use tokio::net::TcpStream;
use tokio::task::LocalSet;

/// How many connections ask at once.
pub(crate) const CONNECTIONS: usize = 16;

/// Which paths are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paths {
    /// A new shipment each time: nothing can be collapsed or answered from memory.
    New,
    /// The same one each time.
    One,
}

/// What a right answer looks like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    /// Its status.
    pub(crate) status: StatusCode,
    /// Length of the body; `None` where it may have any.
    pub(crate) len: Option<usize>,
    /// A field and what it must contain; nothing where there need not be one.
    pub(crate) field: Option<(&'static str, &'static str)>,
}

/// Asks for paths, never for the same new one twice.
#[derive(Clone)]
pub(crate) struct Load {
    next_id: Rc<Cell<u64>>,
}

// === impl Load ===

impl Load {
    /// A load that has asked for nothing yet.
    pub(crate) fn new() -> Self {
        Self { next_id: Rc::new(Cell::new(1_000_000)) }
    }

    /// Sends `requests` requests over new connections and waits for all answers.
    pub(crate) async fn run(
        &self,
        to: SocketAddr,
        paths: Paths,
        requests: u64,
        expected: Expected,
    ) -> Result<()> {
        let left = Rc::new(Cell::new(requests));
        let local = LocalSet::new();
        let mut workers = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            let (load, left) = (self.clone(), left.clone());
            workers.push(local.spawn_local(async move { load.worker(to, paths, &left, expected).await }));
        }
        local
            .run_until(async {
                for worker in workers {
                    worker.await.context("a connection of the load panicked")??;
                }
                Ok(())
            })
            .await
    }

    async fn worker(&self, to: SocketAddr, paths: Paths, left: &Cell<u64>, expected: Expected) -> Result<()> {
        let mut connection = connect(to).await?;
        while left.get() > 0 {
            left.set(left.get() - 1);
            let id = match paths {
                Paths::New => self.next_id.replace(self.next_id.get() + 1),
                Paths::One => 1,
            };
            let path = format!("/shipments/{id}");
            let response = ask(&mut connection, to, &path).await?;
            check(response, expected).await.with_context(|| format!("GET {path} of {to}"))?;
        }
        Ok(())
    }
}

/// One connection.
pub(crate) async fn connect(to: SocketAddr) -> Result<SendRequest<Empty<Bytes>>> {
    let stream = TcpStream::connect(to).await.with_context(|| format!("connecting to {to}"))?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // Its error comes out of the request that was on it.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

/// One GET.
pub(crate) async fn ask(
    connection: &mut SendRequest<Empty<Bytes>>,
    to: SocketAddr,
    path: &str,
) -> Result<Response<Incoming>> {
    connection.ready().await.context("the connection was closed")?;
    let request = Request::get(path)
        .header(header::HOST, to.to_string())
        .header(header::AUTHORIZATION, "Bearer x")
        .header(header::ACCEPT, "application/json")
        .header("flexport-version", "2")
        .body(Empty::new())?;
    Ok(connection.send_request(request).await?)
}

async fn check(response: Response<Incoming>, expected: Expected) -> Result<()> {
    ensure!(response.status() == expected.status, "answered {}", response.status());
    if let Some((name, wanted)) = expected.field {
        let field = response.headers().get(name).and_then(|value| value.to_str().ok());
        let Some(field) = field else { bail!("no {name}") };
        ensure!(field.contains(wanted), "{name} is {field:?}, not {wanted:?}");
    }
    let mut body = response.into_body();
    let mut len = 0;
    while let Some(frame) = body.frame().await {
        len += frame?.data_ref().map_or(0, Bytes::len);
    }
    if let Some(expected) = expected.len {
        ensure!(len == expected, "the body has {len} bytes, not {expected}");
    }
    Ok(())
}
