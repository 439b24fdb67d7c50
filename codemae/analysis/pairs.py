"""Whole pairs of an index as one batch, and what an encoder makes of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from codemae.analysis.alignment import patch_similarity
from codemae.data.batch import Batch
from codemae.data.dataset import Draw, PairDataset
from codemae.data.index import Index
from codemae.data.views import View, Views
from codemae.modality import MODALITY_NAMES


def whole_views(size: int, num_patches: int = 0, modalities: Sequence[str] = tuple(MODALITY_NAMES)) -> Views:
    """One view a modality that shows the whole image: no random crop, no flip."""
    whole = {
        name: View(modality=name, size=size, scale=(1.0, 1.0), ratio=(1.0, 1.0), horizontal_flip=0.0)
        for name in modalities
    }
    return Views(whole, num_patches=num_patches)


def read_pairs(index: Index, count: int, size: int, *, num_patches: int = 0, seed: int = 0) -> Batch:
    """Reads up to ``count`` paired samples, drawn without replacement, whole and resized to ``size``.

    Args:
        index: Where from.
        count: How many at most.
        size: Side in pixels.
        num_patches: Length of each sample's mask noise, for a method that masks.
        seed: Of the draw and of the noise.

    Raises:
        ValueError: The index holds fewer than two pairs.
    """
    rows = index.paired_rows
    if len(rows) < 2:
        raise ValueError(
            f"looking at pairs needs at least two, but {', '.join(index.folders)} holds {len(rows)}; "
            "prepare some with `python datasets/prepare.py pairs`"
        )
    chosen = np.random.default_rng(seed).permutation(rows)[:count]
    dataset = PairDataset(index, whole_views(size, num_patches), seed=seed)
    draws = [Draw(epoch=0, repeat=0, optical_row=int(row), sar_row=int(row), paired=True) for row in chosen]
    return dataset.collate([dataset[draw] for draw in draws])


def read_side(index: Index, modality: str, count: int, size: int, *, seed: int = 0) -> Batch:
    """Reads up to ``count`` images of one modality, with or without a partner, as ``read_pairs`` does pairs.

    Raises:
        ValueError: The index holds fewer than two.
    """
    rows = index.rows_with(modality)
    if len(rows) < 2:
        raise ValueError(
            f"{', '.join(index.folders)} holds {len(rows)} {modality} images, and at least two are needed; "
            "name an index with images that the encoder takes"
        )
    chosen = [int(row) for row in np.random.default_rng(seed).permutation(rows)[:count]]
    dataset = PairDataset(index, whole_views(size, modalities=[modality]), seed=seed)
    sides = {f"{name}_row": -1 for name in MODALITY_NAMES}
    draws = [Draw(epoch=0, repeat=0, paired=False, **(sides | {f"{modality}_row": row})) for row in chosen]
    return dataset.collate([dataset[draw] for draw in draws])


def read_for(encoder: nn.Module, index: Index, count: int, size: int) -> Batch:
    """Pairs where the encoder takes both sides and the index has them; else images of one modality it takes.

    Raises:
        ValueError: The index holds fewer than two images of each modality the encoder takes.
    """
    known = modalities_of(encoder)
    if len(known) == len(MODALITY_NAMES) and len(index.paired_rows) >= 2:
        return read_pairs(index, count, size)
    enough = [name for name in known if len(index.rows_with(name)) >= 2]
    return read_side(index, (enough or known)[0], count, size)


@dataclass(frozen=True, kw_only=True)
class PairTokens:
    """Tokens of both sides of pairs.

    Attributes:
        optical: (B, N, D).
        sar: (B, N, D).
        similarity: (B, N) structural similarity of the two images at each patch.
    """

    optical: Tensor
    sar: Tensor
    similarity: Tensor

    def pooled(self) -> dict[str, Tensor]:
        """Mean of the tokens (B, D), by modality."""
        return {"optical": self.optical.mean(dim=1), "sar": self.sar.mean(dim=1)}


def modalities_of(encoder: nn.Module) -> tuple[str, ...]:
    """The sides of a pair that an encoder takes."""
    known = getattr(encoder, "modalities", MODALITY_NAMES)
    return tuple(name for name in MODALITY_NAMES if name in known)


@torch.no_grad()
def encode_sides(encoder: nn.Module, batch: Batch, *, chunk: int = 16) -> dict[str, Tensor]:
    """Tokens (B, N, D) of each side the batch has and the encoder takes, ``chunk`` images at a time.

    The encoder is in eval mode meanwhile.
    """
    training = encoder.training
    encoder.eval()
    device = next(encoder.parameters()).device
    tokens = {
        name: torch.cat(
            [encoder(images.to(device), name).float().cpu() for images in batch.normalised(name).split(chunk)]
        )
        for name in modalities_of(encoder)
        if name in batch.images
    }
    encoder.train(training)
    return tokens


def encode_pairs(encoder: nn.Module, batch: Batch, *, chunk: int = 16) -> PairTokens:
    """Encodes both sides of each pair with the encoder in eval mode, ``chunk`` pairs at a time.

    Raises:
        ValueError: The encoder takes one side only.
    """
    return pair_tokens(encode_sides(encoder, batch, chunk=chunk), batch)


def pair_tokens(sides: Mapping[str, Tensor], batch: Batch) -> PairTokens:
    """The tokens of both sides with the similarity of the images.

    Args:
        sides: (B, N, D) by modality, N a square grid.
        batch: What was encoded.

    Raises:
        ValueError: One side is missing.
    """
    missing = [name for name in MODALITY_NAMES if name not in sides]
    if missing:
        raise ValueError(f"pairs have two sides, but the encoder takes no {' and no '.join(missing)} images")
    optical, sar = (sides[name] for name in MODALITY_NAMES)
    patch = batch.images["optical"].shape[-1] // round(optical.shape[1] ** 0.5)
    similarity = patch_similarity(batch.unit("optical"), batch.unit("sar"), patch)
    return PairTokens(optical=optical, sar=sar, similarity=similarity)


def take_pairs(batch: Batch, part: slice) -> Batch:
    """A run of a batch's samples."""

    def cut(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor[part] for name, tensor in tensors.items()}

    return replace(
        batch,
        images=cut(batch.images),
        mean=cut(batch.mean),
        std=cut(batch.std),
        rows=cut(batch.rows),
        mask_noise=batch.mask_noise[part],
        crops=cut(batch.crops),
        source_sizes=cut(batch.source_sizes),
    )
