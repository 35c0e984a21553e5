//! Who may use the admin API.

use super::Admin;
use super::problem::Problem;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderMap, Method, StatusCode, header};

pub(super) async fn require_token(
    State(admin): State<Admin>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    check(&admin, request.headers())?;
    Ok(next.run(request).await)
}

pub(super) async fn require_token_unless_open(
    State(admin): State<Admin>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if !admin.config.current().settings.admin.open_health {
        check(&admin, request.headers())?;
    }
    Ok(next.run(request).await)
}

fn check(admin: &Admin, fields: &HeaderMap) -> Result<(), Problem> {
    let snapshot = admin.config.current();
    let Some(token) = &snapshot.admin_token else { return Ok(()) };
    let presented = fields
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    let is_right = presented.is_some_and(|presented| {
        aws_lc_rs::constant_time::verify_slices_are_equal(presented.as_bytes(), token.expose().as_bytes())
            .is_ok()
    });
    if is_right {
        return Ok(());
    }
    Err(Problem::new(StatusCode::UNAUTHORIZED, "send the admin token: Authorization: Bearer <token>"))
}

/// A browser says where a request comes from; a page of another site must not turn switches here.
pub(super) async fn refuse_cross_site(request: Request, next: Next) -> Result<Response, Problem> {
    if *request.method() != Method::GET
        && *request.method() != Method::HEAD
        && is_cross_site(request.headers())
    {
        return Err(Problem::new(StatusCode::FORBIDDEN, "changes are not taken from another site's page"));
    }
    Ok(next.run(request).await)
}

fn is_cross_site(fields: &HeaderMap) -> bool {
    let text = |name: &str| fields.get(name).map(|value| value.to_str().unwrap_or_default());
    if let Some(site) = text("sec-fetch-site") {
        return !matches!(site, "same-origin" | "none");
    }
    match (text("origin"), text("host")) {
        (None, _) => false,
        (Some(origin), Some(host)) => origin.split_once("://").map(|(_, authority)| authority) != Some(host),
        (Some(_), None) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_sites_page_is_told_by_its_fields() {
        let fields = |pairs: &[(&'static str, &'static str)]| {
            pairs
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect::<HeaderMap>()
        };
        assert!(!is_cross_site(&fields(&[])));
        assert!(!is_cross_site(&fields(&[("sec-fetch-site", "same-origin")])));
        assert!(is_cross_site(&fields(&[("sec-fetch-site", "cross-site")])));
        assert!(is_cross_site(&fields(&[("origin", "https://evil.example"), ("host", "127.0.0.1:8461")])));
        assert!(is_cross_site(&fields(&[("origin", "null"), ("host", "127.0.0.1:8461")])));
        assert!(!is_cross_site(&fields(&[("origin", "http://127.0.0.1:8461"), ("host", "127.0.0.1:8461")])));
    }
}
