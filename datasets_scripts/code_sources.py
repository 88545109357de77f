"""Opens the sources of a code corpus that `--sources`, `--license` and `--extensions` of `build_code.py` name."""

import argparse
import difflib
import functools
import importlib.metadata
import os
import platform
import re
import stat
import sysconfig
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
from candidates import Candidate, Drop, Source
from code_filters import PERMISSIVE, is_allowed, licence_of_metadata, normalise_licence


CODE_EXTENSIONS = (".py",)
TEXT_EXTENSIONS = (".txt", ".md", ".rst", ".html", ".htm")
TEST_FOLDERS = {"test", "tests", "idle_test"}
LICENCE_FILE = re.compile(r"(licen[cs]e|copying)", re.IGNORECASE)
METADATA_BYTES = 1_000_000
NO_FILE = "not a regular file"
DAMAGED = (EOFError, OSError, RuntimeError, zlib.error, tarfile.TarError, zipfile.BadZipFile)
# Column names tried in this order where the command line gives none.
USUAL_COLUMNS = {
    "text": ("text", "content", "code"),
    "path": ("path", "file_path", "max_stars_repo_path"),
    "licence": ("licence", "license", "licenses", "max_stars_repo_licenses"),
}


def file_names(root: Path, extensions: tuple[str, ...], skipped: tuple[str, ...] = ()) -> list[str]:
    """Sorted POSIX paths of the files below a folder: nothing hidden, no caches, no links to folders."""
    found, skipped = [], {"__pycache__", *skipped}
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in skipped]
        chosen = [name for name in names if name.lower().endswith(extensions) and not name.startswith(".")]
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in chosen]
    return sorted(found)


def read_regular(path: Path) -> bytes:
    """
    The content of a file that is one: no link, which could lead to a private file of this machine, and no pipe or device,
    which could be waited for.

    Raises:
        Drop: for anything else.
    """
    if path.is_symlink():
        raise Drop("symbolic link")
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise Drop("unreadable") from error
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Drop(NO_FILE)
        return file.read()


def source_of_files(root: Path, names: list[str], **kwargs) -> Source:
    """A source of the named files below `root`, read one at a time."""

    def candidates() -> Iterator[Candidate]:
        for name in names:
            path = root / name
            regular = path.is_file() and not path.is_symlink()
            yield Candidate(name, functools.partial(read_regular, path), path.stat().st_size if regular else None)

    return Source(candidates=candidates, total=len(names), **kwargs)


def open_folder(kind: str, argument: str, extensions: tuple[str, ...], arguments) -> Source:
    root = Path(argument).expanduser().resolve()
    if not root.exists():
        raise SystemExit(f"{kind}:{argument}: there is no such folder; give the path of a folder (or of one file)")
    names = file_names(root, extensions) if root.is_dir() else [root.name]
    label = f"{kind}:{root.name}"  # a card is published, the paths of its author are not
    detail = f"{'code' if kind == 'folder' else 'text'} files ({', '.join(extensions)}) of `{root.name}`"
    folder = root if root.is_dir() else root.parent
    return source_of_files(folder, names, label=label, detail=detail, licence="", is_code=kind == "folder")


def open_stdlib(kind: str, argument: str, extensions: tuple[str, ...], arguments) -> Source:
    root, tests = Path(sysconfig.get_path("stdlib")), kind == "stdlib-tests"
    names = file_names(root, extensions, skipped=("site-packages", "dist-packages"))
    names = [name for name in names if tests != TEST_FOLDERS.isdisjoint(PurePosixPath(name).parts[:-1])]
    if not names:
        raise SystemExit(f"{kind}: this Python's standard library has no such files; leave the source out")
    detail = f"standard library of CPython {platform.python_version()}, {'its' if tests else 'without its'} tests; "
    detail += "Python Software Foundation License Version 2, https://docs.python.org/3/license.html"
    return source_of_files(root, names, label=kind, detail=detail, licence="PSF-2.0")


