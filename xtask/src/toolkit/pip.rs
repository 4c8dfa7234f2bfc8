//! Wheels through pip, which knows how this machine reaches its package index.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

/// That there is a pip.
///
/// # Errors
/// When there is none.
pub(super) fn check() -> anyhow::Result<()> {
    let found = pip().arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let message = "`python3 -m pip` does not run: install Python 3 with pip (the program itself \
                   needs no Python, only this chore does)";
    ensure!(found.is_ok_and(|status| status.success()), message);
    Ok(())
}

/// Brings the wheel of one requirement into `wheels`; one that is there with the right hash stays.
pub(super) fn download(requirement: &str, wheels: &Path) -> anyhow::Result<()> {
    let mut command = pip();
    command.args(["download", "--quiet", "--progress-bar=off", "--dest"]).arg(wheels);
    run(command, requirement, wheels).with_context(|| {
        format!(
            "cannot fetch {requirement}; without a way to the package index, put the wheels into \
             {} and call again",
            wheels.display()
        )
    })
}

/// Unpacks all of `wheels` that `requirements` name into a new folder. Opens no connection.
pub(super) fn unpack(requirements: &str, wheels: &Path, into: &Path) -> anyhow::Result<()> {
    let mut command = pip();
    command.args(["install", "--quiet", "--no-compile", "--no-index", "--target"]).arg(into);
    run(command, requirements, wheels).context("cannot unpack the wheels")
}

fn pip() -> Command {
    let mut command = Command::new("python3");
    // Standard output belongs to `--env`. Nothing is installed for root or for any user.
    command.args(["-m", "pip", "--disable-pip-version-check"]).stdout(Stdio::null());
    command.env("PIP_ROOT_USER_ACTION", "ignore").env("PIP_USER", "0");
    command
}

/// Runs pip on a list of requirements. Wheels only: nothing of what is fetched is executed.
fn run(mut command: Command, requirements: &str, wheels: &Path) -> anyhow::Result<()> {
    let list = wheels.with_file_name("wanted.txt");
    fs::write(&list, requirements)?;
    command.args(["--no-deps", "--only-binary=:all:", "--require-hashes", "--find-links"]);
    let status = command.arg(wheels).arg("--requirement").arg(&list).status()?;
    fs::remove_file(&list)?;
    ensure!(status.success(), "pip ended with {status}");
    Ok(())
}
