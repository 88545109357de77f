"""
CodeGen2: the released computation, masks, caches, loss, and what it refuses.

Small cases are in tests/reference/codegen2; CODEGEN2_REFERENCE=<folder of cases of the original code> runs whole ones.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from cases_codegen2 import (
    REFERENCE,
    SIZES,
    closed_form_weights,
    left_padded,
    tiny_config,
    tiny_model,
    token_ids,
    write_release,
)
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    CodeGenConfig,
    CodeGenForCausalLM,
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    StaticCache,
)
from transformers.trainer_utils import load_sharded_checkpoint

from modeling_lpn import CodeGen2Config, CodeGen2ForCausalLM, CodeGen2ForSequenceClassification, CodeGen2Model
from modeling_lpn.codegen2.loss_codegen2 import causal_lm_loss
from modeling_lpn.codegen2.modeling_codegen2 import CodeGen2Attention, rotary_angles


GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def regrouped(weight, old, new):
    """The rows of a fused projection in `old` groups of [q | v | k], as `new` groups."""
    width = weight.shape[1]
    parts = weight.view(old, 3, width // old, width).transpose(0, 1).reshape(3, new, width // new, width)
    return parts.transpose(0, 1).reshape(weight.shape)


def closed_form_model(mp_num):
    """The model the frozen case was made with, its fused projections in `mp_num` groups instead of 4."""
    model = closed_form_weights(CodeGen2ForCausalLM(tiny_config()).eval()).state_dict()
    for name, weight in model.items():
        if name.endswith("qkv_proj.weight"):
            model[name] = regrouped(weight, 4, mp_num)
    other = CodeGen2ForCausalLM(tiny_config(mp_num=mp_num)).eval()
    other.load_state_dict(model)
    return other


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def naive_logits(model, ids, mask):
    """Logits with a hand-made boolean mask `(batch, length, length)`, through eager attention."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    additive = torch.where(mask, 0.0, torch.finfo(torch.float32).min)[:, None]
    with torch.no_grad():
        logits = model(ids, attention_mask=additive).logits
    model.set_attn_implementation(implementation)
    return logits


# The released computation


