"""Model cards: every number in them is read from a file that a command wrote, or from the weights."""

import dataclasses
import difflib
from collections import Counter
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml
from safetensors import SafetensorError, safe_open

from .files import read_file, to_yaml


FACTS = "card.yaml"
_SCORES = ("top_1_strict_task_accuracy", "top_2_strict_task_accuracy", "top_1_pixel_accuracy")
# Arguments and records of an evaluation that a score depends on.
_SETTINGS = ("split", "num_examples", "max_span_tokens", "context_tokens", "left_to_right", "temperature")
# Benchmarks of code models that are data sets of the Hub; other sources are named in `CardFacts.benchmarks`.
_HUB_BENCHMARKS = {"humaneval": "openai/openai_humaneval", "mbpp": "google-research-datasets/mbpp"}
# Moves a cell to the right: a task that every model can read, for want of one like those it was trained on.
_EXAMPLE = {
    "train": [{"input": [[1, 0]], "output": [[0, 1]]}, {"input": [[2, 0]], "output": [[0, 2]]}],
    "test": [{"input": [[3, 0]]}],
}


@dataclasses.dataclass
class CardFacts:
    """What a card says that no results file tells: the content of `card.yaml` in a model folder.

    Args:
        title (`str`, *optional*): Heading of the card; the name of the repository if not given.
        license (`str`, *optional*): Of the weights, as the Hub spells it, e.g. `"apache-2.0"`.
        training_data (`str`, *optional*): What the model was trained on, and its licence, in a sentence or more.
        datasets (`list[str]`): Hub ids of the training data.
        base_model (`str`, *optional*): Hub id of the model that training started from.
        notes (`str`, *optional*): A further limit.
        example (`dict`, *optional*): The task of the card's snippet, a row without `task_id`.
        benchmarks (`dict[str, str]`):
            For an evaluation source (`arcagi:evaluation`, `pattern`, `infill:tokens`) the Hub id of its data set, under
            which the Hub lists the scores (`.eval_results/`).
    """

    title: str | None = None
    license: str | None = None
    training_data: str | None = None
    datasets: list[str] = dataclasses.field(default_factory=list)
    base_model: str | None = None
    notes: str | None = None
    example: dict | None = None
    benchmarks: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path, **given) -> "CardFacts":
        """
        The facts of a folder, with those `given` (and not `None`) instead.

        Raises:
            ValueError: a name is unknown, or a value has another type.
        """
        path = Path(folder, FACTS)
        facts = read_file(path) if path.is_file() else {}
        facts |= {name: value for name, value in given.items() if value is not None}
        known = {
            field.name: field.default_factory if field.default is dataclasses.MISSING else str
            for field in dataclasses.fields(cls)
        }
        known["example"] = dict
        for name, value in facts.items():
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
                raise ValueError(
                    f"{FACTS} has {name!r}; "
                    + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}")
                )
            if not isinstance(value, known[name]):
                raise ValueError(f"`{name}` of {FACTS} is {value!r:.60}; give a {known[name].__name__}")
        return cls(**facts)

    def write(self, folder: str | Path) -> None:
        """Writes the facts that are not the default ones; no file where there are none."""
        facts = {field.name: value for field in dataclasses.fields(self) if (value := getattr(self, field.name))}
        if facts:
            Path(folder, FACTS).write_text(to_yaml(facts), encoding="utf-8")


def count_parameters(folder: Path) -> int:
    """
    Numbers in the weight files of a folder; what several layers share is saved, and counted, once.

    Raises:
        ValueError: there is no safetensors file, or a broken one.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no .safetensors file; save the model with `save_pretrained`")
    total = 0
    for file in files:
        try:
            with safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (no mapping)
                    size = 1
                    for length in tensors.get_slice(name).get_shape():
                        size *= length
                    total += size
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is no whole safetensors file ({error}); save the model again") from error
    return total


def percent(share: float | None) -> str:
    """`97.5 %`; a dash for what was not measured."""
    return "-" if share is None else f"{100 * share:.1f} %"


def number(value: float) -> str:
    """`578,360` for a count, four digits of a measure."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def duration(seconds: float) -> str:
    """`2.5 hours`, `12 minutes`, `3.1 seconds`: two digits at least, and never a zero that was none."""
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.{1 if seconds < 100 * size else 0}f} {unit}"
    return f"{seconds:.2g} seconds"


