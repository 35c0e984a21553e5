//! Raw sockets: an upstream that is written byte by byte, and a client that is.

use super::PATIENCE;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// An upstream whose connections a test speaks by hand; it ends when it is dropped.
pub struct Chaos {
    pub url: String,
    connections: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

impl Chaos {
    /// Gives each connection, with its number from 0, to `speak`.
    pub async fn start<F, R>(speak: F) -> Self
    where
        F: Fn(TcpStream, usize) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (count, connections) = watch::channel(0);
        let task = tokio::spawn(async move {
            let mut running = tokio::task::JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let _ = stream.set_nodelay(true);
                let number = *count.borrow();
                count.send_replace(number + 1);
                running.spawn(speak(stream, number));
            }
        });
        Self { url, connections, task }
    }

    /// How many connections were taken.
    pub fn connections(&self) -> usize {
        *self.connections.borrow()
    }

    /// Waits until this many connections were taken.
    pub async fn reached(&self, count: usize) {
        let mut connections = self.connections.clone();
        let reached = tokio::time::timeout(PATIENCE, connections.wait_for(|taken| *taken >= count)).await;
        reached.expect("the connections are made").expect("it runs");
    }
}

impl Drop for Chaos {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads a head, up to its empty line. Empty when the peer left before.
pub async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return String::new(),
        }
    }
    String::from_utf8(head).unwrap()
}

/// A field of a head, by its lower-case name.
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// Sends these bytes on a connection of their own, and reads as [`drain`] does.
pub async fn exchange(addr: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    // A refusal may close the connection while we still send.
    let _ = stream.write_all(bytes).await;
    drain(&mut stream).await
}

/// Reads until the peer closes, or has sent a whole answer and is silent for a second after it.
pub async fn drain(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let mut chunk = vec![0; 16 * 1024];
    loop {
        let patience = if is_whole(&all) { Duration::from_secs(1) } else { PATIENCE };
        let Ok(Ok(count @ 1..)) = tokio::time::timeout(patience, stream.read(&mut chunk)).await else {
            break;
        };
        all.extend_from_slice(&chunk[..count]);
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// Whether an answer has come to its end, as far as its head tells; what ends with its connection has not.
pub fn is_whole(answer: &[u8]) -> bool {
    let answer = String::from_utf8_lossy(answer);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return false };
    match field(head, "content-length") {
        Some(length) => length.parse().is_ok_and(|length: usize| body.len() >= length),
        None => field(head, "transfer-encoding").is_some() && body.ends_with("0\r\n\r\n"),
    }
}

/// Waits for the peer to close, sending nothing. What came before is returned.
pub async fn closed(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await;
    let _ = read.expect("the peer closes");
    String::from_utf8_lossy(&all).into_owned()
}

/// More than all socket buffers on the way can hold.
pub const FLOOD: usize = 256 << 20;
/// What two pairs of socket buffers and our own may hold.
pub const BOUND: usize = 48 << 20;

/// An upstream that answers its one request with this head and as much as is taken of a body of [`FLOOD`] bytes, of
/// which `first` come whether somebody reads or not. Tells how many were taken, once no more are.
pub async fn flood(answer: String, first: usize) -> (Chaos, oneshot::Receiver<usize>) {
    let (tell, taken) = oneshot::channel();
    let tell = Arc::new(Mutex::new(Some(tell)));
    let answer = Arc::new(answer);
    let upstream = Chaos::start(move |mut stream, _| {
        let (tell, answer) = (tell.lock().unwrap().take(), answer.clone());
        async move {
            head(&mut stream).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.write_all(&vec![b'x'; first]).await.unwrap();
            let taken = first + pour(&mut stream, &[b'x'; 8192], FLOOD - first).await;
            let _ = tell.expect("it is asked once").send(taken);
        }
    })
    .await;
    (upstream, taken)
}

/// Counts what is written until nothing is taken for half a second, or `most` bytes were.
pub async fn pour(stream: &mut TcpStream, chunk: &[u8], most: usize) -> usize {
    let mut taken = 0;
    while taken < most {
        match tokio::time::timeout(Duration::from_millis(500), stream.write(chunk)).await {
            Ok(Ok(count)) => taken += count,
            _ => break,
        }
    }
    taken
}