@pytest.mark.parametrize("case", ["mp4_h8_r8", "mp8_h8_r8"])
def test_first_attention_is_that_of_the_original_code(case):
    frozen = load_file(REFERENCE / f"{case}_first_attention.safetensors")
    config = CodeGen2Config(n_embd=64, n_head=8, rotary_dim=8, n_layer=1, vocab_size=512, mp_num=int(case[2]))
    config._attn_implementation = "eager"
    attention, norm = CodeGen2Attention(config, 0), nn.LayerNorm(64)
    attention.load_state_dict({"qkv_proj.weight": frozen["qkv_proj.weight"]}, strict=False)
    norm.load_state_dict({name: frozen[f"ln_1.{name}"] for name in ("weight", "bias")})

    def run(ids, mask, cache=None):
        states = norm(frozen["embeddings"][torch.searchsorted(frozen["ids"], ids)])
        angles = rotary_angles(torch.arange(ids.shape[1])[None], config.rotary_dim)
        return attention(states, angles, mask, cache)[1]

    length = frozen["plain.input_ids"].shape[1]
    causal = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
    with torch.no_grad():
        weights = run(frozen["plain.input_ids"], causal)
        cache = DynamicCache()
        run(frozen["incr.input_ids"], None, cache)
    torch.testing.assert_close(weights, frozen["plain.attentions.0"], atol=1e-5, rtol=0)
    torch.testing.assert_close(cache.layers[0].keys, frozen["incr.past_key.0"], atol=1e-5, rtol=0)
    torch.testing.assert_close(cache.layers[0].values, frozen["incr.past_value.0"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("mp_num", [4, 8, 1])
def test_frozen_logits_gradients_and_tokens(mp_num, implementation):
    frozen = load_file(REFERENCE / "closed_form_mp4.safetensors")
    model = closed_form_model(mp_num)
    model.set_attn_implementation(implementation)
    output = model(frozen["plain.input_ids"], labels=frozen["plain.labels"])
    torch.testing.assert_close(output.logits, frozen["plain.logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.loss, frozen["plain.loss"], atol=1e-5, rtol=0)
    output.loss.backward()
    parameters = dict(model.named_parameters())
    for name in (name for name in frozen if name.startswith("plain.grad.")):
        gradient = parameters[name.removeprefix("plain.grad.")].grad
        if name.endswith("qkv_proj.weight"):
            gradient = regrouped(gradient, mp_num, 4)
        torch.testing.assert_close(gradient, frozen[name], atol=1e-5, rtol=0)
    with torch.no_grad():
        real = frozen["leftpad.attention_mask"]
        logits = model(frozen["leftpad.input_ids"], attention_mask=real).logits
        torch.testing.assert_close(logits[real == 1], frozen["leftpad.logits"][real == 1], atol=1e-5, rtol=0)
        logits = model(frozen["plain.input_ids"], prefix_length=frozen["prefix.lengths"]).logits
        torch.testing.assert_close(logits, frozen["prefix.logits"], atol=1e-5, rtol=0)
        right = (
            torch.arange(20) < torch.tensor([20, 7, 13])[:, None]
        )  # causal: tokens after a row's end change nothing
        logits = model(frozen["plain.input_ids"].where(right, 0), attention_mask=right.long()).logits
        torch.testing.assert_close(logits[right], frozen["plain.logits"][right], atol=1e-5, rtol=0)
        cache, chunks = DynamicCache(config=model.config), frozen["plain.input_ids"].split([9, 1, 1, 9], dim=1)
        logits = torch.cat([model(chunk, past_key_values=cache).logits for chunk in chunks], 1)
        torch.testing.assert_close(logits, frozen["plain.logits"], atol=1e-5, rtol=0)
    tokens = model.generate(frozen["leftpad.input_ids"], attention_mask=real, max_new_tokens=8, **GREEDY)
    assert torch.equal(tokens, frozen["leftpad.generated"])


@pytest.mark.skipif("CODEGEN2_REFERENCE" not in os.environ, reason="CODEGEN2_REFERENCE names no folder of cases")
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_cases_of_the_original_code(implementation):
    """Whole cases (config.json, model.safetensors, io.safetensors) made with the original code."""
    folders = sorted(Path(os.environ["CODEGEN2_REFERENCE"]).glob("mp*"))
    assert folders, "CODEGEN2_REFERENCE holds no folder mp*"
    for folder in folders:
        io = load_file(folder / "io.safetensors")
        model = CodeGen2ForCausalLM.from_pretrained(folder, attn_implementation=implementation).eval()

        def check(logits, name, io=io, mask=None):
            wanted = io[name] if mask is None else io[name][mask == 1]
            torch.testing.assert_close(logits if mask is None else logits[mask == 1], wanted, atol=1e-5, rtol=0)

        recorded = {"output_hidden_states": True, "output_attentions": implementation == "eager"}
        output = model(io["plain.input_ids"], labels=io["plain.labels"], **recorded)
        output.loss.backward()
        check(output.logits, "plain.logits")
        check(output.loss, "plain.loss")
        for layer, states in enumerate(output.hidden_states):
            check(states, f"plain.hidden_states.{layer}")
        for layer, weights in enumerate(output.attentions or ()):
            check(weights, f"plain.attentions.{layer}")
        for name, parameter in model.named_parameters():
            if f"plain.grad.{name}" in io:
                check(parameter.grad, f"plain.grad.{name}")
        with torch.no_grad():
            check(model(io["long.input_ids"]).logits, "long.logits")
            for side in ("leftpad", "rightpad"):
                mask = io[f"{side}.attention_mask"]
                check(model(io[f"{side}.input_ids"], attention_mask=mask).logits, f"{side}.logits", mask=mask)
            check(model(io["prefix.input_ids"], prefix_length=io["prefix.prefix_lengths"]).logits, "prefix.logits")
            cache, chunks = DynamicCache(config=model.config), []
            for start, end in [(0, 10), *((i, i + 1) for i in range(10, 15)), (15, 18)]:
                chunks.append(model(io["incr.input_ids"][:, start:end], past_key_values=cache).logits)
            check(torch.cat(chunks, 1), "incr.logits_cached")
            for layer, states in enumerate(cache.layers):
                check(states.keys, f"incr.past_key.{layer}")
                check(states.values, f"incr.past_value.{layer}")
            cache, mask = DynamicCache(config=model.config), io["leftpad.attention_mask"]
            chunks = [model(io["leftpad.input_ids"], attention_mask=mask, past_key_values=cache).logits]
            for ids in io["leftpad_incr.next_ids"].split(1, dim=1):
                mask = nn.functional.pad(mask, (0, 1), value=1)
                chunks.append(model(ids, attention_mask=mask, past_key_values=cache).logits)
            check(torch.cat(chunks, 1), "leftpad_incr.logits", mask=mask)
        mask = io["leftpad.attention_mask"]
        for cache in (None, "static"):
            tokens = model.generate(io["gen.input_ids"], max_new_tokens=20, cache_implementation=cache, **GREEDY)
            assert torch.equal(tokens, io["gen.sequences"])
            padded = {"attention_mask": mask, "max_new_tokens": 20, "cache_implementation": cache}
            tokens = model.generate(io["leftpad.input_ids"], **padded, **GREEDY)
            assert torch.equal(tokens, io["gen_leftpad.sequences"])
            prefix = {"prefix_length": 8, "max_new_tokens": 12, "cache_implementation": cache}
            assert torch.equal(
                model.generate(io["prefix_gen.input_ids"], **prefix, **GREEDY), io["prefix_gen.sequences"]
            )


# Loading and saving


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize("mp_num, head_dim", [(4, None), (8, 4)])
def test_a_release_loads_as_it_is(tmp_path, file, mp_num, head_dim):
    model = tiny_model(mp_num=mp_num)
    write_release(model, tmp_path / "release", file, head_dim)
    loaded, report = CodeGen2ForCausalLM.from_pretrained(tmp_path / "release", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.config.mp_num == mp_num and loaded.config.model_type == "codegen2"
    ids = token_ids(2, 9)
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=1e-6, rtol=0)


def test_saving_keeps_the_released_tensors_bit_for_bit(tmp_path):
    released = write_release(tiny_model(), tmp_path / "release")
    model = CodeGen2ForCausalLM.from_pretrained(tmp_path / "release")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    shards = [load_file(file) for file in (tmp_path / "sharded").glob("*.safetensors")]
    assert len(shards) > 1
    saved = {name: value for shard in shards for name, value in shard.items()}
    assert set(saved) == {name for name in released if not name.endswith(("causal_mask", "masked_bias"))}
    assert all(torch.equal(saved[name], released[name]) for name in saved)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "sharded")
    assert isinstance(again, CodeGen2ForCausalLM) and again.config.mp_num == 4
    assert all(torch.equal(value, released[name]) for name, value in again.state_dict().items())
    other = tiny_model(seed=1)
    load_sharded_checkpoint(other, tmp_path / "sharded")  # as Trainer resumes
    assert all(torch.equal(value, released[name]) for name, value in other.state_dict().items())


def test_codegen1_loads_and_equals_the_built_in_class(tmp_path):
    sizes = {**SIZES, "n_ctx": SIZES["n_positions"], "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 9}
    torch.manual_seed(0)
    stock, (ids, mask) = CodeGenForCausalLM(CodeGenConfig(**sizes)).eval(), left_padded()
    stock.save_pretrained(tmp_path)
    ours = CodeGen2ForCausalLM.from_pretrained(tmp_path, mp_num=4)
    routed = AutoModelForCausalLM.from_pretrained(tmp_path, config=CodeGen2Config.from_pretrained(tmp_path, mp_num=4))
    assert isinstance(routed, CodeGen2ForCausalLM) and ours.generation_config.eos_token_id == [9]
    for model in (ours, routed):
        logits, wanted = (m(ids, attention_mask=mask).logits[mask == 1] for m in (model, stock))
        torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=0)
    tokens = [m.generate(ids, attention_mask=mask, max_new_tokens=6, **GREEDY) for m in (ours, stock)]
    assert torch.equal(*tokens)


def test_released_token_ids_are_repaired(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "codegen", "n_layer": 16, "n_embd": 2048, "n_head": 16, "bos_token_id": 1, "eos_token_id": 2, '
        '"vocab_size": 51200, "head_dim": 128, "task_specific_params": {"text-generation": {"do_sample": true}}}'
    )
    config = CodeGen2Config.from_pretrained(tmp_path)
    assert config.bos_token_id == config.eos_token_id == config.pad_token_id == 50256 and config.eom_token_id == 50300
    assert config.mp_num == 8 and "task_specific_params" not in config.to_dict()


def test_stop_tokens_of_a_release_are_not_the_comment_sign(tmp_path):
    model = tiny_model()
    write_release(model, tmp_path / "release")
    assert CodeGen2ForCausalLM.from_pretrained(tmp_path / "release").generation_config.eos_token_id is None
    (tmp_path / "release" / "generation_config.json").write_text('{"bos_token_id": 1, "eos_token_id": 2}')
    assert CodeGen2ForCausalLM.from_pretrained(tmp_path / "release").generation_config.eos_token_id is None
    with torch.device("meta"):
        full = CodeGen2ForCausalLM(CodeGen2Config(n_layer=1))
    assert full.generation_config.eos_token_id == [50256, 50300] and full.generation_config.pad_token_id == 50256


@pytest.mark.parametrize(
    "sizes, mp_num",
    [((16, 2048, 16), 8), ((16, 4096, 16), 8), ((32, 4096, 16), 4), ((34, 6144, 24), 4)]
    + [((20, 1024, 16), 4), ((32, 2560, 32), 4), ((33, 4096, 16), 4)],  # CodeGen1
)
@pytest.mark.parametrize("head_dim", [True, False])
def test_grouping_of_the_releases_does_not_hang_on_a_stray_key(sizes, mp_num, head_dim):
    n_layer, n_embd, n_head = sizes
    extra = {"head_dim": n_embd // n_head} if head_dim else {}
    assert CodeGen2Config(n_layer=n_layer, n_embd=n_embd, n_head=n_head, **extra).mp_num == mp_num


def test_grouping_given_wins(tmp_path):
    write_release(tiny_model(mp_num=2), tmp_path / "release", head_dim=4)
    assert CodeGen2Config.from_pretrained(tmp_path / "release").mp_num == 8
    assert CodeGen2Config.from_pretrained(tmp_path / "release", mp_num=2).mp_num == 2
    loaded = CodeGen2ForCausalLM.from_pretrained(tmp_path / "release", mp_num=2)
    torch.testing.assert_close(loaded(token_ids(1, 7)).logits, tiny_model(mp_num=2)(token_ids(1, 7)).logits)
    with pytest.raises(ValueError, match="`mp_num` 3 does not divide `n_head` 8"):
        CodeGen2ForCausalLM.from_pretrained(tmp_path / "release", mp_num=3)


def test_a_guessed_grouping_is_said(tmp_path, caplog):
    write_release(tiny_model(), tmp_path / "release")
    CodeGen2Config.from_pretrained(tmp_path / "release")
    assert "states no `mp_num`" in caplog.text and "`mp_num` 4 is taken" in caplog.text
    caplog.clear()
    CodeGen2Config.from_pretrained(tmp_path / "release", mp_num=4).save_pretrained(tmp_path / "clean")
    CodeGen2Config.from_pretrained(tmp_path / "clean")
    assert "mp_num" not in caplog.text
    CodeGen2Config.from_pretrained(tmp_path / "clean", mp_num=8)
    assert "`mp_num` 8 is used as it was passed, but the config states 4" in caplog.text


def test_pickled_code_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    model = tiny_model()
    write_release(model, tmp_path / "release", "pytorch_model.bin")
    torch.save({"transformer.wte.weight": Payload()}, tmp_path / "release" / "pytorch_model.bin")
    with pytest.raises(Exception, match="(?i)weights"):
        CodeGen2ForCausalLM.from_pretrained(tmp_path / "release")
    assert not (tmp_path / "executed").exists()


def test_strict_load_state_dict_takes_the_released_dictionary(tmp_path):
    model = tiny_model()
    released = write_release(model, tmp_path / "release")
    other = tiny_model(seed=1)
    other.load_state_dict(released, strict=True)
    assert torch.equal(other(token_ids(1, 5)).logits, model(token_ids(1, 5)).logits)


def test_base_and_head_load_from_each_other(tmp_path, model):
    model.save_pretrained(tmp_path / "causal")
    base = AutoModel.from_pretrained(tmp_path / "causal")
    assert isinstance(base, CodeGen2Model)
    ids = token_ids(2, 6)
    torch.testing.assert_close(model.lm_head(base(ids).last_hidden_state), model(ids).logits, atol=1e-6, rtol=0)
    base.save_pretrained(tmp_path / "base")
    report = CodeGen2ForCausalLM.from_pretrained(tmp_path / "base", output_loading_info=True)[1]
    assert set(report["missing_keys"]) == {"lm_head.weight", "lm_head.bias"}


def test_auto_classes(tmp_path):
    config = tiny_config(num_labels=3, mp_num=2, n_inner=48)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(again, CodeGen2Config) and again.to_diff_dict() == config.to_diff_dict()
    classes = [(AutoModel, CodeGen2Model), (AutoModelForCausalLM, CodeGen2ForCausalLM)]
    classes.append((AutoModelForSequenceClassification, CodeGen2ForSequenceClassification))
    for auto, cls in classes:
        assert isinstance(auto.from_config(config), cls)


def test_half_precision_and_device_map(tmp_path, model):
    model.save_pretrained(tmp_path)
    ids = token_ids(2, 10)
    for dtype in (torch.bfloat16, torch.float16):
        half = CodeGen2ForCausalLM.from_pretrained(tmp_path, dtype=dtype, device_map="auto").eval()
        assert half.dtype == dtype
        probabilities = half(ids.to(half.device)).logits.float().softmax(-1).cpu()
        torch.testing.assert_close(probabilities, model(ids).logits.softmax(-1), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    "tied, on_disk",
    [
        (False, ("transformer.h.1", "lm_head")),
        (True, ("transformer.wte", "lm_head")),  # one tensor has one place
        (False, ("transformer", "lm_head")),
        (True, ("transformer", "lm_head")),
    ],
)
def test_weights_on_disk_compute_the_same_and_are_saved_again(tmp_path, tied, on_disk):
    plain, ids = tiny_model(tie_word_embeddings=tied), token_ids(2, 10)
    plain.save_pretrained(tmp_path / "plain")
    places = ["transformer.wte", "transformer.h.0", "transformer.h.1", "transformer.ln_f", "lm_head"]
    device_map = {place: "disk" if place.startswith(on_disk) else "cpu" for place in places}
    model = CodeGen2ForCausalLM.from_pretrained(
        tmp_path / "plain", device_map=device_map, offload_folder=str(tmp_path / "offloaded")
    ).eval()
    assert "meta" in {parameter.device.type for parameter in model.parameters()}
    assert torch.equal(model(ids).logits, plain(ids).logits)
    settings = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(ids, **settings), plain.generate(ids, **settings))
    model.save_pretrained(tmp_path / "again")
    again = CodeGen2ForCausalLM.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in plain.state_dict().items())


# Caches and generation


def test_cached_equals_full_with_left_padding(model):
    ids, mask = left_padded()
    with torch.no_grad():
        full = model(ids, attention_mask=mask).logits
        for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=16)):
            chunks = []
            for start, end in [(0, 8), (8, 9), (9, 10), (10, 12)]:
                chunk = model(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache)
                chunks.append(chunk.logits)
            torch.testing.assert_close(torch.cat(chunks, 1)[mask == 1], full[mask == 1], atol=1e-5, rtol=0)


