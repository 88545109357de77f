"""
LPN against frozen outputs of the published JAX code (github.com/clement-bonnet/lpn @ 0adfe56, Apache-2.0).

A few cases are in tests/reference/lpn; LPN_REFERENCE=<folder of cases> runs all of them.
"""

import json
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from cases_recipes import call, flags, load_recipe
from safetensors.torch import load_file
from transformers import AutoModel

from modeling_lpn import LPNModel, SearchConfig
from modeling_lpn.lpn.modeling_lpn import Scoring
from modeling_lpn.lpn.search_lpn import SEARCH_METHODS
from modeling_lpn.tasks.flax_checkpoints import convert_config, convert_parameters, read_msgpack
from modeling_lpn.tasks.trainer import describe_latents


REFERENCE = Path(os.environ.get("LPN_REFERENCE", Path(__file__).parents[1] / "reference" / "lpn"))
CASES = sorted(path.parent.name for path in REFERENCE.glob("*/params.safetensors"))
# The published names of what a search is told, and ours.
KEYWORDS = {
    "num_steps": "num_steps",
    "lr": "lr",
    "optimizer": "optimizer",
    "num_samples": "num_samples",
    "scale": "std",
}


class Case:
    def __init__(self, name):
        folder = REFERENCE / name
        self.info = json.loads((folder / "io.json").read_text())
        self.arrays = load_file(folder / "io.safetensors")
        config = convert_config(json.loads((folder / "config.json").read_text()))
        config.prior_kl_weight = self.info["prior_kl_coeff"] if config.variational else 0.0
        config.pairwise_kl_weight = self.info["pairwise_kl_coeff"] if config.variational else 0.0
        self.model = LPNModel(config).eval()
        flax = {k: v.numpy() for k, v in load_file(folder / "params.safetensors").items()}
        self.model.load_state_dict(convert_parameters(flax, config))
        pairs, shapes = self["in/pairs"].long(), self["in/grid_shapes"].long()
        self.demonstrations = (pairs[..., 0], pairs[..., 1], shapes[..., 0], shapes[..., 1])
        demonstrations = self.model._demonstrations(*self.demonstrations, None)
        pairs, _, plan, _ = demonstrations
        self.each_itself = Scoring(pairs, plan.grouping("own", pairs.input_grids.device))
        if "in/test_input" in self.arrays:
            self.queries = self["in/test_input"].long()[:, None], self["in/test_input_shape"].long()[:, None]

    def __getitem__(self, name):
        return self.arrays[name]

    def names(self, prefix):
        """Second parts of the array names under a prefix: the variants that were recorded."""
        return sorted({name.split("/")[1] for name in self.arrays if name.startswith(f"{prefix}/")})

    def close(self, name, value, tolerance):
        noise = self.info["arrays"].get(name, {}).get("noise_floor_max_abs") or 0.0
        limit = max(tolerance * max(1.0, float(self[name].abs().max())), 5 * noise)
        assert float((value.detach() - self[name]).abs().max()) <= limit, name

    def search(self, prefix, **extra):
        """The SearchConfig of a recorded variant, the published behaviour asked for by name."""
        kwargs = next(a["kwargs"] for n, a in self.info["arrays"].items() if n.startswith(f"{prefix}/"))
        settings = {ours: kwargs[theirs] for theirs, ours in KEYWORDS.items() if theirs in kwargs}
        settings |= {
            f"beta{key[1]}": value for key, value in kwargs.get("optimizer_kwargs", {}).items() if key[0] == "b"
        }
        settings["momentum"] = kwargs.get("optimizer_kwargs", {}).get("momentum", 0.0)
        settings["beta2"] = settings.get("beta2", 0.999)
        if "random_perturbation" in kwargs:
            settings |= {"num_samples": 3, "std": kwargs["random_perturbation"]["scale"]}
        settings["method"] = "gradient" if "num_steps" in kwargs else "random" if "num_samples" in kwargs else "mean"
        settings["optimizer"] = kwargs.get("optimizer", "sgd")
        settings["lr_schedule"] = "cosine" if kwargs.get("lr_schedule") else "constant"
        settings["init"] = "prior" if kwargs.get("remove_encoder_latents") else "encoder"
        settings["second_order"] = not kwargs.get("stop_gradient_latent_move", True)
        if kwargs.get("include_all_latents"):
            settings["starts"] = "mean+pairs" if kwargs.get("include_mean_latent", True) else "pairs"
        settings |= {"clip": "batch", **extra}
        unread = {"adam": {"momentum"}, "sgd": {"beta1", "beta2"}}[settings["optimizer"]]
        spec = SEARCH_METHODS[settings["method"]]
        return SearchConfig(**{n: v for n, v in settings.items() if spec.is_read(n) and n not in unread})


