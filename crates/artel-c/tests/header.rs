//! The header is what the library does: a C program is compiled with it, linked and run, and the
//! names in the header, in the library and in the Python module are compared.
#![cfg(unix)]

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::Command;

use artel_c::{ArtelMoeSettings, ArtelMoeStack, Status};

const HEADER: &str = include_str!("../include/artel_moe.h");
const FUNCTIONS: &str = include_str!("../src/cuda.rs");
const PYTHON: &str = include_str!("../python/artel_moe.py");

/// Compiles `contract.c` into `folder` and gives back what it prints.
fn run_contract(folder: &Path, argument: &str) -> String {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = folder.join("contract");
    // The library lies beside the test programs.
    let library: PathBuf = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let output = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(sources.join("include"))
        .arg(sources.join("tests/contract.c"))
        .arg("-o")
        .arg(&program)
        .arg("-L")
        .arg(&library)
        .arg("-lartel_c")
        .arg(format!("-Wl,-rpath,{}", library.display()))
        .output()
        .expect("a C compiler, which Rust links with");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = Command::new(&program).arg(argument).output().unwrap();
    assert!(output.status.success(), "the program ended with {}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

macro_rules! offsets {
    ($all:ident, $name:literal, $type:ty: $($field:ident)*) => {
        $all.push(($name.to_owned(), size_of::<$type>()));
        $($all.push((format!("{}.{}", $name, stringify!($field)), offset_of!($type, $field)));)*
    };
}

#[test]
fn structures_and_constants_lie_as_the_header_has_them() {
    let mut expected: Vec<(String, usize)> = Vec::new();
    offsets!(expected, "artel_moe_stack", ArtelMoeStack:
        numbers number_bytes scales scale_count scale_rows scale_columns);
    offsets!(expected, "artel_moe_settings", ArtelMoeSettings:
        settings_bytes num_experts top_k hidden_size intermediate_size tokens_max format activation
        kernel_packs num_kernel_packs device packed w13 w2);
    let constants = [
        ("ARTEL_MOE_OK", Status::Ok),
        ("ARTEL_MOE_INVALID", Status::Invalid),
        ("ARTEL_MOE_UNAVAILABLE", Status::Unavailable),
        ("ARTEL_MOE_GPU", Status::Gpu),
        ("ARTEL_MOE_BUG", Status::Bug),
    ];
    expected.extend(constants.map(|(name, status)| (name.to_owned(), status as usize)));
    let folder = tempfile::tempdir().unwrap();
    let printed = run_contract(folder.path(), "layout");
    let found = printed.lines().map(|line| line.split_once(' ').unwrap());
    let found: Vec<_> = found.map(|(name, n)| (name.to_owned(), n.parse().unwrap())).collect();
    assert_eq!(found, expected);
}

#[test]
fn bad_input_is_an_error_with_a_text() {
    let folder = tempfile::tempdir().unwrap();
    let printed = run_contract(folder.path(), "errors");
    let answers: BTreeMap<&str, (i32, &str)> = printed
        .lines()
        .map(|line| {
            let mut words = line.splitn(3, ' ');
            let (name, status) = (words.next().unwrap(), words.next().unwrap());
            (name, (status.parse().expect(line), words.next().unwrap()))
        })
        .collect();
    let invalid = [
        ("version", "settings_bytes is 8"),
        ("no_experts", "num_experts is 0"),
        ("huge_hidden", "hidden_size is 18446744073709551615"),
        ("no_tokens", "tokens_max is 0"),
        ("format", "number format is fp7, but must be one of"),
        ("null_format", "format is null"),
        ("interleaved", "activation is swigluoai, whose gate and up rows alternate"),
        ("not_utf8", "activation is not UTF-8"),
        ("null_packs", "kernel_packs is null"),
        ("null_weights", "w13.numbers is null"),
        ("odd_weights", "w2.numbers lies at 0x10008, but must be 16-byte aligned"),
        ("short_weights", "w2.number_bytes is 393215, expected 393216"),
        ("scale_count", "w13.scale_count is 49, expected 48"),
        ("null_scales", "w13.scales is null"),
        ("half_a_block", "scale_rows and scale_columns of w13 are 0 and 128"),
        ("scales_of_bf16", "w13 in bf16 has no scales"),
        ("packed", "packed is 2, but must be 0 or 1"),
        ("null_out", "experts is null"),
        ("forward", "experts is null"),
    ];
    for (name, text) in invalid {
        let (status, found) = answers[name];
        assert_eq!(status, Status::Invalid as i32, "{name}: {found}");
        assert!(found.contains(text), "{name}: {found}");
    }
    // Cargo keeps one file for the library with and without GPU support, so it is asked what it is.
    let version = answers["done"].1;
    assert!(version.starts_with(env!("CARGO_PKG_VERSION")), "{version}");
    let expected = match version.ends_with("(cuda)") {
        true => "kernel pack /nowhere/experts.pack: cannot be read",
        false => "built without GPU support",
    };
    let (status, text) = answers["valid"];
    assert_eq!(status, Status::Unavailable as i32, "{text}");
    assert!(text.contains(expected), "{text}");
    assert_eq!((answers["before"], answers["plan"]), ((0, ""), (0, "-")));
    assert_eq!(answers.len(), invalid.len() + 4);
}

/// The functions that `text` declares, each with the names of its parameters.
fn declared(
    text: &'static str,
    name_of: fn(&'static str) -> &'static str,
) -> BTreeMap<&'static str, Vec<&'static str>> {
    let mut all = BTreeMap::new();
    for (start, _) in text.match_indices("artel_moe_") {
        let rest = &text[start..];
        let end = rest.find(|letter: char| !letter.is_ascii_lowercase() && letter != '_').unwrap();
        let (name, rest) = rest.split_at(end);
        let Some((parameters, end)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')'))
        else {
            continue;
        };
        if end.starts_with(';') || end.starts_with(" ->") || end.starts_with(" {") {
            let names = parameters.split(',').map(|parameter| name_of(parameter.trim()));
            all.insert(name, names.filter(|name| !["", "void"].contains(name)).collect());
        }
    }
    all
}

#[test]
fn functions_and_their_parameters_have_the_same_names() {
    let in_c = |parameter: &'static str| parameter.rsplit([' ', '*']).next().unwrap_or_default();
    let in_rust = |parameter: &'static str| parameter.split(':').next().unwrap_or_default();
    let (header, library) = (declared(HEADER, in_c), declared(FUNCTIONS, in_rust));
    assert_eq!(header, library);
    assert_eq!(header.len(), 6);
    for name in header.keys() {
        assert!(PYTHON.contains(name), "Python does not know {name}");
    }
}

#[test]
fn python_has_the_fields_of_the_header_in_their_order() {
    for name in ["artel_moe_stack", "artel_moe_settings"] {
        let start = HEADER.find(&format!("struct {name} {{")).unwrap();
        let body = &HEADER[start..][..HEADER[start..].find('}').unwrap()];
        let fields = body.lines().filter_map(|line| line.split_once(';'));
        let fields: Vec<&str> =
            fields.map(|(field, _)| field.rsplit([' ', '*']).next().unwrap()).collect();
        let start = PYTHON.find(&format!("# struct {name}")).unwrap();
        let body = &PYTHON[start..][..PYTHON[start..].find(']').unwrap()];
        let found = body.lines().filter_map(|line| line.trim().strip_prefix("(\""));
        let found: Vec<&str> = found.map(|line| line.split_once('"').unwrap().0).collect();
        assert!(fields.len() > 5, "{fields:?}");
        assert_eq!(found, fields, "{name}");
    }
}
