"""A seeded stream of generated tasks that any position can be read from."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from .generators import TaskGenerator
from .pairs import require_integer


BLOCK_SIZE = 256  # tasks generated at once; part of the definition of a stream: another value is other data


GROUPINGS = ("tokens", "canvas")


class TaskStream(Dataset):
    """
    A fixed, endless-looking sequence of generated tasks: item i is a pure function of `seed` and i, so that any number
    of workers and processes reads the same data and training resumes at any step without replaying. (For one version
    of numpy: its generators may change between versions.)

    Read it in order (`TrainingArguments(train_sampling_strategy="sequential")`): tasks are random anyway, the
    generated blocks are reused, and grouping survives.

    Args:
        task ([`TaskGenerator`]): E.g. [`PatternTask`] or [`PairTask`].
        length (`int`): Number of items. Does not change the items.
        seed (`int`, defaults to 0): Of the whole stream, at least 0.
        group_by (`str`, *optional*): Re-orders the items inside windows so that consecutive groups of `batch_size`
            hold tasks alike, and shuffles the groups. `"tokens"` groups by the largest pair of a task (for models that
            drop padded cells), `"canvas"` by the rows and columns of a task (for models that pad to the batch's
            canvas). On Re-ARC, batches of 32 x 4 pairs then compute 1.6 (without grouping 2.9) and 2.4 (3.2) times the
            cells they hold.
        batch_size (`int`, *optional*): Group size, for `group_by`: the batch of one process, or of all together.
        window (`int`, defaults to 64): Groups per window.
        turned (`bool`, defaults to `False`): For `group_by="canvas"` with a collator that turns grids: an item of odd
            `seed` is grouped with rows and columns exchanged.

    Raises:
        `ValueError`: bad arguments.
    """

    def __init__(
        self,
        task: TaskGenerator,
        length: int,
        seed: int = 0,
        group_by: str | None = None,
        batch_size: int | None = None,
        window: int = 64,
        turned: bool = False,
    ):
        require_integer("length", length, 0)
        require_integer("seed", seed, 0)
        if group_by is not None:
            if group_by not in GROUPINGS:
                raise ValueError(f"`group_by` is {group_by!r}; give one of {', '.join(GROUPINGS)}, or None")
            require_integer("batch_size", batch_size, 1)
            require_integer("window", window, 1)
        self.task = task
        self.length = length
        self.seed = seed
        self.group_by = group_by
        self.batch_size = batch_size
        self.window = window
        self.turned = turned
        self.position = 0
        self._blocks: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        window_blocks = 0 if group_by is None else -(-batch_size * window // BLOCK_SIZE) + 1
        self._max_blocks = max(2, window_blocks)  # two: a batch may lie across a border

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Item `index`: `task_id`, `input_grids` and `output_grids` `(pairs, rows, cols)` uint8, `input_shapes` and
        `output_shapes` `(pairs, 2)`, and `seed` (`int`), from which the collator draws the task's augmentation."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Items `indices`; [`~torch.utils.data.DataLoader`] fetches a batch through it."""
        return [self._item(self._source(self._checked(index))) for index in indices]

    def _checked(self, index: int) -> int:
        if not -self.length <= index < self.length:
            raise IndexError(f"Item {index} is outside a stream of {self.length} items; give a larger `length`")
        return int(index) % self.length

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(self.seed, spawn_key=key)))

    def _block(self, number: int) -> dict[str, Any]:
        """Tasks `number * BLOCK_SIZE` and following, whole whatever the length, so that the length changes no item."""
        if number not in self._blocks:
            rng = self._rng(0, number)
            seeds = rng.integers(0, 2**63, BLOCK_SIZE)  # first: whatever the generator draws, these stay
            self._blocks[number] = {"seed": seeds, **self.task.sample(BLOCK_SIZE, rng)}
            while len(self._blocks) > self._max_blocks:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _item(self, source: int) -> dict[str, Any]:
        number, row = divmod(source, BLOCK_SIZE)
        block = self._block(number)
        task_id = block["task_id"][row] if "task_id" in block else str(source)
        item = {"task_id": task_id, "seed": int(block["seed"][row])}
        for side in ("input", "output"):
            shapes = block[f"{side}_shapes"][row]
            rows, cols = shapes.max(axis=0)
            item[f"{side}_grids"] = block[f"{side}_grids"][row, :, :rows, :cols]
            item[f"{side}_shapes"] = shapes
        return item

    def _source(self, index: int) -> int:
        """Which ungrouped item stands at position `index`."""
        if self.group_by is None:
            return index
        size = self.batch_size * self.window
        number = index // size
        if self._order[0] != number:
            self._order = (number, self._window_order(number, number * size, size))
        return int(self._order[1][index % size])

    def _window_order(self, number: int, start: int, size: int) -> np.ndarray:
        """Positions `start .. start + size - 1` sorted into groups alike, the groups shuffled."""
        sources = np.arange(start, start + size)
        parts = []
        for block_number in range(start // BLOCK_SIZE, (start + size - 1) // BLOCK_SIZE + 1):
            block = self._block(block_number)
            shapes = np.stack([block["input_shapes"], block["output_shapes"]], axis=2)  # (tasks, pairs, 2, 2)
            tokens = shapes.prod(axis=-1).sum(axis=-1).max(axis=-1)
            canvas = shapes.max(axis=(1, 2))
            if self.turned:
                canvas = np.where((block["seed"] & 1)[:, None] == 1, canvas[:, ::-1], canvas)
            parts.append(np.concatenate([tokens[:, None], canvas], axis=1))
        sizes = np.concatenate(parts)[start % BLOCK_SIZE :][:size]
        if self.group_by == "tokens":
            order = np.argsort(sizes[:, 0], kind="stable")
        else:
            order = _tile_order(sizes[:, 1:], self.batch_size)
        groups = sources[order].reshape(self.window, self.batch_size)
        return self._rng(1, number).permutation(groups).reshape(-1)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Items from the current position on, for use without a DataLoader; `state_dict` continues it exactly."""
        while self.position < self.length:
            self.position += 1
            yield self[self.position - 1]

    def state_dict(self) -> dict[str, int]:
        """Position of the sequential iteration and the seed it belongs to."""
        return {"position": self.position, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues the sequential iteration where `state` was taken.

        Raises:
            `ValueError`: the state belongs to a stream of another seed.
        """
        if state["seed"] != self.seed:
            raise ValueError(
                f"The state is of a stream with seed {state['seed']}, this one has {self.seed}; build the stream with"
                " the seed it was saved with"
            )
        self.position = state["position"]


def _tile_order(canvas: np.ndarray, batch_size: int) -> np.ndarray:
    """Order of `(n, 2)` canvases in which groups of `batch_size` have both sides alike: slabs of groups sorted by
    rows, each slab sorted by columns (sort-tile packing). Sorting by area alone would join 10 x 30 with 30 x 10."""
    num_groups = len(canvas) // batch_size
    order = np.argsort(canvas[:, 0], kind="stable").reshape(num_groups, batch_size)
    slabs = np.array_split(order, max(1, round(num_groups**0.5)))
    return np.concatenate([slab.reshape(-1)[np.argsort(canvas[slab.reshape(-1), 1], kind="stable")] for slab in slabs])


def tasks_from_stream(stream, num_tasks: int) -> list[dict]:
    """Rows out of generated tasks: the last pair of an item becomes the test, the others the demonstrations.

    Args:
        stream ([`TaskStream`]): Where to read; to hold tasks out of training, one of another seed.
        num_tasks (`int`): Rows to take from its beginning.

    Returns:
        `list[dict]`: Rows with ids of their own, also where several items come from one program. Tasks on strings have
        strings in place of grids.

    Raises:
        ValueError: The items have a single pair.
    """
    processor = getattr(stream.task, "processor", None)
    write = np.ndarray.tolist if processor is None else processor.decode
    rows, seen = [], {}
    for index in range(num_tasks):
        item = stream[index]
        pairs = [
            {side: write(item[f"{side}_grids"][k, :rows_, :cols]) for side, (rows_, cols) in shapes.items()}
            for k, shapes in enumerate(
                dict(zip(("input", "output"), pair, strict=True))
                for pair in zip(item["input_shapes"], item["output_shapes"], strict=True)
            )
        ]
        if len(pairs) < 2:
            raise ValueError("the generated tasks have one pair each; give `num_pairs` of 2 or more, one is the test")
        seen[item["task_id"]] = seen.get(item["task_id"], 0) + 1
        suffix = f"-{seen[item['task_id']]}" if seen[item["task_id"]] > 1 else ""
        rows.append({"task_id": item["task_id"] + suffix, "train": pairs[:-1], "test": pairs[-1:]})
    return rows


__all__ = ["TaskStream", "tasks_from_stream"]
