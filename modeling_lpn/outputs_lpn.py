"""What the methods of the Latent Program Network return."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput

from .search_lpn import SearchOutput


@dataclass
class LPNEncoderOutput(ModelOutput):
    """
    Latent programs of the demonstration pairs, zero where a pair is padding.

    Args:
        latents (`torch.FloatTensor` of shape `(batch, pairs, latent_dim)`): The mean, or a sample of the posterior.
        latent_mean (`torch.FloatTensor` of shape `(batch, pairs, latent_dim)`): Mean of the posterior.
        latent_logvar (`torch.FloatTensor` of shape `(batch, pairs, latent_dim)`, *optional*):
            Logarithm of its variance; `None` if the model is not variational.
    """

    latents: torch.FloatTensor | None = None
    latent_mean: torch.FloatTensor | None = None
    latent_logvar: torch.FloatTensor | None = None


@dataclass
class LPNOutput(ModelOutput):
    """
    Loss of leave-one-out training (arXiv 2411.08706, section 4.3) and its parts. Every scalar is the mean over tasks of a
    task's mean over its real pairs, in float32.

    Args:
        loss: `reconstruction_loss + prior_kl_weight * prior_kl + pairwise_kl_weight * pairwise_kl`.
        reconstruction_loss: `row_loss + col_loss + grid_loss`.
        row_loss, col_loss: Cross-entropy of the number of rows and of columns, in nats.
        grid_loss: Cross-entropy of the cells, mean over the cells of the output grid, in nats.
        prior_kl: KL divergence of the posterior to N(0, I), summed over the latent dimensions.
        pairwise_kl: Mean KL divergence between the posteriors of two different pairs of a task.
        latent_mean_average, latent_logvar_average, latent_mean_norm: Averages of the posterior's parameters.
        latent_norm, latent_cosine, latent_distance: Norm of the pairs' latents; cosine and distance between two of a task.
        program_norm, program_cosine, program_distance: The same of the latents that were decoded, after the search.
        program_latent_distance: Distance from the decoded latent to the latent of the pair that was left out.
        latents, latent_mean, latent_logvar: As in [`LPNEncoderOutput`].
        programs (`torch.FloatTensor` of shape `(batch, pairs, latent_dim)`): Latent that was decoded for every pair.
    """

    loss: torch.FloatTensor | None = None
    reconstruction_loss: torch.FloatTensor | None = None
    row_loss: torch.FloatTensor | None = None
    col_loss: torch.FloatTensor | None = None
    grid_loss: torch.FloatTensor | None = None
    prior_kl: torch.FloatTensor | None = None
    pairwise_kl: torch.FloatTensor | None = None
    latent_mean_average: torch.FloatTensor | None = None
    latent_logvar_average: torch.FloatTensor | None = None
    latent_mean_norm: torch.FloatTensor | None = None
    latent_norm: torch.FloatTensor | None = None
    latent_cosine: torch.FloatTensor | None = None
    latent_distance: torch.FloatTensor | None = None
    program_norm: torch.FloatTensor | None = None
    program_cosine: torch.FloatTensor | None = None
    program_distance: torch.FloatTensor | None = None
    program_latent_distance: torch.FloatTensor | None = None
    latents: torch.FloatTensor | None = None
    latent_mean: torch.FloatTensor | None = None
    latent_logvar: torch.FloatTensor | None = None
    programs: torch.FloatTensor | None = None


@dataclass
class LPNGenerateOutput(ModelOutput):
    """
    Output grids of the queries, best candidate first.

    Args:
        output_grids (`torch.LongTensor` of shape `(batch, queries, num_candidates, max_rows, max_cols)`): Zero outside.
        output_shapes (`torch.LongTensor` of shape `(batch, queries, num_candidates, 2)`): Rows and columns.
        latents (`torch.FloatTensor` of shape `(batch, queries, num_candidates, latent_dim)`): What was executed.
        search ([`SearchOutput`], *optional*): The search behind it; `None` if latents were given.
    """

    output_grids: torch.LongTensor | None = None
    output_shapes: torch.LongTensor | None = None
    latents: torch.FloatTensor | None = None
    search: SearchOutput | None = None


__all__ = ["LPNEncoderOutput", "LPNGenerateOutput", "LPNOutput"]