def test_a_row_does_not_depend_on_its_batch(model):
    ids, mask = left_padded()
    with torch.no_grad():
        batch = model(ids, attention_mask=mask).logits
        for row in range(3):
            alone = model(ids[row : row + 1, mask[row] == 1]).logits[0]
            torch.testing.assert_close(batch[row, mask[row] == 1], alone, atol=1e-5, rtol=0)
    together = model.generate(ids, attention_mask=mask, max_new_tokens=6, **GREEDY)
    for row in range(3):
        alone = model.generate(ids[row : row + 1, mask[row] == 1], max_new_tokens=6, **GREEDY)
        assert torch.equal(together[row, 12:], alone[0, -6:])


def test_ways_to_generate_agree(model):
    ids, mask = left_padded()
    arguments = {"attention_mask": mask, "max_new_tokens": 6, **GREEDY}
    tokens = model.generate(ids, **arguments)
    assert torch.equal(model.generate(ids, use_cache=False, **arguments), tokens)
    assert torch.equal(model.generate(ids, cache_implementation="static", **arguments), tokens)
    assert torch.equal(model.generate(ids, prefill_chunk_size=5, **arguments), tokens)
    embeds = model.transformer.wte(ids)
    assert torch.equal(model.generate(inputs_embeds=embeds, **arguments), tokens[:, 12:])
    one = {"max_new_tokens": 6, **GREEDY}
    alone = model.generate(ids[2:], **one)
    assert torch.equal(model.generate(ids[2:], prompt_lookup_num_tokens=2, **one), alone)
    assert torch.equal(model.generate(ids[2:], assistant_model=tiny_model(), **one), alone)
    beams = {"num_beams": 3, "max_new_tokens": 5, **GREEDY}
    assert torch.equal(model.generate(ids[2:], **beams), model.generate(ids[2:], use_cache=False, **beams))
    torch.manual_seed(0)
    sampled = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=True, num_return_sequences=2)
    assert sampled.shape[0] == 6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="offloaded caches need an accelerator")
