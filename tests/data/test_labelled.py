import numpy as np
import pytest
import torch
from data_makers import make_index, picture, save, statistics
from PIL import Image

from codemae.data.images import ImageError
from codemae.data.index import IndexFileError, open_index, write_index
from codemae.data.labelled import LabelledImages


@pytest.fixture
def index(tmp_path):
    rows = []
    for i, label in enumerate((1, 0, 2)):
        save(tmp_path / "o" / f"{i}.png", picture(i, (20, 28)))
        save(tmp_path / "s" / f"{i}.png", picture(i + 9, (20, 28), 1))
        split = "test" if i == 2 else "train"
        rows.append(
            {
                "source": "a",
                "split": split,
                "group": str(i),
                "optical": f"o/{i}.png",
                "sar": f"s/{i}.png",
                "label": label,
            }
        )
    facts = statistics("a")
    facts.classes = ("x", "y", "z")
    write_index(tmp_path / "index", rows, facts, tmp_path)
    return tmp_path / "index"


def test_image_is_the_whole_picture_resized_and_standardised(index):
    images = LabelledImages(open_index(index, split="train"), "optical", 16)
    assert len(images) == 2
    assert images.num_classes == 3
    assert images.labels.tolist() == [1, 0]
    image, label, row = images[1]
    small = np.asarray(Image.fromarray(picture(1, (20, 28))).resize((16, 16), Image.BICUBIC)) / 255
    expected = (small - [0.4, 0.5, 0.6]) / [0.2, 0.25, 0.3]
    np.testing.assert_allclose(image.permute(1, 2, 0), expected, rtol=1e-4, atol=1e-5)
    assert (label, row, image.dtype) == (0, 1, torch.float32)


def test_rows_can_be_chosen_and_batches_are_made_by_the_stock_loader(index):
    images = LabelledImages(open_index(index), "radar", 8, rows=np.array([2, 0]))
    pixels, labels, rows = next(iter(torch.utils.data.DataLoader(images, batch_size=2)))
    assert pixels.shape == (2, 1, 8, 8)
    assert (labels.tolist(), rows.tolist()) == ([2, 1], [2, 0])


def test_what_is_missing_is_said(index, tmp_path):
    unlabelled = open_index(make_index(tmp_path / "more", optical=2))
    with pytest.raises(IndexFileError, match="has no label"):
        LabelledImages(unlabelled, "optical", 8)
    with pytest.raises(IndexFileError, match="no sar image among the selected rows"):
        LabelledImages(unlabelled, "sar", 8)
    images = LabelledImages(open_index(index), "sar", 8)
    (tmp_path / "s" / "0.png").write_bytes(b"")
    with pytest.raises(ImageError, match="the file is empty"):
        images[0]
