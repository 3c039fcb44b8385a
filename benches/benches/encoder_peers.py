"""The sentence encoder on another runtime, for `encoder.rs`, which starts this and asks for times.

    python encoder_peers.py PEER THREADS FOLDER     with PEER one of onnxruntime-f32, onnxruntime-int8, torch-f32

Needs `numpy`, and `onnx` and `onnxruntime`, or `torch`; says `missing NAME` when they are not there. FOLDER holds the encoder's
`model.safetensors`. onnxruntime's graph is written in the operators that its own optimizer makes of BERT (Attention,
SkipLayerNormalization, BiasGelu), and its dynamic quantization makes the int8 of it; torch has its fused attention. Prints `ready`, then answers each line on standard input with one line:

    forward BATCH TOKENS TIMES    milliseconds of the fastest of so many passes of equally long texts; on one thread, those that the
                                  system gave it
    vector TOKENS                 the vector of one such text, to compare with
    memory                        bytes by which the process has grown since before the model was loaded

A line that is empty ends it.
"""

import json
import os
import resource
import sys
import tempfile
import time

LAYERS, HEADS, HIDDEN, VOCABULARY = 6, 12, 384, 30522


def tokens(count):
    return [101] + [1000 + place * 7919 % (VOCABULARY - 1000) for place in range(count - 2)] + [102]


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def read_weights(folder):
    """Tensors of a safetensors file, by name."""
    import numpy

    with open(os.path.join(folder, "model.safetensors"), "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    header.pop("__metadata__", None)
    floats = {name: entry for name, entry in header.items() if entry["dtype"] == "F32"}
    span = lambda entry: data[slice(*entry["data_offsets"])]
    return {name: numpy.frombuffer(span(entry), "float32").reshape(entry["shape"]) for name, entry in floats.items()}


def write_onnx(folder, path):
    import numpy
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = read_weights(folder)
    nodes, constants = [], []

    def constant(name, numbers):
        constants.append(numpy_helper.from_array(numpy.ascontiguousarray(numbers), name))
        return name

    def node(kind, inputs, domain="com.microsoft", **attributes):
        output = f"{kind}-{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def norm(name):
        return [constant(f"{name}.{part}", weights[f"{name}.LayerNorm.{part}"]) for part in ("weight", "bias")]

    def dense(name, hidden):
        return node("MatMul", [hidden, constant(f"{name}.weight", weights[f"{name}.weight"].T)], domain="")

    table = lambda kind: weights[f"embeddings.{kind}_embeddings.weight"]
    words = node("Gather", [constant("words", table("word")), "ids"], domain="")
    places = node("Gather", [constant("positions", table("position") + table("token_type")[0]), "places"], domain="")
    hidden = node("Add", [words, places], domain="")
    hidden = node("LayerNormalization", [hidden, *norm("embeddings")], domain="", axis=-1, epsilon=1e-12)
    for number in range(LAYERS):
        layer = f"encoder.layer.{number}"
        three = [f"{layer}.attention.self.{part}" for part in ("query", "key", "value")]
        qkv = constant(f"{layer}.qkv", numpy.concatenate([weights[f"{name}.weight"].T for name in three], 1))
        bias = constant(f"{layer}.qkv.bias", numpy.concatenate([weights[f"{name}.bias"] for name in three]))
        context = node("Attention", [hidden, qkv, bias], num_heads=HEADS)
        for name, inner in ((f"{layer}.attention.output", None), (f"{layer}.output", f"{layer}.intermediate.dense")):
            if inner:
                inner_bias = constant(f"{inner}.bias", weights[f"{inner}.bias"])
                context = node("BiasGelu", [dense(inner, hidden), inner_bias])
            bias = constant(f"{name}.dense.bias", weights[f"{name}.dense.bias"])
            inputs = [dense(f"{name}.dense", context), hidden, *norm(name), bias]
            hidden = node("SkipLayerNormalization", inputs, epsilon=1e-12)
    nodes.append(helper.make_node("ReduceMean", [hidden, constant("axis", numpy.array([1]))], ["mean"], keepdims=0))
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape)
              for name, shape in (("ids", ["batch", "tokens"]), ("places", ["tokens"]))]
    output = helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["batch", HIDDEN])
    graph = helper.make_graph(nodes, "bert", inputs, [output], constants)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)


