//! Who may use the admin API.

use super::Admin;
use super::problem::Problem;
use crate::http::origin;
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
    let Some(token) = &snapshot.admin_token else {
        // Without a token the address is all that protects: a page that had its own name point here must not pass.
        if origin::is_foreign_name(fields, "") {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "without an admin token, ask by IP address or as localhost: the Host field names something else",
            ));
        }
        return Ok(());
    };
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
        && origin::is_cross_site(request.headers())
    {
        return Err(Problem::new(StatusCode::FORBIDDEN, "changes are not taken from another site's page"));
    }
    Ok(next.run(request).await)
}
