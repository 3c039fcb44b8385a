//! OpenAI's own Python client against a server.
//!
//! The client is installed from the package index, beside the build's outputs. Where there is no Python, no pip, or no index, the test
//! is skipped aloud.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

#[path = "../../models/tests/aloud/mod.rs"]
mod aloud;
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use self::support::{TestServer, bounded};

/// What is installed.
const PACKAGE: &str = "openai>=2,<4";

/// A folder in which Python finds the client; an error says why there is none.
fn installed() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openai-client");
    if imports(&folder) {
        return Ok(folder);
    }
    // Into a folder and not into an environment of its own, for which Debian wants one more package.
    let run = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade", PACKAGE, "--target"])
        .arg(&folder)
        .output();
    let output = run.map_err(|error| format!("python3 does not start: {error}"))?;
    if output.status.success() && imports(&folder) {
        return Ok(folder);
    }
    Err(format!("pip cannot install {PACKAGE}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

fn imports(folder: &Path) -> bool {
    let run = Command::new("python3").args(["-c", "import openai"]).env("PYTHONPATH", folder).output();
    run.is_ok_and(|output| output.status.success())
}

async fn openais_own_client_works(folder: PathBuf) {
    let server = TestServer::start(|_| {}).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai/client.py");
    let address = format!("http://{}", server.http);
    let run = move || {
        Command::new("python3").arg(script).arg(address).env("PYTHONPATH", folder).env("NO_PROXY", "127.0.0.1").output()
    };
    let output = tokio::task::spawn_blocking(run).await.expect("no panic").expect("python3 starts");
    let (heard, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && heard.starts_with("ok"), "{heard}\n{complained}");
    server.stop().await;
}

fn main() -> ExitCode {
    aloud::run("openais_own_client_works", || {
        let folder = installed()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        runtime.block_on(bounded(openais_own_client_works(folder)));
        Ok(())
    })
}
