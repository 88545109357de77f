"""Tasks of lm-evaluation-harness: their prompts are those of `infill`, for every family."""

import json

import jinja2
import pytest
import yaml
from cases_codegen2 import tiny_tokenizer, tokenizer_config
from cases_recipes import call, flags, load_recipe

from modeling_lpn import CodeGen2ForCausalLM, infill_layout
from modeling_lpn.code.evaluation import InfillCase, evaluate_infilling
from modeling_lpn.code.infill_formats import INFILL_FORMATS


tasks = load_recipe("lm_eval_tasks")
HOLES = [
    {"name": str(number), "prefix": f"def f{number}(a):\n    return ", "middle": "a", "suffix": "\n", "kind": "line"}
    for number in range(5)
]


@pytest.fixture
def folder(tmp_path):
    tokenizer = tiny_tokenizer()
    CodeGen2ForCausalLM(tokenizer_config(tokenizer, mp_num=1)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "holes.jsonl").write_text("".join(json.dumps(hole) + "\n" for hole in HOLES))
    return tmp_path


@pytest.mark.parametrize("name", INFILL_FORMATS)
def test_a_prompt_is_that_of_infill(name):
    names = INFILL_FORMATS[name]
    if names.dummy_prefix:
        with pytest.raises(ValueError, match="puts a space before every text"):
            tasks.prompt_template(names, "prefix", "suffix")
        return
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(
        [token for token in names.sentinels if token not in tokenizer.get_vocab()], special_tokens=True
    )
    if names.mask:
        masks = [names.mask.format(names.first_mask + number) for number in range(3)]
        tokenizer.add_tokens([mask for mask in masks if mask not in tokenizer.get_vocab()], special_tokens=True)
    template = tasks.prompt_template(names, "prompt", "rest")
    prefix, suffix = "def add(a, b):\n    return ", "\n\n\nprint({{1: 2}}, '<b>')  "
    text = jinja2.Environment(keep_trailing_newline=True).from_string(template).render(prompt=prefix, rest=suffix)
    pieces = [tokenizer.encode(piece, add_special_tokens=False) for piece in (prefix, suffix)]
    assert tokenizer.encode(text, add_special_tokens=False) == infill_layout(tokenizer, names).prompt(pieces)


def test_tasks_are_written(folder, monkeypatch):
    settings = {
        "model_name_or_path": folder / "model",
        "holes": folder / "holes.jsonl",
        "output_dir": folder / "tasks",
    }
    call(tasks, monkeypatch, *flags(settings, benchmarks=list(tasks.SOURCES)))
    yaml.SafeLoader.add_constructor("!function", lambda loader, node: node.value)
    for name in tasks.SOURCES:
        task = yaml.safe_load((folder / "tasks" / f"infill_{name}.yaml").read_text())
        assert task["task"] == f"infill_{name}" and task["doc_to_text"].endswith("<|endoftext|><sep><mask_1>")
        layout = infill_layout(tiny_tokenizer())
        assert set(task["generation_kwargs"]["eos_token_id"]) == layout.ends
        assert task["generation_kwargs"]["eos_token_id"][0] == layout.stops[0]
    scope = {}
    exec((folder / "tasks" / "infill_holes.py").read_text(), scope)
    assert scope["process_results"]({"middle": "ab"}, [" ab"])["exact_match"] == 1.0


def test_mistakes_are_named(folder, monkeypatch):
    settings = {"model_name_or_path": folder / "model", "output_dir": folder / "tasks"}
    with pytest.raises(ValueError, match="`benchmarks` has 'safim'; known: holes, santacoder_fim"):
        call(tasks, monkeypatch, *flags(settings, benchmarks="safim"))
    with pytest.raises(FileNotFoundError, match="there is no file .*none.jsonl; give `holes`, or `validation_files`"):
        call(tasks, monkeypatch, *flags(settings, holes=folder / "none.jsonl"))
    with pytest.raises(ValueError, match="is there already"):
        call(tasks, monkeypatch, *flags(settings, holes=folder / "holes.jsonl", validation_files=folder / "a"))


def test_the_harness_writes_what_infill_writes(folder, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install lm-eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    settings = {"model_name_or_path": folder / "model", "holes": folder / "holes.jsonl", "max_new_tokens": 8}
    call(tasks, monkeypatch, *flags(settings, output_dir=folder / "tasks"))
    tokenizer, model = tiny_tokenizer(), CodeGen2ForCausalLM.from_pretrained(folder / "model").eval()
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, max_length=64)
    results = lm_eval.simple_evaluate(harness, tasks=["infill_holes"], task_manager=manager, log_samples=True)
    samples = sorted(results["samples"]["infill_holes"], key=lambda sample: sample["doc_id"])
    cases = [InfillCase(**hole) for hole in HOLES]
    expected, records = evaluate_infilling(model, tokenizer, cases, max_new_tokens=8)
    assert [sample["resps"][0][0] for sample in samples] == [record["prediction"] for record in records]
    assert results["results"]["infill_holes"]["edit_similarity,none"] == pytest.approx(expected["edit_similarity"])
