"""A method small enough to run hundreds of steps in a second, and an index of noise to run it on."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rasterio
import torch
from PIL import Image
from torch import Tensor, nn

from codemae.data.batch import Batch
from codemae.data.index import write_index
from codemae.data.statistics import IndexStatistics, Scaling, SourceStatistics
from codemae.data.views import View, Views
from codemae.distributed import all_gather
from codemae.methods.base import METHODS, Method, Progress
from codemae.methods.graph import keep_in_graph

SIZE, PATCH, DIM = 32, 8, 12
NUM_PATCHES = (SIZE // PATCH) ** 2


@dataclass(kw_only=True)
class ToyConfig:
    name: str = "toy"
    nan_at: list[int] = field(default_factory=list)
    nan_gradient_at: list[int] = field(default_factory=list)
    seconds_per_step: float = 0.0
    dropout: float = 0.1


def register() -> None:
    if "toy" not in METHODS:
        METHODS.register("toy")(Toy)


class _NaNGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


class ToyEncoder(nn.Module):
    arch = "toy"
    arch_kwargs = {"dim": DIM}
    channels = {"optical": 3, "sar": 1}
    img_size = SIZE

    def __init__(self, dropout: float) -> None:
        super().__init__()
        convs = {name: nn.Conv2d(c, DIM, PATCH, PATCH) for name, c in self.channels.items()}
        self.patch_embed = nn.ModuleDict(convs)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(DIM, DIM), nn.GELU()) for _ in range(2))
        self.drop = nn.Dropout(dropout)

    def forward(self, images: Tensor, modality: str) -> Tensor:
        tokens = self.patch_embed[modality](images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = tokens + self.drop(block(tokens))
        return tokens


class Toy(Method):
    """Registered only in processes of ``ddp_helpers.launch``: sweeps over all methods do not see it."""

    Config = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.views = Views(
            {m: View(modality=m, size=SIZE) for m in ("optical", "sar")}, num_patches=NUM_PATCHES
        )
        self.encoder = ToyEncoder(config.dropout)
        self.decoder = nn.Linear(DIM, 1)
        self.projector = nn.Linear(DIM, DIM)
        self.register_buffer("steps_seen", torch.zeros((), dtype=torch.int64))
        self.licence_notes = ["toy teacher: public domain"]

    def training_losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        time.sleep(self.config.seconds_per_step)
        removed = batch.mask_noise > 0.5
        tokens = {m: self.encoder(batch.normalised(m), m) for m in ("optical", "sar")}
        errors = []
        for m, x in tokens.items():
            target = nn.functional.avg_pool2d(batch.normalised(m).mean(1, keepdim=True), PATCH).flatten(1)
            errors.append(((self.decoder(x)[..., 0] - target) ** 2 * removed).mean())
        losses = {"reconstruction": sum(errors)}
        if batch.paired:
            first, second = (all_gather(self.projector(x.mean(1))) for x in tokens.values())
            losses["ccl"] = nn.functional.cross_entropy(first @ second.T, torch.arange(len(first)))
        else:
            losses["reconstruction"] = keep_in_graph(losses["reconstruction"], self.projector.parameters())
        if progress.step in self.config.nan_at:
            losses["reconstruction"] = losses["reconstruction"] * float("nan")
        if progress.step in self.config.nan_gradient_at:
            losses["reconstruction"] = _NaNGradient.apply(losses["reconstruction"])
        return losses

    def after_step(self, progress: Progress) -> None:
        self.steps_seen += 1

    def encoders(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder}

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        return {"optical": batch.unit("optical")[0]}

    def probe_features(self, batch: Batch) -> dict[str, Tensor]:
        return {m: self.encoder(batch.normalised(m), m).mean(1) for m in ("optical", "sar")}


def make_index(
    folder: Path,
    *,
    paired: int = 24,
    optical: int = 8,
    sar: int = 12,
    broken: int = 0,
    holes: int = 0,
    size: int = 40,
) -> Path:
    """An index of noise images.

    The first ``broken`` optical images of the pairs are cut off. With ``holes``, SAR images are float32
    GeoTIFFs, each with that many NaN pixels in its middle row.
    """
    rng = np.random.default_rng(0)
    rows = []
    kinds = [("paired", ("optical", "sar"), paired), ("o", ("optical",), optical), ("s", ("sar",), sar)]
    for kind, modalities, count in kinds:
        for number in range(count):
            row = {"source": "noise", "split": "train", "group": f"{kind}{number}"}
            for modality in modalities:
                row[modality] = f"{modality}/{kind}{number}.png"
                path = folder / row[modality]
                path.parent.mkdir(parents=True, exist_ok=True)
                shape = (size, size, 3) if modality == "optical" else (size, size)
                pixels = rng.integers(0, 256, shape, dtype=np.uint8)
                if modality == "sar" and holes:
                    row[modality] = f"{modality}/{kind}{number}.tif"
                    write_geotiff(folder / row[modality], pixels, holes)
                else:
                    Image.fromarray(pixels).save(path)
                if kind == "paired" and modality == "optical" and number < broken:
                    os.truncate(path, path.stat().st_size // 2)
            rows.append(row)
    statistics = {
        "optical": SourceStatistics(channels=3, mean=(0.5, 0.4, 0.3), std=(0.3, 0.3, 0.2)),
        "sar": SourceStatistics(
            channels=1,
            mean=(0.45,),
            std=(0.25,),
            scaling=Scaling("linear", 0.0, 1.0) if holes else Scaling(),
            pixels="float32" if holes else "uint8",
        ),
    }
    write_index(folder, rows, IndexStatistics(sources={"noise": statistics}), folder)
    return folder


def write_geotiff(path: Path, pixels: np.ndarray, holes: int) -> None:
    values = pixels.astype(np.float32) / 255
    values[len(values) // 2, :holes] = np.nan
    height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=1, dtype="float32"
    ) as file:
        file.write(values, 1)