@dataclasses.dataclass
class Score:
    """A number of an evaluation: of which `source`, in which `setting` (words, may be empty), by which `metric`."""

    source: str
    metric: str
    value: float
    setting: str = ""
    budget: int | None = None  # of the search


@dataclasses.dataclass
class Evaluation:
    """A results file as a card shows it.

    Args:
        file (`str`): its place in the folder.
        record (`dict`): its content.
        rows (`list[dict]`): lines of the card's table.
        scores (`list[Score]`): for the metadata.
    """

    file: str
    record: dict
    rows: list[dict]
    scores: list[Score]

    def __getattr__(self, name):
        # The templates say `evaluation.seed`: how it came about stands at the top of each record.
        return self.record.get(name)

    @property
    def tasks(self) -> str:
        return _short(self.record["arguments"]["tasks"])

    @property
    def setting(self) -> str:
        return self.scores[0].setting if self.scores else ""

    @property
    def num_errors(self) -> int:
        return len(self.record["errors"])

    @property
    def num_compared(self) -> int:
        return len(self.record.get("compared_on_validation_tasks") or ())

    @property
    def clean(self) -> str:
        """The scores without tasks of the training data, at every budget."""
        rows = [(row["budget"], row.get("scores_without_leaks")) for row in self.rows]
        name = "top_2_strict_task_accuracy"
        return ", ".join(
            f"{percent(scores[name])} at budget {budget} (two attempts)" for budget, scores in rows if scores
        )

    @property
    def leaks(self) -> str:
        found = self.record.get("leaks")
        if not found:
            return ""
        kind = "tasks" if "tasks" in found else "files"
        if not found["compared_with"]:
            return f"Not checked for {kind} of the training data: {found['not_compared']}."
        sources = ", ".join(f"`{source}`" for source in found["compared_with"])
        if not found[kind]:
            return f"None of these {kind} occurs in the training data ({sources}; compared by content)."
        what = f"{len(found[kind])} of these {kind} occur in the training data"
        if self.record["arguments"].get("leaks") == "leave_out":
            return f"{what} ({sources}; compared by content) and were left out: {_some(found[kind])}."
        return f"**{what}** ({sources}; compared by content): {_some(found[kind])}."


def _some(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"{', '.join(names[:20])}{more}"


def read_evaluations(folder: Path) -> list[Evaluation]:
    """
    The results files of a folder, in the order of their names.

    Raises:
        ValueError: one is none of `evaluate_lpn.py` or `evaluate_codegen2.py`.
    """
    evaluations = [read_evaluation(path, folder) for path in sorted(folder.glob("results/*.json"))]
    seen = Counter(place for one in evaluations for place in {(score.source, score.setting) for score in one.scores})
    for one in evaluations:
        for score in one.scores:
            if seen[score.source, score.setting] > 1:  # no setting that we name tells them apart: the file does
                score.setting = ", ".join(filter(None, (score.setting, Path(one.file).stem)))
    return evaluations


def read_evaluation(path: Path, folder: Path, source_path: Path | None = None) -> Evaluation:
    """
    A results file in a folder; `source_path` is where it came from, for messages.

    Raises:
        ValueError: it is none of `evaluate_lpn.py` or `evaluate_codegen2.py`.
    """
    record, file = read_file(path), path.relative_to(folder).as_posix()
    try:
        if isinstance(record["results"], list):
            rows, source, settings = record["results"], record["arguments"]["tasks"], record["arguments"]
            generated, examples = _short(source) == source, settings.get("num_examples") or [None]
            # `results` are those with the last number of examples.
            settings = {
                **settings,
                "split": settings.get("split") if generated else None,
                "num_examples": examples[-1],
            }
            last, budget = rows[-1]["scores"], rows[-1]["budget"]
            scores = [Score(source, name, last[name], _setting(settings), budget) for name in _SCORES if last]
        else:
            scores = [
                Score(source, name, value, _setting(result))
                for source, result in record["results"].items()
                for name, value in result["scores"].items()
                if isinstance(value, int | float)
            ]
            rows = [vars(score) for score in scores]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{source_path or path} is no results file of an evaluation ({type(error).__name__}: {error}); give the results.json of evaluate_lpn.py or evaluate_codegen2.py"
        ) from error
    return Evaluation(file, record, rows, scores)


def _setting(settings: dict) -> str:
    """What was measured, in words, as far as a score depends on it."""
    found = {name: settings.get(name) for name in _SETTINGS}
    found = {name: value for name, value in found.items() if value not in (None, False)}
    return ", ".join(name if value is True else f"{name} {value}" for name, value in found.items())


