"""Checkpoints of other projects: their key names to ours and back, strictly; releases by name.

Layouts: ``itpn``, ``hivit`` (SARATR-X alike), ``codemae`` (the authors' release); ours are ``encoder`` (an
encoder's state dict) and ``method`` (a whole CoDeMAE). Every key of a file is kept, renamed or dropped by a
named rule.
"""

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

from codemae import checkpoint
from codemae.checkpoint import EncoderMetadata, InputSpec, WeightsError
from codemae.downloads import RELEASED, Release, fetch_released
from codemae.models.embeddings import resize_pos_embed, sincos_positions

__all__ = [
    "RELEASED",
    "Release",
    "Report",
    "convert_file",
    "detect_format",
    "export",
    "export_file",
    "fetch_released",
    "read_any_encoder",
    "read_encoder_state",
    "to_encoder",
    "to_method",
]

log = logging.getLogger(__name__)

Layout = Literal["itpn", "hivit", "saratrx", "codemae"]
LAYOUTS: tuple[Layout, ...] = ("itpn", "hivit", "saratrx", "codemae")

_MODALITY_SUFFIX = {"optical": "rgb", "sar": "sar"}
_BLOCK = r"(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)"
_MERGE = r"(norm|reduction)\.(weight|bias)"
_TRUNK = rf"absolute_pos_embed|blocks\.\d+\.({_BLOCK}|{_MERGE})"
_PYRAMID = (
    rf"(fpn_modules|block_16to8|block_8to4)\.\d+\.{_BLOCK}|split_(16to8|8to4)\.{_MERGE}"
    r"|align_dim_(16tofpn|16to8|8to4)\.(weight|bias)"
)
_RELATIVE = r"(.*\.)?relative_position_(bias_table|index)"

# What an encoder has no place for, by the reason it is dropped.
_DROPPED_FROM_ENCODER = {
    "reconstruction decoder": r"(mask_token|decoder_pos_embed|decoder_\w+)(_cross)?(_rgb|_sar)?(\..+)?",
    "distillation head": r"(lm_head|lm_cls_head|norm_cls|cls_pt_layers)\..+",
    "output norm": r"norm\.(weight|bias)",
    "contrastive head": r"contrastive_loss\..+",
    "classifier": r"(fc_norm|head)\..+",
    "target filters": r"feature\..+",
}
_DROPPED_FROM_METHOD = {
    "fixed decoder positions": r"decoder_pos_embed",
    "target filters": r"feature\..+",
}
# Authors' key prefix -> ours, for everything of a CoDe-MAE that is not encoder.
_SHARED_DECODER_PREFIXES = {
    "mask_token": "decoders.0.mask_token",
    "decoder_blocks.": "decoders.0.blocks.",
    "decoder_norm.": "decoders.0.norm.",
    "decoder_pred.": "decoders.0.pred.",
    "decoder_embed.": "decoder_embed.levels.",
}
_SEPARATE_DECODER_PREFIXES = {
    theirs: ours
    for number, (modality, suffix) in enumerate(_MODALITY_SUFFIX.items())
    for theirs, ours in {
        f"mask_token_{suffix}": f"decoders.{number}.mask_token",
        f"decoder_blocks_{suffix}.": f"decoders.{number}.blocks.",
        f"decoder_norm_{suffix}.": f"decoders.{number}.norm.",
        f"decoder_pred_{suffix}.": f"decoders.{number}.pred.",
        f"decoder_embed_{suffix}.": f"decoder_embed.{modality}.levels.",
    }.items()
}
_METHOD_PREFIXES = {
    "mask_token_cross": "cross_decoder.mask_token",
    "decoder_blocks_cross.": "cross_decoder.blocks.",
    "decoder_norm_cross.": "cross_decoder.norm.",
    "decoder_pred_cross.": "cross_decoder.pred.",
    "norm.": "okd_heads.fused.norm.",
    "lm_head.": "okd_heads.fused.proj.",
    "cls_pt_layers.": "okd_heads.auxiliary.blocks.",
    "norm_cls.": "okd_heads.auxiliary.norm.",
    "lm_cls_head.": "okd_heads.auxiliary.proj.",
    "contrastive_loss.crossattn_rgb.": "ccl_spaces.optical.",
    "contrastive_loss.crossattn_sar.": "ccl_spaces.sar.",
}
# Width and blocks at strides 4, 8, 16 -> name for create_encoder.
ARCHITECTURES: dict[tuple[int, tuple[int, int, int]], str] = {
    (192, (1, 1, 4)): "hivit_tiny",
    (384, (4, 4, 20)): "hivit_small",
    (512, (3, 3, 24)): "hivit_base",
    (512, (4, 4, 20)): "hivit_base20",
    (768, (2, 2, 40)): "hivit_large",
}


