"""Importing this registers dataset, transforms, fusion, head and figures in mmsegmentation."""

from mmengine.config.utils import MODULE2PACKAGE

from codemae.mm.segmentation_dataset import IndexSegmentation, SegmentationDataError
from codemae.mm.segmentation_figures import SegmentationFigures
from codemae.mm.segmentation_fusion import PyramidFusion, SumOfLevelsHead
from codemae.mm.segmentation_transforms import DistortPhotometry, RandomResizedWindow, StandardiseImage

# mmengine looks for configs of mmseg:: under the name of a distribution; the maintained one has another.
MODULE2PACKAGE["mmseg"] = "mmseg"

__all__ = [
    "DistortPhotometry",
    "IndexSegmentation",
    "PyramidFusion",
    "RandomResizedWindow",
    "SegmentationDataError",
    "SegmentationFigures",
    "StandardiseImage",
    "SumOfLevelsHead",
]
