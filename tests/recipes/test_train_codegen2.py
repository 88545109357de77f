"""Training code models by the real command, on tiny settings: data in, model, logs and record out."""

import json
import math
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cases_codegen2 import tiny_tokenizer, tokenizer_config, write_release
from cases_recipes import ROOT, command, flags, launch, load_recipe, weights
from cases_recipes import call as call_recipe
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from modeling_lpn import CodeGen2Config, CodeGen2ForCausalLM, infill, infill_layout
from modeling_lpn.arguments import given, parse_recipe
from modeling_lpn.code.corpora import split_source, stream_corpus, tokenize_corpus
from modeling_lpn.code.trainer import load_code_model
from modeling_lpn.codegen2.infilling_codegen2 import MaskLayout


FILE = "def function_{0}(a, b):\n    total = a + {0} * b\n    return total  # no <mask_1> here\n\n\n"


train = load_recipe("train_codegen2")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two sources, a held-out one and a tokenizer."""
    folder = tmp_path_factory.mktemp("data")
    for name, files in {"code": range(30), "more": range(30, 40), "held_out": range(40, 46)}.items():
        rows = [{"text": FILE.format(number) * (1 + number % 3), "path": f"{number}.py"} for number in files]
        (folder / name).mkdir()
        split = "validation" if name == "held_out" else "train"
        pq.write_table(pa.Table.from_pylist(rows), folder / name / f"{split}.parquet")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    return folder


def settings_of(data, folder, **more):
    settings = {
        "output_dir": folder,
        "train_files": [data / "code" / "train.parquet", data / "more" / "train.parquet"],
        "source_weights": [1, 1],
        "validation_files": [data / "held_out" / "validation.parquet"],
        "tokenizer_name_or_path": data / "tokenizer",
        **{"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "resid_pdrop": 0.1},
        **{"max_length": 64, "max_steps": 12, "per_device_train_batch_size": 4, "learning_rate": 1e-2},
        **{"save_steps": 4, "save_total_limit": 5, "logging_steps": 4, "eval_strategy": "steps", "eval_steps": 12},
        **{"num_infill_cases": 6, "num_threads": 1, "disable_tqdm": "true", "report_to": "none", **more},
    }
    return flags(settings)


def call(monkeypatch, *arguments):
    call_recipe(train, monkeypatch, *arguments)


def history(folder):
    return json.loads((Path(folder) / "trainer_state.json").read_text())["log_history"]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        call(patch, *settings_of(data, folder))
    return folder


def test_a_run_logs_objectives_targets_speed_and_sources(trained, data):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    assert isinstance(model, CodeGen2ForCausalLM) and model.config.eom_token_id == infill_layout(tokenizer).end_of_span
    logs = [entry for entry in history(trained) if "loss" in entry]
    assert [entry["step"] for entry in logs] == [4, 8, 12]
    for entry in logs:
        assert {"loss_causal", "loss_span_corruption", "tokens_per_second"} <= set(entry)
        assert 0.7 < entry["target_fraction"] < 1
        parts = sorted((entry["loss_causal"], entry["loss_span_corruption"]))
        assert parts[0] <= entry["loss"] <= parts[1]
    assert logs[-1]["loss"] < logs[0]["loss"]
    # Source tokens are counted exactly: those of the sequences seen so far, in equal shares.
    code, more = logs[-1]["tokens_code"], logs[-1]["tokens_more"]
    assert abs(code - more) < 200 and 0.8 * 12 * 4 * 64 < code + more <= 12 * 4 * 64
    record = json.loads((trained / "run.json").read_text())
    assert record["num_parameters"] == model.num_parameters() and record["arguments"]["preset"] == "codegen2"
    assert record["leaks"]["files"] == {} and len(record["leaks"]["compared_with"]) == 2 and record["seconds"] > 0
    assert {"eval_loss", "eval_infill_exact_match", "eval_infill_eom_rate"} <= set(record["evaluation"])


def test_a_killed_and_resumed_run_ends_with_the_same_weights_and_counts(trained, data, tmp_path, monkeypatch):
    arguments = settings_of(data, tmp_path)
    run = command(recipe="train_codegen2", arguments=arguments)
    process = subprocess.Popen(**run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "checkpoint-4"
    while process.poll() is None and not (tmp_path / "checkpoint-8").exists():  # then the one before is complete
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for path in tmp_path.iterdir():
        if path != checkpoint:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match="--resume_from_checkpoint auto"):
        call(monkeypatch, *arguments)
    call(monkeypatch, *arguments, "--resume_from_checkpoint", "auto", "--dataloader_num_workers", "1")
    expected, resumed = weights(trained), weights(tmp_path)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    names = ("loss", "loss_causal", "target_fraction", "tokens_code", "tokens_more")
    last = [next(entry for entry in reversed(history(run)) if "loss" in entry) for run in (trained, tmp_path)]
    assert [last[0][name] for name in names] == pytest.approx([last[1][name] for name in names], abs=1e-6)


def test_accumulation_and_two_processes_equal_one_batch(data, tmp_path, monkeypatch):
    settings = {"resid_pdrop": 0.0, "eval_strategy": "no", "save_strategy": "no", "max_steps": 4, "logging_steps": 1}
    # Targets are unevenly spread, and so are weights.
    settings |= {"preset": "fim", "objective_per": "document", "labels": "targets_only", "span_weight": 3}
    runs = {"whole": (4, 1), "accumulated": (1, 4)}
    for name, (batch, steps) in runs.items():
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
        call(monkeypatch, *settings_of(data, tmp_path / name, **settings, **sizes))
    launch("train_codegen2", *settings_of(data, tmp_path / "two", **settings, per_device_train_batch_size=2))
    whole = weights(tmp_path / "whole")
    for name in ("accumulated", "two"):
        other = weights(tmp_path / name)
        assert all(torch.allclose(whole[key], other[key], atol=2e-6) for key in whole), name
        for entry, reference in zip(history(tmp_path / name)[:-1], history(tmp_path / "whole")[:-1], strict=True):
            keys = [key for key in reference if key.startswith(("loss", "target", "tokens_code", "tokens_more"))]
            assert [entry[key] for key in keys] == pytest.approx([reference[key] for key in keys], rel=1e-4)


def test_streaming_trains_on_the_same_tokens_as_files_in_their_order(data, tmp_path, monkeypatch):
    settings = {"eval_strategy": "no", "save_steps": 2, "max_steps": 4, "logging_steps": 1, "muon": "true"}
    call(monkeypatch, *settings_of(data, tmp_path / "run", streaming="true", **settings))
    shutil.copytree(tmp_path / "run" / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    resume = {"resume_from_checkpoint": "auto", **settings}
    call(monkeypatch, *settings_of(data, tmp_path / "again", streaming="true", **resume))
    expected, resumed = weights(tmp_path / "run"), weights(tmp_path / "again")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    tokenizer, source = AutoTokenizer.from_pretrained(data / "tokenizer"), str(data / "code" / "train.parquet")
    documents = tokenize_corpus(source, tokenizer)
    streamed = list(stream_corpus(source, tokenizer)())
    assert [ids.tolist() for _, ids in streamed] == [documents[index].tolist() for index in range(len(documents))]
    assert streamed[0][0] == documents.name(0) == "0.py"
    layout = infill_layout(tokenizer)
    assert isinstance(layout, MaskLayout) and "<mask_1> here" in tokenizer.decode(documents[0])
    documents.check(layout)  # sentinels written in a file are text


def test_lora_trains_adapters_of_a_checkpoint(trained, data, tmp_path, monkeypatch):
    settings = {"model_name_or_path": trained, "lora_r": 4, "max_steps": 2, "eval_steps": 2, "save_strategy": "no"}
    arguments = settings_of(data, tmp_path, **settings)
    for flag in ("--n_embd", "--n_layer", "--n_head", "--rotary_dim", "--resid_pdrop"):
        place = arguments.index(flag)
        del arguments[place : place + 2]
    call(monkeypatch, *arguments)
    assert (tmp_path / "adapter_config.json").exists() and not (tmp_path / "model.safetensors").exists()
    assert "eval_infill_exact_match" in json.loads((tmp_path / "run.json").read_text())["evaluation"]
    adapted = AutoModelForCausalLM.from_pretrained(tmp_path)
    names = {name for name, _ in adapted.named_parameters() if "lora" in name}
    assert any("qkv_proj" in name for name in names) and not any("lm_head" in name for name in names)


@pytest.mark.parametrize("preset", ["prefix_lm", "ul2", "incoder"])
def test_other_objectives_train(preset, data, tmp_path, monkeypatch):
    settings = {"preset": preset, "max_steps": 2, "logging_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    call(monkeypatch, *settings_of(data, tmp_path, **settings))
    assert all(math.isfinite(entry["loss"]) for entry in history(tmp_path) if "loss" in entry)


def test_any_model_learns_to_infill(data, tmp_path, monkeypatch):
    """A Llama that has no sentinel is given some, trained, and filled with what its tokenizer remembers."""
    core = AutoTokenizer.from_pretrained(data / "tokenizer").backend_tokenizer
    plain = PreTrainedTokenizerFast(tokenizer_object=models_without_masks(core), eos_token="<|end_of_text|>")
    plain.save_pretrained(tmp_path / "llama")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(plain), max_position_embeddings=128, **sizes)).save_pretrained(
        tmp_path / "llama"
    )
    arguments = [
        *(
            "--train_files",
            data / "code" / "train.parquet",
            "--validation_files",
            data / "held_out" / "validation.parquet",
        ),
        *("--max_length", 64, "--max_steps", 4, "--per_device_train_batch_size", 4, "--eval_strategy", "steps"),
        *(
            "--eval_steps",
            4,
            "--num_infill_cases",
            4,
            "--num_threads",
            1,
            "--disable_tqdm",
            "true",
            "--report_to",
            "none",
        ),
    ]
    first = ["--model_name_or_path", tmp_path / "llama", "--output_dir", tmp_path / "one", "--preset", "fim"]
    call(monkeypatch, *map(str, [*arguments, *first, "--add_infill_tokens", "starcoder"]))
    record = json.loads((tmp_path / "one" / "run.json").read_text())
    assert (
        "eval_infill_exact_match" in record["evaluation"] and record["arguments"]["add_infill_tokens"] == "starcoder"
    )
    again = ["--model_name_or_path", tmp_path / "one", "--output_dir", tmp_path / "two", "--preset", "fim"]
    call(monkeypatch, *map(str, [*arguments, *again, "--infill_format", "auto"]))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "two")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "two")
    assert infill(model, tokenizer, "def f(", "):", max_new_tokens=4, infill_format="auto").text.startswith("def f(")
    for more, message in (
        (["--add_infill_tokens", "starcoder", "--lora_r", "4"], "`lora_r` would leave them untrained"),
        ([], "has no sentinel '<mask_1>'.*`add_infill_tokens`"),
        (["--add_infill_tokens", "starcoder", "--preset", "prefix_lm"], "takes no `block_sequence_ids`"),
    ):
        with pytest.raises(ValueError, match=message):
            call(monkeypatch, *map(str, [*arguments, *first, *more, "--output_dir", tmp_path / "three"]))


def models_without_masks(core):
    """The same byte-pair encoding without any added token."""
    state = json.loads(core.to_str())
    state["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(state))


def test_spans_by_syntax_are_counted(data, tmp_path, monkeypatch):
    settings = {"preset": "fim", "fim_rate": 0.8, "syntax_rate": 0.9, "max_steps": 2, "eval_strategy": "no"}
    settings |= {"horizon_weight": 0.1, "logging_steps": 1}
    call(monkeypatch, *settings_of(data, tmp_path, save_strategy="no", **settings))
    assert 0 < history(tmp_path)[0]["loss_horizon"] < 0.5
    spans = json.loads((tmp_path / "run.json").read_text())["spans"]
    assert spans["node"] and spans["run"] and set(spans) <= {"node", "run", "random", "unparsable"}
    settings = {"preset": "ul2_x", "syntax_rate": 0.5, "max_steps": 2, "eval_strategy": "no"}
    call(monkeypatch, *settings_of(data, tmp_path / "corrupted", save_strategy="no", **settings))
    spans = json.loads((tmp_path / "corrupted" / "run.json").read_text())["spans"]
    assert spans["node"] and spans["random"] and set(spans) <= {"node", "run", "random", "unparsable", "short"}


def test_examples_are_shown_and_nothing_is_trained(data, tmp_path, monkeypatch, capsys):
    call(monkeypatch, *settings_of(data, tmp_path / "none", preset="fim", explain=4, cut_within_tokens="true"))
    printed = capsys.readouterr().out
    assert printed.count("sequence ") == 4 and "unit 1: infill" in printed and not (tmp_path / "none").exists()


def test_settings_of_objectives_are_flags(data, tmp_path, monkeypatch, capsys):
    settings = {
        "span_corruption_mask_ratio": [0.05, 0.05],
        "span_corruption_span_length": [2, 2],
        "span_corruption_max_spans": 1,
        "explain": 5,
    }
    call(monkeypatch, *settings_of(data, tmp_path, **settings))
    facts = [line for line in capsys.readouterr().out.splitlines() if "span_corruption" in line]
    assert facts and all("1 spans" in line for line in facts)
    with pytest.raises(ValueError, match="No objective of the preset 'causal' .* has the setting"):
        call(monkeypatch, *settings_of(data, tmp_path, preset="causal", **settings))


def test_mistakes_are_named(data, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`max_lenght` is no known argument; did you mean `max_length`"):
        call(monkeypatch, *settings_of(data, tmp_path, max_lenght=3))
    arguments = settings_of(data, tmp_path)
    place = arguments.index("--validation_files")
    with pytest.raises(ValueError, match="`eval_strategy` is steps and there are no `validation_files`"):
        call(monkeypatch, *arguments[:place], *arguments[place + 2 :])
    with pytest.raises(ValueError, match="Unknown preset 'codegen'"):
        call(monkeypatch, *settings_of(data, tmp_path, preset="codegen"))
    with pytest.raises(FileNotFoundError, match="nowhere.parquet' is no Parquet, JSON or JSON lines file"):
        call(monkeypatch, *settings_of(data, tmp_path, train_files="nowhere.parquet", source_weights=1))
    with pytest.raises(ValueError, match="has no column 'content'; name the one of file contents: text, path"):
        call(monkeypatch, *settings_of(data, tmp_path, text_column="content"))
    with pytest.raises(ValueError, match=r"the weights \[1.0, 1.0, 1.0\]"):
        call(monkeypatch, *settings_of(data, tmp_path, source_weights=[1, 1, 1]))
    with pytest.raises(ValueError, match="two are called .code."):
        twice = [data / "code" / "train.parquet"] * 2
        call(monkeypatch, *settings_of(data, tmp_path, train_files=twice))
    with pytest.raises(ValueError, match="`shuffle_window` is 0"):
        call(monkeypatch, *settings_of(data, tmp_path, shuffle_window=0))
    with pytest.raises(ValueError, match="The tokenizer has 320 tokens, the model embeds 100"):
        call(monkeypatch, *settings_of(data, tmp_path, vocab_size=100))
    with pytest.raises(ValueError, match="has no sentinel '<fim_prefix>'"):
        call(monkeypatch, *settings_of(data, tmp_path, infill_format="starcoder"))
    with pytest.raises(ValueError, match="but the preset 'causal' masks no spans"):
        call(monkeypatch, *settings_of(data, tmp_path, preset="causal", horizon_weight=0.1))
    more = data / "more" / "train.parquet"
    with pytest.raises(ValueError, match=r"10 of 10 files occur in the training data: 30.py as 30.py"):
        call(monkeypatch, *settings_of(data, tmp_path, validation_files=more, leaks="refuse"))
    assert not tmp_path.joinpath("model.safetensors").exists()


def test_names_of_sources():
    assert split_source("hub:org/data:validation") == ("data", "hub:org/data:validation")
    assert split_source("pl=some/folder") == ("pl", "some/folder") and split_source("a/b.parquet")[0] == "b"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "codegen2").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_understood(path, tmp_path):
    if path.stem.endswith("_eval"):
        return
    types = [train.RunArguments, train.objective_arguments(), train.CodeGen2Arguments, train.CodeTrainingArguments]
    flags = [str(path), "--output_dir", str(tmp_path), "--bf16", "false"]
    run, objective_args, model_args, args = parse_recipe(types, flags)
    assert run.train_files and (args.max_steps > 0 or args.num_train_epochs > 0)
    train.ObjectiveMixture.from_preset(run.preset, run.objective_per, **given(objective_args))
    header = path.read_text().split("\n\n")[0]
    assert header.startswith("# ") and f"recipes/codegen2/{path.name}" in path.read_text()
    settings = given(model_args)
    if settings:
        config = CodeGen2Config(**{"mp_num": 1, **settings})
        assert config.n_positions >= run.max_length or "n_positions" not in settings


def test_a_release_is_loaded_by_its_own_class(tmp_path):
    tokenizer = tiny_tokenizer()
    released = CodeGen2ForCausalLM(tokenizer_config(tokenizer, mp_num=8))
    write_release(released, tmp_path, head_dim=4)
    model = load_code_model(str(tmp_path), tokenizer)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is not CodeGen2ForCausalLM  # the built-in, wrong one
    assert type(model) is CodeGen2ForCausalLM and model.config.mp_num == 8