class Peer:
    """Encodes; `run` gives the means of a batch of equal texts."""

    def __init__(self, kind, threads, folder):
        self.load(kind, threads, folder)
        self.clock = time.thread_time if threads == 1 else time.perf_counter
        self.forward(1, 12, 1)

    def forward(self, batch, count, times):
        best = float("inf")
        for _ in range(times):
            start = self.clock()
            self.run(batch, count)
            best = min(best, self.clock() - start)
        return best * 1e3

    def vector(self, count):
        mean = self.run(1, count)[0]
        return " ".join(str(number) for number in mean / self.numpy.linalg.norm(mean))

    def memory(self):
        return resident() - self.before


class Onnxruntime(Peer):
    def load(self, kind, threads, folder):
        import numpy
        import onnx
        import onnxruntime

        self.numpy = numpy
        with tempfile.TemporaryDirectory() as place:
            path = os.path.join(place, "model.onnx")
            # In a child, so that what writing takes is not counted as the model's memory.
            if os.fork() == 0:
                write_onnx(folder, path)
                if kind == "int8":
                    from onnxruntime.quantization import QuantType, quantize_dynamic

                    # The types of contributed operators' outputs are not inferred.
                    kind = {"DefaultTensorType": onnx.TensorProto.FLOAT}
                    quantize_dynamic(path, path + ".int8", None, per_channel=True, weight_type=QuantType.QInt8, extra_options=kind)
                    os.replace(path + ".int8", path)
                os._exit(0)
            os.wait()
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
            self.before = resident()
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(self, batch, count):
        ids = self.numpy.array([tokens(count)] * batch, "int64")
        return self.session.run(None, {"ids": ids, "places": self.numpy.arange(count, dtype="int64")})[0]


class Torch(Peer):
    def load(self, kind, threads, folder):
        import numpy
        import torch

        torch.set_num_threads(threads)
        self.numpy, self.torch = numpy, torch
        self.before = resident()
        self.weights = {name: torch.tensor(numbers) for name, numbers in read_weights(folder).items()}

    def run(self, batch, count):
        with self.torch.inference_mode():
            return self.mean(self.torch.tensor([tokens(count)] * batch)).numpy()

    def mean(self, ids):
        from torch.nn import functional

        weights, (batch, count) = self.weights, ids.shape
        dense = lambda name, x: functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
        norm = lambda name, x: functional.layer_norm(
            x, (HIDDEN,), weights[f"{name}.LayerNorm.weight"], weights[f"{name}.LayerNorm.bias"], 1e-12)
        heads = lambda x: x.view(batch, count, HEADS, HIDDEN // HEADS).transpose(1, 2)
        table = lambda kind: weights[f"embeddings.{kind}_embeddings.weight"]
        hidden = norm("embeddings", table("word")[ids] + table("position")[:count] + table("token_type")[0])
        for number in range(LAYERS):
            layer = f"encoder.layer.{number}"
            query, key, value = (heads(dense(f"{layer}.attention.self.{part}", hidden)) for part in ("query", "key", "value"))
            context = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, count, HIDDEN)
            hidden = norm(f"{layer}.attention.output", hidden + dense(f"{layer}.attention.output.dense", context))
            inner = functional.gelu(dense(f"{layer}.intermediate.dense", hidden))
            hidden = norm(f"{layer}.output", hidden + dense(f"{layer}.output.dense", inner))
        return hidden.mean(1)


def main():
    kind, threads, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    runtime, _, kind = kind.partition("-")
    try:
        peer = (Torch if runtime == "torch" else Onnxruntime)(kind, threads, folder)
    except ImportError as error:
        return print(f"missing {error.name}", flush=True)
    print("ready", flush=True)
    for line in sys.stdin:
        question, *numbers = line.split() or [None]
        if question is None:
            break
        print(getattr(peer, question)(*map(int, numbers)), flush=True)


if __name__ == "__main__":
    main()