def _short(source: str) -> str:
    """A file by its name, whose folder means nothing elsewhere."""
    path = Path(source)
    return path.stem if path.suffix in (".json", ".jsonl", ".parquet") else source


def eval_results_files(folder: str | Path) -> dict[str, str]:
    """
    What the Hub reads into the leaderboards of data sets: `.eval_results/NAME.yaml` -> text, for every results file with a
    benchmark that is a data set of the Hub (see [`CardFacts`]).
    """
    folder, files = Path(folder), {}
    datasets = {**_HUB_BENCHMARKS, **CardFacts.read(folder).benchmarks}
    for evaluation in read_evaluations(folder):
        entries = [
            EvalResultEntry(
                datasets[score.source],
                task_id=score.metric,
                value=score.value,
                date=evaluation.date,
                notes=", ".join(filter(None, (score.source, score.setting))),
            )
            for score in evaluation.scores
            if score.source in datasets
        ]
        if entries:
            name = f".eval_results/{Path(evaluation.file).stem}.yaml"
            files[name] = to_yaml(eval_result_entries_to_yaml(entries))
    return files


def render_card(folder: str | Path, repo_id: str) -> str:
    """
    The card of a model folder.

    Args:
        folder (`str` or path): with `config.json` (or `adapter_config.json`), weights, and what there is of `run.json`
            (how it was trained), `results/*.json` (evaluations) and `card.yaml` ([`CardFacts`]).
        repo_id (`str`): the repository's name, for the snippet.

    Returns:
        `str`: Markdown, which begins with the metadata.

    Raises:
        ValueError: a file is missing, or cannot be read.
    """
    folder = Path(folder)
    facts, evaluations = CardFacts.read(folder), read_evaluations(folder)
    training_data, training = _how_it_was_trained(folder, facts)
    config, adapter = _read_config(folder), (folder / "adapter_config.json").is_file()
    family, strings = config.get("model_type", "codegen2"), is_of_strings(folder)
    base_model = facts.base_model or config.get("base_model_name_or_path")
    pipelines = list(config.get("custom_pipelines") or {})
    values = {
        "title": facts.title or repo_id.split("/")[-1],
        "repo_id": repo_id,
        "where": "on the Hub; or the path of this folder" if "/" in repo_id else "the path of this folder",
        "metadata": _metadata(facts, base_model, evaluations, repo_id, family, adapter, strings),
        "config": config,
        "search": ", ".join(f"{name} {value}" for name, value in (config.get("search") or {}).items())
        or "the defaults",
        "num_parameters": count_parameters(folder),
        "example": facts.example or _EXAMPLE,
        "auto_class": _auto_class(config, adapter),
        "pipelines": pipelines,
        "base_model": base_model,
        "family": family,
        "adapter": adapter,
        "evaluations": evaluations,
        "training_data": training_data,
        "training": training,
        "notes": facts.notes,
        "licence": f"`{facts.license}`." if facts.license else "No licence is stated.",
        "percent": percent,
        "number": number,
        "strings": strings,
        "inputs": _inputs(config, strings),
    }
    return _template(family).render(values).strip() + "\n"


def _template(family: str) -> jinja2.Template:
    name = "lpn.md" if family == "lpn" else "codegen2.md"
    text = resources.files(__package__).joinpath("card_templates", name).read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(text)


def _read_config(folder: Path) -> dict:
    for name in ("config.json", "adapter_config.json"):
        if (folder / name).is_file():
            return read_file(folder / name)
    raise ValueError(f"{folder} has no config.json; give the folder that `save_pretrained` or the trainer wrote")


def is_of_strings(folder: Path) -> bool:
    """Whether a model is one of strings: its processor names their characters."""
    path = folder / "processor_config.json"
    return path.is_file() and "alphabet" in read_file(path)


def _inputs(config: dict, strings: bool) -> str:
    if config.get("model_type") != "lpn":
        return ""
    if strings:
        return f"strings of up to {config['max_cols']} characters"
    return f"grids of up to {config['max_rows']} x {config['max_cols']} cells and {config['vocab_size']} colours"


def _auto_class(config: dict, adapter: bool) -> str:
    """Of transformers, which loads the model."""
    if adapter:
        return "AutoModelForCausalLM"
    architecture = (config.get("architectures") or ["?"])[0]
    return next(
        (auto for auto, place in (config.get("auto_map") or {}).items() if place.endswith(f".{architecture}")),
        "AutoModel",
    )


