"""Files of a repository that were made to do harm are refused in words, at once."""

import json
import struct

import pytest
import yaml

from modeling_lpn.arguments import parse_recipe
from modeling_lpn.cards import CardFacts, count_parameters
from modeling_lpn.files import MAX_BYTES, parse_yaml, read_file, to_yaml
from modeling_lpn.tasks.fill import CALIBRATION_FILE, Calibration


# Nine lists of nine, each of the one before: 9**9 texts once it is walked through.
BOMB = f"[&a0 [{'x, ' * 9}]" + "".join(f", &a{i} [{f'*a{i - 1}, ' * 9}]" for i in range(1, 9)) + "]"
HOSTILE_YAML = {
    "alias": (f"title: {BOMB}\n", r"has the alias \*a0; write out"),
    "cycle": ("title: &a [*a]\n", r"has the alias \*a;"),
    "tag": (
        "title: !!python/object/apply:os.system ['touch ran']\n",
        "cannot be read: could not determine a constructor",
    ),
    "local tag": ("title: !run ls\n", "cannot be read: could not determine a constructor"),
    "wrong value": ("title: !!timestamp x\n", "cannot be read"),
    "wrong number": ("title: !!int ''\n", "cannot be read"),
    "long number": (f"title: {'1' * 5000}\n", "cannot be read: Exceeds the limit"),
    "deep": (f"title: {'[' * 2000}\n", "nested too deeply"),
    "huge": ("title: x\n" + "#" * MAX_BYTES[".yaml"], "bytes, more than 524,288"),
    "bytes": (b"title: \xff\n", "cannot be read: .*utf-8"),
    "list": ("- title\n", "holds a list; expected are names and values"),
}


@pytest.mark.parametrize("text, message", HOSTILE_YAML.values(), ids=HOSTILE_YAML)
def test_yaml_of_a_repository(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "card.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"card.yaml .*{message}"):
        CardFacts.read(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["alias", "cycle", "deep", "huge", "bytes"])
def test_yaml_of_a_recipe(tmp_path, name):
    text, message = HOSTILE_YAML[name]
    (tmp_path / "recipe.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"recipe .*recipe.yaml .*{message}"):
        parse_recipe([CardFacts], [str(tmp_path / "recipe.yaml")])


def test_what_we_write_is_read_again(tmp_path):
    grid = [[1, 2]]
    content = {"b": grid, "a": [grid, {"é": None}], "c": "2020-01-01"}
    (tmp_path / "x.yaml").write_text(to_yaml(content), encoding="utf-8")
    assert parse_yaml(tmp_path / "x.yaml") == content == yaml.safe_load(to_yaml(content))


def test_json_of_a_repository(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:  # of holes: it takes no space
        file.truncate(MAX_BYTES[".json"] + 1)
    with pytest.raises(ValueError, match="config.json has 52,428,801 bytes, more than 52,428,800: it is no json file"):
        read_file(path)
    for content, message in ((b"[" * 100_000, "nested too deeply"), (b"\xff", "utf-8"), (b"3", "holds a int")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"config.json .*{message}"):
            read_file(path)


def header(**tensor):
    text = json.dumps({"a": {"dtype": "F32", **tensor}}).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**60) + b"{}",
        header(shape=[10**12], data_offsets=[0, 4 * 10**12]),
        header(shape=[2**63, 2**63], data_offsets=[0, 4]) + b"1234",
        header(shape=[1], data_offsets=[-8, -4]) + b"1234",
        header(shape=[1], data_offsets=[0, 4]),
    ],
)
def test_safetensors_that_claim_more_than_they_hold(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="is no whole safetensors file"):
        count_parameters(tmp_path)


@pytest.mark.parametrize(
    "content",
    [{}, {"weights": "12", "bias": 0}, {"weights": [1, "x"], "bias": 0}, {"weights": [1, None], "bias": 0}]
    + [
        {"weights": [1e999, 1], "bias": 0},
        {"weights": [1, 2], "bias": [0]},
        {"weights": [1, 2], "bias": 0, "run": "x"},
    ],
)
def test_a_calibration_of_something_else(tmp_path, content):
    (tmp_path / CALIBRATION_FILE).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is no calibration of a model; remove it"):
        Calibration.load(str(tmp_path))
