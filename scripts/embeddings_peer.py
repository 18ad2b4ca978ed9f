"""Embeds the texts of each line of standard input, a JSON list, and prints a line with the seconds taken and the first
vector. Peer of the built-in model in `scripts/bench.sh embeddings`; needs sentence-transformers."""

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

    # A torch wheel with CUDA may lack some of its libraries on a machine that uses the CPU only.
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
