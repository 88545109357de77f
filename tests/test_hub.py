"""From a trained folder to a repository: what is gathered, what may not leave, what the card says."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from cases_codegen2 import tokenizer_config
from huggingface_hub import ModelCard, parse_eval_result_entries

from modeling_lpn import CodeGen2ForCausalLM, LPNConfig, LPNModel, LPNProcessor, StringProcessor, hub
from modeling_lpn.cards import CardFacts, count_parameters, duration, render_card
from modeling_lpn.hub import PUBLISHED, assemble, check_files, publish, verify


RESULTS = Path(__file__).parent.parent / "results"
SIZES = {"encoder_num_heads": 2, "encoder_head_dim": 4, "decoder_num_heads": 2, "decoder_head_dim": 4, "latent_dim": 2}


def save_lpn(folder, **settings):
    """As a training leaves it, with what must not be published."""
    torch.manual_seed(0)
    model = LPNModel(LPNConfig(max_rows=4, max_cols=4, **{**SIZES, "search": {"num_steps": 3}, **settings}))
    model.save_pretrained(folder)
    LPNProcessor(max_rows=4, max_cols=4).save_pretrained(folder)
    shutil.copy(RESULTS / "quickstart_learned_positions" / "run.json", folder)
    for name in ("training_args.bin", "optimizer.pt", "trainer_state.json", "checkpoint-10/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("private")
    return model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    save_lpn(folder)
    return folder


@pytest.fixture
def lpn(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "lpn")
    return tmp_path / "lpn"


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_assembled_folder_is_a_repository_and_assembling_it_again_changes_nothing(lpn, tmp_path):
    results = [RESULTS / "quickstart_learned_positions" / "seed0_chosen.json"]
    left_out = assemble(lpn, tmp_path / "out", results, "me/small", license="apache-2.0")
    first = contents(tmp_path / "out")
    assert set(first) == {
        *("README.md", "card.yaml", "config.json", "model.safetensors", "processor_config.json", "run.json"),
        *(
            f"{name}_lpn.py"
            for name in ("configuration", "modeling", "pipeline", "plan", "processing", "search", "transformer")
        ),
        "results/seed0_chosen.json",
    }
    assert set(left_out) == {
        "training_args.bin",
        "optimizer.pt",
        "trainer_state.json",
        "checkpoint-10/model.safetensors",
    }
    assert json.loads(first["config.json"])["search"] == {"num_steps": 3}
    assert first["model.safetensors"] == (lpn / "model.safetensors").read_bytes()
    assemble(tmp_path / "out", tmp_path / "out", repo_id="me/small")
    assert contents(tmp_path / "out") == first


def test_the_folder_computes_the_same_with_and_without_the_package(lpn, tmp_path):
    assemble(lpn, tmp_path / "out")
    verify(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(
    "old, new, message",
    [
        ("def generate(", "def other(", "cannot be loaded without the package: AttributeError"),
        ("_latents, noise).latents", "_latents, noise).latents + 0.1", "other `latents` than the installed package"),
    ],
)
def test_code_that_computes_something_else_is_seen(lpn, tmp_path, old, new, message):
    assemble(lpn, tmp_path / "out")
    code = tmp_path / "out" / "modeling_lpn.py"
    code.write_text(code.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        verify(tmp_path / "out")


@pytest.mark.slow
def test_weights_of_another_model_are_seen(lpn, tmp_path):
    assemble(lpn, tmp_path / "out")
    save_lpn(tmp_path / "other", decoder_num_layers=1)
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "out")
    with pytest.raises(ValueError, match="do not fit the model: missing keys"):
        verify(tmp_path / "out")


@pytest.mark.slow
def test_a_codegen2_folder_with_its_pipelines(tmp_path, tokenizer):
    torch.manual_seed(0)
    CodeGen2ForCausalLM(tokenizer_config(tokenizer)).save_pretrained(tmp_path / "in", max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path / "in")
    assemble(tmp_path / "in", tmp_path / "out", [RESULTS / "codegen2_quickstart" / "causal_seed0_left_to_right.json"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    assert config["custom_pipelines"]["code-infilling"]["pt"] == ["AutoModelForCausalLM"]
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    verify(tmp_path / "out")


def test_the_card_says_only_what_was_measured(lpn, tmp_path):
    assemble(lpn, tmp_path / "none")
    card = ModelCard.load(tmp_path / "none" / "README.md")
    assert (
        "Not evaluated" in card.text and "%" not in card.text.split("## Results")[1] and card.data.eval_results is None
    )
    record = json.loads((RESULTS / "quickstart_learned_positions" / "seed0_chosen.json").read_text())
    assemble(
        lpn,
        tmp_path / "out",
        [RESULTS / "quickstart_learned_positions" / "seed0_chosen.json"],
        "me/small",
        benchmarks={"pattern": "me/tasks"},
    )
    card, scores = ModelCard.load(tmp_path / "out" / "README.md"), record["results"][-1]["scores"]
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        name: scores[name]
        for name in ("top_1_strict_task_accuracy", "top_2_strict_task_accuracy", "top_1_pixel_accuracy")
    }
    for row in record["results"]:
        assert (
            f"| {row['budget']} | {row['num_evaluations']:.1f} | {100 * row['scores']['top_1_strict_task_accuracy']:.1f} % |"
            in card.text
        )
    model = LPNModel.from_pretrained(lpn)
    assert f"{model.num_parameters():,} parameters" in card.text
    entries = parse_eval_result_entries(
        yaml.safe_load((tmp_path / "out" / ".eval_results" / "seed0_chosen.yaml").read_text())
    )
    assert {(entry.dataset_id, entry.task_id, entry.value) for entry in entries} >= {
        ("me/tasks", "top_2_strict_task_accuracy", scores["top_2_strict_task_accuracy"])
    }


def test_each_number_says_its_setting(tmp_path, tokenizer):
    """Two evaluations of one benchmark are two entries of the Hub's index, and counts are no scores."""
    CodeGen2ForCausalLM(tokenizer_config(tokenizer)).save_pretrained(tmp_path / "in")
    tokenizer.save_pretrained(tmp_path / "in")
    result = {"kind": "tokens", "context_tokens": None, "max_span_tokens": 4, "left_to_right": False}
    for name, context, score in (("far", None, 0.25), ("near", 20, 0.5), ("again", 20, 0.75)):
        scores = {"exact_match": score, "num_cases": 1000}
        record = {"results": {"infill:tokens": {**result, "context_tokens": context, "scores": scores}}}
        record |= {"command": "x", "date": "2026-01-01", "seed": 0, "git_commit": None}
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    assemble(tmp_path / "in", tmp_path / "out", sorted(tmp_path.glob("*.json")), "me/code")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert {(entry.dataset_config, entry.metric_type, entry.metric_value) for entry in card.data.eval_results} == {
        ("max_span_tokens 4", "exact_match", 0.25),
        ("max_span_tokens 4, context_tokens 20, near", "exact_match", 0.5),
        ("max_span_tokens 4, context_tokens 20, again", "exact_match", 0.75),
    }
    assert len(card.data.to_dict()["model-index"][0]["results"]) == 3
    assert "| infill:tokens (max_span_tokens 4) | num_cases | 1,000 |" in card.text
    assert "local_files_only" not in (tmp_path / "out" / "tokenizer_config.json").read_text()  # of this process alone


