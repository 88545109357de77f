"""
Measures the objectives on one core: planning, packing, corrupting and labelling batches of 16 sequences of 2,048 tokens,
against the tokenizer that makes the tokens and against earlier commits, in CPU seconds of one run.

    python recipes/benchmarks/objectives.py --output outputs/benchmark_objectives.json
    python recipes/benchmarks/objectives.py --presets codegen2 t5 ul2 --against ec3cb20
    python recipes/benchmarks/objectives.py --tokenizer outputs/tokenizer_4k --presets codegen2 ul2

The corpus is the running Python's standard library. Without `--tokenizer` a byte-level BPE of 4,096 tokens is trained on
it. With `--against` the repetitions of the commits alternate, and `ratio` is the median of ours over theirs of the same
repetition: other processes change the speed of a core by two, the ratio less. `memory` walks a stream that never ends and gives the process's memory after a tenth of it and at its end.
"""

import argparse
import contextlib
import importlib
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import types
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer

from modeling_lpn import (
    DataCollatorForCodeObjectives,
    DocumentStream,
    ObjectiveMixture,
    PackedSequences,
    infill_layout,
    train_codegen2_tokenizer,
)
from modeling_lpn.code.objectives import PRESETS
from modeling_lpn.code.packing import StreamedSequences, TokenizedDocuments
from modeling_lpn.code.token_splitter import TokenSplitter
from modeling_lpn.codegen2.infilling_codegen2 import encode_sources
from modeling_lpn.runs import write_results


ROOT = Path(__file__).resolve().parents[2]
BATCH, LENGTH = 16, 2048


def read_corpus():
    folder = Path(sysconfig.get_path("stdlib"))
    parts = {"site-packages", "test", "tests", "idle_test"}
    paths = (path for path in sorted(folder.rglob("*.py")) if not parts & set(path.relative_to(folder).parts))
    texts = [path.read_text(errors="ignore") for path in paths]
    return [text for text in texts if 0 < len(text) < 500_000]


def cpu_seconds(work):
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


class Version(NamedTuple):
    """What is measured, of this or of an earlier commit."""

    mixture: Any
    collator: Any
    stream: Any
    sequences: Any
    layout: Any
    documents: Any


def earlier_version(commit, tree, tokenizer, infill_format, token_ids):
    """The code of another commit under another name in this process; its package is not run, so nothing is registered twice."""
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(tree), commit], cwd=ROOT, check=True)
    folder = tree / "modeling_lpn"
    package = f"modeling_lpn_{commit}"
    sys.modules[package] = types.ModuleType(package)
    sys.modules[package].__path__ = [str(folder)]
    # Until b7a8d8c all modules were in one folder.
    code, family = (".code", ".codegen2") if (folder / "code").is_dir() else ("", "")

    def load(name):
        return importlib.import_module(f"{package}{name}")

    packing, collator = load(f"{code}.packing"), load(f"{code}.collator" if code else ".collators")
    return Version(
        load(f"{code}.objectives").ObjectiveMixture,
        collator.DataCollatorForCodeObjectives,
        packing.DocumentStream,
        packing.PackedSequences,
        load(f"{family}.infilling_codegen2").infill_layout(tokenizer, infill_format),
        packing.TokenizedDocuments.from_lists(token_ids),
    )


def measure_preset(name, versions, arguments, **settings):
    """Million tokens per CPU second of each repetition of each version, in turn; every one plans from scratch."""
    speeds = {version: [] for version in versions}
    for seed in range(arguments.repeats + 1):
        for key, version in versions.items():
            mixture = version.mixture.from_preset(name, **settings)
            collator = version.collator(version.layout, information=True)
            stream = version.stream({"stdlib": version.documents}, seed=seed)
            total = arguments.batches * BATCH  # shuffled, as the training recipe does
            sequences = version.sequences(stream, mixture, version.layout, LENGTH, total, seed, shuffle_window=total)

            def collate_all(sequences=sequences, collator=collator):
                for first in range(0, len(sequences), BATCH):
                    batch = collator([sequences[index] for index in range(first, first + BATCH)])
                return batch

            seconds, batch = cpu_seconds(collate_all)
            speeds[key].append(arguments.batches * batch["input_ids"].numel() / seconds / 1e6)
    return {key: values[1:] for key, values in speeds.items()}  # the first round warms up


