//! What chat templates expect of Python: its JSON, its exceptions and its dates.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::SystemTime;

use chrono::{DateTime, Utc};
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

/// `strftime_now(format)` in UTC. `%-d` leaves out the zero, as Python has it on Linux.
pub(super) fn strftime(format: &str, now: SystemTime) -> Result<String, Error> {
    let mut text = String::new();
    write!(text, "{}", DateTime::<Utc>::from(now).format(format)).map_err(|_| {
        let why = format!("strftime_now does not know a directive of {format:?}");
        Error::new(ErrorKind::InvalidOperation, why)
    })?;
    Ok(text)
}
