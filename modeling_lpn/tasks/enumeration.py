"""Programs on strings found by enumeration: the symbolic baseline of latent search, in the program space of `strings.py`.

Parts that write a piece of every output are put together from left to right, as FlashFill does (Gulwani, 2011), smallest
programs first.
"""

import time
from collections.abc import Iterator, Sequence

from .strings import CONSTANTS, DELIMITERS, STEPS, TOKENS, NoOutput, Part, Program, Step, program_size, run_program


class OutOfTime(Exception):
    """The time limit of a search has passed."""


def all_steps(texts: Sequence[str]) -> list[Step]:
    """Every step of the space whose arguments can matter for these strings."""
    there = [character for character in DELIMITERS if all(character in text for text in texts)]
    indices = (0, 1, 2, -1, -2)
    separators = ("", " ", "-", "/", "_", ", ")
    steps: list[Step] = [("lower",), ("upper",), ("title",), ("trim",)]
    steps += [("token", kind, index) for kind in TOKENS for index in indices]
    steps += [("slice", start, start + length) for start in range(4) for length in range(1, 5)]
    steps += [("slice", -length, None) for length in range(1, 5)]
    steps += [("field", delimiter, index) for delimiter in there for index in (0, 1, -1, -2)]
    steps += [(name, delimiter) for name in ("before", "after") for delimiter in there]
    steps += [(name, old, new) for name in ("replace", "reverse") for old in there for new in separators]
    steps += [
        ("join", kind, new) for kind in ("word", "number", "capital", "alphanumeric") for new in ("", "-", ".", " ")
    ]
    return steps


def _run_step(step: Step, texts: Sequence[str]) -> tuple[str, ...] | None:
    try:
        outputs = tuple(STEPS[step[0]](text, *step[1:]) for text in texts)
    except NoOutput:
        return None
    return outputs if outputs != tuple(texts) else None


def find_parts(inputs: Sequence[str], outputs: Sequence[str], max_steps: int, deadline: float) -> Iterator[tuple]:
    """
    Parts whose result lies in the output for every pair, by number of steps.

    Yields:
        `(part, results)`: `results` is a tuple with one string an input. Of parts with the same results, only the first.

    Raises:
        [`OutOfTime`]: past `deadline` (of `time.perf_counter`).
    """
    level: list[tuple[Part, tuple[str, ...]]] = [((), tuple(inputs))]
    seen = {tuple(inputs)}
    for constant in CONSTANTS:
        if all(constant in output for output in outputs):
            yield (("constant", constant),), (constant,) * len(inputs)
    for _ in range(max_steps):
        following = []
        for part, texts in level:
            for step in all_steps(texts):
                if time.perf_counter() > deadline:
                    raise OutOfTime
                results = _run_step(step, texts)
                if results is None or results in seen:
                    continue
                seen.add(results)
                following.append(((*part, step), results))
                if all(result and result in output for result, output in zip(results, outputs, strict=False)):
                    yield following[-1]
        level = following


def enumerate_programs(
    inputs: Sequence[str], outputs: Sequence[str], max_size: int = 4, seconds: float = 1.0
) -> Iterator[Program]:
    """
    Programs that map every input to its output, smallest first, until the time is over.

    Args:
        inputs, outputs (`Sequence[str]`): The demonstration pairs. Inputs without an output may follow: programs without
            an output there are left out.
        max_size (`int`, defaults to 4): Operations of a program at most.
        seconds (`float`, defaults to 1.0): Time limit of the whole search.

    Yields:
        `Program`: see the module `strings`; of several with the same parts' results on all inputs only one.

    Raises:
        `ValueError`: there are no pairs.
    """
    if not outputs or len(inputs) < len(outputs):
        raise ValueError(f"{len(inputs)} inputs and {len(outputs)} outputs are given; give one or more pairs")
    deadline = time.perf_counter() + seconds
    by_first: dict[str, list[tuple[Part, tuple[str, ...]]]] = {}
    given: set[Program] = set()
    try:
        for max_steps in range(1, min(max_size, 3) + 1):
            by_first.clear()
            try:
                for part, results in find_parts(inputs, outputs, max_steps, deadline):
                    by_first.setdefault(results[0], []).append((part, results))
            except OutOfTime:  # what was found until then may be enough
                deadline += 0.1 * seconds
                max_steps = max_size
            for size in range(1, max_size + 1):
                for program in _concatenations(tuple(outputs), size, by_first, deadline):
                    if program not in given:
                        given.add(program)
                        yield program
            if max_steps == max_size:
                return
    except OutOfTime:
        return


def _concatenations(rest: tuple[str, ...], size: int, by_first: dict, deadline: float) -> Iterator[Program]:
    """Programs of exactly `size` operations that write `rest`."""
    if time.perf_counter() > deadline:
        raise OutOfTime
    if not any(rest):
        if size == 0:
            yield ()
        return
    if size == 0:
        return
    for end in range(1, len(rest[0]) + 1):
        for part, results in by_first.get(rest[0][:end], ()):
            if len(part) <= size and all(text.startswith(result) for text, result in zip(rest, results, strict=False)):
                left = tuple(text[len(result) :] for text, result in zip(rest, results, strict=False))
                for program in _concatenations(left, size - len(part), by_first, deadline):
                    yield (part, *program)


def answer_by_enumeration(task: dict, max_size: int = 4, seconds: float = 1.0) -> list[list[str]]:
    """For every test input of a row of strings the outputs of the first two programs that differ there, best first."""
    inputs, outputs = ([pair[side] for pair in task["train"]] for side in ("input", "output"))
    queries = [pair["input"] for pair in task["test"]]
    answers: list[list[str]] = [[] for _ in queries]
    for program in enumerate_programs(inputs + queries, outputs, max_size, seconds):
        for query, found in zip(queries, answers, strict=True):
            answer = run_program(program, query)
            if answer not in found and len(found) < 2:
                found.append(answer)
        if all(len(found) == 2 for found in answers):
            break
    return answers


def is_ambiguous(program: Program, inputs: Sequence[str], outputs: Sequence[str], seconds: float = 1.0) -> bool:
    """Whether another program, of at most the same size, explains all pairs but the last and gives another output there."""
    others = enumerate_programs(inputs, outputs[:-1], program_size(program), seconds)
    return any(run_program(other, inputs[-1]) != outputs[-1] for other in others)


def nearest_pair(task: dict) -> list[list[str]]:
    """Baseline without a program: the output of the demonstration whose input is most similar (by edit distance)."""
    return [
        [min(task["train"], key=lambda pair: edit_distance(pair["input"], query["input"]))["output"]]
        for query in task["test"]
    ]


def edit_distance(left: str, right: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(right) + 1))
    for index, character in enumerate(left):
        previous, row[0] = row[0], index + 1
        for place, other in enumerate(right):
            previous, row[place + 1] = (
                row[place + 1],
                min(row[place] + 1, row[place + 1] + 1, previous + (character != other)),
            )
    return row[-1]


__all__ = ["answer_by_enumeration", "edit_distance", "enumerate_programs", "is_ambiguous", "nearest_pair"]
