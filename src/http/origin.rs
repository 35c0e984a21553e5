//! Pure. What tells a page in a browser from a program.
//!
//! Seawall's listeners are for programs. On loopback without a token the address is the only protection, and a page
//! in a browser on the same machine has that address too: by a plain cross-site request, or by a name of its own that
//! it makes point to loopback (DNS rebinding).

use http::HeaderMap;
use std::net::IpAddr;

/// Whether a browser says that the request comes from a page of another site (Fetch Metadata, else `Origin`).
pub fn is_cross_site(fields: &HeaderMap) -> bool {
    if let Some(site) = text(fields, "sec-fetch-site") {
        return !matches!(site, "same-origin" | "none");
    }
    match (text(fields, "origin"), text(fields, "host")) {
        (None, _) => false,
        (Some(origin), Some(host)) => origin.split_once("://").map(|(_, authority)| authority) != Some(host),
        (Some(_), None) => true,
    }
}

/// Whether `Host` is a name that somebody else could make point here: neither an IP address, nor `localhost`, nor the
/// host of our own public URL.
pub fn is_foreign_name(fields: &HeaderMap, public_url: &str) -> bool {
    let Some(host) = text(fields, "host") else { return false };
    let name = without_port(host);
    let own = public_url
        .split_once("://")
        .map_or("", |(_, rest)| without_port(rest.split('/').next().unwrap_or(rest)));
    let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    !(is_address
        || name.eq_ignore_ascii_case("localhost")
        || (!own.is_empty() && name.eq_ignore_ascii_case(own)))
}

fn text<'a>(fields: &'a HeaderMap, name: &str) -> Option<&'a str> {
    fields.get(name).map(|value| value.to_str().unwrap_or_default())
}

fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !host.ends_with(':') => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn another_sites_page_is_told_by_its_fields() {
        assert!(!is_cross_site(&fields(&[])));
        assert!(!is_cross_site(&fields(&[("sec-fetch-site", "same-origin")])));
        assert!(is_cross_site(&fields(&[("sec-fetch-site", "cross-site")])));
        assert!(is_cross_site(&fields(&[("origin", "https://evil.example"), ("host", "127.0.0.1:8461")])));
        assert!(is_cross_site(&fields(&[("origin", "null"), ("host", "127.0.0.1:8461")])));
        assert!(!is_cross_site(&fields(&[("origin", "http://127.0.0.1:8461"), ("host", "127.0.0.1:8461")])));
    }

    #[test]
    fn a_name_that_was_made_to_point_here_is_foreign() {
        for host in [
            "127.0.0.1:8461",
            "localhost:8461",
            "[::1]:8461",
            "localhost",
            "10.0.0.7",
            "seawall.internal:8460",
        ] {
            assert!(!is_foreign_name(&fields(&[("host", host)]), "http://seawall.internal:8460/x"), "{host}");
        }
        for host in ["evil.example:8461", "localhost.evil.example", "seawall.internal.evil.example"] {
            assert!(is_foreign_name(&fields(&[("host", host)]), "http://seawall.internal"), "{host}");
        }
    }
}
