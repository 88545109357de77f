"""The pattern tasks as files."""

import subprocess
import sys

from cases_datasets import ROOT, card_header

from modeling_lpn.tasks.arc import load_tasks


def test_build_pattern(script, tmp_path):
    arguments = ["--num_rows", "4", "--num_cols", "5", "--pattern_size", "2", "--num_pairs", "3", "--num_test", "20"]
    main = script("build_pattern").main
    main([*arguments, "--num_train", "50", "--output", str(tmp_path / "a")])
    main([*arguments, "--num_train", "90", "--output", str(tmp_path / "b")])
    train, test = load_tasks(tmp_path / "a" / "train.parquet"), load_tasks(tmp_path / "a" / "test.parquet")
    assert (len(train), len(test), len(train[0]["train"]), len(train[0]["test"])) == (50, 20, 3, 1)
    assert test == load_tasks(tmp_path / "b" / "test.parquet")
    grid = train[0]["test"][0]["output"]
    assert (len(grid), len(grid[0]), sum(map(bool, sum(grid, [])))) == (4, 5, 4)
    body = card_header(tmp_path / "a")[1]
    assert "| train | 50 | 150 | 50 |" in body and "| num_cols | 5 |" in body


def test_build_pattern_counts_repeated_programs(script, tmp_path):
    arguments = ["--num_rows", "2", "--num_cols", "2", "--pattern_size", "1", "--num_train", "200", "--num_test", "30"]
    script("build_pattern").main([*arguments, "--output", str(tmp_path)])
    assert "30 of the 30 test tasks have a pattern that also occurs" in card_header(tmp_path)[1]


def test_command_line(tmp_path):
    command = [sys.executable, "datasets_scripts/build_pattern.py", "--num_train", "2", "--num_test", "1"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--output", str(tmp_path)], cwd=ROOT, env=environment, check=True, timeout=120)
    assert len(load_tasks(tmp_path / "train.parquet")) == 2
