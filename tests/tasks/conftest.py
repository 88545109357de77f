"""What the tests of grid tasks share."""

import pytest
import torch
from cases_tasks import make_pairs

from modeling_lpn import LPNConfig, LPNModel, LPNProcessor


@pytest.fixture(scope="module")
def pairs_path(tmp_path_factory):
    return make_pairs(tmp_path_factory.mktemp("pairs") / "pairs.parquet")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("num_heads", "num_layers")}
    return LPNModel(LPNConfig(max_rows=8, max_cols=8, latent_dim=2, **sizes)).eval()


@pytest.fixture(scope="module")
def processor():
    return LPNProcessor(8, 8)
