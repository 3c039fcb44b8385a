//! Tests of the knowledge base: partition, consistency, and what becomes of cached answers.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::fixtures::{Random, article, chunk, entry, id};
use crate::{EntryId, StoreBatch};

const CACHE_BYTES: usize = 1 << 20;

fn put(tenant: &str, name: &str, version: u64, texts: &[(&str, [f32; 2])]) -> ArticleChange {
    let cut = |(at, (text, vector)): (usize, &(&str, [f32; 2]))| chunk(tenant, name, at as u32, version, text, vector);
    let chunks = texts.iter().enumerate().map(cut).collect();
    ArticleChange::Put { tenant: id(tenant), article: article(name, version), chunks }
}

fn delete(tenant: &str, name: &str) -> ArticleChange {
    ArticleChange::Delete { tenant: id(tenant), article: id(name) }
}

fn knowledge(store: &Store) -> KnowledgeBase {
    KnowledgeBase::load(store.clone(), CACHE_BYTES).expect("loads")
}

fn found(knowledge: &KnowledgeBase, tenant: &str, query: [f32; 2]) -> Vec<(String, f32)> {
    let found = knowledge.search(&id(tenant), &query, 10).expect("searches");
    found.into_iter().map(|found| (found.chunk.text.clone(), found.score)).collect()
}

fn texts(knowledge: &KnowledgeBase, tenant: &str) -> Vec<String> {
    found(knowledge, tenant, [1.0, 0.0]).into_iter().map(|(text, _)| text).collect()
}

fn with_entries(store: &Store, tenants: &[&str]) {
    let mut batch = StoreBatch::new();
    for (number, tenant) in tenants.iter().enumerate() {
        batch.put_entry(&entry(EntryId(number as u64), tenant, &[1.0, 0.0])).expect("encodes");
    }
    store.write(batch, Durability::Synced).expect("writes");
}

fn entries_left(store: &Store) -> Vec<u64> {
    store.entry_ids(None).expect("reads").into_iter().map(|id| id.0).collect()
}

#[test]
fn tenants_share_nothing() {
    let knowledge = knowledge(&Store::memory());
    let changes = vec![
        put("a", "returns", 1, &[("thirty days", [1.0, 0.0]), ("by post", [0.0, 1.0])]),
        put("b", "returns", 1, &[("never", [1.0, 0.0])]),
    ];
    let summary = knowledge.apply(changes).expect("applies");
    assert_eq!(summary, ApplySummary { articles_written: 2, chunks_changed: 3, ..ApplySummary::default() });
    assert_eq!(found(&knowledge, "a", [1.0, 0.0]), [("thirty days".to_owned(), 1.0), ("by post".to_owned(), 0.0)]);
    assert_eq!(texts(&knowledge, "b"), ["never"]);
    assert_eq!(texts(&knowledge, "c"), Vec::<String>::new());
    let KnowledgeStats { articles, chunks, tenants, .. } = knowledge.stats();
    assert_eq!((articles, chunks, tenants), (2, 3, 2));
}

#[test]
fn what_was_applied_is_there_after_loading_again() {
    let folder = tempfile::tempdir().expect("folder");
    {
        let knowledge = knowledge(&Store::open(folder.path()).expect("opens"));
        knowledge.apply(vec![put("a", "x", 1, &[("old", [1.0, 0.0])]), put("a", "y", 1, &[])]).expect("applies");
        knowledge.apply(vec![put("a", "x", 2, &[("new", [0.0, 1.0])])]).expect("applies");
        assert_eq!((knowledge.epoch(), texts(&knowledge, "a")), (2, vec!["new".to_owned()]));
    }
    let knowledge = knowledge(&Store::open(folder.path()).expect("opens again"));
    assert_eq!(found(&knowledge, "a", [0.0, 1.0]), [("new".to_owned(), 1.0)]);
    assert_eq!((knowledge.stats().articles, knowledge.epoch()), (2, 0));
}

#[test]
fn a_change_replaces_text_vector_and_cached_chunk() {
    let knowledge = knowledge(&Store::memory());
    let [text, long] = [[1.0, 0.0], [0.0, 1.0]];
    knowledge.apply(vec![put("a", "x", 1, &[("one", text), ("two", long)])]).expect("applies");
    assert_eq!(texts(&knowledge, "a"), ["one", "two"]);
    let summary = knowledge.apply(vec![put("a", "x", 2, &[("uno", long)])]).expect("applies");
    assert_eq!(summary.chunks_changed, 2, "one changed, one gone");
    assert_eq!(found(&knowledge, "a", text), [("uno".to_owned(), 0.0)]);
    let summary = knowledge.apply(vec![delete("a", "x"), delete("a", "unknown")]).expect("applies");
    assert_eq!((summary.articles_deleted, summary.chunks_changed), (1, 1));
    assert_eq!(texts(&knowledge, "a"), Vec::<String>::new());
    assert_eq!((knowledge.stats().articles, knowledge.stats().chunks), (0, 0));
}

