"""Pictures of tasks with predictions, of scores against the search budget, and of the search itself.

Every function returns a `matplotlib.figure.Figure` that belongs to no window and no global state: save it with
[`save_figure`]. matplotlib is imported where it is used. Grids are drawn with row 0 on top.
"""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..optional import require


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox, BboxBase

Grid = Sequence[Sequence[int]]

# The colours 0 to 9 in which ARC tasks are shown everywhere.
ARC_PALETTE = (
    "#000000",
    "#0074D9",
    "#FF4136",
    "#2ECC40",
    "#FFDC00",
    "#AAAAAA",
    "#F012BE",
    "#FF851B",
    "#7FDBFF",
    "#870C25",
)
INK, MUTED, FRAME = "#1F2933", "#6B7785", "#9AA5B1"
RIGHT, WRONG = "#1B8A3A", "#C8102E"
SERIES = ("#2F6DB5", "#D9772B", "#1B8A3A", "#8E44AD", "#6B7785")
LEAST_NATS, MOST_NATS = 1e-6, 1e6  # what a map tells apart
PANEL = 1.75  # inches, side of the square that one grid gets


def _new_figure(width: float, height: float) -> Figure:
    require("matplotlib", "plots", "A picture")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)  # needs no display, whatever backend is configured
    return figure


