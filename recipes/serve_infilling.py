"""Serves a model that infills: OpenAI's `/v1/completions` with a true `suffix`, and llama.cpp's `/infill`.

    python recipes/serve_infilling.py model_cards/codegen2-python-1m
    python recipes/serve_infilling.py Qwen/Qwen2.5-Coder-0.5B --port 8012 --max_batch_size 32

It is `modeling-lpn serve`, for any causal language model with an infilling format; see `docs/serving.md`.
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch reads it; see `use_cpu_cores`

import sys

from modeling_lpn.cli import build_parser
from modeling_lpn.runs import run_recipe


def main() -> None:
    args = build_parser().parse_args(["serve", *sys.argv[1:]])
    args.run(args)


if __name__ == "__main__":
    run_recipe(main)
