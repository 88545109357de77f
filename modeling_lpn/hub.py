"""From a trained model to a repository on the Hub: gather its files, reload them, write the card, upload in one commit.

    assemble("outputs/quickstart", "model_cards/lpn-quickstart", results=["outputs/quickstart/evaluation/results.json"])
    verify("model_cards/lpn-quickstart")
    publish("model_cards/lpn-quickstart", "me/lpn-quickstart")

Only what [`PUBLISHED`] names leaves the machine: never optimizer states, training arguments, pickles, symbolic links, files
of elsewhere; and nothing is uploaded that holds a token or a path of this machine.
"""

import contextlib
import dataclasses
import fnmatch
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # the latter of httpx or httpx2, by version
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import logging

from .cards import CardFacts, eval_results_files, read_evaluation, render_card
from .files import parse_json, parse_yaml, read_file
from .lpn.search_lpn import SearchConfig
from .runs import write_results


logger = logging.get_logger(__name__)


# Names of the files of a model repository, by where they come from; `*` stops at no slash, so folders are named.
WEIGHTS = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
)
CONFIGS = ("config.json", "generation_config.json", "adapter_config.json")
PROCESSORS = (
    *(
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ),
    *("vocab.json", "merges.txt", "chat_template.jinja"),
)
RECORDS = ("run.json", "card.yaml", "calibration.json", "results/*.json", "LICENSE", "pictures/*.png")
PUBLISHED = (*WEIGHTS, *CONFIGS, *PROCESSORS, *RECORDS, "*_*.py", "README.md", ".eval_results/*.yaml")
DATASET_FILES = ("README.md", "LICENSE", "manifest.json", "*.parquet", "*/*.parquet")

_VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt")  # words of programs, among them paths
_SECRETS = re.compile(
    r"hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_ABSOLUTE = re.compile(r"(?<![\w.~/:<>*-])(?:/[\w.@+%-]+){2,}/?|(?<!\w)[A-Z]:\\[^\s'\"]+")


@dataclasses.dataclass
class Publication:
    """Result of [`publish`].

    Args:
        repo_id (`str`): The repository.
        files (`dict[str, int]`): Its files and their sizes in bytes.
        removed (`list[str]`): Files of an earlier version that this one no longer has.
        card (`str`): The README.md.
        url (`str`, *optional*): Of the commit; `None` after a dry run.
    """

    repo_id: str
    files: dict[str, int]
    removed: list[str]
    card: str
    url: str | None = None


# --- gathering -------------------------------------------------------------------------------------------------------


def assemble(
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    results: Iterable[str | os.PathLike] = (),
    repo_id: str | None = None,
    **facts,
) -> list[str]:
    """
    Gathers the folder that is a model's repository: weights, code, configuration with its search settings, processor or
    tokenizer, `run.json` (how it was trained), `results/`, `card.yaml` and the card. The code is that of the installed
    package; absolute paths in records lose their folders. Assembling a folder that was assembled changes nothing.

    Args:
        source (`str` or path): A folder that a trainer or `save_pretrained` wrote, of an LPN, a CodeGen2, or a PEFT
            adapter of one.
        output_dir (`str` or path): Gets the files, and may be `source`. What an earlier call put there is replaced.
        results (paths): Files that `evaluate_lpn.py` or `evaluate_codegen2.py` wrote; those in `source/results` stay.
        repo_id (`str`, *optional*): Name of the repository, for the card; the folder's name if not given.
        facts: Of [`CardFacts`], instead of those in `source/card.yaml`.

    Returns:
        `list[str]`: Files of `source` that do not belong into a repository and were left out.

    Raises:
        ValueError: No model of this package, no safetensors, no processor, a symbolic link, a file that holds a secret or
            a path of this machine, a results file of something else.
        FileNotFoundError: `source` is no folder, or a results file is not there.
    """
    source, output_dir = Path(source), Path(output_dir)
    if not source.is_dir():
        raise FileNotFoundError(
            f"{str(source)!r} is no folder; give the folder that the trainer or `save_pretrained` wrote"
        )
    left_out = [name for name in _files_below(source) if not _is_named(name, PUBLISHED)]
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    # Built beside its place: an error leaves what is there as it was.
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=f".{output_dir.name}-") as scratch:
        built = Path(scratch)
        (_copy_adapter if (source / "adapter_config.json").is_file() else _copy_model)(source, built)
        _copy_records(source, built, [Path(path) for path in results])
        CardFacts.read(source, **facts).write(built)
        for name, text in eval_results_files(built).items():
            (built / name).parent.mkdir(exist_ok=True)
            (built / name).write_text(text, encoding="utf-8")
        (built / "README.md").write_text(render_card(built, repo_id or output_dir.name), encoding="utf-8")
        check_files(built, PUBLISHED, [source])
        output_dir.mkdir(exist_ok=True)
        for name in _files_below(output_dir):
            if _is_named(name, PUBLISHED):
                (output_dir / name).unlink()
        for name in _files_below(built):
            (output_dir / name).parent.mkdir(exist_ok=True)
            os.replace(built / name, output_dir / name)
    return left_out


def _copy_model(source: Path, built: Path) -> None:
    """Weights as they are; for a model of this package configuration and code are those of the installed one."""
    config = _load_config(source)
    if _is_ours(config):
        model_class = _model_class(config, source)
        config.auto_map = _auto_map_of_base(model_class)
        with torch.device("meta"):
            model = model_class(config)
        custom_object_save(model, built, config=model.config)
        _add_pipelines(model, built)
        model.config.save_pretrained(built)
    else:
        _copy(source / "config.json", built / "config.json")
    for name in _weight_files(source):
        _copy(source / name, built / name)
    if (source / "generation_config.json").is_file():
        _copy(source / "generation_config.json", built / "generation_config.json")
    _copy_processor(source, built)


def _copy_adapter(source: Path, built: Path) -> None:
    _check_base(read_file(source / "adapter_config.json").get("base_model_name_or_path"))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (source / name).is_file():
            raise ValueError(f"{source} has no {name}; save the adapter with `save_pretrained`")
        _copy(source / name, built / name)
    _copy_processor(source, built)


def _check_base(name: str | None) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(name).exists():
        raise ValueError(
            f"the adapter belongs to the model {name!r}, which others cannot load; publish that model first, and load it by "
            "its Hub id (or write the id as `base_model_name_or_path` into adapter_config.json)"
        )


def _load_config(source: Path) -> PreTrainedConfig:
    """The configuration by the installed package; nothing in the folder is executed."""
    if not (source / "config.json").is_file():
        raise ValueError(f"{source} has no config.json; give the folder that the trainer or `save_pretrained` wrote")
    read_file(source / "config.json")
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if not _is_ours(config) and (config.architectures or [""])[0] not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        raise ValueError(
            f"{source} is a model of type {config.model_type!r}, neither of this package nor a causal language model of "
            "transformers; upload it with `hf upload`"
        )
    return config


def _is_ours(config: PreTrainedConfig) -> bool:
    return type(config).__module__.startswith(f"{__package__}.")


def _model_class(config, source: Path) -> type[PreTrainedModel]:
    """The class that the configuration names, in the modeling file of its family."""
    name = (config.architectures or [""])[0]
    module = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    if name not in getattr(module, "__all__", dir(module)):
        raise ValueError(
            f"config.json of {source} names the architecture {name!r}, which {module.__name__} lacks; save the model again"
        )
    return getattr(module, name)


def _auto_map_of_base(model_class: type[PreTrainedModel]) -> dict[str, str]:
    """`AutoModel` for a model with a head: the model without it. `custom_object_save` adds the class itself."""
    base = getattr(sys.modules[model_class.__module__], model_class.config_class.__name__.replace("Config", "Model"))
    config_class = model_class.config_class
    return {
        "AutoConfig": f"{config_class.__module__.split('.')[-1]}.{config_class.__name__}",
        "AutoModel": f"{base.__module__.split('.')[-1]}.{base.__name__}",
    }


def _add_pipelines(model, built: Path) -> None:
    """Names the family's pipelines for this model in its configuration, as `Pipeline.save_pretrained` does, with their code."""
    family = type(model).__module__.rsplit(".", 1)[0]
    found = {}
    for task, entry in PIPELINE_REGISTRY.supported_tasks.items():
        pipeline, module = entry["impl"], getattr(entry["impl"], "__module__", "")  # transformers' own are names yet
        autos = [getattr(auto, "__name__", auto) for auto in entry["pt"]]
        if module.startswith(f"{family}.") and type(model)._auto_class in autos:
            place = f"{module.split('.')[-1]}.{pipeline.__name__}"
            found[task] = {"impl": place, "pt": autos, "type": entry["type"]}
            custom_object_save(pipeline.__new__(pipeline), built)
    if found:
        model.config.custom_pipelines = found


def _weight_files(source: Path) -> list[str]:
    index = source / "model.safetensors.index.json"
    if (source / "model.safetensors").is_file():
        return ["model.safetensors"]
    if not index.is_file():
        pickles = sorted(path.name for path in source.glob("*.bin") if path.name != "training_args.bin")
        cure = (
            "load the model and save it with `save_pretrained`" if pickles else "save the model with `save_pretrained`"
        )
        there = f", only {pickles[0]}, a pickle, which runs code when loaded" if pickles else ""
        raise ValueError(f"{source} has no model.safetensors{there}; {cure}")
    shards = read_file(index).get("weight_map")
    names = sorted(set(shards.values())) if isinstance(shards, dict) else [None]
    for name in names:
        if not isinstance(name, str) or not _is_named(name, WEIGHTS) or "/" in name or not (source / name).is_file():
            raise ValueError(
                f"{index} names the weight file {name!r}, which is no file of that folder; save the model again"
            )
    return [*names, index.name]


def _copy_processor(source: Path, built: Path) -> None:
    if (source / "processor_config.json").is_file():
        AutoProcessor.from_pretrained(source, trust_remote_code=False).save_pretrained(built)
    elif (source / "tokenizer_config.json").is_file():
        AutoTokenizer.from_pretrained(source, trust_remote_code=False).save_pretrained(built)
        _drop_circumstances(built / "tokenizer_config.json")
    else:
        raise ValueError(f"{source} has neither processor nor tokenizer; save it there with `save_pretrained`")


def _drop_circumstances(path: Path) -> None:
    """How a tokenizer was loaded just now, which transformers saves among its settings."""
    settings = {name: value for name, value in read_file(path).items() if name not in ("is_local", "local_files_only")}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _copy_records(source: Path, built: Path, results: list[Path]) -> None:
    """`run.json` and results without the folders of this machine; licence and pictures as they are."""
    (built / "results").mkdir()
    records = {f"results/{path.name}": path for path in sorted(source.glob("results/*.json"))}
    for path in results:
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no results file {str(path)!r}; give what evaluate_lpn.py or evaluate_codegen2.py wrote"
            )
        name = path.stem if path.stem != "results" else path.resolve().parent.name
        records[f"results/{name}.json"] = path
    if (source / "run.json").is_file():
        records["run.json"] = source / "run.json"
    for name, path in records.items():
        _refuse_link(path)
        record = _without_folders(read_file(path))
        (built / name).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if name != "run.json":
            read_evaluation(built / name, built, path)
    for path in [source / "LICENSE", source / "calibration.json", *sorted(source.glob("pictures/*.png"))]:
        if path.is_file():
            (built / path.relative_to(source)).parent.mkdir(exist_ok=True)
            _copy(path, built / path.relative_to(source))


