//! Pure. `traceparent` (W3C Trace Context, level 1): which trace a request belongs to.
//!
//! A well-formed parent is continued: same trace, same flags, a new span. What is not well formed is as good as
//! none, as the specification wants it, and a new trace begins, not sampled: we record no spans, so it is not for us
//! to ask others to. We speak version 00; of a later version only what version 00 knows is taken over.

use http::HeaderValue;

/// `00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01`.
const LEN: usize = 55;
const TEMPLATE: [u8; LEN] = *b"00-00000000000000000000000000000000-0000000000000000-00";
const HEX: &[u8; 16] = b"0123456789abcdef";

/// A well-formed field, by its parts as they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traceparent<'a> {
    /// 32 digits.
    pub trace_id: &'a str,
    /// 16 digits: the caller's span.
    pub span_id: &'a str,
    /// Bit 0: sampled.
    pub flags: u8,
}

/// Reads the field. `None` when it is not well formed.
pub fn parse(value: &HeaderValue) -> Option<Traceparent<'_>> {
    let text = value.to_str().ok()?;
    let (version, rest) = text.split_at_checked(2)?;
    let rest = rest.strip_prefix('-')?;
    let (trace_id, rest) = rest.split_at_checked(32)?;
    let rest = rest.strip_prefix('-')?;
    let (span_id, rest) = rest.split_at_checked(16)?;
    let rest = rest.strip_prefix('-')?;
    let (flags, more) = rest.split_at_checked(2)?;
    let is_current = version == "00";
    let is_well_formed = [version, trace_id, span_id, flags].into_iter().all(is_hex)
        && version != "ff"
        && !is_zero(trace_id)
        && !is_zero(span_id)
        && (more.is_empty() || (!is_current && more.starts_with('-')));
    let flags = u8::from_str_radix(flags, 16).ok()?;
    is_well_formed.then_some(Traceparent {
        trace_id,
        span_id,
        flags: if is_current { flags } else { flags & 1 },
    })
}

/// What goes upstream: a child of `parent` when that is well formed, else the beginning of a trace. `random` is the
/// new trace id's two halves and the new span id.
pub fn child(parent: Option<&HeaderValue>, random: (u64, u64, u64)) -> HeaderValue {
    let (high, low, span) = random;
    let mut text = TEMPLATE;
    if let Some(parent) = parent.and_then(parse) {
        text[3..35].copy_from_slice(parent.trace_id.as_bytes());
        put(&mut text[53..55], u64::from(parent.flags));
    } else {
        put(&mut text[3..19], high);
        // All zeros would be no id.
        put(&mut text[19..35], if high == 0 { low.max(1) } else { low });
    }
    put(&mut text[36..52], span.max(1));
    HeaderValue::from_bytes(&text).expect("digits and dashes")
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_zero(text: &str) -> bool {
    text.bytes().all(|byte| byte == b'0')
}

fn put(digits: &mut [u8], mut number: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = HEX[(number & 15) as usize];
        number >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";
    const RANDOM: (u64, u64, u64) = (0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210, 0xdead_beef);
    const NEW: &str = "00-0123456789abcdeffedcba9876543210-00000000deadbeef-00";

    #[test]
    fn well_formed_parents_are_continued() {
        for (parent, flags, expected) in [
            (format!("00-{TRACE}-{SPAN}-01"), 1, format!("00-{TRACE}-00000000deadbeef-01")),
            (format!("00-{TRACE}-{SPAN}-00"), 0, format!("00-{TRACE}-00000000deadbeef-00")),
            (format!("00-{TRACE}-{SPAN}-03"), 3, format!("00-{TRACE}-00000000deadbeef-03")),
            (format!("cc-{TRACE}-{SPAN}-03"), 1, format!("00-{TRACE}-00000000deadbeef-01")),
            (format!("cc-{TRACE}-{SPAN}-01-what-comes"), 1, format!("00-{TRACE}-00000000deadbeef-01")),
        ] {
            let value = HeaderValue::from_str(&parent).unwrap();
            assert_eq!(
                parse(&value),
                Some(Traceparent { trace_id: TRACE, span_id: SPAN, flags }),
                "{parent}"
            );
            assert_eq!(child(Some(&value), RANDOM), expected, "{parent}");
        }
    }

    #[test]
    fn what_is_not_well_formed_begins_a_trace() {
        let zeros = "0".repeat(32);
        for parent in [
            String::new(),
            "00".to_owned(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-0"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}-011"),
            format!("cc-{TRACE}-{SPAN}-01more"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("0g-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-0x"),
            format!("00-{TRACE}-{SPAN}-+1"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{zeros}-{SPAN}-01"),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00_{TRACE}-{SPAN}-01"),
            format!(" 00-{TRACE}-{SPAN}-01"),
        ] {
            let value = HeaderValue::from_str(&parent).unwrap();
            assert_eq!(parse(&value), None, "{parent}");
            assert_eq!(child(Some(&value), RANDOM), NEW, "{parent}");
        }
        let odd = HeaderValue::from_bytes("00-é".as_bytes()).unwrap();
        assert_eq!(parse(&odd), None);
        assert_eq!(child(None, RANDOM), NEW);
        assert!(parse(&child(None, (0, 0, 0))).is_some());
    }
}
