"""Writes a code corpus: the Parquet files, the manifest, the dataset card, and the closing table."""

import hashlib
import importlib.metadata
import json
import platform
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from candidates import Candidate, Drop, Source
from code_filters import BENCHMARK_NGRAM, NUM_PERM, SHINGLE, Benchmarks
from code_secrets import Secrets
from dataset_card import table, write_card


SPLITS = ("train", "validation")
COLUMNS = ("text", "path", "licence", "source", "sha256")
BUFFERED_BYTES = 16_000_000
# Names that the Hub knows; others are told in the text.
HUB_LICENCES = {"apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "isc", "mit", "mpl-2.0", "unlicense", "zlib"}
SETTINGS = ("min_bytes", "max_bytes", "max_line_length", "mean_line_length", "min_alphanumeric", "exclude")
SETTINGS += ("secrets", "emails", "near_duplicate_threshold", "seed", "validation_fraction", "max_files")
BODY = """
# Source files for training code models

One file a row: `text`, `path` within its source, `licence`, `source`, and `sha256`, that of the text. Line ends are
`\\n`, byte order marks are gone{changed}, nothing else is changed.

{splits}

{split_rule}

## Sources

{sources}

## Licences

{licences}

A file stays under the licence of its row; keep the notices that its authors put into it. Files whose header states a
licence carry that one. Licences accepted: {allowed}.

## Left out

{dropped}

{benchmarks}

## Secrets and personal data

{secrets}

## Settings

Built with `datasets_scripts/build_code.py`; the same sources and settings give the same files. `manifest.json` names
every file kept and every file left out, with the reason.

{settings}
"""


class CorpusWriter:
    """
    Writes rows to `train.parquet` and `validation.parquet` as they come. Nothing carries these names before `finish`,
    so an error leaves no file that looks whole.

    Args:
        folder: Where to write.
        fraction: Share of the files that is for validation, chosen by a hash of source and path. Where it gives none,
            the file nearest to being chosen is taken, so that a small corpus can be validated too.
        held_out: Labels of whole sources for validation, instead of the fraction.
    """

    def __init__(self, folder: Path, fraction: float, held_out: set[str]):
        self.folder, self.fraction, self.held_out = folder, fraction, held_out
        self.kept: list[dict] = []
        self.dropped: list[dict] = []
        self.rows = {split: [] for split in SPLITS}
        self.buffered, self.writers, self.nearest = 0, {}, None
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for split, writer in self.writers.items():
            writer.close()
            self._partial(split).unlink(missing_ok=True)

    def _partial(self, split: str) -> Path:
        return self.folder / f"{split}.parquet.partial"

    def drop(self, source: Source, candidate: Candidate, drop: Drop) -> None:
        entry = {"source": source.label, "path": candidate.path, "reason": drop.reason}
        self.dropped.append(entry | ({"detail": drop.detail} if drop.detail else {}))

    def keep(self, row: dict[str, str]) -> None:
        entry = {name: row[name] for name in ("source", "path", "licence", "sha256")}
        entry["bytes"] = len(row["text"].encode())
        self.kept.append(entry)
        if self.held_out:
            return self._write(entry, row, "validation" if row["source"] in self.held_out else "train")
        digest = hashlib.sha256(f"{row['source']}\0{row['path']}".encode()).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64
        if share < self.fraction:
            return self._write(entry, row, "validation")
        # The nearest so far waits until all have been seen.
        if self.fraction and (self.nearest is None or share < self.nearest[0]):
            self.nearest, earlier = (share, entry, row), self.nearest
            if earlier is None:
                return None
            _, entry, row = earlier
        return self._write(entry, row, "train")

    def _write(self, entry: dict, row: dict[str, str], split: str) -> None:
        entry["split"] = split
        self.rows[split].append(row)
        self.buffered += entry["bytes"]
        if self.buffered > BUFFERED_BYTES:
            self._flush()

    def _flush(self) -> None:
        schema = pa.schema([(name, pa.string()) for name in COLUMNS])
        for split, rows in self.rows.items():
            if rows:
                if split not in self.writers:
                    self.writers[split] = pq.ParquetWriter(self._partial(split), schema, compression="zstd")
                self.writers[split].write_table(pa.Table.from_pylist(rows, schema))
                rows.clear()
        self.buffered = 0

    def finish(self) -> list[str]:
        """Gives the files their names and returns the splits there are."""
        splits = {entry.get("split") for entry in self.kept}
        if self.nearest:
            _, entry, row = self.nearest
            self._write(entry, row, "validation" if "validation" not in splits and len(self.kept) > 1 else "train")
        self._flush()
        for writer in self.writers.values():
            writer.close()
        for split in SPLITS:
            final = self.folder / f"{split}.parquet"
            if split in self.writers:
                self._partial(split).replace(final)
            else:
                final.unlink(missing_ok=True)  # of an earlier build: its files may be in the other split now
        return [split for split in SPLITS if split in self.writers]


def megabytes(entries: list[dict]) -> str:
    return f"{sum(entry['bytes'] for entry in entries) / 1e6:.2f}"


def tally(entries: list[dict], *fields: str) -> list[list[object]]:
    """Rows of `fields`, files, MB."""
    groups: dict[tuple, list[dict]] = {}
    for entry in entries:
        groups.setdefault(tuple(entry[field] for field in fields), []).append(entry)
    return [[*key, len(found), megabytes(found)] for key, found in sorted(groups.items())]


def shown(value: object) -> object:
    return ", ".join(f"`{item}`" for item in value) if isinstance(value, list) else value


def reasons_of(dropped: list[dict]) -> str:
    counts = Counter(entry["reason"] for entry in dropped).most_common()
    return ", ".join(f"{reason} {count}" for reason, count in counts) or "none"


def summary(sources: list[Source], writer: CorpusWriter) -> str:
    """One line a source: what was kept and why the rest was not."""
    rows = []
    for label in [source.label for source in sources]:
        kept = [entry for entry in writer.kept if entry["source"] == label]
        dropped = [entry for entry in writer.dropped if entry["source"] == label]
        held = sum(entry["split"] == "validation" for entry in kept)
        rows.append([label, len(kept), held, megabytes(kept), len(dropped), reasons_of(dropped)])
    return table(["source", "files kept", "for validation", "MB", "dropped", "reasons"], rows)


def benchmark_note(benchmarks: Benchmarks) -> str:
    if not benchmarks.files:
        return "Not decontaminated: there was no benchmark data to compare with."
    files = ", ".join(f"`{name}` ({found['problems']} problems)" for name, found in benchmarks.files.items())
    return f"Decontaminated against {files}: no file shares {BENCHMARK_NGRAM} words in a row with one of them."


def write_report(
    sources: list[Source], writer: CorpusWriter, benchmarks: Benchmarks, secrets: Secrets, arguments
) -> None:
    """Writes `manifest.json` and `README.md` beside the Parquet files."""
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    settings["validation_sources"] = sorted(writer.held_out)
    packages = ["pyarrow", *["datasketch"] * bool(arguments.near_duplicate_threshold)]
    packages += ["detect-secrets"] * bool(secrets.detectors)
    manifest = {
        "sources": [{"source": source.label, "detail": source.detail} for source in sources],
        "settings": settings,
        "licences_accepted": arguments.allow_licenses,
        "near_duplicates": {"permutations": NUM_PERM, "words": SHINGLE},
        "decontamination": {"done": bool(benchmarks.files), "words": BENCHMARK_NGRAM, "files": benchmarks.files},
        "emails": {"replaced": secrets.replaced, "files": secrets.files},
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "dropped_by_reason": dict(sorted(Counter(entry["reason"] for entry in writer.dropped).items())),
        "files": writer.kept,
        "dropped": writer.dropped,
    }
    (arguments.output / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    write_corpus_card(sources, writer, benchmarks, secrets, settings, arguments)


def changes(secrets: Secrets, writer: CorpusWriter) -> str:
    notebooks = any(entry["path"].lower().endswith(".ipynb") for entry in writer.kept)
    made = (
        ", e-mail addresses are replaced" if secrets.replaced else "",
        ", notebooks are scripts of their cells" if notebooks else "",
    )
    return "".join(made)


def write_corpus_card(sources, writer, benchmarks, secrets, settings, arguments) -> None:
    licences = sorted({entry["licence"] for entry in writer.kept})
    license_name = licences[0].lower() if len(licences) == 1 and licences[0].lower() in HUB_LICENCES else "other"
    splits = sorted({entry["split"] for entry in writer.kept})
    if writer.held_out:
        rule = f"The validation split holds all of {', '.join(sorted(writer.held_out))}."
    else:
        rule = "The validation split was chosen by a hash of source and path."
    if arguments.near_duplicate_threshold:
        rule += " Near duplicates were dropped before, so none has its twin in the other split."
    body = BODY.format(
        splits=table(["split", "files", "MB"], tally(writer.kept, "split")),
        split_rule=rule,
        sources="\n".join(f"- `{source.label}`: {source.detail}" for source in sources),
        licences=table(["licence", "source", "files", "MB"], tally(writer.kept, "licence", "source")),
        allowed=", ".join(arguments.allow_licenses),
        dropped=summary(sources, writer),
        benchmarks=benchmark_note(benchmarks),
        secrets=secrets.note(sum(entry["reason"] == "secret" for entry in writer.dropped)),
        changed=changes(secrets, writer),
        settings=table(["setting", "value"], [[name, shown(value)] for name, value in settings.items()]),
    )
    files = {"default": {split: f"{split}.parquet" for split in splits}}
    write_card(Path(arguments.output), license_name, files, body, tags=("code", "program-synthesis"))
