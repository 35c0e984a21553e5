//! Pure. HTTP dates: read in the three forms of RFC 9110 §5.6.7, written in the one form that may be sent.
//!
//! Names of days and months are compared without regard to case and the zone must be `GMT`, as RFC 9111 §4.2 asks of
//! caches. All else is strict: what does not fit its form to the byte is no date, and the caller decides what that
//! means (an unreadable `Expires` is in the past, an unreadable `Date` is as good as none). The name of the day must
//! be a name of a day, but is not held against the date: senders that get it wrong still mean the date.

use http::HeaderValue;
use jiff::Timestamp;

const DAYS: [&[u8]; 7] = [b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun"];
const LONG_DAYS: [&[u8]; 7] =
    [b"Monday", b"Tuesday", b"Wednesday", b"Thursday", b"Friday", b"Saturday", b"Sunday"];
const MONTHS: [&[u8]; 12] =
    [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];

/// `Thu, 01 Jan 1970 00:00:00 GMT`.
const FIXDATE_LEN: usize = 29;
/// `Thu Jan  1 00:00:00 1970`.
const ASCTIME_LEN: usize = 24;
/// `01-Jan-70 00:00:00 GMT`, what follows the day's name in the form of RFC 850.
const RFC_850_LEN: usize = 22;
const DAY: i64 = 86_400;

/// A date and a time of day, in UTC.
struct Civil {
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

/// Reads an HTTP date. `now` decides the century of a year with two digits: one that would lie more than fifty years
/// ahead is of the century before.
pub fn parse(text: &[u8], now: Timestamp) -> Option<Timestamp> {
    match text.len() {
        FIXDATE_LEN if text[3] == b',' => fixdate(text),
        ASCTIME_LEN if text[3] == b' ' => asctime(text),
        _ => rfc_850(text, now),
    }
}

/// The value of a `Date`, `Expires` or `Last-Modified`: `Sun, 06 Nov 1994 08:49:37 GMT`.
pub fn http_date(at: Timestamp) -> HeaderValue {
    let civil = Civil::from_seconds(at.as_second());
    let weekday = (at.as_second().div_euclid(DAY) + 3).rem_euclid(7);
    let mut text = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    text[0..3].copy_from_slice(DAYS[weekday as usize]);
    put(&mut text[5..7], civil.day);
    text[8..11].copy_from_slice(MONTHS[(civil.month - 1) as usize]);
    put(&mut text[12..16], civil.year);
    put(&mut text[17..19], civil.hour);
    put(&mut text[20..22], civil.minute);
    put(&mut text[23..25], civil.second);
    HeaderValue::from_bytes(&text).expect("letters, digits, spaces and colons")
}

/// The value of `Seawall-Data-As-Of`: RFC 3339, in UTC, whole seconds: `1994-11-06T08:49:37Z`.
pub fn as_of(at: Timestamp) -> HeaderValue {
    let civil = Civil::from_seconds(at.as_second());
    let mut text = *b"1970-01-01T00:00:00Z";
    put(&mut text[0..4], civil.year);
    put(&mut text[5..7], civil.month);
    put(&mut text[8..10], civil.day);
    put(&mut text[11..13], civil.hour);
    put(&mut text[14..16], civil.minute);
    put(&mut text[17..19], civil.second);
    HeaderValue::from_bytes(&text).expect("letters, digits, dashes and colons")
}

// === impl Civil ===

impl Civil {
    /// By the proleptic Gregorian calendar (after Howard Hinnant's `civil_from_days`). Years before 0 have no
    /// spelling in either form and are held at 0.
    fn from_seconds(seconds: i64) -> Self {
        let (days, rest) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let of_era = shifted.rem_euclid(146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * of_year + 2) / 153;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        Self {
            year: (year_of_era + era * 400 + i64::from(month <= 2)).max(0),
            month,
            day: of_year - (153 * shifted_month + 2) / 5 + 1,
            hour: rest / 3_600,
            minute: rest / 60 % 60,
            second: rest % 60,
        }
    }

    /// The instant, when each part is in its range. Second 60 is a leap second, and the same as the next one.
    fn timestamp(&self) -> Option<Timestamp> {
        let leap = self.year % 4 == 0 && (self.year % 100 != 0 || self.year % 400 == 0);
        let last = match self.month {
            2 => 28 + i64::from(leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        if !(1..=last).contains(&self.day) || self.hour > 23 || self.minute > 59 || self.second > 60 {
            return None;
        }
        let year = self.year - i64::from(self.month <= 2);
        let shifted_month = (self.month + 9) % 12;
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let of_year = (153 * shifted_month + 2) / 5 + self.day - 1;
        let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
        let days = era * 146_097 + of_era - 719_468;
        let seconds = days * DAY + self.hour * 3_600 + self.minute * 60 + self.second;
        // `31 Dec 9999`, a favourite for "never", lies just behind what a `Timestamp` can hold.
        Some(Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX))
    }

    /// The place in the year, to be compared.
    fn of_year(&self) -> (i64, i64, i64, i64, i64) {
        (self.month, self.day, self.hour, self.minute, self.second)
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`.
fn fixdate(text: &[u8]) -> Option<Timestamp> {
    named(&DAYS, &text[0..3])?;
    fits(text, &[(3, b", "), (7, b" "), (11, b" "), (16, b" ")])?;
    zone(&text[25..29])?;
    let (hour, minute, second) = time(&text[17..25])?;
    let (year, day) = (number(&text[12..16])?, number(&text[5..7])?);
    Civil { year, month: month(&text[8..11])?, day, hour, minute, second }.timestamp()
}

/// `Sun Nov  6 08:49:37 1994`.
fn asctime(text: &[u8]) -> Option<Timestamp> {
    named(&DAYS, &text[0..3])?;
    fits(text, &[(3, b" "), (7, b" "), (10, b" "), (19, b" ")])?;
    let day = if text[8] == b' ' { number(&text[9..10])? } else { number(&text[8..10])? };
    let (hour, minute, second) = time(&text[11..19])?;
    Civil { year: number(&text[20..24])?, month: month(&text[4..7])?, day, hour, minute, second }.timestamp()
}

/// `Sunday, 06-Nov-94 08:49:37 GMT`.
fn rfc_850(text: &[u8], now: Timestamp) -> Option<Timestamp> {
    let comma = text.iter().position(|byte| *byte == b',')?;
    named(&LONG_DAYS, &text[..comma])?;
    let rest = text[comma + 1..].strip_prefix(b" ")?;
    if rest.len() != RFC_850_LEN {
        return None;
    }
    fits(rest, &[(2, b"-"), (6, b"-"), (9, b" ")])?;
    zone(&rest[18..22])?;
    let (hour, minute, second) = time(&rest[10..18])?;
    let (short, month, day) = (number(&rest[7..9])?, month(&rest[3..6])?, number(&rest[0..2])?);
    let now = Civil::from_seconds(now.as_second());
    let limit = now.year + 50;
    // The latest year of that ending that is at most fifty years ahead, and if that is too late in its year, the
    // one a century before.
    let mut civil = Civil { year: limit - (limit - short).rem_euclid(100), month, day, hour, minute, second };
    if civil.year == limit && civil.of_year() > now.of_year() {
        civil.year -= 100;
    }
    civil.timestamp()
}

fn named(names: &[&[u8]], text: &[u8]) -> Option<i64> {
    names.iter().position(|name| name.eq_ignore_ascii_case(text)).and_then(|at| i64::try_from(at).ok())
}

fn month(text: &[u8]) -> Option<i64> {
    named(&MONTHS, text).map(|at| at + 1)
}

fn fits(text: &[u8], fixed: &[(usize, &[u8])]) -> Option<()> {
    fixed.iter().all(|(at, part)| text[*at..].starts_with(part)).then_some(())
}

fn zone(text: &[u8]) -> Option<()> {
    text.eq_ignore_ascii_case(b" GMT").then_some(())
}

/// `08:49:37`.
fn time(text: &[u8]) -> Option<(i64, i64, i64)> {
    fits(text, &[(2, b":"), (5, b":")])?;
    Some((number(&text[0..2])?, number(&text[3..5])?, number(&text[6..8])?))
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + i64::from(digit - b'0')))
}

fn put(digits: &mut [u8], mut number: i64) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn now() -> Timestamp {
        "2026-05-01T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn the_three_forms_are_read() {
        let cases = [
            ("Sun, 06 Nov 1994 08:49:37 GMT", "1994-11-06T08:49:37Z"),
            ("sun, 06 NOV 1994 08:49:37 gmt", "1994-11-06T08:49:37Z"),
            ("Sunday, 06-Nov-94 08:49:37 GMT", "1994-11-06T08:49:37Z"),
            ("Sun Nov  6 08:49:37 1994", "1994-11-06T08:49:37Z"),
            ("Sun Nov 16 08:49:37 1994", "1994-11-16T08:49:37Z"),
            ("Sun Nov 06 08:49:37 1994", "1994-11-06T08:49:37Z"),
            ("Thu, 29 Feb 2024 00:00:00 GMT", "2024-02-29T00:00:00Z"),
            ("Sat, 31 Dec 2016 23:59:60 GMT", "2017-01-01T00:00:00Z"),
            ("Thu, 01 Jan 1970 00:00:00 GMT", "1970-01-01T00:00:00Z"),
            ("Wed, 31 Dec 1969 23:59:59 GMT", "1969-12-31T23:59:59Z"),
            // The day's name is not held against the date.
            ("Mon, 06 Nov 1994 08:49:37 GMT", "1994-11-06T08:49:37Z"),
            // Two digits: at most fifty years ahead.
            ("Friday, 01-May-26 00:00:00 GMT", "2026-05-01T00:00:00Z"),
            ("Friday, 30-Apr-76 00:00:00 GMT", "2076-04-30T00:00:00Z"),
            ("Friday, 01-May-76 12:00:00 GMT", "2076-05-01T12:00:00Z"),
            ("Saturday, 01-May-76 12:00:01 GMT", "1976-05-01T12:00:01Z"),
            ("Saturday, 01-Jan-77 00:00:00 GMT", "1977-01-01T00:00:00Z"),
            ("Saturday, 01-Jan-00 00:00:00 GMT", "2000-01-01T00:00:00Z"),
            // Held at the end of time.
            ("Fri, 31 Dec 9999 23:59:59 GMT", "9999-12-30T22:00:00.999999999Z"),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text.as_bytes(), now()), Some(expected.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for text in [
            "",
            "0",
            "-1",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 06 Nov 1994 08:49:37 AEST",
            "Sun, 06 Nov 1994 08:49:37 +0000",
            "Sun, 06 Nov 1994 8:49:37 GMT",
            "Sun, 06 Nov 94 08:49:37 GMT",
            "Sun, 06-Nov-1994 08:49:37 GMT",
            "Sun,  06 Nov 1994 08:49:37 GMT",
            "Sun 06 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08.49.37 GMT",
            "Sun, 31 Jun 1994 08:49:37 GMT",
            "Sun, 29 Feb 2023 08:49:37 GMT",
            "Sun, 29 Feb 1900 08:49:37 GMT",
            "Sun, 00 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sun, 06 Nov 1994 08:60:00 GMT",
            "Sun, 06 Nov 1994 08:49:61 GMT",
            "Son, 06 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nob 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 GMT ",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 06-Nov-94 08:49:37 GMT",
            "Sunday, 06 Nov 94 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 UTC",
            "Sunday,06-Nov-94 08:49:37 GMT",
            "Sun Nov 6 08:49:37 1994 ",
            "Sun, 06 Nov -994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 GM\u{e9}",
        ] {
            assert_eq!(parse(text.as_bytes(), now()), None, "{text:?}");
        }
    }

    #[test]
    fn dates_are_written() {
        let at: Timestamp = "1994-11-06T08:49:37.9Z".parse().unwrap();
        assert_eq!(http_date(at), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(as_of(at), "1994-11-06T08:49:37Z");
        assert_eq!(http_date(Timestamp::UNIX_EPOCH), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(http_date("2024-02-29T23:59:59Z".parse().unwrap()), "Thu, 29 Feb 2024 23:59:59 GMT");
        for edge in [Timestamp::MIN, Timestamp::MAX] {
            assert_eq!(http_date(edge).len(), FIXDATE_LEN);
            assert_eq!(as_of(edge).len(), 20);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(seconds in -62_135_596_800_i64..253_402_207_200, now in any::<u32>()) {
            let at = Timestamp::from_second(seconds).unwrap();
            let now = Timestamp::from_second(i64::from(now)).unwrap();
            prop_assert_eq!(parse(http_date(at).as_bytes(), now), Some(at));
            let as_of = as_of(at);
            prop_assert_eq!(as_of.to_str().unwrap().parse::<Timestamp>().unwrap(), at);
            prop_assert_eq!(as_of.to_str().unwrap(), at.to_string());
        }

        #[test]
        fn nothing_makes_it_panic(text in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = parse(&text, now());
        }
    }
}