def test_offloaded_cache_agrees():
    model, ids = tiny_model().cuda(), token_ids(2, 9).cuda()
    tokens = model.generate(ids, max_new_tokens=6, **GREEDY)
    assert torch.equal(model.generate(ids, max_new_tokens=6, cache_implementation="offloaded", **GREEDY), tokens)


def test_generate_computes_the_head_for_the_last_token_only(model):
    sizes = []
    hook = model.lm_head.register_forward_hook(lambda module, args, output: sizes.append(output.shape[1]))
    model.generate(token_ids(1, 9), max_new_tokens=3, **GREEDY)
    hook.remove()
    assert sizes == [1, 1, 1]


def test_logits_to_keep(model):
    ids = token_ids(2, 9)
    full = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, full[:, -2:])
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([1, 4])).logits, full[:, [1, 4]])


def test_attention_weights_are_recorded():
    eager = tiny_model()
    eager.set_attn_implementation("eager")
    output = eager(token_ids(2, 9), output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == SIZES["n_layer"] + 1 and len(output.attentions) == SIZES["n_layer"]
    torch.testing.assert_close(eager.lm_head(output.hidden_states[-1]), output.logits)
    assert torch.allclose(output.attentions[0].sum(-1), torch.ones(()))


@pytest.mark.parametrize("cls", [CodeGen2Model, CodeGen2ForCausalLM, CodeGen2ForSequenceClassification])
def test_outputs_are_recorded_and_tuples_where_asked_for(cls):
    model, ids = cls(tiny_config(num_labels=3)).eval(), token_ids(2, 9)
    base = model if cls is CodeGen2Model else model.transformer
    output = model(ids, output_hidden_states=True)
    assert len(output.hidden_states) == SIZES["n_layer"] + 1 and output.attentions is None
    assert torch.equal(output.hidden_states[0], base.wte(ids))
    assert torch.equal(output.hidden_states[-1], base(ids).last_hidden_state)
    assert model(ids).hidden_states is None
    as_tuple = model(ids, output_hidden_states=True, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], output[0]) and len(as_tuple) == len(output)
    model.config.return_dict, model.config.output_hidden_states = (
        False,
        True,
    )  # settings of the model, as those of a call
    as_tuple = model(ids)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[-1][-1], output.hidden_states[-1])
    assert model(ids, return_dict=True, output_hidden_states=False).hidden_states is None
    if cls is not CodeGen2Model:
        labels = ids if cls is CodeGen2ForCausalLM else torch.tensor([0, 2])
        loss, logits, *_ = model(ids, labels=labels)
        assert loss.dim() == 0 and torch.equal(logits, output.logits)


