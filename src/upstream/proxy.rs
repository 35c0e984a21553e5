//! The egress proxy: a tunnel by CONNECT (RFC 9110 §9.3.6), for http and https upstreams alike.
//!
//! Whatever goes wrong here goes wrong before a byte of a request can have reached the upstream. The answer's head is
//! read to its last byte and not one further, since what follows belongs to the tunnel; it is at most [`MAX_HEAD`]
//! long. A length or coding in a 2xx answer has no meaning (RFC 9110 §9.3.6) and is not looked at.

use http::{HeaderValue, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest head of an answer to CONNECT.
const MAX_HEAD: usize = 16 * 1024;

/// What is looked at without being taken.
const CHUNK: usize = 1024;

/// Interim answers before the final one.
const MAX_INTERIM: usize = 8;

/// Asks for a tunnel to `authority`, which has a port. The error is the end of a sentence about the proxy.
pub(super) async fn tunnel(
    stream: &mut TcpStream,
    authority: &str,
    authorization: Option<&HeaderValue>,
) -> Result<(), String> {
    let mut request = Vec::with_capacity(256);
    request.extend_from_slice(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n").as_bytes());
    if let Some(value) = authorization {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(value.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    let broken = |error: std::io::Error| format!("broke the connection: {error}");
    stream.write_all(&request).await.map_err(broken)?;
    for _ in 0..MAX_INTERIM {
        let status = status_of(&head(stream).await?)?;
        if status.is_informational() {
            continue;
        }
        if status.is_success() {
            return Ok(());
        }
        let hint = match (status, authorization) {
            (StatusCode::PROXY_AUTHENTICATION_REQUIRED, None) => "; set `upstream.proxy_authorization_file`",
            (StatusCode::PROXY_AUTHENTICATION_REQUIRED, Some(_)) => {
                "; it does not take what `upstream.proxy_authorization_file` or `_env` gives"
            }
            _ => "",
        };
        return Err(format!("refused a tunnel to {authority} with {status}{hint}"));
    }
    Err("sent interim answers and no other".to_owned())
}

/// One head, up to and with its empty line.
async fn head(stream: &mut TcpStream) -> Result<Vec<u8>, String> {
    let broken = |error: std::io::Error| format!("broke the connection: {error}");
    let mut head = Vec::new();
    loop {
        let mut seen = [0; CHUNK];
        let count = stream.peek(&mut seen).await.map_err(broken)?;
        if count == 0 {
            return Err("closed the connection without an answer to CONNECT".to_owned());
        }
        let known = head.len();
        head.extend_from_slice(&seen[..count]);
        let end = end_of_head(&head, known);
        let taken = end.unwrap_or(head.len()) - known;
        stream.read_exact(&mut seen[..taken]).await.map_err(broken)?;
        if let Some(end) = end {
            head.truncate(end);
            return Ok(head);
        }
        if head.len() > MAX_HEAD {
            return Err(format!("answered CONNECT with a head longer than {MAX_HEAD} bytes"));
        }
        if !b"HTTP/1.".starts_with(&head[..head.len().min(7)]) {
            return Err(NOT_HTTP.to_owned());
        }
    }
}

const NOT_HTTP: &str = "did not answer CONNECT in HTTP/1.1; is it a proxy for HTTP?";

/// Where the empty line ends, when it is there; `known` bytes were looked at before.
fn end_of_head(head: &[u8], known: usize) -> Option<usize> {
    let from = known.saturating_sub(3);
    let at = memchr::memmem::find(&head[from..], b"\r\n\r\n")?;
    Some(from + at + 4)
}

/// The status of a head: `HTTP/1.x 200 whatever`.
fn status_of(head: &[u8]) -> Result<StatusCode, String> {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0' | b'1', b' ', code @ ..] = line else {
        return Err(NOT_HTTP.to_owned());
    };
    let (code, rest) = code.split_at_checked(3).ok_or(NOT_HTTP)?;
    if !matches!(rest.first(), None | Some(b' ')) {
        return Err(NOT_HTTP.to_owned());
    }
    StatusCode::from_bytes(code).map_err(|_| NOT_HTTP.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::net::TcpListener;

    #[test]
    fn a_status_line_is_read_strictly() {
        for (line, status) in [
            ("HTTP/1.1 200 Connection established\r\n\r\n", 200),
            ("HTTP/1.0 200\r\n\r\n", 200),
            ("HTTP/1.1 407 \r\nProxy-Authenticate: Basic\r\n\r\n", 407),
        ] {
            assert_eq!(status_of(line.as_bytes()).unwrap().as_u16(), status, "{line}");
        }
        for line in [
            "",
            "HTTP/1.1 20\r\n",
            "HTTP/1.1 2000 x\r\n",
            "HTTP/2 200\r\n",
            "HTTP/1.1  200\r\n",
            "ICY 200 OK\r\n",
        ] {
            assert!(status_of(line.as_bytes()).is_err(), "{line}");
        }
    }

    /// What became of a CONNECT that is answered with these pieces, and what the tunnel then holds.
    async fn answered(pieces: &'static [&'static [u8]]) -> (Result<(), String>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            for piece in pieces {
                if stream.write_all(piece).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            let _ = stream.shutdown().await;
            String::from_utf8(request).unwrap()
        });
        let mut stream = TcpStream::connect(address).await.unwrap();
        let value = HeaderValue::from_static("Basic abc");
        let result = tokio::time::timeout(
            Duration::from_secs(60),
            tunnel(&mut stream, "api.flexport.com:443", Some(&value)),
        );
        let result = result.await.unwrap();
        let mut rest = Vec::new();
        if result.is_ok() {
            stream.read_to_end(&mut rest).await.unwrap();
        }
        drop(stream);
        assert_eq!(
            server.await.unwrap(),
            "CONNECT api.flexport.com:443 HTTP/1.1\r\nHost: api.flexport.com:443\r\nProxy-Authorization: Basic abc\r\n\r\n"
        );
        (result, rest)
    }

    #[tokio::test]
    async fn what_follows_the_head_belongs_to_the_tunnel() {
        let (result, rest) =
            answered(&[b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nbytes of the tunnel"]).await;
        assert_eq!((result, rest.as_slice()), (Ok(()), b"bytes of the tunnel".as_slice()));
        let (result, rest) =
            answered(&[b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 2", b"00 OK\r\n", b"\r", b"\nx"]).await;
        assert_eq!((result, rest.as_slice()), (Ok(()), b"x".as_slice()));
    }

    #[tokio::test]
    async fn each_refusal_says_what_it_was() {
        const LONG: &[&[u8]] = &[b"HTTP/1.1 200 OK\r\nA: ", &[b'x'; 20_000]];
        let cases: [(&'static [&'static [u8]], &str); 7] = [
            (&[b"HTTP/1.1 407 Who?\r\n\r\n"], "with 407 Proxy Authentication Required; it does not take"),
            (
                &[b"HTTP/1.1 502 Bad\r\nContent-Length: 3\r\n\r\nbad"],
                "to api.flexport.com:443 with 502 Bad Gateway",
            ),
            (&[b"SSH-2.0-OpenSSH_9.6\r\n"], "did not answer CONNECT in HTTP/1.1"),
            (&[b"\x15\x03\x03\x00\x02\x02\x46"], "did not answer CONNECT in HTTP/1.1"),
            (&[], "closed the connection without an answer"),
            (&[b"HTTP/1.1 200 OK\r\n"], "closed the connection without an answer"),
            (LONG, "a head longer than 16384 bytes"),
        ];
        for (pieces, what) in cases {
            let error = answered(pieces).await.0.unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }
}
