"""One engine for work on batches: items of similar size together, dealt to processes, halved where memory ends."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import extract_model_from_parallel, gather_object


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[Any]:
    """The model itself (not its DDP wrapper) in evaluation mode, without gradients; afterwards in the mode it had."""
    model = extract_model_from_parallel(model)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        model.train(was_training)


def map_batches(
    work: Callable[[list[Any]], list[Any]], items: list[Any], size: Callable[[Any], Any], batch_size: int
) -> list[Any]:
    """
    `work` on batches of items of similar size, dealt to the processes of a launch.

    Args:
        work (`Callable`): from some items to as many results; an item's result must not depend on the others.
        items (`list`): the items.
        size (`Callable`): of an item; the largest come first, so that what does not fit into memory shows at once.
        batch_size (`int`): items at a time; where they do not fit into the memory, half of them.

    Returns:
        `list`: the result of every item, in order, in every process.
    """
    state = PartialState()
    order = sorted(range(len(items)), key=lambda index: (-size(items[index]), index))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    results: list[tuple[int, Any]] = []
    for batch in batches[state.process_index :: state.num_processes]:
        results += zip(batch, _work_or_split(work, [items[index] for index in batch]))
    gathered = dict(gather_object(results))
    return [gathered[index] for index in range(len(items))]


def _work_or_split(work: Callable[[list[Any]], list[Any]], items: list[Any]) -> list[Any]:
    try:
        return work(items)
    except torch.OutOfMemoryError:
        if len(items) == 1:
            raise
    torch.cuda.empty_cache()
    half = len(items) // 2
    return _work_or_split(work, items[:half]) + _work_or_split(work, items[half:])
