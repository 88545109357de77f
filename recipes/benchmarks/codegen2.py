"""
Measures CodeGen2 against transformers' built-in `CodeGenForCausalLM`: same weights, alternating in one process.

    python recipes/benchmarks/codegen2.py --output outputs/benchmark_codegen2.json
    python recipes/benchmarks/codegen2.py --device cuda --dtypes bfloat16 --cases train-8x2048 decode-1-static-compile

On a CPU this class runs with `speed_up_on_cpu` ("ours") and without it ("plain"). Each case gives the medians, the time its matrix products alone take in its type or in float32 (in the same
run), and the peak memory of a process that runs only that case. `-last`: logits of the last token, as in `generate`.
"""

import argparse
import functools
import gc
import itertools
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import CodeGenConfig, CodeGenForCausalLM

from modeling_lpn import CodeGen2Config, CodeGen2ForCausalLM
from modeling_lpn.cpu import speed_up_on_cpu
from modeling_lpn.runs import write_results


SIZES = {"vocab_size": 51200, "n_positions": 2048, "n_embd": 1024, "n_layer": 20, "n_head": 16, "rotary_dim": 32}
CASES = ["prefill-1x512", "prefill-1x2048", "train-2x512", "train-1x2048", "decode-1", "decode-4", "decode-1-static"]
PROMPT, NEW_TOKENS = 128, 64


def make_model(which, arguments):
    sizes = SIZES | {"n_layer": arguments.layers}
    torch.set_default_dtype(getattr(torch, arguments.dtype))
    with torch.device(arguments.device):
        if which == "stock":
            return CodeGenForCausalLM(CodeGenConfig(**sizes))
        model = CodeGen2ForCausalLM(CodeGen2Config(**sizes))
        return speed_up_on_cpu(model) if which == "ours" and arguments.device == "cpu" else model


def make_step(model, case, device):
    """A function that runs the case once; `prefill-BxT[-last]`, `train-BxT` or `decode-B[-static][-compile]`."""
    kind, shape, *options = case.split("-")
    batch, length = map(int, shape.split("x")) if "x" in shape else (int(shape), PROMPT)
    ids = torch.randint(3, 50000, (batch, length), generator=torch.Generator().manual_seed(0)).to(device)
    model.train(kind == "train")

    def train():
        model.zero_grad(set_to_none=True)
        model(ids, labels=ids, use_cache=False).loss.backward()

    def decode():
        model.forward = forward
        model.generate(ids, attention_mask=torch.ones_like(ids), **settings)

    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    settings |= {"cache_implementation": "static"} if "static" in options else {}
    forward = torch.compile(model.forward, dynamic=False, fullgraph=True) if "compile" in options else model.forward
    prefill = torch.no_grad()(lambda: model(ids, use_cache=False, logits_to_keep=int("last" in options)))
    return {"train": train, "prefill": prefill, "decode": decode}[kind]


def clock(step, device):
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    start = wait() or time.perf_counter()
    step(), wait()
    return time.perf_counter() - start


def ceiling_seconds(case, arguments):
    """Time of the case's linear layers alone, as matrix products of the same sizes."""
    kind, shape, *options = case.split("-")
    (batch, length), width = map(int, shape.split("x")), SIZES["n_embd"]
    shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width), (width, SIZES["vocab_size"])]
    totals = dict.fromkeys({torch.float32, getattr(torch, arguments.dtype)}, 0.0)
    linears = zip(shapes, [arguments.layers] * 4 + ["last" not in options], strict=True)
    for dtype, ((inner, outer), times) in itertools.product(totals, linears):
        factors = (torch.randn(rows, inner, device=arguments.device, dtype=dtype) for rows in (batch * length, outer))
        product = functools.partial(torch.nn.functional.linear, *factors)
        product()
        totals[dtype] += times * statistics.median(clock(product, arguments.device) for _ in range(arguments.repeats))
    return min(totals.values()) * (3 if kind == "train" else 1)  # backward: the gradients of both factors


def peak_megabytes(which, case, arguments):
    command = [sys.executable, __file__, "--memory_of", which, "--cases", case, "--dtypes", arguments.dtype]
    command += ["--device", arguments.device, "--layers", str(arguments.layers), "--threads", str(arguments.threads)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def measure_memory(which, case, arguments):
    make_step(make_model(which, arguments), case, arguments.device)()
    if arguments.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024  # `ru_maxrss` is inherited


def measure_case(case, arguments):
    gc.collect()
    peaks = {}  # first, while this process holds no model: all together may not fit into memory
    if not arguments.skip_memory:
        peaks = {f"{which}_peak_mb": peak_megabytes(which, case, arguments) for which in ("ours", "stock")}
        peaks["memory_ratio"] = peaks["ours_peak_mb"] / peaks["stock_peak_mb"]
    whiches = ["ours", "plain", "stock"] if arguments.device == "cpu" else ["ours", "stock"]
    models = {which: make_model(which, arguments) for which in whiches if which not in arguments.without}
    for model in models.values():
        model.load_state_dict(models["ours"].state_dict())
    steps = {which: make_step(model, case, arguments.device) for which, model in models.items()}
    if (
        "stock" in steps and case.count("-") > 1 and "last" not in case
    ):  # against the built-in class as most people run it, too
        steps["stock_plain"] = make_step(models["stock"], "-".join(case.split("-")[:2]), arguments.device)
    times = {which: [] for which in steps}
    for repeat in range(arguments.warm_ups + arguments.repeats):
        for which in steps if repeat % 2 else reversed(steps):  # each goes first half of the time
            times[which].append(clock(steps[which], arguments.device))
    times = {which: values[arguments.warm_ups :] for which, values in times.items()}
    row = {"case": case, "dtype": arguments.dtype, "device": arguments.device, "seconds": times}
    medians = {which: statistics.median(values) for which, values in times.items()}
    row |= {f"{which}_seconds": seconds for which, seconds in medians.items()}
    row |= {f"speedup_over_{which}": medians[which] / medians["ours"] for which in medians if which != "ours"}
    return row | {"matmul_seconds": None if "decode" in case else ceiling_seconds(case, arguments)} | peaks


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warm_ups", type=int, default=1, help="rounds before the first that counts")
    parser.add_argument("--layers", type=int, default=SIZES["n_layer"], help="fewer, for a try")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--without", nargs="*", default=[], choices=["plain", "stock"], help="models to leave out")
    parser.add_argument("--skip_memory", action="store_true")
    parser.add_argument("--memory_of", choices=["ours", "stock"], help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark_codegen2.json"))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    machine = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{arguments.threads} CPU threads"
    result = {"machine": machine, "sizes": SIZES | {"n_layer": arguments.layers}, "rows": []}
    for dtype, case in itertools.product(arguments.dtypes, arguments.cases):
        arguments.dtype = dtype
        if arguments.memory_of:
            return print(measure_memory(arguments.memory_of, case, arguments))
        result["rows"].append(measure_case(case, arguments))
        print({name: value for name, value in result["rows"][-1].items() if name != "seconds"}, flush=True)
        write_results(arguments.output, 0, **result)


if __name__ == "__main__":
    main()
