"""The pipeline "program-induction": what it returns is what `generate` does, and what it refuses."""

import json

import pytest
import torch
from transformers import pipeline

from modeling_lpn import LPNConfig, LPNModel, LPNProcessor, ProgramInductionPipeline
from modeling_lpn.lpn import pipeline_lpn


TASKS = [
    {
        "task_id": f"t{shift}",
        "train": [{"input": [[shift, 0]], "output": [[0, shift]]}, {"input": [[2], [3]], "output": [[3], [2]]}],
        "test": [{"input": [[4, 0, shift]]}] * (1 + shift % 2),
    }
    for shift in range(3)
]


@pytest.fixture(scope="module")
def infer():
    torch.manual_seed(0)
    model = LPNModel(LPNConfig(max_rows=4, max_cols=4, latent_dim=4, search={"num_steps": 3, "lr": 0.5})).eval()
    return pipeline("program-induction", model=model, processor=LPNProcessor(max_rows=4, max_cols=4))


def test_a_task_gets_what_generate_gives(infer):
    result = infer(TASKS[1])
    inputs = infer.processor(TASKS[1])
    output = infer.model.generate(**inputs, num_candidates=2)
    assert isinstance(infer, ProgramInductionPipeline) and result["task_id"] == "t1"
    assert result["grids"] == infer.processor.post_process(output)[0]
    assert [len(candidates) for candidates in result["grids"]] == [2, 2]
    assert result["latents"] == output.latents[0].tolist()
    assert result["num_evaluations"] == int(output.search_output.num_evaluations) == 4
    demonstrations = {name: value for name, value in inputs.items() if not name.startswith("query")}
    scores = infer.model.log_prob(torch.tensor(result["latents"]).flatten(0, 1).unsqueeze(0), **demonstrations)
    assert torch.allclose(scores.view(2, 2), torch.tensor(result["scores"]), atol=1e-5)


def test_settings_and_budgets(infer):
    assert infer(TASKS[0], budget=0)["num_evaluations"] == 1
    assert infer(TASKS[0], method="random", budget=5)["num_evaluations"] == 6
    assert infer(TASKS[0], search_config={"method": "mean"}, num_candidates=1)["num_evaluations"] == 1
    first, again, other = (infer(TASKS[0], method="random", budget=9, seed=seed)["latents"] for seed in (1, 1, 2))
    assert first == again != other
    pulled = infer(TASKS[0], prior_weight=2.0)
    assert pulled["scores"][0][0] < infer(TASKS[0])["scores"][0][0]
    set_before = pipeline("program-induction", model=infer.model, processor=infer.processor, budget=1)
    assert set_before(TASKS[0])["num_evaluations"] == 2


def test_a_list_in_batches_equals_one_by_one(infer, tmp_path):
    path = tmp_path / "named.json"
    path.write_text(json.dumps({name: value for name, value in TASKS[2].items() if name != "task_id"}))
    one_by_one = [infer(task) for task in TASKS]
    for size in (1, 2, 3):
        together = infer([*TASKS[:2], path], batch_size=size)
        assert [result["grids"] for result in together] == [result["grids"] for result in one_by_one]
        assert [result["task_id"] for result in together] == ["t0", "t1", "named"]
    assert infer([]) == []


def test_what_is_refused_before_anything_is_searched(infer, tmp_path, monkeypatch):
    monkeypatch.setattr(infer.model, "generate", lambda **_: pytest.fail("searched"))
    for name, content in (("broken", "{"), ("list", "[]"), ("deep", "[" * 100_000), ("late", '{"train": 1}')):
        (tmp_path / f"{name}.json").write_text(content)
    with pytest.raises(ValueError, match="broken.json is not JSON"):
        infer(tmp_path / "broken.json")
    with pytest.raises(ValueError, match="deep.json is not JSON"):
        infer(tmp_path / "deep.json")
    with pytest.raises(ValueError, match="list.json holds a list, not one task"):
        infer(str(tmp_path / "list.json"))
    with pytest.raises(ValueError, match="Task 'late': `train` is a int"):
        infer([TASKS[0], tmp_path / "late.json"])
    with pytest.raises(FileNotFoundError, match="There is no task file"):
        infer([TASKS[0], tmp_path / "missing.json"])
    with pytest.raises(TypeError, match=r"A task is a int \(3\); give a dictionary"):
        infer([TASKS[0], 3])
    with pytest.raises(ValueError, match="Task '1 of the list' has no training pairs"):
        infer([TASKS[0], {"train": [], "test": []}])
    monkeypatch.setattr(pipeline_lpn, "MAX_FILE_SIZE", 0)
    with pytest.raises(ValueError, match="has 1 bytes, more than 0"):
        infer(tmp_path / "broken.json")
    with pytest.raises(ValueError, match="`budget` is 3, but search method 'mean' has none"):
        infer(TASKS[0], method="mean", budget=3)
    with pytest.raises(ValueError, match="`num_steps` is -1"):
        infer(TASKS[0], budget=-1)
    with pytest.raises(TypeError, match="`methd` is no search setting; did you mean `method`"):
        infer(TASKS[0], methd="mean")
