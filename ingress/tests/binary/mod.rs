//! Runs the real `turnflow` binary.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The binary with an environment that tests agree on.
pub(crate) fn turnflow() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_turnflow"));
    for name in [
        "TURNFLOW_CONFIG",
        "TURNFLOW_LOG",
        "TURNFLOW_LOG_FORMAT",
        "RUST_LOG",
        "TURNFLOW_KEY",
        "TURNFLOW_CA_FILE",
        "TURNFLOW_CLIENT_CERT",
        "TURNFLOW_CLIENT_KEY",
        "TURNFLOW_PEPPER",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    ] {
        command.env_remove(name);
    }
    command
}

/// Runs a command to its end; what it said is printed when the test fails.
pub(crate) fn finish(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("turnflow starts");
    let (stdout, stderr) =
        (String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr).into_owned());
    eprintln!("{command:?}\nexit code {:?}\n{stdout}\n{stderr}", status.code());
    (status.code().unwrap_or(-1), stdout, stderr)
}

/// A file of the sample shop.
pub(crate) fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sample").join(name)
}
