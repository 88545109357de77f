"""The console script `modeling-lpn`: trained models without a line of Python."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.utils import logging

from .code.trainer import load_code_model, load_code_tokenizer
from .cpu import speed_up_on_cpu
from .lpn.processing_lpn import StringProcessor
from .lpn.search_lpn import SearchConfig
from .optional import require
from .pipelines import HOLE, load_pipeline, split_at_holes
from .runs import run_recipe, use_cpu_cores
from .tasks.arc import load_tasks
from .tasks.fill import Calibration, fill_table
from .tasks.metrics import make_submission
from .tasks.string_sources import read_table


class _Parser(argparse.ArgumentParser):
    def __init__(self, *args, example: str = "", **kwargs):
        super().__init__(
            *args,
            epilog=example and f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **kwargs,
        )

    def error(self, message):
        raise ValueError(f"{message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `run`, the function that is called with what was parsed."""
    parser = _Parser(
        prog="modeling-lpn",
        description="Neural program synthesis with trained models.",
        example="modeling-lpn solve task.json --model model_cards/lpn-pattern-4x4",
    )
    commands = parser.add_subparsers(required=True, metavar="command", parser_class=_Parser)
    _add_solve(commands)
    _add_infill(commands)
    _add_publish(commands)
    _add_demo(commands)
    _add_fill(commands)
    _add_serve(commands)
    return parser


def _add_solve(commands) -> None:
    solve = commands.add_parser(
        "solve",
        help="infer the program of ARC tasks by latent search, and execute it",
        description="Infers the program of ARC tasks by latent search and executes it on their test inputs.",
        example="modeling-lpn solve task.json --model model_cards/lpn-pattern-4x4 --budget 100",
    )
    solve.add_argument(
        "tasks", help="a JSON file with a task or with challenges, a folder, a Parquet file, or arcagi:evaluation"
    )
    solve.add_argument("--model", required=True, help="folder or Hub name of an LPN model")
    solve.add_argument("--budget", type=int, help="gradient steps, or samples; the model's own setting if not given")
    solve.add_argument("--seed", type=int, default=0, help="seed of the search (default: 0)")
    solve.add_argument("--json", action="store_true", help="print an ARC Prize submission instead of text")
    solve.set_defaults(run=solve_tasks)


def _add_infill(commands) -> None:
    infill = commands.add_parser(
        "infill",
        help="fill the holes of a source file",
        description=f"Prints a source file with its holes filled. A hole is written {HOLE}. Nothing is executed.",
        example="modeling-lpn infill holes.py --model model_cards/codegen2-python-1m > filled.py",
    )
    infill.add_argument("file", help="the source file; - reads the standard input")
    infill.add_argument("--model", required=True, help="folder or Hub name of a CodeGen2 model")
    infill.add_argument("--hole", default=HOLE, help=f"how a hole is written (default: {HOLE})")
    infill.add_argument("--max_new_tokens", type=int, default=64, help="longest filling of a hole (default: 64)")
    infill.set_defaults(run=infill_file)


def _add_publish(commands) -> None:
    publish = commands.add_parser(
        "publish",
        help="make a trained model a repository on the Hub",
        description="Gathers a model's files, writes its card, reloads the folder in fresh processes with this package and"
        " without it, and uploads it in one commit. The token is that of `hf auth login` or of HF_TOKEN.",
        example="modeling-lpn publish outputs/quickstart me/lpn-quickstart --license apache-2.0 --dry_run",
    )
    publish.add_argument("folder", help="the folder of a trained model")
    publish.add_argument("repo_id", help="user/name on the Hub")
    publish.add_argument("--results", nargs="+", default=[], help="results files of evaluations to show in the card")
    publish.add_argument("--license", help="of the weights, as the Hub spells it: apache-2.0")
    publish.add_argument("--public", action="store_true", help="make a new repository public")
    publish.add_argument("--revision", help="branch to commit to (default: main)")
    publish.add_argument("--tag", help="name of the new commit, e.g. v1.0")
    publish.add_argument("--dry_run", action="store_true", help="upload nothing; show every file and the card")
    publish.set_defaults(run=publish_model)


def _add_demo(commands) -> None:
    demo = commands.add_parser(
        "demo",
        help="play with trained models in the browser",
        description="Serves a page to draw tasks, watch the latent search, and infill code. It needs the extra `demo`.",
        example="modeling-lpn demo model_cards/lpn-pattern-4x4 model_cards/codegen2-python-1m",
    )
    demo.add_argument("models", nargs="*", help="folders or Hub names of LPN and CodeGen2 models")
    demo.add_argument("--host", help="address to listen at (default: GRADIO_SERVER_NAME, else 127.0.0.1)")
    demo.add_argument(
        "--port", type=int, help="port to listen at (default: GRADIO_SERVER_PORT, else 7860 or the next)"
    )
    demo.set_defaults(run=serve_demo)


