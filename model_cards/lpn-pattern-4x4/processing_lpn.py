# Copyright 2026 The modeling_lpn authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""ARC-style tasks to padded tensors and predictions back to grids: the one place for grid validation and padding."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin


def _judge_cells(rows: list[list[Any]], where: str) -> None:
    """Raises `ValueError` for the first cell that is not an integer. Bools are refused although Python counts them as
    integers: a mask passed for a grid would otherwise become colours 0 and 1."""
    for row_index, row in enumerate(rows):
        for col_index, value in enumerate(row):
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise ValueError(
                    f"{where}: cell ({row_index}, {col_index}) holds {value!r} ({type(value).__name__}), which is not"
                    " an integer; a cell is a colour number, convert it with int() if that is what is meant"
                )


def _grid_rows(grid: Any, where: str) -> list[list[int]]:
    """Checks types and rectangularity of a nested sequence and returns it as a list of rows of integers."""
    grid = grid.tolist() if hasattr(grid, "tolist") else grid
    if not isinstance(grid, list | tuple):
        raise ValueError(
            f"{where}: is a {type(grid).__name__} ({grid!r:.40}), not a list of rows; give a list of lists of colours"
            " or a 2-D integer array"
        )
    rows = [row.tolist() if hasattr(row, "tolist") else row for row in grid]
    for row_index, row in enumerate(rows):
        if not isinstance(row, list | tuple):
            raise ValueError(
                f"{where}: row {row_index} is a {type(row).__name__} ({row!r:.40}), not a list of colours; a grid is"
                " a list of rows, also when it has one row"
            )
    lengths = sorted({len(row) for row in rows})
    if not rows or lengths == [0]:
        raise ValueError(
            f"{where}: is empty ({len(rows)} rows); a grid has at least one cell, remove the pair or fill it"
        )
    if len(lengths) > 1:
        raise ValueError(
            f"{where}: has rows of different lengths ({' and '.join(map(str, lengths))}); an ARC grid is a rectangle,"
            " make all rows equally long"
        )
    # The set of types decides almost every grid at C speed; the slow loop only runs to name the offending cell.
    if set(map(type, chain.from_iterable(rows))) != {int}:
        _judge_cells(rows, where)
    return rows


def validate_grid(
    grid: Any, where: str = "grid", max_rows: int = 30, max_cols: int = 30, vocab_size: int = 10
) -> np.ndarray:
    """
    Checks one grid and returns it as an array.

    Args:
        grid (`list[list[int]]`, `np.ndarray` or `torch.Tensor`): The grid, row by row.
        where (`str`): What to call the grid in an error message.
        max_rows, max_cols (`int`): Largest sides, in cells.
        vocab_size (`int`): Number of colours; a cell holds 0 to `vocab_size - 1`.

    Returns:
        `np.ndarray` of shape `(rows, cols)`, integer.

    Raises:
        `ValueError`: wrong types, rows of different lengths, no cells, sides over the maximum, cells that are not
        integers or not colours. The message names `where`, the value and the cure.
    """
    if not (isinstance(grid, np.ndarray) and grid.ndim == 2 and grid.size and grid.dtype.kind in "iu"):
        grid = _grid_rows(grid, where)
        lowest, highest = min(map(min, grid)), max(map(max, grid))
    else:
        lowest, highest = int(grid.min()), int(grid.max())
    rows, cols = len(grid), len(grid[0])
    if rows > max_rows or cols > max_cols:
        raise ValueError(
            f"{where}: has {rows} rows and {cols} columns, more than {max_rows} x {max_cols}; remove the task, or use"
            " a model and processor with larger `max_rows` and `max_cols`"
        )
    if lowest < 0 or highest >= vocab_size:
        bad = lowest if lowest < 0 else highest
        cell = next((r, c) for r in range(rows) for c in range(cols) if grid[r][c] == bad)
        raise ValueError(
            f"{where}: cell {cell} holds {bad}, outside 0..{vocab_size - 1}; map the colours to that range, or use a"
            " model and processor with a larger `vocab_size`"
        )
    return np.asarray(grid, dtype=np.uint8 if vocab_size <= 256 else np.int64)


