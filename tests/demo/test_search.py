"""A search that is watched visits what the search of the model visits, and can be stopped."""

import json
import threading

import pytest
import torch

from modeling_lpn import LPNConfig, LPNModel, LPNProcessor, ProgramInductionPipeline
from modeling_lpn.demo import search
from modeling_lpn.demo.search import (
    execute_program,
    latent_map,
    rank_by_leave_one_out,
    read_json_task,
    search_settings,
    watch_search,
)


TASK = {
    "train": [{"input": [[1, 0]], "output": [[0, 1]]}, {"input": [[2, 0]], "output": [[0, 2]]}],
    "test": [{"input": [[3, 0]]}, {"input": [[4, 0]]}],
}


@pytest.fixture(scope="module")
def infer():
    torch.manual_seed(0)
    model = LPNModel(
        LPNConfig(max_rows=4, max_cols=4, latent_dim=2, search={"lr": 0.5, "starts": "mean+pairs"})
    ).eval()
    return ProgramInductionPipeline(model, processor=LPNProcessor(max_rows=4, max_cols=4))


def watch(infer, config, stop=None):
    return watch_search(infer.model, infer.processor, TASK, config, stop or threading.Event())


@pytest.mark.parametrize("method", search.WORKABLE)
@pytest.mark.parametrize("prior_weight", [0.0, 0.5])
def test_equals_the_pipeline(infer, method, prior_weight):
    config = search_settings(infer.model, method, 12).override(prior_weight=prior_weight)
    *_, trace = watch(infer, config)
    wanted = infer(TASK, search_config=config)
    latents, scores = trace.ranked()
    grids = execute_program(infer.model, infer.processor, TASK, latents, scores, candidates=2)
    assert trace.ended == "finished" and trace.num_evaluations == wanted["num_evaluations"]
    assert grids == wanted["grids"]
    assert float(scores[0, 0]) == pytest.approx(wanted["scores"][0][0], abs=1e-5)
    curve = [value for _, value in trace.curve()]
    assert curve == sorted(curve) and trace.curve()[-1][0] == trace.num_evaluations


def test_a_search_can_be_stopped_and_ends_at_its_time_limit(infer, monkeypatch):
    stop, config = threading.Event(), search_settings(infer.model, "gradient", 300)
    for trace in watch(infer, config, stop):
        if len(trace.steps) >= 3:
            stop.set()
    assert trace.ended == "stopped" and 3 <= len(trace.steps) < 100
    assert trace.ranked()[0].shape == (1, trace.num_evaluations, 2)
    monkeypatch.setattr(search, "MAX_SECONDS", 0.0)
    *_, trace = watch(infer, config)
    assert trace.ended == "time" and len(trace.steps) == 1


def test_an_error_of_the_search_arrives(infer, monkeypatch):
    monkeypatch.setattr(infer.model, "log_prob", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(watch(infer, search_settings(infer.model, "gradient", 3)))


def test_the_map_holds_the_log_likelihood_of_its_places(infer):
    rows = latent_map(infer.model, infer.processor, TASK, half=2.0, resolution=5)
    inputs = infer.processor(TASK)
    demonstrations = {name: value for name, value in inputs.items() if not name.startswith("query")}
    value = infer.model.log_prob(torch.tensor([[[1.0, -2.0]]]), **demonstrations)
    assert rows[0][3] == pytest.approx(float(value.detach()), abs=1e-5)


def test_what_is_refused(infer):
    for text, message in (
        ("[" * 100_000, "This is no JSON"),
        ("{", "This is no JSON"),
        ("[]", "The task is a list"),
        ("{}", "has no key 'train'"),
        (json.dumps({"train": [{"input": [[10]], "output": [[1]]}], "test": []}), "outside 0..9"),
        (" " * search.MAX_JSON + "{}", "The task has 1048578 bytes, more than 1048576"),
    ):
        with pytest.raises(ValueError, match=message):
            read_json_task(text, infer.processor)
    with pytest.raises(ValueError, match="The budget is 301; this demo allows 0 to 300"):
        search_settings(infer.model, "gradient", 301)
    with pytest.raises(ValueError, match="The method is 'all'; known here: gradient, random, evolution"):
        search_settings(infer.model, "all", 3)


@pytest.mark.parametrize("method", search.WORKABLE)
def test_ranking_by_leave_one_out_is_that_of_the_pipeline(method, monkeypatch):
    torch.manual_seed(0)
    model = LPNModel(LPNConfig(max_rows=4, max_cols=4, search={"rank_by": "leave_one_out", "lr": 0.5})).eval()
    infer = ProgramInductionPipeline(model, processor=LPNProcessor(max_rows=4, max_cols=4))
    config = search_settings(infer.model, method, 8, "leave_one_out")
    *_, trace = watch(infer, config)
    by_fit = trace.ranked()[0]
    rank_by_leave_one_out(infer.model, infer.processor, TASK, config, trace)
    wanted = infer(TASK, search_config=config)
    assert trace.num_evaluations == wanted["num_evaluations"] == 3 * 9
    assert execute_program(infer.model, infer.processor, TASK, *trace.ranked(), candidates=2) == wanted["grids"]
    assert trace.ranked()[0].shape == by_fit.shape
    trace.seconds = 30.0
    with pytest.raises(ValueError, match="would take about 90 s, this demo allows 60"):
        rank_by_leave_one_out(infer.model, infer.processor, TASK, config, trace)


def test_ranking_by_leave_one_out_is_refused_where_the_model_starts_elsewhere(infer):
    with pytest.raises(ValueError, match="`rank_by` is 'leave_one_out' and `starts` is 'mean\\+pairs'"):
        search_settings(infer.model, "gradient", 5, "leave_one_out")
    with pytest.raises(ValueError, match="The ranking is 'other'; known here: fit, leave_one_out"):
        search_settings(infer.model, "gradient", 5, "other")
