"""Steps of mmsegmentation's pipelines for images of one or two modalities."""

from collections.abc import Sequence
from typing import Any

import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from mmseg.datasets.transforms import PhotoMetricDistortion


@TRANSFORMS.register_module()
class DistortPhotometry(BaseTransform):
    """mmsegmentation's random brightness, contrast, saturation and hue, drawn for each modality on its own.

    It works on [0, 255] values and rounds them to bytes. Grey images have no saturation or hue to change.

    Args:
        **kwargs: Of ``PhotoMetricDistortion``.
    """

    def __init__(self, **kwargs: Any) -> None:
        self.distort = PhotoMetricDistortion(**kwargs)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Changes ``img``.

        Raises:
            ValueError: A modality has not the three channels that hue needs.
        """
        if any(part != 3 for part in results["parts"]):
            raise ValueError(
                f"DistortPhotometry takes 3 channels a modality, these are {results['parts']}; leave it out "
                "of the config's train pipeline"
            )
        ends = np.cumsum(results["parts"])[:-1]
        parts = [
            self.distort({"img": np.ascontiguousarray(part)})["img"].astype(np.float32)
            for part in np.split(results["img"], ends, axis=-1)
        ]
        results["img"] = np.concatenate(parts, axis=-1)
        return results


@TRANSFORMS.register_module()
class StandardiseImage(BaseTransform):
    """(value - mean) / std by the statistics of the row's own source, which the dataset hands over."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Changes ``img``, float32."""
        results["img"] = ((results["img"] - results["mean"]) / results["std"]).astype(np.float32)
        return results


@TRANSFORMS.register_module()
class RandomResizedWindow(BaseTransform):
    """A random part of image and mask, resized to a square: RandomResizedCrop for dense labels.

    Args:
        side: Of the square, in pixels.
        scale: Smallest and largest share of the area.
        ratio: Smallest and largest width over height.
    """

    def __init__(
        self,
        side: int,
        scale: Sequence[float] = (0.2, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
    ) -> None:
        self.side = side
        self.low, self.high = scale
        self.narrow, self.broad = ratio

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Changes ``img`` (bilinear) and the maps of ``seg_fields`` (nearest)."""
        height, width = results["img_shape"]
        top, left, tall, wide = self._draw(height, width)
        size = (self.side, self.side)

        def cut(values: np.ndarray, interpolation: str) -> np.ndarray:
            part = np.ascontiguousarray(values[top : top + tall, left : left + wide])
            return mmcv.imresize(part, size, interpolation=interpolation)

        results["img"] = cut(results["img"], "bilinear")
        for name in results["seg_fields"]:
            results[name] = cut(results[name], "nearest")
        results["img_shape"] = size
        return results

    def _draw(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width; the largest centred part of an allowed ratio after ten misses."""
        for _ in range(10):
            area = height * width * np.random.uniform(self.low, self.high)
            ratio = np.exp(np.random.uniform(np.log(self.narrow), np.log(self.broad)))
            wide, tall = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
            if 0 < wide <= width and 0 < tall <= height:
                top = np.random.randint(0, height - tall + 1)
                left = np.random.randint(0, width - wide + 1)
                return int(top), int(left), int(tall), int(wide)
        tall = min(height, round(width / self.narrow))
        wide = min(width, round(height * self.broad))
        return (height - tall) // 2, (width - wide) // 2, tall, wide
