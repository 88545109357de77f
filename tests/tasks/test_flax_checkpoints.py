"""Checkpoints of the published code that are something else, or were made to do harm."""

from pathlib import Path

import msgpack
import numpy as np
import pytest
import yaml

from modeling_lpn.tasks.flax_checkpoints import convert_config, convert_parameters, read_msgpack


TINY = Path(__file__).parents[1] / "reference" / "lpn" / "tiny"


def flax_array(shape, dtype, buffer, code=1):
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, buffer)))


@pytest.mark.parametrize(
    "content",
    [
        *(b"not msgpack at all", b"", b"\x81\xa1a\x01"),
        *(b"\x81\xa6params" + kind + b"\xff\xff\xff\xff" for kind in (b"\xdd", b"\xdf", b"\xc6")),  # 4 GB to come
        b"\x81\xa6params" + b"\x81\xa1a" * 100_000 + b"\x00",  # deep
        *({"params": {"a": flax_array(shape, "float32", b"1234")}} for shape in ([10**12], [2**63, 2**63], ["x"], 7)),
        *({"params": {"a": flax_array([1], dtype, bytes(8))}} for dtype in ("O", "f4,f4", "S8", "V0", "what", 5, b"\xff")),
        *({"params": params} for params in ([1], "x", None, {"a": 1}, {"a": "x"}, {"a": flax_array([1], "f4", b"1234", 7)})),
        [1],
    ],
)  # fmt: skip
def test_msgpack_of_something_else_or_made_to_do_harm(tmp_path, content):
    (tmp_path / "state.msgpack").write_bytes(content if isinstance(content, bytes) else msgpack.packb(content))
    with pytest.raises(ValueError, match="is no Flax training state"):
        read_msgpack(tmp_path / "state.msgpack")


@pytest.mark.parametrize("shape", [(), (0, 10**9), (1,), (3, 3)])
def test_arrays_of_another_size_are_listed(shape):
    state = read_msgpack(TINY / "state.msgpack")
    state = {path: np.broadcast_to(np.float32(0), shape) for path in state}
    with pytest.raises(
        ValueError, match="does not fit its configuration(.|\n)*wrong shape: .*encoder.cls_token.weight"
    ):
        convert_parameters(state, convert_config(yaml.safe_load((TINY / "config.yaml").read_text())))


@pytest.mark.parametrize("part", ["decoder_transformer", "encoder_transformer.transformer_layer"])
def test_a_configuration_without_a_part(part):
    published = yaml.safe_load((TINY / "config.yaml").read_text())
    *above, last = part.split(".")
    del (published[above[0]] if above else published)[last]
    with pytest.raises(ValueError, match=f"the configuration has no `{last}"):
        convert_config(published)


def test_a_configuration_that_claims_more_than_memory_holds():
    published = yaml.safe_load((TINY / "config.yaml").read_text())
    for side in ("encoder", "decoder"):
        published[f"{side}_transformer"]["vocab_size"] = 10**12
    published["decoder_transformer"]["output_vocab_size"] = 10**12
    with pytest.raises(ValueError, match="does not fit its configuration"):
        convert_parameters(read_msgpack(TINY / "state.msgpack"), convert_config(published))
