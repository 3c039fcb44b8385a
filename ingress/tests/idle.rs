//! An idle server sleeps: it uses less than half a percent of a core, and it leaves in order when it is told to.

#![cfg(target_os = "linux")]
#![expect(clippy::expect_used, reason = "helpers of tests fail loudly too")]

mod announced;
mod binary;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use announced::announced;
use binary::{finish, sample, turnflow};

/// Kernel ticks per second in /proc, the same on every Linux that is not built for something special.
const TICKS_PER_SECOND: f64 = 100.0;
const MEASURED: Duration = Duration::from_secs(10);
const CPU_SHARE_MAX: f64 = 0.005;

#[test]
fn an_idle_server_sleeps_and_ends_on_sigterm() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let data = dir.path().join("data").display().to_string();
    let file = sample("articles.jsonl").display().to_string();
    // Imported by another process, so that nothing of the import is left to do in the one that is measured.
    let (code, ..) = finish(turnflow().args(["kb", "import", &file, "--data", &data]));
    assert_eq!(code, 0);

    let mut server = turnflow()
        .args(["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data", &data, "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("turnflow starts");
    let announced = announced(&mut server);
    let address = announced["listening"].as_str().expect("an address");
    std::net::TcpStream::connect(address).expect("the announced address is served");

    let (before, since) = (cpu_seconds(&server), Instant::now());
    // Idleness can only be measured by waiting.
    std::thread::sleep(MEASURED);
    let share = (cpu_seconds(&server) - before) / since.elapsed().as_secs_f64();
    eprintln!("idle: {:.3} % of a core", share * 100.0);

    let killed = Command::new("kill").args(["-TERM", &server.id().to_string()]).status().expect("kill runs");
    assert!(killed.success());
    let status = server.wait().expect("an end");
    assert_eq!(status.code(), Some(0), "SIGTERM ends a server in order");
    assert!(share < CPU_SHARE_MAX, "an idle server uses {:.2} % of a core", share * 100.0);
}

/// Time that a process has computed, in user and in system mode.
fn cpu_seconds(process: &Child) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.id())).expect("a running process");
    // The name in parentheses may contain spaces; utime and stime are the 12th and 13th field behind it.
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    let ticks = |index: usize| fields[index].parse::<f64>().expect("a number");
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}
