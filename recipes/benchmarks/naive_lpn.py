"""
The Latent Program Network written down plainly: every grid padded to the largest one, one mask over the whole sequence, all
layers on all tokens, a full forward for every generated cell. It takes the weights of an `LPNModel` and is what the
package's fast paths are tested and timed against.
"""

import torch
import torch.nn.functional as F

from modeling_lpn.lpn.transformer_lpn import rotate


class NaiveLPN:
    """Arguments as in `LPNModel`, grids padded to `max_rows x max_cols`, every pair real."""

    def __init__(self, model):
        self.model, self.config = model, model.config

    def _pad(self, grids):
        rows, cols = grids.shape[-2:]
        return F.pad(grids, (0, self.config.max_cols - cols, 0, self.config.max_rows - rows))

    def _embed(self, stack, grids, positions, cols, side, table=None):
        """Tokens of cells; `positions` are those that they carry, `cols` the columns that they are in."""
        colors = self._pad(grids).flatten(1)
        return stack.embed_cells(colors, positions, side, stack.previous_cells(colors, cols), table)

    def _cells(self, shapes):
        """Positions (cells, 2) of the padded grid and which cells are real (batch, cells)."""
        rows, cols = torch.meshgrid(
            torch.arange(self.config.max_rows), torch.arange(self.config.max_cols), indexing="ij"
        )
        positions = torch.stack([rows.flatten(), cols.flatten()], -1).to(shapes.device)
        return positions, (positions < shapes.unsqueeze(1)).all(-1)

    def _layers(self, stack, hidden, mask, positions):
        heads, rotary = stack.stack.num_heads, stack.rotary(positions)
        # A token without any key to see (padding) sees itself: no NaN, and nobody reads it.
        mask = (mask | torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)).unsqueeze(1)
        for layer in stack.layers:
            attention, normed = layer.attention, layer.attention_norm(hidden)
            query, key, value = (
                projection(normed).unflatten(-1, (heads, -1)).transpose(1, 2)
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            if rotary is not None:
                query, key = rotate(query, *rotary), rotate(key, *rotary)
            attended = F.scaled_dot_product_attention(query, key, value, mask)
            hidden = hidden + attention.o_proj(attended.transpose(1, 2).flatten(2))
            hidden = hidden + layer.down_proj(layer.activation(layer.up_proj(layer.mlp_norm(hidden))))
        return hidden

    def encode(self, input_grids, output_grids, input_shapes, output_shapes):
        """Grids `(sequences, rows, cols)` -> posterior means `(sequences, latent_dim)`."""
        encoder, batch = self.model.encoder, len(input_grids)
        tokens, masks = [encoder.cls_token.weight.expand(batch, 1, -1)], []
        for side, (grids, shapes) in enumerate(((input_grids, input_shapes), (output_grids, output_shapes))):
            positions, real = self._cells(shapes)
            tokens += [encoder.embed_shape(shapes, side)]
            tokens += [self._embed(encoder, grids, positions.expand(batch, -1, -1), positions[..., 1], side)]
            masks += [real.new_ones(batch, 2), real]
        mask = torch.cat([masks[0][:, :1], *masks], 1)
        no_cell = positions.new_full((batch, 1, 2), -1)
        cells = positions.expand(batch, -1, -1)
        positions = torch.cat([no_cell, no_cell, no_cell, cells, no_cell, no_cell, cells], 1)
        hidden = self._layers(encoder, torch.cat(tokens, 1), mask.unsqueeze(1) & mask.unsqueeze(2), positions)
        return encoder.mean_proj(encoder.norm(hidden[:, 0]))

    def logits(self, latents, input_grids, output_grids, input_shapes, output_shapes):
        """Logits of rows, columns and (padded, after the row-start fix) cells `(sequences, max cells, vocab)`."""
        decoder, config, batch = self.model.decoder, self.config, len(latents)
        in_positions, in_real = self._cells(input_shapes)
        in_positions = in_positions.expand(batch, -1, -1)
        table = decoder.input_position_embedding if config.separate_input_position_embeddings else None
        out_positions, out_real = self._cells(output_shapes)
        carried = decoder.carried_positions(out_positions.expand(batch, -1, -1), output_shapes[:, 1:])
        carried = torch.stack([carried[..., 0], carried[..., 1].clamp(max=config.max_cols - 1)], -1)
        tokens = [
            decoder.embed_shape(input_shapes, 0),
            self._embed(decoder, input_grids, in_positions, in_positions[..., 1], 0, table),
            decoder.latent_proj(latents).unsqueeze(1),
            decoder.embed_shape(output_shapes, 1),
            self._embed(decoder, output_grids, carried, out_positions[..., 1], 1),
        ]
        ones = in_real.new_ones(batch, 1)
        mask = torch.cat([ones, ones, in_real, ones, ones, ones, out_real], 1)
        split, length = 2 + in_real.shape[1], mask.shape[1]
        allowed = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        allowed[: split + 1, : split + 1] = True
        allowed[:split, split] = config.latent_visible_to_input
        no_cell = in_positions.new_full((batch, 1, 2), -1)
        positions = torch.cat([no_cell, no_cell, in_positions, no_cell, no_cell, no_cell, carried], 1)
        hidden = self._layers(
            decoder, torch.cat(tokens, 1), mask.unsqueeze(1) & mask.unsqueeze(2) & allowed, positions
        )
        rows = decoder.row_head(decoder.row_norm(hidden[:, split]))
        cols = decoder.col_head(decoder.col_norm(hidden[:, split + 1]))
        cells = decoder.grid_head(decoder.grid_norm(hidden[:, split + 2 : -1]))
        # The first cell of a row is predicted by the last real cell of the row before.
        starts = torch.arange(1, config.max_rows, device=cells.device) * config.max_cols
        source = starts.unsqueeze(0) - config.max_cols + output_shapes[:, 1:]
        fixed = cells.clone()
        fixed[:, starts] = cells.gather(1, source.unsqueeze(-1).expand(-1, -1, cells.shape[-1]))
        return rows, cols, fixed

    def log_prob(self, latents, *pairs):
        """Log-probability of each pair `(sequences,)` under its latent `(sequences, latent_dim)`."""
        rows, cols, cells = self.logits(latents, *pairs)
        _, grids, _, shapes = pairs
        _, real = self._cells(shapes)
        term = -F.cross_entropy(rows, shapes[:, 0] - 1, reduction="none")
        term = term - F.cross_entropy(cols, shapes[:, 1] - 1, reduction="none")
        cell_terms = -F.cross_entropy(cells.transpose(1, 2), self._pad(grids).flatten(1), reduction="none") * real
        return term + cell_terms.sum(1) / (real.sum(1) + 1e-5)

    def loss(self, *demonstrations):
        """Leave-one-out reconstruction loss with the mean of the other latents; demonstrations with a task axis."""
        batch, num_pairs = demonstrations[0].shape[:2]
        pairs = [tensor.flatten(0, 1) for tensor in demonstrations]
        latents = self.encode(*pairs).unflatten(0, (batch, num_pairs))
        others = (latents.sum(1, keepdim=True) - latents) / (num_pairs - 1)
        return -self.log_prob(others.flatten(0, 1), *pairs).mean()

    def task_log_prob(self, latents, *demonstrations):
        """Latents `(batch, latent_dim)` -> log-likelihood of the tasks `(batch,)`."""
        batch, num_pairs = demonstrations[0].shape[:2]
        pairs = [tensor.flatten(0, 1) for tensor in demonstrations]
        return self.log_prob(latents.repeat_interleave(num_pairs, 0), *pairs).view(batch, num_pairs).sum(1)

    @torch.no_grad()
    def generate(self, latents, grids, shapes, max_forwards=None):
        """Greedy output of latents `(batch, latent_dim)` on grids `(batch, rows, cols)`: a full forward for every token."""
        config, batch = self.config, len(latents)
        written = grids.new_zeros(batch, config.max_rows, config.max_cols)
        sizes = shapes.new_ones(batch, 2)
        num_cells = config.max_rows * config.max_cols
        for step in range(2 + num_cells if max_forwards is None else max_forwards):
            rows, cols, cells = self.logits(latents, grids, written, shapes, sizes)
            if step == 0:
                sizes[:, 0] = rows.argmax(-1) + 1
            elif step == 1:
                sizes[:, 1] = cols.argmax(-1) + 1
            else:
                written.view(batch, -1)[:, step - 2] = cells[:, step - 2].argmax(-1)
        _, real = self._cells(sizes)
        return (written.view(batch, -1) * real).view_as(written), sizes
