//! What a pipeline tells of the turns that it answered, at 1, 2 and 3 workers.

#![expect(clippy::expect_used, reason = "a test may fail loudly")]

mod support;

use support::{ask, asked, at_each, ended, tenant, turn};
use turnflow_pipeline::{Pipeline, Submission, Tally, Wishes};
use turnflow_state::{CacheControl, CacheLevel, Stage, TenantId, Tier, Turn, TurnErrorKind};

fn tally_of(pipeline: &Pipeline, tenant: &TenantId) -> Tally {
    let tallies = pipeline.tally().into_iter();
    tallies.filter(|(name, _)| name.as_ref() == Some(tenant)).map(|(_, tally)| tally).next().unwrap_or_default()
}

#[test]
fn every_turn_is_counted_once_by_what_became_of_it() {
    at_each(
        |config| {
            config.cache.similarity_min = 0.8;
            config.tier.price.input_per_million = 1.0;
        },
        |pipeline| async move {
            let first = ask(&pipeline, "c1", "How long does delivery take?").await;
            ask(&pipeline, "c2", "how long does  DELIVERY take").await;
            ask(&pipeline, "c3", "how long does the delivery take?").await;
            let earlier = tally_of(&pipeline, &tenant());
            // The same turn id again, small talk, a caller that passes the caches by, and one that wants nothing else.
            ask(&pipeline, "c1", "How long does delivery take?").await;
            ask(&pipeline, "c4", "thank you!").await;
            asked(&pipeline, Turn { cache_control: CacheControl::Bypass, ..turn("c5", "1", "Do gift cards expire?") })
                .await;
            let wishes = Wishes { only_cached: true, ..Wishes::default() };
            let only_cached = Submission { wishes, ..turn("c6", "1", "How do I clean my kettle?").into() };
            ended(pipeline.submit_with(only_cached).await.expect("admitted")).await.expect_err("in no cache");
            pipeline.submit(turn("c7", "1", " ")).await.expect_err("empty");
            let other = TenantId::new("other").expect("valid");
            asked(&pipeline, Turn { tenant: other.clone(), ..turn("c1", "1", "Do gift cards expire?") }).await;

            let tally = tally_of(&pipeline, &tenant());
            let levels = CacheLevel::ALL.iter().map(|&level| (level, tally.answered_at(level)));
            let expected = [
                (CacheLevel::Exact, 1),
                (CacheLevel::Semantic, 1),
                (CacheLevel::Joined, 0),
                (CacheLevel::Miss, 2),
                (CacheLevel::Bypass, 1),
            ];
            assert_eq!(levels.collect::<Vec<_>>(), expected);
            let scripted: u64 = tally.answered.iter().map(|tiers| tiers[Tier::Scripted as usize]).sum();
            assert_eq!((scripted, tally.repeated, tally.cancelled), (1, 1, 0));
            let failed = TurnErrorKind::ALL.iter().zip(tally.failed).filter(|&(_, count)| count > 0);
            let expected = [(&TurnErrorKind::Invalid, 1), (&TurnErrorKind::Uncached, 1)];
            assert_eq!(failed.collect::<Vec<_>>(), expected);

            for level in CacheLevel::ALL {
                let (whole, first) = (&tally.whole[*level as usize], &tally.first_piece[*level as usize]);
                assert_eq!((whole.count(), first.count()), (tally.answered_at(*level), tally.answered_at(*level)));
                assert!(first.sum_us <= whole.sum_us, "{level}: {first:?} before {whole:?}");
            }
            assert_eq!(tally.stages[Stage::Generate as usize].count(), 2, "what a tier wrote");
            let since = tally.since(&earlier);
            assert_eq!((since.answered_at(CacheLevel::Exact), since.answered_at(CacheLevel::Miss)), (0, 1));

            let tokens = u64::from(first.usage.input_tokens + first.usage.output_tokens);
            assert_eq!(tally.account.saved_tokens, 2 * tokens, "two turns were served what one took");
            assert_eq!(tally.account.saved_cost_micros, 2 * first.cost_micros);
            assert_eq!(tally_of(&pipeline, &other).answered_at(CacheLevel::Miss), 1, "tenants are told apart");
        },
    );
}
