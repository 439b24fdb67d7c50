"""Layer-wise decay of the learning rate as an optimizer wrapper constructor of mmengine."""

from collections.abc import Mapping
from typing import Any, cast

from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from codemae.mm.backbone import find_backbone
from codemae.models.layer_decay import LayerDecayError, parameter_groups

KEYS = ("variant", "decay")


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class EncoderLayerDecay:
    """Builds the optimizer over the groups of ``codemae.models.layer_decay``.

    Neck and heads have scale 1. Biases, positions and parameters of one dimension have no weight decay, also
    in the heads.

    Args:
        optim_wrapper_cfg: ``type`` and ``optimizer`` with ``lr`` and ``weight_decay``, of mmengine.
        paramwise_cfg: ``variant`` (``official``, ``hivit``, ``itpn``, ``hivit_detection``) and ``decay``;
            a decay of 1 gives all layers one rate.

    Raises:
        LayerDecayError: Another key in ``paramwise_cfg``, or a decay outside (0, 1].
    """

    def __init__(
        self, optim_wrapper_cfg: Mapping[str, Any], paramwise_cfg: Mapping[str, Any] | None = None
    ) -> None:
        self.wrapper = dict(optim_wrapper_cfg)
        self.optimizer = dict(self.wrapper.pop("optimizer"))
        given = dict(paramwise_cfg or {})
        if unknown := [key for key in given if key not in KEYS]:
            raise LayerDecayError(f"paramwise_cfg has {', '.join(unknown)}; it takes {' and '.join(KEYS)}")
        self.variant = given.get("variant", "official")
        self.decay = float(given.get("decay", 0.85))

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """The wrapper of an optimizer whose groups have ``lr`` scaled by depth."""
        inner = cast(nn.Module, model.module if is_model_wrapper(model) else model)
        name, _ = find_backbone(inner)
        prefix = f"{name}.encoder".lstrip(".")
        groups = parameter_groups(
            inner, prefix, self.variant, self.decay, self.optimizer.get("weight_decay", 0.0)
        )
        for group in groups:
            group["lr"] = self.optimizer["lr"] * group["lr_scale"]
        optimizer = OPTIMIZERS.build({**self.optimizer, "params": groups})
        return OPTIM_WRAPPERS.build({"type": "OptimWrapper", **self.wrapper, "optimizer": optimizer})
