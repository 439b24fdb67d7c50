"""How close the two views of one place lie, and how that depends on how alike the images are there."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize
from torchmetrics.functional.image import structural_similarity_index_measure
from torchvision.transforms.functional import rgb_to_grayscale


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Patch pairs, each with how alike its two images and its two embeddings are.

    Attributes:
        similarity: (n,) structural similarity of the optical and the SAR patch, at most 1.
        cosine: (n,) cosine between the two embeddings of the patch.
        chance: Mean cosine between an optical patch and the SAR patch at the same position of *another*
            image: what the cosine would be if the content of the patch did not matter.
    """

    similarity: Tensor
    cosine: Tensor
    chance: float

    @property
    def excess(self) -> float:
        """Mean cosine above chance: the alignment that comes from what the patches show."""
        return float(self.cosine.mean()) - self.chance

    @property
    def trend(self) -> float:
        """Spearman correlation of cosine with similarity; negative where unlike patches are aligned more."""
        return float(spearmanr(self.similarity.numpy(), self.cosine.numpy()).statistic)

    def curve(self, bins: int = 8) -> tuple[Tensor, Tensor, Tensor]:
        """Mean similarity, mean cosine and its standard error in bins of equal count, by similarity."""
        order = self.similarity.argsort()
        groups = [group for group in order.chunk(bins) if len(group) > 1]
        similarity = torch.stack([self.similarity[g].mean() for g in groups])
        cosine = torch.stack([self.cosine[g].mean() for g in groups])
        error = torch.stack([self.cosine[g].std() / len(g) ** 0.5 for g in groups])
        return similarity, cosine, error


def gray(images: Tensor) -> Tensor:
    """(B, C, H, W) in [0, 1] to one channel: luminance of three channels, else the mean of all."""
    return rgb_to_grayscale(images) if images.shape[1] == 3 else images.mean(dim=1, keepdim=True)


def patch_similarity(optical: Tensor, sar: Tensor, patch_size: int) -> Tensor:
    """Structural similarity of two images of the same ground, averaged over each patch.

    Args:
        optical: (B, C, H, W) in [0, 1].
        sar: (B, C, H, W) in [0, 1]; the channel counts may differ.
        patch_size: Side of a patch, in pixels.

    Returns:
        (B, N), the patches row by row.

    Reference: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004.
    """
    result = structural_similarity_index_measure(
        gray(optical), gray(sar), data_range=1.0, reduction="none", return_full_image=True
    )
    return avg_pool2d(result[1], patch_size).flatten(1)


def align(
    optical_tokens: Tensor, sar_tokens: Tensor, similarity: Tensor, *, centre: bool = False
) -> Alignment:
    """Sets the cosine of each patch's two embeddings against the similarity of its two images.

    Args:
        optical_tokens: (B, N, D) of at least two images.
        sar_tokens: (B, N, D) of the same images' other sides, same order.
        similarity: (B, N), from ``patch_similarity``.
        centre: Whether to take each modality's mean token away first. Embeddings often share a strong common
            direction, which lifts every cosine; the paper plots raw ones.

    Raises:
        ValueError: The shapes do not belong together, or there is only one image.
    """
    if optical_tokens.shape != sar_tokens.shape or similarity.shape != optical_tokens.shape[:2]:
        raise ValueError(
            f"tokens {tuple(optical_tokens.shape)} and {tuple(sar_tokens.shape)} with similarities "
            f"{tuple(similarity.shape)} do not describe the same patches"
        )
    count = len(optical_tokens)
    if count < 2:
        raise ValueError("the chance level needs at least two pairs of images")
    sides = [tokens.float() for tokens in (optical_tokens, sar_tokens)]
    if centre:
        sides = [tokens - tokens.mean(dim=(0, 1)) for tokens in sides]
    optical, sar = (normalize(tokens, dim=-1) for tokens in sides)
    cosine = (optical * sar).sum(dim=-1)
    over_all_pairs = (optical.sum(dim=0) * sar.sum(dim=0)).sum(dim=-1)
    chance = (over_all_pairs - cosine.sum(dim=0)).mean() / (count * (count - 1))
    return Alignment(
        similarity=similarity.flatten().cpu(), cosine=cosine.flatten().cpu(), chance=float(chance)
    )


def retrieval(optical: Tensor, sar: Tensor) -> float:
    """Share of optical images whose nearest SAR image, by cosine of centred features, is their own pair.

    Args:
        optical: (B, D) pooled features.
        sar: (B, D) pooled features of the same places, same order.
    """
    left, right = (normalize(f.float() - f.float().mean(dim=0), dim=-1) for f in (optical, sar))
    nearest = (left @ right.T).argmax(dim=1)
    return float((nearest == torch.arange(len(left), device=nearest.device)).float().mean())


def draw_alignment(
    axes: Axes, alignments: Mapping[str, Alignment], colours: Mapping[str, str] | None = None
) -> None:
    """Draws cosine against structural similarity, binned, with two standard errors and the chance level."""
    for label, alignment in alignments.items():
        similarity, cosine, error = (values.numpy() for values in alignment.curve())
        (line,) = axes.plot(
            similarity, cosine, marker="o", markersize=4, color=(colours or {}).get(label), label=label
        )
        axes.fill_between(
            similarity,
            cosine - 2 * error,
            cosine + 2 * error,
            color=line.get_color(),
            alpha=0.18,
            linewidth=0,
        )
        axes.axhline(alignment.chance, color=line.get_color(), linestyle=":", linewidth=1.2)
    axes.set_xlabel("structural similarity of the optical and the SAR patch")
    axes.set_ylabel("cosine of their embeddings")
    low, high = axes.get_ylim()
    axes.set_ylim(low, min(high, 1.02) if np.isfinite(high) else 1.02)
    axes.legend()
