//! Tests of searching: what is found before, after and in the midst of changes.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::fixtures::{Random, delete, id, put};

const CACHE_BYTES: usize = 1 << 20;

pub(super) fn apply(knowledge: &KnowledgeBase, writes: Vec<ArticleWrite>) -> Applied {
    let applied = knowledge.apply(writes, &mut |_| ()).expect("applies");
    let refused: Vec<_> = applied.outcomes.iter().filter(|outcome| outcome.is_err()).collect();
    assert!(refused.is_empty(), "{refused:?}");
    applied
}

pub(super) fn knowledge(store: &Store) -> KnowledgeBase {
    KnowledgeBase::load(store.clone(), CACHE_BYTES).expect("loads")
}

pub(super) fn found(knowledge: &KnowledgeBase, tenant: &str, query: [f32; 2]) -> Vec<(String, f32)> {
    let found = knowledge.search(&id(tenant), &query, 10).expect("searches");
    found.into_iter().map(|found| (found.chunk.text.clone(), found.score)).collect()
}

pub(super) fn texts(knowledge: &KnowledgeBase, tenant: &str) -> Vec<String> {
    found(knowledge, tenant, [1.0, 0.0]).into_iter().map(|(text, _)| text).collect()
}

#[test]
fn tenants_share_nothing() {
    let knowledge = knowledge(&Store::memory());
    let writes = vec![
        put("a", "returns", &[("thirty days", [1.0, 0.0]), ("by post", [0.0, 1.0])]),
        put("b", "returns", &[("never", [1.0, 0.0])]),
    ];
    apply(&knowledge, writes);
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
        apply(&knowledge, vec![put("a", "x", &[("old", [1.0, 0.0])]), put::<[f32; 2]>("a", "y", &[])]);
        apply(
            &knowledge,
            vec![put("a", "x", &[("new", [0.0, 1.0]), ("more", [1.0, 0.0])]), put("b", "z", &[("b", [1.0])])],
        );
        apply(&knowledge, vec![delete("b", "z")]);
        assert_eq!(texts(&knowledge, "a"), ["more", "new"]);
    }
    let knowledge = knowledge(&Store::open(folder.path()).expect("opens again"));
    assert_eq!(found(&knowledge, "a", [0.0, 1.0]), [("new".to_owned(), 1.0), ("more".to_owned(), 0.0)]);
    assert_eq!((knowledge.stats().articles, knowledge.stats().chunks, knowledge.epoch()), (2, 2, 3));
}

#[test]
fn a_change_replaces_text_vector_and_cached_chunk() {
    let knowledge = knowledge(&Store::memory());
    let [text, long] = [[1.0, 0.0], [0.0, 1.0]];
    apply(&knowledge, vec![put("a", "x", &[("one", text), ("two", long)])]);
    assert_eq!(texts(&knowledge, "a"), ["one", "two"]);
    apply(&knowledge, vec![put("a", "x", &[("uno", long)])]);
    assert_eq!(found(&knowledge, "a", text), [("uno".to_owned(), 0.0)]);
    apply(&knowledge, vec![delete("a", "x")]);
    assert_eq!(texts(&knowledge, "a"), Vec::<String>::new());
    assert_eq!((knowledge.stats().articles, knowledge.stats().chunks), (0, 0));
}

#[test]
fn a_content_is_found_once_in_its_article() {
    let store = Store::memory();
    let [one, two] = [("Text", [1.0, 0.0]), ("more", [0.0, 1.0])];
    let served = knowledge(&store);
    apply(&served, vec![put("a", "x", &[one, two, ("text", [1.0, 0.0])]), put("a", "y", &[two])]);
    let check = |knowledge: &KnowledgeBase, expected: &[(&str, u32)]| {
        let found = knowledge.search(&id("a"), &[1.0, 0.0], 10).expect("searches");
        let mut found: Vec<_> = found.iter().map(|found| (found.chunk.text.as_str(), found.chunk.id.ordinal)).collect();
        found.sort_unstable();
        assert_eq!(found, expected);
        assert_eq!(knowledge.stats().chunks, expected.len());
    };
    // Another article may say the same.
    let expected = [("Text", 0), ("more", 0), ("more", 1)];
    check(&served, &expected);
    check(&knowledge(&store), &expected);
    // What moved is found where it is now.
    apply(&served, vec![put("a", "x", &[two, ("text", [1.0, 0.0])])]);
    let expected = [("more", 0), ("more", 0), ("text", 1)];
    check(&served, &expected);
    check(&knowledge(&store), &expected);
}

#[test]
fn a_cosmetic_change_shows_the_new_text_and_its_own_score() {
    let knowledge = knowledge(&Store::memory());
    apply(&knowledge, vec![put("a", "x", &[("Text", [1.0, 0.0])])]);
    assert_eq!(found(&knowledge, "a", [1.0, 0.0]), [("Text".to_owned(), 1.0)]);
    apply(&knowledge, vec![put("a", "x", &[("text", [0.5, 0.5])])]);
    assert_eq!(found(&knowledge, "a", [1.0, 0.0]), [("text".to_owned(), 0.5)]);
}

