"""Tiny CodeGen2 models for the tests, and the released layout of their weights."""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

from modeling_lpn import CodeGen2Config, CodeGen2ForCausalLM, train_codegen2_tokenizer


REFERENCE = Path(__file__).parent / "reference" / "codegen2"
SIZES = {"vocab_size": 96, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 8, "rotary_dim": 2}


def tiny_config(**kwargs):
    return CodeGen2Config(**{**SIZES, "mp_num": 4, **kwargs})


def tiny_model(seed=0, **kwargs):
    torch.manual_seed(seed)
    return CodeGen2ForCausalLM(tiny_config(initializer_range=0.2, **kwargs)).eval()


def tiny_tokenizer():
    return train_codegen2_tokenizer(["def add(a, b):\n    return a + b\n"] * 4, vocab_size=320, num_masks=9)


def tokenizer_config(tokenizer, **kwargs):
    ids = {f"{name}_token_id": tokenizer.eos_token_id for name in ("bos", "eos", "pad")}
    eom = tokenizer.convert_tokens_to_ids("<eom>")
    return tiny_config(vocab_size=len(tokenizer), eom_token_id=eom, initializer_range=0.2, **ids, **kwargs)


def closed_form_weights(model):
    """Gives every parameter values that need no file: sines of its index, a different frequency for each."""
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
            index = torch.arange(parameter.numel(), dtype=torch.float64)
            values = 0.3 * torch.sin(index * (1.0 + 0.37 * number) + number)
            offset = 1.0 if name.endswith(("ln_1.weight", "ln_f.weight")) else 0.0
            parameter.copy_((values + offset).to(torch.float32).view_as(parameter))
    return model


def token_ids(rows, length, vocab_size=SIZES["vocab_size"], seed=0):
    return torch.randint(3, vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def left_padded(rows=3, length=12):
    """Ids and mask of rows that are 5, 9, 12, ... tokens long, padded on the left."""
    ids, mask = token_ids(rows, length), torch.ones(rows, length, dtype=torch.long)
    for row, size in enumerate([5, 9, 12, 7][:rows]):
        ids[row, : length - size], mask[row, : length - size] = 0, 0
    return ids, mask


def write_release(model, folder, file="model.safetensors", head_dim=None):
    """Writes the folder a release is: `codegen` config with its wrong token ids, mask buffers in the weights file."""
    config = model.config
    released = {name: getattr(config, name) for name in SIZES}
    released |= {
        "model_type": "codegen",
        "architectures": ["CodeGenForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    released |= {"n_ctx": config.n_positions, "torch_dtype": "float32", "tokenizer_class": "GPT2Tokenizer"}
    released |= {"auto_map": {"AutoModelForCausalLM": "modeling_codegen.CodeGenForCausalLM"}, "n_inner": None}
    released |= {"task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}}
    if head_dim is not None:
        released["head_dim"] = head_dim
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for layer in range(config.n_layer):
        size = config.n_positions
        mask = torch.ones(size, size, dtype=torch.bool).tril().view(1, 1, size, size)
        weights[f"transformer.h.{layer}.attn.causal_mask"] = mask.contiguous()
        weights[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e9)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(released))
    if file.endswith(".index.json"):
        shards = {name: f"pytorch_model-0000{place % 2 + 1}-of-00002.bin" for place, name in enumerate(weights)}
        for shard in set(shards.values()):
            torch.save({name: value for name, value in weights.items() if shards[name] == shard}, folder / shard)
        (folder / file).write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    elif file.endswith(".bin"):
        torch.save(weights, folder / file)
    else:
        save_file(weights, folder / file, metadata={"format": "pt"})
    return weights


class Scripted(torch.nn.Module):
    """A model that answers each prompt with the next of some token lists, and remembers the prompts."""

    def __init__(self, answers, vocab_size=400, context=64):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocab_size, 1)
        self.answers, self.prompts, self.arguments = answers, [], None
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=context))
        self.device = torch.device("cpu")

    def get_input_embeddings(self):
        return self.embedding

    def generate(self, input_ids, attention_mask, **kwargs):
        self.arguments = kwargs
        self.prompts += [row[mask == 1].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]
        answers = [self.answers.pop(0) for _ in input_ids]
        longest = max(map(len, answers))
        padded = [answer + [kwargs["pad_token_id"]] * (longest - len(answer)) for answer in answers]
        return torch.cat([input_ids, torch.tensor(padded)], 1)
