from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("mmengine")

from mmengine.optim import build_optim_wrapper  # noqa: E402

from codemae.mm import CoDeMAEBackbone  # noqa: E402
from codemae.models.layer_decay import LayerDecayError  # noqa: E402

pytestmark = pytest.mark.mm
LR, WEIGHT_DECAY, DECAY = 1e-3, 0.05, 0.5
# hivit_tiny: blocks.0 MLP, 1 merge, 2 MLP, 3 merge, 4-7 attention. Written down by hand from the four rules.
IDS = {
    "official": ([1, 2, 3, 4, 5, 6, 7, 8], 8),
    "hivit": ([1, 1, 2, 2, 3, 4, 5, 6], 7),
    "itpn": ([1, 1, 2, 2, 3, 4, 5, 6], 7),
    "hivit_detection": ([0, 0, 0, 0, 1, 2, 3, 4], 5),
}


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = CoDeMAEBackbone(encoder="random:hivit_tiny", out_channels=32)
        self.head = nn.Conv2d(32, 4, 1)


def wrapper_of(model: nn.Module, **paramwise: Any) -> Any:
    config = {
        "type": "OptimWrapper",
        "constructor": "EncoderLayerDecay",
        "paramwise_cfg": paramwise,
        "optimizer": {"type": "AdamW", "lr": LR, "weight_decay": WEIGHT_DECAY, "betas": (0.9, 0.999)},
        "clip_grad": {"max_norm": 35},
    }
    return build_optim_wrapper(model, config)


@pytest.mark.parametrize("variant", sorted(IDS))
def test_every_parameter_has_the_rate_of_its_depth(variant: str) -> None:
    model = Detector()
    wrapper = wrapper_of(model, variant=variant, decay=DECAY)
    ids, top = IDS[variant]
    factor = DECAY ** (13 / top) if variant == "itpn" else DECAY
    got = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in wrapper.optimizer.param_groups
        for parameter in group["params"]
    }
    seen = 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in got and ".sar." in name
            continue
        inner = name.removeprefix("backbone.encoder.")
        if inner.startswith(("patch_embed", "absolute_pos_embed")):
            number = 0
        elif inner.startswith("blocks."):
            number = ids[int(inner.split(".")[1])]
        else:
            number = top
        bare = parameter.ndim == 1 or "pos_embed" in name
        assert got[id(parameter)] == (
            pytest.approx(LR * factor ** (top - number)),
            0.0 if bare else WEIGHT_DECAY,
        )
        seen += 1
    assert seen == len(got)
    assert wrapper.clip_grad_kwargs == {"max_norm": 35}


def test_an_unknown_key_or_variant_is_refused() -> None:
    model = Detector()
    with pytest.raises(LayerDecayError, match="custom_keys"):
        wrapper_of(model, custom_keys={"absolute_pos_embed": {"decay_mult": 0.0}})
    with pytest.raises(LayerDecayError, match="no layer decay variant"):
        wrapper_of(model, variant="beit")


def test_a_schedule_moves_every_group_by_the_same_factor() -> None:
    from mmengine.optim import MultiStepLR

    wrapper = wrapper_of(Detector(), variant="official", decay=DECAY)
    before = torch.tensor([group["lr"] for group in wrapper.optimizer.param_groups])
    schedule = MultiStepLR(wrapper, milestones=[1], gamma=0.1)
    wrapper.optimizer.step()
    schedule.step()
    after = torch.tensor([group["lr"] for group in wrapper.optimizer.param_groups])
    torch.testing.assert_close(after, before * 0.1)
