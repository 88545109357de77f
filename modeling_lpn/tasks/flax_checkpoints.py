"""Checkpoints of the published LPN code (Flax, github.com/clement-bonnet/lpn): read without Flax, convert to ours."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ..lpn.configuration_lpn import LPNConfig
from ..lpn.modeling_lpn import LPNModel
from ..optional import require


# One stack's fields in LPNConfig, and where the published configuration has them.
STACK_FIELDS = {
    "num_layers": "num_layers",
    "position_embedding_type": "scaled_position_embeddings",
    "num_heads": "transformer_layer.num_heads",
    "head_dim": "transformer_layer.emb_dim_per_head",
    "mlp_factor": "transformer_layer.mlp_dim_factor",
    "dropout": "transformer_layer.dropout_rate",
    "attention_dropout": "transformer_layer.attention_dropout_rate",
    "use_bias": "transformer_layer.use_bias",
    "activation": "transformer_layer.activation",
}
SHARED_FIELDS = {
    "latent_dim": "encoder.latent_dim",
    "variational": "encoder.variational",
    "latent_projection_bias": "encoder.latent_projection_bias",
    "logits_projection_bias": "decoder.logits_projection_bias",
    "next_position_embeddings": "decoder.next_position_embeddings",
    "separate_input_position_embeddings": "decoder.next_position_embeddings_new_input_embeds",
}
# Parameter names, tried in order on the path of a Flax leaf without its stack.
RENAMES = [
    (r"TransformerLayer_(\d+)/LayerNorm_0/", r"layers.\1.attention_norm."),
    (r"TransformerLayer_(\d+)/LayerNorm_1/", r"layers.\1.mlp_norm."),
    (r"TransformerLayer_(\d+)/MlpBlock_0/Dense_0/", r"layers.\1.up_proj."),
    (r"TransformerLayer_(\d+)/MlpBlock_0/Dense_1/", r"layers.\1.down_proj."),
    (r"TransformerLayer_(\d+)/MultiHeadAttention_0/query/", r"layers.\1.attention.q_proj."),
    (r"TransformerLayer_(\d+)/MultiHeadAttention_0/key/", r"layers.\1.attention.k_proj."),
    (r"TransformerLayer_(\d+)/MultiHeadAttention_0/value/", r"layers.\1.attention.v_proj."),
    (r"TransformerLayer_(\d+)/MultiHeadAttention_0/out/", r"layers.\1.attention.o_proj."),
    (r"^Dense_0/", "mean_proj."),
    (r"^Dense_1/", "logvar_proj."),
    (r"^cls_layer_norm/", "norm."),
    (r"^shape_row_logits_layer_norm/|^row_logits_layer_norm/", "row_norm."),
    (r"^shape_col_logits_layer_norm/|^col_logits_layer_norm/", "col_norm."),
    (r"^grid_logits_layer_norm/", "grid_norm."),
    (r"^shape_row_logits_proj/", "row_head."),
    (r"^shape_col_logits_proj/", "col_head."),
    (r"^grid_logits_proj/", "grid_head."),
    (r"^context_embed/", "latent_proj."),
    (r"^input_pos_row_embed/", "input_position_embedding.row_embedding."),
    (r"^input_pos_col_embed/", "input_position_embedding.col_embedding."),
    (r"^pos_row_embed/", "position_embedding.row_embedding."),
    (r"^pos_col_embed/", "position_embedding.col_embedding."),
    (r"^colors_embed/", "color_embedding."),
    (r"^grid_shapes_row_embed/", "row_count_embedding."),
    (r"^grid_shapes_col_embed/", "col_count_embedding."),
    (r"^(channels|input_output)_embed/", "side_embedding."),
    (r"^cls_token/", "cls_token."),
]


def read_msgpack(path: Path) -> dict[str, np.ndarray]:
    """
    Parameters of a Flax `state.msgpack`, by path (`"encoder/cls_token/embedding"`).

    Raises `ValueError` if the file is no msgpack of a Flax training state, `ImportError` if msgpack is missing.
    """
    msgpack = require("msgpack", "convert", "Reading a Flax checkpoint")

    def decode_array(code, data):
        shape, dtype, buffer = msgpack.unpackb(data, raw=True)
        if code not in (1, 3):
            raise ValueError(f"{path} holds msgpack extension type {code}; Flax writes 1 (array) and 3 (scalar).")
        dtype = dtype.decode()
        if dtype == "bfloat16":  # numpy has no bfloat16: its bits are the upper half of a float32
            return (np.frombuffer(buffer, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
        return np.frombuffer(buffer, np.dtype(dtype)).reshape(shape)

    try:
        state = msgpack.unpackb(path.read_bytes(), ext_hook=decode_array, raw=False, strict_map_key=False)
        return dict(_flatten(state["params"]))
    except (msgpack.exceptions.UnpackException, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no Flax training state ({error!r}); expected the `state.msgpack` of LPN."
        ) from None


def _flatten(tree: dict, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}/")
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
            yield f"{prefix}{key}", value
        else:
            raise ValueError(f"{prefix}{key} is no array of numbers")


def convert_config(published: dict) -> LPNConfig:
    """
    [`LPNConfig`] of a published configuration with `encoder_transformer` and `decoder_transformer`.

    Raises `ValueError` where a part is missing, or the two disagree on the size of grids or colours.
    """

    def read(path, tree):
        for key in path.split("."):
            if not isinstance(tree, dict) or key not in tree:
                raise ValueError(
                    f"the configuration has no `{path}`; give the config.yaml of a published LPN checkpoint."
                )
            tree = tree[key]
        return tree

    stacks = {side: read(f"{side}_transformer", published) for side in ("encoder", "decoder")}
    fields = {name: read(path, stacks) for name, path in SHARED_FIELDS.items()}
    for name in ("vocab_size", "max_rows", "max_cols"):
        sizes = {read(name, stack) for stack in stacks.values()}
        if name == "vocab_size":
            sizes.add(read("output_vocab_size", stacks["decoder"]))
        if len(sizes) != 1:
            raise ValueError(f"`{name}` differs between encoder and decoder ({sorted(sizes)}); a model has one.")
        fields[name] = sizes.pop()
    for side, stack in stacks.items():
        for name, path in STACK_FIELDS.items():
            value = read(path, stack)
            if name == "position_embedding_type":
                value = "scaled" if value else "learned"
            fields[f"{side}_{name}"] = float(value) if name == "mlp_factor" else value
    if read("scaled_position_embeddings", stacks["decoder"]):
        # The published code creates the separate input vectors but multiplies by the shared ones: they are dead.
        fields["separate_input_position_embeddings"] = False
    return LPNConfig(**fields)


def convert_parameters(flax: dict[str, np.ndarray], config: LPNConfig) -> dict[str, torch.Tensor]:
    """
    State dict of [`LPNModel`] from Flax parameters by path.

    Raises `ValueError` that lists every parameter that is unknown, missing or of the wrong shape.
    """
    with torch.device("meta"):  # the configuration may claim more than memory holds
        wanted = {name: tuple(tensor.shape) for name, tensor in LPNModel(config).state_dict().items()}
    state, unknown, wrong = {}, [], []
    dead_inputs = config.decoder_position_embedding_type == "scaled"
    for path, array in flax.items():
        side, _, leaf = path.partition("/")
        name = next((re.sub(old, new, leaf) for old, new in RENAMES if re.search(old, leaf)), leaf)
        name = f"{side}.{re.sub(r'(kernel|embedding)$', 'weight', name)}"
        if dead_inputs and leaf.startswith("input_pos_"):
            continue
        if name not in wanted:
            unknown.append(path)
            continue
        if array.ndim == 0 or array.size != math.prod(wanted[name]):
            wrong.append(f"{name} {array.shape} of the file, not {wanted[name]}")
            continue
        tensor = torch.from_numpy(np.array(array, dtype=np.float32))
        if leaf.endswith("kernel"):
            out = wanted[name][0]
            tensor = (tensor.reshape(-1, out) if "/out/" in leaf else tensor.reshape(tensor.shape[0], -1)).T
        state[name] = tensor.reshape(-1).contiguous() if leaf.endswith("bias") else tensor.contiguous()
    missing = sorted(set(wanted) - set(state) - {text.split()[0] for text in wrong})
    wrong += [f"{n} {tuple(t.shape)}, not {wanted[n]}" for n, t in state.items() if tuple(t.shape) != wanted[n]]
    if unknown or missing or wrong:
        raise ValueError(
            "the checkpoint does not fit its configuration.\n"
            f"unknown: {', '.join(unknown) or 'none'}\nmissing: {', '.join(missing) or 'none'}\n"
            f"wrong shape: {', '.join(wrong) or 'none'}\nUse the config.yaml that was saved with the weights."
        )
    return state


__all__ = ["convert_config", "convert_parameters", "read_msgpack"]