def _without_folders(value: Any) -> Any:
    """Absolute paths as the part below the current folder, or as their last name."""
    if isinstance(value, dict):
        return {_without_folders(key): _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    if not isinstance(value, str):
        return value
    return _ABSOLUTE.sub(lambda match: _shorten(match[0]), value)


def _shorten(path: str) -> str:
    here = Path.cwd()
    if Path(path).is_relative_to(here) and Path(path) != here:
        return Path(path).relative_to(here).as_posix()
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _copy(source: Path, target: Path) -> None:
    _refuse_link(source)
    shutil.copyfile(source, target)


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise ValueError(f"{path} is a symbolic link, whose target may be anything; put the file itself there")


# --- what may leave ----------------------------------------------------------------------------------------------------


def _files_below(folder: Path) -> list[str]:
    """Names of all files, links included, relative to the folder; links to folders are not followed."""
    found = []
    for root, folders, names in os.walk(folder):
        links = [name for name in folders if Path(root, name).is_symlink()]
        found += [Path(root, name).relative_to(folder).as_posix() for name in [*names, *links]]
    return sorted(found)


def _is_named(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


def check_files(folder: str | os.PathLike, patterns: tuple[str, ...], places: Iterable[Path] = ()) -> dict[str, int]:
    """
    Refuses what must not leave this machine.

    Args:
        folder (`str` or path): About to be uploaded, all of it.
        patterns (`tuple[str]`): Names that may be there, as [`PUBLISHED`].
        places (paths): Further folders of this machine whose names must not occur, beside the home and current folder.

    Returns:
        `dict[str, int]`: Files and their sizes in bytes.

    Raises:
        ValueError: A file has another name, is a link, or holds a secret, an absolute path, or the user's token.
    """
    folder, sizes = Path(folder), {}
    places = [
        str(place)
        for place in (Path.home(), Path.cwd(), *(Path(place).resolve() for place in places))
        if len(place.parts) > 1
    ]
    for name in _files_below(folder):
        _refuse_link(folder / name)
        if not _is_named(name, patterns):
            raise ValueError(f"{name} in {folder} is no file of a repository; take it out")
        if not name.endswith((".safetensors", ".parquet", ".png")):
            _check_text(folder, name, places)
        sizes[name] = (folder / name).stat().st_size
    return sizes


def _check_text(folder: Path, name: str, places: list[str]) -> None:
    text = (folder / name).read_text(encoding="utf-8")
    token = get_token()
    if _SECRETS.search(text) or (token and token in text):
        raise ValueError(
            f"{name} in {folder} holds what looks like an access token or a key; take it out, and revoke it"
        )
    found = next((place for place in places if place in text), None)
    if found is None and name.endswith((".json", ".yaml")) and name not in _VOCABULARIES:
        found = next((match[0] for match in map(_ABSOLUTE.search, _strings(folder / name)) if match), None)
    if found is not None and name not in _VOCABULARIES:
        raise ValueError(
            f"{name} in {folder} names {found}, a path of this machine that means nothing elsewhere; take it out"
        )


def _strings(path: Path) -> Iterator[str]:
    """All strings in a JSON or YAML file."""
    waiting = [(parse_yaml if path.suffix == ".yaml" else parse_json)(path)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value


# --- reloading ---------------------------------------------------------------------------------------------------------


def verify(folder: str | os.PathLike) -> None:
    """
    Loads a model folder in two fresh processes, with this package and without it (by the code in the folder, as
    `trust_remote_code=True` does), and compares what the two compute on a small input.

    Args:
        folder (`str` or path): As [`assemble`] made it.

    Raises:
        ValueError: One of them cannot load it, weights are missing or left over, an output is not finite, or the outputs
            differ by more than 1e-4 or in a token.
    """
    folder = Path(folder).resolve()
    request, places = _request(folder), ("modeling_lpn.", "transformers_modules.")
    with_package, without = (_reload({**request, "package": package}) for package in (True, False))
    found = (with_package["model"], without["model"])
    if not any(found[0].startswith(ours) and found[1].startswith(theirs) for ours, theirs in (places, _STOCK)):
        raise ValueError(f"{folder} was loaded as {found[0]} with the package and {found[1]} without it")
    for answer in (with_package, without):
        if answer["keys"]:
            reason, names = next(iter(answer["keys"].items()))
            raise ValueError(
                f"the weights in {folder} do not fit the model: {reason.replace('_', ' ')} {names[:3]}; save the model again"
            )
    for name, values in with_package["outputs"].items():
        ours, theirs = np.array(values), np.array(without["outputs"][name])
        if not np.isfinite(ours).all():
            raise ValueError(f"the model in {folder} computes `{name}` that are not finite; train it again")
        tolerance = 0 if name in ("grids", "tokens") else 1e-4
        if ours.shape != theirs.shape or not np.allclose(ours, theirs, atol=tolerance, rtol=tolerance):
            raise ValueError(
                f"the code in {folder} computes other `{name}` than the installed package; assemble the folder again"
            )


_STOCK = ("transformers.models.", "transformers.models.")


def _request(folder: Path) -> dict:
    if (folder / "adapter_config.json").is_file():
        return {
            "folder": str(folder),
            "auto_class": "AutoModelForCausalLM",
            "kind": "text",
            "inputs": {"text": "def add(a, b):"},
        }
    config = _load_config(folder)
    auto_class = _model_class(config, folder)._auto_class if _is_ours(config) else "AutoModelForCausalLM"
    request = {"folder": str(folder), "auto_class": auto_class}
    if config.model_type != "lpn":
        return {**request, "kind": "text", "inputs": {"text": "def add(a, b):"}}
    search = SearchConfig.of(config.search)
    if search.budget is not None:
        search = search.at_budget(min(2, search.budget))  # every part of the model runs, whatever the saved budget
    # A processor of strings names the characters or symbols that it knows.
    alphabet = read_file(folder / "processor_config.json").get("alphabet")
    given, wanted = ([[0, 1]], [[1, 0]]) if alphabet is None else (alphabet[0], alphabet[1 % len(alphabet)])
    pair = {"input": given, "output": wanted}
    return {
        **request,
        "kind": "grids",
        "inputs": {"task": {"train": [pair, pair], "test": [{"input": given}]}, "search": search.to_dict()},
    }


def _reload(request: dict) -> dict:
    """The answer of `reload.py` in a process of its own, without tokens, offline unless an adapter needs its base."""
    adapter = Path(request["folder"], "adapter_config.json").is_file()
    with tempfile.TemporaryDirectory() as scratch:
        environment = {
            **os.environ,
            "HF_MODULES_CACHE": str(Path(scratch, "modules")),
            "TOKENIZERS_PARALLELISM": "false",
        }
        if not adapter:
            environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": scratch}
            for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
                environment.pop(name, None)
        question, answer = Path(scratch, "request.json"), Path(scratch, "answer.json")
        question.write_text(json.dumps(request), encoding="utf-8")
        # -P: the folder of the script, with its `code`, must not stand before the standard library.
        command = [sys.executable, "-P", str(Path(__file__).with_name("reload.py")), str(question), str(answer)]
        result = subprocess.run(
            command, cwd=scratch, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
            how = "with the package" if request["package"] else "without the package"
            raise ValueError(f"{request['folder']} cannot be loaded {how}: {reason}")
        return json.loads(answer.read_text(encoding="utf-8"))


# --- uploading ---------------------------------------------------------------------------------------------------------


def publish(
    folder: str | os.PathLike,
    repo_id: str,
    results: Iterable[str | os.PathLike] = (),
    private: bool = True,
    revision: str | None = None,
    tag: str | None = None,
    dry_run: bool = False,
    commit_message: str = "Upload model",
    check: bool = True,
    **facts,
) -> Publication:
    """
    Makes a model folder a repository on the Hub: [`assemble`], [`verify`], then one commit. An upload that breaks off leaves
    the old revision as it was; the same call again changes nothing.

    Args:
        folder (`str` or path): See [`assemble`], as `results` and `facts`.
        repo_id (`str`): `user/name`.
        private (`bool`, defaults to `True`): Of a new repository; one that exists keeps what it is.
        revision (`str`, *optional*): Branch to commit to, made where there is none; `main` if not given.
        tag (`str`, *optional*): Name for the new commit.
        dry_run (`bool`): Does everything but the upload, and needs neither token nor network.
        commit_message (`str`): Title of the commit.
        check (`bool`, defaults to `True`): Whether to [`verify`] first.

    Returns:
        [`Publication`]

    Raises:
        ValueError: As [`assemble`] and [`verify`]; the repository's name is malformed, or the tag exists.
        HubError: The Hub refuses, or cannot be reached; the message says what to do.
    """
    _check_repo_id(repo_id)
    if not dry_run:
        _require_write_access(repo_id)  # before the work
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch, repo_id.split("/")[-1])
        assemble(folder, built, results, repo_id, **facts)
        if check:
            verify(built)
        return upload(
            built,
            repo_id,
            PUBLISHED,
            private=private,
            revision=revision,
            tag=tag,
            dry_run=dry_run,
            commit_message=commit_message,
        )


def publish_dataset(
    folder: str | os.PathLike,
    repo_id: str,
    private: bool = True,
    revision: str | None = None,
    tag: str | None = None,
    dry_run: bool = False,
    commit_message: str = "Upload data",
) -> Publication:
    """
    Makes a folder that a script of `datasets_scripts/` wrote a data set on the Hub, in one commit, for
    `datasets.load_dataset(repo_id)`. Arguments and errors as of [`publish`].
    """
    folder = Path(folder)
    _check_repo_id(repo_id)
    if not dry_run:
        _require_write_access(repo_id)
    if not (folder / "README.md").is_file() or not any(
        _is_named(name, DATASET_FILES[3:]) for name in _files_below(folder)
    ):
        raise ValueError(
            f"{folder} has no README.md beside Parquet files; give a folder that a script of datasets_scripts wrote"
        )
    with tempfile.TemporaryDirectory() as scratch:
        for name in _files_below(folder):
            if _is_named(name, DATASET_FILES):
                Path(scratch, name).parent.mkdir(exist_ok=True)
                _copy(folder / name, Path(scratch, name))
        if (manifest := Path(scratch, "manifest.json")).is_file():
            manifest.write_text(json.dumps(_without_folders(read_file(manifest)), indent=1) + "\n", encoding="utf-8")
        return upload(
            scratch,
            repo_id,
            DATASET_FILES,
            "dataset",
            private=private,
            revision=revision,
            tag=tag,
            dry_run=dry_run,
            commit_message=commit_message,
        )


class HubError(OSError):
    """The Hub refuses, or cannot be reached: what happened and what to do. Nothing was published."""


def upload(
    folder: str | os.PathLike,
    repo_id: str,
    patterns: tuple[str, ...],
    repo_type: str = "model",
    private: bool = True,
    revision: str | None = None,
    tag: str | None = None,
    dry_run: bool = False,
    commit_message: str = "Upload",
) -> Publication:
    """
    Uploads a whole folder in one commit, and removes in it what an earlier version had under these `patterns`. See
    [`publish`], whose last step it is.
    """
    folder = Path(folder)
    files = check_files(folder, patterns, [folder])
    card = (folder / "README.md").read_text(encoding="utf-8")
    if dry_run:
        return Publication(repo_id, files, [], card)
    _require_token()
    api, place = HfApi(), {"repo_id": repo_id, "repo_type": repo_type}
    with _explained(repo_id):
        api.create_repo(**place, private=private, exist_ok=True)
        if tag is not None and any(ref.name == tag for ref in api.list_repo_refs(**place).tags):
            raise ValueError(f"{repo_id} has a tag {tag!r} already, and a tag stays where it is; choose another --tag")
        if revision is not None:
            api.create_branch(**place, branch=revision, exist_ok=True)
        info = api.repo_info(**place, revision=revision)
        removed = [file.rfilename for file in info.siblings if _is_outdated(file.rfilename, files, patterns)]
        changes = [CommitOperationAdd(name, str(folder / name)) for name in files]
        changes += [CommitOperationDelete(name) for name in removed]
        # `parent_commit`: refused if somebody else committed meanwhile.
        commit = api.create_commit(
            **place, operations=changes, commit_message=commit_message, revision=revision, parent_commit=info.sha
        )
    if tag is not None:
        with _explained(repo_id, f"The files are published, only the tag {tag!r} is missing."):
            api.create_tag(**place, tag=tag, revision=commit.oid)
    return Publication(repo_id, files, removed, card, str(commit.commit_url))


def _require_token() -> None:
    if get_token() is None:
        raise HubError(
            "nobody is logged in to the Hub; run `hf auth login`, or set HF_TOKEN to a token with write access"
        )


def _require_write_access(repo_id: str) -> None:
    _require_token()
    with _explained(repo_id):
        token = HfApi().whoami()["auth"].get("accessToken") or {}
    if token.get("role") == "read":  # what a fine-grained one may do the Hub says when it is used
        raise HubError(f"{repo_id}: the token only reads; use one with write access. Nothing was published.")


def _is_outdated(name: str, files: dict[str, int], patterns: tuple[str, ...]) -> bool:
    """Whether an earlier version put it there; `training_args.bin` is what transformers' Trainer uploads."""
    return name not in files and (_is_named(name, patterns) or name == "training_args.bin")


def _check_repo_id(repo_id: str) -> None:
    if not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", repo_id):
        raise ValueError(f"{repo_id!r} is no name of a repository; give user/name, of letters, digits, dashes, dots")


_CURES = {
    401: "the token is not valid; make one with write access in the settings of the Hub, then `hf auth login`",
    403: "the token may not write there; use one with write access, or another name before the slash",
    404: "there is no such repository, branch or user; check the name",
    409: "somebody else changed the repository meanwhile; run the command again",
    412: "somebody else changed the repository meanwhile; run the command again",
    413: "a file is too large for the Hub; save the model in smaller shards (`max_shard_size`)",
    429: "too many requests; wait some minutes and run the command again",
}


TIMEOUT = 300.0  # seconds without a byte after which a request to the Hub has failed


@contextlib.contextmanager
def _explained(repo_id: str, state: str = "Nothing was published.") -> Iterator[None]:
    """Turns errors of the Hub and of the network into a [`HubError`] of one line that never holds the token."""
    session = get_session()
    patience = session.timeout
    session.timeout = TIMEOUT  # huggingface_hub would wait for ever
    try:
        yield
    except (HTTPError, OSError, RuntimeError) as error:
        # A failed upload of a large file arrives as the cause of a RuntimeError.
        cause: BaseException | None = error
        while isinstance(cause, RuntimeError):
            cause = cause.__cause__
        if isinstance(error, HubError) or not isinstance(cause, (HTTPError, OSError)):
            raise
        raise HubError(_without_token(f"{repo_id}: {_explain(cause, state)}")) from None
    finally:
        session.timeout = patience


def _explain(error: Exception, state: str) -> str:
    response = getattr(error, "response", None)
    if not isinstance(error, HfHubHTTPError) or response is None:
        reason = f"the connection to the Hub failed ({type(error).__name__}: {error})"
        return f"{reason}; check the network, then run the command again: what has arrived is not sent twice"
    said = f" It says: {error.server_message}." if getattr(error, "server_message", None) else ""
    cure = _CURES.get(response.status_code, "the Hub has a fault; run the command again later")
    return f"the Hub answers {response.status_code}: {cure}.{said} {state}"


def _without_token(text: str) -> str:
    token = get_token()
    return _SECRETS.sub("***", text.replace(token, "***") if token else text)


# --- training ----------------------------------------------------------------------------------------------------------


class PublishingTrainer:
    """
    For a class before `Trainer`: its `create_model_card` and `push_to_hub`, and what it pushes while it trains
    (`push_to_hub`, `hub_model_id`, `hub_strategy` of its arguments), go the way of [`publish`]: cards with measured numbers,
    repositories with code, private ones by default, no training arguments and no optimiser.

    A push that fails while training is a warning; the next one brings what it did not.
    """

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """
        Checks what would fail after the training, and names the repository.

        Raises:
            ValueError: a setting that would upload optimiser states, or save a token; an adapter of a model that is a
                folder; no user in `hub_model_id` and nobody logged in.
        """
        args: Any = self.args
        if args.hub_strategy in ("checkpoint", "all_checkpoints"):
            raise ValueError(
                f"`hub_strategy` {args.hub_strategy.value!r} uploads optimiser states; give every_save or end"
            )
        if token is not None or args.hub_token is not None:
            raise ValueError("a token among the arguments is saved with them; leave `hub_token` out, and set HF_TOKEN")
        if getattr(self.model, "peft_config", None):
            _check_base(next(iter(self.model.peft_config.values())).base_model_name_or_path)
        if private is not None:
            args.hub_private_repo = private
        name = args.hub_model_id or Path(args.output_dir).resolve().name
        if "/" not in name and self.is_world_process_zero():
            _require_token()
            with _explained(name):
                name = f"{HfApi().whoami()['name']}/{name}"
        self.hub_model_id, self.push_in_progress = name, None

    def create_model_card(
        self,
        license: str | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        dataset: str | list[str] | None = None,
        **facts,
    ) -> None:
        """
        Writes README.md and `card.yaml` into `output_dir`, where the model is saved, and `run.json` where there is none.

        Args:
            license, model_name, finetuned_from, dataset: As of `Trainer.create_model_card`: `license`, `title`,
                `base_model` and `datasets` of [`CardFacts`].
            facts: Others of [`CardFacts`].
        """
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        datasets = [dataset] if isinstance(dataset, str) else dataset
        facts |= {"license": license, "title": model_name, "base_model": finetuned_from, "datasets": datasets}
        CardFacts.read(folder, **facts).write(folder)
        self._write_record(folder)
        name = self.hub_model_id or folder.resolve().name
        (folder / "README.md").write_text(render_card(folder, name), encoding="utf-8")

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        revision: str | None = None,
        private: bool | None = None,
        **facts,
    ) -> Publication | None:
        """
        Saves the model into `output_dir` and publishes that folder; see [`publish`], also for what it raises.

        Args:
            commit_message, revision, private: As of `Trainer.push_to_hub`; a new repository is private by default.
            facts: As of `create_model_card`.

        Returns:
            [`Publication`], of the main process.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**facts)
        return self._publish(self.args.output_dir, commit_message, revision, private, check=True)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == "end":
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self._write_record(Path(checkpoint_folder))
        message = f"Training in progress, step {self.state.global_step}"
        try:
            self._publish(checkpoint_folder, message, None, None, check=False)
        except HubError as error:
            logger.warning(f"step {self.state.global_step} was not pushed: {error}")

    def _publish(self, folder, commit_message, revision, private, check) -> Publication:
        args = self.args
        private = args.hub_private_repo is not False if private is None else private
        options = {"commit_message": commit_message, "revision": revision or args.hub_revision, "check": check}
        return publish(folder, self.hub_model_id, private=private, **options)

    def _write_record(self, folder: Path) -> None:
        if (folder / "run.json").is_file():
            return
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        settings, steps = self.args.to_sanitized_dict(), self.state.global_step
        write_results(
            folder / "run.json", self.args.seed, num_parameters=model.num_parameters(), arguments=settings, steps=steps
        )


__all__ = [
    "HubError",
    "Publication",
    "PublishingTrainer",
    "assemble",
    "check_files",
    "publish",
    "publish_dataset",
    "upload",
    "verify",
]