def validate_task(
    task: Any,
    task_id: str | None = None,
    require_test: bool = True,
    max_rows: int = 30,
    max_cols: int = 30,
    vocab_size: int = 10,
) -> dict[str, Any]:
    """
    Checks a task in ARC's own JSON form and returns its grids as arrays.

    Args:
        task (`dict`): `{"train": [{"input", "output"}], "test": [{"input", "output"}]}` with an optional `"task_id"`.
            The `"output"` of a test pair may be missing or `None`: it is what a challenge asks for.
        task_id (`str`, *optional*): Name for error messages when the task carries none.
        require_test (`bool`): Whether at least one test input is needed. Training only reads `"train"`.
        max_rows, max_cols, vocab_size (`int`): Limits, see [`validate_grid`].

    Returns:
        `dict` with `task_id` (`str`, empty if unknown) and `train`, `test`: lists of `(input, output)`,
        integer arrays of shape `(rows, cols)`; the output of a test pair is `None` where there is none.

    Raises:
        `ValueError`: names the task, the pair (counted from 0), the value and the cure.
    """
    if not isinstance(task, Mapping):
        name = f"Task {task_id!r}" if task_id else "The task"
        raise ValueError(
            f"{name} is a {type(task).__name__} ({task!r:.40}), not a dict; a task is"
            ' {"train": [{"input", "output"}], "test": [{"input"}]}'
        )
    task_id = str(task.get("task_id") or task_id or "")
    name = f"Task {task_id!r}" if task_id else "The task"
    limits = {"max_rows": max_rows, "max_cols": max_cols, "vocab_size": vocab_size}
    parts: dict[str, list] = {}
    for part in ("train", "test"):
        if part not in task and part == "test" and not require_test:
            parts[part] = []
            continue
        pairs = _pair_list(task, part, name)
        parts[part] = [_validate_pair(pair, part, index, name, limits) for index, pair in enumerate(pairs)]
    if not parts["train"]:
        raise ValueError(f"{name} has no training pairs (`train` is empty); a program is inferred from at least one")
    if not parts["test"] and require_test:
        raise ValueError(
            f"{name} has no test inputs (`test` is empty); give at least one grid to execute the program on"
        )
    return {"task_id": task_id, **parts}


def _pair_list(task: Mapping, part: str, name: str) -> Sequence:
    if part not in task:
        raise ValueError(
            f"{name} has no key '{part}' (its keys: {', '.join(map(repr, task)) or 'none'}); a task has"
            " 'train' and 'test', lists of pairs"
        )
    pairs = task[part]
    if not isinstance(pairs, list | tuple):
        raise ValueError(
            f"{name}: `{part}` is a {type(pairs).__name__} ({pairs!r:.40}), not a list; give a list of pairs"
            ' {"input": grid, "output": grid}'
        )
    return pairs


def _validate_pair(
    pair: Any, part: str, index: int, name: str, limits: dict[str, int]
) -> tuple[np.ndarray, np.ndarray | None]:
    where = f"{name}, {part} pair {index}"
    if not isinstance(pair, Mapping):
        raise ValueError(
            f"{where} is a {type(pair).__name__} ({pair!r:.40}), not a dict; a pair is"
            ' {"input": grid, "output": grid}'
        )
    for key in ("input", "output"):
        if key not in pair and not (part == "test" and key == "output"):
            raise ValueError(
                f"{where} has no key '{key}' (its keys: {', '.join(map(repr, pair)) or 'none'}); add the {key} grid"
                " or remove the pair"
            )
    grid = validate_grid(pair["input"], f"{where}, `input`", **limits)
    if part == "test" and pair.get("output") is None:
        return grid, None
    return grid, validate_grid(pair["output"], f"{where}, `output`", **limits)


