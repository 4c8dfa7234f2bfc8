//! `cargo xtask CHORE`.

use std::path::Path;
use std::process::ExitCode;

use xtask::toolkit::Toolkit;

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}

fn run() -> anyhow::Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace");
    match std::env::args().nth(1).as_deref() {
        Some("tidy") => tidy(root),
        Some("bench-report") => {
            let missing = xtask::report::make(root)?;
            missing.iter().for_each(|sentence| eprintln!("bench-report: {sentence}"));
            Ok(ExitCode::SUCCESS)
        }
        Some("toolkit") => toolkit(root),
        _ => {
            eprintln!("usage: cargo xtask tidy           check the limits of the house");
            eprintln!("       cargo xtask bench-report   make docs/ from benches/results/");
            eprintln!("       cargo xtask toolkit        fetch what --features cuda needs");
            eprintln!(
                "       cargo xtask toolkit --env  the same, and print variables for a shell"
            );
            Ok(ExitCode::from(2))
        }
    }
}

fn tidy(root: &Path) -> anyhow::Result<ExitCode> {
    let report = xtask::tidy::check(root)?;
    for violation in &report.violations {
        eprintln!("{violation}");
    }
    println!("tidy: {} files, {} violations", report.files, report.violations.len());
    Ok(if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn toolkit(root: &Path) -> anyhow::Result<ExitCode> {
    let toolkit = Toolkit::of(root);
    toolkit.fetch()?;
    if std::env::args().any(|argument| argument == "--env") {
        print!("{}", toolkit.exports()?);
    }
    Ok(ExitCode::SUCCESS)
}
