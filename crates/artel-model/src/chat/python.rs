//! What chat templates expect of Python: its JSON, its exceptions and its dates.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// `raise_exception(message)`: how a template refuses messages.
pub(super) fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// `value is iterable`: `none` is not, whereas the template engine would loop over it.
pub(super) fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// `value | tojson(indent=…, ensure_ascii=false)` as `json.dumps` writes it: a space after `,` and
/// `:`, and no escapes for HTML.
pub(super) fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    if ensure_ascii == Some(true) {
        let why = "tojson(ensure_ascii=true) is not supported";
        return Err(Error::new(ErrorKind::InvalidOperation, why));
    }
    let mut json = Vec::new();
    let written = match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut json, Spaced)),
        Some(width) => {
            let indent = " ".repeat(width.min(64));
            let pretty = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut json, pretty))
        }
    };
    let wrong = |why: String| Error::new(ErrorKind::InvalidOperation, why);
    written.map_err(|why| wrong(why.to_string()))?;
    let json = String::from_utf8(json).map_err(|why| wrong(why.to_string()))?;
    Ok(Value::from_safe_string(json))
}

/// `{"a": 1, "b": [2, 3]}`.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// A template without the block tags of these names, which only trainers understand. The
/// whitespace control of a removed tag is kept by leaving an empty comment in its place.
pub(super) fn without_tag(template: &str, names: &[&str]) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let tag = &rest[start + 2..start + length];
        let name = tag.trim_matches(['-', '+', ' ', '\t', '\n', '\r']);
        out.push_str(&rest[..start]);
        if names.contains(&name) {
            let open = if tag.starts_with('-') { "{#-" } else { "{#" };
            let close = if tag.ends_with('-') { "-#}" } else { "#}" };
            out.push_str(open);
            out.push_str(close);
        } else {
            out.push_str(&rest[start..start + length + 2]);
        }
        rest = &rest[start + length + 2..];
    }
    out.push_str(rest);
    out
}

const DAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A moment in the Gregorian calendar, UTC.
struct Civil {
    year: i64,
    /// 1 to 12.
    month: usize,
    /// 1 to 31.
    day: i64,
    /// 0 is Monday.
    weekday: usize,
    /// Seconds since midnight.
    second: i64,
}

impl Civil {
    fn from_time(time: SystemTime) -> Self {
        let seconds = match time.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
        };
        let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        // Years are counted from March, so that a leap day is the last day of its year.
        let since_march_0000 = days + 719_468;
        let era = since_march_0000.div_euclid(146_097);
        let day_of_era = since_march_0000.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = (month_from_march + 2) % 12 + 1;
        let year = era * 400 + year_of_era + i64::from(month <= 2);
        // 1970-01-01 was a Thursday.
        let weekday = (days + 3).rem_euclid(7) as usize;
        Self { year, month: month as usize, day, weekday, second }
    }
}

/// `strftime_now(format)` for the directives that templates use; `%-d` leaves out the zero.
pub(super) fn strftime(format: &str, now: SystemTime) -> Result<String, Error> {
    let civil = Civil::from_time(now);
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let mut directive = characters.next();
        let padded = directive != Some('-');
        if !padded {
            directive = characters.next();
        }
        out.push_str(&field(&civil, directive, padded).ok_or_else(|| {
            let why = format!("strftime_now does not know a directive of {format:?}");
            Error::new(ErrorKind::InvalidOperation, why)
        })?);
    }
    Ok(out)
}

fn field(civil: &Civil, directive: Option<char>, padded: bool) -> Option<String> {
    let two = |n: i64| if padded { format!("{n:02}") } else { n.to_string() };
    let (month, day) = (MONTHS[civil.month - 1], DAYS[civil.weekday]);
    let hour = civil.second / 3600;
    Some(match directive? {
        'Y' => civil.year.to_string(),
        'y' => two(civil.year.rem_euclid(100)),
        'm' => two(civil.month as i64),
        'B' => month.to_owned(),
        'b' => month[..3].to_owned(),
        'd' => two(civil.day),
        'A' => day.to_owned(),
        'a' => day[..3].to_owned(),
        'H' => two(hour),
        'I' => two((hour + 11) % 12 + 1),
        'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
        'M' => two(civil.second / 60 % 60),
        'S' => two(civil.second % 60),
        '%' => "%".to_owned(),
        _ => return None,
    })
}
