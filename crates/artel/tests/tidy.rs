//! The limits of the house are a test like any other.

use std::path::Path;

#[test]
fn the_house_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("workspace root");
    let report = xtask::tidy::check(root).unwrap();
    let violations: Vec<String> = report.violations.iter().map(ToString::to_string).collect();
    assert!(report.files > 0, "no source found under {}", root.display());
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}
