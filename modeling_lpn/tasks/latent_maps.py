"""The log-likelihood of a task over a plane of the latent space, and the way of a search through it."""

import torch

from ..lpn.search_lpn import SearchConfig


@torch.no_grad()
def map_latent_space(model, processor, task: dict, search: SearchConfig, resolution: int = 60) -> dict:
    """Log-likelihood of a task's demonstrations over a plane of the latent space, and the search through it.

    With two latent dimensions that is the whole space. With more it is the plane through the latent where the search
    began in which its path moved most: the first two principal directions of the path of the best start.

    Args:
        model ([`LPNModel`]): The model.
        processor ([`LPNProcessor`]): Turns the row into tensors.
        task (`dict`): A row.
        search ([`SearchConfig`]): The gradient search to follow.
        resolution (`int`, defaults to 60): Points along each side.

    Returns:
        `dict` with arguments of [`plot_latent_map`]: `log_probs` `(resolution, resolution)`, `extent` (with two
        dimensions, three standard deviations of the prior at least), `paths`, the latents `(steps + 1, 2)` from each
        start up to the best of them, projected onto the plane, `title` and `labels`.

    Raises:
        ValueError: The model has one latent dimension, or the search takes no steps.
    """
    if model.config.latent_dim < 2 or not search.spec.follows_path or search.budget < 2:
        raise ValueError(
            f"a map needs 2 latent dimensions and a search that follows a path of 2 steps, not {model.config.latent_dim} "
            f"and {search.method!r} with {search.budget} steps; use method 'gradient'"
        )
    inputs = processor([task], return_tensors="pt").to(model.device)
    demonstrations = {name: value for name, value in inputs.items() if not name.startswith("query")}
    found = model.search(
        **demonstrations, search_config=search, generator=torch.Generator(model.device).manual_seed(0)
    )
    latents, scores = found.trajectory_latents[0].float(), found.trajectory_log_probs[0]
    scores = torch.where(scores.isfinite(), scores, -torch.inf)
    origin, axes = _plane_of(latents[scores.max(1).values.argmax()])
    flat = ((latents - origin) @ axes.T).cpu()  # (starts, steps + 1, 2)
    paths = [path[: int(end) + 1] for path, end in zip(flat, scores.argmax(1), strict=True)]
    low, high = torch.cat(paths).min(0).values, torch.cat(paths).max(0).values
    centre, half = (low + high) / 2, 0.75 * float((high - low).max())
    if model.config.latent_dim == 2:
        centre, half = torch.zeros(2), max(3.0, 1.1 * float(torch.stack([low, high]).abs().max()))
    steps = torch.linspace(-half, half, resolution)
    points = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).view(-1, 2) + centre
    points = origin + points.to(latents) @ axes
    cells = int(sum(demonstrations[f"{side}_shapes"].prod(-1).sum() for side in ("input", "output")))
    parts = points.split(max(1, 100_000 // cells))  # bounds the memory on large grids
    log_probs = [model.log_prob(part.unsqueeze(0), **demonstrations) for part in parts]
    x, y = centre.tolist()
    axis = "direction of the search path" if model.config.latent_dim > 2 else "latent coordinate"
    return {
        "log_probs": torch.cat(log_probs, 1).view(resolution, resolution).cpu().numpy(),
        "extent": (x - half, x + half, y - half, y + half),
        "paths": [path.numpy() for path in paths],
        "title": f"Task {task['task_id']}: log-likelihood over the latent space",
        "labels": (f"first {axis}", f"second {axis}"),
    }


def _plane_of(path: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Origin `(latent_dim,)` and axes `(2, latent_dim)` of the plane in which a path `(steps + 1, latent_dim)` moved."""
    if path.shape[1] == 2:
        return torch.zeros_like(path[0]), torch.eye(2).to(path)
    return path[0], torch.linalg.svd(path - path[0], full_matrices=False).Vh[:2]
