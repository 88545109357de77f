"""Makes a trained model, or a data set, a repository on the Hub.

    python recipes/publish.py outputs/quickstart me/lpn-quickstart --results outputs/quickstart/evaluation/results.json \\
        --license apache-2.0 --dry_run true
    python recipes/publish.py outputs/pattern me/pattern-tasks

Gathers the files, writes the card, reloads the folder in fresh processes with the package and without it, and uploads it in
one commit, to a private repository unless `--public true`. `--dry_run true` uploads nothing and shows every file and the
card; `--output_dir` keeps the gathered folder. The token is that of `hf auth login` or of HF_TOKEN. To repeat a command is
safe. A folder without a model that a script of `datasets_scripts/` wrote becomes a data set.
"""

import dataclasses
import sys
from pathlib import Path

from modeling_lpn import TaskStream
from modeling_lpn.arguments import option, parse_recipe
from modeling_lpn.cards import CardFacts
from modeling_lpn.files import read_file
from modeling_lpn.hub import Publication, assemble, publish, publish_dataset, verify
from modeling_lpn.runs import run_recipe
from modeling_lpn.tasks.generators import TASK_GENERATORS
from modeling_lpn.tasks.stream import tasks_from_stream


@dataclasses.dataclass
class PublishArguments:
    folder: str = option(dataclasses.MISSING, "Of the model, as the trainer wrote it, or of the data set.")
    repo_id: str = option(dataclasses.MISSING, "user/name on the Hub.")
    results: list[str] = option([], "Results files of evaluations to show in the card.")
    license: str | None = option(None, "Of the weights, as the Hub spells it: apache-2.0.")
    title: str | None = option(None, "Heading of the card.")
    training_data: str | None = option(None, "What it was trained on, and its licence, in words.")
    datasets: list[str] | None = option(None, "Hub ids of the training data.")
    base_model: str | None = option(None, "Hub id of the model that training started from.")
    notes: str | None = option(None, "A further limit, for the card.")
    public: bool = option(False, "Make a new repository public.")
    revision: str | None = option(None, "Branch to commit to; main if not given.")
    tag: str | None = option(None, "Name of the new commit, e.g. v1.0.")
    commit_message: str | None = option(None, "Title of the commit.")
    dry_run: bool = option(False, "Upload nothing; show what would be.")
    output_dir: str | None = option(None, "Gather the model's folder here and verify it, upload nothing.")


def example_task(folder: Path) -> dict | None:
    """A task like those the model was trained on, where its record names a generator that needs no file."""
    if not (folder / "run.json").is_file():
        return None
    arguments = read_file(folder / "run.json").get("arguments", {})
    generator = TASK_GENERATORS.get(arguments.get("task"))
    if generator is None or "path" in generator.__dataclass_fields__:
        return None
    settings = {
        name: arguments[f"task_{name}"] for name in generator.__dataclass_fields__ if f"task_{name}" in arguments
    }
    task = tasks_from_stream(TaskStream(generator(**settings), 1, seed=3_000_000), 1)[0]
    return {"train": task["train"], "test": [{"input": pair["input"]} for pair in task["test"]]}


def show(publication: Publication) -> None:
    for name, size in publication.files.items():
        print(f"{size:>13,}  {name}")
    print(f"{sum(publication.files.values()):>13,}  bytes in {len(publication.files)} files")
    for name in publication.removed:
        print(f"      removed  {name}")


def facts_of(args) -> dict:
    names = [field.name for field in dataclasses.fields(CardFacts) if hasattr(args, field.name)]
    facts = {name: getattr(args, name) for name in names}
    if CardFacts.read(args.folder).example is None:
        facts["example"] = example_task(Path(args.folder))
    return facts


def publish_model(args, options) -> Publication | None:
    if args.output_dir is None:
        return publish(args.folder, args.repo_id, args.results, **options, **facts_of(args))
    left_out = assemble(args.folder, args.output_dir, args.results, args.repo_id, **facts_of(args))
    verify(args.output_dir)
    print(f"left out: {', '.join(left_out) or 'nothing'}")
    print(
        f"{args.output_dir} loads with the package and without it; upload it with recipes/publish.py {args.output_dir} {args.repo_id}"
    )
    return None


def main():
    argv = sys.argv[1:]
    # The two arguments without which nothing goes may stand without their flags, and before a recipe's.
    if len(argv) >= 2 and not argv[0].startswith("-") and not argv[1].startswith("-"):
        argv = [f"--folder={argv[0]}", f"--repo_id={argv[1]}", *argv[2:]]
    (args,) = parse_recipe([PublishArguments], argv)
    if args.output_dir is not None:
        upload = [name for name in ("public", "revision", "tag", "commit_message", "dry_run") if getattr(args, name)]
        if upload:
            raise ValueError(
                f"--{upload[0]} is of an upload, and --output_dir gathers and uploads nothing; give one of the two"
            )
    is_model = any(Path(args.folder, name).is_file() for name in ("config.json", "adapter_config.json"))
    if is_model and args.public and args.license is None and CardFacts.read(args.folder).license is None:
        raise ValueError(
            "a public model says what others may do with it; give its licence with --license, e.g. apache-2.0"
        )
    names = ("revision", "tag", "dry_run", *(["commit_message"] if args.commit_message else []))
    options = {"private": not args.public, **{name: getattr(args, name) for name in names}}
    if is_model or not Path(args.folder, "README.md").is_file():
        publication = publish_model(args, options)
    else:
        publication = publish_dataset(args.folder, args.repo_id, **options)
    if publication is None:
        return
    show(publication)
    if args.dry_run:
        print(f"\n{publication.card}\nnothing was uploaded (--dry_run true)")
    else:
        print(f"published: {publication.url}")


if __name__ == "__main__":
    run_recipe(main)
