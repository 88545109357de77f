"""Small models of LPN."""

import torch


def draw_zeros(model):
    """Draws the tables that begin at zero, so that they take part in what is compared."""
    for name, table in model.named_parameters():
        if "previous_embedding" in name:
            torch.nn.init.normal_(table, std=0.3)
    return model