def open_package(kind: str, argument: str, extensions: tuple[str, ...], arguments) -> Source:
    try:
        distribution = importlib.metadata.distribution(argument)
    except (importlib.metadata.PackageNotFoundError, ValueError) as error:
        installed = {found.metadata["Name"] or "" for found in importlib.metadata.distributions()}
        near = difflib.get_close_matches(argument, installed, 1)
        hint = f"did you mean {near[0]}? Otherwise install it" if near else "install it"
        raise SystemExit(f"{kind}:{argument}: no distribution of this name is installed; {hint}") from error
    files = distribution.files or []
    stated = (file.locate() for file in files if LICENCE_FILE.match(file.name) and file.suffix != ".py")
    texts = (Path(path).read_text("utf-8", "replace") for path in stated if Path(path).is_file())
    # A path that leads out of the package is a script or a manual page.
    names = sorted(str(file) for file in files if str(file).lower().endswith(extensions) and file.parts[0] != "..")
    name = distribution.metadata["Name"]
    if not names:
        raise SystemExit(
            f"{kind}:{argument}: the distribution lists no {', '.join(extensions)} files (an editable installation "
            "lists none); give its folder as folder:PATH"
        )
    return source_of_files(
        Path(str(distribution.locate_file(""))),
        names,
        label=f"{kind}:{name}",
        detail=f"the Python package {name} {distribution.version}",
        licence=licence_of_metadata(distribution.metadata, texts),
    )


def open_sdist(kind: str, argument: str, extensions: tuple[str, ...], arguments) -> Source:
    archive = Path(argument).expanduser()
    if not archive.is_file():
        raise SystemExit(f"{kind}:{argument}: there is no such file; give a .tar.gz or .zip source archive")

    def is_wanted(name: str) -> bool:
        path = PurePosixPath(name)
        about = path.name == "PKG-INFO" or LICENCE_FILE.match(path.name)
        return name.lower().endswith(extensions) or bool(about and len(path.parts) <= 2)

    try:
        members = list(read_archive(archive, is_wanted, max(arguments.max_bytes, METADATA_BYTES)))
    except DAMAGED as error:
        raise SystemExit(f"{archive.name} is not a whole .tar.gz or .zip archive ({error}); fetch it again") from error
    tops = {PurePosixPath(member.name).parts[0] for member in members if not fault_of_name(member.name)}
    if len(tops) == 1:  # NAME-VERSION/, as every source archive has
        members = [member.below(*tops) for member in members if "/" in member.name or member.fault]
    found = {member.name: member for member in members if not member.fault}
    about = (found["PKG-INFO"].data or b"" if "PKG-INFO" in found else b"").decode("utf-8", "replace")
    texts = [
        (member.data or b"").decode("utf-8", "replace") for member in found.values() if LICENCE_FILE.match(member.name)
    ]
    wanted = sorted(
        (member for member in members if member.name.lower().endswith(extensions)), key=lambda member: member.name
    )

    def candidates() -> Iterator[Candidate]:
        for member in wanted:
            yield Candidate(member.name, member.read, None if member.fault else member.size)

    stem = re.sub(r"\.(tar\.\w+|tgz|zip)$", "", archive.name)
    licence = licence_of_metadata(HeaderParser().parsestr(about), texts)
    return Source(f"{kind}:{stem}", f"source archive `{archive.name}`", licence, candidates, total=len(wanted))


@dataclass(frozen=True)
class Member:
    """A file of an archive; `data` is `None` where it was too large to read, `fault` the reason why it may not be used."""

    name: str
    size: int
    data: bytes | None = None
    fault: str = ""

    def read(self) -> bytes | None:
        if self.fault:
            raise Drop(self.fault)
        return self.data

    def below(self, folder: str) -> "Member":
        """The same file named within a folder."""
        return replace(self, name=self.name.removeprefix(f"{folder}/"))


def fault_of_name(name: str) -> str:
    """Why a member's name is no path within the archive, if it is none."""
    parts = re.split(r"[/\\]", name)
    return "unsafe path" if not parts[0] or parts[0].endswith(":") or ".." in parts else ""


def read_archive(archive: Path, is_wanted: Callable[[str], bool], max_bytes: int) -> Iterator[Member]:
    """
    Reads an archive in one pass and writes nothing to disk.

    Args:
        archive: A tar archive, compressed or not, or a zip archive.
        is_wanted: Which members to read, by name.
        max_bytes: Larger members are named but not read.

    Yields:
        The wanted members. Links, pipes and devices, and names that are absolute or lead out of the archive, have a fault
        and are not read.
    """
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for member in file.infolist():
                if member.is_dir() or not is_wanted(member.filename):
                    continue
                kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the archive says nothing
                irregular = "symbolic link" if kind == stat.S_IFLNK else "" if kind in (0, stat.S_IFREG) else NO_FILE
                fault = fault_of_name(member.filename) or irregular
                small = member.file_size <= max_bytes and not fault
                yield Member(member.filename, member.file_size, file.read(member) if small else None, fault)
        return
    with tarfile.open(archive) as file:
        for member in file:
            if member.isdir() or not is_wanted(member.name):
                continue
            irregular = "symbolic link" if member.issym() or member.islnk() else "" if member.isfile() else NO_FILE
            fault = fault_of_name(member.name) or irregular
            small = member.size <= max_bytes and not fault
            yield Member(member.name, member.size, file.extractfile(member).read() if small else None, fault)