def test_the_time_of_a_training_is_never_rounded_to_nothing(lpn, tmp_path):
    run = {**json.loads((lpn / "run.json").read_text()), "steps": 5}
    old = {**run, "metrics": {"train_runtime": 3.1}, "arguments": {**run["arguments"], "resume_from_checkpoint": "a"}}
    for record, text in (
        ({**run, "seconds": 9000.0}, "5 steps, 2.5 hours on "),
        ({**old, "seconds": 720.0}, "5 steps, 12.0 minutes on "),
        (old, "5 steps, 3.1 seconds for the part after its last checkpoint on "),
    ):
        (lpn / "run.json").write_text(json.dumps(record))
        assert text in render_card(lpn, "me/small")
    assert [duration(seconds) for seconds in (0.004, 59.4, 60, 7200, 400_000)] == [
        *("0.004 seconds", "59 seconds", "1.0 minutes", "2.0 hours", "111 hours")
    ]


@pytest.mark.parametrize(
    "wrong",
    [{"arguments": []}, {"hardware": None}, {"versions": 3}, {"steps": "many"}, {"evaluation": [1]}, {"metrics": "x"}],
    ids=str,
)
def test_a_record_of_something_else_is_named(lpn, wrong):
    run = {**json.loads((lpn / "run.json").read_text()), "steps": 5, "seconds": None, **wrong}
    (lpn / "run.json").write_text(json.dumps(run))
    with pytest.raises(ValueError, match="run.json is no record of a training"):
        render_card(lpn, "me/small")