# Prefix-LM and packed documents


def prefix_mask(lengths, size, padding=0):
    """`(batch, size, size)`: causal, the first `lengths` tokens after `padding` connected in both directions."""
    place = torch.arange(size)
    rows = []
    for length in lengths:
        inside = (place >= padding) & (place < padding + length)
        rows.append(torch.ones(size, size, dtype=torch.bool).tril() | (inside[:, None] & inside))
    return torch.stack(rows)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_boolean_masks_are_used_as_they_are(implementation):
    model, ids = tiny_model(), token_ids(2, 10)
    model.set_attn_implementation(implementation)
    mask = prefix_mask([3, 6], 10)
    logits = model(ids, attention_mask=mask[:, None]).logits
    torch.testing.assert_close(logits, naive_logits(model, ids, mask), atol=1e-5, rtol=0)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_prefix_is_bidirectional(implementation):
    model = tiny_model()
    model.set_attn_implementation(implementation)
    ids, lengths = token_ids(3, 10), torch.tensor([0, 4, 10])
    expected = naive_logits(model, ids, prefix_mask(lengths, 10))
    blocks = torch.where(torch.arange(10) < lengths[:, None], 0, -1)
    torch.testing.assert_close(model(ids, prefix_length=lengths).logits, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(ids, block_sequence_ids=blocks).logits, expected, atol=1e-5, rtol=0)
    padded, mask = nn.functional.pad(ids, (3, 0)), nn.functional.pad(torch.ones_like(ids), (3, 0))
    logits = model(padded, attention_mask=mask, prefix_length=lengths).logits[:, 3:]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cache", [None, "static"])
def test_generate_reads_a_prefix_in_both_directions(model, cache):
    ids, mask = left_padded()
    lengths = mask.sum(-1)
    arguments = {"attention_mask": mask, "prefix_length": lengths, "max_new_tokens": 5, **GREEDY}
    tokens = model.generate(ids, cache_implementation=cache, **arguments)
    assert torch.equal(model.generate(ids, use_cache=False, **arguments), tokens)
    blocks = torch.where(mask == 1, 0, -1)
    arguments = {"attention_mask": mask, "block_sequence_ids": blocks, "max_new_tokens": 5, **GREEDY}
    assert torch.equal(model.generate(ids, cache_implementation=cache, **arguments), tokens)
    assert not torch.equal(model.generate(ids, attention_mask=mask, max_new_tokens=5, **GREEDY), tokens)
    for row in range(3):
        row_ids = ids[row, mask[row] == 1]
        for _ in range(5):
            causal = prefix_mask([lengths[row]], len(row_ids))
            row_ids = torch.cat([row_ids, naive_logits(model, row_ids[None], causal)[0, -1:].argmax(-1)])
        assert torch.equal(tokens[row, 12:], row_ids[-5:])


def test_ways_to_generate_agree_on_a_prefix(model):
    ids, mask = left_padded()
    prefix = {"prefix_length": mask.sum(-1), "attention_mask": mask, "max_new_tokens": 5, **GREEDY}
    beams = model.generate(ids, num_beams=3, use_cache=False, **prefix)
    for cache in (None, "static"):
        assert torch.equal(model.generate(ids, num_beams=3, cache_implementation=cache, **prefix), beams)
    one = {"prefix_length": 12, **GREEDY}
    tokens = model.generate(ids[2:], max_new_tokens=6, **one)
    assert torch.equal(model.generate(ids[2:], max_new_tokens=6, prompt_lookup_num_tokens=2, **one), tokens)
    assert torch.equal(model.generate(ids[2:], max_new_tokens=6, assistant_model=tiny_model(seed=1), **one), tokens)
    cache = DynamicCache(config=model.config)
    first = model.generate(ids[2:], max_new_tokens=2, past_key_values=cache, **one)
    assert torch.equal(model.generate(first, max_new_tokens=4, past_key_values=cache, **one), tokens)


