//! Pure. Which reads a cursor stands behind, so that old data must not answer them.
//!
//! A sync asks for what changed in a window of time (`f.updated_at.gt=…&f.updated_at.lt=…`), and remembers how far it
//! has come. An old answer to that looks like "nothing more has changed": the cursor moves past what it has not seen,
//! and nobody ever asks for that again. So such a read gets an error in an outage, and the sync comes back later. Its
//! URL is mostly new each time, which no copy fits anyway; but one that is asked for again (a retry, a window cut to
//! whole hours or days, a cursor that did not move) would find one.
//!
//! A window is told by its filter: a range (`.gt`, `.gte`, `.lt`, `.lte`) of an instant that Flexport's servers set.
//! Those are the fields whose names end in `_at`: `updated_at`, `created_at`, `occurred_at`, `uploaded_at`,
//! `last_updated_at`. Business dates (`cargo_ready_date`) are no cursors: they are set by people, back and forth.

use percent_encoding::percent_decode_str;

const RANGES: [&str; 4] = ["gt", "gte", "lt", "lte"];

/// Whether a query asks for a window of time.
pub fn is_incremental(query: Option<&str>) -> bool {
    query.is_some_and(|query| {
        query.split('&').any(|parameter| {
            let name = parameter.split('=').next().unwrap_or_default();
            // Nearly no name is encoded, so nearly nothing is decoded.
            if !name.starts_with(['f', '%']) {
                false
            } else if name.contains('%') {
                percent_decode_str(name).decode_utf8().is_ok_and(|name| is_range_of_instants(&name))
            } else {
                is_range_of_instants(name)
            }
        })
    })
}

fn is_range_of_instants(name: &str) -> bool {
    name.strip_prefix("f.")
        .and_then(|filter| filter.rsplit_once('.'))
        .is_some_and(|(field, range)| field.ends_with("_at") && RANGES.contains(&range))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_of_instants_is_incremental() {
        for query in [
            "f.updated_at.gt=2026-05-01T00:00:00Z",
            "f.updated_at.lt=2026-05-01T00:00:00Z",
            "sort=updated_at&direction=asc&per=100&f.updated_at.gt=a&f.updated_at.lt=b&page=3",
            "page=2&per=100&f.created_at.gte=2026-05-01",
            "f.occurred_at.lte=x",
            "f.last_updated_at.gt=x",
            "f.uploaded_at.gt=x",
            "f.shipment.updated_at.gt=x",
            "f.updated_at.gt",
            "f%2Eupdated_at%2egt=x",
            "%66.updated%5Fat.gt=x",
        ] {
            assert!(is_incremental(Some(query)), "{query}");
        }
    }

    #[test]
    fn what_only_looks_like_it_is_not() {
        for query in [
            "",
            "page=2&per=10",
            "sort=updated_at&direction=desc",
            "f.updated_at=2026-05-01T00:00:00Z",
            "f.archived_at.exists=true",
            "f.cargo_ready_date.gt=2026-05-01",
            "f.metadata.updated_at=x",
            "f.status=f.updated_at.gt",
            "f.sku=a%26f.updated_at.gt=x",
            "q=%ff.updated_at.gt",
            "f.=x&f&=&&f..gt=x",
            "updated_at.gt=x",
        ] {
            assert!(!is_incremental(Some(query)), "{query}");
        }
        assert!(!is_incremental(None));
    }
}
