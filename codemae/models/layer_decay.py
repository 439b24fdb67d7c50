"""Layer-wise learning-rate decay: the four rules in use, which number the layers of a HiViT differently.

All multiply the rate of a layer by decay ** (top - id): the deeper a layer, the larger its step. Patch
embeddings and positions have id 0, all that follows the trunk (pyramid, norms, heads) has the top id and
scale 1. Between them (``hivit_base``: 3 + 3 + 24 blocks and two merges, 32 entries of ``blocks``):

====================  ===========================================  ===  =============================
variant               id of an entry                               top  decay
====================  ===========================================  ===  =============================
``official``          its place in ``blocks`` + 1, merges counted   32  as given
``hivit``             blocks so far; a merge has the block's        31  as given
                      before it
``itpn``              as ``hivit``                                  31  decay ** (13 / 31)
``hivit_detection``   attention blocks so far; 0 before the first   25  as given
====================  ===========================================  ===  =============================

``official`` is CoDe-MAE's rule in every task: its last block moves at full rate like the head. ``hivit`` and
``itpn`` are those of the two papers' fine-tuning code, ``hivit_detection`` of HiViT's and SARATR-X's
detectors.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from timm.models import group_parameters
from torch import nn

from codemae.models.encoder import Encoder
from codemae.models.hivit import HiViT, PatchMerge

Variant = Literal["official", "hivit", "itpn", "hivit_detection"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

ITPN_REFERENCE_DEPTH = 13


class LayerDecayError(ValueError):
    """An encoder has no layers that the rules could number, or the decay is impossible."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerScale:
    """One line of the table.

    Attributes:
        part: Entry of the trunk, or what comes before or after it.
        kind: What it is, in words.
        id: Its number.
        scale: Factor of its learning rate.
        parameters: Numbers it learns.
    """

    part: str
    kind: str
    id: int
    scale: float
    parameters: int


def parameter_groups(
    model: nn.Module, encoder_prefix: str, variant: Variant, decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Optimizer groups of a model with an encoder in it.

    Biases, parameters of one dimension and positions have no weight decay. Frozen parameters are left out.

    Args:
        model: An encoder with whatever follows it.
        encoder_prefix: Name of the encoder within the model, such as ``"encoder"``; empty for the model.
        variant: How layers are numbered.
        decay: Factor from one layer to the one before it; 1 gives all layers one rate. The layers of a timm
            network are numbered as timm does, whatever the variant.
        weight_decay: Of the parameters that have any.

    Returns:
        Groups with ``params``, ``weight_decay`` and ``lr_scale``, shallow layers first.

    Raises:
        LayerDecayError: The decay is not in (0, 1], or the encoder has no numbered layers.
    """
    encoder = model.get_submodule(encoder_prefix)
    dotted = f"{encoder_prefix}." if encoder_prefix else ""
    scales = {f"{dotted}{name}": scale for name, scale in _scales(encoder, variant, decay).items()}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        bare = parameter.ndim <= 1 or name.endswith((".bias", "_token", "pos_embed"))
        key = scales.get(name, 1.0), 0.0 if bare else weight_decay
        group = groups.setdefault(key, {"params": [], "weight_decay": key[1], "lr_scale": key[0]})
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def layer_ids(encoder: HiViT, variant: Variant) -> tuple[list[int], int]:
    """The id of every entry of ``encoder.blocks``, and the id of all that follows the trunk.

    Raises:
        LayerDecayError: Unknown variant.
    """
    count = len(encoder.blocks)
    first_attention = count - encoder.num_attention_blocks
    if variant == "official":
        return list(range(1, count + 1)), count
    if variant in ("hivit", "itpn"):
        counted = [not isinstance(entry, PatchMerge) for entry in encoder.blocks]
    elif variant == "hivit_detection":
        counted = [place >= first_attention for place in range(count)]
    else:
        raise LayerDecayError(f"no layer decay variant {variant!r}; there are {', '.join(VARIANTS)}")
    ids = [sum(counted[: place + 1]) for place in range(count)]
    return ids, ids[-1] + 1


def layer_table(encoder: HiViT, variant: Variant, decay: float) -> list[LayerScale]:
    """The ids and scales of an encoder, from the patch embeddings to what follows the trunk.

    Raises:
        LayerDecayError: The decay is not in (0, 1].
    """
    ids, top = layer_ids(encoder, variant)
    factor = _factor(variant, decay, top)
    sizes = {"embeddings and positions": 0, "pyramid and head": 0} | {
        f"blocks.{i}": 0 for i in range(len(ids))
    }
    for name, parameter in encoder.named_parameters():
        sizes[_part(name)] += parameter.numel()
    lines = [("embeddings and positions", "", 0)]
    lines += [(f"blocks.{place}", _kind(encoder, place), number) for place, number in enumerate(ids)]
    lines += [("pyramid and head", "", top)]
    return [
        LayerScale(part=part, kind=kind, id=number, scale=factor ** (top - number), parameters=sizes[part])
        for part, kind, number in lines
    ]


def _scales(encoder: nn.Module, variant: Variant, decay: float) -> dict[str, float]:
    """Factor of every parameter of an encoder."""
    names = [name for name, _ in encoder.named_parameters()]
    if isinstance(encoder, Encoder) and not isinstance(encoder, HiViT):
        ids = encoder.layer_ids()
        factor = _factor("official", decay, 1)
        return {name: factor ** (max(ids.values()) - number) for name, number in ids.items()}
    if not isinstance(encoder, HiViT):
        return _timm_scales(encoder, names, decay)
    scales = {line.part: line.scale for line in layer_table(encoder, variant, decay)}
    return {name: scales[_part(name)] for name in names}


def _timm_scales(encoder: nn.Module, names: list[str], decay: float) -> dict[str, float]:
    """As timm numbers the layers of its own networks; the last ones have scale 1."""
    if decay == 1:
        return dict.fromkeys(names, 1.0)
    for prefix, network in encoder.named_modules():
        matcher = getattr(network, "group_matcher", None)
        if callable(matcher):
            ids = group_parameters(network, matcher(coarse=False), reverse=True)
            top, factor = max(ids.values()), _factor("official", decay, 1)
            return dict.fromkeys(names, 1.0) | {
                f"{prefix}.{name}".lstrip("."): factor ** (top - number) for name, number in ids.items()
            }
    raise LayerDecayError(
        f"a {type(encoder).__name__} has no layers that a layer decay of {decay:g} could number; "
        "set the layer decay to 1"
    )


def _part(name: str) -> str:
    """The line of the table that a parameter of an encoder belongs to."""
    if name.startswith(("patch_embed.", "absolute_pos_embed")):
        return "embeddings and positions"
    return ".".join(name.split(".")[:2]) if name.startswith("blocks.") else "pyramid and head"


def _kind(encoder: HiViT, place: int) -> str:
    if isinstance(encoder.blocks[place], PatchMerge):
        return "merge"
    return "attention" if place >= len(encoder.blocks) - encoder.num_attention_blocks else "MLP"


def _factor(variant: Variant, decay: float, top: int) -> float:
    if not 0 < decay <= 1:
        raise LayerDecayError(f"a layer decay lies above 0 and is at most 1, got {decay:g}")
    return decay ** (ITPN_REFERENCE_DEPTH / top) if variant == "itpn" else decay