def _add_fill(commands) -> None:
    fill = commands.add_parser(
        "fill",
        help="fill a column of a table from the rows that are filled already",
        description="Reads a table whose output column is filled in two or three rows, fills the others, and says in one"
        " more column how sure it is of each. The file itself is not changed.",
        example="modeling-lpn fill people.csv --output-column short --model model_cards/lpn-strings > filled.csv",
    )
    fill.add_argument("file", help="a .csv or .tsv file with a header, UTF-8")
    fill.add_argument("--model", required=True, help="folder or Hub name of an LPN model of strings")
    fill.add_argument("--output-column", "--output_column", required=True, help="the column to fill")
    fill.add_argument("--input-columns", "--input_columns", nargs="+", help="what it depends on (default: all others)")
    fill.add_argument("--output", help="file to write (default: print the table)")
    fill.add_argument("--overwrite", action="store_true", help="replace the file named by --output if it is there")
    fill.add_argument("--budget", type=int, help="gradient steps, or samples; the model's own setting if not given")
    fill.add_argument("--threshold", type=float, default=0.75, help="probability that counts as sure (default: 0.75)")
    fill.add_argument("--explain", action="store_true", help="say what the search did, and the next best answers")
    fill.set_defaults(run=fill_column)


def _add_serve(commands) -> None:
    serve = commands.add_parser(
        "serve",
        help="serve a model that infills to editors and clients of OpenAI's and llama.cpp's APIs",
        description="Serves /v1/completions with a true suffix (OpenAI) and /infill (llama.cpp). It needs the extra `serve`."
        " There is no authentication: whoever reaches the port may use it.",
        example="modeling-lpn serve model_cards/codegen2-python-1m --port 8012",
    )
    serve.add_argument("model", help="folder or Hub name of a causal language model with infilling tokens")
    serve.add_argument("--name", help="what clients call the model (default: the last part of its name)")
    serve.add_argument("--infill_format", default="auto", help="family of its sentinels (default: by its vocabulary)")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, default=8012, help="port to listen at, 0 for a free one (default: 8012)")
    serve.add_argument("--dtype", default="auto", help="float32, bfloat16 or auto (default: that of the weights)")
    serve.add_argument("--device", help="as torch names it (default: the accelerator, else cpu)")
    serve.add_argument("--num_threads", type=int, help="CPU threads (default: all cores)")
    for name, text in LIMITS.items():
        serve.add_argument(f"--{name}", type=int, help=text)
    serve.set_defaults(run=serve_infilling)


LIMITS = {
    "max_new_tokens": "longest span that may be asked for (default: 256)",
    "max_spans": "spans that one request may ask for (default: 32)",
    "max_body": "bytes that a request may have (default: 2097152)",
    "max_waiting": "spans that may wait; then the answer is status 429 (default: 256)",
    "max_batch_size": "spans written at a time (default: 16)",
}


def solve_tasks(args: argparse.Namespace) -> None:
    """`modeling-lpn solve`."""
    infer = load_pipeline(args.model, "program-induction")
    tasks = load_tasks(args.tasks, processor=infer.processor)
    predictions = {}
    for task in tasks:
        result = infer(task, budget=args.budget, seed=args.seed)
        predictions[task["task_id"]] = result["grids"]
        if not args.json:
            print(describe_result(task, result), flush=True)
    if args.json:
        print(json.dumps(make_submission(predictions, tasks)))


def describe_result(task: dict, result: dict) -> str:
    """What [`ProgramInductionPipeline`] found for a task, as text; right or wrong where the task tells its outputs."""
    lines = [f"task {task['task_id']}: {result['num_evaluations']} decoder evaluations"]
    for number, (pair, grids) in enumerate(zip(task["test"], result["grids"], strict=True)):
        for attempt, (grid, score) in enumerate(zip(grids, result["scores"][number], strict=True), 1):
            verdict = "" if pair.get("output") is None else f", {'right' if grid == pair['output'] else 'wrong'}"
            lines.append(f"test input {number}, attempt {attempt} (score {score:.3f}{verdict})")
            if grid in grids[: attempt - 1]:
                lines[-1] += ": the same again, no other output was found"
            else:
                lines += ["  " + " ".join(map(str, row)) for row in grid]
    return "\n".join(lines)


