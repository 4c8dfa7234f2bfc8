//! Texts that a model is calibrated with.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{ModelError, Result};

/// Fields of a JSON object that hold its text; the first that is there counts.
const FIELDS: [&str; 2] = ["text", "prompt"];

/// The texts of a file: its lines or, where the first is a JSON object, the texts in its objects. Empty
/// lines and empty texts are left out.
pub(super) fn read(path: &Path) -> Result<Vec<String>> {
    let refuse = |why: String| ModelError::Texts { path: path.to_owned(), why };
    let bytes = std::fs::read(path).map_err(|why| refuse(why.to_string()))?;
    let content = std::str::from_utf8(&bytes)
        .map_err(|why| refuse(format!("byte {} is not UTF-8", why.valid_up_to())))?;
    let content = content.strip_prefix('\u{feff}').unwrap_or(content);
    let lines = content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let lines: Vec<(usize, &str)> = lines.collect();
    let object = |line: &str| serde_json::from_str::<Map<String, Value>>(line);
    let are_objects = lines.first().is_some_and(|(_, line)| object(line).is_ok());
    let text = |&(index, line): &(usize, &str)| {
        if !are_objects {
            return Ok(line.to_owned());
        }
        let number = index + 1;
        let object = object(line).map_err(|why| {
            refuse(format!("line {number} is no JSON object as line 1 is: {why}"))
        })?;
        let text = FIELDS.iter().find_map(|field| object.get(*field)).and_then(Value::as_str);
        text.map(str::to_owned).ok_or_else(|| {
            refuse(format!(
                "line {number} has no text in its field {:?} or {:?}",
                FIELDS[0], FIELDS[1]
            ))
        })
    };
    let texts = lines.iter().map(text).collect::<Result<Vec<String>>>()?;
    let texts: Vec<String> = texts.into_iter().filter(|text| !text.trim().is_empty()).collect();
    if texts.is_empty() {
        return Err(refuse("has no text in it".to_owned()));
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(content: &[u8]) -> std::result::Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("texts");
        std::fs::write(&path, content).unwrap();
        read(&path).map_err(|why| why.to_string())
    }

    #[test]
    fn lines_and_objects_are_texts() {
        assert_eq!(texts(b"one\r\n\n  \ntwo {3}").unwrap(), ["one", "two {3}"]);
        let objects = br#"{"prompt": "a", "answer": "b"}

{"text": "c\nd", "prompt": "e"}
{"text": " "}"#;
        assert_eq!(texts(objects).unwrap(), ["a", "c\nd"]);
        assert_eq!(texts("\u{feff}{ no object".as_bytes()).unwrap(), ["{ no object"]);
        assert_eq!(texts(b"[1]\n{\"text\": 1}").unwrap().len(), 2);
    }

    #[test]
    fn files_without_texts_are_refused_by_what_is_wrong() {
        for (content, expected) in [
            (&b""[..], "has no text in it"),
            (b"\n \n\t\n", "has no text in it"),
            (b"{\"text\": \"\"}", "has no text in it"),
            (b"good\nbad \xff", "byte 9 is not UTF-8"),
            (b"{\"text\": \"a\"}\n\nplain", "line 3 is no JSON object"),
            (b"{\"text\": \"a\"}\n{\"prompt\": 7}", "line 2 has no text in its field"),
            (b"{\"question\": \"a\"}", "line 1 has no text in its field \"text\" or \"prompt\""),
        ] {
            let why = texts(content).unwrap_err();
            assert!(why.contains(expected) && why.contains("texts: "), "{why}");
        }
        let missing = read(Path::new("/no/such/file")).unwrap_err().to_string();
        assert!(missing.contains("/no/such/file"), "{missing}");
    }
}
