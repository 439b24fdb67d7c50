"""Pictures of what was annotated and what was predicted."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.utils import draw_bounding_boxes

from codemae.data.images import Location, read_picture, with_channels
from codemae.mm.coco import cleaned

ANNOTATED, PREDICTED = "lime", "red"


def draw_predictions(
    annotations: Path,
    predictions: Path,
    images: Path,
    classes: Sequence[str],
    out: Path,
    *,
    count: int = 16,
    least_score: float = 0.3,
) -> list[Path]:
    """Draws annotated boxes green and predicted ones red, with class and score.

    The images are spread evenly over the file.

    Args:
        annotations: COCO file.
        predictions: COCO results.
        images: Folder that the file names start from.
        classes: Names of the classes.
        out: Folder of the pictures, a JPEG each.
        count: Most of them.
        least_score: Predictions below it are not drawn.
    """
    content, _ = cleaned(json.loads(annotations.read_text()), classes, annotations)
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    truth, found = defaultdict(list), defaultdict(list)
    for entry in content["annotations"]:
        truth[entry["image_id"]].append(entry)
    for entry in json.loads(predictions.read_text()):
        if entry["score"] >= least_score:
            found[entry["image_id"]].append(entry)
    listed = content["images"]
    chosen = [listed[int(place)] for place in np.linspace(0, len(listed) - 1, min(count, len(listed)))]
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for image in chosen:
        picture = with_channels(read_picture(Location(str(images / image["file_name"]))), 3)
        canvas = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        canvas = _draw(canvas, truth[image["id"]], ANNOTATED, None)
        labels = [f"{names[entry['category_id']]} {entry['score']:.2f}" for entry in found[image["id"]]]
        canvas = _draw(canvas, found[image["id"]], PREDICTED, labels)
        path = out / f"{image['id']}_{Path(image['file_name']).stem}.jpg"
        Image.fromarray(canvas.permute(1, 2, 0).numpy()).save(path, quality=90)
        written.append(path)
    return written


def _draw(
    canvas: torch.Tensor, entries: Sequence[dict[str, Any]], colour: str, labels: list[str] | None
) -> torch.Tensor:
    if not entries:
        return canvas
    corners = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in entries)])
    return draw_bounding_boxes(canvas, corners, labels, colors=colour, width=2)
