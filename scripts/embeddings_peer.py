"""Embeds the texts of standard input, one a line, again and again: a line for each time that it is told to, with the seconds
that it took. It is what `scripts/bench.sh embeddings` measures beside the model inside; it needs sentence-transformers."""

import argparse
import json
import os
import sys
import time


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a folder of sentence-transformers")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(args.threads)

    # A wheel of torch with CUDA in it need not find all of that where only the CPU is used.
    sys.setdlopenflags(os.RTLD_LAZY)
    import sentence_transformers
    import torch

    torch.set_num_threads(args.threads)
    model = sentence_transformers.SentenceTransformer(args.model, device="cpu")
    print(f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__}", flush=True)
    for line in sys.stdin:
        texts = json.loads(line)
        began = time.perf_counter()
        vectors = model.encode(texts, batch_size=args.batch, normalize_embeddings=True, show_progress_bar=False)
        took = time.perf_counter() - began
        print(json.dumps({"seconds": took, "first": vectors[0].tolist()}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
