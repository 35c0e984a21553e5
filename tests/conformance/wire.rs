//! HTTP/1.1 by hand: what is sent must be what a case says, to the letter, and what comes must be seen as it came.

use tokio::io::{AsyncRead, AsyncReadExt};

/// A message as it came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Received {
    /// The first line.
    pub(crate) start: String,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: String,
    /// Whether it ended before its end.
    pub(crate) is_cut: bool,
    /// Those with a status of 1xx before it, as `103 name: value; …`.
    pub(crate) interim: Vec<String>,
}

// === impl Received ===

impl Received {
    /// All values of a field, joined. `None`: it is not there.
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        let lines: Vec<&str> = self
            .fields
            .iter()
            .filter(|(own, _)| own.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect();
        (!lines.is_empty()).then(|| lines.join(", "))
    }

    pub(crate) fn status(&self) -> Option<u16> {
        self.start.split(' ').nth(1)?.parse().ok()
    }
}

/// Reads a request. `None`: the connection ended.
pub(crate) async fn request(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Option<Received> {
    let mut request = head(stream, buffer).await?;
    body(stream, buffer, &mut request, true).await;
    Some(request)
}

/// Reads a response, and those of 1xx before it. `None`: the connection ended.
pub(crate) async fn response(stream: &mut (impl AsyncRead + Unpin), is_head: bool) -> Option<Received> {
    let mut buffer = Vec::new();
    let mut interim = Vec::new();
    loop {
        let mut response = head(stream, &mut buffer).await?;
        let status = response.status()?;
        if (100..200).contains(&status) {
            let fields: Vec<String> =
                response.fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
            interim.push(format!("{status} {}", fields.join("; ")));
            continue;
        }
        if !is_head && !matches!(status, 204 | 304) {
            body(stream, &mut buffer, &mut response, false).await;
        }
        response.interim = interim;
        return Some(response);
    }
}

async fn more(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> bool {
    matches!(stream.read_buf(buffer).await, Ok(read) if read > 0)
}

async fn head(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Option<Received> {
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if !more(stream, buffer).await {
            return None;
        }
    };
    let text = latin1(&buffer[..end]);
    buffer.drain(..end + 4);
    let mut lines = text.split("\r\n");
    let start = lines.next()?.to_owned();
    let fields = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    Some(Received { start, fields, ..Received::default() })
}

async fn body(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
    message: &mut Received,
    is_request: bool,
) {
    let is_chunked = message.field("transfer-encoding").is_some_and(|coding| coding.contains("chunked"));
    let length = message.field("content-length").and_then(|length| length.parse::<usize>().ok());
    if is_chunked {
        let mut whole = Vec::new();
        loop {
            let Some(end) = buffer.windows(2).position(|window| window == b"\r\n") else {
                if more(stream, buffer).await {
                    continue;
                }
                message.is_cut = true;
                break;
            };
            let size = latin1(&buffer[..end]);
            let size =
                usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16).unwrap_or(0);
            while buffer.len() < end + 2 + size + 2 {
                if !more(stream, buffer).await {
                    message.is_cut = true;
                    break;
                }
            }
            if message.is_cut {
                break;
            }
            whole.extend_from_slice(&buffer[end + 2..end + 2 + size]);
            buffer.drain(..end + 2 + size + 2);
            if size == 0 {
                break;
            }
        }
        message.body = latin1(&whole);
    } else if let Some(length) = length {
        while buffer.len() < length {
            if !more(stream, buffer).await {
                message.is_cut = true;
                break;
            }
        }
        let body: Vec<u8> = buffer.drain(..length.min(buffer.len())).collect();
        message.body = latin1(&body);
    } else if !is_request {
        while more(stream, buffer).await {}
        message.body = latin1(buffer);
    }
}

/// Each byte a character: fields may hold any byte from 0x80 up.
pub(crate) fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// The reverse.
pub(crate) fn bytes(text: &str) -> Vec<u8> {
    text.chars().map(|character| u8::try_from(u32::from(character)).unwrap_or(b'?')).collect()
}
