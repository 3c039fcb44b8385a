//! Choosing the sentences of an answer, given how similar everything is to the question.
//!
//! Pure: numbers in, indices out. A list belongs together, with the line that introduces it: it is chosen or left as
//! one passage. Passages come from the best article, in reading order; where another is about as near to the question, so that it
//! may be meant as well, from that one too.

use std::ops::Range;

/// What a passage's score is made of. The chunk, whose vector holds the article's title, decides which article answers; the
/// sentence, which passages of it do.
const SENTENCE_WEIGHT: f32 = 0.15;
const CHUNK_WEIGHT: f32 = 0.85;

/// A retrieved chunk, seen from the question. Similarities are cosines.
#[derive(Clone, Debug)]
pub(crate) struct ReadChunk {
    /// Chunks of one article share this number.
    pub(crate) article: usize,
    /// Place in the article.
    pub(crate) ordinal: u32,
    /// Question and chunk.
    pub(crate) chunk_similarity: f32,
    /// The sentences, in reading order.
    pub(crate) sentences: Vec<ReadSentence>,
}

/// A sentence, seen from the question.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadSentence {
    /// Question and sentence.
    pub(crate) similarity: f32,
    /// What the sentence is in its chunk.
    pub(crate) role: Role,
}

/// What a sentence is in its chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Stands for itself.
    Sentence,
    /// Ends in a colon: introduces a list that follows.
    Introduction,
    /// An item of a list.
    Item,
}

/// How much is chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Most passages.
    pub(crate) passages_max: usize,
    /// A passage this much less similar than the article's best is left out.
    pub(crate) margin: f32,
    /// Most articles.
    pub(crate) articles_max: usize,
    /// An article that scores this much less than the best is left out.
    pub(crate) ambiguity: f32,
}

/// Sentences of one chunk: `chunks[chunk].sentences[sentences]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Passage {
    pub(crate) chunk: usize,
    pub(crate) sentences: Range<usize>,
    /// Question and the passage's most similar sentence.
    pub(crate) similarity: f32,
    /// Combined with the chunk.
    pub(crate) score: f32,
}

/// The best-supported passages of the best articles.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Choice {
    /// Score of the best passage: the confidence of the answer.
    pub(crate) score: f32,
    /// By article, the best first, and within it in reading order; never empty.
    pub(crate) passages: Vec<Passage>,
}

/// Chooses; none when no chunk has a sentence. Equal scores go to what was retrieved first.
pub(crate) fn choose(chunks: &[ReadChunk], bounds: Bounds) -> Option<Choice> {
    let passages: Vec<Passage> =
        chunks.iter().enumerate().flat_map(|(index, chunk)| passages_of(index, chunk)).collect();
    let best = passages.iter().reduce(|best, next| if next.score > best.score { next } else { best })?;
    let mut articles: Vec<(usize, f32)> = Vec::new();
    for passage in &passages {
        let article = chunks[passage.chunk].article;
        match articles.iter_mut().find(|(known, _)| *known == article) {
            Some((_, score)) => *score = score.max(passage.score),
            None => articles.push((article, passage.score)),
        }
    }
    // Stable: equal scores stay in the order of retrieval.
    articles.sort_by(|a, b| b.1.total_cmp(&a.1));
    articles.retain(|(_, score)| best.score - score <= bounds.ambiguity);
    articles.truncate(bounds.articles_max.max(1));
    let each = bounds.passages_max.max(1).div_ceil(articles.len());
    let chosen = articles.iter().flat_map(|(article, _)| of_article(chunks, &passages, *article, each, bounds.margin));
    Some(Choice { score: best.score, passages: chosen.collect() })
}

/// The best passages of one article, in reading order.
fn of_article(
    chunks: &[ReadChunk],
    passages: &[Passage],
    article: usize,
    passages_max: usize,
    margin: f32,
) -> Vec<Passage> {
    let mut chosen: Vec<Passage> =
        passages.iter().filter(|passage| chunks[passage.chunk].article == article).cloned().collect();
    chosen.sort_by(|a, b| b.score.total_cmp(&a.score));
    let similarity_min = chosen.iter().map(|passage| passage.similarity).fold(f32::MIN, f32::max) - margin;
    let mut rank = 0..;
    // The best passage stays in any case.
    chosen.retain(|passage| rank.next() == Some(0) || passage.similarity >= similarity_min);
    chosen.truncate(passages_max);
    chosen.sort_by_key(|passage| (chunks[passage.chunk].ordinal, passage.sentences.start));
    chosen
}

fn passages_of(index: usize, chunk: &ReadChunk) -> Vec<Passage> {
    let roles: Vec<Role> = chunk.sentences.iter().map(|sentence| sentence.role).collect();
    let context = CHUNK_WEIGHT * chunk.chunk_similarity;
    let passage = |sentences: Range<usize>| {
        let similarities = chunk.sentences[sentences.clone()].iter().map(|sentence| sentence.similarity);
        let similarity = similarities.fold(f32::MIN, f32::max);
        Passage { chunk: index, sentences, similarity, score: SENTENCE_WEIGHT * similarity + context }
    };
    group(&roles).into_iter().map(passage).collect()
}

