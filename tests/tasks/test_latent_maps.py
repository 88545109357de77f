"""Maps of the latent space."""

import pytest
import torch
from cases_tasks import make_tasks

from modeling_lpn import LPNConfig, LPNModel, SearchConfig
from modeling_lpn.tasks.latent_maps import map_latent_space


def test_latent_map_shows_the_log_likelihood_and_the_way_to_the_best(model, processor):
    task = make_tasks(1)[0]
    search = SearchConfig(num_steps=6, lr=0.5)
    drawn = map_latent_space(model, processor, task, search, resolution=7)
    inputs = {name: value for name, value in processor([task]).items() if not name.startswith("query")}
    low, high = drawn["extent"][:2]
    side = torch.linspace(low, high, 7)
    corner = model.log_prob(torch.tensor([[[side[6], side[1]]]]), **inputs)  # column 6, row 1
    assert drawn["log_probs"][1, 6] == pytest.approx(corner.item(), abs=1e-4)
    found = model.search(**inputs, search_config=search)
    assert drawn["paths"][0][-1].tolist() == pytest.approx(found.latents[0, 0].tolist())


def test_a_map_of_more_dimensions_is_the_plane_of_the_path(processor):
    torch.manual_seed(0)
    model = LPNModel(LPNConfig(max_rows=8, max_cols=8, latent_dim=5)).eval()
    task, search = make_tasks(1)[0], SearchConfig(num_steps=2, lr=0.5)  # two steps lie in a plane
    drawn = map_latent_space(model, processor, task, search, resolution=5)
    inputs = {name: value for name, value in processor([task]).items() if not name.startswith("query")}
    visited = model.search(**inputs, search_config=search).trajectory_latents[0, 0]
    lengths = torch.from_numpy(drawn["paths"][0]).norm(dim=1)
    assert torch.allclose(lengths, (visited - visited[0]).norm(dim=1)[: len(lengths)], atol=1e-5)
    assert drawn["extent"][1] - drawn["extent"][0] == pytest.approx(drawn["extent"][3] - drawn["extent"][2])
    with pytest.raises(ValueError, match="2 latent dimensions and a search that follows a path"):
        map_latent_space(model, processor, task, SearchConfig(method="mean"))