def summary(speeds, tokenizer_speed):
    ours = speeds.pop("")
    median, against = statistics.median(ours), {}
    for commit, theirs in speeds.items():
        ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
        against[commit] = {"mtok_per_s": statistics.median(theirs), "ratio": statistics.median(ratios), "all": theirs}
    return {"mtok_per_s": median, "times_tokenizer": median / tokenizer_speed, "all": ours, "against": against}


def resident_megabytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure_memory(texts, tokenizer, layout, sequences):
    """Memory of a stream that is tokenised while it is read, at several places."""

    def epoch():
        for first in range(0, len(texts), 16):
            yield from enumerate(encode_sources(tokenizer, texts[first : first + 16]), first)

    stream = iter(StreamedSequences({"stdlib": epoch}, ObjectiveMixture.from_preset("codegen2"), layout, LENGTH))
    places, values = [sequences // 10, sequences // 2, sequences - 1], []
    for index in range(sequences):
        next(stream)
        if index in places:
            values.append(round(resident_megabytes(), 1))
    return dict(zip(("after a tenth", "half way", "at the end"), values, strict=True))


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--tokenizer", help="folder or Hub id; by default one is trained on the corpus")
    parser.add_argument("--infill_format", default="codegen2")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    parser.add_argument("--against", nargs="+", default=[], metavar="COMMIT", help="earlier commits to compare with")
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--stream_sequences", type=int, default=3000, help="0 skips the memory of a stream")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark_objectives.json"))
    arguments = parser.parse_args(argv)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    texts = read_corpus()
    if arguments.tokenizer:
        tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    else:
        tokenizer = train_codegen2_tokenizer(texts, vocab_size=4096)
    layout = infill_layout(tokenizer, arguments.infill_format)
    runs = [cpu_seconds(lambda: encode_sources(tokenizer, texts)) for _ in range(3)]
    documents = TokenizedDocuments.from_lists(runs[0][1])
    ours = Version(ObjectiveMixture, DataCollatorForCodeObjectives, DocumentStream, PackedSequences, layout, documents)
    tokenizer_speeds = [documents.num_tokens / seconds / 1e6 for seconds, _ in runs]
    tokenizer_speed = statistics.median(tokenizer_speeds)
    print(f"tokenizer: {tokenizer_speed:.2f} million tokens per CPU second ({documents.num_tokens} tokens)")
    result = {"batch": [BATCH, LENGTH], "tokenizer_mtok_per_s": tokenizer_speed}
    result |= {"tokenizer_all": tokenizer_speeds, "presets": {}}
    settings = [(name, name, {}) for name in arguments.presets]
    if "fim" in arguments.presets:
        settings.append(("fim, cut within tokens", "fim", {"infill_splitter": TokenSplitter(tokenizer)}))
    with contextlib.ExitStack() as stack:
        versions = {"": ours}
        for commit in arguments.against:
            tree = Path(stack.enter_context(tempfile.TemporaryDirectory()), "tree")
            stack.callback(subprocess.run, ["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT)
            versions[commit] = earlier_version(commit, tree, tokenizer, arguments.infill_format, runs[0][1])
        for label, name, options in settings:
            # A splitter is of one version.
            speeds = measure_preset(name, {"": ours} if options else versions, arguments, **options)
            result["presets"][label] = found = summary(speeds, tokenizer_speed)
            ratios = "".join(f", {other['ratio']:.2f}x {commit}" for commit, other in found["against"].items())
            print(
                f"{label:24s} {found['mtok_per_s']:6.1f} million tokens per CPU second, {found['times_tokenizer']:5.0f}x the "
                f"tokenizer{ratios}"
            )
    if arguments.stream_sequences:
        result["stream_megabytes"] = measure_memory(texts, tokenizer, layout, arguments.stream_sequences)
        print(f"memory of a stream of {arguments.stream_sequences} sequences: {result['stream_megabytes']} MB")
    write_results(arguments.output, 0, **result)


if __name__ == "__main__":
    main()