#[test]
fn only_a_change_of_content_drops_cached_answers() {
    let check = |name: &str, change: ArticleChange, chunks_changed: usize, left: &[u64]| {
        let store = Store::memory();
        let knowledge = knowledge(&store);
        let before = put("a", "x", 1, &[("Thirty days", [1.0, 0.0]), ("by post", [0.0, 1.0])]);
        knowledge.apply(vec![before]).expect("applies");
        with_entries(&store, &["a", "b", "a"]);
        let summary = knowledge.apply(vec![change]).expect("applies");
        let expected = (chunks_changed, 3 - left.len());
        assert_eq!((summary.chunks_changed, summary.entries_dropped), expected, "{name}");
        assert_eq!(entries_left(&store), left, "{name}");
    };
    let (days, post) = (("Thirty days", [1.0, 0.0]), ("by post", [0.0, 1.0]));
    check("nothing but the version", put("a", "x", 2, &[days, post]), 0, &[0, 1, 2]);
    check("case and white space", put("a", "x", 2, &[("thirty  DAYS", [0.9, 0.1]), post]), 0, &[0, 1, 2]);
    check("another text", put("a", "x", 2, &[("sixty days", [1.0, 0.0]), post]), 1, &[1]);
    check("a chunk less", put("a", "x", 2, &[days]), 1, &[1]);
    check("a chunk more", put("a", "x", 2, &[days, post, days]), 1, &[1]);
    check("chunks exchanged", put("a", "x", 2, &[post, days]), 2, &[1]);
    check("a new article", put("a", "y", 1, &[days]), 1, &[1]);
    check("an empty article", put("a", "y", 1, &[]), 0, &[0, 1, 2]);
    check("deleted", delete("a", "x"), 2, &[1]);
    check("nothing deleted", delete("a", "y"), 0, &[0, 1, 2]);
    check("another tenant", put("b", "x", 1, &[days]), 1, &[0, 2]);
}

#[test]
fn a_cosmetic_change_shows_the_new_text_and_its_own_score() {
    let knowledge = knowledge(&Store::memory());
    knowledge.apply(vec![put("a", "x", 1, &[("Text", [1.0, 0.0])])]).expect("applies");
    assert_eq!(found(&knowledge, "a", [1.0, 0.0]), [("Text".to_owned(), 1.0)]);
    knowledge.apply(vec![put("a", "x", 2, &[("text", [0.5, 0.5])])]).expect("applies");
    assert_eq!(found(&knowledge, "a", [1.0, 0.0]), [("text".to_owned(), 0.5)]);
}

#[test]
fn the_last_change_of_an_article_counts() {
    let knowledge = knowledge(&Store::memory());
    let one = [1.0, 0.0];
    let changes = vec![
        put("a", "x", 1, &[("first", one), ("second", one)]),
        delete("a", "y"),
        put("a", "x", 2, &[("third", one)]),
        put("a", "y", 1, &[("fourth", [0.0, 1.0])]),
        put("a", "z", 1, &[("fifth", one)]),
        delete("a", "z"),
    ];
    let summary = knowledge.apply(changes).expect("applies");
    assert_eq!((summary.articles_written, summary.articles_deleted, summary.chunks_changed), (2, 0, 2));
    assert_eq!(texts(&knowledge, "a"), ["third", "fourth"]);
    assert_eq!(knowledge.stats().articles, 2);
}

