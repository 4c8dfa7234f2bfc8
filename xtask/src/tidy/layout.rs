//! Rules about the house as a whole: which crate may know which, and what an op folder holds.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::Violation;

/// The crates from the ground up; each may depend on those before it.
const LAYERS: [&str; 10] = [
    "artel-device",
    "artel-gpu-test",
    "artel-moe",
    "artel-c",
    "artel-layers",
    "artel-model",
    "artel-engine",
    "artel-server",
    "artel",
    "xtask",
];

/// Folders of operations: each subfolder with fast code holds its reference and its tests.
const OPERATION_ROOTS: [&str; 2] = ["crates/artel-moe/src", "crates/artel-layers/src"];

pub(super) fn check_dependencies(root: &Path) -> anyhow::Result<Vec<Violation>> {
    let mut violations = Vec::new();
    for entry in std::fs::read_dir(root.join("crates"))? {
        let manifest = entry?.path().join("Cargo.toml");
        let text = std::fs::read_to_string(&manifest)
            .with_context(|| format!("cannot read {}", manifest.display()))?;
        let relative = manifest.strip_prefix(root)?.to_owned();
        violations.extend(check_manifest(relative, &text)?);
    }
    Ok(violations)
}

fn check_manifest(file: PathBuf, text: &str) -> anyhow::Result<Vec<Violation>> {
    let manifest: toml::Table = text.parse()?;
    let name = manifest["package"]["name"].as_str().unwrap_or_default();
    let Some(level) = level_of(name) else {
        let message = format!("crate {name} has no place in the order of the house: {LAYERS:?}");
        return Ok(vec![Violation { file, line: 0, message }]);
    };
    let dependencies = manifest.get("dependencies").and_then(|table| table.as_table());
    Ok(dependencies
        .into_iter()
        .flat_map(|table| table.keys())
        .filter(|dependency| level_of(dependency).is_some_and(|other| other >= level))
        .map(|dependency| Violation {
            file: file.clone(),
            line: 0,
            message: format!("{name} depends on {dependency}, which stands above it"),
        })
        .collect())
}

fn level_of(name: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| *layer == name)
}

pub(super) fn check_operations(root: &Path) -> anyhow::Result<Vec<Violation>> {
    let mut violations = Vec::new();
    for folder in OPERATION_ROOTS {
        for entry in walkdir::WalkDir::new(root.join(folder)).sort_by_file_name() {
            let entry = entry?;
            if entry.file_name() != "cpu.rs" {
                continue;
            }
            let op = entry.path().parent().context("a file lies in a folder")?;
            for required in ["mod.rs", "reference.rs", "tests.rs"] {
                if op != root.join(folder) && !op.join(required).exists() {
                    let file = op.strip_prefix(root)?.to_owned();
                    let message = format!("the operation has fast code but no {required}");
                    violations.push(Violation { file, line: 0, message });
                }
            }
        }
    }
    Ok(violations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_may_not_look_up() {
        let text =
            "[package]\nname = \"artel-moe\"\n[dependencies]\nartel-device = 1\nartel-model = 1";
        let violations = check_manifest(PathBuf::from("Cargo.toml"), text).unwrap();
        assert_eq!(violations.len(), 1);
        assert!(violations[0].message.contains("artel-model, which stands above"));
    }
}
