//! Tests of changes: versions, epochs, what is published and when.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::tests::{apply, found, knowledge, texts};
use super::*;
use crate::fixtures::{delete, id, put, title_of};
use crate::{ChunkKey, ContentHash};

const HERE: [f32; 2] = [1.0, 0.0];
const THERE: [f32; 2] = [0.0, 1.0];

fn key(tenant: &str, article: &str, text: &str) -> ChunkKey {
    ChunkKey::of(&id(tenant), &id(article), ContentHash::of(&title_of(article), text))
}

fn sorted(keys: impl IntoIterator<Item = ChunkKey>) -> Vec<ChunkKey> {
    let mut keys: Vec<_> = keys.into_iter().collect();
    keys.sort_unstable();
    keys
}

fn expecting(version: u64, write: ArticleWrite) -> ArticleWrite {
    ArticleWrite { expected_version: Some(version), ..write }
}

pub(super) fn at_version(version: u64, mut write: ArticleWrite) -> ArticleWrite {
    if let Some(content) = &mut write.content {
        content.version = Some(version);
    }
    write
}

fn one(tenant: &str, article: &str) -> ArticleWrite {
    put(tenant, article, &[("one", HERE)])
}

/// What becomes of a single write.
fn outcome(knowledge: &KnowledgeBase, write: ArticleWrite) -> Result<u64, WriteRefused> {
    let applied = knowledge.apply(vec![write], &mut |_| ()).expect("applies");
    assert_eq!(applied.outcomes.len(), 1);
    applied.outcomes[0].map(|outcome| outcome.version)
}

#[test]
fn versions_are_checked_and_only_rise() {
    let mismatch = |expected, current| Err(WriteRefused::VersionMismatch { expected, current });
    let not_newer = |given, current| Err(WriteRefused::VersionNotNewer { given, current });
    let check = |name: &str, before: Vec<ArticleWrite>, write: ArticleWrite, expected: Result<u64, WriteRefused>| {
        let knowledge = knowledge(&Store::memory());
        for write in before {
            apply(&knowledge, vec![write]);
        }
        let epoch = knowledge.epoch();
        let last = knowledge.store().article_version(&id("a"), &id("x")).expect("reads");
        assert_eq!(outcome(&knowledge, write), expected, "{name}");
        assert_eq!(knowledge.epoch(), epoch + u64::from(expected.is_ok()), "{name}");
        let now = knowledge.store().article_version(&id("a"), &id("x")).expect("reads");
        assert_eq!(now, expected.unwrap_or(last), "{name}");
    };
    let x = || one("a", "x");
    let gone = || vec![at_version(4, x()), delete("a", "x")];
    check("the first", vec![], x(), Ok(1));
    check("the next, though nothing changed", vec![x()], x(), Ok(2));
    check("a version of its own", vec![x()], at_version(7, x()), Ok(7));
    check("the one after that", vec![at_version(7, x())], x(), Ok(8));
    check("the same version", vec![at_version(7, x())], at_version(7, x()), not_newer(7, 7));
    check("no version", vec![], at_version(0, x()), not_newer(0, 0));
    check("the last that there is", vec![at_version(u64::MAX, x())], x(), not_newer(u64::MAX, u64::MAX));
    check("as expected", vec![x()], expecting(1, x()), Ok(2));
    check("older than expected", vec![x()], expecting(2, x()), mismatch(2, 1));
    check("newer than expected", vec![x(), x()], expecting(1, x()), mismatch(1, 2));
    check("expected to be new", vec![], expecting(0, x()), Ok(1));
    check("expected to be new, and is not", vec![x()], expecting(0, x()), mismatch(0, 1));
    check("a mismatch counts first", vec![x(), x()], expecting(1, at_version(1, x())), mismatch(1, 2));
    check("deleted", vec![x()], delete("a", "x"), Ok(2));
    check("deleted as expected", vec![x()], expecting(1, delete("a", "x")), Ok(2));
    check("deleted in vain", vec![x()], expecting(3, delete("a", "x")), mismatch(3, 1));
    check("deleted at the last version", vec![at_version(u64::MAX, x())], delete("a", "x"), Ok(u64::MAX));
    check("nothing to delete", vec![], delete("a", "x"), Err(WriteRefused::NotFound));
    check("nothing to delete, as expected", vec![], expecting(0, delete("a", "x")), Err(WriteRefused::NotFound));
    check("something to delete expected", gone(), expecting(4, delete("a", "x")), mismatch(4, 0));
    check("deleted twice", gone(), delete("a", "x"), Err(WriteRefused::NotFound));
    check("restored", gone(), x(), Ok(6));
    check("restored, expected to be gone", gone(), expecting(0, x()), Ok(6));
    check("restored at a version before", gone(), at_version(5, x()), not_newer(5, 5));
    check("restored at a version of its own", gone(), at_version(6, x()), Ok(6));
}

