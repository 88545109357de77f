"""What makes a model learn: every variant of a recipe on generated tasks is trained for the same processor time.

    python recipes/benchmarks/variants.py recipes/lpn/strings.yaml --output results/strings/ablation.json \
        --variant "" --variant "copy_inputs=false" --variant "learning_rate=3e-3 latent_dim=128"

A variant is what it sets differently: settings of the model, of the task (`task_`), `model_name_or_path` to start from,
`learning_rate`, `batch_size`, `adam_beta2` and `muon`. The learning rate warms up in the first twentieth of the time and then falls
linearly; nothing searches. Reported are the loss and how many tasks of the recipe are solved by the mean latent (three examples, exact
match), on programs seen and, where a generator has a split, not seen in training. Variants that are in the output file already are not run again.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import yaml
from torch.utils.data import DataLoader

from modeling_lpn import DataCollatorForGridTasks, LPNConfig, LPNModel, LPNProcessor, SearchConfig, TaskStream
from modeling_lpn.optimizers import MuonAdamW, layer_matrices
from modeling_lpn.runs import write_results
from modeling_lpn.tasks.evaluation import evaluate_tasks
from modeling_lpn.tasks.generators import TASK_GENERATORS
from modeling_lpn.tasks.stream import tasks_from_stream


OTHERS = ("model_name_or_path", "learning_rate", "batch_size", "adam_beta2", "muon")


def settings_of(recipe: dict, variant: str) -> dict:
    """Those of the recipe with what the variant changes. Raises `ValueError` for a name that nothing reads."""
    changed = {name: yaml.safe_load(value) for name, value in (item.split("=", 1) for item in variant.split())}
    of_task = TASK_GENERATORS[recipe["task"]].__dataclass_fields__
    known = {*LPNConfig.__dataclass_fields__, *(f"task_{name}" for name in of_task), *OTHERS}
    if unknown := changed.keys() - known:
        raise ValueError(
            f"variant {variant!r} sets {min(unknown)!r}, which nothing reads; known: {', '.join(sorted(known))}"
        )
    settings = {"batch_size": recipe["per_device_train_batch_size"], "adam_beta2": 0.999, **recipe, **changed}
    # YAML reads 1e-3 as text.
    return {name: float(v) if isinstance(v, str) and v[:1].isdigit() else v for name, v in settings.items()}


def build_task(settings: dict, **overrides):
    """The generator of tasks, and a processor for them."""
    own = {name[5:]: value for name, value in settings.items() if name.startswith("task_")}
    generator = TASK_GENERATORS[settings["task"]](**{**own, **overrides})
    sizes = [settings[name] for name in ("max_rows", "max_cols")]
    known = LPNProcessor(*sizes, settings.get("vocab_size", LPNConfig.vocab_size))
    return generator, getattr(generator, "processor", known)


def build_model(settings: dict) -> LPNModel:
    fields = {name: value for name, value in settings.items() if name in LPNConfig.__dataclass_fields__}
    fields = {n: float(v) if LPNConfig.__dataclass_fields__[n].type is float else v for n, v in fields.items()}
    torch.manual_seed(0)
    if start := settings.get("model_name_or_path"):
        return LPNModel.from_pretrained(start, **fields)
    return LPNModel(LPNConfig(**fields))


def train(model: LPNModel, settings: dict, seconds: float) -> tuple[int, list]:
    generator, processor = build_task(settings)
    stream = TaskStream(generator, 10**7, 0, settings.get("group_by"), settings["batch_size"])
    batches = DataLoader(stream, settings["batch_size"], collate_fn=DataCollatorForGridTasks(processor))
    matrices = layer_matrices(model) if settings.get("muon") else []
    betas = (0.9, settings["adam_beta2"])
    optimizer = MuonAdamW(model.parameters(), matrices, lr=settings["learning_rate"], betas=betas, weight_decay=1e-4)
    start, losses, curve = time.process_time(), [], []
    for step, batch in enumerate(batches):
        done = (time.process_time() - start) / seconds
        if done >= 1:
            return step, curve
        for group in optimizer.param_groups:
            group["lr"] = settings["learning_rate"] * min(done * 20, (1 - done) / 0.95)
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
def evaluate(model: LPNModel, recipe: dict, split: dict, num_tasks: int) -> dict:
    generator, processor = build_task(recipe, num_pairs=4, **split)
    stream = TaskStream(generator, num_tasks, 1_000_000)
    batches = DataLoader(stream, num_tasks, collate_fn=DataCollatorForGridTasks(processor))
    losses = [model.eval()(**batch).reconstruction_loss.item() for batch in batches]
    tasks = tasks_from_stream(stream, num_tasks)
    output = evaluate_tasks(model, processor, tasks, SearchConfig(), (0,), 64, 0, progress=False)
    solved = output.results[0].scores["top_1_strict_task_accuracy"]
    return {"loss": sum(losses) / len(losses), "solved": solved}


def run(recipe: dict, variant: str, seconds: float, num_tasks: int) -> dict:
    settings = settings_of(recipe, variant)
    model = build_model(settings)
    steps, curve = train(model, settings, seconds)
    splits = {"train": {}}
    if "split" in TASK_GENERATORS[recipe["task"]].__dataclass_fields__:
        splits["validation"] = {"split": "validation"}
    results = {name: evaluate(model, recipe, split, num_tasks) for name, split in splits.items()}
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
