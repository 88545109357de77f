import json
import subprocess
import sys
from pathlib import Path

import pytest


pytest.importorskip("matplotlib")

import numpy as np  # noqa: E402
from matplotlib.transforms import Bbox  # noqa: E402

from modeling_lpn.tasks import plots


TASK = {
    "task_id": "abc",
    "train": [{"input": [[0, 1], [2, 3]], "output": [[4, 5, 6]]}, {"input": [[7]], "output": [[8, 9]]}],
    "test": [{"input": [[1, 2], [3, 4]], "output": [[1, 2], [3, 4]]}, {"input": [[5]]}],
}


def texts(figure):
    return [text.get_text().strip() for axes in figure.axes for text in [axes.title, *axes.texts]]


def test_task_picture_shows_every_grid_and_says_what_is_right(tmp_path):
    figure = plots.plot_task(TASK, [[[[1, 2], [3, 5]], [[1, 2], [3, 4]]], [[[5]], [[6, 6]]]])
    shown = texts(figure)
    for text in ("demonstration 2", "2 × 2 · 1 wrong", "2 × 2 · right", "1 × 3", "true output 1", "attempt 2"):
        assert text in shown, text
    assert "true output 2" not in shown  # its output is not known
    assert plots.save_figure(figure, tmp_path / "new" / "task.png").stat().st_size > 1000


def test_a_wrong_shape_is_named_and_no_cell_is_marked():
    figure = plots.plot_task({**TASK, "test": TASK["test"][:1]}, [[[[1, 2]]]])
    assert "1 × 2 · wrong shape" in texts(figure)
    assert not any(axes.collections for axes in figure.axes)


def test_row_0_is_on_top_and_colours_are_the_arc_palette():
    figure = plots.plot_task(TASK)
    image = figure.axes[0].images[0]
    assert figure.axes[0].get_ylim()[0] > figure.axes[0].get_ylim()[1]  # the y axis points down
    rgba = image.to_rgba(np.array([[0, 1, 9]]), bytes=True)
    assert rgba[0, :, :3].tolist() == [[0, 0, 0], [0, 0x74, 0xD9], [0x87, 0x0C, 0x25]]


def test_accuracy_is_drawn_over_the_budget(tmp_path):
    scores = {"first attempt": [0.1, 0.5, 0.95], "two attempts": [0.2, 0.6, 1.0]}
    figure = plots.plot_accuracy_by_budget([1, 6, 101], scores)
    axes = figure.axes[0]
    assert axes.lines[0].get_xdata().tolist() == [1, 6, 101]
    assert axes.lines[1].get_ydata().tolist() == [20, 60, 100]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(scores)
    plots.save_figure(figure, tmp_path / "accuracy.png")


WORST = {
    "equal, 0 and 100 %": ([1, 2, 6, 21, 101], [[0, 0.5, 0.5, 1, 1]] * 3),
    "one below the other": ([1, 6, 101], [[0.9, 0.95, 1.0], [0.87, 0.92, 0.97], [0.85, 0.9, 0.95]]),
    "crowded": (list(range(1, 12)), [[0, 0.5, 0.5, 1, 1, 0.9, 0.8, 0.7, 0.99, 0, 0.03], [1.0, 0.1] * 5 + [1.0]]),
    "one point": ([1], [[1.0], [1.0], [0.98]]),
    "not a number": ([1, 6], [[float("nan"), 0.0], [0.0, 1.0]]),
}


def quickstart():
    path = Path(__file__).parents[2] / "results" / "quickstart" / "results.json"
    rows = json.loads(path.read_text())["results"]
    names = ("top_2_strict_task_accuracy", "top_1_strict_task_accuracy", "top_1_pixel_accuracy")
    return [row["num_evaluations"] for row in rows], [[row["scores"][name] for row in rows] for name in names]


def boxes_of_points(axes, dpi):
    for line in axes.lines:
        half = line.get_markersize() / 2 * dpi / 72
        for x, y in axes.transData.transform(line.get_xydata()):
            yield Bbox([[x - half, y - half], [x + half, y + half]])


@pytest.mark.parametrize("case", ["quickstart", *WORST])
@pytest.mark.parametrize("dpi", [100, 150])
def test_values_hide_no_point_no_text_and_no_axis(case, dpi):
    budgets, series = quickstart() if case == "quickstart" else WORST[case]
    figure = plots.plot_accuracy_by_budget(budgets, {f"series {n}": values for n, values in enumerate(series)})
    figure.set_dpi(dpi)
    figure.canvas.draw()
    axes = figure.axes[0]
    labels = [text.get_window_extent() for text in axes.texts]
    others = [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.title, *axes.get_legend().get_texts()]
    for number, box in enumerate(labels):
        inside = axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 and axes.bbox.y0 < box.y0 and box.y1 < axes.bbox.y1
        assert inside, axes.texts[number].get_text()
        taken = [*labels[:number], *boxes_of_points(axes, dpi), *(text.get_window_extent() for text in others)]
        assert not any(box.overlaps(other) for other in taken), axes.texts[number].get_text()
    known = sum(np.isfinite(series[0]))
    assert len(labels) == known if case != "crowded" else len(labels) >= known - 3


