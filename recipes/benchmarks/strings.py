"""What makes a model of strings learn: every variant of a recipe is trained for the same processor time.

    python recipes/benchmarks/strings.py recipes/lpn/strings.yaml --output results/strings/ablation.json \
        --variant "" --variant "copy_inputs=false" --variant "learning_rate=3e-3 latent_dim=128"

A variant is what it sets differently: settings of the model, of the task (`task_`), `model_name_or_path` to start from,
`learning_rate`, `batch_size` and `adam_beta2`. The learning rate warms up in the first twentieth of the time and then falls linearly. Reported are the loss and
how many tasks are solved by the mean latent (three examples, exact match), on programs seen and not seen in training. Variants
that are in the output file already are not run again.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import yaml
from torch.utils.data import DataLoader

from modeling_lpn import DataCollatorForGridTasks, LPNConfig, LPNModel, SearchConfig, TaskStream
from modeling_lpn.runs import write_results
from modeling_lpn.tasks.evaluation import evaluate_tasks
from modeling_lpn.tasks.stream import tasks_from_stream
from modeling_lpn.tasks.strings import StringTask


OTHERS = ("model_name_or_path", "learning_rate", "batch_size", "adam_beta2")


def settings_of(recipe: dict, variant: str) -> dict:
    """Those of the recipe with what the variant changes. Raises `ValueError` for a name that nothing reads."""
    changed = {name: yaml.safe_load(value) for name, value in (item.split("=", 1) for item in variant.split())}
    known = {*LPNConfig.__dataclass_fields__, *(f"task_{name}" for name in StringTask.__dataclass_fields__), *OTHERS}
    if unknown := changed.keys() - known:
        raise ValueError(
            f"variant {variant!r} sets {min(unknown)!r}, which nothing reads; known: {', '.join(sorted(known))}"
        )
    settings = {"batch_size": recipe["per_device_train_batch_size"], "adam_beta2": 0.999, **recipe, **changed}
    # YAML reads 1e-3 as text.
    return {name: float(v) if isinstance(v, str) and v[:1].isdigit() else v for name, v in settings.items()}


def build(settings: dict) -> tuple[LPNModel, dict]:
    fields = {name: value for name, value in settings.items() if name in LPNConfig.__dataclass_fields__}
    fields = {n: float(v) if LPNConfig.__dataclass_fields__[n].type is float else v for n, v in fields.items()}
    task = {name[5:]: value for name, value in settings.items() if name.startswith("task_")}
    torch.manual_seed(0)
    if start := settings.get("model_name_or_path"):
        return LPNModel.from_pretrained(start, **fields), task
    return LPNModel(LPNConfig(**fields)), task


def train(model: LPNModel, settings: dict, task: dict, seconds: float) -> tuple[int, list]:
    generator = StringTask(**task)
    stream = TaskStream(generator, 10**7, 0, group_by="tokens", batch_size=settings["batch_size"])
    batches = DataLoader(stream, settings["batch_size"], collate_fn=DataCollatorForGridTasks(generator.processor))
    optimizer = torch.optim.AdamW(
        model.parameters(), settings["learning_rate"], (0.9, settings["adam_beta2"]), weight_decay=1e-4
    )
    start, losses, curve = time.process_time(), [], []
    for step, batch in enumerate(batches):
        done = (time.process_time() - start) / seconds
        if done >= 1:
            return step, curve
        optimizer.param_groups[0]["lr"] = settings["learning_rate"] * min(done * 20, (1 - done) / 0.95)
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if len(curve) < int(done * 10):
            curve.append([step, round(sum(losses) / len(losses), 4)])
            losses = []
    raise AssertionError("the stream is longer than any run")


@torch.no_grad()
def evaluate(model: LPNModel, task: dict, split: str, num_tasks: int) -> dict:
    generator = StringTask(**{**task, "num_pairs": 4, "max_size": 2, "split": split})
    stream = TaskStream(generator, num_tasks, 1_000_000)
    batches = DataLoader(stream, num_tasks, collate_fn=DataCollatorForGridTasks(generator.processor))
    losses = [model.eval()(**batch).reconstruction_loss.item() for batch in batches]
    tasks = tasks_from_stream(stream, num_tasks)
    output = evaluate_tasks(model, generator.processor, tasks, SearchConfig(), (0,), 64, 0, progress=False)
    solved = output.results[0].scores["top_1_strict_task_accuracy"]
    return {"loss": sum(losses) / len(losses), "solved": solved}


def run(recipe: dict, variant: str, seconds: float, num_tasks: int) -> dict:
    settings = settings_of(recipe, variant)
    model, task = build(settings)
    steps, curve = train(model, settings, task, seconds)
    results = {split: evaluate(model, task, split, num_tasks) for split in ("train", "validation")}
    size = sum(parameter.numel() for parameter in model.parameters())
    return {"variant": variant, "steps": steps, "num_parameters": size, "curve": curve, **results}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--variant", action="append", required=True, help="settings, e.g. 'learning_rate=3e-3'")
    parser.add_argument("--output", required=True, help="result file")
    parser.add_argument("--seconds", type=float, default=75, help="processor time of a training")
    parser.add_argument("--num_tasks", type=int, default=200, help="tasks to evaluate, of each kind")
    args = parser.parse_args()
    torch.set_num_threads(1)
    file, recipe = Path(args.output), yaml.safe_load(Path(args.recipe).read_text())
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    for variant in args.variant:
        if variant in [row["variant"] for row in rows]:
            continue
        rows.append(row := run(recipe, variant, args.seconds, args.num_tasks))
        write_results(file, 0, recipe=args.recipe, seconds=args.seconds, num_tasks=args.num_tasks, rows=rows)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
