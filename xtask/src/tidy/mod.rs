//! The limits of the house, checked on the source itself.
//!
//! 1. Sizes: a file has at most 500 lines, a function at most 70.
//! 2. Direction: crates depend downwards only.
//! 3. `unsafe` stands only in `artel-device`, in `cuda.rs` and in SIMD kernels.
//! 4. Nothing is postponed: no marker for later work, no ignored test.
//! 5. Every operation has its reference and its tests beside the fast code.

mod layout;
mod source;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Longest file, in lines.
pub const FILE_LINES_MAX: usize = 500;
/// Longest function, in lines from its signature to its closing brace.
pub const FUNCTION_LINES_MAX: usize = 70;

/// One broken rule.
#[derive(Debug)]
pub struct Violation {
    /// The file, from the root of the workspace.
    pub file: PathBuf,
    /// Line, from 1; 0 when the file as a whole is meant.
    pub line: usize,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}", self.file.display(), self.line, self.message)
    }
}

/// What was looked at and what was found.
#[derive(Debug, Default)]
pub struct Report {
    /// Files read.
    pub files: usize,
    /// Broken rules, in the order of the files.
    pub violations: Vec<Violation>,
}

/// Checks the workspace under `root`.
///
/// # Errors
/// When a file cannot be read or Rust source cannot be parsed.
pub fn check(root: &Path) -> anyhow::Result<Report> {
    let mut report = Report::default();
    for path in source_files(root)? {
        let text = std::fs::read_to_string(root.join(&path))
            .with_context(|| format!("cannot read {}", path.display()))?;
        report.files += 1;
        report.violations.extend(check_text(&path, &text)?);
    }
    report.violations.extend(layout::check_dependencies(root)?);
    report.violations.extend(layout::check_operations(root)?);
    Ok(report)
}

/// Checks one file as if it stood at `path`.
///
/// # Errors
/// When Rust source cannot be parsed.
pub fn check_text(path: &Path, text: &str) -> anyhow::Result<Vec<Violation>> {
    let mut violations = source::check_lines(path, text);
    if path.extension().is_some_and(|extension| extension == "rs") {
        violations.extend(source::check_rust(path, text)?);
    }
    Ok(violations)
}

/// Every Rust and Python file of the workspace, build outputs and hidden folders left out.
fn source_files(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let walk = walkdir::WalkDir::new(root).sort_by_file_name().into_iter().filter_entry(|entry| {
        let name = entry.file_name().to_string_lossy();
        entry.depth() == 0 || !(name.starts_with('.') || name == "target")
    });
    for entry in walk {
        let entry = entry?;
        let is_source = entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "rs" || extension == "py");
        if entry.file_type().is_file() && is_source {
            files.push(entry.path().strip_prefix(root)?.to_owned());
        }
    }
    Ok(files)
}
