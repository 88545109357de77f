"""What every script that builds a data set keeps to."""

import pytest
from cases_datasets import ROOT


SCRIPTS = sorted(path.stem for path in (ROOT / "datasets_scripts").glob("build_*.py"))
REQUIRED = {"build_code": ["--sources", "stdlib"], "build_re_arc": ["--source", str(ROOT / "datasets_scripts")]}


@pytest.mark.parametrize("name", SCRIPTS)
def test_nothing_is_replaced_unasked(script, tmp_path, capsys, name):
    (tmp_path / "README.md").write_text("precious")
    (tmp_path / "a.txt").write_text("no folder")
    for output, message in (
        (".", "has README.md already; give another folder, or --overwrite"),
        ("a.txt", "is a file"),
    ):
        with pytest.raises(SystemExit) as error:
            script(name).main([*REQUIRED.get(name, []), "--output", str(tmp_path / output)])
        assert error.value.code == 2 and message in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "precious"
    with pytest.raises(SystemExit):
        script(name).main(["--help"])
    said = capsys.readouterr().out
    assert all(flag in said for flag in ("--overwrite", "--push_to_hub", "--public"))