def _metadata(facts, base_model, evaluations, repo_id, family, adapter, strings) -> str:
    tags = ["latent-program-network", "program-synthesis"] if family == "lpn" else ["codegen2", "code", "infilling"]
    tags += ["arc-agi"] if family == "lpn" and not strings else []
    results = [
        _eval_result(score, facts.benchmarks)
        for evaluation in evaluations
        for score in evaluation.scores
        if not score.metric.startswith("num_")  # counts of what was measured
    ]
    data = ModelCardData(
        license=facts.license,
        library_name="peft" if adapter else "transformers",
        base_model=base_model,
        datasets=facts.datasets or None,
        tags=tags,
        pipeline_tag="text-generation" if family != "lpn" else None,
        model_name=repo_id.split("/")[-1] if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _eval_result(score: Score, benchmarks: dict[str, str]) -> EvalResult:
    """An entry of `model-index`; what differs in setting is another entry, and says so in its name."""
    name, setting = _short(score.source), score.setting
    kinds = {"infill": "code infilling", "loss": "language modelling of code"}
    task = "program induction" if score.budget is not None else kinds.get(name.split(":")[0], "code generation")
    return EvalResult(
        task_type="other",
        task_name=task,
        dataset_type=benchmarks.get(score.source, name),
        dataset_name=f"{name} ({setting})" if setting else name,
        dataset_config=setting or None,
        metric_type=score.metric,
        metric_value=score.value,
        metric_name=None if score.budget is None else f"{score.metric} at search budget {score.budget}",
    )


def _how_it_was_trained(folder: Path, facts: CardFacts) -> tuple[str, str]:
    """What `run.json` says of the data and of the training, in words."""
    path = folder / "run.json"
    run = read_file(path) if path.is_file() else {}
    try:
        return _training_data(facts, run), _training(run)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} is no record of a training ({type(error).__name__}: {error}); give the one that the recipe wrote, or"
            " remove it: the card then says that nothing is recorded"
        ) from error


def _training_data(facts: CardFacts, run: dict) -> str:
    if facts.training_data:
        return facts.training_data.strip()
    arguments = run.get("arguments", {})
    if "task" in arguments:
        settings = ", ".join(f"{name[5:]} {value}" for name, value in arguments.items() if name.startswith("task_"))
        return f"Tasks of the generator `{arguments['task']}` ({settings or 'its defaults'}), drawn while training."
    if arguments.get("train_files"):
        return f"The files {', '.join(f'`{name}`' for name in arguments['train_files'])}, mixture of objectives `{arguments.get('preset')}`."
    return "What it was trained on is not recorded in this repository."


def _training(run: dict) -> str:
    """The record of the training in words."""
    if not run:
        return "How it was trained is not recorded in this repository."
    hardware, metrics = run["hardware"], run.get("metrics", {})
    devices = (
        ", ".join(hardware["gpus"]) or f"{hardware['cpu']}, {hardware['processes']} x {hardware['threads']} threads"
    )
    seconds, part = run.get("seconds"), ""
    if seconds is None and (seconds := metrics.get("train_runtime")):  # of a record by another trainer, or an old one
        resumed = run["arguments"].get("resume_from_checkpoint") not in (None, "None")
        part = " for the part after its last checkpoint" if resumed else ""
    facts = [f"{run['steps']:,} steps" if "steps" in run else None, duration(seconds) + part if seconds else None]
    lines = [
        f"{', '.join(filter(None, facts)) or 'Trained'} on {devices}, seed {run['seed']}, {run['date']}, by",
        "",
        f"    {run['command']}",
        "",
    ]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items() if version)
    lines += [f"at commit {run['git_commit'] or 'unknown'} ({versions}). [run.json](run.json) has all settings."]
    scores = {name.removeprefix("eval_"): value for name, value in (run.get("evaluation") or {}).items()}
    shown = [
        f"{name} {value:.4g}"
        for name, value in scores.items()
        if isinstance(value, int | float) and "per_second" not in name
    ]
    return "\n".join(lines + (["", f"Evaluated at the end of training: {', '.join(shown)}."] if shown else []))


__all__ = ["CardFacts", "count_parameters", "eval_results_files", "is_of_strings", "read_evaluations", "render_card"]
