//! Integers `[a, b, c]` from NumPy's files, JSON and JSON lines.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail, ensure};

use crate::npy;

/// Integers in three dimensions.
pub struct Array {
    /// Sizes, the slowest first.
    pub shape: [usize; 3],
    /// The numbers, the last dimension fastest.
    pub values: Vec<i64>,
}

impl Array {
    /// Reads by the file's name: `.npy`, `.json` (nested lists) or `.jsonl` (the first dimension by
    /// lines).
    ///
    /// # Errors
    /// With the path, for another kind of file, or numbers that are not integers in three
    /// dimensions.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let bytes = || fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let array = match extension.as_str() {
            "npy" => npy::read_integers(&bytes()?).and_then(|(shape, values)| {
                let found = shape.len();
                let shape = shape.try_into().ok();
                let shape = shape.with_context(|| format!("{found} dimensions, expected 3"))?;
                Ok(Self { shape, values })
            }),
            "json" => serde_json::from_slice::<Vec<Vec<Vec<i64>>>>(&bytes()?)
                .context("not nested lists of integers in three dimensions")
                .and_then(|rows| Self::of_rows(&rows)),
            "jsonl" => Self::of_lines(&bytes()?),
            _ => bail!("{}: expected a file .npy, .json or .jsonl", path.display()),
        };
        array.with_context(|| format!("in {}", path.display()))
    }

    fn of_lines(bytes: &[u8]) -> anyhow::Result<Self> {
        let mut rows = Vec::new();
        let lines = bytes.split(|byte| *byte == b'\n').enumerate();
        for (line, text) in lines.filter(|(_, text)| !text.trim_ascii().is_empty()) {
            let row: Vec<Vec<i64>> = serde_json::from_slice(text)
                .with_context(|| format!("line {} is no list of lists of integers", line + 1))?;
            rows.push(row);
        }
        Self::of_rows(&rows)
    }

    fn of_rows(rows: &[Vec<Vec<i64>>]) -> anyhow::Result<Self> {
        let first = rows.first().context("no rows")?;
        let shape = [rows.len(), first.len(), first.first().map_or(0, Vec::len)];
        for (index, row) in rows.iter().enumerate() {
            ensure!(
                row.len() == shape[1] && row.iter().all(|inner| inner.len() == shape[2]),
                "row {index} is not [{}, {}] as the first one",
                shape[1],
                shape[2]
            );
        }
        Ok(Self { shape, values: rows.iter().flatten().flatten().copied().collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> anyhow::Result<Array> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        Array::read(&path)
    }

    #[test]
    fn lists_and_lines_are_the_same() {
        let list = read("a.json", "[[[1, 2], [3, 4]], [[5, 6], [7, -1]]]").unwrap();
        let lines = read("a.jsonl", "[[1, 2], [3, 4]]\n\n[[5, 6], [7, -1]]\n").unwrap();
        assert_eq!((list.shape, &list.values), (lines.shape, &lines.values));
        assert_eq!((list.shape, list.values[7]), ([2, 2, 2], -1));
    }

    #[test]
    fn what_is_no_array_is_refused_with_its_place() {
        for (name, text, said) in [
            ("a.json", "[[[1, 2]], [[1]]]", "row 1 is not [1, 2]"),
            ("a.json", "[[1, 2]]", "three dimensions"),
            ("a.json", "[]", "no rows"),
            ("a.jsonl", "[[1]]\n[1]\n", "line 2"),
            ("a.pt", "", "expected a file .npy"),
            ("a.npy", "PK", "a.npy"),
        ] {
            let error = format!("{:#}", read(name, text).err().unwrap());
            assert!(error.contains(said), "{error}");
        }
    }
}
