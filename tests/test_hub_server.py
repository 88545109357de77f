"""The whole way to a Hub and back, against a small one on the loopback."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import build_pattern
import huggingface_hub
import pytest
import torch
from cases_codegen2 import tiny_model, write_release
from hub_server import CUT, HubServer
from test_hub import SIZES, contents, save_lpn

from modeling_lpn import (
    DataCollatorForGridTasks,
    LPNConfig,
    LPNModel,
    LPNProcessor,
    LPNTrainer,
    PatternTask,
    TaskStream,
)
from modeling_lpn import hub as hub_module
from modeling_lpn.hub import HubError, assemble, publish
from modeling_lpn.pipelines import load_pipeline
from modeling_lpn.tasks.arguments import LPNTrainingArguments


ROOT = Path(__file__).parent.parent


TOKEN, READ_ONLY = "hf_" + "Anna" * 9, "hf_" + "Read" * 9


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub where the user is anna."""
    with HubServer() as server:
        server.tokens = {TOKEN: ("anna", True), READ_ONLY: ("anna", False)}
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # CI says offline, and means what lies outside
        yield server


@pytest.fixture(scope="module")
def lpn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "lpn"
    save_lpn(folder)
    return folder


def run(hub, code, tmp_path, token=TOKEN):
    """Python in a fresh process with an empty cache, as any user of the Hub."""
    environment = {
        "PATH": os.environ["PATH"],
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    environment |= {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "OMP_NUM_THREADS": "1"}
    environment |= {"HF_TOKEN": token} if token else {}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert TOKEN not in result.stdout + result.stderr
    return result


def test_what_is_published_is_the_assembled_folder(hub, lpn, tmp_path):
    publication = publish(lpn, "anna/small", check=False, license="mit", tag="v1")
    repository = hub.repository("models", "anna/small")
    assemble(lpn, tmp_path / "out", repo_id="anna/small", license="mit")
    assert {**repository.files, ".gitattributes": b""} == {**contents(tmp_path / "out"), ".gitattributes": b""}
    assert (
        repository.private and len(repository.commits) == 2 and publication.url.endswith(repository.branches["main"])
    )
    assert repository.tags == {"v1": repository.branches["main"]}
    uploads = [path for method, path in hub.requests if method == "PUT"]
    publish(lpn, "anna/small", check=False, license="mit")  # safe to repeat: nothing is sent, nothing changes
    assert len(repository.commits) == 2 and [path for method, path in hub.requests if method == "PUT"] == uploads
    with pytest.raises(ValueError, match="has a tag 'v1' already"):
        publish(lpn, "anna/small", check=False, title="New", tag="v1")
    assert len(repository.commits) == 2


def test_a_new_version_removes_what_it_no_longer_has_and_nothing_of_others(hub, lpn, tmp_path):
    publish(lpn, "anna/small", check=False)
    repository = hub.repository("models", "anna/small")
    old = {"training_args.bin": b"x", "results/old.json": b"{}", "notes.txt": b"mine", "modeling_old.py": b""}
    repository.add({**repository.files, **old}, "by hand", "main")
    publication = publish(lpn, "anna/small", check=False, title="New")
    assert publication.removed == ["modeling_old.py", "results/old.json", "training_args.bin"]
    assert "notes.txt" in repository.files and not set(publication.removed) & set(repository.files)


def test_a_branch_and_a_public_repository(hub, lpn):
    publish(lpn, "anna/small", check=False, private=False, revision="next")
    repository = hub.repository("models", "anna/small")
    assert not repository.private and list(repository.files) == [".gitattributes"]
    assert "model.safetensors" in repository.commits[repository.branches["next"]]


FAULTS = [
    ("POST", "/preupload/", 401, "answers 401: the token is not valid"),
    ("POST", "/preupload/", 403, "answers 403: the token may not write there"),
    ("GET", "/api/models/anna/small", 404, "answers 404: there is no such repository"),
    ("POST", "/commit/", 409, "answers 409: somebody else changed the repository"),
    ("POST", "/commit/", 500, "answers 500: the Hub has a fault; run the command again later"),
    ("POST", "/commit/", CUT, "the connection to the Hub failed"),
    ("POST", "/commit/", 3.0, "the connection to the Hub failed .*Timeout"),
    ("PUT", "/upload/", 403, "answers 403"),
]


@pytest.mark.parametrize("method, path, fault, message", FAULTS, ids=[f"{fault[1]}-{fault[2]}" for fault in FAULTS])
def test_faults_are_explained_and_nothing_is_half_published(hub, lpn, monkeypatch, method, path, fault, message):
    publish(lpn, "anna/small", check=False)
    repository = hub.repository("models", "anna/small")
    before = dict(repository.files)
    hub.objects.clear()
    monkeypatch.setattr(hub_module, "TIMEOUT", 1.0)
    hub.fail(method, path, fault)
    with pytest.raises(HubError, match=message) as error:
        publish(lpn, "anna/small", check=False, title="New", tag="v2")
    assert TOKEN not in str(error.value) and "\n" not in str(error.value)
    if fault not in (CUT, 3.0):  # there the commit has arrived, only the answer has not
        assert repository.files == before and not repository.tags
    publish(lpn, "anna/small", check=False, title="New", tag="v2")
    assert b"# New" in repository.files["README.md"] and "v2" in repository.tags


def test_who_may_not_write_is_told(hub, lpn, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", READ_ONLY)
    monkeypatch.setattr(hub_module, "assemble", lambda *_, **__: pytest.fail("the work has begun"))
    with pytest.raises(HubError, match="anna/small: the token only reads; use one with write access") as error:
        publish(lpn, "anna/small", check=False)
    assert READ_ONLY not in str(error.value)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "Wrong" * 8)
    with pytest.raises(HubError, match="401: the token is not valid"):
        publish(lpn, "anna/small", check=False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(hub_module, "get_token", lambda: None)
    with pytest.raises(HubError, match="nobody is logged in to the Hub; run `hf auth login`"):
        publish(lpn, "anna/small", check=False)
    assert not hub.repositories


def test_somebody_else_commits_meanwhile(hub, lpn, monkeypatch):
    publish(lpn, "anna/small", check=False)
    repository = hub.repository("models", "anna/small")
    create = huggingface_hub.HfApi.create_commit

    def late(*args, **kwargs):
        repository.add({**repository.files, "other.txt": b"new"}, "somebody else", "main")
        return create(*args, **kwargs)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", late)
    with pytest.raises(HubError, match="412: somebody else changed the repository meanwhile"):
        publish(lpn, "anna/small", check=False, title="New")
    assert repository.messages[-1] == "somebody else"


# --- the trainers ---


def lpn_trainer(folder, **settings):
    model = LPNModel(LPNConfig(max_rows=4, max_cols=4, **SIZES))
    processor = LPNProcessor(max_rows=4, max_cols=4)
    task = PatternTask(num_pairs=3, num_rows=4, num_cols=4, pattern_size=2)
    args = LPNTrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=2,
        save_steps=1,
        report_to="none",
        push_to_hub=True,
        use_cpu=True,
        **settings,
    )
    return LPNTrainer(
        model=model,
        args=args,
        data_collator=DataCollatorForGridTasks(processor),
        train_dataset=TaskStream(task, 4, seed=0),
        processing_class=processor,
    )


def test_a_trainer_pushes_while_it_trains(hub, tmp_path):
    trainer = lpn_trainer(tmp_path / "out", hub_model_id="anna/trained")
    hub.fail("POST", "/commit/", 500)  # the first push fails, and the training goes on
    trainer.train()
    repository = hub.repository("models", "anna/trained")
    assert repository.private and repository.messages == ["initial commit", "Training in progress, step 2"]
    names = set(repository.files)
    assert {"model.safetensors", "modeling_lpn.py", "processor_config.json", "run.json", "README.md"} <= names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pth")) or "state" in name}
    assert not any(TOKEN.encode() in content for files in repository.commits.values() for content in files.values())


@pytest.mark.slow
def test_a_trainer_pushes_at_the_end(hub, tmp_path):
    trainer = lpn_trainer(tmp_path / "out", hub_strategy="end")
    trainer.train()
    trainer.push_to_hub(license="mit", notes="Two steps.")
    repository = hub.repository("models", "anna/out")
    card = repository.files["README.md"].decode()
    assert repository.messages == ["initial commit", "End of training"]
    assert "license: mit" in card and "- Two steps." in card and "\n2 steps" in card and "Not evaluated" in card


def test_settings_that_would_leak_are_refused_before_training(hub, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`hub_strategy` 'checkpoint' uploads optimiser states"):
        lpn_trainer(tmp_path / "out", hub_strategy="checkpoint")
    with pytest.raises(ValueError, match="a token among the arguments is saved with them"):
        lpn_trainer(tmp_path / "out", hub_token=TOKEN)
    assert lpn_trainer(tmp_path / "out").hub_model_id == "anna/out"
    monkeypatch.setenv("HF_TOKEN", "hf_" + "Wrong" * 8)
    with pytest.raises(HubError, match="401"):
        lpn_trainer(tmp_path / "out")


# --- from the Hub, in fresh processes ---


LOAD = """
import sys
sys.modules["modeling_lpn"] = None
from transformers import AutoModel, AutoProcessor
for revision in ("v1", "main"):
    model = AutoModel.from_pretrained("anna/small", trust_remote_code=True, revision=revision)
    AutoProcessor.from_pretrained("anna/small", trust_remote_code=True, revision=revision)
    print(type(model).__module__, float(next(model.parameters()).sum()))
"""


@pytest.mark.slow
def test_a_model_is_loaded_by_name_and_revision_without_the_package(hub, lpn, tmp_path):
    publish(lpn, "anna/small", tag="v1")
    changed = LPNModel.from_pretrained(lpn)
    with torch.no_grad():
        first = next(changed.parameters())
        old = float(first.sum())
        first.fill_(1.0)
    changed.save_pretrained(tmp_path / "new")
    LPNProcessor(max_rows=4, max_cols=4).save_pretrained(tmp_path / "new")
    publish(tmp_path / "new", "anna/small")
    result = run(hub, LOAD, tmp_path)
    assert result.returncode == 0, result.stderr
    (place, before), (_, after) = [line.split() for line in result.stdout.splitlines()]
    assert (
        place.startswith("transformers_modules.anna.small")
        and abs(float(before) - old) < 1e-4
        and float(after) == first.numel()
    )
    with_package = "import modeling_lpn; from transformers import AutoModel; print(type(AutoModel.from_pretrained('anna/small')).__module__)"
    assert run(hub, with_package, tmp_path).stdout.strip() == "modeling_lpn.lpn.modeling_lpn"
    # A private repository for somebody else, and remote code that nobody asked for.
    assert (
        "RepositoryNotFound" in (refused := run(hub, LOAD, tmp_path / "home", token=None).stderr)
        or "not a valid model identifier" in refused
    )
    untrusted = run(hub, LOAD.replace("trust_remote_code=True, ", ""), tmp_path)
    assert untrusted.returncode and "trust_remote_code=True" in untrusted.stderr


SHIPPED = sorted(path.parent.name for path in (ROOT / "model_cards").glob("*/config.json"))
PROBE = """
import json
numbers = output.search_output.log_probs if "processor" in globals() else model(**inputs).logits
print(json.dumps([type(model).__module__, numbers.double().tolist()]))
"""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name != "lpn-pattern-4x4" else []) for name in SHIPPED]
)
def test_a_shipped_checkpoint_goes_to_the_hub_and_back(hub, tmp_path, capsys, name):
    """Its card's snippets, as they stand there, in fresh processes without the package and with it, and from the folder."""
    repo_id, folder = f"anna/{name}", ROOT / "model_cards" / name
    publish(folder, repo_id, check=False, tag="v1")
    repository = hub.repository("models", repo_id)
    assert {
        file: len(content) for file, content in repository.files.items() if file.endswith((".safetensors", ".py"))
    } == {path.name: path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".py")}
    # What came after v1 is of no use, neither its code nor its weights.
    after = {file: content for file, content in repository.files.items() if not file.endswith(".safetensors")}
    repository.add(
        {file: b"1/0" if file.endswith(".py") else content for file, content in after.items()}, "v2", "main"
    )
    card = repository.commits[repository.tags["v1"]]["README.md"].decode()
    snippets = "".join(re.findall(r"```python\n(.*?)```", card, re.S))
    pinned = snippets.replace("trust_remote_code=True", "trust_remote_code=True, revision='v1'") + PROBE
    found = []
    for first in ("import sys; sys.modules['modeling_lpn'] = None", "import modeling_lpn"):
        result = run(hub, f"{first}\n{pinned}", tmp_path)
        assert result.returncode == 0, result.stderr
        found.append(result.stdout.splitlines())
    exec(compile(snippets.replace(repo_id, str(folder)) + PROBE, "README.md", "exec"), {})
    found.append(capsys.readouterr().out.splitlines())
    printed, answers = [lines[:-1] for lines in found], [json.loads(lines[-1]) for lines in found]
    assert printed[0] == printed[1] == printed[2] and len(printed[0]) >= snippets.count("print(")
    places = [place for place, _ in answers]
    assert places[0].startswith(f"transformers_modules.anna.{name.replace('-', '_hyphen_')}")
    assert places[1] == places[2] and places[1].startswith("modeling_lpn.")
    for _, numbers in answers[1:]:
        torch.testing.assert_close(torch.tensor(numbers), torch.tensor(answers[0][1]), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_the_command_and_a_data_set(hub, lpn, tmp_path, monkeypatch):
    publish_command = [sys.executable, str(ROOT / "recipes" / "publish.py")]
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment["HF_HUB_OFFLINE"] = "0"

    def command(*arguments):
        return subprocess.run(
            [*publish_command, *map(str, arguments)], capture_output=True, text=True, env=environment, cwd=tmp_path
        )

    dry = command(lpn, "anna/command", "--dry_run", "true")
    assert (
        dry.returncode == 0
        and "model.safetensors" in dry.stdout
        and "# command" in dry.stdout
        and not hub.repositories
    )
    assert "its licence with --license" in command(lpn, "anna/command", "--public", "true").stderr
    made = command(lpn, "anna/command", "--license", "mit", "--tag", "v1", "--output_dir", tmp_path / "kept")
    assert made.returncode and "--tag" in made.stderr
    done = command(lpn, "anna/command", "--license", "mit", "--public", "true")
    assert (
        done.returncode == 0 and "published: " in done.stdout and not hub.repository("models", "anna/command").private
    )
    build_pattern.main(["--output", str(tmp_path / "data"), "--num_train", "5", "--num_test", "2"])
    done = command(tmp_path / "data", "anna/tasks")
    assert done.returncode == 0, done.stderr
    result = run(hub, "import datasets; print(datasets.load_dataset('anna/tasks'))", tmp_path)
    assert "num_rows: 5" in result.stdout and "num_rows: 2" in result.stdout, result.stderr


@pytest.mark.slow
def test_a_converted_codegen2_and_an_adapter_of_it(hub, tmp_path, tokenizer):
    write_release(tiny_model(vocab_size=len(tokenizer), n_positions=256), tmp_path / "release")
    tokenizer.save_pretrained(tmp_path / "release")
    convert = [
        sys.executable,
        str(ROOT / "recipes" / "convert_codegen2_checkpoint.py"),
        str(tmp_path / "release"),
        str(tmp_path / "converted"),
    ]
    converted = subprocess.run(convert, capture_output=True, text=True)
    assert converted.returncode == 0, converted.stderr
    publish(tmp_path / "converted", "anna/codegen2")
    code = """
import sys
sys.modules["modeling_lpn"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
print(pipeline("code-infilling", model="anna/codegen2", trust_remote_code=True)({"prefix": "def f(a", "suffix": "b"}).keys())
"""
    result = run(hub, code, tmp_path)
    assert result.returncode == 0 and "spans" in result.stdout, result.stderr
    adapter = """
import modeling_lpn
from transformers import AutoModelForCausalLM, AutoTokenizer
from modeling_lpn.code.trainer import add_lora
model = add_lora(AutoModelForCausalLM.from_pretrained("anna/codegen2"), 2, 4)
model.save_pretrained("adapter")
AutoTokenizer.from_pretrained("anna/codegen2").save_pretrained("adapter")
from modeling_lpn.hub import publish
publish("adapter", "anna/adapter")
"""
    result = run(hub, adapter, tmp_path)
    assert result.returncode == 0, result.stderr
    card = hub.repository("models", "anna/adapter").files["README.md"].decode()
    assert "an adapter on `anna/codegen2`" in card and "base_model: anna/codegen2" in card


DOWNLOADS = [
    (CUT, "broke off: peer closed"),
    (2.0, "no byte in 0.3 s, the limit HF_HUB_DOWNLOAD_TIMEOUT"),
    (500, "answers 500"),
]


@pytest.fixture
def published(hub, lpn, monkeypatch, tmp_path):
    """A model on the Hub, for a user in this process who has nothing of it yet."""
    publish(lpn, "anna/small", check=False)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hasty = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})  # no pause between two tries
    for module in ("file_download", "utils._http"):
        monkeypatch.setattr(f"huggingface_hub.{module}.time", hasty)
    return hub


@pytest.mark.parametrize("fault, message", DOWNLOADS, ids=["cut", "slow", "500"])
def test_a_download_that_breaks_off_is_said_and_leaves_nothing_half(published, monkeypatch, tmp_path, fault, message):
    if fault == 2.0:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    published.fail("GET", "/resolve/.*safetensors", fault, times=99)
    with pytest.raises(
        ConnectionError, match=f"'anna/small' was not loaded, its download failed .*{message}"
    ) as error:
        load_pipeline("anna/small")
    assert TOKEN not in str(error.value) and "\n" not in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    published.faults.clear()  # the same again goes through
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 10)
    task = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]]}]}
    assert load_pipeline("anna/small")(task, budget=0)["grids"]


@pytest.mark.parametrize("file", ["config.json", "processor_config.json"])
def test_a_download_that_breaks_off_once_goes_on(published, file):
    for name in (file, "safetensors"):
        published.fail("GET", f"/resolve/.*{name}", CUT)
    weights = load_pipeline("anna/small").model.state_dict()
    assert all(
        torch.equal(weights[name], value)
        for name, value in LPNModel.from_pretrained("anna/small").state_dict().items()
    )
    assert not any(fault[3] for fault in published.faults)
