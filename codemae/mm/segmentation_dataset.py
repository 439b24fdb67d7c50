"""Rows of an index with their masks as a dataset of mmsegmentation."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from mmengine.registry import DATASETS
from mmseg.datasets import BaseSegDataset

from codemae.data.images import ImageError, Location, SceneCache, Window, as_read, read_picture, read_window
from codemae.data.index import Index, open_index
from codemae.data.masks import NO_LABEL, MaskError, read_mask, to_classes
from codemae.data.statistics import SourceStatistics
from codemae.mm.images import FEWEST_READ, LARGEST_SHARE
from codemae.modality import MODALITY_NAMES

log = logging.getLogger(__name__)

BOTH = "both"
CHANNELS = {"optical": 3, "sar": 3}
"""Channels an encoder takes when nothing else is said; a single channel is repeated."""
FACTS = "codemae"
"""Entry of the dataset's ``metainfo``, and so of a checkpoint's, that says how images are standardised."""

Value: TypeAlias = int | Sequence[int]
"""A pixel of a mask: a number, or red, green and blue."""


class SegmentationDataError(ValueError):
    """Index, masks and config do not fit each other; the message says what to change."""


@DATASETS.register_module()
class IndexSegmentation(BaseSegDataset):
    """Images and masks of an index, on [0, 255] until a pipeline standardises them.

    A pipeline is handed ``img`` (H, W, C) float32, optical channels first; ``mean`` and ``std`` of each
    channel of the row's own source on the same scale; ``parts``, the channels of each modality; and
    ``gt_seg_map`` (H, W) uint8 of class numbers, 255 without label. Pixels without data hold the mean.

    Args:
        index: Folder as ``datasets/prepare.py`` writes it; several with commas between, or a list.
        split: Split or splits whose rows are taken.
        modality: ``optical``, ``sar``, or ``both``: rows that have the two, optical channels first.
        classes: Names in the order of the class numbers; those of the index when not given.
        mask_values: Stored value of each class, or its red, green and blue; 0, 1, ... when not given.
        ignore_values: Stored values that mean no label.
        palette: Red, green and blue of each class in pictures.
        channels: Channels the encoder takes of each modality.
        levels: ``mean`` and ``std`` of a modality's channels, in levels of 0 to 255, in place of the index's:
            those that a published config states. Only of images that are bytes, and for all datasets of a
            config alike.
        fraction: Share of the rows that is taken; which, ``fraction_seed`` says.
        fraction_seed: Of that draw.
        labelled: Whether rows need masks; without them every pixel is without label.
        bad_samples: File that lists training images which could not be read; none when not given.
        cache_bytes: Memory of each worker for decoded scenes that serve many windows.
        pipeline: Transforms of mmsegmentation.
        test_mode: Whether an image that cannot be read is an error (the default of a test) or is replaced by
            another one (training). Above 1 % of what a process has read (from 100 reads on) it is an error in
            training, too.
        **kwargs: Of ``BaseSegDataset``.

    Raises:
        SegmentationDataError: No row with images and mask, no class names, or channels that do not fit.
        codemae.data.index.IndexFileError: The index is missing or damaged.
    """

    def __init__(
        self,
        index: str | Sequence[str],
        split: str | Sequence[str] = "train",
        modality: str = "optical",
        classes: Sequence[str] | None = None,
        mask_values: Sequence[Value] | None = None,
        ignore_values: Sequence[Value] = (),
        palette: Sequence[Sequence[int]] | None = None,
        channels: Mapping[str, int] | None = None,
        levels: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
        fraction: float = 1.0,
        fraction_seed: int = 0,
        labelled: bool = True,
        bad_samples: str | None = None,
        cache_bytes: int = 64 << 20,
        pipeline: Sequence[Any] = (),
        test_mode: bool = False,
        **kwargs: Any,
    ) -> None:
        if modality not in (*MODALITY_NAMES, BOTH):
            raise SegmentationDataError(f"modality is {modality!r}; choose optical, sar or both")
        folders = index.split(",") if isinstance(index, str) else list(index)
        self.index: Index = open_index(folders, split if isinstance(split, str) else tuple(split))
        self.modality = modality
        self.modalities = tuple(MODALITY_NAMES) if modality == BOTH else (modality,)
        self.labelled = labelled
        self.bad_samples = bad_samples
        self._reads = 0
        self._bad: set[int] = set()
        self._cache = SceneCache(cache_bytes)
        names = tuple(classes or self.index.classes)
        if not names:
            raise SegmentationDataError(
                f"{', '.join(folders)} names no classes; give the dataset of the config its classes"
            )
        self.values = [_packed(value) for value in mask_values or range(len(names))]
        self.ignored = [_packed(value) for value in ignore_values]
        self.coloured = any(not isinstance(value, int) for value in (*(mask_values or ()), *ignore_values))
        if len(self.values) != len(names):
            raise SegmentationDataError(
                f"{len(names)} classes ({', '.join(names)}) but {len(self.values)} mask_values"
            )
        self.rows = _drawn(self._usable_rows(), fraction, fraction_seed)
        self.channels = {name: dict(channels or CHANNELS)[name] for name in self.modalities}
        self.levels = dict(levels or {})
        self.statistics = {
            source: {name: self._statistics(source, name) for name in self.modalities}
            for source in sorted({self.index.source(int(row)) for row in self.rows})
        }
        metainfo: dict[str, Any] = {"classes": names, FACTS: self._facts()}
        if palette is not None:
            metainfo["palette"] = [list(colour) for colour in palette]
        super().__init__(metainfo=metainfo, pipeline=list(pipeline), test_mode=test_mode, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """A mapping a row; what it shows is read when it is asked for."""
        return [{"row": int(row)} for row in self.rows]

    def prepare_data(self, idx: int) -> Any:
        """A sample through the pipeline; None in training where an image cannot be read.

        Raises:
            ImageError: It cannot be read, in a test.
            MaskError: A mask holds a value that is neither class nor ignored.
            SegmentationDataError: Sizes differ, or too many images cannot be read.
        """
        info = self.get_data_info(idx)
        self._reads += 1
        try:
            sample = info | self.read(info["row"])
        except ImageError as error:
            if self.test_mode:
                raise
            self._note(info["row"], error)
            return None
        return self.pipeline(sample)

    def read(self, row: int) -> dict[str, Any]:
        """What a pipeline is handed of an index row.

        Raises:
            ImageError: An image or mask cannot be read.
            MaskError: The mask holds a value that is neither class nor ignored.
            SegmentationDataError: Images and mask differ in size.
        """
        window = self.index.window(row)
        sides = self.statistics[self.index.source(row)]
        images = {}
        for name, statistics in sides.items():
            location = self.index.location(row, name)
            picture = as_read(read_window(location, window, self._cache), statistics)
            images[name] = unit_values(np.asarray(picture), statistics)
        sizes = {name: image.shape[:2] for name, image in images.items()}
        if self.labelled:
            mask = self.read_mask(row, window)
            sizes["mask"] = mask.shape
        else:
            mask = np.full(next(iter(sizes.values())), NO_LABEL, dtype=np.uint8)
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{name} {height} x {width}" for name, (height, width) in sizes.items())
            raise SegmentationDataError(
                f"{self.index.describe(row, self.modalities[0])}: sizes differ: {listed}; correct the files "
                "and prepare the index again"
            )
        height, width = mask.shape
        return {
            "img": np.concatenate(list(images.values()), axis=-1) * np.float32(255),
            "img_path": str(self.index.location(row, self.modalities[0])),
            "img_shape": (height, width),
            "ori_shape": (height, width),
            "mean": 255 * np.concatenate([np.array(s.mean, np.float32) for s in sides.values()]),
            "std": 255 * np.concatenate([np.array(s.std, np.float32) for s in sides.values()]),
            "parts": [s.channels for s in sides.values()],
            "gt_seg_map": mask,
            "seg_fields": ["gt_seg_map"],
            "reduce_zero_label": False,
            "row": row,
        }

    def read_mask(self, row: int, window: Window | None = None) -> np.ndarray:
        """Class numbers of a row's mask, (H, W) uint8, 255 without label.

        Raises:
            ImageError: It cannot be read.
            MaskError: It holds a value that is neither class nor ignored.
        """
        location = self.index.location(row, "mask")
        stored = _read_colours(location, window) if self.coloured else read_mask(location, window)
        try:
            return to_classes(stored, self.values, self.ignored, str(location))
        except MaskError:
            strange = np.unique(stored[~np.isin(stored, [*self.values, *self.ignored])])[:5].tolist()
            shown = [_unpacked(value) for value in strange] if self.coloured else strange
            raise MaskError(
                f"{location} holds the values {shown}, which are neither mask_values nor ignore_values of "
                "the config's dataset; add them there or correct the mask"
            ) from None

    def _usable_rows(self) -> np.ndarray:
        index = self.index
        rows = index.paired_rows if self.modality == BOTH else index.rows_with(self.modality)
        if self.labelled:
            rows = np.array([row for row in rows.tolist() if index.cell(row, "mask") is not None], np.int32)
        if not len(rows):
            what = " and ".join((*self.modalities, *(("mask",) if self.labelled else ())))
            raise SegmentationDataError(
                f"{', '.join(index.folders)}: no row of split {index.splits} has {what}; cards of "
                "segmentation datasets list masks: python datasets/prepare.py NAME --root DIR --out INDEX_DIR"
            )
        return rows

    def _statistics(self, source: str, modality: str) -> SourceStatistics:
        found = self.index.stats(source, modality)
        wanted = self.channels[modality]
        if found.channels not in (1, wanted):
            raise SegmentationDataError(
                f"{modality} images of {source} have {found.channels} channels, the config's encoder takes "
                f"{wanted}; set channels of backbone and datasets alike, or prepare the index with --bands"
            )
        return self._stated(found.expanded(wanted), modality)

    def _stated(self, found: SourceStatistics, modality: str) -> SourceStatistics:
        """The statistics with the mean and deviation of ``levels``, where it states those of the modality."""
        if modality not in self.levels:
            return found
        mean, std = (tuple(self.levels[modality][key]) for key in ("mean", "std"))
        if found.scaling.rule != "uint8" or len(mean) != found.channels or len(std) != found.channels:
            raise SegmentationDataError(
                f"levels states {len(mean)} means and {len(std)} deviations of {modality} bytes; the images "
                f"have {found.channels} channels of scaling {found.scaling}: leave levels out"
            )
        return replace(
            found,
            mean=tuple(value / 255 for value in mean),
            std=tuple(value / 255 for value in std),
            computed="published",
        )

    def _facts(self) -> dict[str, Any]:
        """Plain values that a checkpoint carries, so that a scene needs no index to be mapped."""
        pooled = {name: self.index.pooled_stats(name) for name in self.modalities}
        for name in self.levels.keys() & pooled.keys():
            pooled[name] = self._stated(pooled[name].expanded(self.channels[name]), name)
        return {
            "modality": self.modality,
            "statistics": {name: statistics.to_dict() for name, statistics in pooled.items()},
            "sources": sorted(self.statistics),
        }

    def _note(self, row: int, error: ImageError) -> None:
        line = f"{self.index.describe(row, self.modalities[0])}: {error}"
        if row not in self._bad:
            self._bad.add(row)
            log.warning("left out: %s", line)
            if self.bad_samples:
                Path(self.bad_samples).parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self.bad_samples, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
                with os.fdopen(descriptor, "w") as file:
                    file.write(line + "\n")
        # Each process sees a part of the rows, so it can only compare with what it has read itself.
        if self._reads >= FEWEST_READ and len(self._bad) > LARGEST_SHARE * self._reads:
            raise SegmentationDataError(
                f"{len(self._bad)} of {self._reads} images or masks cannot be read, more than "
                f"{LARGEST_SHARE:.0%}; the last: {line}"
            )


def _drawn(rows: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """A share of the rows, at least one, in their order."""
    if not 0 < fraction <= 1:
        raise SegmentationDataError(f"fraction is {fraction:g}; it must be above 0 and at most 1, as in 0.01")
    count = max(1, round(fraction * len(rows)))
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    return rows[np.sort(chosen)]


def unit_values(pixels: np.ndarray, statistics: SourceStatistics) -> np.ndarray:
    """Stored values (H, W) or (H, W, C) to float32 (H, W, C) on [0, 1]; no data becomes the mean."""
    values = statistics.scaling.apply(pixels[..., None] if pixels.ndim == 2 else pixels)
    missing = ~np.isfinite(values)
    if missing.any():
        values = np.where(missing, np.array(statistics.mean, np.float32), values)
    return values


def _read_colours(location: Location, window: Window | None) -> np.ndarray:
    """Red, green and blue of a mask as one number a pixel, (H, W) int64.

    Raises:
        ImageError: It cannot be read, or has no colours.
    """
    pixels = np.asarray(read_picture(location, window))
    if pixels.ndim != 3 or pixels.shape[-1] < 3:
        raise ImageError(f"{location}: the classes are colours, this mask has shape {pixels.shape}")
    wide = pixels[..., :3].astype(np.int64)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def _packed(value: Value) -> int:
    if isinstance(value, int):
        return value
    red, green, blue = value
    return red << 16 | green << 8 | blue


def _unpacked(value: int) -> list[int]:
    return [value >> 16, value >> 8 & 255, value & 255]
