//! Each rule of tidy finds what breaks it and lets pass what does not.

use std::path::Path;

use xtask::tidy::{FILE_LINES_MAX, FUNCTION_LINES_MAX, check_text};

fn messages(path: &str, text: &str) -> Vec<String> {
    let violations = check_text(Path::new(path), text).unwrap();
    violations.into_iter().map(|violation| violation.to_string()).collect()
}

#[test]
fn long_files_and_functions_are_found_at_the_first_line_too_many() {
    let file = |lines: usize| "\n".repeat(lines);
    assert!(messages("a.py", &file(FILE_LINES_MAX)).is_empty());
    assert_eq!(messages("a.py", &file(FILE_LINES_MAX + 1)).len(), 1);

    let function = |lines: usize| format!("fn f() {{{}}}", "\n".repeat(lines - 1));
    assert!(messages("a.rs", &function(FUNCTION_LINES_MAX)).is_empty());
    assert_eq!(messages("a.rs", &function(FUNCTION_LINES_MAX + 1)).len(), 1);
}

#[test]
fn unsafe_has_its_places() {
    let text = "fn f() { unsafe { g() } }";
    assert_eq!(messages("crates/artel-moe/src/layer.rs", text).len(), 1);
    assert!(messages("crates/artel-device/src/buffer.rs", text).is_empty());
    assert!(messages("crates/artel-moe/src/grouped_gemm/cuda.rs", text).is_empty());
    assert!(messages("crates/artel-moe/src/grouped_gemm/simd/avx2.rs", text).is_empty());
}

#[test]
fn nothing_is_postponed() {
    let marker = concat!("// TO", "DO: later");
    assert_eq!(messages("a.rs", marker).len(), 1);
    assert_eq!(messages("a.rs", concat!("#[ign", "ore] #[test] fn f() {}")).len(), 1);
    assert!(messages("a.rs", "// today").is_empty());
}
