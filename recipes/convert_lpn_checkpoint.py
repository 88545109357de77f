"""
Converts a checkpoint of the published LPN code (Flax: `state.msgpack` and its `config.yaml`) to a Hugging Face folder.

    python recipes/convert_lpn_checkpoint.py --checkpoint path/to/checkpoint --output_dir outputs/lpn-2d

Needs `pip install msgpack` (the extra `convert`), neither Flax nor pickle. `AutoModel.from_pretrained(output_dir)` and
`AutoProcessor.from_pretrained(output_dir)` then load the result.
"""

import argparse
from pathlib import Path

from modeling_lpn import LPNModel, LPNProcessor
from modeling_lpn.files import read_file
from modeling_lpn.runs import run_recipe
from modeling_lpn.tasks.flax_checkpoints import convert_config, convert_parameters, read_msgpack


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder with state.msgpack and config.yaml")
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()
    for name in ("state.msgpack", "config.yaml"):
        if not (args.checkpoint / name).is_file():
            parser.error(f"{args.checkpoint} has no {name}; give the folder of a published LPN checkpoint.")
    config = convert_config(read_file(args.checkpoint / "config.yaml"))
    state = convert_parameters(read_msgpack(args.checkpoint / "state.msgpack"), config)
    model = LPNModel(config)
    model.load_state_dict(state)
    model.save_pretrained(args.output_dir)
    LPNProcessor(config.max_rows, config.max_cols, config.vocab_size).save_pretrained(args.output_dir)
    print(f"wrote {args.output_dir}: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    run_recipe(main)
