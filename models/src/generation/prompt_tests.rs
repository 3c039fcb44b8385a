//! What is in a prompt, what is left out first, and what an answer rests on.

use turnflow_state::{ArticleId, Chunk, ChunkId, ContentHash, Exchange, TenantId};

use super::*;

/// One token a word.
struct Words;

impl Measure for Words {
    fn tokens(&self, text: &str) -> Result<usize, ModelError> {
        Ok(text.split_whitespace().count())
    }

    fn around_prompt(&self) -> usize {
        3
    }

    fn around_exchange(&self) -> usize {
        2
    }
}

pub(crate) fn found(article: &str, title: &str, text: &str) -> ScoredChunk {
    let chunk = Chunk {
        id: ChunkId {
            tenant: TenantId::new("shop").expect("valid"),
            article: ArticleId::new(article).expect("valid"),
            ordinal: 0,
        },
        version: 7,
        title: title.to_owned(),
        text: text.to_owned(),
        hash: ContentHash::of(title, text),
        vector: [1.0].into(),
        since: 1,
    };
    ScoredChunk { chunk: chunk.into(), score: 0.5 }
}

pub(crate) fn config() -> PromptConfig {
    PromptConfig {
        prompt_tokens_max: 1_000,
        history_tokens_max: 100,
        answer_tokens_max: 64,
        instructions: "Answer. If not: {unknown}".to_owned(),
        unknown_text: "No idea.".to_owned(),
    }
}

fn request(retrieved: Vec<ScoredChunk>, history: &[(&str, &str)]) -> TierRequest {
    let exchange = |&(question, answer): &(&str, &str)| Exchange { question: question.into(), answer: answer.into() };
    let history = history.iter().map(exchange).collect();
    TierRequest { history, ..TierRequest::new(" And for a week? ", [1.0].into(), retrieved) }
}

fn said(prompt: &Prompt) -> Vec<(&str, &str)> {
    prompt.messages.iter().map(|message| (message.role.as_str(), message.content.as_str())).collect()
}

#[test]
fn a_prompt_holds_everything_in_order() {
    let author = Author::new(config(), "  You are Ada. ", "de");
    let articles = vec![found("rent", "Renting", " A day is $5. "), found("care", "", "Keep it dry.")];
    let asked = request(articles, &[("Can I rent one?", "Yes."), ("For a day?", "Yes, for $5.")]);
    let prompt = author.prompt(&asked, &Words, 1_000).expect("fits");
    let system = "You are Ada.\n\nAnswer. If not: No idea.\n\nWrite your answer in the language with the code de.\n\n\
                  [1] Renting (rent)\nA day is $5.\n\n[2] care\nKeep it dry.";
    let expected = [
        ("system", system),
        ("user", "Can I rent one?"),
        ("assistant", "Yes."),
        ("user", "For a day?"),
        ("assistant", "Yes, for $5."),
        ("user", "And for a week?"),
    ];
    assert_eq!(said(&prompt), expected);
    assert_eq!(prompt.shown.len(), 2);
}

#[test]
fn the_oldest_turns_and_the_worst_articles_are_left_out_and_never_the_question() {
    // Around the prompt 3, instructions 5, question 4, and for each turn 2 and its words.
    let author = |history_tokens_max, prompt_tokens_max| {
        Author::new(PromptConfig { history_tokens_max, prompt_tokens_max, ..config() }, "", "en")
    };
    let articles = || vec![found("a", "", "one two"), found("b", "", "one two three four"), found("c", "", "one")];
    let history = [("q q", "a a"), ("q", "a"), ("q", "a")];
    let check = |history_max: usize, prompt_max: usize, turns: usize, shown: &[&str]| {
        let prompt =
            author(history_max, prompt_max).prompt(&request(articles(), &history), &Words, 1_000).expect("fits");
        let names: Vec<_> = prompt.shown.iter().map(|found| found.chunk.id.article.as_str()).collect();
        assert_eq!(((prompt.messages.len() - 2) / 2, names.as_slice()), (turns, shown), "{history_max} {prompt_max}");
        assert_eq!(prompt.messages.last().map(|last| last.content.as_str()), Some("And for a week?"));
    };
    check(100, 100, 3, &["a", "b", "c"]);
    check(13, 100, 2, &["a", "b", "c"]);
    check(3, 100, 0, &["a", "b", "c"]);
    check(0, 12 + 4, 0, &["a"]);
    check(0, 12 + 4 + 3, 0, &["a", "c"]);
    check(100, 12 + 4, 1, &[]);
    check(100, 12, 0, &[]);
    let error = author(100, 11).prompt(&request(articles(), &history), &Words, 1_000).expect_err("no room");
    assert!(matches!(error, ModelError::PromptTooLong { tokens: 12, limit: 11 }), "{error}");
    let error = author(100, 100).prompt(&request(articles(), &history), &Words, 8).expect_err("no room");
    assert!(matches!(error, ModelError::PromptTooLong { tokens: 12, limit: 8 }), "{error}");
}

#[test]
fn an_answer_rests_on_what_it_cites() {
    let author = Arc::new(Author::new(config(), "", "en"));
    let shown = || vec![found("rent", "", "x"), found("care", "", "y")];
    let check = |text: &str, shown: Vec<ScoredChunk>, expected: &str, sources: &[&str], grounded: bool| {
        let mut reader = Reader::new(Arc::clone(&author), shown);
        let mut pieces: String = text.split_inclusive(' ').filter_map(|piece| reader.push(piece)).collect();
        let (last, answer) = reader.finish(Tier::Burn, Usage { input_tokens: 1, output_tokens: 2 });
        pieces.extend(last);
        assert_eq!((answer.text.as_str(), pieces.as_str()), (expected, expected));
        let found: Vec<_> = answer.sources.iter().map(|source| source.article_id.as_str()).collect();
        assert_eq!((found.as_slice(), answer.grounded), (sources, grounded), "{text}");
        assert!(answer.sources.iter().all(|source| source.version == 7) && answer.usage.output_tokens == 2);
    };
    check("Keep it dry [2], for $5 [1].", shown(), "Keep it dry, for $5.", &["care", "rent"], true);
    check("For $5 [rent].", shown(), "For $5.", &["rent"], true);
    check("For $5.", shown(), "For $5.", &["rent", "care"], true);
    check("For $5 [1].", vec![], "For $5 [1].", &[], false);
    check("no idea!", shown(), "no idea!", &[], false);
    check("I don\u{2019}t know. [1]", shown(), "I don\u{2019}t know.", &[], false);
    check(" [1] ", shown(), "No idea.", &[], false);
}