@cache
def load_case(name):
    return Case(name)


@pytest.fixture(params=CASES)
def case(request):
    return load_case(request.param)


def test_there_are_cases():
    assert "tiny" in CASES


def test_encoder(case):
    encoded = case.model.encode(*case.demonstrations)
    if case.model.config.variational:
        case.close("enc/latents_mu", encoded.latent_mean, 1e-5)
        case.close("enc/latents_logvar", encoded.latent_logvar, 1e-5)
    else:
        case.close("enc/latents_mu", encoded.latents, 1e-5)


@torch.no_grad()
def test_decoder_logits(case):
    rows, cols = case["in/pairs"].shape[2:4]
    latents = case["in/context_pair"].flatten(0, 1).unsqueeze(1)
    shape = case["in/context_pair"].shape[:2]
    max_rows, max_cols = case.model.config.max_rows, case.model.config.max_cols
    row_logits = torch.zeros(len(latents), max_rows)
    col_logits = torch.zeros(len(latents), max_cols)
    # Published: one slot for each cell of the padded grid, the first of a row is read from the row before it.
    grid_logits = torch.zeros(len(latents), rows, cols, case.model.config.vocab_size)
    valid = torch.zeros(len(latents), rows, cols, dtype=torch.bool)
    for chunk in case.model._decoder_chunks(case.each_itself, share=False):
        entries = chunk.rows[:, 0]
        row_part, col_part, cells = (part[:, 0] for part in case.model._logits(latents[entries], chunk))
        row_logits[entries], col_logits[entries] = row_part, col_part
        for entry, (height, width), logits in zip(entries, chunk.shapes.tolist(), cells, strict=True):
            grid_logits[entry, :height, :width] = logits[: height * width].view(height, width, -1)
            valid[entry, :height, :width] = True
    case.close("dec/row_logits", row_logits.view(*shape, -1), 1e-5)
    case.close("dec/col_logits", col_logits.view(*shape, -1), 1e-5)
    expected = case["dec/grid_logits"].clone()
    expected[:, :, cols::cols] = case["dec/last_non_padded_logits"]
    expected = torch.where(valid.view(*shape, -1, 1), expected, 0.0)
    assert float((expected - grid_logits.view(*shape, rows * cols, -1)).abs().max()) < 2e-5


@torch.no_grad()
def test_loss_and_log_prob_terms(case):
    shape = case["in/context_pair"].shape[:2]
    terms, _ = case.model._program_terms(case["in/context_pair"].flatten(0, 1), case.each_itself)
    for index, name in enumerate(("shape_row_loss", "shape_col_loss", "grid_loss")):
        case.close(f"loss/{name}", -terms[:, index].view(shape), 1e-5)
    case.close("loss/loss", -terms.sum(-1).view(shape), 1e-5)


@torch.no_grad()
def test_log_prob_of_a_task(case):
    recorded = [name for name in case.arrays if name.startswith("rs/") and name.endswith("/latents")]
    for name in recorded:
        latents = case[name]
        case.close(name.replace("/latents", "/log_probs"), case.model.log_prob(latents, *case.demonstrations), 1e-5)
    assert recorded


VARIATIONAL_ONLY = ("latent_mean_average", "latent_logvar_average", "latent_mean_norm")


def published_metrics(output, every):
    latents = dict.fromkeys(VARIATIONAL_ONLY) | describe_latents(output, every_latent=every)
    return {
        "total_loss": output.reconstruction_loss,
        "shape_row_loss": output.row_loss,
        "shape_col_loss": output.col_loss,
        "grid_loss": output.grid_loss,
        "prior_kl": output.prior_kl,
        "pairwise_kl": output.pairwise_kl,
        "latents_mu": latents["latent_mean_average"],
        "latents_logvar": latents["latent_logvar_average"],
        "norm_latents_mu": latents["latent_mean_norm"],
        "latents_norm": latents["latent_norm"],
        "cosine_between_latents": latents["latent_cosine"],
        "distance_between_latents": latents["latent_distance"],
        "context_norm": latents["program_norm"],
        "cosine_between_contexts": latents["program_cosine"],
        "distance_between_contexts": latents["program_distance"],
        "distance_context_latents": latents["program_latent_distance"],
    }