#[test]
fn what_cannot_be_indexed_is_not_written_either() {
    let store = Store::memory();
    let knowledge = knowledge(&store);
    knowledge.apply(vec![put("a", "x", 1, &[("kept", [1.0, 0.0])])]).expect("applies");
    with_entries(&store, &["a"]);
    let check = |tenant: &str, vectors: &[&[f32]], expected: &str| {
        let cut = |(at, vector): (usize, &&[f32])| chunk(tenant, "y", at as u32, 1, "text", vector);
        let chunks = vectors.iter().enumerate().map(cut).collect();
        let good = put("a", "x", 2, &[("changed", [0.0, 1.0])]);
        let bad = ArticleChange::Put { tenant: id(tenant), article: article("y", 1), chunks };
        let error = knowledge.apply(vec![good, bad]).expect_err("refused");
        assert_eq!(error.to_string(), expected);
    };
    check("a", &[&[1.0]], "a vector of 1 numbers where 2 are expected");
    check("a", &[&[1.0, f32::NAN]], "a vector holds a number that is not finite");
    check("new", &[&[1.0], &[1.0, 0.0]], "a vector of 2 numbers where 1 are expected");
    let foreign = ArticleChange::Put {
        tenant: id("a"),
        article: article("x", 2),
        chunks: vec![chunk("b", "x", 0, 2, "text", &[1.0, 0.0])],
    };
    assert!(matches!(knowledge.apply(vec![foreign]), Err(StateError::ForeignChunk { .. })));
    assert_eq!(texts(&knowledge, "a"), ["kept"]);
    assert_eq!((entries_left(&store), knowledge.epoch()), (vec![0], 1));
    assert_eq!(texts(&self::knowledge(&store), "a"), ["kept"]);
}

#[test]
fn hot_chunks_come_from_the_cache() {
    let knowledge = knowledge(&Store::memory());
    knowledge.apply(vec![put("a", "x", 1, &[("one", [1.0, 0.0]), ("two", [0.0, 1.0])])]).expect("applies");
    for _ in 0..3 {
        texts(&knowledge, "a");
    }
    let CacheStats { hits, misses, entries, bytes, .. } = knowledge.stats().cache;
    assert_eq!((hits, misses, entries), (4, 2, 2));
    assert!(bytes > 0 && bytes <= CACHE_BYTES);
    knowledge.apply(vec![put("a", "x", 2, &[("one", [1.0, 0.0])])]).expect("applies");
    assert_eq!(knowledge.stats().cache.entries, 0, "what was written is not hot any more");
}

#[test]
fn a_large_knowledge_base_changes_regime_while_it_is_served() {
    let knowledge = knowledge(&Store::memory());
    let mut random = Random(11);
    let mut import = |articles: std::ops::Range<u32>| -> Vec<_> {
        let import = articles.map(|number| {
            let name = format!("a{number}");
            let chunks = vec![chunk("a", &name, 0, 1, &name, &random.unit(16))];
            ArticleChange::Put { tenant: id("a"), article: article(&name, 1), chunks }
        });
        import.collect()
    };
    knowledge.apply(import(0..1_900)).expect("applies");
    knowledge.apply(import(1_900..2_300)).expect("applies");
    knowledge.apply(import(0..900)).expect("applies");
    assert_eq!(knowledge.stats().chunks, 2_300);
    knowledge.apply((0..1_500).map(|number| delete("a", &format!("a{number}"))).collect()).expect("applies");
    assert_eq!((knowledge.stats().chunks, knowledge.stats().articles), (800, 800));
    let found = knowledge.search(&id("a"), &Random(1).unit(16), 800).expect("searches");
    assert_eq!(found.len(), 800);
}

#[test]
fn a_search_never_mixes_versions() {
    const WRITES: u64 = 300;
    let knowledge = knowledge(&Store::memory());
    // Version and vector go together, so a score tells which version it was computed from.
    let angle = |version: u64| version as f32 * 0.004;
    let write = |version: u64| {
        let vector = [angle(version).cos(), angle(version).sin()];
        let text = format!("text {version}");
        knowledge.apply(vec![put("a", "x", version, &[(&text, vector), (&text, vector)])]).expect("applies");
    };
    write(1);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut newest = 0;
                while !is_over.load(Ordering::Acquire) {
                    let acknowledged = knowledge.epoch();
                    let found = knowledge.search(&id("a"), &[1.0, 0.0], 2).expect("searches");
                    assert_eq!(found.len(), 2, "a search waits rather than to leave something out");
                    for found in found {
                        let version = found.chunk.version;
                        assert_eq!(found.chunk.text, format!("text {version}"));
                        assert!((found.score - angle(version).cos()).abs() < 1e-6, "score of another version");
                        assert!(version >= acknowledged && version >= newest, "{version} after {newest}");
                        newest = newest.max(version);
                    }
                }
            });
        }
        for version in 2..=WRITES {
            write(version);
        }
        is_over.store(true, Ordering::Release);
    });
    assert_eq!(knowledge.epoch(), WRITES);
}