def stack_grids(grids: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Stacks the grids of one task, `(rows_i, cols_i)` each, into `(n, rows, cols)`, zero-padded at the bottom and
    right, and their shapes `(n, 2)`, int64. Without grids: arrays of length 0."""
    shapes = np.array([grid.shape for grid in grids], dtype=np.int64).reshape(-1, 2)
    rows, cols = shapes.max(axis=0) if len(shapes) else (1, 1)
    stacked = np.zeros((len(grids), rows, cols), dtype=grids[0].dtype if len(grids) else np.uint8)
    for target, grid in zip(stacked, grids, strict=True):
        target[: grid.shape[0], : grid.shape[1]] = grid
    return stacked, shapes


def pad_grids(
    grids: Sequence[np.ndarray], shapes: Sequence[np.ndarray], canvas: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """
    Pads the stacked grids of several tasks to one array.

    Args:
        grids: One `(pairs_i, rows_i, cols_i)` array per task.
        shapes: One `(pairs_i, 2)` array per task, the real (rows, cols) of each grid.
        canvas: (rows, cols) of the result, at least every shape.

    Returns:
        `(batch, pairs, rows, cols)` of the grids' type, 0 outside the grids, and `(batch, pairs, 2)` int64. The shape
        of a padded pair is (1, 1): a grid has at least one cell, and a shape of 0 would index before the embeddings.
    """
    rows, cols = canvas
    num_pairs = max((len(task) for task in grids), default=0)
    padded = np.zeros((len(grids), num_pairs, rows, cols), dtype=grids[0].dtype if len(grids) else np.uint8)
    padded_shapes = np.ones((len(grids), num_pairs, 2), dtype=np.int64)
    for index, (task, task_shapes) in enumerate(zip(grids, shapes, strict=True)):
        padded[index, : len(task), : task.shape[1], : task.shape[2]] = task[:, :rows, :cols]
        padded_shapes[index, : len(task)] = task_shapes
    return padded, padded_shapes


def mask_of_counts(counts: Sequence[int]) -> np.ndarray:
    """`(batch, max(counts))` bool, True for the first `counts[i]` of row i: which pairs of a padded batch are real."""
    numbers = np.asarray(counts)
    return np.arange(numbers.max(initial=0)) < numbers[:, None]


class LPNProcessor(ProcessorMixin):
    """
    Turns ARC-style tasks into the padded tensors of [`LPNModel`] and its predictions back into grids.

    Args:
        max_rows, max_cols (`int`, defaults to 30): Largest sides of a grid, in cells.
        vocab_size (`int`, defaults to 10): Number of colours.

    Raises:
        `ValueError`: a size is not an integer of at least 1.

    Example:

    ```python
    >>> from modeling_lpn import LPNProcessor

    >>> task = {"train": [{"input": [[1, 0]], "output": [[2]]}], "test": [{"input": [[0, 3]]}]}
    >>> LPNProcessor()(task)["input_grids"].shape
    torch.Size([1, 1, 1, 2])

    ```
    """

    # Trainer aligns the special tokens of `processing_class.tokenizer` with the model config and crashes without one
    # (transformers 5.23). Grids have no special tokens, and a value of None is left alone there.
    tokenizer = SimpleNamespace(eos_token_id=None, bos_token_id=None, pad_token_id=None)

    def __init__(self, max_rows: int = 30, max_cols: int = 30, vocab_size: int = 10):
        super().__init__()
        for name, value in (("max_rows", max_rows), ("max_cols", max_cols), ("vocab_size", vocab_size)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` is {value!r}; it counts cells or colours, give an integer of at least 1")
        self.max_rows = max_rows
        self.max_cols = max_cols
        self.vocab_size = vocab_size

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that `__call__` returns, in order."""
        pair_names = ["input_grids", "output_grids", "input_shapes", "output_shapes", "pair_mask"]
        return pair_names + ["query_grids", "query_shapes", "query_mask"]

    def validate_task(self, task: Any, task_id: str | None = None, require_test: bool = True) -> dict[str, Any]:
        """Checks a task against this processor's limits and returns its grids as arrays, see [`validate_task`].

        Raises:
            `ValueError`: names the task, the pair (counted from 0), the value and the cure.
        """
        return validate_task(task, task_id, require_test, self.max_rows, self.max_cols, self.vocab_size)

    def __call__(self, tasks: dict | list[dict], return_tensors: str | None = "pt") -> BatchFeature:
        """
        Prepares tasks for [`LPNModel.generate`]: demonstrations from `train`, queries from the inputs of `test`.

        Args:
            tasks (`dict` or `list[dict]`): One task or several in ARC's JSON form, see [`validate_task`]. Test outputs
                are checked where given, but never become part of the tensors.
            return_tensors (`str`, *optional*): `"pt"` for torch, `"np"` or `None` for numpy.

        Returns:
            [`BatchFeature`] with `input_grids`, `output_grids` `(batch, pairs, rows, cols)`, `input_shapes`,
            `output_shapes` `(batch, pairs, 2)`, `pair_mask` `(batch, pairs)`, `query_grids`
            `(batch, queries, rows, cols)`, `query_shapes` `(batch, queries, 2)`, `query_mask` `(batch, queries)`.
            Grids and shapes are int64, masks bool. `rows` and `cols` are the largest of the batch; padding is 0 at
            the bottom and right, padded pairs and queries have shape (1, 1).

        Raises:
            `ValueError`: no tasks, or a task is malformed.
        """
        if isinstance(tasks, Mapping):
            tasks = [tasks]
        elif not isinstance(tasks, Sequence) or isinstance(tasks, str):
            raise ValueError(
                f"The tasks are a {type(tasks).__name__} ({tasks!r:.40}); give a task as a dict"
                ' {"train": [{"input", "output"}], "test": [{"input"}]}, or a list of such dicts'
            )
        if not tasks:
            raise ValueError("There are no tasks (an empty list); give at least one task")
        checked = [self.validate_task(task, task_id=f"{index} of the list") for index, task in enumerate(tasks)]
        stacked = {
            "input": [stack_grids([pair[0] for pair in task["train"]]) for task in checked],
            "output": [stack_grids([pair[1] for pair in task["train"]]) for task in checked],
            "query": [stack_grids([pair[0] for pair in task["test"]]) for task in checked],
        }
        # One canvas for all three, so that a decoder sees a query on the canvas of its demonstrations.
        canvas = np.concatenate([shapes for part in stacked.values() for _, shapes in part]).max(axis=0)
        data: dict[str, np.ndarray] = {}
        for name, part in stacked.items():
            grids, shapes = pad_grids([grids for grids, _ in part], [shapes for _, shapes in part], tuple(canvas))
            data[f"{name}_grids"], data[f"{name}_shapes"] = grids.astype(np.int64), shapes
        data["pair_mask"] = mask_of_counts([len(task["train"]) for task in checked])
        data["query_mask"] = mask_of_counts([len(task["test"]) for task in checked])
        return BatchFeature({name: data[name] for name in self.model_input_names}, tensor_type=return_tensors)

    def post_process(self, generate_output: Any, query_mask: torch.Tensor | None = None) -> list:
        """
        Cuts the predicted grids out of their canvas.

        Args:
            generate_output: Output of [`LPNModel.generate`]: an object with `output_grids`
                `(batch, queries, candidates, rows, cols)` and `output_shapes` `(batch, queries, candidates, 2)`.
            query_mask (`torch.Tensor` of shape `(batch, queries)`, *optional*): Real queries; padded ones are left
                out. By default all are real.

        Returns:
            `list[list[list[list[list[int]]]]]`: per task, per query, per candidate (best first) a grid as ARC's JSON
            has it.
        """
        grids = torch.as_tensor(generate_output.output_grids).cpu().numpy()
        shapes = torch.as_tensor(generate_output.output_shapes).tolist()
        mask = torch.ones(grids.shape[:2]) if query_mask is None else torch.as_tensor(query_mask)
        return [
            [
                [grid[:rows, :cols].tolist() for grid, (rows, cols) in zip(candidates, candidate_shapes, strict=True)]
                for candidates, candidate_shapes, real in zip(task_grids, task_shapes, task_mask, strict=True)
                if real
            ]
            for task_grids, task_shapes, task_mask in zip(grids, shapes, mask.tolist(), strict=True)
        ]


# Printable ASCII, from the space to the tilde.
ALPHABET = "".join(map(chr, range(32, 127)))


@lru_cache  # not an attribute of a processor, all of which are saved
def _symbol_pattern(alphabet: tuple[str, ...]) -> re.Pattern[str]:
    """Reads the longest symbol; `51` is not `5` and `1`, but what is in no alphabet without it."""

    def whole(symbol: str) -> str:
        before, after = (r"\b" if re.match(r"\w", symbol[end]) else "" for end in (0, -1))
        return before + re.escape(symbol) + after

    return re.compile("|".join(map(whole, sorted(alphabet, key=len, reverse=True))) + r"|\w+|.", re.DOTALL)


class StringProcessor(LPNProcessor):
    """
    Turns tasks made of strings into the tensors of [`LPNModel`] and its predictions back into strings. A string is a grid
    of one row; the character `alphabet[i]` is colour `i + 1`, and colour 0 is "no character".

    Output grids are as wide as the next multiple of `output_step`, with colour 0 behind the string: a model then predicts a
    rough length first and the exact end while it writes. The empty string is one cell of colour 0 (or `output_step`).

    Args:
        max_length (`int`, defaults to 64): Longest string, in characters.
        alphabet (`str` or sequence of `str`, defaults to printable ASCII): The characters that a model knows, each once; or
            symbols of one or more characters (`["[", "]", " ", "-1", "0", "1"]`), of which the longest that fits is read; a
            run of letters and digits is one symbol or none. What is said of characters below is then true of symbols.
        output_step (`int`, defaults to 8): Output grids are multiples of so many cells wide, at most `max_length`.

    Raises:
        `ValueError`: a size is not an integer of at least 1, or the alphabet is empty, holds a character twice, or holds an
            empty symbol.

    Example:

    ```python
    >>> from modeling_lpn import StringProcessor

    >>> task = {"train": [{"input": "Ada Lovelace", "output": "A."}], "test": [{"input": "Alan Turing"}]}
    >>> StringProcessor()(task)["query_grids"].shape
    torch.Size([1, 1, 1, 12])

    ```
    """

    def __init__(
        self, max_length: int = 64, alphabet: str | Sequence[str] = ALPHABET, output_step: int = 8, **sizes: Any
    ):
        alphabet = list(alphabet) if isinstance(alphabet, tuple) else alphabet
        symbols = alphabet if isinstance(alphabet, str | list) else []
        wrong = [
            symbol for symbol in symbols if not isinstance(symbol, str) or not symbol or symbols.count(symbol) > 1
        ]
        if not symbols or wrong:
            raise ValueError(
                f"`alphabet` is {alphabet!r:.40} (empty, twice or no text: {wrong[:4]}); give a string of different"
                " characters, or a list of different strings"
            )
        super().__init__(1, max_length, len(alphabet) + 1)
        for name, value in sizes.items():  # a saved processor holds them, though they follow from the others
            if getattr(self, name, None) != value:
                raise ValueError(f"`{name}` is {value!r}; a string processor has {getattr(self, name, None)!r} there")
        if isinstance(output_step, bool) or not isinstance(output_step, int) or output_step < 1:
            raise ValueError(f"`output_step` is {output_step!r}; it counts cells, give an integer of at least 1")
        self.max_length, self.alphabet, self.output_step = max_length, alphabet, output_step

    def split(self, text: str) -> Sequence[str]:
        """The characters of a string, or its symbols and what is none."""
        if isinstance(self.alphabet, str):
            return text
        return _symbol_pattern(tuple(self.alphabet)).findall(text)

    def validate_task(self, task: Any, task_id: str | None = None, require_test: bool = True) -> dict[str, Any]:
        """Checks a task of strings and returns its grids, see [`validate_task`].

        Raises:
            `ValueError`: names the task, the pair and the character (counted from 0) and the cure.
        """
        if not isinstance(task, Mapping):
            return super().validate_task(task, task_id, require_test)
        known_id = str(task.get("task_id") or task_id or "")
        name = f"Task {known_id!r}" if known_id else "The task"
        grids = {key: value for key, value in task.items() if key not in ("train", "test")}
        for part in ("train", "test"):
            if part in task:
                pairs = _pair_list(task, part, name)
                grids[part] = [self._grid_pair(pair, f"{name}, {part} pair {i}") for i, pair in enumerate(pairs)]
        return super().validate_task(grids, task_id, require_test)

    def _grid_pair(self, pair: Any, where: str) -> Any:
        if not isinstance(pair, Mapping):
            return pair  # the check of the task says what is wrong with it
        grids = dict(pair)
        for key in ("input", "output"):
            if pair.get(key) is not None:
                self._check_string(pair[key], f"{where}, `{key}`")
                cells, shapes = self.encode([pair[key]], is_output=key == "output")
                grids[key] = cells[0, :, : shapes[0, 1]]
        return grids

    def _check_string(self, text: Any, where: str) -> None:
        if not isinstance(text, str):
            raise ValueError(f"{where}: is a {type(text).__name__} ({text!r:.40}), not a string; write it as text")
        symbols = self.split(text)
        if len(symbols) > self.max_length:
            raise ValueError(
                f"{where}: has {len(symbols)} characters, more than {self.max_length}; shorten it, or use a model and"
                " processor with a larger `max_length`"
            )
        for position, character in enumerate(symbols):
            if character not in self.alphabet:
                code = f" (U+{ord(character):04X})" if len(character) == 1 else ""
                raise ValueError(
                    f"{where}: character {position} is {character!r}{code}, which is not in the"
                    " alphabet of the model; replace it, or train a model with an `alphabet` that has it"
                )

    def encode(self, texts: Sequence[str], is_output: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """
        Many strings at once, unchecked: characters that are not in the alphabet become 0.

        Args:
            texts (`Sequence[str]`): Strings of at most `max_length` characters.
            is_output (`bool`): Whether widths are rounded up to `output_step`.

        Returns:
            `(count, 1, cols)` grids, uint8 where the alphabet has less than 256 characters, and `(count, 2)` int64 shapes.
        """
        rows = [self.split(text) for text in texts]
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        step = self.output_step if is_output else 1
        widths = np.minimum(-(-np.maximum(lengths, 1) // step) * step, self.max_length)
        cells = np.zeros(
            (len(texts), 1, int(widths.max(initial=1))), dtype=np.uint8 if self.vocab_size <= 256 else int
        )
        cells[np.arange(cells.shape[2]) < lengths[:, None, None]] = self._colors(rows)
        return cells, np.stack([np.ones_like(widths), widths], axis=1)

    def _colors(self, rows: list[Sequence[str]]) -> np.ndarray:
        if not isinstance(self.alphabet, str):
            known = {symbol: color for color, symbol in enumerate(self.alphabet, start=1)}
            return np.array([known.get(symbol, 0) for row in rows for symbol in row])
        codes = np.frombuffer("".join(chain.from_iterable(rows)).encode("utf-32-le", "surrogatepass"), dtype="<u4")
        points = np.array([ord(character) for character in self.alphabet])
        order = points.argsort()
        place = order[np.searchsorted(points, codes, sorter=order).clip(max=len(points) - 1)]
        return np.where(points[place] == codes, place + 1, 0)

    def decode(self, grid: Any) -> str:
        """The string of a grid of one row: its characters up to the first cell of colour 0."""
        cells = np.asarray(grid)[0].tolist()
        end = cells.index(0) if 0 in cells else len(cells)
        return "".join(self.alphabet[cell - 1] for cell in cells[:end])

    def post_process(self, generate_output: Any, query_mask: torch.Tensor | None = None) -> list:
        """
        Reads strings off the predicted grids; arguments as in [`LPNProcessor.post_process`].

        Returns:
            `list[list[list[str]]]`: per task, per query, per candidate (best first) a string.
        """
        grids = super().post_process(generate_output, query_mask)
        return [[[self.decode(grid) for grid in candidates] for candidates in queries] for queries in grids]


__all__ = [
    "ALPHABET",
    "LPNProcessor",
    "StringProcessor",
    "mask_of_counts",
    "pad_grids",
    "stack_grids",
    "validate_grid",
    "validate_task",
]
