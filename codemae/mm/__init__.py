"""The shared encoder in mmdetection and mmsegmentation; importing this registers its parts in mmengine."""

try:
    import mmengine  # noqa: F401
except ImportError as error:
    raise ImportError(
        "detection and segmentation need mmengine, mmcv, mmdet and mmseg; install them with `make install-mm`"
    ) from error

from codemae.mm.backbone import CoDeMAEBackbone
from codemae.mm.layer_decay import EncoderLayerDecay
from codemae.mm.runner import StrictRunner

__all__ = ["CoDeMAEBackbone", "EncoderLayerDecay", "StrictRunner"]
