//! Citations: what an answer says it rests on.
//!
//! A model is asked to name, in brackets, the numbers of the articles that it was shown: `[1]`, `[1, 3]`. An article's id
//! in brackets counts as well. *Rule*: a mark that names only what was shown is taken out of the text, with the white space
//! before it, because the customer cannot follow it; who reads the answer's sources can. Every other bracket stays.
//!
//! Contract: the pieces given out, joined, are the text without its marks and without white space at its ends, however it
//! was cut into pieces; nothing that was given out is taken back. What may still become a mark is held, up to a bound.

/// Longest mark of numbers, in bytes.
const MARK_BYTES_MAX: usize = 48;

/// Takes the citations out of one answer.
#[derive(Debug)]
pub(crate) struct Citations {
    /// Ids of the articles that were shown, in their order.
    shown: Vec<String>,
    held: String,
    mark_bytes_max: usize,
    has_begun: bool,
    cited: Vec<usize>,
}

impl Citations {
    /// For an answer whose writer was shown chunks of these articles.
    pub(crate) fn new(shown: Vec<String>) -> Self {
        let longest = shown.iter().map(String::len).max().unwrap_or(0);
        let (held, cited) = (String::new(), Vec::new());
        Self { shown, held, mark_bytes_max: MARK_BYTES_MAX.max(longest + 2), has_begun: false, cited }
    }

    /// What may be shown after another piece.
    pub(crate) fn push(&mut self, piece: &str) -> String {
        self.held.push_str(piece);
        self.drain(false)
    }

    /// What may be shown when no piece follows.
    pub(crate) fn finish(&mut self) -> String {
        self.drain(true)
    }

    /// Places of the chunks that were cited, in the order of their first marks.
    pub(crate) fn cited(&self) -> &[usize] {
        &self.cited
    }

    fn drain(&mut self, is_end: bool) -> String {
        let held = std::mem::take(&mut self.held);
        let (mut out, mut rest) = (String::new(), held.as_str());
        loop {
            let plain = rest.find(|c: char| c == '[' || c.is_whitespace()).unwrap_or(rest.len());
            self.say(&mut out, &rest[..plain]);
            rest = &rest[plain..];
            let after = rest.trim_start();
            let space = &rest[..rest.len() - after.len()];
            if after.is_empty() {
                break;
            }
            let Some(inside) = after.strip_prefix('[') else {
                self.say(&mut out, space);
                rest = after;
                continue;
            };
            let end = inside.find(['[', ']', '\n']);
            let marks = end.filter(|&end| inside[end..].starts_with(']')).and_then(|end| self.marks(&inside[..end]));
            match (marks, end) {
                (Some(marks), Some(end)) => {
                    for mark in marks {
                        if !self.cited.contains(&mark) {
                            self.cited.push(mark);
                        }
                    }
                    rest = &inside[end + 1..];
                }
                (None, None) if !is_end && after.len() <= self.mark_bytes_max => break,
                _ => {
                    self.say(&mut out, space);
                    self.say(&mut out, "[");
                    rest = inside;
                }
            }
        }
        if !is_end {
            self.held = rest.to_owned();
        }
        out
    }

    fn say(&mut self, out: &mut String, text: &str) {
        let text = if self.has_begun { text } else { text.trim_start() };
        self.has_begun |= !text.is_empty();
        out.push_str(text);
    }

    /// What is between two brackets, when all of it names what was shown.
    fn marks(&self, inside: &str) -> Option<Vec<usize>> {
        inside.split([',', ';']).map(|label| self.mark(label.trim())).collect()
    }

    fn mark(&self, label: &str) -> Option<usize> {
        let by_number = label.parse::<usize>().ok().filter(|number| (1..=self.shown.len()).contains(number));
        by_number.map(|number| number - 1).or_else(|| self.shown.iter().position(|id| id.eq_ignore_ascii_case(label)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(pieces: &[&str]) -> (String, Vec<usize>) {
        let mut citations = Citations::new(["returns", "gift-cards", "returns"].map(str::to_owned).to_vec());
        let mut text: String = pieces.iter().map(|piece| citations.push(piece)).collect();
        text.push_str(&citations.finish());
        (text, citations.cited().to_vec())
    }

    #[test]
    fn marks_are_taken_out_and_other_brackets_stay() {
        let check = |text: &str, shown: &str, cited: &[usize]| {
            assert_eq!(read(&[text]), (shown.to_owned(), cited.to_vec()), "{text:?}");
        };
        check("Free of charge [1].", "Free of charge.", &[0]);
        check(" [2] They never expire [2][1]. [3]\n", "They never expire.", &[1, 0, 2]);
        check("Yes [1, 3; 1] and [gift-cards].", "Yes and.", &[0, 2, 1]);
        check("See [Returns]: 30 days.", "See: 30 days.", &[0]);
        check("One [4], two [0], three [sic] and [1, sic].", "One [4], two [0], three [sic] and [1, sic].", &[]);
        check("a[[1]] [ 2 ] [", "a[] [", &[0, 1]);
        check("array[\n1]", "array[\n1]", &[]);
        check("  \n ", "", &[]);
        check("open [1", "open [1", &[]);
        check("line\n\n- item [1]\n- item [2]", "line\n\n- item\n- item", &[0, 1]);
    }

    #[test]
    fn what_cannot_be_a_mark_is_not_held() {
        let mut citations = Citations::new(vec!["a".to_owned()]);
        assert_eq!(citations.push("word [1"), "word");
        assert_eq!(citations.push("]. Next "), ". Next");
        assert_eq!(citations.push("["), "");
        let long = "x".repeat(MARK_BYTES_MAX);
        assert_eq!(citations.push(&long), format!(" [{long}"));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_a_text_comes(text in "[a \\n\\[\\]12,]{0,24}", cuts in proptest::collection::vec(1..4_usize, 24)) {
            let (mut pieces, mut rest) = (Vec::new(), text.as_str());
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            prop_assert_eq!(read(&pieces), read(&[&text]));
        }
    }
}