class _Origin(NamedTuple):
    """What a foreign file does not say about itself: its training images' statistics and its terms."""

    mean: dict[str, list[float]]
    std: dict[str, list[float]]
    licence: str


_IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_ORIGINS = {
    "itpn": _Origin(
        dict.fromkeys(_MODALITY_SUFFIX, _IMAGENET[0]),
        dict.fromkeys(_MODALITY_SUFFIX, _IMAGENET[1]),
        "iTPN weights: their authors state no licence",
    ),
    "hivit": _Origin(
        dict.fromkeys(_MODALITY_SUFFIX, _IMAGENET[0]),
        dict.fromkeys(_MODALITY_SUFFIX, _IMAGENET[1]),
        "HiViT weights: MIT",
    ),
    "saratrx": _Origin(
        dict.fromkeys(_MODALITY_SUFFIX, [0.0] * 3),
        dict.fromkeys(_MODALITY_SUFFIX, [1.0] * 3),
        "SARATR-X weights: CC BY-NC 4.0",
    ),
    "codemae": _Origin(
        {"optical": [0.3865, 0.4117, 0.3632], "sar": [0.1738] * 3},
        {"optical": [0.2093, 0.1803, 0.1748], "sar": [0.2226] * 3},
        "CoDe-MAE weights: Apache-2.0; distilled from DINOv3-Sat, whose licence reaches them",
    ),
}


