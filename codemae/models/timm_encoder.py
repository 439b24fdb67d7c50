"""Ready-made timm models behind the encoder interface, to be compared with ours under one protocol."""

from typing import Any

import torch
from torch import Tensor, nn

from codemae.checkpoint import InputSpec
from codemae.modality import MODALITY_NAMES, get_modality
from codemae.models.lite import LITE_NAME
from codemae.models.teacher import finish_tokens
from codemae.models.timm_features import (
    FeatureExtractor,
    as_channels,
    build_ready_model,
    coarsest_two,
    resample,
    strides,
    to_tokens,
)


class TimmEncoder(nn.Module):
    """A timm model, or ``efficientnet_lite0``, with the interface of our encoders.

    The same network sees both modalities; a gray image is repeated to its channels. Images come
    standardised by ``inputs``, the statistics the model was trained with; a model of other than three
    channels states none, so its images stay standardised by their dataset. ``efficientnet_lite0`` gives the
    maps of strides 16 and 32 side by side (as it does when it teaches), every other model its final tokens
    or feature map.

    Args:
        name: timm name, with or without tag, or ``efficientnet_lite0``.
        img_size: Side of the images; the model's own when not given.
        pretrained: False leaves the weights random.
        weights: Local weights file, of as many input channels as it has; the hub is asked when not given.
        in_chans: Input channels of random weights; the model's own when not given.

    Shape:
        images (B, C or 1, H, W) -> (B, N, D); any size, resized where the model needs it.
    """

    def __init__(
        self,
        name: str,
        *,
        img_size: int | None = None,
        pretrained: bool = True,
        weights: str | None = None,
        in_chans: int | None = None,
    ) -> None:
        super().__init__()
        model = build_ready_model(name, weights=weights, pretrained=pretrained, in_chans=in_chans)
        channels = len(model.mean)
        out_indices = coarsest_two(model.network) if name == LITE_NAME else []
        self.extractor = FeatureExtractor(model, out_indices=out_indices)
        self.splits = self.extractor.eval().widths()
        self.arch = name if name == LITE_NAME else f"timm:{name}"
        self.arch_kwargs: dict[str, Any] = {}
        self.embed_dim = sum(self.splits)
        self.patch_size = strides(model.network)[out_indices[0]] if out_indices else self.extractor.multiple
        self.img_size = img_size or model.size
        self.modalities = MODALITY_NAMES
        self.channels = dict.fromkeys(MODALITY_NAMES, channels)
        self.licence_notes = [f"{self.arch}: {model.licence}"] if model.licence else []
        self.inputs = {
            modality: InputSpec(
                channels=3,
                mean=list(model.mean),
                std=list(model.std),
                scaling="uint8",
                size=self.img_size,
            )
            for modality in MODALITY_NAMES
            if channels == 3
        }

    def forward(self, images: Tensor, modality: str) -> Tensor:
        """All tokens of the images: (B, C, H, W) -> (B, N, D)."""
        get_modality(modality)
        maps = self.extractor(self.extractor.fitted(as_channels(images, self.channels[modality])))
        grid = (int(maps[0].shape[-2]), int(maps[0].shape[-1]))
        tokens = [to_tokens(resample(features, grid)) for features in maps]
        return finish_tokens(torch.cat(tokens, dim=-1), self.splits, normalize=False)

    def pooled(self, images: Tensor, modality: str) -> Tensor:
        """Mean over the tokens: (B, C, H, W) -> (B, D)."""
        return self(images, modality).mean(dim=1)
