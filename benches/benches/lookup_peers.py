#!/usr/bin/env python3
"""One look-up of a similar question in other caches, over the vectors that the bench `lookup` wrote.

usage: lookup_peers.py VECTORS.bin (pip install numpy hnswlib gptcache faiss-cpu sqlalchemy)

hnswlib: the index alone, with the settings of Turnflow's index, one thread. GPTCache: its `get` as shipped, with faiss and
sqlite, an embedding function that looks the vector up, and the similarity that it evaluates by default.
"""
import json, os, sys, tempfile, time

import numpy as np


def percentiles(name, seconds):
    us = np.sort(np.array(seconds)) * 1e6
    print(f"  {name:<18} p50 {us[len(us) // 2]:9.1f} µs  p99 {us[int(len(us) * 0.99)]:9.1f} µs", flush=True)


def with_hnswlib(entries, queries, k=10):
    import hnswlib

    index = hnswlib.Index(space="ip", dim=entries.shape[1])
    index.init_index(max_elements=len(entries), M=16, ef_construction=200)
    index.set_num_threads(1)
    index.add_items(entries)
    index.set_ef(64)
    times, found = [], 0
    exact = np.argpartition(-(queries @ entries.T), k, axis=1)[:, :k]
    for at, query in enumerate(queries):
        start = time.perf_counter()
        labels, _ = index.knn_query(query, k=k)
        times.append(time.perf_counter() - start)
        found += len(set(labels[0].tolist()) & set(exact[at].tolist()))
    percentiles("hnswlib", times)
    print(f"  recall@{k} {found / (k * len(queries)):.4f}")


def with_gptcache(entries, queries):
    from gptcache import Cache, Config
    from gptcache.adapter.api import get
    from gptcache.manager import CacheBase, VectorBase, get_data_manager
    from gptcache.processor.pre import get_prompt
    from gptcache.similarity_evaluation.distance import SearchDistanceEvaluation

    folder = tempfile.mkdtemp()
    vectors = {f"e{at}": vector for at, vector in enumerate(entries)} | {f"q{at}": vector for at, vector in enumerate(queries)}
    manager = get_data_manager(
        CacheBase("sqlite", sql_url=f"sqlite:///{folder}/cache.db"),
        VectorBase("faiss", dimension=entries.shape[1], index_path=os.path.join(folder, "faiss.index")),
        max_size=2 * len(entries),
    )
    cache = Cache()
    cache.init(
        pre_embedding_func=get_prompt,
        embedding_func=lambda text, **_: vectors[text],
        data_manager=manager,
        similarity_evaluation=SearchDistanceEvaluation(),
        config=Config(similarity_threshold=0.8),
    )
    for from_ in range(0, len(entries), 1_000):
        names = [f"e{at}" for at in range(from_, min(from_ + 1_000, len(entries)))]
        manager.import_data(names, ["An answer."] * len(names), [vectors[name] for name in names], [None] * len(names))
    times = []
    for at in range(len(queries)):
        start = time.perf_counter()
        get(f"q{at}", cache_obj=cache)
        times.append(time.perf_counter() - start)
    percentiles("GPTCache", times)


def main():
    with open(sys.argv[1], "rb") as file:
        head = json.loads(file.readline())
        numbers = np.frombuffer(file.read(), dtype="<f4").reshape(-1, head["dimension"])
    entries, queries = numbers[: head["entries"]], numbers[head["entries"] :]
    print(f"{len(entries)} entries of {head['dimension']} numbers, {len(queries)} questions, one thread")
    for peer in (with_hnswlib, with_gptcache):
        try:
            peer(entries, queries)
        except ImportError as missing:
            print(f"  not installed: {missing}")


main()