@dataclass(kw_only=True)
class Report:
    """What became of every key of a file.

    Attributes:
        source: The file's layout.
        loaded: Keys kept under their name.
        renamed: Key to its new names (two where one patch embedding serves both modalities).
        dropped: Key to the rule that dropped it.
        resized: Key to a sentence about its old and new shape.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    renamed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    resized: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        rules: dict[str, int] = {}
        for rule in self.dropped.values():
            rules[rule] = rules.get(rule, 0) + 1
        dropped = ", ".join(f"{rule} ({count})" for rule, count in rules.items()) or "nothing"
        resized = "; ".join(self.resized.values())
        return (
            f"{self.source}: {len(self.loaded)} keys kept, {len(self.renamed)} renamed; dropped: {dropped}"
            + (f"; resized: {resized}" if resized else "")
        )


def detect_format(state: Mapping[str, Tensor]) -> str:
    """The layout of a state dict: ``encoder``, ``method``, ``codemae``, ``itpn`` or ``hivit``.

    SARATR-X files have HiViT's layout and are called ``hivit`` too.

    Raises:
        WeightsError: None of these.
    """
    if any(key.startswith("encoder.patch_embed.") for key in state):
        return "method"
    if any(re.match(r"patch_embed\.(optical|sar)\.", key) for key in state):
        return "encoder"
    if any(re.match(r"patch_embed_(rgb|sar)\.", key) for key in state):
        return "codemae"
    if "patch_embed.proj.weight" in state and "absolute_pos_embed" in state:
        return "itpn" if any(re.fullmatch(_PYRAMID, key) for key in state) else "hivit"
    raise WeightsError(
        "these weights have neither our keys nor those of iTPN, HiViT, SARATR-X or CoDe-MAE; first keys: "
        + ", ".join(list(state)[:5])
    )


def to_encoder(
    state: Mapping[str, Tensor],
    source: str | None = None,
    *,
    pyramid: bool = True,
    fpn_depth: int | None = None,
    grid: tuple[int, int] | None = None,
) -> tuple[dict[str, Tensor], Report]:
    """Foreign encoder weights under our names.

    A single patch embedding is copied to both modalities; decoder and heads are dropped.

    Args:
        state: The file's tensors.
        source: Its layout; found out when not given.
        pyramid: False drops the pyramid.
        fpn_depth: Blocks wanted after each split of the pyramid; further ones are dropped (iTPN's own files
            have two, CoDe-MAE keeps the first). None keeps all.
        grid: Patch grid wanted; positions are resized to it.

    Returns:
        The state dict, and what became of every key.

    Raises:
        WeightsError: A key is unknown, or the file's attention uses relative positions.
    """
    source = source or detect_format(state)
    report = Report(source=source)
    rules = dict(_DROPPED_FROM_ENCODER)
    if not pyramid:
        rules["pyramid"] = _PYRAMID
    if fpn_depth is not None:
        numbers = "|".join(str(number) for number in range(fpn_depth, 16))
        rules[f"pyramid blocks beyond {fpn_depth}"] = rf"block_(16to8|8to4)\.({numbers})\..+"
    if source == "method":
        state, outside = _split_method(state)
        report.dropped.update(dict.fromkeys(outside, "outside the encoder"))
    renamed = {}
    for key, value in state.items():
        if names := _encoder_names(key, rules, report):
            renamed.update(dict.fromkeys(names, value))
    _refuse_unknown(state, report)
    if grid is not None and "absolute_pos_embed" in renamed:
        positions = renamed["absolute_pos_embed"]
        if positions.shape[1] != grid[0] * grid[1]:
            renamed["absolute_pos_embed"] = resize_pos_embed(positions, grid)
            report.resized["absolute_pos_embed"] = (
                f"absolute_pos_embed from {positions.shape[1]} to {grid[0]} x {grid[1]} positions"
            )
    return renamed, report


def to_method(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Report]:
    """A released CoDe-MAE, decoders and heads included, under the names of our CoDeMAE.

    Fits the ``official`` preset with the same losses switched on, and ``decoder.shared`` false where the file
    has decoders of their own for each modality; load it strictly.

    Raises:
        WeightsError: Another layout, an unknown key, decoders of one modality alone, or cross decoders that
            are not shared.
    """
    source = detect_format(state)
    if source != "codemae":
        raise WeightsError(f"only a released CoDe-MAE holds a whole method; this is {source}, use to_encoder")
    separate = {
        (found[2], found[3]): key
        for key in state
        if (found := re.match(r"(mask_token|decoder_\w+?)(_cross)?_(rgb|sar)(\.|$)", key))
    }
    if cross := [key for (part, _), key in separate.items() if part]:
        raise WeightsError(
            "this CoDe-MAE has cross decoders of their own for each modality, which ours shares "
            f"({cross[0]}, ...); load its encoder alone with to_encoder"
        )
    if len(separate) == 1:
        raise WeightsError(
            "this CoDe-MAE has decoder embeddings of their own for one modality alone "
            f"({', '.join(separate.values())}, ...); load its encoder alone with to_encoder"
        )
    report = Report(source=source)
    renamed = {}
    for key, value in state.items():
        if method_name := _method_name(key):
            report.renamed[key] = (method_name,)
            renamed[method_name] = value
        else:
            for name in _encoder_names(key, _DROPPED_FROM_METHOD, report, prefix="encoder."):
                renamed[name] = value
    _refuse_unknown(state, report)
    return renamed, report


def export(state: Mapping[str, Tensor], target: Layout, *, modality: str | None = None) -> dict[str, Tensor]:
    """Our weights under another project's names; what the target has no name for is left out and logged.

    Args:
        state: State dict of an encoder, or (for ``codemae``) of a whole CoDeMAE.
        target: ``itpn`` (one patch embedding, pyramid), ``hivit`` and ``saratrx`` (no pyramid), ``codemae``.
        modality: Whose patch embedding a layout with a single one gets: optical, for ``saratrx`` sar.

    Raises:
        WeightsError: Unknown target, or the state has not our keys.
    """
    if target not in LAYOUTS:
        raise WeightsError(f"unknown layout {target!r}; known: {', '.join(LAYOUTS)}")
    source = detect_format(state)
    if source not in ("encoder", "method"):
        raise WeightsError(f"these weights are in the {source} layout already; convert them to ours first")
    outside: Mapping[str, Tensor] = {}
    if source == "method":
        state, outside = _split_method(state)
    chosen = modality or ("sar" if target == "saratrx" else "optical")
    exported, left_out = {}, []
    for key, value in state.items():
        found = re.fullmatch(r"patch_embed\.(optical|sar)\.(.+)", key)
        if found and target == "codemae":
            exported[f"patch_embed_{_MODALITY_SUFFIX[found[1]]}.{found[2]}"] = value
        elif found and found[1] == chosen:
            exported[f"patch_embed.{found[2]}"] = value
        elif found or (target in ("hivit", "saratrx") and re.fullmatch(_PYRAMID, key)):
            left_out.append(key)
        else:
            exported[key] = value
    if target == "codemae" and outside:
        side = math.isqrt(state["absolute_pos_embed"].shape[1])
        exported |= _exported_method(outside, (side, side))
    else:
        left_out += outside
    if left_out:
        log.info("left out of the %s layout: %s", target, ", ".join(left_out))
    return exported


def read_encoder_state(path_or_name: str | Path, *, pyramid: bool = True) -> dict[str, Tensor]:
    """Encoder weights to start a run from, under our names: a file of any known layout, or a released name.

    Args:
        path_or_name: ``encoder.safetensors``, a foreign checkpoint, or a name of ``RELEASED``.
        pyramid: Whether the run's encoder has a pyramid.

    Raises:
        WeightsError: The file does not fit.
        FileNotFoundError: No such file and no such name.
    """
    path, layout = _located(path_or_name)
    state, report = to_encoder(checkpoint.read_weights(path), layout, pyramid=pyramid, fpn_depth=1)
    if pyramid and not any(re.fullmatch(_PYRAMID, key) for key in state):
        raise WeightsError(
            f"{path} has no pyramid; set method.encoder.pyramid=false or start from an iTPN file"
        )
    log.info("%s: %s", path, report)
    return state


def read_any_encoder(path_or_name: str | Path) -> tuple[dict[str, Tensor], EncoderMetadata]:
    """An encoder file of ours, a foreign checkpoint or a released name: weights and all to rebuild it.

    Raises:
        WeightsError: Damaged, unsafe, of an unknown layout or architecture.
        FileNotFoundError: No such file and no such name.
    """
    path, layout = _located(path_or_name)
    foreign = checkpoint.read_weights(path)
    if checkpoint.is_encoder_file(path):
        return checkpoint.read_encoder(path)
    layout = layout or detect_format(foreign)
    if layout == "encoder":
        return checkpoint.read_encoder(path)
    state, report = to_encoder(foreign, layout)
    log.info("%s: %s", path, report)
    return state, _described(state, layout)


def convert_file(source: str | Path, target: str | Path) -> Report:
    """Writes an encoder file from a foreign checkpoint or a released name.

    Raises:
        WeightsError: The source does not fit, or the target does not end in .safetensors.
    """
    if Path(target).suffix != ".safetensors":
        raise WeightsError(f"{target}: an encoder file ends in .safetensors")
    path, layout = _located(source)
    foreign = checkpoint.read_weights(path)
    layout = layout or detect_format(foreign)
    state, report = to_encoder(foreign, layout)
    checkpoint.save_encoder(target, state, _described(state, layout))
    return report


def export_file(
    source: str | Path, target: str | Path, layout: Layout, *, modality: str | None = None
) -> None:
    """Writes an encoder of ours as a plain weights file in another project's layout."""
    checkpoint.save_weights(target, export(checkpoint.read_weights(source), layout, modality=modality))