def save_figure(figure: Figure, path: str | Path, dpi: int = 150) -> Path:
    """Writes `figure` to `path` (the format follows the suffix) and makes the folder if needed.

    Args:
        figure (`matplotlib.figure.Figure`): what a function of this module returned.
        path (`str` or `Path`): the file to write.
        dpi (`int`): dots per inch of pixel formats.

    Returns:
        `Path`: the file that was written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    return path


def draw_grid(axes: Axes, grid: Grid, title: str, truth: Grid | None = None) -> None:
    """Draws one grid into `axes`; given `truth`, crosses wrong cells out and says in the frame whether it is right.

    Args:
        axes (`matplotlib.axes.Axes`): where to draw.
        grid (`list[list[int]]`): rows from top to bottom, colours 0 to 9.
        title (`str`): first line above the grid; the shape is added below it.
        truth (`list[list[int]]`, *optional*): the right grid.
    """
    from matplotlib.colors import ListedColormap

    rows, cols = len(grid), len(grid[0])
    axes.imshow(grid, cmap=ListedColormap(ARC_PALETTE), vmin=0, vmax=9, origin="upper", interpolation="nearest")
    axes.set_xticks([x - 0.5 for x in range(1, cols)], minor=True)
    axes.set_yticks([y - 0.5 for y in range(1, rows)], minor=True)
    axes.grid(which="minor", color="#55606B", linewidth=0.5 if max(rows, cols) <= 20 else 0.3)
    axes.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
    axes.set_xticks([])
    axes.set_yticks([])
    verdict, color, width = f"{rows} × {cols}", FRAME, 0.8
    if truth is not None:
        verdict, color, width = _verdict(axes, grid, truth)
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=width)
    axes.set_title(f"{title}\n", fontsize=8.5, color=INK, pad=3, linespacing=1.25)
    axes.annotate(
        verdict,
        (0.5, 1),
        (0, 4),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="center",
        fontsize=7.5,
        color=MUTED if truth is None else color,
    )


def _verdict(axes: Axes, grid: Grid, truth: Grid) -> tuple[str, str, float]:
    """Marks wrong cells; returns the words about the prediction, the colour and the width of its frame."""
    from matplotlib.collections import LineCollection

    shape, true_shape = (len(grid), len(grid[0])), (len(truth), len(truth[0]))
    text = f"{shape[0]} × {shape[1]}"
    if shape != true_shape:
        return f"{text} · wrong shape", WRONG, 2.0
    wrong = [(r, c) for r, row in enumerate(grid) for c, cell in enumerate(row) if cell != truth[r][c]]
    if not wrong:
        return f"{text} · right", RIGHT, 2.0
    strokes = [[(c - 0.25, r - s), (c + 0.25, r + s)] for r, c in wrong for s in (0.25, -0.25)]
    thick = min(1.0, 10 / max(shape))  # crosses keep their proportions when the cells get small
    for edge, line in (("black", 2.8), ("white", 1.2)):
        axes.add_collection(LineCollection(strokes, colors=edge, linewidths=line * thick))
    return f"{text} · {len(wrong)} wrong", WRONG, 2.0


def plot_task(
    task: dict[str, Any], predictions: Sequence[Sequence[Grid]] | None = None, title: str | None = None
) -> Figure:
    """Draws a task: its demonstrations, then for each test input the true output and the predicted ones.

    Args:
        task (`dict`): a row with `train` and `test`; `output` may be missing in `test`.
        predictions (`list[list[grid]]`, *optional*): for each test input its grids, best first; two are shown.
        title (`str`, *optional*): says which task it is if not given.

    Returns:
        `matplotlib.figure.Figure`: two rows; a demonstration takes one column (input above output), a test input two
        (input above true output, then the attempts).
    """
    tests = task["test"]
    per_test = 1 if predictions is None else 2
    columns = len(task["train"]) + per_test * len(tests)
    figure = _new_figure(PANEL * columns + 0.3, 2 * (PANEL + 0.35) + 0.4)
    axes = figure.subplots(2, columns, squeeze=False)
    for panel in axes.flat:
        panel.set_axis_off()

    def draw(row: int, column: int, grid: Grid, name: str, truth: Grid | None = None) -> None:
        axes[row][column].set_axis_on()
        draw_grid(axes[row][column], grid, name, truth)

    for index, pair in enumerate(task["train"]):
        draw(0, index, pair["input"], f"demonstration {index + 1}")
        draw(1, index, pair["output"], "its output")
    for index, pair in enumerate(tests):
        column, number = len(task["train"]) + per_test * index, f" {index + 1}" if len(tests) > 1 else ""
        truth = pair.get("output")
        draw(0, column, pair["input"], f"test input{number}")
        if truth is not None:
            draw(1, column, truth, f"true output{number}")
        attempts = predictions[index][:2] if predictions is not None and index < len(predictions) else []
        for row, grid in enumerate(attempts):
            draw(row, column + 1, grid, f"attempt {row + 1}", truth)
    title = title or (f"Task {task['task_id']}" if "task_id" in task else "Task")
    figure.suptitle(
        _wrap(title, figure),
        fontsize=11,
        color=INK,
        x=0.01,
        ha="left",
    )
    return figure


def _wrap(title: str, figure: Any) -> str:
    """A title in lines that fit into the figure (about 11 letters an inch)."""
    return textwrap.fill(title, max(10, int(10 * figure.get_figwidth())))


def _style(axes: Axes, xlabel: str, ylabel: str, title: str) -> None:
    axes.set_xlabel(xlabel, fontsize=9.5, color=INK)
    axes.set_ylabel(ylabel, fontsize=9.5, color=INK)
    axes.set_title(_wrap(title, axes.figure), fontsize=11, color=INK, loc="left", pad=10)
    axes.tick_params(labelsize=8.5, colors=MUTED)
    axes.grid(color="#E4E8EC", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FRAME)


def plot_accuracy_by_budget(
    num_evaluations: Sequence[float], scores: dict[str, Sequence[float]], title: str = "Accuracy against search budget"
) -> Figure:
    """Draws scores against the decoder evaluations that they cost.

    Args:
        num_evaluations (`list[float]`): decoder evaluations per task, one for each budget, at least 1.
        scores (`dict[str, list[float]]`): for each line's name its scores in 0..1, one for each budget.
        title (`str`): above the axes.

    Returns:
        `matplotlib.figure.Figure`: percent over a logarithmic budget axis. The first line carries its values, but for
        those that have no free place beside their point.
    """
    figure = _new_figure(8.2, 4.2)  # says what to install when matplotlib is missing, so it comes first
    axes = figure.subplots()
    styles = ("-", "--", "-.", ":")
    for index, (name, values) in enumerate(scores.items()):
        size = max(3.0, 7.0 - 1.5 * index)  # where values are equal, each series shows behind the next
        line = axes.plot(num_evaluations, [100 * value for value in values], styles[index % len(styles)], label=name)[
            0
        ]
        line.set(color=SERIES[index % len(SERIES)], marker="o", markersize=size, linewidth=1.8)
    axes.set_xscale("log")
    axes.set_xticks(num_evaluations, [f"{x:g}" for x in num_evaluations])
    axes.minorticks_off()
    axes.set_ylim(-4, 104)
    axes.margins(x=0.1)
    _style(axes, "decoder evaluations per task", "accuracy (%)", title)
    axes.legend(fontsize=8.5, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), labelcolor=INK)
    if axes.lines:
        _label_values(axes, axes.lines[0])
    return figure


def _label_values(axes: Axes, line: Line2D) -> None:
    """Writes its value beside each point of a line: where no point, text or axis is, and few lines pass."""
    import matplotlib.patheffects as effects

    figure: Any = axes.figure
    figure.draw_without_rendering()  # lays the axes out; from here on points have their places
    markers = [box for other in axes.lines for box in _marker_boxes(axes, other)]
    taken = list(markers)
    points: Any = line.get_xydata()
    for point, marker in zip(points.tolist(), _marker_boxes(axes, line), strict=True):
        label = axes.annotate(f"{point[1]:.1f}", point, (0, 0), textcoords="offset points", ha="center", va="center")
        label.set(fontsize=8, color=SERIES[0], zorder=5, in_layout=False)
        label.set_path_effects([effects.withStroke(linewidth=2, foreground="white")])
        if not math.isfinite(point[1]) or not _place(label, axes, marker, markers, taken):
            label.remove()


def _place(label: Annotation, axes: Axes, marker: Bbox, markers: list[Bbox], taken: list[Bbox]) -> bool:
    """Moves a label to the best free place around its `marker`, which is then `taken`; whether there is one."""
    best = None
    for offset in _offsets():
        label.set_position(offset)
        box = label.get_window_extent().padded(2)
        if not _contains(axes.bbox, box) or any(box.overlaps(other) for other in taken):
            continue
        paths = [line.get_transform().transform_path(line.get_path()) for line in axes.lines]
        own = _distance(box, marker)
        cost = sum(path.intersects_bbox(box, False) for path in paths)
        cost += 3 * any(_distance(box, other) < own for other in markers)  # it would be read as the other's
        if best is None or cost < best[0]:
            best = cost, offset, box
    if best is None:
        return False
    label.set_position(best[1])
    taken.append(best[2])
    return True


def _offsets() -> Iterator[tuple[float, float]]:
    """Places around a point, in points of type: the near ones first, above left before the others."""
    for distance in (1.0, 1.4, 1.9):
        for x, y in ((-15, 8), (15, -8), (0, 11), (0, -11), (-18, 0), (18, 0), (15, 8), (-15, -8)):
            yield x * distance, y * distance


def _contains(outer: BboxBase, inner: Bbox) -> bool:
    return outer.x0 < inner.x0 and inner.x1 < outer.x1 and outer.y0 < inner.y0 and inner.y1 < outer.y1


def _distance(box: Bbox, marker: Bbox) -> float:
    """From the edge of a text to the middle of a marker."""
    x, y = (marker.x0 + marker.x1) / 2, (marker.y0 + marker.y1) / 2
    return math.hypot(max(box.x0 - x, 0, x - box.x1), max(box.y0 - y, 0, y - box.y1))


def _marker_boxes(axes: Axes, line: Line2D) -> list[Bbox]:
    from matplotlib.transforms import Bbox

    figure: Any = axes.figure
    half = line.get_markersize() / 2 * figure.dpi / 72
    centres = axes.transData.transform(line.get_xydata()).tolist()
    return [Bbox([[x - half, y - half], [x + half, y + half]]) for x, y in centres]


def plot_search(
    log_probs: Sequence[Sequence[float]],
    solved: Sequence[bool] | None = None,
    title: str = "Log-likelihood along the search",
) -> Figure:
    """Draws the log-likelihood of the demonstrations at every step of each task's search, and the median.

    Args:
        log_probs (`list[list[float]]`): for each task its log-likelihoods in nats, one for each step (from step 0, the
            start); lengths may differ.
        solved (`list[bool]`, *optional*): which tasks were solved, to draw them in another colour.
        title (`str`): above the axes.

    Returns:
        `matplotlib.figure.Figure`: one thin line a task. The axes reach down to the lowest quartile of any step, so that
        searches that begin far below or go astray do not flatten the rest.
    """
    figure = _new_figure(7.4, 4.2)
    axes = figure.subplots()
    solved = solved or [True] * len(log_probs)
    colors = {True: SERIES[0], False: SERIES[1]}
    alpha = min(0.6, max(0.12, 12 / max(1, len(log_probs))))
    for values, is_solved in zip(log_probs, solved, strict=True):
        axes.plot(range(len(values)), values, color=colors[is_solved], linewidth=0.7, alpha=alpha)
    longest = max(map(len, log_probs), default=0)
    steps = [[v[step] for v in log_probs if step < len(v) and math.isfinite(v[step])] for step in range(longest)]
    median = [statistics.median(values) if values else math.nan for values in steps]
    axes.plot(range(longest), median, color=INK, linewidth=2.4)
    quartiles = [sorted(values)[len(values) // 4] for values in steps if values]
    if quartiles:
        low, high = min(quartiles), max(max(values) for values in steps if values)
        margin = 0.05 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + margin)
    _style(axes, "gradient step", "log-likelihood of the demonstrations (nats)", title)
    handles = [_line(INK, 2.4, "median")]
    if all(solved):
        handles.append(_line(SERIES[0], 1.2, f"a task ({len(solved)})"))
    else:
        handles.append(_line(SERIES[0], 1.2, f"solved task ({sum(solved)})"))
        handles.append(_line(SERIES[1], 1.2, f"unsolved task ({len(solved) - sum(solved)})"))
    axes.legend(
        handles=handles, fontsize=8.5, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), labelcolor=INK
    )
    return figure


def _line(color: str, width: float, label: str) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, linewidth=width, label=label)


def plot_latent_map(
    log_probs: Any,
    extent: tuple[float, float, float, float],
    paths: Sequence[Any] = (),
    title: str = "Log-likelihood over the latent space",
    labels: tuple[str, str] = ("first latent coordinate", "second latent coordinate"),
) -> Figure:
    """Draws the log-likelihood of a task over a two-dimensional latent space, with the search on top of it.

    Args:
        log_probs (array of shape `(rows, cols)`): log-likelihood in nats; rows follow the second latent coordinate
            upwards, columns the first.
        extent (`tuple[float, float, float, float]`): first coordinate from, to, second coordinate from, to.
        paths (sequence of arrays of shape `(steps + 1, 2)`): the latents that each start of the search visited.
        title (`str`): above the axes.
        labels (`tuple[str, str]`): of the two axes.

    Returns:
        `matplotlib.figure.Figure`: a heat map of the negative log-likelihood on a logarithmic scale, with each path, its start
        as a circle and its end as a star.
    """
    figure = _new_figure(6.6, 5.4)
    import matplotlib.patheffects as effects
    from matplotlib.colors import LogNorm

    axes = figure.subplots()
    # The corners of a map are thousands of nats away, a path moves within the last one: colours are of orders of magnitude.
    missing = np.clip(np.nan_to_num(-np.asarray(log_probs, dtype=float), nan=MOST_NATS), LEAST_NATS, MOST_NATS)
    image = axes.imshow(
        missing,
        extent=extent,
        origin="lower",
        cmap="viridis_r",
        norm=LogNorm(missing.min(), max(missing.max(), 10 * missing.min())),
        aspect="auto",
        interpolation="bilinear",
    )
    outline = [effects.Stroke(linewidth=3.2, foreground="black"), effects.Normal()]
    for index, path in enumerate(paths):
        x, y = [p[0] for p in path], [p[1] for p in path]
        label = {"path": "search path", "start": "start", "end": "end"} if index == 0 else {}
        axes.plot(x, y, color="white", linewidth=1.5, path_effects=outline, label=label.get("path"))
        marks: dict[str, Any] = {"edgecolors": "black", "linewidths": 1.0, "zorder": 3}
        axes.scatter(x[:1], y[:1], s=60, color="white", label=label.get("start"), **marks)
        axes.scatter(x[-1:], y[-1:], s=190, color="#FF4136", marker="*", label=label.get("end"), **marks)
    axes.set_xlim(extent[0], extent[1])
    axes.set_ylim(extent[2], extent[3])
    _style(axes, *labels, title)
    axes.grid(False)
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.ax.invert_yaxis()  # what explains the demonstrations is bright and on top
    bar.set_label("negative log-likelihood of the demonstrations (nats)", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, colors=MUTED)
    bar.outline.set_visible(False)
    if paths:
        place: dict[str, Any] = {
            "loc": "upper center",
            "bbox_to_anchor": (0.5, -0.1),
        }  # on the map it would hide a path
        axes.legend(fontsize=8.5, ncols=3, frameon=False, labelcolor=INK, **place)
    return figure