#[test]
fn a_refused_write_leaves_the_others_alone() {
    let knowledge = knowledge(&Store::memory());
    apply(&knowledge, vec![put("a", "x", &[("old", HERE)]), put("a", "y", &[("kept", THERE)])]);
    let writes = vec![
        expecting(7, put("a", "y", &[("lost", HERE)])),
        put("a", "x", &[("new", HERE), ("old", HERE)]),
        delete("a", "z"),
        put::<[f32; 2]>("b", "x", &[]),
    ];
    let applied = knowledge.apply(writes, &mut |_| ()).expect("applies");
    let expected = [
        Err(WriteRefused::VersionMismatch { expected: 7, current: 1 }),
        Ok(ArticleOutcome { version: 2, existed: true, chunks: 2, chunks_changed: 1 }),
        Err(WriteRefused::NotFound),
        Ok(ArticleOutcome { version: 1, existed: false, chunks: 0, chunks_changed: 0 }),
    ];
    assert_eq!(applied.outcomes, expected);
    assert_eq!((applied.epoch, applied.change.epoch, knowledge.epoch()), (2, 2, 2));
    let mut texts = texts(&knowledge, "a");
    texts.sort_unstable();
    assert_eq!(texts, ["kept", "new", "old"]);
    assert_eq!(knowledge.stats().articles, 3);
}

#[test]
fn when_all_is_refused_nothing_happens() {
    let knowledge = knowledge(&Store::memory());
    apply(&knowledge, vec![one("a", "x")]);
    for writes in [vec![], vec![expecting(2, one("a", "x")), delete("a", "y")]] {
        let count = writes.len();
        let applied = knowledge.apply(writes, &mut |_| panic!("nothing to publish"));
        let Applied { epoch, outcomes, change } = applied.expect("applies");
        assert_eq!((epoch, change), (1, KnowledgeChange { epoch: 1, added: vec![], removed: vec![] }));
        assert!(outcomes.len() == count && outcomes.iter().all(Result::is_err));
        assert_eq!((knowledge.epoch(), knowledge.store().knowledge_epoch().expect("reads")), (1, 1));
    }
}

#[test]
fn an_article_is_named_once_in_a_change() {
    let knowledge = knowledge(&Store::memory());
    apply(&knowledge, vec![one("a", "x")]);
    let writes = vec![put("a", "y", &[("new", HERE)]), delete("a", "x"), one("b", "x"), one("a", "x")];
    let error = knowledge.apply(writes, &mut |_| panic!("nothing to publish")).expect_err("refused");
    assert_eq!(error.to_string(), "article a/x is named more than once in one change");
    assert_eq!((texts(&knowledge, "a"), knowledge.epoch()), (vec!["one".to_owned()], 1));
    // The same name of two tenants is two articles.
    apply(&knowledge, vec![one("a", "x"), one("b", "x")]);
}