def infill_file(args: argparse.Namespace) -> None:
    """`modeling-lpn infill`."""
    if args.max_new_tokens < 1:
        raise ValueError(f"--max_new_tokens is {args.max_new_tokens}; give 1 or more")
    pieces = split_at_holes(read_source(args.file), args.hole)
    fill = load_pipeline(args.model, "code-infilling")
    result = fill({"pieces": pieces}, max_new_tokens=args.max_new_tokens)
    sys.stdout.write(result["text"])
    for number, ended in enumerate(result["finished"], 1):
        if not ended:
            print(f"hole {number} was cut off after {args.max_new_tokens} tokens", file=sys.stderr)
    if result["truncated"]:
        print("the file is longer than the model's context: text far from the holes was not read", file=sys.stderr)


def publish_model(args: argparse.Namespace) -> None:
    """`modeling-lpn publish`."""
    from .cards import CardFacts
    from .hub import publish  # with what it takes to make cards, which nothing else needs

    if args.public and args.license is None and CardFacts.read(args.folder).license is None:
        raise ValueError("a public model says what others may do with it; give --license, e.g. apache-2.0")
    options = {"revision": args.revision, "tag": args.tag, "dry_run": args.dry_run, "license": args.license}
    publication = publish(args.folder, args.repo_id, args.results, private=not args.public, **options)
    for name, size in publication.files.items():
        print(f"{size:>13,}  {name}")
    print(f"\n{publication.card}\nnothing was uploaded" if args.dry_run else f"published: {publication.url}")


def serve_demo(args: argparse.Namespace) -> None:
    """`modeling-lpn demo`."""
    require("gradio", "demo", "The demo")
    from .demo.app import serve  # it imports gradio, which takes seconds

    if not args.models:
        raise ValueError("the demo has no model; give folders of trained models, or their names on the Hub")
    serve(args.models, args.host, args.port)


def serve_infilling(args: argparse.Namespace) -> None:
    """`modeling-lpn serve`."""
    require("fastapi", "serve", "The server")
    require("uvicorn", "serve", "The server")
    from .serving.app import serve
    from .serving.server import InfillServer, Limits

    limits = Limits(**{name: getattr(args, name) for name in LIMITS if getattr(args, name) is not None})
    device = args.device or torch.accelerator.current_accelerator() or "cpu"
    tokenizer = load_code_tokenizer(args.model)
    model = load_code_model(args.model, tokenizer, dtype=args.dtype).to(device)
    if model.device.type == "cpu":
        use_cpu_cores(args.num_threads)
        model = speed_up_on_cpu(model)
    name = args.name or args.model.rstrip("/").split("/")[-1]
    serve(InfillServer(model, tokenizer, name, args.infill_format, limits), args.host, args.port)


def fill_column(args: argparse.Namespace) -> None:
    """`modeling-lpn fill`."""
    if args.output is not None and Path(args.output).exists() and not args.overwrite:
        raise ValueError(f"{args.output} is there already; give another --output, or --overwrite to replace it")
    table = read_table(args.file, args.output_column, args.input_columns)
    infer = load_pipeline(args.model, "program-induction")
    if not isinstance(infer.processor, StringProcessor):
        raise ValueError(f"{args.model!r} is a model of grids; give one of strings")
    search = SearchConfig.of(infer.model.config.search)
    search = search if args.budget is None else search.at_budget(args.budget)
    calibration = Calibration.load(args.model)
    filled = fill_table(infer.model, infer.processor, table, search, calibration, args.threshold)
    if args.output is None:
        sys.stdout.write(filled.to_text())
    else:
        Path(args.output).write_text(filled.to_text(), encoding="utf-8")
    unsure = sum(not cell.is_sure for cell in filled.cells)
    print(f"{len(filled.cells)} cells filled, not sure of {unsure}", file=sys.stderr)
    for row, why in filled.unread.items():
        print(f"row {row + 2} not read: {why}", file=sys.stderr)
    if calibration is None:
        print("the model has no calibration.json: none can be sure", file=sys.stderr)
    if args.explain:
        print(filled.explain(), file=sys.stderr)


def read_source(path: str) -> str:
    """The text of a file, or of the standard input for `-`; `ValueError` if it is no text."""
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_bytes().decode()  # line ends stay as they are
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error})") from error


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: runs `argv`, by default that of the process; a mistake ends in one line and status 2."""

    def run():
        args = build_parser().parse_args(argv)
        logging.disable_progress_bar()  # of loading some megabytes
        args.run(args)

    run_recipe(run)


if __name__ == "__main__":
    main()
