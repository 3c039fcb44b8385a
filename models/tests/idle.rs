//! An idle engine costs no processor time, nor does the tensor library's thread pool behind it.

#![cfg(target_os = "linux")]
#![expect(clippy::expect_used, reason = "a test says what it expected")]

mod support;

use std::time::Duration;

use turnflow_models::{EncoderConfig, EncoderEngine, InputType};

/// Time that is watched. Not a wait for something: that nothing happens is what is tested.
const WATCHED: Duration = Duration::from_secs(1);
/// Hundredths of a second that the process may use meanwhile.
const TICKS_MAX: u64 = 2;

/// Processor time of the whole process so far, in clock ticks of 10 ms: user and system.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("statistics of this process");
    let after_name = stat.rsplit(')').next().expect("fields");
    after_name.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum()
}

#[test]
fn an_idle_engine_sleeps() {
    let handle = EncoderEngine::start(support::encoder(), &EncoderConfig::default()).expect("a thread");
    handle.encode_blocking(InputType::Query, vec!["where is my order?".to_owned(); 32]).expect("vectors");
    let before = ticks();
    std::thread::sleep(WATCHED);
    let used = ticks() - before;
    assert!(used <= TICKS_MAX, "{used} ticks within {WATCHED:?}");
    assert_eq!(handle.stats().texts, 32);
}
