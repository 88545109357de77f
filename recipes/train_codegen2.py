"""Trains a code model on a mixture of causal language modelling, span corruption, infilling and prefix-LM.

    accelerate launch recipes/train_codegen2.py recipes/codegen2/quickstart.yaml --output_dir outputs/mixture --seed 1
    python recipes/train_codegen2.py recipes/codegen2/quickstart.yaml --explain 2  # shows examples, trains nothing

`--model_name_or_path` is any causal language model; one that cannot infill gets tokens by `--add_infill_tokens starcoder` (or
`codegen2`), and its tokenizer remembers them for `--infill_format auto`.

Flags win over the YAML file. A stopped run goes on with `--resume_from_checkpoint auto` to the same weights. The output
folder's `trainer_state.json` has every logged number; `run.json` says how the model was made and what it reached.
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch reads it; see `use_cpu_cores`

import dataclasses
import itertools
import logging
import sys
from collections import Counter
from pathlib import Path

from transformers import set_seed

from modeling_lpn import (
    DataCollatorForCodeObjectives,
    DocumentStream,
    ObjectiveMixture,
    PackedSequences,
    infill_layout,
    open_sources,
)
from modeling_lpn.arguments import given, option, parse_recipe
from modeling_lpn.code.arguments import CodeGen2Arguments, CodeTrainingArguments, objective_arguments
from modeling_lpn.code.collator import check_attention, explain
from modeling_lpn.code.corpora import find_shared_files, read_rows
from modeling_lpn.code.evaluation import make_infill_cases
from modeling_lpn.code.infill_formats import add_infill_tokens
from modeling_lpn.code.objectives import PRESETS
from modeling_lpn.code.packing import StreamedSequences
from modeling_lpn.code.spans import SyntaxSplitter
from modeling_lpn.code.token_splitter import TokenSplitter
from modeling_lpn.code.trainer import CodeTrainer, add_lora, load_code_model, load_code_tokenizer
from modeling_lpn.cpu import speed_up_on_cpu
from modeling_lpn.optimizers import muon_and_settings
from modeling_lpn.runs import (
    ThreadChoice,
    TimeBudget,
    cores_of_process,
    end_together,
    find_checkpoint,
    is_finished,
    remove_checkpoints,
    report_leaks,
    run_recipe,
    use_cpu_cores,
    write_results,
)


@dataclasses.dataclass
class RunArguments:
    train_files: list[str] = option(
        [], "Sources, [NAME=]PLACE: Parquet or JSON lines files, folders, hub:ID; see split_source."
    )
    source_weights: list[float] | None = option(None, "Their shares of tokens; by default their sizes.")
    validation_files: list[str] = option([], "Held-out sources, for the evaluation.")
    leaks: str = option("flag", "Held-out files that occur in train_files: flag, refuse.")
    text_column: str | None = option(None, "Column of file contents; text, content or code if not given.")
    streaming: bool = option(False, "Read and tokenise the sources while training, in their order.")
    tokenizer_name_or_path: str | None = option(None, "Tokenizer, if it is not the model's.")
    model_name_or_path: str | None = option(None, "Model to start from; a new CodeGen2 if not given.")
    attn_implementation: str | None = option(None, "eager, sdpa or flex_attention; sdpa where the model has it.")
    preset: str = option("codegen2", "Mixture of objectives, a key of PRESETS.")
    objective_per: str = option("sequence", "Draw the objective for each sequence or each document.")
    cut_within_tokens: bool = option(False, "Infilling: cut at characters instead of tokens.")
    syntax_rate: float | None = option(
        None,
        "Share of spans that are parts of the syntax: infilling cut at characters, span corruption between tokens.",
    )
    syntax_language: str = option("python", "What the files are written in, for `syntax_rate`.")
    fim_rate: float | None = option(None, "Share of infilling in the preset fim, 0.5 if not given.")
    fim_spm_rate: float | None = option(None, "Share of suffix-first units in it; infill_suffix_first_rate.")
    labels: str = option("no_sentinels", "What carries loss: no_sentinels, all or targets_only.")
    span_weight: float = option(1.0, "How often a token of a masked span, and its <eom>, counts in the loss.")
    horizon_weight: float = option(
        0.0, "Weight of predicting the share of a masked span still to come, while training; 0 for none. 0.1 is ours."
    )
    attention: str = option("isolated", "Files of a sequence: isolated, isolated_4d or joint.")
    infill_format: str = option("codegen2", "Sentinels of the tokenizer, a key of INFILL_FORMATS, or auto.")
    add_infill_tokens: str | None = option(None, "Format whose tokens a model that cannot infill is given first.")
    max_length: int = option(2048, "Tokens of a sequence.")
    shuffle_window: int | None = option(None, "Sequences to shuffle at a time; if not given 100,000, streaming 1,000.")
    num_infill_cases: int = option(200, "Holes in held-out files to fill in every evaluation; 0 for none.")
    infill_span_tokens: int = option(8, "Longest of these holes, in tokens.")
    lora_r: int = option(0, "Rank of LoRA adapters; 0 trains all weights.")
    lora_alpha: int = option(32, "Scale of LoRA adapters.")
    explain: int = option(0, "Print so many training examples and stop.")
    num_threads: int | None = option(
        None,
        "CPU threads of a process; the fastest of one, half and all cores, tried in the first steps, if not given.",
    )


def load_tokenizer(run):
    return load_code_tokenizer(run.tokenizer_name_or_path or run.model_name_or_path)


def prepare_tokenizer(run):
    """The tokenizer, with tokens for infilling where they are asked for; it then knows their format."""
    tokenizer = load_tokenizer(run)
    if run.add_infill_tokens:
        if run.model_name_or_path is None or run.lora_r:
            fault = (
                "`lora_r` would leave them untrained"
                if run.lora_r
                else "there is no `model_name_or_path` to give them to"
            )
            raise ValueError(
                f"`add_infill_tokens` is {run.add_infill_tokens!r}, but {fault}; leave one of the two out."
            )
        add_infill_tokens(tokenizer, infill_format=run.add_infill_tokens)
        run.infill_format = "auto"
    return tokenizer


def build_model(run, model_args, tokenizer, on_cpu: bool):
    settings = {"n_positions": run.max_length} if run.model_name_or_path is None else {}
    settings |= {"attn_implementation": run.attn_implementation, **given(model_args)}
    if run.add_infill_tokens:
        plain = load_tokenizer(run)
        model = load_code_model(run.model_name_or_path, plain, **settings)
        add_infill_tokens(plain, model, run.add_infill_tokens)
    else:
        model = load_code_model(run.model_name_or_path, tokenizer, **settings)
    model = speed_up_on_cpu(model) if on_cpu else model
    return add_lora(model, run.lora_r, run.lora_alpha) if run.lora_r else model


def build_train_data(run, objective_args, args, tokenizer, layout):
    rates = {name: rate for name in ("fim_rate", "fim_spm_rate") if (rate := getattr(run, name)) is not None}
    settings = {**given(objective_args), **rates}
    if run.syntax_rate is not None:
        masking = {kind.name for _, kind in PRESETS.get(run.preset, ())} & {"infill", "span_corruption"} or {"infill"}
        splitter = SyntaxSplitter(tokenizer, run.syntax_rate, run.syntax_language)
        settings |= {f"{name}_splitter": splitter for name in masking}
    elif run.cut_within_tokens:
        settings["infill_splitter"] = TokenSplitter(tokenizer)
    mixture = ObjectiveMixture.from_preset(run.preset, run.objective_per, **settings)
    sources = open_sources(run.train_files, tokenizer, run.text_column, run.infill_format, run.streaming)
    options = {"max_length": run.max_length, "seed": args.seed if args.data_seed is None else args.data_seed}
    window = 1_000 if run.streaming else 100_000
    options["shuffle_window"] = window if run.shuffle_window is None else run.shuffle_window
    if run.streaming:
        return StreamedSequences(sources, mixture, layout, weights=run.source_weights, **options)
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    if args.max_steps <= 0:
        tokens = sum(documents.num_tokens for documents in sources.values())
        args.max_steps = max(1, round(args.num_train_epochs * tokens / (batch * run.max_length)))
    stream = DocumentStream(sources, run.source_weights, options["seed"])
    return PackedSequences(stream, mixture, layout, num_sequences=args.max_steps * batch, **options)


def build_eval_data(run, tokenizer, layout):
    """Held-out files as causal sequences, always the same, and holes in them."""
    sources = open_sources(run.validation_files, tokenizer, run.text_column, run.infill_format)
    causal, stream = ObjectiveMixture.from_preset("causal"), DocumentStream(sources, shuffle=False)
    sequences = PackedSequences(stream, causal, layout, run.max_length)
    if not run.num_infill_cases:
        return sequences, None
    rows, options = read_rows(run.validation_files, run.text_column), {"max_span_tokens": run.infill_span_tokens}
    return sequences, make_infill_cases(rows, run.num_infill_cases, tokenizer=tokenizer, **options)


def check_leaks(run, args) -> dict | None:
    """Which held-out files are trained on, by content."""
    if args.eval_strategy == "no" or run.streaming:
        report_leaks({}, 0, "files", run.leaks)
        reason = "the sources are streamed" if run.streaming else "nothing is evaluated while training"
        return {"compared_with": [], "not_compared": reason, "files": {}}
    rows = read_rows(run.validation_files, run.text_column)
    found = find_shared_files(rows, run.train_files, run.text_column)
    report_leaks(found, len(rows), "files", run.leaks)
    return {"compared_with": run.train_files, "not_compared": None, "files": found}


def span_counts(mixture) -> dict[str, int]:
    """What the spans were, as far as this process has drawn them; none where they are not by syntax."""
    splitters = [getattr(objective, "splitter", None) for objective in mixture.objectives]
    # By identity: the objectives of UL2 share one.
    counts = {id(splitter): getattr(splitter, "counts", Counter()) for splitter in splitters}
    return dict(sum(counts.values(), Counter()))


def main():
    kinds = [RunArguments, objective_arguments(), CodeGen2Arguments, CodeTrainingArguments]
    run, objective_args, model_args, args = parse_recipe(kinds)
    logging.basicConfig(level=logging.INFO if args.should_log else logging.WARNING)
    if args.device.type == "cpu":
        use_cpu_cores(run.num_threads)
    if args.eval_strategy != "no" and not (run.validation_files or run.explain):
        raise ValueError(
            f"`eval_strategy` is {args.eval_strategy.value} and there are no `validation_files`; give some, or set"
            " `eval_strategy` to no"
        )
    checkpoint = find_checkpoint(args, args.overwrite)
    tokenizer = prepare_tokenizer(run)
    layout = infill_layout(tokenizer, run.infill_format)
    train_data = build_train_data(run, objective_args, args, tokenizer, layout)
    if run.explain:
        for example in itertools.islice(train_data, run.explain):
            print(explain(example, tokenizer, layout, run.labels, color=sys.stdout.isatty()))
        return
    if is_finished(checkpoint, args):
        return
    set_seed(args.seed)
    model = build_model(run, model_args, tokenizer, args.device.type == "cpu")
    check_attention(model, run.attention, train_data.mixture)
    if run.horizon_weight and not any(
        kind.name in ("infill", "span_corruption") for kind in train_data.mixture.objectives
    ):
        raise ValueError(
            f"`horizon_weight` is {run.horizon_weight}, but the preset {run.preset!r} masks no spans; leave it out"
        )
    leaks = check_leaks(run, args)
    eval_data, cases = (None, None) if args.eval_strategy == "no" else build_eval_data(run, tokenizer, layout)
    trainer = CodeTrainer(
        model=model,
        args=args,
        data_collator=DataCollatorForCodeObjectives(
            layout, run.attention, run.labels, run.span_weight, information=True, horizon=run.horizon_weight != 0
        ),
        train_dataset=train_data,
        eval_dataset=eval_data,
        processing_class=tokenizer,
        infill_cases=cases,
        infill_settings={"infill_format": run.infill_format, "max_new_tokens": run.infill_span_tokens + 1},
        horizon_weight=run.horizon_weight,
        optimizer_cls_and_kwargs=muon_and_settings(model, args) if args.muon else None,
    )
    trainer.add_callback(budget := TimeBudget(args.max_minutes))
    if run.num_threads is None and args.device.type == "cpu":
        trainer.add_callback(ThreadChoice(cores_of_process()))
    if args.overwrite:
        remove_checkpoints(args)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    last = [entry for entry in trainer.state.log_history if entry["step"] == trainer.state.global_step]
    evaluation = {name: entry[name] for entry in last for name in entry if name.startswith("eval_")}
    if eval_data and not evaluation:  # the last step need not be one that evaluates
        evaluation = trainer.evaluate()
    trainer.save_model(_internal_call=True)  # it is pushed when its record is there
    trainer.save_state()
    if args.should_save:
        record = {"num_parameters": model.num_parameters(), "metrics": result.metrics, "evaluation": evaluation}
        record["spans"] = span_counts(train_data.mixture)
        record |= {"steps": trainer.state.global_step, "seconds": budget.seconds, "leaks": leaks}
        record["ended_by_time_budget"] = budget.ended
        record["arguments"] = {**vars(run), **given(objective_args), **given(model_args), **args.to_sanitized_dict()}
        write_results(Path(args.output_dir, "run.json"), args.seed, **record)
        print(f"evaluate it: accelerate launch recipes/evaluate_codegen2.py --model_name_or_path {args.output_dir}")
    if args.push_to_hub:
        trainer.push_to_hub()
    end_together(trainer.accelerator)


if __name__ == "__main__":
    run_recipe(main)
