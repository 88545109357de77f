"""The demo in the browser, with the checkpoints of this repository or with models of yours.

    python recipes/demo.py
    python recipes/demo.py outputs/quickstart --port 8000

It is `modeling-lpn demo` with a default for its models: the folders in `model_cards/`, in this repository or beside this
file, without those of strings, which the demo does not draw. As a Space: this file, `recipes/space/README.md` and `recipes/space/requirements.txt` at its root, and the folders.
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch reads it; see `use_cpu_cores`

import sys
from pathlib import Path

from modeling_lpn.cards import is_of_strings
from modeling_lpn.cli import build_parser
from modeling_lpn.runs import run_recipe


HERE = Path(__file__).resolve().parent


def released_models() -> list[str]:
    """The folders of the checkpoints that come with this file."""
    configs = [path for place in (HERE, HERE.parent) for path in sorted(place.glob("model_cards/*/config.json"))]
    return [str(path.parent) for path in configs if not is_of_strings(path.parent)]


def serve() -> None:
    args = build_parser().parse_args(["demo", *sys.argv[1:]])
    args.models = args.models or released_models()
    args.run(args)


if __name__ == "__main__":
    run_recipe(serve)