/// Groups list items with each other and with the sentence that introduces them.
fn group(roles: &[Role]) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    for (index, &role) in roles.iter().enumerate() {
        let joins = role == Role::Item && index > 0 && roles[index - 1] != Role::Sentence;
        match groups.last_mut() {
            Some(last) if joins => last.end = index + 1,
            _ => groups.push(index..index + 1),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { passages_max: 3, margin: 0.25, articles_max: 1, ambiguity: 0.05 };

    fn chunk(article: usize, ordinal: u32, context: f32, similarities: &[f32]) -> ReadChunk {
        let sentence = |&similarity| ReadSentence { similarity, role: Role::Sentence };
        ReadChunk {
            article,
            ordinal,
            chunk_similarity: context,
            sentences: similarities.iter().map(sentence).collect(),
        }
    }

    #[test]
    fn choices_by_table() {
        let check = |what: &str, chunks: &[ReadChunk], expected: &[(usize, Range<usize>)]| {
            let choice = choose(chunks, BOUNDS);
            let passages = choice.map_or(Vec::new(), |choice| choice.passages);
            let found: Vec<_> = passages.into_iter().map(|passage| (passage.chunk, passage.sentences)).collect();
            assert_eq!(found, expected, "{what}");
        };
        check("nothing retrieved", &[], &[]);
        check("nothing to read", &[chunk(0, 0, 0.9, &[])], &[]);
        check("one sentence", &[chunk(0, 0, 0.5, &[0.1])], &[(0, 0..1)]);
        check(
            "reading order, not order of scores",
            &[chunk(0, 0, 0.5, &[0.5, 0.6, 0.55])],
            &[(0, 0..1), (0, 1..2), (0, 2..3)],
        );
        check("at most three", &[chunk(0, 0, 0.5, &[0.5, 0.6, 0.7, 0.65])], &[(0, 1..2), (0, 2..3), (0, 3..4)]);
        check("the far-off is left out", &[chunk(0, 0, 0.5, &[0.1, 0.6])], &[(0, 1..2)]);
        check(
            "one article only, though another has the second best sentence",
            &[chunk(0, 0, 0.6, &[0.7]), chunk(1, 0, 0.6, &[0.69])],
            &[(0, 0..1)],
        );
        check(
            "a good sentence beats a slightly better chunk",
            &[chunk(0, 0, 0.60, &[0.2]), chunk(1, 0, 0.55, &[0.8])],
            &[(1, 0..1)],
        );
        check(
            "chunks of one article in the article's order",
            &[chunk(0, 2, 0.6, &[0.7]), chunk(1, 0, 0.5, &[0.1]), chunk(0, 1, 0.5, &[0.6])],
            &[(2, 0..1), (0, 0..1)],
        );
        check("first retrieved wins a tie", &[chunk(0, 0, 0.5, &[0.5]), chunk(1, 0, 0.5, &[0.5])], &[(0, 0..1)]);
    }

    #[test]
    fn an_article_that_may_be_meant_as_well_answers_too() {
        let found = |chunks: &[ReadChunk]| {
            let bounds = Bounds { articles_max: 2, ..BOUNDS };
            let passages = choose(chunks, bounds).expect("a choice").passages;
            passages.into_iter().map(|passage| (passage.chunk, passage.sentences)).collect::<Vec<_>>()
        };
        let close = [chunk(0, 0, 0.58, &[0.6]), chunk(1, 0, 0.6, &[0.6, 0.59, 0.58]), chunk(2, 0, 0.6, &[0.5])];
        assert_eq!(found(&close), [(1, 0..1), (1, 1..2), (2, 0..1)], "two of three, each with its share");
        let apart = [chunk(0, 0, 0.5, &[0.6]), chunk(1, 0, 0.6, &[0.6])];
        assert_eq!(found(&apart), [(1, 0..1)]);
    }

    #[test]
    fn groups_by_table() {
        use Role::{Introduction, Item, Sentence};
        let check = |roles: &[Role], expected: &[(usize, usize)]| {
            let found: Vec<_> = group(roles).into_iter().map(|range| (range.start, range.end)).collect();
            assert_eq!(found, expected, "{roles:?}");
        };
        check(&[], &[]);
        check(&[Sentence, Sentence], &[(0, 1), (1, 2)]);
        check(&[Item, Item], &[(0, 2)]);
        check(&[Sentence, Introduction, Item, Item, Sentence], &[(0, 1), (1, 4), (4, 5)]);
        check(&[Sentence, Item, Item], &[(0, 1), (1, 3)]);
        check(&[Introduction, Sentence], &[(0, 1), (1, 2)]);
        check(&[Introduction, Introduction, Item], &[(0, 1), (1, 3)]);
    }

    #[test]
    fn a_list_is_as_good_as_its_best_item() {
        let mut read = chunk(0, 0, 0.5, &[0.5, 0.2, 0.1, 0.8]);
        read.sentences[1].role = Role::Introduction;
        read.sentences[2].role = Role::Item;
        read.sentences[3].role = Role::Item;
        let choice = choose(&[read], Bounds { passages_max: 1, ..BOUNDS }).expect("a choice");
        assert_eq!((choice.passages[0].sentences.clone(), choice.passages[0].similarity), (1..4, 0.8));
        assert!((choice.score - (0.15 * 0.8 + 0.85 * 0.5)).abs() < 1e-6);
    }
}