def test_a_card_names_the_repository_or_the_folder(lpn):
    assert 'name = "me/small"  # on the Hub; or the path of this folder\n' in render_card(lpn, "me/small")
    assert 'name = "small"  # the path of this folder\n' in render_card(lpn, "small")


def test_the_card_tells_leaks(lpn, tmp_path):
    record = json.loads((RESULTS / "quickstart_learned_positions" / "seed0_chosen.json").read_text())
    record["leaks"] = {"compared_with": ["arcagi:training"], "not_compared": None, "tasks": {"070dd51e": {}}}
    for row in record["results"]:
        row["scores_without_leaks"] = {"top_2_strict_task_accuracy": 0.125}
    (tmp_path / "leaky.json").write_text(json.dumps(record))
    assemble(lpn, tmp_path / "out", [tmp_path / "leaky.json"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        "**1 of these tasks occur in the training data** (`arcagi:training`; compared by content): 070dd51e." in card
    )
    assert "Without them: 12.5 % at budget 5 (two attempts), " in card


@pytest.mark.parametrize(
    "policy, text",
    [
        (
            "flag",
            "**2 of these files occur in the training data** (`train.parquet`; compared by content): a.py, b.py.",
        ),
        (
            "leave_out",
            "2 of these files occur in the training data (`train.parquet`; compared by content) and were left out",
        ),
    ],
)
def test_the_card_tells_leaks_of_code(tmp_path, tokenizer, policy, text):
    CodeGen2ForCausalLM(tokenizer_config(tokenizer)).save_pretrained(tmp_path / "in")
    tokenizer.save_pretrained(tmp_path / "in")
    record = json.loads((RESULTS / "codegen2_quickstart" / "causal_seed0_left_to_right.json").read_text())
    files = {"b.py": "x/b.py", "a.py": "x/a.py"}
    record["leaks"] = {"compared_with": ["train.parquet"], "not_compared": None, "files": files}
    record["arguments"]["leaks"] = policy
    (tmp_path / "leaky.json").write_text(json.dumps(record))
    assemble(tmp_path / "in", tmp_path / "out", [tmp_path / "leaky.json"])
    assert text in (tmp_path / "out" / "README.md").read_text()


@torch.no_grad()
def test_the_snippet_of_the_card_runs(lpn, tmp_path, capsys):
    assemble(lpn, tmp_path / "out", repo_id=str(tmp_path / "out"))  # a path where its name goes
    (snippet,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.S)
    exec(compile(snippet, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("[[[[")


def test_absolute_paths_in_records_lose_their_folders(lpn, tmp_path):
    run = json.loads((lpn / "run.json").read_text())
    run["command"] = (
        f"{Path.cwd()}/recipes/train_lpn.py /home/anna/secret/pattern.yaml --output_dir C:\\Users\\anna\\out"
    )
    run["arguments"]["output_dir"] = "/scratch/anna/out"
    (lpn / "run.json").write_text(json.dumps(run))
    assemble(lpn, tmp_path / "out")
    made = json.loads((tmp_path / "out" / "run.json").read_text())
    assert made["command"] == "recipes/train_lpn.py pattern.yaml --output_dir out"
    assert made["arguments"]["output_dir"] == "out"
    assert "anna" not in (tmp_path / "out" / "README.md").read_text()


def break_token(folder):
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**run, "note": "hf_" + "a1B2" * 9}))


def break_link(folder):
    (folder / "model.safetensors").rename(folder / "elsewhere")
    (folder / "model.safetensors").symlink_to(folder / "elsewhere")


def break_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def break_index(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))


def break_config(folder):
    (folder / "config.json").write_text("[" * 100_000)


def break_type(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))


def break_architecture(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["os"]}))


def break_processor(folder):
    (folder / "processor_config.json").unlink()


def break_results(folder):
    (folder / "results").mkdir()
    (folder / "results" / "x.json").write_text(json.dumps({"results": [{"budget": 1}]}))


def break_facts(folder):
    (folder / "card.yaml").write_text("licence: mit\n")