DOCUMENTS = torch.tensor([[0] * 5 + [1] * 7, [0] * 3 + [1] * 4 + [2] * 5])
POSITIONS = torch.tensor([[*range(5), *range(7)], [*range(3), *range(4), *range(5)]])


def separate_logits(model, ids, **kwargs):
    """Logits of each document of the packed rows on its own."""
    rows = []
    for row, documents in zip(ids, DOCUMENTS, strict=True):
        parts = row.split(documents.unique_consecutive(return_counts=True)[1].tolist())
        rows.append(torch.cat([model(part[None], **kwargs).logits[0] for part in parts]))
    return torch.stack(rows)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("setting", ["plain", "mask", "cache", "static", "segments", "padding"])
def test_packed_documents_do_not_see_each_other(implementation, setting):
    model = tiny_model()
    model.set_attn_implementation(implementation)
    ids, ones = token_ids(2, 12), torch.ones(2, 12, dtype=torch.long)
    settings = {
        "plain": {"position_ids": POSITIONS, "use_cache": False},
        "mask": {"position_ids": POSITIONS, "attention_mask": ones},
        "cache": {"position_ids": POSITIONS, "use_cache": True},
        "static": {"position_ids": POSITIONS, "past_key_values": StaticCache(config=model.config, max_cache_len=16)},
        "segments": {"segment_ids": DOCUMENTS, "attention_mask": ones},
        "padding": {
            "segment_ids": nn.functional.pad(DOCUMENTS, (2, 0)),
            "attention_mask": nn.functional.pad(ones, (2, 0)),
        },
    }[setting]
    padded = nn.functional.pad(ids, (2, 0)) if setting == "padding" else ids
    with torch.no_grad():
        logits = model(padded, **settings).logits[:, -12:]
        torch.testing.assert_close(logits, separate_logits(model, ids), atol=1e-5, rtol=0)


