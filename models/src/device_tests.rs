//! Choices of a device, and probes that answer, fail, babble or hang.

use super::*;

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(script);
    command
}

#[test]
fn choices_are_read_and_written_alike() {
    let all = [DeviceChoice::Cpu, DeviceChoice::Wgpu, DeviceChoice::WgpuAt(3), DeviceChoice::Auto];
    for choice in all {
        assert_eq!(choice.to_string().parse::<DeviceChoice>().expect("parsed"), choice);
        let json = serde_json::to_string(&choice).expect("written");
        assert_eq!(json, format!("\"{choice}\""));
        assert_eq!(serde_json::from_str::<DeviceChoice>(&json).expect("read"), choice);
    }
    for unknown in ["", "gpu", "CPU", "cuda:0", "wgpu:", "wgpu:-1", "wgpu:x", "wgpu:0:1", "cpu:0"] {
        let error = unknown.parse::<DeviceChoice>().expect_err("refused").to_string();
        assert_eq!(error, format!("cannot use the device {unknown}: expected cpu, wgpu, wgpu:N (N from 0) or auto"));
    }
}

#[test]
fn an_answer_is_found_among_what_drivers_print() {
    let found = Found { index: 2, name: "Card".to_owned(), gpu: true, half: true };
    let json = serde_json::to_string(&Ok::<_, String>(found.clone())).expect("written");
    let mut command = shell(&format!("echo 'WARNING: not a conformant driver'; echo '{ANSWER}{json}'; exit 1"));
    assert_eq!(ask(&mut command, PROBE_TIME_MAX), Ok(found));
    let mut command = shell(&format!("echo '{ANSWER}{{\"Err\":\"no GPU\"}}'"));
    assert_eq!(ask(&mut command, PROBE_TIME_MAX), Err("no GPU".to_owned()));
    let mut command = shell(&format!("echo '{ANSWER}nonsense'"));
    assert!(ask(&mut command, PROBE_TIME_MAX).expect_err("refused").starts_with("its answer is no JSON: "));
}

#[test]
fn an_answer_is_found_after_an_unfinished_line_and_after_more_than_is_kept() {
    let found = Found { index: 0, name: "Card".to_owned(), gpu: true, half: false };
    let check = |before: &str| {
        let script = format!("{before}; echo \"$1\"");
        let mut command = shell(&script);
        command.arg("probe").arg(answer(&Ok(found.clone())));
        assert_eq!(ask(&mut command, PROBE_TIME_MAX), Ok(found.clone()), "{before}");
    };
    check("printf 'loading the driver...'");
    check("yes noise | head -c 300000");
    check("yes noise | head -c 300000 >&2");
    let mut command = shell("yes noise | head -c 300000 >&2; echo last >&2; exit 3");
    assert!(ask(&mut command, PROBE_TIME_MAX).expect_err("no answer").ends_with("exit status: 3: last"));
}

#[test]
fn what_a_child_leaves_behind_holds_nobody_up() {
    let found = Found { index: 0, name: "Card".to_owned(), gpu: true, half: false };
    let folder = tempfile::tempdir().expect("a folder");
    let hold = folder.path().join("hold");
    std::fs::write(&hold, "").expect("written");
    // It keeps both pipes open until this test ends.
    let left_behind = format!("while [ -e '{}' ]; do sleep 0.02; done & echo \"$1\"", hold.display());
    let mut command = shell(&left_behind);
    command.arg("probe").arg(answer(&Ok(found.clone())));
    assert_eq!(ask(&mut command, PROBE_TIME_MAX), Ok(found));
    let (stream, mut open) = std::io::pipe().expect("a pipe");
    let heard = Heard::listen(Some(stream));
    std::io::Write::write_all(&mut open, b"why").expect("written");
    assert_eq!(heard.until(PROBE_TIME_MAX, |text| text == "why"), "why");
    assert_eq!(heard.until(Duration::ZERO, |_| false), "why", "the time is over before the stream is");
    drop(open);
    assert_eq!(heard.until(PROBE_TIME_MAX, |_| false), "why");
}

#[test]
fn a_child_that_dies_says_why() {
    let check = |script: &str, expected: &str| {
        assert_eq!(ask(&mut shell(script), PROBE_TIME_MAX).expect_err("no answer"), expected, "{script}");
    };
    let ended = "the process that tried it out ended with";
    check("exit 3", &format!("{ended} exit status: 3"));
    check("echo first >&2; echo 'no such thing' >&2; exit 3", &format!("{ended} exit status: 3: no such thing"));
    let panic = "thread 'x' panicked at wgpu.rs:1:2:\\nNo adapter\\nnote: run with RUST_BACKTRACE=1";
    check(&format!("printf \"{panic}\" >&2; exit 101"), &format!("{ended} exit status: 101: No adapter"));
    check(
        "kill -SEGV $$",
        &format!("{ended} signal: 11 (SIGSEGV) (core dumped)").replace(" (core dumped)", core_note()),
    );
}

/// Whether this machine keeps the memory of processes that crash is not the driver's affair.
fn core_note() -> &'static str {
    let crash = shell("kill -SEGV $$").status().expect("a process");
    if crash.to_string().ends_with("(core dumped)") { " (core dumped)" } else { "" }
}

#[test]
fn a_child_that_hangs_is_ended() {
    // `exec`, so that the process that is ended is the one that holds the pipes.
    let refused = ask(&mut shell("exec sleep 1000"), Duration::from_millis(50)).expect_err("no answer");
    assert_eq!(refused, "it did not answer within 50ms");
    let missing = ask(&mut Command::new("/nowhere/program"), PROBE_TIME_MAX).expect_err("no process");
    assert!(missing.starts_with("no process could be started to try it out: "));
}

#[test]
fn the_cpu_needs_no_trial() {
    let tried = DeviceChoice::Cpu.resolve().expect("there is always a CPU");
    assert_eq!((tried.name.as_str(), tried.wgpu, tried.gpu, tried.half), ("CPU", false, false, false));
    assert_eq!(tried.fallback, None);
}

#[cfg(not(feature = "wgpu"))]
#[test]
fn a_build_without_gpu_support_says_so() {
    let error = DeviceChoice::WgpuAt(0).resolve().expect_err("refused").to_string();
    assert!(error.starts_with("cannot use the device wgpu:0: this build has no GPU support"), "{error}");
    assert_eq!(DeviceChoice::Auto.resolve().expect("the CPU").fallback, None);
}

#[cfg(feature = "wgpu")]
#[test]
fn a_program_that_does_not_take_part_falls_back() {
    // This test's program does not call `probe_main`: it refuses the argument.
    let tried = DeviceChoice::Wgpu.resolve().expect("resolved");
    let reason = tried.fallback.expect("not the device that was asked for");
    assert!(!tried.wgpu && reason.starts_with("the process that tried it out ended with "), "{reason}");
}
