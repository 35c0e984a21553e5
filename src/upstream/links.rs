//! The outermost layer of the upstream: what comes in has Flexport's links turned to Seawall's.
//!
//! It works on the way in, so that cache, tickets and callers all hold rewritten bytes and a hit rewrites nothing.
//! JSON is rewritten as it streams, `Location` always. What is rewritten must come in identity coding, has another
//! length, and no digest of it holds any more. A part of such a body cannot be rewritten, so `Range` is not asked for
//! and a full answer is given, as RFC 9110 §14.2 allows.

use crate::context::UpstreamRequest;
use crate::error::ProxyError;
use crate::flexport::links::{Bases, Rewriter};
use crate::http::{Body, BodyError, headers};
use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body::{Body as HttpBody, Frame};
use pin_project_lite::pin_project;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Makes [`Links`].
#[derive(Clone)]
pub struct LinksLayer(Option<Arc<Bases>>);

/// Rewrites links of answers.
#[derive(Clone)]
pub struct Links<S> {
    bases: Option<Arc<Bases>>,
    inner: S,
}

pin_project! {
    /// The answer, rewritten.
    pub struct Rewriting<F> {
        #[pin]
        answer: F,
        bases: Option<Arc<Bases>>,
        is_download: bool,
    }
}

struct RewrittenBody {
    inner: Body,
    /// Gone when the end has been seen.
    rewriter: Option<Rewriter>,
    ready: VecDeque<Bytes>,
    trailers: Option<Frame<Bytes>>,
}

// === impl LinksLayer ===

impl LinksLayer {
    /// With `None`, nothing is rewritten (the `strict` profile).
    pub fn new(bases: Option<Arc<Bases>>) -> Self {
        Self(bases)
    }
}

impl<S> tower::Layer<S> for LinksLayer {
    type Service = Links<S>;

    fn layer(&self, inner: S) -> Links<S> {
        Links { bases: self.0.clone(), inner }
    }
}

// === impl Links ===

impl<S> tower::Service<UpstreamRequest> for Links<S>
where
    S: tower::Service<UpstreamRequest, Response = Response<Body>, Error = ProxyError>,
{
    type Response = Response<Body>;
    type Error = ProxyError;
    type Future = Rewriting<S::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: UpstreamRequest) -> Self::Future {
        let Some(bases) = self.bases.clone() else {
            return Rewriting { answer: self.inner.call(request), bases: None, is_download: false };
        };
        // Bytes of documents are not rewritten, and may be asked for in parts.
        let is_download = request.call.route.template.ends_with("/download");
        if !is_download {
            let fields = request.request.headers_mut();
            fields.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            fields.remove(header::RANGE);
            fields.remove(header::IF_RANGE);
        }
        Rewriting { answer: self.inner.call(request), bases: Some(bases), is_download }
    }
}

// === impl Rewriting ===

impl<F> Future for Rewriting<F>
where
    F: Future<Output = Result<Response<Body>, ProxyError>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let answer = std::task::ready!(this.answer.poll(cx));
        Poll::Ready(match this.bases {
            Some(bases) => answer.map(|response| rewrite(response, bases, *this.is_download)),
            None => answer,
        })
    }
}

fn rewrite(response: Response<Body>, bases: &Arc<Bases>, is_download: bool) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    if let Some(location) =
        parts.headers.get(header::LOCATION).and_then(|value| bases.rewrite_location(value))
    {
        parts.headers.insert(header::LOCATION, location);
    }
    // A document is what somebody uploaded, JSON or not: its bytes are not ours to change.
    if is_download || !headers::is_json(parts.headers.get(header::CONTENT_TYPE)) {
        return Response::from_parts(parts, body);
    }
    if parts.headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        tracing::warn!(
            coding = ?parts.headers.get(header::CONTENT_ENCODING),
            "the upstream sent JSON in a coding that was not asked for; its links are not rewritten"
        );
        return Response::from_parts(parts, body);
    }
    headers::strip_for_changed_content(&mut parts.headers);
    let body = if body.is_end_stream() {
        body
    } else {
        let rewriter = Some(Rewriter::new(bases.clone()));
        Body::new(RewrittenBody { inner: body, rewriter, ready: VecDeque::new(), trailers: None })
    };
    Response::from_parts(parts, body)
}

// === impl RewrittenBody ===

impl HttpBody for RewrittenBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            if let Some(bytes) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            let Some(rewriter) = &mut this.rewriter else { return Poll::Ready(this.trailers.take().map(Ok)) };
            let ready = &mut this.ready;
            match std::task::ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        // Mostly one piece comes of one: then nothing has to stand in line.
                        let mut first = None;
                        rewriter.push(data, &mut |bytes| match first {
                            None => first = Some(bytes),
                            Some(_) => ready.push_back(bytes),
                        });
                        if let Some(bytes) = first {
                            return Poll::Ready(Some(Ok(Frame::data(bytes))));
                        }
                    }
                    Err(trailers) => {
                        rewriter.finish(&mut |bytes| ready.push_back(bytes));
                        this.rewriter = None;
                        this.trailers = Some(trailers);
                    }
                },
                // What the rewriter holds back belongs to a body that was cut: it must not look like an end.
                Some(Err(error)) => {
                    this.rewriter = None;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    rewriter.finish(&mut |bytes| ready.push_back(bytes));
                    this.rewriter = None;
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rewriter.is_none() && self.ready.is_empty() && self.trailers.is_none()
    }
}