def test_the_value_is_beside_its_own_point():
    budgets, series = quickstart()
    figure = plots.plot_accuracy_by_budget(budgets, {str(n): values for n, values in enumerate(series)})
    figure.canvas.draw()
    axes = figure.axes[0]
    points = {tuple(p): axes.transData.transform(p) for line in axes.lines for p in line.get_xydata()}
    for text in axes.texts:
        box = text.get_window_extent()
        distances = {p: np.hypot(*(np.clip(at, box.min, box.max) - at)) for p, at in points.items()}
        nearest = points[min(distances, key=distances.get)]
        own = axes.lines[0].get_markersize() / 2 * figure.dpi / 72
        # Points under one marker are one to the eye.
        assert np.hypot(*(nearest - points[text.xy])) < own, text.get_text()


def test_titles_say_what_is_shown_and_fit():
    assert plots.plot_task({**TASK, "task_id": 0}).get_suptitle() == "Task 0"
    task = {"task_id": "a_very_long_name_of_a_generated_task_" * 2, "train": TASK["train"][:1], "test": []}
    for figure in (plots.plot_task(task), plots.plot_latent_map([[0.0]], (0, 1, 0, 1), title="word " * 40)):
        figure.canvas.draw()
        title = figure._suptitle or figure.axes[0]._left_title
        box = title.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_no_legend_lies_on_the_data():
    path = np.array([[-1.0, 0.0], [1.9, 2.9]])
    searches = [[-3.0, -2.0], [-5.0, -6.0]]
    for figure in (plots.plot_latent_map(np.zeros((4, 5)), (-2, 2, -1, 3), [path]), plots.plot_search(searches)):
        figure.canvas.draw()
        axes = figure.axes[0]
        assert not axes.get_legend().get_window_extent().overlaps(axes.bbox)


def test_search_picture_has_one_line_a_task_and_the_median_of_what_is_finite(tmp_path):
    log_probs = [[-3.0, -2.0, -1.0], [-5.0, -4.0], [-4.0, float("nan"), -2.0]]
    figure = plots.plot_search(log_probs, [True, False, True])
    axes = figure.axes[0]
    assert len(axes.lines) == 4
    assert axes.lines[-1].get_ydata().tolist() == [-4.0, -3.0, -1.5]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["median", "solved task (2)", "unsolved task (1)"]
    plots.save_figure(figure, tmp_path / "search.png")


def test_latent_map_has_the_path_on_it(tmp_path):
    path = np.array([[-1.0, 0.0], [0.0, 0.5], [1.0, 1.0]])
    figure = plots.plot_latent_map(np.zeros((4, 5)), (-2, 2, -1, 3), [path, path + 0.5])
    axes = figure.axes[0]
    assert axes.lines[0].get_xdata().tolist() == [-1.0, 0.0, 1.0]
    assert (axes.get_xlim(), axes.get_ylim()) == ((-2, 2), (-1, 3))
    assert len(axes.get_legend().get_texts()) == 3  # one legend entry each, whatever the number of paths
    plots.save_figure(figure, tmp_path / "map.png")


def test_latent_map_tells_orders_of_magnitude_apart():
    log_probs = -np.array([[0.0, 1e-3, 0.1], [10.0, 1e3, np.inf]])
    image = plots.plot_latent_map(log_probs, (-1, 1, -1, 1)).axes[0].images[0]
    shares = image.norm(image.get_array()).flatten()
    assert (np.diff(shares) > 0.1).all() and shares[0] == 0 and shares[-1] == 1
    log_probs[1, 2] = np.nan  # as bad as can be
    worst = plots.plot_latent_map(log_probs, (-1, 1, -1, 1)).axes[0].images[0]
    assert np.array_equal(worst.get_array(), image.get_array())


def test_a_missing_matplotlib_is_named():
    code = (
        "import sys\nsys.modules['matplotlib'] = None\nfrom modeling_lpn.tasks import plots\n"
        "for call in (lambda: plots.plot_search([[0.0]]), lambda: plots.plot_latent_map([[0.0]], (0, 1, 0, 1)),\n"
        "             lambda: plots.plot_accuracy_by_budget([1], {'a': [0.5]})):\n"
        "    try:\n        call()\n    except ImportError as error:\n        print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.count("pip install 'modeling-lpn[plots]'") == 3
