//! `cargo xtask toolkit`: what building with `--features cuda` needs, without a CUDA installation.
//!
//! The compiler of the kernels (`tileiras` with `ptxas` and libnvvm), the headers of the CUDA driver
//! and the libclang that reads them come as pinned wheels into `.toolkit/`. Cargo finds them
//! through `.toolkit/cargo.toml`, which `.cargo/config.toml` includes when it exists; variables
//! that the user has set himself win over it.

mod pip;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

/// Pinned versions with their hashes, in pip's format.
const REQUIREMENTS: &str = include_str!("requirements.txt");
/// Everything of this chore lies here, under the root of the workspace; git ignores it.
const FOLDER: &str = ".toolkit";

/// The toolkit on disk.
#[derive(Debug)]
pub struct Toolkit {
    folder: PathBuf,
}

impl Toolkit {
    /// The toolkit of the workspace under `root`, fetched or not.
    pub fn of(root: &Path) -> Self {
        Self { folder: root.join(FOLDER) }
    }

    /// Fetches what is missing and tells cargo where it lies. Says on standard error what it does.
    /// Begins where an interrupted call stopped; does nothing when all is there.
    ///
    /// # Errors
    /// On another platform than x86-64 Linux, without `python3 -m pip` or a C compiler, when a
    /// wheel can be had neither from the package index nor from `.toolkit/wheels`, or differs from
    /// its hash.
    pub fn fetch(&self) -> anyhow::Result<()> {
        let supported = cfg!(all(target_os = "linux", target_arch = "x86_64"));
        ensure!(supported, "the wheels of the toolkit are pinned for x86-64 Linux only");
        if !self.is_complete() {
            self.install()?;
        }
        let settings = self.environment()?;
        fs::write(self.folder.join("cargo.toml"), cargo_settings(&settings))?;
        eprintln!("toolkit: {} (cargo finds it by itself)", self.folder.display());
        if let Some(own) = std::env::var_os("CUDA_HOME") {
            eprintln!("toolkit: wins over CUDA_HOME={}", own.display());
        }
        Ok(())
    }

    /// Variables for programs that are not started by cargo, as `export` lines of a shell.
    ///
    /// # Errors
    /// When the toolkit was not fetched.
    pub fn exports(&self) -> anyhow::Result<String> {
        ensure!(self.is_complete(), "the toolkit is not there: `cargo xtask toolkit` fetches it");
        let line = |(name, value): (&str, String)| format!("export {name}={}\n", quoted(&value));
        let mut exports: String = self.environment()?.into_iter().map(line).collect();
        let programs = quoted(&self.cuda().join("bin").display().to_string());
        exports.push_str(&format!("export PATH=\"$PATH\":{programs}\n"));
        Ok(exports)
    }

    fn kit(&self) -> PathBuf {
        self.folder.join("kit")
    }

    fn cuda(&self) -> PathBuf {
        self.kit().join("nvidia/cu13")
    }

    /// The list that was installed is written last, so a kit that has it is whole.
    fn is_complete(&self) -> bool {
        let installed = fs::read_to_string(self.kit().join("requirements.txt"));
        installed.is_ok_and(|installed| installed == REQUIREMENTS)
    }

    fn install(&self) -> anyhow::Result<()> {
        let wheels = self.folder.join("wheels");
        fs::create_dir_all(&wheels)
            .with_context(|| format!("cannot make the folder {}", wheels.display()))?;
        pip::check()?;
        let wanted: Vec<&str> = requirements(REQUIREMENTS).collect();
        for (index, requirement) in wanted.iter().enumerate() {
            let name = requirement.split_whitespace().next().unwrap_or_default();
            eprintln!("toolkit: {}/{} {name}", index + 1, wanted.len());
            pip::download(requirement, &wheels)?;
        }
        let new = self.folder.join("kit.new");
        remove(&new)?;
        eprintln!("toolkit: unpacking");
        pip::unpack(REQUIREMENTS, &wheels, &new)?;
        fs::write(new.join("requirements.txt"), REQUIREMENTS)?;
        remove(&self.kit())?;
        fs::rename(&new, self.kit())?;
        remove(&wheels)
    }

    /// What the build of cuTile and its compiler at run time look for.
    fn environment(&self) -> anyhow::Result<Vec<(&'static str, String)>> {
        let (cuda, clang) = (self.cuda(), self.kit().join("clang/native"));
        ensure!(cuda.join("bin/tileiras").exists(), "no tileiras in {}", cuda.display());
        ensure!(clang.join("libclang.so").exists(), "no libclang in {}", clang.display());
        Ok(vec![
            ("CUDA_TOOLKIT_PATH", cuda.display().to_string()),
            ("LIBCLANG_PATH", clang.display().to_string()),
            ("BINDGEN_EXTRA_CLANG_ARGS", format!("-I{}", compiler_headers()?)),
        ])
    }
}

/// The wheel of libclang has no headers of its own (`stddef.h`); those of the C compiler, which
/// Rust needs to link anyway, serve as well.
fn compiler_headers() -> anyhow::Result<String> {
    let output = Command::new("cc").arg("-print-file-name=include").output();
    let output = output.context("cannot start the C compiler `cc`: install gcc or clang")?;
    let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !Path::new(&folder).join("stddef.h").exists() {
        bail!("the C compiler `cc` names {folder:?} as its headers, but there is no stddef.h");
    }
    Ok(folder)
}

/// The lines that ask for something.
fn requirements(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn cargo_settings(environment: &[(&str, String)]) -> String {
    let mut table = toml::Table::new();
    for (name, value) in environment {
        table.insert((*name).to_owned(), toml::Value::String(value.clone()));
    }
    let comment = "# Made by `cargo xtask toolkit`. Variables that are set already win.\n";
    let env = toml::Table::from_iter([("env".to_owned(), toml::Value::Table(table))]);
    format!("{comment}{env}")
}

/// In single quotes of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_requirement_is_pinned_and_hashed() {
        let lines: Vec<&str> = requirements(REQUIREMENTS).collect();
        assert_eq!(lines.len(), 9);
        for line in lines {
            let (pin, hash) = line.split_once(" --hash=sha256:").expect(line);
            let (name, version) = pin.split_once("==").expect(line);
            assert!(!name.is_empty() && version.starts_with(|digit: char| digit.is_ascii_digit()));
            assert!(hash.len() == 64 && hash.bytes().all(|digit| digit.is_ascii_hexdigit()));
        }
    }

    #[test]
    fn paths_survive_the_shell_and_cargo() {
        assert_eq!(quoted("/a b/it's"), r"'/a b/it'\''s'");
        let text = cargo_settings(&[("LIBCLANG_PATH", "/a \"b\"\\c".to_owned())]);
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["env"]["LIBCLANG_PATH"].as_str(), Some("/a \"b\"\\c"));
    }

    #[test]
    fn a_half_fetched_toolkit_is_not_taken_for_whole() {
        let root = std::env::temp_dir().join(format!("artel-toolkit-{}", std::process::id()));
        let toolkit = Toolkit::of(&root);
        fs::create_dir_all(toolkit.cuda().join("bin")).unwrap();
        assert!(!toolkit.is_complete());
        let error = toolkit.exports().unwrap_err().to_string();
        assert!(error.contains("cargo xtask toolkit"), "{error}");
        fs::write(toolkit.kit().join("requirements.txt"), "another list").unwrap();
        assert!(!toolkit.is_complete());
        fs::write(toolkit.kit().join("requirements.txt"), REQUIREMENTS).unwrap();
        assert!(toolkit.is_complete());
        remove(&root).unwrap();
    }
}