#[test]
fn what_cannot_be_indexed_is_not_written_either() {
    let store = Store::memory();
    let knowledge = knowledge(&store);
    apply(&knowledge, vec![put("a", "x", &[("kept", [1.0, 0.0])])]);
    let check = |tenant: &str, vectors: &[(&str, &[f32])], expected: &str| {
        let good = put("a", "x", &[("changed", [0.0, 1.0])]);
        let bad = put(tenant, "y", vectors);
        let error = knowledge.apply(vec![good, bad], &mut |_| panic!("nothing to publish")).expect_err("refused");
        assert_eq!(error.to_string(), expected);
    };
    check("a", &[("text", &[1.0])], "a vector of 1 numbers where 2 are expected");
    check("a", &[("text", &[1.0, f32::NAN])], "a vector holds a number that is not finite");
    check("new", &[("text", &[1.0]), ("more", &[1.0, 0.0])], "a vector of 2 numbers where 1 are expected");
    assert_eq!((texts(&knowledge, "a"), knowledge.epoch()), (vec!["kept".to_owned()], 1));
    let again = self::knowledge(&store);
    assert_eq!((texts(&again, "a"), again.epoch()), (vec!["kept".to_owned()], 1));
}

#[test]
fn hot_chunks_come_from_the_cache() {
    let knowledge = knowledge(&Store::memory());
    apply(&knowledge, vec![put("a", "x", &[("one", [1.0, 0.0]), ("two", [0.0, 1.0])])]);
    for _ in 0..3 {
        texts(&knowledge, "a");
    }
    let CacheStats { hits, misses, entries, bytes, .. } = knowledge.stats().cache;
    assert_eq!((hits, misses, entries), (4, 2, 2));
    assert!(bytes > 0 && bytes <= CACHE_BYTES);
    apply(&knowledge, vec![put("a", "x", &[("one", [1.0, 0.0])])]);
    assert_eq!(knowledge.stats().cache.entries, 0, "what was written is not hot any more");
}

#[test]
fn a_large_knowledge_base_changes_regime_while_it_is_served() {
    let knowledge = knowledge(&Store::memory());
    let mut random = Random(11);
    let mut import = |articles: std::ops::Range<u32>| -> Vec<_> {
        let import = articles.map(|number| {
            let name = format!("a{number}");
            put("a", &name, &[(&name, random.unit(16))])
        });
        import.collect()
    };
    apply(&knowledge, import(0..1_900));
    apply(&knowledge, import(1_900..2_300));
    apply(&knowledge, import(0..900));
    assert_eq!(knowledge.stats().chunks, 2_300);
    apply(&knowledge, (0..1_500).map(|number| delete("a", &format!("a{number}"))).collect());
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
        let [text, more] = ["text", "more"].map(|word| format!("{word} {version}"));
        apply(&knowledge, vec![put("a", "x", &[(&text, vector), (&more, vector)])]);
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
                    assert_eq!(found.len(), 2, "two came and two went, and two are always there");
                    for found in found {
                        let version = found.chunk.version;
                        assert!(found.chunk.text.ends_with(&format!(" {version}")), "{:?}", found.chunk);
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

#[test]
fn what_stays_is_found_in_the_midst_of_changes() {
    const WRITES: usize = 200;
    let knowledge = knowledge(&Store::memory());
    let others: Vec<String> = (0..50).map(|number| format!("other {number}")).collect();
    let write = |others: &[String]| {
        // What stays moves from place to place, because others come and go in front of it.
        let mut chunks: Vec<_> = others.iter().map(|text| (text.as_str(), [0.0, 1.0])).collect();
        chunks.push(("stays", [1.0, 0.0]));
        apply(&knowledge, vec![put("a", "x", &chunks)]);
    };
    apply(&knowledge, vec![put("a", "y", &[("second best", [0.8, 0.6])])]);
    write(&others);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Acquire) {
                    let found = knowledge.search(&id("a"), &[1.0, 0.0], 1).expect("searches");
                    assert_eq!(found.iter().map(|found| &found.chunk.text).collect::<Vec<_>>(), ["stays"]);
                }
            });
        }
        let mut random = Random(5);
        for _ in 0..WRITES {
            write(&others[random.below(others.len())..]);
        }
        is_over.store(true, Ordering::Release);
    });
}

#[test]
fn the_epoch_rises_when_all_of_a_change_is_searchable() {
    let knowledge = knowledge(&Store::memory());
    apply(&knowledge, vec![put("a", "x", &[("one", [1.0, 0.0])])]);
    let first = knowledge.partition(&id("a")).expect("there");
    // Nobody's first chunk can be taken over while this is held.
    let held = read(&knowledge.partitions);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            apply(&knowledge, vec![put("a", "y", &[("two", [0.0, 1.0])]), put("b", "x", &[("three", [1.0, 0.0])])]);
        });
        while first.len() < 2 && !writer.is_finished() {
            std::thread::yield_now();
        }
        assert_eq!((first.len(), knowledge.epoch()), (2, 1), "half of the change is searchable");
        drop(held);
    });
    assert_eq!((knowledge.epoch(), texts(&knowledge, "b")), (2, vec!["three".to_owned()]));
}
