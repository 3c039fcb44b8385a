"""Decoders of other projects, for `generate.rs`, which starts this and asks for times.

    python generate_peers.py PEER THREADS     with PEER one of llama.cpp-f16, llama.cpp-f32, torch-f32, torch-bf16

Needs `llama-cpp-python` and `gguf`, or `torch` and `transformers`; says `missing NAME` when they are not there. The weights are
random, in the shape of SmolLM2-135M. Prints `ready`, then answers each line on standard input with one line, the
milliseconds of the fastest of some steps:

    prefill TOKENS TIMES          a new sequence of so many tokens, logits after the last
    decode SEQUENCES PAST TIMES   one token of each of so many sequences that have PAST tokens, and one more with each step

A line that is empty ends it.
"""

import ctypes
import os
import sys
import tempfile
import time

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_SIZE, WIDE, VOCABULARY, CONTEXT = 576, 30, 9, 3, 64, 1536, 49152, 4096
SEQUENCES_MAX = 8


def tokens(count, seed=0):
    return [(seed + place * 7919) % VOCABULARY for place in range(count)]


def fastest(step, times):
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        step()
        best = min(best, time.perf_counter() - start)
    return best * 1e3


class LlamaCpp:
    """llama.cpp through the C interface of llama-cpp-python, so that Python is not in the times."""

    def __init__(self, kind, threads):
        import llama_cpp

        self.lib = lib = llama_cpp
        self.quiet = lib.llama_log_callback(lambda *_: None)
        lib.llama_log_set(self.quiet, ctypes.c_void_p(0))
        lib.llama_backend_init()
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "random.gguf")
            write_gguf(path, kind)
            params = lib.llama_model_default_params()
            params.use_mmap = False
            self.model = lib.llama_model_load_from_file(path.encode(), params)
        assert self.model, "llama.cpp did not load the weights"
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = SEQUENCES_MAX * 1024, 512, 512
        params.n_seq_max = SEQUENCES_MAX
        params.n_threads = params.n_threads_batch = threads
        self.context = lib.llama_init_from_model(self.model, params)
        assert self.context, "llama.cpp made no context"
        self.memory = lib.llama_get_memory(self.context)
        self.batch = lib.llama_batch_init(512, 0, 1)

    def run(self, rows):
        """Rows of (token, place, sequence, whether its logits are wanted)."""
        self.batch.n_tokens = len(rows)
        for row, (token, place, sequence, wanted) in enumerate(rows):
            self.batch.token[row], self.batch.pos[row] = token, place
            self.batch.n_seq_id[row], self.batch.seq_id[row][0] = 1, sequence
            self.batch.logits[row] = wanted

    def decode(self):
        assert self.lib.llama_decode(self.context, self.batch) == 0
        # Waits for the logits and reads one of them.
        return self.lib.llama_get_logits_ith(self.context, -1)[0]

    def fill(self, sequence, count):
        self.lib.llama_memory_seq_rm(self.memory, sequence, -1, -1)
        rows = tokens(count, sequence)
        self.run([(token, place, sequence, place + 1 == count) for place, token in enumerate(rows)])

    def prefill(self, count, times):
        def step():
            self.fill(0, count)
            start = time.perf_counter()
            self.decode()
            return time.perf_counter() - start

        return min(step() for _ in range(times)) * 1e3

    def decode_all(self, sequences, past, times):
        for sequence in range(sequences):
            self.fill(sequence, past)
            self.decode()
        best = float("inf")
        for place in range(past, past + times):
            self.run([(sequence + place, place, sequence, True) for sequence in range(sequences)])
            start = time.perf_counter()
            self.decode()
            best = min(best, time.perf_counter() - start)
        return best * 1e3


def write_gguf(path, kind):
    import gguf
    import numpy

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("no_vocab")
    random = numpy.random.default_rng(1)

    def matrix(name, outputs, inputs):
        numbers = random.standard_normal((outputs, inputs), dtype=numpy.float32) * 0.02
        writer.add_tensor(name, numbers.astype(numpy.float16 if kind == "f16" else numpy.float32))

    def norm(name):
        writer.add_tensor(name, numpy.ones(HIDDEN, dtype=numpy.float32))

    matrix("token_embd.weight", VOCABULARY, HIDDEN)
    norm("output_norm.weight")
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        norm(block + "attn_norm.weight")
        matrix(block + "attn_q.weight", HEADS * HEAD_SIZE, HIDDEN)
        matrix(block + "attn_k.weight", KV_HEADS * HEAD_SIZE, HIDDEN)
        matrix(block + "attn_v.weight", KV_HEADS * HEAD_SIZE, HIDDEN)
        matrix(block + "attn_output.weight", HIDDEN, HEADS * HEAD_SIZE)
        norm(block + "ffn_norm.weight")
        matrix(block + "ffn_gate.weight", WIDE, HIDDEN)
        matrix(block + "ffn_up.weight", WIDE, HIDDEN)
        matrix(block + "ffn_down.weight", HIDDEN, WIDE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Torch:
    """transformers on torch, as its `generate` calls the model."""

    def __init__(self, kind, threads):
        import torch
        import transformers

        self.torch, self.transformers = torch, transformers
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        config = transformers.LlamaConfig(
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            head_dim=HEAD_SIZE,
            intermediate_size=WIDE,
            vocab_size=VOCABULARY,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
        )
        self.model = transformers.LlamaForCausalLM(config).eval()
        self.model = self.model.to(torch.bfloat16 if kind == "bf16" else torch.float32)

    def forward(self, rows, cache):
        with self.torch.inference_mode():
            ids = self.torch.tensor(rows)
            return self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

    def prefill(self, count, times):
        return fastest(lambda: self.forward([tokens(count)], self.transformers.DynamicCache()), times)

    def decode_all(self, sequences, past, times):
        cache = self.transformers.DynamicCache()
        self.forward([tokens(past, sequence) for sequence in range(sequences)], cache)
        return fastest(lambda: self.forward([[sequence] for sequence in range(sequences)], cache), times)


def main():
    peer, threads = sys.argv[1], int(sys.argv[2])
    project, kind = peer.split("-")
    try:
        model = {"llama.cpp": LlamaCpp, "torch": Torch}[project](kind, threads)
    except ModuleNotFoundError as missing:
        print("missing", missing.name, flush=True)
        return
    print("ready", flush=True)
    for line in sys.stdin:
        match line.split():
            case ["prefill", count, times]:
                print(model.prefill(int(count), int(times)), flush=True)
            case ["decode", sequences, past, times]:
                print(model.decode_all(int(sequences), int(past), int(times)), flush=True)
            case _:
                return


main()
