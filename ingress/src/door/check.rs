//! What is checked of everything that comes in.

use turnflow_state::ConversationId;

use super::Refusal;

/// What the names of conversations begin with that are a request's own.
pub(crate) const OWN_CONVERSATION: &str = "request:";

/// The conversation that a client names; `field` is its path from the request.
pub(crate) fn conversation(field: &'static str, named: &str) -> Result<ConversationId, Refusal> {
    if named.starts_with(OWN_CONVERSATION) {
        return Err(Refusal::invalid(field, format!("names that begin with {OWN_CONVERSATION} are not the caller's")));
    }
    ConversationId::new(named).map_err(|error| Refusal::invalid(field, error.to_string()))
}

/// Checks what somebody said or asks; `field` is its path from the request.
pub(crate) fn text(field: &str, text: String, bytes_max: usize) -> Result<String, Refusal> {
    let invalid = |message: String| Err(Refusal::Invalid { field: Some(field.to_owned()), message });
    if text.len() > bytes_max {
        return invalid(format!("{} bytes, at most {bytes_max} are allowed", text.len()));
    }
    if text.trim().is_empty() {
        return invalid("empty".to_owned());
    }
    if let Some(at) = control_character(&text) {
        return invalid(format!("contains a control character at byte {at}"));
    }
    Ok(text)
}

/// Where a text has a control character that no text needs.
pub(crate) fn control_character(text: &str) -> Option<usize> {
    // White space counts as text, though line feeds and tabs are control characters by Unicode.
    text.find(|c: char| c.is_control() && !c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_checked() {
        let check = |input: &str, expected: Option<&str>| {
            let refused = text("turn.text", input.to_owned(), 16).err();
            let expected = expected
                .map(|message| Refusal::Invalid { field: Some("turn.text".to_owned()), message: message.to_owned() });
            assert_eq!(refused, expected, "{input:?}");
        };
        check("hi", None);
        check("a\tb\r\nc\u{85}", None);
        check("sixteen bytes ok", None);
        check("seventeen bytes !", Some("17 bytes, at most 16 are allowed"));
        check("", Some("empty"));
        check(" \n\u{3000}", Some("empty"));
        check("ab\u{0}", Some("contains a control character at byte 2"));
        check("\u{9b}x", Some("contains a control character at byte 0"));
    }
}
