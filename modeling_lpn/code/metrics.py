"""Scores of written code: `pass@k` where it is run, a comparison of spans with the original where it is not."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist

from ..optional import require


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def pass_at_k(num_correct: int, num_samples: int, k: int) -> float:
    """
    Unbiased estimate of the chance that one of `k` samples of a task is right (arXiv 2107.03374, equation 1).

    Args:
        num_correct (`int`): how many of the task's samples are right.
        num_samples (`int`): how many samples the task has.
        k (`int`): how many may be tried.

    Returns:
        `float`: 1 - C(num_samples - num_correct, k) / C(num_samples, k), as a product that neither overflows nor cancels.

    Raises:
        ValueError: with fewer than `k` samples there is no such estimate; or the numbers contradict each other.

    Example:

    ```python
    >>> from modeling_lpn.code.metrics import pass_at_k

    >>> round(pass_at_k(num_correct=2, num_samples=10, k=5), 4)
    0.7778

    ```
    """
    if not 1 <= k <= num_samples:
        raise ValueError(
            f"pass@{k} needs at least {k} samples of every task, one has {num_samples}; draw more samples"
        )
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"{num_correct} of {num_samples} samples are said to be right; count each sample once")
    if num_samples - num_correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / n for n in range(num_samples - num_correct + 1, num_samples + 1))


def compute_pass_at_k(outcomes: Iterable[Sequence[bool]], k: Sequence[int] = (1,)) -> dict[str, float]:
    """
    Mean of [`pass_at_k`] over tasks.

    Args:
        outcomes (`Iterable[Sequence[bool]]`): for each task, which of its samples are right.
        k (`Sequence[int]`, defaults to `(1,)`): numbers of samples that may be tried.

    Returns:
        `dict[str, float]`: `pass@1`, ... for each number, in 0..1.

    Raises:
        ValueError: there are no tasks, or one has fewer samples than a number of `k`.
    """
    counts = [(sum(map(bool, task)), len(task)) for task in outcomes]
    if not counts:
        raise ValueError("there are no tasks to score; give the outcomes of at least one")
    return {f"pass@{tries}": _mean(pass_at_k(*task, tries) for task in counts) for tries in k}


def wilson_interval(mean: float, number: int, level: float = 0.95) -> tuple[float, float]:
    """
    The Wilson score interval of a share (Wilson, JASA 22, 1927), which is not empty at 0 and 1 either.

    Args:
        mean (`float`): the share of successes in independent trials. Of a mean of values between 0 and 1 (`pass@k` over
            tasks, edit similarity over spans) the interval is conservative: they vary less than zeros and ones.
        number (`int`): how many trials.
        level (`float`, defaults to 0.95): how often such intervals hold the truth.

    Returns:
        `tuple[float, float]`

    Example:

    ```python
    >>> from modeling_lpn.code.metrics import wilson_interval

    >>> [round(bound, 3) for bound in wilson_interval(0.07, 500)]
    [0.051, 0.096]

    ```
    """
    if not 0 <= mean <= 1 or number < 1 or not 0 < level < 1:
        raise ValueError(f"a mean of {mean} over {number} at the level {level}; give [0, 1], at least 1, and (0, 1)")
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre, spread = mean + z * z / (2 * number), z * math.sqrt(mean * (1 - mean) / number + (z / (2 * number)) ** 2)
    low, high = ((centre + sign * spread) / (1 + z * z / number) for sign in (-1, 1))
    return min(max(low, 0.0), mean), max(min(high, 1.0), mean)


def score_intervals(scores: Mapping[str, float], number: int) -> dict[str, list[float]]:
    """The 95 % interval ([`wilson_interval`]) of each score, a mean in 0..1 over so many tasks or spans."""
    return {name: list(wilson_interval(value, number)) for name, value in scores.items()}


def edit_distance(first: str, second: str) -> int:
    """
    Levenshtein distance: the fewest insertions, deletions and replacements of characters between two texts.

    The columns of the table are the bits of an integer (Myers, JACM 46(3), 1999; Hyyrö, 2003), so that a span of 200
    characters takes a fraction of a millisecond.
    """
    if not first or not second:
        return len(first) + len(second)
    places: dict[str, int] = {}
    for place, character in enumerate(first):
        places[character] = places.get(character, 0) | 1 << place
    all_bits, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    up, down, distance = all_bits, 0, len(first)  # where the column's value rises, and falls, by one
    for character in second:
        equal = places.get(character, 0)
        diagonal = (((equal & up) + up) ^ up) | equal | down
        rises, falls = down | ~(diagonal | up) & all_bits, up & diagonal
        distance += bool(rises & last) - bool(falls & last)
        rises, falls = rises << 1 | 1, falls << 1
        equal |= down
        up, down = (falls | ~(equal | rises)) & all_bits, rises & equal & all_bits
    return distance


def infill_scores(
    predictions: Sequence[str], references: Sequence[str], ended: Sequence[bool] | None = None
) -> dict[str, float]:
    """
    Compares written spans with the originals.

    Args:
        predictions (`Sequence[str]`): the spans that a model wrote.
        references (`Sequence[str]`): what stood there.
        ended (`Sequence[bool]`, *optional*): whether the model ended each span itself, by the token that ends a span.

    Returns:
        `dict[str, float]`, each a mean over spans in 0..1: `exact_match` (equal but for white space around them, as in
        the fill-in-the-middle literature), `strict_exact_match` (equal), `edit_similarity` (1 - edit distance / length
        of the longer one) and, given `ended`, `eom_rate`.

    Raises:
        ValueError: there are no spans, or the lists differ in length.
    """
    lengths = {len(predictions), len(references), len(references if ended is None else ended)}
    if len(lengths) > 1 or not predictions:
        raise ValueError(
            f"{len(predictions)} predictions, {len(references)} references"
            + ("" if ended is None else f" and {len(ended)} entries of `ended`")
            + "; give the same number of each, and at least one"
        )
    pairs = list(zip(predictions, references, strict=True))
    scores = {
        "exact_match": _mean(float(written.strip() == truth.strip()) for written, truth in pairs),
        "strict_exact_match": _mean(float(written == truth) for written, truth in pairs),
        "edit_similarity": _mean(1 - edit_distance(*pair) / max(1, *map(len, pair)) for pair in pairs),
    }
    return scores if ended is None else {**scores, "eom_rate": _mean(map(float, ended))}


def _pass_at_k_class():
    datasets, evaluate = require("datasets", "data", "PassAtK"), require("evaluate", "eval", "PassAtK")

    class PassAtK(evaluate.Metric):
        """The scores of [`compute_pass_at_k`] as an `evaluate.Metric`: `PassAtK().compute(predictions=..., k=[1, 10])`.

        One item is one task. `predictions`: for each of its samples, whether it passed (it runs no code itself).
        """

        def _info(self):
            return evaluate.MetricInfo(
                description="Unbiased estimate of the chance that one of k samples of a task passes its tests.",
                citation="Chen et al., Evaluating Large Language Models Trained on Code, arXiv:2107.03374",
                inputs_description="predictions: (tasks, samples) whether the sample passed; k: list of integers",
                features=datasets.Features({"predictions": datasets.List(datasets.Value("bool"))}),
            )

        def _compute(self, predictions, k=(1,)):
            return compute_pass_at_k(predictions, k)

    PassAtK.__module__, PassAtK.__qualname__ = __name__, "PassAtK"
    return PassAtK


def _infill_exact_match_class():
    datasets, evaluate = (
        require("datasets", "data", "InfillExactMatch"),
        require("evaluate", "eval", "InfillExactMatch"),
    )

    class InfillExactMatch(evaluate.Metric):
        """The scores of [`infill_scores`] as an `evaluate.Metric`.

        One item is one span. `predictions`: what was written; `references`: what stood there. Another argument of
        `compute` is `ended`: for each span whether the model ended it itself.
        """

        def _info(self):
            text = datasets.Value("string")
            return evaluate.MetricInfo(
                description="Exact match and edit similarity of infilled spans.",
                citation="Bavarian et al., Efficient Training of Language Models to Fill in the Middle, arXiv:2207.14255",
                inputs_description="predictions, references: texts; ended: list of booleans, optional",
                features=datasets.Features({"predictions": text, "references": text}),
            )

        def _compute(self, predictions, references, ended=None):
            return infill_scores(predictions, references, ended)

    InfillExactMatch.__module__, InfillExactMatch.__qualname__ = __name__, "InfillExactMatch"
    return InfillExactMatch


# Classes that derive from those of `evaluate` are built on demand: it and `datasets` are optional and slow to import.
_LAZY_CLASSES = {
    "InfillExactMatch": _infill_exact_match_class,
    "PassAtK": _pass_at_k_class,
}


def __getattr__(name):
    if name not in _LAZY_CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = _LAZY_CLASSES[name]()
    return globals()[name]
