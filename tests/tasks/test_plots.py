import subprocess
import sys

import pytest


pytest.importorskip("matplotlib")

import numpy as np  # noqa: E402

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


def test_a_missing_matplotlib_is_named():
    code = (
        "import sys\nsys.modules['matplotlib'] = None\nfrom modeling_lpn.tasks import plots\n"
        "for call in (lambda: plots.plot_search([[0.0]]), lambda: plots.plot_latent_map([[0.0]], (0, 1, 0, 1)),\n"
        "             lambda: plots.plot_accuracy_by_budget([1], {'a': [0.5]})):\n"
        "    try:\n        call()\n    except ImportError as error:\n        print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.count("pip install 'modeling-lpn[plots]'") == 3
