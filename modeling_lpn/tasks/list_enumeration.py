"""Programs on lists of integers found by enumeration: the symbolic baseline of latent search, in the space of `lists.py`.

Expressions are built bottom-up, smallest first; of those that compute the same on all inputs the first is kept (observational
equivalence: Albarghouthi et al., 2013).
"""

import itertools
import time
from collections.abc import Iterator, Sequence

from .lists import FUNCTIONS, SCALARS, TABLES, Value, read_values, write_value


# An expression is the number of an input, or `(name, *arguments)` with expressions and keys of tables as arguments.
Expression = int | tuple
Row = tuple[Value, ...]  # what an expression computes on the inputs


def run_expression(expression: Expression | str, inputs: Sequence[Value]) -> Value:
    """
    Value of an expression.

    Raises:
        `IndexError`, `ValueError`: a function has no value there.
    """
    if isinstance(expression, int):
        return inputs[expression]
    name, *arguments = expression
    return FUNCTIONS[name][1](*[x if isinstance(x, str) else run_expression(x, inputs) for x in arguments])


class _Bank:
    """Expressions by type and size, each with what it computes on the demonstrations."""

    def __init__(self, inputs: Sequence[Sequence[Value]]) -> None:
        self.levels: list[dict[str, list[tuple[Expression, Row]]]] = [{"l": [], "i": []}]
        self._seen: set[str] = set()
        for place, row in enumerate(zip(*inputs, strict=True)):
            self.add(0, place, row)

    def add(self, size: int, expression: Expression, row: Row) -> bool:
        """Keeps an expression, unless one that computes the same is there."""
        key = repr(row)
        if key in self._seen:
            return False
        self._seen.add(key)
        self.levels[size]["l" if isinstance(row[0], list) else "i"].append((expression, row))
        return True

    def applications(self, name: str, size: int) -> Iterator[tuple[tuple, list]]:
        """
        All arguments of a function whose expressions have `size` functions together, and what they compute. Keys of tables
        come first, as in every function of the space.
        """
        kinds = FUNCTIONS[name][0]
        tables = itertools.product(*[TABLES[kind] for kind in kinds if kind in TABLES])
        places = [kind for kind in kinds if kind not in TABLES]
        splits = [split for split in itertools.product(range(size + 1), repeat=len(places)) if sum(split) == size]
        for keys, split in itertools.product(tables, splits):
            levels = (self.levels[part][kind] for kind, part in zip(places, split, strict=True))
            for chosen in itertools.product(*levels):
                yield (*keys, *[expression for expression, _ in chosen]), [*keys, *[row for _, row in chosen]]


def _apply(name: str, arguments: list, count: int, largest: int) -> Row | None:
    function, found = FUNCTIONS[name][1], []
    for index in range(count):
        try:
            value = function(*[x if isinstance(x, str) else x[index] for x in arguments])
        except (IndexError, ValueError):
            return None
        items = value if isinstance(value, list) else [value]
        if items and not -largest <= min(items) <= max(items) <= largest:
            return None
        found.append(value)
    return tuple(found)


def enumerate_expressions(
    inputs: Sequence[Sequence[Value]],
    outputs: Sequence[Value],
    max_size: int = 4,
    seconds: float = 1.0,
    max_value: int = 1000,
) -> Iterator[Expression]:
    """
    Expressions that map the inputs of every pair to its output, smallest first, until the time is over.

    Args:
        inputs (`Sequence[Sequence[Value]]`): The values that each pair is given, of the same types in all pairs.
        outputs (`Sequence[Value]`): As many outputs.
        max_size (`int`, defaults to 4): Functions in an expression at most.
        seconds (`float`, defaults to 1.0): Time limit of the whole search.
        max_value (`int`, defaults to 1000): Expressions with larger absolute values on the way are left out.

    Yields:
        `Expression`
    """
    deadline, wanted = time.perf_counter() + seconds, tuple(outputs)
    bank = _Bank(inputs)
    kind = "l" if isinstance(wanted[0], list) else "i"
    for size in range(1, max_size + 1):
        bank.levels.append({"l": [], "i": []})
        for name in FUNCTIONS:
            if size == max_size and (name in SCALARS) != (kind == "i"):
                continue  # nothing larger would read it
            for arguments, rows in bank.applications(name, size - 1):
                if time.perf_counter() > deadline:
                    return
                row = _apply(name, rows, len(wanted), max_value)
                if row == wanted:
                    yield (name, *arguments)
                elif row is not None:
                    bank.add(size, (name, *arguments), row)


def is_list_task(task: dict) -> bool:
    """Whether every input of a row of strings holds a list, and all its texts hold lists and integers only."""
    pairs = [*task["train"], *task["test"]]
    try:
        for text in [text for pair in pairs for text in (pair["input"], pair.get("output", "0"))]:
            read_values(text)
    except ValueError:
        return False
    return all("[" in pair["input"] for pair in pairs)


def answer_lists_by_enumeration(task: dict, max_size: int = 4, seconds: float = 1.0) -> list[list[str]]:
    """
    For every test input of a row of lists the outputs of the first two expressions that differ there, best first.

    Raises:
        `ValueError`: a text is no list and no integer.
    """
    inputs = [read_values(pair["input"]) for pair in task["train"]]
    queries = [read_values(pair["input"]) for pair in task["test"]]
    if len({tuple(type(value) for value in values) for values in inputs + queries}) > 1:
        raise ValueError(
            f"the inputs of task {task['task_id']!r} differ in what they hold; give each the same kinds of values"
        )
    answers: list[list[str]] = [[] for _ in queries]
    outputs = [read_values(pair["output"])[0] for pair in task["train"]]
    for expression in enumerate_expressions(inputs, outputs, max_size, seconds):
        for query, found in zip(queries, answers, strict=True):
            try:
                answer = write_value(run_expression(expression, query))
            except (IndexError, ValueError):
                continue
            if answer not in found and len(found) < 2:
                found.append(answer)
        if all(len(found) == 2 for found in answers):
            break
    return answers


__all__ = ["answer_lists_by_enumeration", "enumerate_expressions", "is_list_task", "run_expression"]
