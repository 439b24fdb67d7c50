"""HiViT whose attention stage sees two modalities of the same ground at once, as Fus-MAE's encoder does."""

from collections.abc import Mapping
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from codemae.models.cross_fusion import FusionConfig, XAttnEncoder
from codemae.models.encoder import Encoder
from codemae.models.hivit import HiViT
from codemae.models.itpn import ITPN


class FusionHiViT(HiViT):
    """``XAttnEncoder`` in place of the first attention block, self-attention over both modalities after it.

    In a HiViT no patch sees another before attention, so its whole stem takes the place of the paper's patch
    projection: the stem works on the kept patches of each modality by itself, positions are added (Eq. 1),
    and the tokens meet (Eq. 2 and 3). There is no global token, as a HiViT has none. All else, sizes and
    names of weights included, is the plain HiViT's.

    Args:
        fusion: How modalities meet.
        **kwargs: As for ``HiViT``.
    """

    fuses = True

    def __init__(self, *, fusion: FusionConfig | Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fusion = FusionConfig.of(fusion)
        if self.fusion.early:
            self.blocks[-self.num_attention_blocks] = XAttnEncoder(self.embed_dim, self.fusion)

    def attend(self, block: nn.Module, tokens: Tensor, views: int) -> Tensor:
        """One block over the tokens of all modalities given: (V B, M, D) -> (V B, M, D)."""
        if isinstance(block, XAttnEncoder):
            return self.run_block(block, tokens, views)
        together = rearrange(tokens, "(v b) m d -> b (v m) d", v=views)
        return rearrange(self.run_block(block, together), "b (v m) d -> (v b) m d", v=views)

    def read_initial(self, path_or_name: str) -> dict[str, Tensor]:
        """Weights of an encoder file that fuses alike; a plain HiViT lacks the block where streams meet."""
        return Encoder.read_initial(self, path_or_name)


class FusionITPN(FusionHiViT, ITPN):
    """The same with iTPN's pyramid, which stays within each patch and so within each modality.

    Args:
        fusion: How modalities meet.
        **kwargs: As for ``ITPN``.
    """