def _located(path_or_name: str | Path) -> tuple[Path, str | None]:
    """The file, and its layout where a release states it."""
    if Path(path_or_name).exists():
        return Path(path_or_name), None
    fetched = fetch_released(str(path_or_name))
    return fetched.path, fetched.release.format


def _split_method(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    prefix = "encoder."
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return inside, {key: value for key, value in state.items() if not key.startswith(prefix)}


def _encoder_names(key: str, rules: Mapping[str, str], report: Report, prefix: str = "") -> tuple[str, ...]:
    """Our names of a key, noted in the report; none where a rule drops it or nobody knows it."""
    for rule, pattern in rules.items():
        if re.fullmatch(pattern, key):
            report.dropped[key] = rule
            return ()
    if found := re.fullmatch(r"patch_embed_(rgb|sar)\.(.+)", key):
        modality = next(name for name, suffix in _MODALITY_SUFFIX.items() if suffix == found[1])
        names: tuple[str, ...] = (f"{prefix}patch_embed.{modality}.{found[2]}",)
    elif found := re.fullmatch(r"patch_embed\.(proj|norm)\.(weight|bias)", key):
        names = tuple(
            f"{prefix}patch_embed.{modality}.{found[1]}.{found[2]}" for modality in _MODALITY_SUFFIX
        )
    elif re.fullmatch(rf"patch_embed\.(optical|sar)\..+|{_TRUNK}|{_PYRAMID}", key) and not re.fullmatch(
        _RELATIVE, key
    ):
        names = (f"{prefix}{key}",)
    else:
        return ()
    if names == (key,):
        report.loaded.append(key)
    else:
        report.renamed[key] = names
    return names


def _refuse_unknown(state: Mapping[str, Tensor], report: Report) -> None:
    known = {*report.loaded, *report.renamed, *report.dropped}
    unknown = [key for key in state if key not in known]
    if relative := [key for key in unknown if re.fullmatch(_RELATIVE, key)]:
        raise WeightsError(
            "this checkpoint's attention adds a relative position bias, which our encoder (like iTPN's "
            f"pixel models, HiViT's and CoDe-MAE's) does not have: {', '.join(relative[:3])}"
            f"{', ...' if len(relative) > 3 else ''}"
        )
    if unknown:
        raise WeightsError(
            f"{len(unknown)} keys belong to no known part of a {report.source} checkpoint:\n  "
            + "\n  ".join(unknown)
        )


def _method_name(key: str) -> str | None:
    tables = _METHOD_PREFIXES | _SHARED_DECODER_PREFIXES | _SEPARATE_DECODER_PREFIXES
    for theirs, ours in tables.items():
        if key == theirs or (theirs.endswith(".") and key.startswith(theirs)):
            return ours + key.removeprefix(theirs)
    return None


def _exported_method(outside: Mapping[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
    width = outside["decoders.0.mask_token"].shape[-1]
    exported = {"decoder_pos_embed": sincos_positions(width, grid)}
    shared = "decoders.1.mask_token" not in outside
    tables = _METHOD_PREFIXES | (_SHARED_DECODER_PREFIXES if shared else _SEPARATE_DECODER_PREFIXES)
    for key, value in outside.items():
        for theirs, ours in tables.items():
            if key == ours or (ours.endswith(".") and key.startswith(ours)):
                exported[theirs + key.removeprefix(ours)] = value
                break
        else:
            raise WeightsError(
                f"{key} has no counterpart in a released CoDe-MAE, which has the official preset's parts"
            )
    return exported


def _described(state: Mapping[str, Tensor], layout: str) -> EncoderMetadata:
    """Architecture of encoder weights under our names, with what is known of the layout's origin."""
    depths = _depths(state)
    positions = state["absolute_pos_embed"]
    width = positions.shape[-1]
    if (width, depths) not in ARCHITECTURES:
        known = "; ".join(f"{name}: {w}, {d}" for (w, d), name in ARCHITECTURES.items())
        raise WeightsError(f"no encoder of ours has width {width} and blocks {depths}; known are {known}")
    side = math.isqrt(positions.shape[1])
    img_size = 16 * side
    channels = {
        modality: state[key].shape[1]
        for modality in _MODALITY_SUFFIX
        if (key := f"patch_embed.{modality}.proj.weight") in state
    }
    pyramid = any(re.fullmatch(_PYRAMID, key) for key in state)
    arch_kwargs: dict[str, object] = {"img_size": img_size, "channels": channels, "pyramid": pyramid}
    if (fpn_depth := _count(state, "block_16to8")) > 1:
        arch_kwargs["fpn_depth"] = fpn_depth
    origin = _ORIGINS.get(layout)
    inputs = {
        modality: InputSpec(
            channels=count,
            mean=origin.mean[modality],
            std=origin.std[modality],
            scaling="uint8",
            size=img_size,
        )
        for modality, count in channels.items()
        if origin is not None
    }
    return EncoderMetadata(
        arch=ARCHITECTURES[width, depths],
        arch_kwargs=arch_kwargs,
        inputs=inputs,
        method=layout,
        steps=0,
        licence_notes=[origin.licence] if origin else [],
    )


def _depths(state: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """Blocks before, between and after the two merges."""
    merges = sorted(
        int(key.split(".")[1]) for key in state if re.fullmatch(r"blocks\.\d+\.reduction\.weight", key)
    )
    if len(merges) != 2:
        raise WeightsError(f"an encoder has two merges among its blocks, this file has {len(merges)}")
    first, second = merges
    return first, second - first - 1, _count(state, "blocks") - second - 1


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.split(".")[1] for key in state if key.startswith(f"{prefix}.")})