def test_training_modes(case):
    assert {"all", "mean"} <= set(case.names("call"))
    for mode in case.names("call"):
        search = case.search(f"call/{mode}", **({"method": "all"} if mode == "all" else {}))
        noise = case.arrays.get("in/eps2" if search.init == "prior" else "in/eps")
        search_noise = case["in/rs_call_vectors"][:, :, 0] if search.method == "random" else None
        output = case.model(
            *case.demonstrations,
            search_config=search,
            sample_latents=True,
            latent_noise=noise,
            search_noise=search_noise,
        )
        tolerance = 1e-4 if search.method == "gradient" else 1e-5
        case.close(f"call/{mode}/loss", output.loss, tolerance)
        metrics = published_metrics(output, mode == "all")
        for name in [name for name in case.arrays if name.startswith(f"call/{mode}/metrics/")]:
            case.close(name, metrics[name.rsplit("/", 1)[1]], tolerance)
        if f"call/{mode}/context" in case.arrays:
            case.close(f"call/{mode}/context", output.programs, 1e-4)


def run_search(case, prefix, latents, noise=None, search=None):
    search = case.search(prefix) if search is None else search
    if prefix.endswith("task0_alone"):
        demonstrations, latents = tuple(tensor[:1] for tensor in case.demonstrations), latents[:1]
    else:
        demonstrations = case.demonstrations
    demonstrations = case.model._demonstrations(*demonstrations, None)
    return case.model._search(latents, demonstrations.pair_mask, demonstrations.scoring("of_task"), search, noise)


def compare_search(case, prefix, found):
    case.close(f"{prefix}/log_probs", found.trajectory_log_probs.flatten(1), 1e-4)
    case.close(f"{prefix}/latents", found.trajectory_latents.flatten(1, 2), 1e-4)
    case.close(f"{prefix}/best", found.latents[:, 0], 1e-4)
    case.close(f"{prefix}/second", found.latents[:, 1], 1e-4)


def test_gradient_search(case):
    variants = [name for name in case.names("ga") if not name.endswith("_loo")]
    assert variants
    for variant in variants:
        noise = case["in/ga_perturbation"] if variant.endswith("_perturb") else None
        compare_search(case, f"ga/{variant}", run_search(case, f"ga/{variant}", case["in/ga_latents"], noise))


def test_random_search(case):
    assert case.names("rs")
    for variant in case.names("rs"):
        noise = case[f"in/rs_vectors_{variant}"].flatten(1, 2)
        compare_search(case, f"rs/{variant}", run_search(case, f"rs/{variant}", case["in/ga_latents"], noise))


def test_generation(case):
    """Shapes and cells exactly, from the recorded latents and from the whole chain of encoder, search and decoder."""
    for mode in case.names("gen"):
        prefix = f"gen/{mode}"
        if mode == "from_context":
            output = case.model.execute(case["in/context_task"].unsqueeze(1), *case.queries)
        else:
            search = case.search(prefix, **({"method": "first"} if mode == "first" else {}))
            noise = case.arrays.get("in/eps2" if search.init == "prior" else "in/eps")
            encoded = case.model.encode(*case.demonstrations, sample_latents=True, latent_noise=noise)
            latents = noise if search.init == "prior" else encoded.latents
            samples = case["in/rs_vectors_gen"][:, 0] if search.method == "random" else None
            found = run_search(case, prefix, latents.detach(), samples, search)
            case.close(f"{prefix}/context", found.latents[:, 0], 1e-4)
            output = case.model.execute(found.latents, *case.queries)
        compare_grids(case, prefix, output, 1)
        if f"{prefix}/shape_2" in case.arrays:  # the published second attempt: the second latent, whatever it writes
            compare_grids(case, prefix, case.model.execute(found.latents[:, 1:2], *case.queries), 2)


def compare_grids(case, prefix, output, attempt):
    shapes, grids = case[f"{prefix}/shape_{attempt}"].long(), case[f"{prefix}/grid_{attempt}"].long()
    assert torch.equal(output.output_shapes[:, 0, 0], shapes), prefix
    for ours, theirs, (rows, cols) in zip(output.output_grids[:, 0, 0], grids, shapes.tolist(), strict=True):
        assert torch.equal(ours[:rows, :cols], theirs[:rows, :cols]), prefix