def open_parquet(kind: str, argument: str, extensions: tuple[str, ...], arguments) -> Source:
    path = Path(argument).expanduser().resolve()
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise SystemExit(f"{kind}:{argument}: there is no such Parquet file; give a .parquet file or a folder of them")
    if path in (output := arguments.output.resolve(), *(file for file in output.glob("*.parquet"))):
        raise SystemExit(f"{kind}:{argument} lies in --output, where it might be overwritten; give another folder")
    try:
        tables = [pq.ParquetFile(file) for file in files]
    except pa.ArrowInvalid as error:
        raise SystemExit(f"{kind}:{argument} is not a Parquet file ({error}); give a Parquet file") from error
    columns = choose_columns(f"{kind}:{argument}", tables[0].schema_arrow.names, arguments)

    def rows() -> Iterator[dict]:
        for file in files:
            with pq.ParquetFile(file) as table:
                for batch in table.iter_batches(256, columns=list(columns.values())):
                    yield from batch.to_pylist()

    total = sum(table.metadata.num_rows for table in tables)
    return source_of_rows(rows, columns, f"{kind}:{path.name}", f"rows of `{path.name}`", total)


def open_hub(kind: str, argument: str, extensions: tuple[str, ...], arguments) -> Source:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise SystemExit(f"{kind}:{argument} needs datasets; install it with `pip install datasets`") from error
    split, where = arguments.hub_split, {"name": arguments.hub_config, "data_dir": arguments.hub_data_dir}
    try:
        rows = load_dataset(argument, **where, split=split, streaming=True)
        names = rows.column_names or list(next(iter(rows)))
    except StopIteration:
        raise SystemExit(f"{kind}:{argument}: split {split} has no rows; give another with --hub_split") from None
    except Exception as error:  # the Hub client, its network stack and every file format have their own
        reason = " ".join(str(error).split())[:300]
        raise SystemExit(f"{kind}:{argument} cannot be loaded ({type(error).__name__}: {reason})") from error
    columns = choose_columns(f"{kind}:{argument}", names, arguments)
    name = Path(argument).name if Path(argument).exists() else argument  # a card is published, folder names are not
    detail = f"split {split} of the data set {name}"
    detail += "".join(f", {value}" for value in where.values() if value)
    return source_of_rows(lambda: rows.select_columns(list(columns.values())), columns, f"{kind}:{name}", detail)


def choose_columns(spec: str, names: list[str], arguments) -> dict[str, str]:
    """Role -> column of a table; `path` and `licence` may be missing."""
    columns = {}
    for role, usual in USUAL_COLUMNS.items():
        given = getattr(arguments, f"{role}_column")
        if given and given not in names:
            raise SystemExit(f"{spec} has no column {given!r}; set --{role}_column to one of {', '.join(names)}")
        if found := given or next((name for name in usual if name in names), None):
            columns[role] = found
    if "text" not in columns:
        raise SystemExit(f"{spec} has no text column; set --text_column to one of {', '.join(names)}")
    return columns


def source_of_rows(rows, columns: dict[str, str], label: str, detail: str, total: int | None = None) -> Source:
    """A source of table rows, read as a stream. A row without a path is named by its number."""

    def candidates() -> Iterator[Candidate]:
        for number, row in enumerate(rows()):
            path = row.get(columns.get("path")) or f"row-{number}"
            licence = stated_licence(row.get(columns.get("licence")))
            yield Candidate(str(path), lambda row=row: row[columns["text"]], licence=licence)

    return Source(label, detail, "", candidates, licence_by_file="licence" in columns, total=total)


def stated_licence(value: str | Iterable[str] | None) -> str:
    """The licence of a row; several names in a list all apply."""
    names = [value] if isinstance(value, str) else value or ()
    return " AND ".join(normalise_licence(name) for name in names if name)