def test_packed_documents_keep_apart_through_a_cache(model):
    ids = token_ids(2, 12)
    with torch.no_grad():
        expected = separate_logits(model, ids)
        for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=16)):
            chunks = []
            for start, end in [(0, 4), (4, 5), (5, 6), (6, 12)]:
                positions = POSITIONS[:, start:end]
                chunks.append(model(ids[:, start:end], position_ids=positions, past_key_values=cache).logits)
            torch.testing.assert_close(torch.cat(chunks, 1), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("documents", [{"position_ids": POSITIONS}, {"segment_ids": DOCUMENTS}])
def test_generating_continues_the_last_document_only(model, documents, cache):
    ids, settings = token_ids(2, 12), {"max_new_tokens": 5, **GREEDY}
    tokens = model.generate(ids, cache_implementation=cache, **documents, **settings)
    for row, start in enumerate([5, 7]):
        assert torch.equal(tokens[row, start:], model.generate(ids[row : row + 1, start:], **settings)[0])


def test_prefixes_of_packed_documents_keep_apart(model):
    ids, blocks = token_ids(2, 12), torch.where(POSITIONS < 2, 0, -1)
    with torch.no_grad():
        expected = separate_logits(model, ids, prefix_length=2)
        for use_cache in (False, True):
            packed = model(ids, position_ids=POSITIONS, block_sequence_ids=blocks, use_cache=use_cache).logits
            torch.testing.assert_close(packed, expected, atol=1e-5, rtol=0)
        cache = StaticCache(config=model.config, max_cache_len=16)
        for _ in range(2):  # the second time the cache was used before
            packed = model(ids, position_ids=POSITIONS, block_sequence_ids=blocks, past_key_values=cache).logits
            torch.testing.assert_close(packed, expected, atol=1e-5, rtol=0)
            cache.reset()


def test_positions_of_padding_inside_a_row_start_no_document(model):
    ids, mask = token_ids(1, 8), torch.tensor([[1, 1, 0, 0, 1, 1, 1, 1]])
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    logits = model(ids, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(logits[mask == 1], model(ids[mask == 1][None]).logits[0], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_flex_attention_agrees():
    model, (ids, mask) = tiny_model(), left_padded()
    cases = [{"attention_mask": mask}, {"attention_mask": mask, "prefix_length": mask.sum(-1) // 2}]
    cases += [{"position_ids": torch.arange(12).remainder(5).expand(3, -1), "use_cache": True}]
    with torch.no_grad():
        expected = [model(ids, **case).logits for case in cases]
        model.set_attn_implementation("flex_attention")
        for case, logits in zip(cases, expected, strict=True):
            real = case.get("attention_mask", torch.ones_like(ids)) == 1
            torch.testing.assert_close(model(ids, **case).logits[real], logits[real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_to_one_graph(backend):
    torch.compiler.reset()
    model, ids = tiny_model(), token_ids(2, 12)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    blocks = {"block_sequence_ids": torch.where(POSITIONS < 2, 0, -1), "position_ids": POSITIONS}
    for case in (blocks, {"prefix_length": torch.tensor([3, 5]), "labels": ids}):
        expected, output = model(ids, use_cache=False, **case), compiled(ids, use_cache=False, **case)
        torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=0)
    gradients = torch.autograd.grad(expected.loss, list(model.parameters()))
    for gradient, wanted in zip(torch.autograd.grad(output.loss, list(model.parameters())), gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=0)
    with torch.no_grad():  # and the step with which `generate` decodes from a static cache
        cache = StaticCache(config=model.config, max_cache_len=16)
        chunks = [model(ids[:, :10], past_key_values=cache).logits]
        chunks += [compiled(ids[:, step : step + 1], past_key_values=cache).logits for step in (10, 11)]
    torch.testing.assert_close(torch.cat(chunks, 1), model(ids).logits, atol=1e-5, rtol=0)


# Loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_items", [None, 17])
def test_loss_equals_the_naive_one(monkeypatch, dtype, num_items):
    monkeypatch.setattr(
        "modeling_lpn.codegen2.loss_codegen2.LOSS_CHUNK_ELEMENTS", 5 * 33
    )  # several chunks, the last one short
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 6, 33, dtype=dtype), torch.randint(0, 33, (3, 6))
    labels[0, :4], labels[2] = -100, -100
    ours, naive = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = causal_lm_loss(ours, labels, 33, num_items_in_batch=num_items)
    flat = naive[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten()
    expected = nn.functional.cross_entropy(*flat, reduction="mean" if num_items is None else "sum") / (num_items or 1)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    loss.backward(), expected.backward()
    torch.testing.assert_close(ours.grad, naive.grad)


def test_four_accumulated_parts_equal_a_batch_of_four():
    model, ids = tiny_model(), token_ids(4, 10)
    labels = ids.clone()
    labels[0, :7], labels[3, :3] = -100, -100  # parts with different numbers of targets
    targets = (labels[:, 1:] != -100).sum()
    model(ids, labels=labels).loss.backward()
    whole = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for row in range(4):
        part = slice(row, row + 1)
        model(ids[part], labels=labels[part], num_items_in_batch=targets).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name], atol=1e-6, rtol=1e-5)


def test_gradient_checkpointing_changes_nothing():
    model, ids = tiny_model().train(), token_ids(2, 10)
    plain = torch.autograd.grad(model(ids, labels=ids).loss, list(model.parameters()))
    model.activation_checkpointing_enable()
    checkpointed = torch.autograd.grad(model(ids, labels=ids).loss, list(model.parameters()))
    assert all(torch.equal(first, second) for first, second in zip(plain, checkpointed, strict=True))


def test_labels_make_no_cache(model):
    ids = token_ids(1, 5)
    assert model(ids, labels=ids).past_key_values is None and model(ids).past_key_values is not None


def test_sequence_classification_reads_the_last_real_token():
    torch.manual_seed(0)
    classifier = CodeGen2ForSequenceClassification(tiny_config(num_labels=3, pad_token_id=0)).eval()
    ids, mask = left_padded()
    right = torch.stack([row.roll(-int((keep == 0).sum())) for row, keep in zip(ids, mask, strict=True)])
    alone = torch.cat([classifier(row[keep == 1][None]).logits for row, keep in zip(ids, mask, strict=True)])
    for batch in ({"input_ids": ids, "attention_mask": mask}, {"input_ids": right, "attention_mask": mask.flip(-1)}):
        torch.testing.assert_close(classifier(**batch).logits, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(classifier(right).logits, alone, atol=1e-5, rtol=0)
    loss = classifier(ids, attention_mask=mask, labels=torch.tensor([0, 1, 2])).loss
    torch.testing.assert_close(loss, nn.functional.cross_entropy(alone, torch.tensor([0, 1, 2])))


# What it refuses


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"n_embd": 30}, "`n_embd` 30 is not a multiple of `n_head` 8"),
        ({"mp_num": 5}, "`mp_num` 5 does not divide `n_head` 8"),
        ({"mp_num": 0}, "`mp_num` 0 does not divide"),
        ({"rotary_dim": 3}, "`rotary_dim` 3 is not an even number"),
        ({"rotary_dim": 6}, "`rotary_dim` 6 is not an even number between 2 and the head size 4"),
        ({"head_dim": 16}, "`head_dim` 16 contradicts"),
    ],
)
def test_sizes_that_do_not_fit(sizes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**sizes)


def test_contexts_that_are_too_long(model):
    with pytest.raises(ValueError, match="context of 65 tokens is longer than the 64"):
        model(token_ids(1, 65))
    steps = []
    hook = model.register_forward_pre_hook(lambda *args: steps.append(1))
    for cache in (None, "static"):
        with pytest.raises(ValueError, match="longer than the 64"):
            model.generate(token_ids(1, 60), max_new_tokens=10, cache_implementation=cache, **GREEDY)
    hook.remove()
    assert not steps  # nothing generated is lost
    mask = (torch.arange(90) >= 50).long()[None]  # padding counts for nothing
    assert model.generate(token_ids(1, 90), attention_mask=mask, max_new_tokens=25, **GREEDY).shape == (1, 115)
    packed = torch.arange(80).remainder(40)[None]  # two documents that fit
    assert model(token_ids(1, 80), position_ids=packed).logits.shape[1] == 80


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        ({"prefix_length": 13}, ValueError, r"`prefix_length` \[13\] is not within the rows' \[12, 12\] tokens"),
        ({"prefix_length": torch.tensor([1, 2, 3])}, ValueError, "3 entries for a batch of 2"),
        ({"prefix_length": 2, "block_sequence_ids": DOCUMENTS}, ValueError, "give one"),
        ({"block_sequence_ids": DOCUMENTS[:1]}, ValueError, r"shape \(1, 12\) for inputs of shape \(2, 12\)"),
        ({"block_sequence_ids": torch.zeros(2, 13)}, ValueError, "one has 12 tokens and follows 0 cached ones"),
        ({"segment_ids": DOCUMENTS, "position_ids": POSITIONS}, ValueError, "either marks the documents"),
        ({"attention_mask": torch.zeros(2, 1, 12, 12), "prefix_length": 2}, ValueError, "4-D `attention_mask`"),
        ({"token_type_ids": DOCUMENTS}, TypeError, "takes no `token_type_ids`"),
        ({"prefix_lenght": 2}, TypeError, "nearest known one is `prefix_length`"),
    ],
)
def test_arguments_that_contradict(model, kwargs, error, message):
    with pytest.raises(error, match=message):
        model(token_ids(2, 12), **kwargs)