GRADIENT_SEARCHES = {
    "mean": SearchConfig(method="mean"),
    "all": SearchConfig(method="all"),
    "ga_adam_1_stopgrad": SearchConfig(num_steps=1, clip="batch"),
    "ga_adam_1_nostop": SearchConfig(num_steps=1, clip="batch", second_order=True),
    "ga_adam_5_nostop": SearchConfig(num_steps=5, clip="batch", second_order=True),
    "ga_sgd_1_stopgrad": SearchConfig(num_steps=1, clip="batch", optimizer="sgd"),
    "ga_sgd_1_nostop": SearchConfig(num_steps=1, clip="batch", optimizer="sgd", second_order=True),
}


@cache
def recorded_gradients():
    return load_file(REFERENCE / "tiny" / "grads.safetensors")


def recorded_names(prefix):
    return sorted({name.split("/")[1] for name in recorded_gradients() if name.startswith(prefix)})


@pytest.mark.parametrize("mode", recorded_names("grad/"))
def test_gradients(mode):
    case = load_case("tiny")
    recorded = recorded_gradients()
    info = json.loads((REFERENCE / "tiny" / "grads.json").read_text())
    config = case.model.config
    case.model.zero_grad()
    output = case.model(
        *case.demonstrations, search_config=GRADIENT_SEARCHES[mode], sample_latents=True, latent_noise=case["in/eps"]
    )
    output.loss.backward()
    flax = {name.split("/", 2)[2]: name for name in recorded if name.startswith(f"grad/{mode}/")}
    expected = convert_parameters({path: recorded[name].numpy() for path, name in flax.items()}, config)
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    noise = max(info[name]["noise_floor_max_abs"] or 0.0 for name in flax.values())
    for name, parameter in case.model.named_parameters():
        assert float((parameter.grad - expected[name]).abs().max()) <= max(1e-5 * scale, 5 * noise), name


@pytest.mark.parametrize("run", recorded_names("train/"))
def test_training_trajectory(run):
    """Losses, gradient norms and weights of AdamW with warmup, clipping and gradient accumulation."""
    case = load_case("tiny")
    recorded = recorded_gradients()
    noise = case[f"in/train_eps_{run}"]
    kwargs = json.loads((REFERENCE / "tiny" / "grads.json").read_text())[f"train/{run}/losses"]["kwargs"]
    model = LPNModel(case.model.config)
    model.load_state_dict(case.model.state_dict())
    model.config.prior_kl_weight, model.config.pairwise_kl_weight = 1e-4, 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=kwargs["lr"], weight_decay=1e-4)
    warmup = kwargs["warmup"] + 1
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup))
    for step, eps in enumerate(noise):
        output = model(*case.demonstrations, sample_latents=True, latent_noise=eps)
        assert abs(output.loss.item() - float(recorded[f"train/{run}/losses"][step])) < 2e-4
        (output.loss / kwargs["every_k"]).backward()
        if (step + 1) % kwargs["every_k"] == 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    prefix = f"train/{run}/params_after/"
    flax = {name[len(prefix) :]: tensor.numpy() for name, tensor in recorded.items() if name.startswith(prefix)}
    expected = convert_parameters(flax, model.config)
    for name, parameter in model.named_parameters():
        assert float((parameter - expected[name]).abs().max()) < 2e-3, name


def test_converter_writes_a_folder_that_loads(tmp_path, monkeypatch, capsys):
    case, convert = load_case("tiny"), load_recipe("convert_lpn_checkpoint")
    call(convert, monkeypatch, *flags({"checkpoint": REFERENCE / "tiny", "output_dir": tmp_path / "model"}))
    loaded = AutoModel.from_pretrained(tmp_path / "model")
    for name, tensor in case.model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    with pytest.raises(SystemExit):
        call(convert, monkeypatch, *flags({"checkpoint": tmp_path, "output_dir": tmp_path / "other"}))
    assert "has no state.msgpack" in capsys.readouterr().err


def test_checkpoints_that_do_not_fit_are_explained(tmp_path):
    config = load_case("tiny").model.config
    state = read_msgpack(REFERENCE / "tiny" / "state.msgpack")
    state["encoder/extra/kernel"] = state.pop("encoder/cls_token/embedding")
    with pytest.raises(ValueError, match="unknown: encoder/extra/kernel\nmissing: encoder.cls_token.weight"):
        convert_parameters(state, config)