KINDS = {
    "folder": open_folder,
    "text": open_folder,
    "stdlib": open_stdlib,
    "stdlib-tests": open_stdlib,
    "package": open_package,
    "sdist": open_sdist,
    "parquet": open_parquet,
    "hub": open_hub,
}


def split_by_source(flag: str, values: list[str], specs: list[str]) -> tuple[list[str], dict[str, str]]:
    """`VALUE` and `SOURCE=VALUE` arguments: those for every source, and those for one."""
    general, special = [], {}
    for value in values:
        spec, _, rest = value.rpartition("=")
        if not spec:
            general.append(value)
        elif spec in specs:
            special[spec] = rest
        else:
            raise SystemExit(f"{flag} {value}: {spec} is not one of --sources ({', '.join(specs)}); write it as there")
    return general, special


def as_extensions(names: list[str]) -> tuple[str, ...]:
    return tuple(f".{name.strip().lstrip('.').lower()}" for name in names)


def open_sources(arguments: argparse.Namespace) -> list[Source]:
    """
    Opens the sources of the command line, each with a licence.

    Raises:
        SystemExit: For an unknown kind, a source that is missing or twice there, an unknown or forbidden licence.
    """
    specs = arguments.sources
    licences, special_licences = split_by_source("--license", arguments.license, specs)
    extensions, special_extensions = split_by_source("--extensions", arguments.extensions, specs)
    if len(licences) > 1:
        raise SystemExit(f"--license has {len(licences)} names for the same sources; write SOURCE=NAME for each")
    sources = []
    for spec in specs:
        kind, _, argument = spec.partition(":")
        if kind not in KINDS or bool(argument) == kind.startswith("stdlib"):
            near = difflib.get_close_matches(kind, KINDS, 1)
            hint = f"did you mean {near[0]}? " if near and kind not in KINDS else ""
            known = ", ".join(name if name.startswith("stdlib") else f"{name}:..." for name in KINDS)
            raise SystemExit(f"--sources {spec}: not a source; {hint}give any of {known}")
        chosen = as_extensions(extensions) or CODE_EXTENSIONS if kind != "text" else TEXT_EXTENSIONS
        if spec in special_extensions:
            chosen = as_extensions(special_extensions[spec].split(","))
        source = KINDS[kind](kind, argument, chosen, arguments)
        if spec in special_licences:
            source.licence_by_file = False
        given = special_licences.get(spec) or source.licence or "".join(licences)
        source.licence = normalise_licence(given)
        check_licence(source, spec, arguments.allow_licenses)
        sources.append(source)
    label, count = Counter(source.label for source in sources).most_common(1)[0]
    if count > 1:
        raise SystemExit(f"{count} sources are called {label}; name each once, and rename folders that share a name")
    return sources


def check_licence(source: Source, spec: str, allowed: list[str]) -> None:
    if source.licence_by_file:
        return  # its files are checked one by one
    if not source.licence:
        raise SystemExit(f"The licence of {spec} is unknown; say it with --license {spec}=NAME, e.g. {spec}=MIT")
    if source.licence == "BSD":
        raise SystemExit(
            f"{spec} says BSD but not how many clauses; say it with --license {spec}=BSD-3-Clause or BSD-2-Clause"
        )
    if not is_allowed(source.licence, allowed):
        raise SystemExit(
            f"The licence of {spec} is {source.licence}, which --allow_licenses does not list; leave the source out, "
            f"or accept it with --allow_licenses default NAME ..."
        )


def allowed_licences(names: list[str]) -> list[str]:
    """`--allow_licenses` with `default` spelled out."""
    return sorted({name for given in names for name in (PERMISSIVE if given == "default" else (given,))})


def held_out_labels(sources: list[Source], arguments: argparse.Namespace) -> set[str]:
    """The labels of `--validation_sources`, which are written as in `--sources` or as in the card."""
    names = {
        name: source.label
        for spec, source in zip(arguments.sources, sources, strict=True)
        for name in (spec, source.label)
    }
    for name in arguments.validation_sources:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            raise SystemExit(f"--validation_sources {name} is none of --sources; give {(near or [*names])[0]}, say")
    labels = {names[name] for name in arguments.validation_sources}
    if len(labels) == len(sources):
        raise SystemExit("--validation_sources holds out every source; leave at least one for training")
    return labels