#[test]
fn versions_and_epochs_outlive_a_restart() {
    let folder = tempfile::tempdir().expect("folder");
    {
        let knowledge = knowledge(&Store::open(folder.path()).expect("opens"));
        let mut first = at_version(9, one("a", "x"));
        first.content.as_mut().expect("content").metadata.insert("language".to_owned(), "en".to_owned());
        apply(&knowledge, vec![first, one("a", "y")]);
        apply(&knowledge, vec![delete("a", "y")]);
        assert_eq!(outcome(&knowledge, delete("a", "y")), Err(WriteRefused::NotFound));
    }
    let store = Store::open(folder.path()).expect("opens again");
    let knowledge = knowledge(&store);
    assert_eq!((knowledge.epoch(), store.knowledge_epoch().expect("reads")), (2, 2));
    let article = store.article(&id("a"), &id("x")).expect("reads").expect("there");
    assert_eq!((article.version, article.metadata["language"].as_str()), (9, "en"));
    assert_eq!((knowledge.stats().articles, store.count_articles().expect("counts")), (1, 1));
    assert_eq!(store.article(&id("a"), &id("y")).expect("reads"), None);
    assert_eq!(store.article_version(&id("a"), &id("y")).expect("reads"), 2);
    let restored = apply(&knowledge, vec![one("a", "y")]);
    let expected = ArticleOutcome { version: 3, existed: false, chunks: 1, chunks_changed: 1 };
    assert_eq!((restored.epoch, restored.outcomes), (3, vec![Ok(expected)]));
    // A content that comes back is new.
    assert_eq!(store.article_chunks(&id("a"), &id("y")).expect("reads")[0].since, 3);
}

#[test]
fn a_change_tells_which_contents_came_and_went() {
    let check = |name: &str, write: ArticleWrite, added: &[ChunkKey], removed: &[ChunkKey]| {
        let knowledge = knowledge(&Store::memory());
        apply(&knowledge, vec![put("a", "x", &[("Thirty days", HERE), ("by post", THERE)])]);
        let mut published = Vec::new();
        let applied =
            knowledge.apply(vec![write], &mut |applied| published.push(applied.change.clone())).expect("applies");
        assert_eq!(sorted(applied.change.added.iter().map(|(key, _)| *key)), sorted(added.to_vec()), "{name}");
        assert_eq!(sorted(applied.change.removed.clone()), sorted(removed.to_vec()), "{name}");
        let changed = applied.outcomes[0].map(|outcome| outcome.chunks_changed);
        assert_eq!(changed, Ok(added.len() + removed.len()), "{name}");
        // Whatever it says, it is written, takes an epoch and is published once.
        assert_eq!((applied.epoch, knowledge.epoch()), (2, 2), "{name}");
        assert_eq!(published, [applied.change], "{name}");
    };
    let [days, post] = [("Thirty days", HERE), ("by post", THERE)];
    let [days_key, post_key] = ["thirty days", "by post"].map(|text| key("a", "x", text));
    check("nothing but the version", put("a", "x", &[days, post]), &[], &[]);
    check("case and white space", put("a", "x", &[("thirty  DAYS", [0.9, 0.1]), post]), &[], &[]);
    let sixty = key("a", "x", "sixty days");
    check("another text", put("a", "x", &[("sixty days", HERE), post]), &[sixty], &[days_key]);
    check("one in front", put("a", "x", &[("sixty days", HERE), days, post]), &[sixty], &[]);
    check("a chunk less", put("a", "x", &[post]), &[], &[days_key]);
    check("a chunk twice", put("a", "x", &[days, post, days]), &[], &[]);
    check("chunks exchanged", put("a", "x", &[post, days]), &[], &[]);
    check("a new article", put("a", "y", &[days, days]), &[key("a", "y", "thirty days")], &[]);
    check("an empty article", put::<[f32; 2]>("a", "y", &[]), &[], &[]);
    check("emptied", put::<[f32; 2]>("a", "x", &[]), &[], &[days_key, post_key]);
    check("deleted", delete("a", "x"), &[], &[days_key, post_key]);
    check("another tenant", put("b", "x", &[days]), &[key("b", "x", "thirty days")], &[]);
    let mut noted = put("a", "x", &[days, post]);
    noted.content.as_mut().expect("content").metadata.insert("colour".to_owned(), "red".to_owned());
    check("metadata", noted, &[], &[]);
}

#[test]
fn what_came_is_published_with_its_vector() {
    let knowledge = knowledge(&Store::memory());
    let applied = apply(&knowledge, vec![put("a", "x", &[("one", HERE), ("two", THERE), ("ONE", [0.6, 0.8])])]);
    let expected = [(key("a", "x", "one"), HERE.as_slice().into()), (key("a", "x", "two"), THERE.as_slice().into())];
    assert_eq!(applied.change.added, expected, "each once, as it is first written, in order");
}

