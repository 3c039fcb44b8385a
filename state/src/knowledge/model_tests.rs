//! The knowledge base against the obvious: random changes, and after each all that is stored, found and published.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::change_tests::at_version;
use super::tests::knowledge;
use super::*;
use crate::fixtures::{Random, delete, id, put};
use crate::{ArticleId, ChunkKey};

const TENANTS: [&str; 2] = ["a", "b"];
const ARTICLES: [&str; 3] = ["x", "y", "z"];
/// Some of them differ in their looks only.
const TEXTS: [&str; 6] = ["one", "One!", "two", "three", "THREE", "four"];

/// A write by its parts: tenant, article, expected version, version, texts.
type Drawn = (usize, usize, Option<u64>, Option<u64>, Option<Vec<usize>>);

fn drawn() -> impl Strategy<Value = Drawn> {
    let rarely = |versions| proptest::option::weighted(0.3, versions);
    let texts = proptest::collection::vec(0..TEXTS.len(), 0..5);
    let content = proptest::option::weighted(0.7, texts);
    (0..TENANTS.len(), 0..ARTICLES.len(), rarely(0..6_u64), rarely(0..12_u64), content)
}

fn vector_of(text: &str) -> Vec<f32> {
    let seed = crate::normalise(text).bytes().map(u64::from).sum();
    Random(seed).unit(4)
}

fn write_of((tenant, article, expected_version, version, texts): &Drawn) -> ArticleWrite {
    let (tenant, article) = (TENANTS[*tenant], ARTICLES[*article]);
    let write = match texts {
        Some(texts) => {
            let texts: Vec<_> = texts.iter().map(|&text| (TEXTS[text], vector_of(TEXTS[text]))).collect();
            put(tenant, article, &texts)
        }
        None => delete(tenant, article),
    };
    let write = version.map_or(write.clone(), |version| at_version(version, write));
    ArticleWrite { expected_version: *expected_version, ..write }
}

/// What the obvious knows of an article.
#[derive(Clone, Default)]
struct Known {
    exists: bool,
    /// Every version it ever had.
    versions: Vec<u64>,
    /// Its texts, each with the epoch at which its content came.
    texts: Vec<(String, u64)>,
}

impl Known {
    fn write(&mut self, write: &ArticleWrite, epoch: u64) -> Result<u64, WriteRefused> {
        let last = self.versions.iter().max().copied().unwrap_or(0);
        let current = if self.exists { last } else { 0 };
        match (write.expected_version, &write.content) {
            (Some(expected), _) if expected != current => {
                return Err(WriteRefused::VersionMismatch { expected, current });
            }
            (_, None) if !self.exists => return Err(WriteRefused::NotFound),
            _ => (),
        }
        let given = write.content.as_ref().and_then(|content| content.version);
        let version = match given {
            Some(given) if self.versions.iter().any(|&version| version >= given) || given == 0 => {
                return Err(WriteRefused::VersionNotNewer { given, current: last });
            }
            Some(given) => given,
            None => last + 1,
        };
        let before = std::mem::take(&mut self.texts);
        for chunk in write.content.iter().flat_map(|content| &content.chunks) {
            let same = |text: &str| crate::normalise(text) == crate::normalise(&chunk.text);
            let since = before.iter().find(|(text, _)| same(text)).map_or(epoch, |(_, since)| *since);
            self.texts.push((chunk.text.clone(), since));
        }
        self.exists = write.content.is_some();
        self.versions.push(version);
        Ok(version)
    }
}

type Model = BTreeMap<(&'static str, &'static str), Known>;

/// Everything that is stored or found is what the obvious says it is.
fn agrees(knowledge: &KnowledgeBase, model: &Model) -> Result<(), TestCaseError> {
    let mut findable = BTreeMap::<&str, BTreeSet<(ChunkKey, String)>>::new();
    for (&(tenant, article), known) in model {
        let store = knowledge.store();
        let (tenant_id, article_id) = (id(tenant), id::<ArticleId>(article));
        let last = known.versions.last().copied().unwrap_or(0);
        prop_assert_eq!(store.article_version(&tenant_id, &article_id).expect("reads"), last);
        let stored = store.article(&tenant_id, &article_id).expect("reads").map(|article| article.version);
        prop_assert_eq!(stored, known.exists.then_some(last));
        let chunks = store.article_chunks(&tenant_id, &article_id).expect("reads");
        let texts: Vec<_> = chunks.iter().map(|chunk| (chunk.text.clone(), chunk.since)).collect();
        prop_assert_eq!(&texts, &known.texts);
        let mut seen = BTreeSet::new();
        let first = chunks.into_iter().filter(|chunk| seen.insert(chunk.key()));
        findable.entry(tenant).or_default().extend(first.map(|chunk| (chunk.key(), chunk.text)));
    }
    for (tenant, expected) in findable {
        let found = knowledge.search(&id(tenant), &vector_of("two"), 100).expect("searches");
        prop_assert_eq!(found.len(), expected.len());
        let found: BTreeSet<_> = found.iter().map(|found| (found.chunk.key(), found.chunk.text.clone())).collect();
        prop_assert_eq!(found, expected);
    }
    let articles = model.values().filter(|known| known.exists).count() as u64;
    prop_assert_eq!(knowledge.stats().articles, articles);
    prop_assert_eq!(knowledge.store().count_articles().expect("counts"), articles);
    prop_assert_eq!(knowledge.store().knowledge_epoch().expect("reads"), knowledge.epoch());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn what_is_published_sums_up_to_what_is_stored(
        changes in proptest::collection::vec(proptest::collection::vec(drawn(), 0..5), 0..12),
    ) {
        let knowledge = knowledge(&Store::memory());
        let mut model = Model::new();
        let mut held = BTreeSet::new();
        for mut change in changes {
            let mut named = BTreeSet::new();
            change.retain(|drawn| named.insert((drawn.0, drawn.1)));
            let writes: Vec<_> = change.iter().map(write_of).collect();
            let epoch = knowledge.epoch() + 1;
            let mut expected = Vec::new();
            for (drawn, write) in change.iter().zip(&writes) {
                let known = model.entry((TENANTS[drawn.0], ARTICLES[drawn.1])).or_default();
                expected.push(known.write(write, epoch));
            }
            let mut published = None;
            let applied = knowledge.apply(writes, &mut |applied| published = Some(applied.change.clone())).expect("applies");
            let outcomes: Vec<_> = applied.outcomes.iter().map(|outcome| outcome.map(|done| done.version)).collect();
            prop_assert_eq!(&outcomes, &expected);
            let is_written = expected.iter().any(Result::is_ok);
            prop_assert_eq!(applied.epoch, if is_written { epoch } else { epoch - 1 });
            prop_assert_eq!(published.is_some(), is_written);
            let published = published.unwrap_or(KnowledgeChange::empty(applied.epoch));
            prop_assert_eq!(&published, &applied.change);
            let counted: usize = applied.outcomes.iter().flatten().map(|outcome| outcome.chunks_changed).sum();
            prop_assert_eq!(counted, published.added.len() + published.removed.len());
            for key in published.removed {
                prop_assert!(held.remove(&key), "removed what was not there");
            }
            for (key, _) in published.added {
                prop_assert!(held.insert(key), "added what was there");
            }
            let mut stored = BTreeSet::new();
            knowledge.store().chunks(&mut |chunk| {
                stored.insert(chunk.key());
                ControlFlow::Continue(())
            }).expect("scans");
            prop_assert_eq!(&held, &stored);
            agrees(&knowledge, &model)?;
        }
        agrees(&self::knowledge(knowledge.store()), &model)?;
    }
}
