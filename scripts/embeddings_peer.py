"""Embeds the texts of each line of standard input, a JSON list, and prints a line with the seconds taken and the first
vector. Peer of the built-in model in `scripts/bench.sh embeddings`; needs sentence-transformers, or for `--onnx`
onnxruntime and tokenizers."""

import argparse
import json
import os
import sys
import time

# Tokens at which ONNX Runtime's texts are cut, as those of the built-in model are.
CONTEXT = 512


def sentence_transformer(args):
    """An encoder of sentence-transformers, and what it is called."""
    # A torch wheel with CUDA may lack some of its libraries on a machine that uses the CPU only.
    sys.setdlopenflags(os.RTLD_LAZY)
    import sentence_transformers
    import torch

    torch.set_num_threads(args.threads)
    model = sentence_transformers.SentenceTransformer(args.model, device="cpu")

    def encode(texts):
        return model.encode(texts, batch_size=args.batch, normalize_embeddings=True, show_progress_bar=False)

    return encode, f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__}"


def onnx_runtime(args):
    """An encoder of ONNX Runtime, which reads one text at a time, so that none is padded, and what it is called."""
    import numpy
    import onnxruntime
    import tokenizers

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(args.onnx, options, providers=["CPUExecutionProvider"])
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(args.model, "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=CONTEXT)
    known = {entry.name for entry in session.get_inputs()}

    def encode(texts):
        vectors = []
        for encoding in tokenizer.encode_batch(texts):
            ids = numpy.array([encoding.ids], dtype=numpy.int64)
            inputs = {"input_ids": ids, "attention_mask": numpy.ones_like(ids), "token_type_ids": numpy.zeros_like(ids)}
            rows = session.run(None, {name: value for name, value in inputs.items() if name in known})[0][0]
            mean = rows.mean(axis=0)
            vectors.append(mean / numpy.linalg.norm(mean))
        return vectors

    return encode, f"ONNX Runtime {onnxruntime.__version__}, {os.path.getsize(args.onnx) >> 20} MiB"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a folder of sentence-transformers")
    parser.add_argument("--onnx", help="the same model in ONNX, to run it with ONNX Runtime and the tokenizer of the folder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(args.threads)

    encode, version = onnx_runtime(args) if args.onnx else sentence_transformer(args)
    print(version, flush=True)
    for line in sys.stdin:
        texts = json.loads(line)
        began = time.perf_counter()
        vectors = encode(texts)
        took = time.perf_counter() - began
        print(json.dumps({"seconds": took, "first": vectors[0].tolist()}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