#[test]
fn a_cosmetic_change_shows_text_and_version() {
    let knowledge = knowledge(&Store::memory());
    apply(&knowledge, vec![put("a", "x", &[("Text", HERE)])]);
    assert_eq!(found(&knowledge, "a", HERE), [("Text".to_owned(), 1.0)]);
    apply(&knowledge, vec![put("a", "x", &[("text!", HERE)])]);
    let found = knowledge.search(&id("a"), &HERE, 1).expect("searches");
    assert_eq!((found[0].chunk.text.as_str(), found[0].chunk.version, found[0].chunk.since), ("text!", 2, 1));
}

#[test]
fn a_content_keeps_the_epoch_it_came_with() {
    let knowledge = knowledge(&Store::memory());
    let check = |texts: &[&str], expected: &[u64]| {
        let chunks: Vec<_> = texts.iter().map(|text| (*text, HERE)).collect();
        let epoch = apply(&knowledge, vec![put("a", "x", &chunks)]).epoch;
        let stored = knowledge.store().article_chunks(&id("a"), &id("x")).expect("reads");
        assert_eq!(stored.iter().map(|chunk| chunk.since).collect::<Vec<_>>(), expected, "{texts:?}");
        assert!(stored.iter().all(|chunk| chunk.version == epoch), "each epoch here is a version of the article");
    };
    check(&["one", "two"], &[1, 1]);
    check(&["new", "one", "two"], &[2, 1, 1]);
    check(&["two", "ONE", "new", "one", "other"], &[1, 1, 2, 1, 3]);
    check(&["new", "two"], &[2, 1]);
    check(&["one", "two"], &[5, 1]);
}

#[test]
fn a_change_is_published_between_store_and_index() {
    let store = Store::memory();
    let knowledge = knowledge(&store);
    apply(&knowledge, vec![put("a", "x", &[("old", HERE)])]);
    let mut published = Vec::new();
    let publish = &mut |applied: &Applied| {
        let chunks = store.article_chunks(&id("a"), &id("x")).expect("reads");
        let texts: Vec<_> = chunks.iter().map(|chunk| chunk.text.clone()).collect();
        assert_eq!((texts, store.knowledge_epoch().expect("reads")), (vec!["new".to_owned(), "more".to_owned()], 2));
        assert_eq!((knowledge.epoch(), knowledge.stats().chunks), (1, 1), "not yet searchable");
        published.push(applied.epoch);
    };
    knowledge.apply(vec![put("a", "x", &[("new", HERE), ("more", THERE)])], publish).expect("applies");
    assert_eq!((published, knowledge.epoch()), (vec![2], 2));
    assert_eq!(texts(&knowledge, "a"), ["new", "more"]);
}

#[test]
fn changes_are_published_in_the_order_of_their_epochs() {
    const THREADS: u64 = 4;
    const WRITES: u64 = 50;
    let knowledge = knowledge(&Store::memory());
    let published = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (knowledge, published) = (&knowledge, &published);
            scope.spawn(move || {
                for number in 0..WRITES {
                    let write = put("a", &format!("x{thread}"), &[(&format!("text {number}"), HERE)]);
                    let publish = &mut |applied: &Applied| {
                        assert_eq!(knowledge.epoch() + 1, applied.epoch);
                        lock(published).push(applied.epoch);
                    };
                    let applied = knowledge.apply(vec![write], publish).expect("applies");
                    assert!(knowledge.epoch() >= applied.epoch);
                }
            });
        }
    });
    assert_eq!(*lock(&published), (1..=THREADS * WRITES).collect::<Vec<_>>());
}

#[test]
fn after_a_change_that_broke_off_nothing_is_changed() {
    let store = Store::memory();
    let served = knowledge(&store);
    apply(&served, vec![put("a", "x", &[("old", HERE)])]);
    let broken = catch_unwind(AssertUnwindSafe(|| {
        served.apply(vec![put("a", "x", &[("new", HERE)])], &mut |_| panic!("on purpose"))
    }));
    assert!(broken.is_err());
    assert_eq!(texts(&served, "a"), Vec::<String>::new(), "neither the old text nor one that was not published");
    let error = served.apply(vec![one("a", "y")], &mut |_| panic!("nothing to publish")).expect_err("refused");
    assert!(matches!(error, StateError::Poisoned { .. }), "{error}");
    // What was written is there after a restart.
    let again = knowledge(&store);
    assert_eq!((texts(&again, "a"), again.epoch()), (vec!["new".to_owned()], 2));
}
