//! Pure. Where a reference in a field of an answer points (RFC 3986 §5), as far as it points to us.

use std::borrow::Cow;

/// The path and query that a reference of ours names, seen from the path that was asked for. `None`: it is another
/// origin's, whose word says nothing of our copies, or it is none.
pub(crate) fn own_path<'a>(reference: &'a str, public_url: &str, asked: &'a str) -> Option<Cow<'a, str>> {
    let reference = reference.split('#').next().unwrap_or(reference);
    let own = |rest: &&str| rest.is_empty() || rest.starts_with(['/', '?']);
    let reference = match reference.strip_prefix(public_url).filter(own) {
        Some("") => "/",
        Some(rest) => rest,
        None if reference.starts_with("//") || has_scheme(reference) => return None,
        None => reference,
    };
    let (path, query) = reference.split_at(reference.find('?').unwrap_or(reference.len()));
    let base = asked.split('?').next().unwrap_or(asked);
    if path.is_empty() {
        return Some(if query.is_empty() {
            Cow::Borrowed(base)
        } else {
            Cow::Owned(format!("{base}{query}"))
        });
    }
    if path.starts_with('/') && !path.contains("/.") {
        return Some(Cow::Borrowed(reference));
    }
    let merged = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{}/{path}", &base[..base.rfind('/').unwrap_or(0)])
    };
    Some(Cow::Owned(without_dots(&merged) + query))
}

/// `scheme:` stands at the beginning.
fn has_scheme(reference: &str) -> bool {
    reference.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    })
}

/// RFC 3986 §5.2.4, for a path that begins with a slash.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if is_last {
                    kept.push("");
                }
            }
            segment => kept.push(segment),
        }
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_resolved() {
        for (reference, expected) in [
            ("/x", Some("/x")),
            ("/x?y#z", Some("/x?y")),
            ("x", Some("/a/b/x")),
            ("x?y", Some("/a/b/x?y")),
            ("./x", Some("/a/b/x")),
            ("../x", Some("/a/x")),
            ("../../../x", Some("/x")),
            ("..", Some("/a/")),
            (".", Some("/a/b/")),
            ("/x/./y/../z", Some("/x/z")),
            ("/x/.y", Some("/x/.y")),
            ("", Some("/a/b/c")),
            ("#z", Some("/a/b/c")),
            ("?y", Some("/a/b/c?y")),
            ("http://us:80/x", Some("/x")),
            ("http://us:80", Some("/")),
            ("http://us:8000/x", None),
            ("http://us/x", None),
            ("https://us:80/x", None),
            ("//us:80/x", None),
            ("mailto:x", None),
            ("x/y:z", Some("/a/b/x/y:z")),
        ] {
            let path = own_path(reference, "http://us:80", "/a/b/c?q=1");
            assert_eq!(path.as_deref(), expected, "{reference}");
        }
    }
}
