//! Rules that one file keeps or breaks by itself.

use std::path::Path;

use anyhow::Context;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::{FILE_LINES_MAX, FUNCTION_LINES_MAX, Violation};

/// Words that postpone work. Written in halves, so that this file keeps its own rule.
const POSTPONED: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

pub(super) fn check_lines(path: &Path, text: &str) -> Vec<Violation> {
    let violation = |line, message| Violation { file: path.to_owned(), line, message };
    let mut violations = Vec::new();
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        let message = format!("{lines} lines; a file has at most {FILE_LINES_MAX}: split it");
        violations.push(violation(0, message));
    }
    for (index, line) in text.lines().enumerate() {
        if POSTPONED.iter().any(|word| contains_word(line, word)) {
            let message = "work is done or left out, not marked for later".to_owned();
            violations.push(violation(index + 1, message));
        }
    }
    violations
}

fn contains_word(line: &str, word: &str) -> bool {
    line.split(|character: char| !character.is_alphanumeric()).any(|found| found == word)
}

pub(super) fn check_rust(path: &Path, text: &str) -> anyhow::Result<Vec<Violation>> {
    let file = syn::parse_file(text).with_context(|| format!("cannot parse {}", path.display()))?;
    let mut visitor =
        RustRules { path, unsafe_allowed: allows_unsafe(path), violations: Vec::new() };
    visitor.visit_file(&file);
    Ok(visitor.violations)
}

/// `artel-device`, device code and SIMD kernels may use `unsafe`; clippy demands the reason.
fn allows_unsafe(path: &Path) -> bool {
    path.starts_with("crates/artel-device")
        || path.file_name().is_some_and(|name| name == "cuda.rs")
        || path.components().any(|part| part.as_os_str() == "simd")
        || is_allocation_test(path)
}

/// A counting allocator is `unsafe` by its trait; it lives in integration tests of its own.
fn is_allocation_test(path: &Path) -> bool {
    path.ends_with("tests/allocations.rs")
}

struct RustRules<'a> {
    path: &'a Path,
    unsafe_allowed: bool,
    violations: Vec<Violation>,
}

impl RustRules<'_> {
    fn report(&mut self, line: usize, message: String) {
        self.violations.push(Violation { file: self.path.to_owned(), line, message });
    }

    fn check_function(&mut self, signature: &syn::Signature, end: usize) {
        let start = signature.span().start().line;
        let lines = end - start + 1;
        if lines > FUNCTION_LINES_MAX {
            let name = &signature.ident;
            let message = format!(
                "function {name} has {lines} lines; at most {FUNCTION_LINES_MAX} are allowed"
            );
            self.report(start, message);
        }
        if signature.unsafety.is_some() {
            self.check_unsafe(start);
        }
    }

    fn check_unsafe(&mut self, line: usize) {
        if !self.unsafe_allowed {
            let message = "unsafe stands only in artel-device, cuda.rs and simd folders".to_owned();
            self.report(line, message);
        }
    }
}

impl<'ast> Visit<'ast> for RustRules<'_> {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.check_function(&function.sig, function.block.span().end().line);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.check_function(&function.sig, function.block.span().end().line);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if item.unsafety.is_some() {
            self.check_unsafe(item.span().start().line);
        }
        visit::visit_item_impl(self, item);
    }

    fn visit_expr_unsafe(&mut self, block: &'ast syn::ExprUnsafe) {
        self.check_unsafe(block.span().start().line);
        visit::visit_expr_unsafe(self, block);
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        if attribute.path().is_ident("ignore") {
            let line = attribute.span().start().line;
            self.report(line, "a test runs or does not exist; none is ignored".to_owned());
        }
        visit::visit_attribute(self, attribute);
    }
}
