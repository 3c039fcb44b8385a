//! A turn that is an exact hit, from submit to its terminal event, beside the least that any such service pays: a
//! message to another thread and back.

#![expect(missing_docs, reason = "criterion's macro declares the entry point")]
#![expect(clippy::expect_used, reason = "a bench may fail loudly")]

use std::sync::atomic::{AtomicU64, Ordering};

use criterion::{Criterion, criterion_group, criterion_main};
use turnflow_benches::{ask, pipeline};
use turnflow_state::Store;

const QUESTION: &str = "How long does delivery take?";

fn exact_hit(criterion: &mut Criterion) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let mut group = criterion.benchmark_group("exact hit");

    let (to_echo, waiting) = crossbeam_channel::bounded::<tokio::sync::oneshot::Sender<String>>(64);
    std::thread::spawn(move || {
        for reply in waiting {
            // The asker may have left when the bench ends.
            let _ = reply.send(QUESTION.to_owned());
        }
    });
    group.bench_function("echo thread", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                let (reply, answer) = tokio::sync::oneshot::channel();
                to_echo.send(reply).expect("open");
                answer.await.expect("echoed")
            })
        });
    });

    let conversations = AtomicU64::new(0);
    let next = || conversations.fetch_add(1, Ordering::Relaxed);
    for workers in [1, 2] {
        let pipeline = pipeline(&runtime, Store::memory(), workers).expect("a pipeline");
        runtime.block_on(ask(&pipeline, next(), QUESTION)).expect("answered");
        group.bench_function(format!("turn, memory store, {workers} workers"), |bencher| {
            bencher.iter(|| runtime.block_on(ask(&pipeline, next(), QUESTION)).expect("answered"));
        });
        runtime.block_on(pipeline.shutdown());
    }
    let folder = tempfile::tempdir().expect("a folder");
    let pipeline = pipeline(&runtime, Store::open(folder.path()).expect("a store"), 1).expect("a pipeline");
    runtime.block_on(ask(&pipeline, next(), QUESTION)).expect("answered");
    group.bench_function("turn, synced to disk, 1 worker", |bencher| {
        bencher.iter(|| runtime.block_on(ask(&pipeline, next(), QUESTION)).expect("answered"));
    });
    runtime.block_on(pipeline.shutdown());
    group.finish();
}

criterion_group!(benches, exact_hit);
criterion_main!(benches);
