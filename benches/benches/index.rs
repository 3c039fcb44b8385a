//! The vector index beside the exact scan, over as many vectors as a small and a large knowledge base have.

#![expect(missing_docs, reason = "criterion's macro declares the entry point")]
#![expect(clippy::expect_used, reason = "a bench may fail loudly")]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use turnflow_benches::clustered;
use turnflow_state::{IndexConfig, VectorIndex};

const DIMENSION: usize = 384;

fn search(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("nearest 10");
    for count in [1_000, 20_000] {
        let vectors = clustered(count, DIMENSION, 7);
        let items = || vectors.iter().cloned().enumerate();
        let exact =
            VectorIndex::build(IndexConfig { flat_max: usize::MAX, ..IndexConfig::default() }, items()).expect("fits");
        let index = VectorIndex::build(IndexConfig::default(), items()).expect("fits");
        let queries = clustered(256, DIMENSION, 7);
        for (name, searched) in [("exact scan", &exact), ("index", &index)] {
            let mut turn = 0;
            group.bench_function(BenchmarkId::new(name, count), |bencher| {
                bencher.iter(|| {
                    turn = (turn + 1) % queries.len();
                    searched.search(&queries[turn], 10).expect("fits")
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, search);
criterion_main!(benches);