def break_weights(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


BROKEN = {
    break_token: "run.json .* holds what looks like an access token",
    break_link: "model.safetensors is a symbolic link",
    break_pickle: "only pytorch_model.bin, a pickle",
    break_index: "names the weight file '../elsewhere.safetensors'",
    break_config: "config.json cannot be read",
    break_type: "type 'bert', neither of this package nor",
    break_architecture: "architecture 'os', which modeling_lpn.lpn.modeling_lpn lacks",
    break_processor: "neither processor nor tokenizer",
    break_results: "x.json is no results file",
    break_facts: "'licence'; did you mean 'license'",
    break_weights: "no whole safetensors file",
}


@pytest.mark.parametrize("damage", BROKEN, ids=lambda damage: damage.__name__)
def test_what_cannot_be_published_is_refused_and_changes_nothing(lpn, tmp_path, damage):
    assemble(lpn, tmp_path / "out")
    before = contents(tmp_path / "out")
    damage(lpn)
    with pytest.raises(ValueError, match=BROKEN[damage]):
        assemble(lpn, tmp_path / "out")
    assert contents(tmp_path / "out") == before and not list(tmp_path.glob(".out-*"))


def test_a_file_that_is_no_results_file_is_named_as_it_was_given(lpn, tmp_path):
    with pytest.raises(ValueError, match=f"^{re.escape(str(lpn / 'config.json'))} is no results file"):
        assemble(lpn, tmp_path / "out", [lpn / "config.json"])


def test_nothing_else_leaves(lpn, tmp_path):
    assemble(lpn, tmp_path / "out")
    folder = tmp_path / "out"
    check_files(folder, PUBLISHED)
    for name, text, message in [
        ("optimizer.pt", "", "optimizer.pt in .* is no file of a repository"),
        ("results/deep/x.json", "{}", "is no file of a repository"),
        (
            "generation_config.json",
            json.dumps({"cache": "/data/anna/cache"}),
            "names /data/anna/cache, a path of this machine",
        ),
        ("chat_template.jinja", str(Path.home() / "x"), "a path of this machine"),
    ]:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            check_files(folder, PUBLISHED)
        (folder / name).unlink()
    (folder / "pictures").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="pictures is a symbolic link"):
        check_files(folder, PUBLISHED)


def test_the_local_token_is_found_in_any_form(lpn, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "not-of-the-usual-form")
    (lpn / "card.yaml").write_text("notes: not-of-the-usual-form\n")
    with pytest.raises(ValueError, match="access token") as error:
        assemble(lpn, tmp_path / "out")
    assert "usual-form" not in str(error.value)


def test_a_dry_run_needs_no_network(lpn):
    publication = publish(lpn, "me/small", dry_run=True, check=False)
    assert publication.url is None and publication.files["model.safetensors"] and "me/small" in publication.card
    with pytest.raises(ValueError, match="'small' is no name of a repository"):
        publish(lpn, "small", dry_run=True)


def test_parameters_and_facts_are_read_from_the_files(lpn, tmp_path):
    model = LPNModel.from_pretrained(lpn)
    assert count_parameters(lpn) == model.num_parameters()
    facts = CardFacts(license="mit", benchmarks={"pattern": "me/tasks"})
    facts.write(tmp_path)
    assert CardFacts.read(tmp_path) == facts and CardFacts.read(tmp_path, title="T").title == "T"
    with pytest.raises(ValueError, match="`datasets` of card.yaml is 'me/x'; give a list"):
        CardFacts.read(tmp_path, datasets="me/x")
    with pytest.raises(ValueError, match="no config.json"):
        render_card(tmp_path, "me/x")


@pytest.mark.parametrize(
    "processor",
    [LPNProcessor(2, 3), StringProcessor(8, "ab"), StringProcessor(8, "a"), StringProcessor(8, ["[", "10", "]"])],
    ids=["grids", "characters", "one character", "symbols"],
)
def test_what_a_reloaded_model_is_asked_is_what_its_processor_reads(tmp_path, processor):
    sizes = {name: getattr(processor, name) for name in ("max_rows", "max_cols", "vocab_size")}
    LPNModel(LPNConfig(encoder_num_layers=1, decoder_num_layers=1, **sizes)).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert processor(hub._request(tmp_path)["inputs"]["task"])["pair_mask"].tolist() == [[True, True]]
