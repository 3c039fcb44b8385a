//! Spans of time as people are told them, in messages and errors.

/// A span in milliseconds below a second, and in seconds from there on; rounded up, so that nobody comes back too soon.
#[must_use]
pub fn wait_text(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..10_000 => format!("{} s", ms.div_ceil(100) as f64 / 10.0),
        _ => format!("{} s", ms.div_ceil(1_000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_comes_back_too_soon() {
        for (ms, expected) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_000, "1 s"),
            (1_401, "1.5 s"),
            (9_999, "10 s"),
            (10_001, "11 s"),
            (60_000, "60 s"),
        ] {
            assert_eq!(wait_text(ms), expected, "{ms}");
        }
        assert_eq!(wait_text(u64::MAX), "18446744073709552 s");
    }
}
