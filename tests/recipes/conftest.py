import pytest
from cases_lpn_recipes import TINY, train
from cases_recipes import ROOT, call, flags


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Folder of an uninterrupted run of the quickstart recipe."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        recipe = ROOT / "recipes" / "lpn" / "quickstart.yaml"
        call(
            train,
            patch,
            recipe,
            *flags(TINY, output_dir=folder, save_strategy="steps", eval_strategy="steps", eval_steps=15),
        )
    return folder
