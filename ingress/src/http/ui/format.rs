//! Numbers as people read them.

/// A time span, from microseconds.
pub(super) fn span_us(elapsed_us: u64) -> String {
    match elapsed_us {
        0..1_000 => format!("{elapsed_us} µs"),
        1_000..10_000 => format!("{:.1} ms", elapsed_us as f64 / 1e3),
        10_000..1_000_000 => format!("{} ms", elapsed_us / 1_000),
        _ => format!("{:.1} s", elapsed_us as f64 / 1e6),
    }
}

/// How long something is ago, from milliseconds.
pub(super) fn ago_ms(elapsed_ms: u64) -> String {
    let seconds = elapsed_ms / 1_000;
    match seconds {
        0..5 => "just now".to_owned(),
        5..90 => format!("{seconds} s ago"),
        90..5_400 => format!("{} min ago", (seconds + 30) / 60),
        5_400..172_800 => format!("{} h ago", (seconds + 1_800) / 3_600),
        _ => format!("{} days ago", (seconds + 43_200) / 86_400),
    }
}

/// A count with its noun, whose plural has an s.
pub(super) fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// The beginning of a text, of about so many characters.
pub(super) fn beginning(text: &str, characters_max: usize) -> String {
    match text.char_indices().nth(characters_max) {
        None => text.to_owned(),
        Some((at, _)) => {
            let cut = text[..at].rfind(char::is_whitespace).unwrap_or(at);
            format!("{}…", text[..cut].trim_end())
        }
    }
}

/// A share as per cent.
pub(super) fn percent(share: f32) -> String {
    format!("{:.1} %", share * 100.0)
}

/// A text as a part of an address.
pub(super) fn encoded(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a text does not fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        let spans = [(7, "7 µs"), (1_250, "1.2 ms"), (12_345, "12 ms"), (1_500_000, "1.5 s")];
        spans.iter().for_each(|(elapsed_us, expected)| assert_eq!(span_us(*elapsed_us), *expected));
        let spans = [(0, "just now"), (30_000, "30 s ago"), (180_000, "3 min ago"), (7_200_000, "2 h ago")];
        spans.iter().for_each(|(elapsed_ms, expected)| assert_eq!(ago_ms(*elapsed_ms), *expected));
        assert_eq!(ago_ms(3 * 86_400_000), "3 days ago");
        assert_eq!((count(1, "turn").as_str(), count(0, "turn").as_str()), ("1 turn", "0 turns"));
        assert_eq!(percent(0.934_6), "93.5 %");
    }

    #[test]
    fn texts_are_cut_between_words_and_encoded_by_bytes() {
        assert_eq!(beginning("short", 9), "short");
        assert_eq!(beginning("a longer text", 10), "a longer…");
        assert_eq!(beginning("wörterbuch", 3), "wör…");
        assert_eq!(encoded("a b/ö?&"), "a%20b%2F%C3%B6%3F%26");
    }
}