def test_a_prefix_must_be_in_the_first_chunk(model):
    ids = token_ids(2, 12)
    cache = model(ids[:, :6], use_cache=True).past_key_values
    for prefix in ({"prefix_length": 8}, {"block_sequence_ids": torch.zeros(2, 12)}):
        with pytest.raises(ValueError, match="does not lie within one chunk: this one has 6 tokens and follows 6"):
            model(ids[:, 6:], past_key_values=cache, **prefix)
        with pytest.raises(ValueError, match="`prefill_chunk_size` 5 cuts the prompt"):
            model.generate(ids, prefill_chunk_size=5, max_new_tokens=2, **prefix, **GREEDY)
    with pytest.raises(ValueError, match="from its first token on"):
        model(ids[:, 6:], past_key_values=cache, segment_ids=DOCUMENTS[:, 6:])


def test_ids_of_another_vocabulary(model):
    with pytest.raises(ValueError, match="hold ids from 3 to 96, the model embeds 96 tokens; load the tokenizer"):
        model(torch.tensor([[3, 96]]))


def test_a_backend_without_the_mask_refuses():
    AttentionInterface.register(
        "no_mask", lambda module, query, key, value, *args, **kwargs: (query.transpose(1, 2), None)
    )
    model = tiny_model()
    model.set_attn_implementation("no_mask")
    model(token_ids(2, 12))
    for kwargs, what in (
        ({"prefix_length": 3}, "a bidirectional prefix"),
        ({"segment_ids": DOCUMENTS}, "packed documents"),
    ):
        with pytest.raises(ValueError, match=f"'no_mask' cannot express {what}"):
            model(token_ids(2, 12), **kwargs)
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="'flash_attention_2' cannot express a bidirectional prefix"):
        model(token_ids(2, 12), prefix_length=3)


def test_half_precision_decodes_as_a_whole_pass(model):
    half, (ids, mask) = tiny_model().bfloat16(), left_padded()
    with torch.no_grad():
        full = half(ids, attention_mask=mask).logits.float().softmax(-1)
        cache = half(ids[:, :11], attention_mask=mask[:, :11], use_cache=True).past_key_values
        step = half(ids[:, 11:], attention_mask=mask, past_key_values=cache).logits.float().softmax(-1)
    torch.testing.assert_close(step[:, 0], full[:, -1], atol=0.02, rtol=0)


def test_continuous_batching_writes_what_generate_writes():
    model, limit = tiny_model(), {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    prompts = [token_ids(1, length, seed=length)[0].tolist() for length in (5, 9, 7)]
    wanted = [
        model.generate(torch.tensor([ids]), eos_token_id=None, **limit)[0, len(ids) :].tolist() for ids in prompts
    ]
    settings = GenerationConfig(eos_token_id=-1, **limit)
    room = ContinuousBatchingConfig(
        page_size=32, num_blocks=16, max_batch_tokens=64
    )  # else most of the memory there is
    outputs = model.generate_batch(inputs=prompts, generation_config=settings, continuous_batching_config=room)
    assert [outputs[f"req_{row}"].generated_tokens for row in range(3)] == wanted
    with pytest.raises(TypeError, match="no argument `read_index`"):  # what only a paged cache gives a meaning
        model(token_ids(1, 4), read_index=[])


def test_an_unknown_activation_is_named_with_the_nearest():
    with pytest.raises(Exception, match="`activation_function` is 'gelu_newx'.*nearest known one is 'gelu_new'"):
        tiny_config(activation_function="gelu_newx")


def test_sizes_are_checked_under_both_of_their_names():
    for sizes, message in (
        ({"n_layer": 10**9}, "`n_layer` is 1000000000; use 1024 or fewer"),
        ({"num_hidden_layers": -1}, "`n_layer` is -1; it counts something"),
        ({"n_head": 0}, "`n_head` is 0; it counts something"),
        ({"hidden_size": 100, "num_attention_heads": 3}, "`n_embd` 100 is not a multiple of `n_head` 3"),
    ):
        with pytest.raises(ValueError, match=message):
            CodeGen2Config(**sizes)
    assert CodeGen2Config(num_hidden_layers=32, hidden_size=4096).mp_num == 4  # the 7B's, under canonical names


def test_a_released_config_with_another_grouping_is_warned_of(caplog):
    released = {"model_type": "codegen", "n_layer": 16, "n_embd": 2048, "mp_num": 4}
    with caplog.at_level("WARNING", "transformers"):
        transformers.logging.enable_propagation()
        try:
            CodeGen2Config.repair_released(released)
            CodeGen2Config.repair_released({**released, "mp_num": 8})
        finally:
            transformers.logging.disable_propagation()
    (record,) = caplog.records
    assert "`mp_num` is 4" in record.message and "has 8" in record.message


def test_a_saved_folder_names_the_class_of_every_auto_class(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert {"AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification"} == set(auto_map)
    code = (
        "import sys; sys.modules['modeling_lpn'] = None\n"
        "from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification\n"
        f"for auto in (AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification):\n"
        f"    print(type(auto.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)).__name__)"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    names = ["CodeGen2Model", "CodeGen2ForCausalLM", "CodeGen2ForSequenceClassification"]
    assert result.stdout.split() == names, result.stderr


def test_every_linear_layer_is_a_plain_one():
    model = tiny_model()
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert len(layers) == 4 * model.config.n_layer + 1 and {type(layer) for layer in layers} == {nn.Linear}
