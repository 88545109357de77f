"""
Trains a byte-level BPE in the CodeGen2 layout on Parquet rows, such as `datasets_scripts/build_code.py` writes.

    python recipes/train_tokenizer.py --files outputs/stdlib/train.parquet \\
        --validation_files outputs/stdlib/validation.parquet --vocab_size 4096 --output_dir outputs/tokenizer

`--vocab_size` counts all tokens: the 256 bytes, the merges, `<|endoftext|>`, the runs of spaces and tabs, `<sep>`,
`<eom>` and the `--num_masks` masks, of which `<mask_1>` is the last.
"""

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from modeling_lpn import train_codegen2_tokenizer
from modeling_lpn.optional import require
from modeling_lpn.runs import run_recipe


BATCH_SIZE = 256
CHECKED_TEXTS = 200  # for the round trip


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--files", nargs="+", type=Path, required=True, help="Parquet files to train on")
    parser.add_argument("--validation_files", nargs="+", type=Path, default=[], help="to measure bytes per token on")
    parser.add_argument("--text_column", default="text")
    parser.add_argument("--vocab_size", type=int, default=4096, help="number of all tokens, default 4096")
    parser.add_argument("--num_masks", type=int, default=99, help="default 99; the release has 899")
    parser.add_argument("--model_max_length", type=int, default=2048, help="context of the model, default 2048")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true", help="replace the tokenizer in --output_dir")
    arguments = parser.parse_args(argv)
    for name in ("num_masks", "model_max_length"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} is {getattr(arguments, name)}; give at least 1")
    found = [file.name for file in sorted(arguments.output_dir.glob("tokenizer*.json"))]
    if found and not arguments.overwrite:
        parser.error(f"--output_dir {arguments.output_dir} has {found[0]} already; give another, or --overwrite")
    check_files(parser, arguments)
    return arguments


def check_files(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    pa = require("pyarrow.parquet", "data", "Parquet")
    for path in arguments.files + arguments.validation_files:
        if not path.is_file():
            parser.error(f"{path} does not exist; give a Parquet file, e.g. of datasets_scripts/build_code.py")
        try:
            names = pa.parquet.read_schema(path).names
        except pa.ArrowInvalid as error:
            parser.error(f"{path} is not a Parquet file ({error}); give one")
        if arguments.text_column not in names:
            parser.error(
                f"{path} has no column {arguments.text_column}; set --text_column to one of {', '.join(names)}"
            )


def read_texts(files: list[Path], column: str) -> Iterator[str]:
    """The texts of Parquet files, streamed; empty ones are left out."""
    pa = require("pyarrow.parquet", "data", "Parquet")
    for path in files:
        with pa.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_SIZE, columns=[column]):
                yield from filter(None, batch.column(0).to_pylist())


def measure(tokenizer, texts: Iterator[str]) -> dict[str, float]:
    """Bytes, tokens, and bytes per token."""
    num_bytes = num_tokens = 0
    while batch := list(islice(texts, BATCH_SIZE)):
        num_bytes += sum(len(text.encode()) for text in batch)
        encoded = tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)
        num_tokens += sum(map(len, encoded["input_ids"]))
    return {"bytes": num_bytes, "tokens": num_tokens, "bytes_per_token": round(num_bytes / max(num_tokens, 1), 3)}


def check_round_trip(tokenizer, texts: Iterator[str]) -> int:
    """Raises `ValueError` where a text is not what its tokens decode to; returns the number of texts tried."""
    tried = 0
    for text in islice(texts, CHECKED_TEXTS):
        ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
        if tokenizer.decode(ids) != text:
            raise ValueError(f"The tokenizer changes the text {text[:60]!r}...; nothing was written, report this text")
        tried += 1
    return tried


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    texts = lambda files: read_texts(files, arguments.text_column)  # noqa: E731
    if next(texts(arguments.files), None) is None:
        raise ValueError(f"{arguments.files[0]} has no texts in column {arguments.text_column}; give files with rows")
    corpus = tqdm(texts(arguments.files), "reading", unit=" texts", disable=None)
    tokenizer = train_codegen2_tokenizer(corpus, arguments.vocab_size, arguments.num_masks, arguments.model_max_length)
    measured = arguments.validation_files or arguments.files
    tried = check_round_trip(tokenizer, texts(measured))
    result = {"vocab_size": len(tokenizer), "num_masks": arguments.num_masks}
    result["measured_on"] = "validation" if arguments.validation_files else "training"
    result |= measure(tokenizer, texts(measured))
    tokenizer.save_pretrained(arguments.output_dir)
    if len(tokenizer) < arguments.vocab_size:
        print(f"The corpus is too small for {arguments.vocab_size} tokens: there are {len(tokenizer)}")
    print(f"{tried} texts decoded as they were; {json.dumps(result)}")
    print(f"wrote {arguments.output_dir}")


if __name__ == "__main__":
    run_recipe(main)
