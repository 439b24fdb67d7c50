import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
import yaml
from data_makers import make_labelled
from torch import Tensor, nn

from codemae.analysis import explanations
from codemae.analysis.attention import attention_received
from codemae.analysis.correspondence import found_in_place, match_patches, mirror_grid, without_place
from codemae.analysis.dimensions import dimension_alignment, map_dimensions, split_dimensions
from codemae.analysis.explanations import as_subject
from codemae.analysis.pairs import encode_pairs, read_for, read_pairs
from codemae.analysis.projection import Projection
from codemae.analysis.run_encoders import EncoderPair, NotInThisEncoder, load_run_encoder
from codemae.analysis.saliency import band_importance, empty_share, grad_cam, integrated_gradients, overlap
from codemae.checkpoint import EncoderMetadata, InputSpec, save_encoder
from codemae.cli import main
from codemae.config import to_dict
from codemae.data.index import open_index
from codemae.methods.decur import DeCUR, DeCURConfig, ProjectorConfig
from codemae.models.factory import EncoderConfig, create_encoder, load_encoder


def test_alignment_of_each_dimension_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    optical = rng.normal(size=(200, 4))
    sar = np.stack(
        [optical[:, 0], -optical[:, 1], rng.normal(size=200), optical[:, 3] + rng.normal(size=200)], 1
    )
    found = dimension_alignment(torch.from_numpy(optical), torch.from_numpy(sar))
    expected = [(1 - np.corrcoef(optical[:, d], sar[:, d])[0, 1]) ** 2 for d in range(4)]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    sets = split_dimensions(torch.from_numpy(optical), torch.from_numpy(sar))
    assert sorted(sets["common"].tolist()) == [0, 3] and sorted(sets["unique"].tolist()) == [1, 2]
    with pytest.raises(ValueError, match="4 of 4 dimensions"):
        split_dimensions(torch.from_numpy(optical), torch.from_numpy(sar), common_share=1.0)


def test_equal_dimensions_lie_together_on_the_map() -> None:
    optical = torch.randn(40, 20, generator=torch.Generator().manual_seed(0))
    plane = map_dimensions(optical, optical.clone())
    partners = np.linalg.norm(plane[:20] - plane[20:], axis=1)
    others = [
        np.linalg.norm(plane[a] - plane[20 + b]) for a, b in itertools.product(range(20), repeat=2) if a != b
    ]
    assert partners.max() < np.median(others) / 2


class Linear(nn.Module):
    """Tokens that are a linear map of non-overlapping 2 x 2 patches."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Conv2d(3, 5, 2, stride=2)

    def forward(self, images: Tensor, modality: str) -> Tensor:
        return self.map(images).flatten(2).transpose(1, 2)

    def pooled(self, images: Tensor, modality: str) -> Tensor:
        return self(images, modality).mean(1)


def test_grad_cam_is_the_formula() -> None:
    torch.manual_seed(0)
    encoder, images = Linear(), torch.randn(2, 3, 8, 8)
    coefficients = torch.randn(5)
    cam = grad_cam(encoder, images, "optical", lambda features: features @ coefficients)
    tokens = encoder(images, "optical").detach()
    for image, place in itertools.product(range(2), range(16)):
        expected = sum(float(coefficients[d]) / 16 * float(tokens[image, place, d]) for d in range(5))
        assert cam[image, place] == pytest.approx(max(0.0, expected), abs=1e-6)
    assert overlap(cam, cam).tolist() == pytest.approx([1, 1])
    assert overlap(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])).tolist() == [0]


def test_what_all_images_share_moves_no_centred_grad_cam() -> None:
    torch.manual_seed(0)
    encoder, images = Linear(), torch.randn(6, 3, 8, 8)
    score = sum_of_features
    cam = grad_cam(encoder, images, "optical", score, centre=encoder(images, "optical").detach().mean(0))
    summed = encoder(images, "optical").detach().sum(-1)
    torch.testing.assert_close(cam, (summed - summed.mean(0)).relu() / 16, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        encoder.map.bias += 100
    lifted = encoder(images, "optical").detach()
    torch.testing.assert_close(
        grad_cam(encoder, images, "optical", score, centre=lifted.mean(0)), cam, atol=1e-4, rtol=0
    )
    # What the offset does to a map that is not centred: two unrelated images overlap almost fully.
    raw = grad_cam(encoder, images, "optical", score)
    assert overlap(raw, raw.roll(1, 0)).min() > 0.99 and overlap(cam, cam.roll(1, 0)).max() < 0.8
    with torch.no_grad():
        encoder.map.bias -= 200
    emptied = grad_cam(encoder, images, "optical", score)
    assert empty_share(emptied, cam) == 0.5 and overlap(emptied, cam).tolist() == [0] * 6


def sum_of_features(features: Tensor) -> Tensor:
    return features.sum(1)


def test_integrated_gradients_add_up_and_rank_the_bands() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 4, 4)
    attribution = integrated_gradients(lambda x: (x**3).sum(dim=(1, 2, 3)), images, steps=64)
    torch.testing.assert_close(attribution.sum((1, 2, 3)), (images**3).sum((1, 2, 3)), rtol=1e-3, atol=1e-3)
    encoder = Linear()
    with torch.no_grad():
        encoder.map.weight.zero_()
        encoder.map.weight[:, 1] = 1.0
        encoder.map.weight[:, 2] = 0.5
    shares = band_importance(encoder, images, "optical", lambda features: features.sum(1))
    weights = torch.tensor([0.0, 1.0, 0.5]) * images.abs().sum((2, 3))
    torch.testing.assert_close(shares, weights / weights.sum(1, keepdim=True))


def test_attention_received_is_that_of_the_last_block() -> None:
    torch.manual_seed(0)
    encoder = create_encoder("hivit_tiny", img_size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    found = attention_received(encoder, images, "optical")
    assert found.shape == (2, 16) and torch.allclose(found.sum(1), torch.ones(2))
    block = [m for m in encoder.modules() if getattr(m, "attn", None) is not None][-1]
    seen: list[Tensor] = []
    block.attn.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    encoder(images, "optical")
    x, layer = seen[0], block.attn
    width = x.shape[-1] // layer.num_heads
    mean = torch.zeros(2, 16)
    for image, head in itertools.product(range(2), range(layer.num_heads)):
        q, k = (
            (x[image] @ layer.qkv.weight[part : part + width].T + layer.qkv.bias[part : part + width])
            for part in (head * width, x.shape[-1] + head * width)
        )
        mean[image] += (q @ k.T / math.sqrt(width)).softmax(1).mean(0) / layer.num_heads
    torch.testing.assert_close(found, mean.detach(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="needs a ViT or HiViT"):
        attention_received(load_encoder("random:resnet50", img_size=64), images, "optical")


def test_patches_find_their_own_place_and_matches_are_mutual() -> None:
    tokens = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    assert found_in_place(tokens, tokens)[0] == 1.0
    order = torch.tensor([3, 0, 1, 2])
    matches = match_patches(tokens[0, :4], tokens[0, :4][order], count=3)
    assert all(order[second] == first for first, second in zip(matches.first, matches.second, strict=True))
    assert len(matches.first) == 3
    far = found_in_place(tokens, tokens[:, [8, 7, 6, 5, 4, 3, 2, 1, 0]])[0]
    assert far == pytest.approx(1 / 9)  # only the middle one
    # Two images that differ in their order of places: chance is what the other one's tokens give.
    swapped = torch.stack([tokens[0], tokens[0][[8, 7, 6, 5, 4, 3, 2, 1, 0]]])
    assert found_in_place(swapped, swapped) == (1.0, pytest.approx(1 / 9))
    with pytest.raises(ValueError, match="two pairs"):
        found_in_place(tokens[:1], tokens[:1])


def test_tokens_that_say_only_where_they_are_find_by_chance() -> None:
    torch.manual_seed(0)
    places, noise = torch.randn(16, 64), 0.1
    optical, sar = (places + 5 + noise * torch.randn(40, 16, 64) for _ in range(2))
    raw, raw_chance = found_in_place(optical - optical.mean((0, 1)), sar - sar.mean((0, 1)))
    assert raw == raw_chance == 1.0  # one mean token leaves the places in
    near = sum((min(r, 3 - r, 1) + 2) * (min(c, 3 - c, 1) + 2) for r in range(4) for c in range(4)) / 256
    found = found_in_place(without_place(optical), without_place(sar))
    assert found == (pytest.approx(near, abs=0.05), pytest.approx(near, abs=0.05))
    content = torch.randn(40, 16, 64)
    found = found_in_place(without_place(optical + content), without_place(sar + content))
    assert found[0] == 1.0 and found[1] == pytest.approx(near, abs=0.06)


def test_sets_are_chosen_on_other_pairs_than_they_are_shown_on() -> None:
    torch.manual_seed(0)
    tokens = {name: torch.randn(120, 1, 200) for name in ("optical", "sar")}
    subject = as_subject(Linear(), None, tokens)  # type: ignore[arg-type]
    assert subject.spent == 60
    alignment = dimension_alignment(*subject.both())
    means = [float(alignment[subject.sets[name]].mean()) for name in ("common", "unique")]
    assert means[0] == pytest.approx(means[1], abs=0.1)  # noise has no common dimensions
    chosen = dimension_alignment(*(values[:60, 0] for values in tokens.values()))
    assert chosen[subject.sets["common"]].max() < chosen[subject.sets["unique"]].min()


def test_a_trained_split_is_that_of_the_projected_embedding() -> None:
    torch.manual_seed(0)
    projectors = {name: nn.Linear(5, 8, bias=False) for name in ("optical", "sar")}
    tokens = {name: torch.randn(10, 4, 5) for name in projectors}
    projection = Projection(projectors=projectors, common_share=0.75)
    subject = as_subject(Linear(), None, tokens, projection)  # type: ignore[arg-type]
    assert subject.spent == 0
    assert subject.sets["common"].tolist() == [0, 1, 2, 3, 4, 5] and subject.sets["unique"].tolist() == [6, 7]
    pooled = tokens["sar"].mean(1)
    embedded = pooled @ projectors["sar"].weight.T
    expected = ((embedded - embedded.mean(0)) / embedded.std(0))[:, 6:].mean(1)
    torch.testing.assert_close(subject.scores("sar")["unique"](pooled), expected)


def test_attention_of_swin_is_drawn_where_one_window_is_the_image() -> None:
    torch.manual_seed(0)
    encoder = create_encoder("swin_tiny", img_size=128).eval()
    layer = encoder.layers[-1].blocks[-1].attn  # type: ignore[index,union-attr]
    nn.init.normal_(layer.relative_position_bias_table)
    images = torch.randn(2, 3, 128, 128)
    found = attention_received(encoder, images, "optical")
    weights: list[Tensor] = []
    layer.fused_attn = False
    layer.softmax.register_forward_hook(lambda module, inputs, output: weights.append(output))
    encoder(images, "optical")
    torch.testing.assert_close(found, weights[0].mean(dim=(1, 2)).detach())
    with pytest.raises(NotInThisEncoder, match="windows of 16 tokens, not at the 4"):
        attention_received(encoder, torch.randn(2, 3, 64, 64), "optical")


def save_side(path: Path, modality: str, channels: int) -> None:
    encoder = create_encoder("hivit_tiny", img_size=32, channels={modality: channels})
    spec = InputSpec(channels=channels, mean=[0.0] * channels, std=[1.0] * channels, scaling="uint8", size=32)
    described = EncoderMetadata(
        arch="hivit_tiny", arch_kwargs=encoder.arch_kwargs, inputs={modality: spec}, method="x", steps=1
    )
    save_encoder(path, encoder, described)


def test_a_run_with_a_file_a_modality_is_one_encoder(tmp_path: Path) -> None:
    for modality, channels in (("optical", 3), ("sar", 1)):
        save_side(tmp_path / f"{modality}.safetensors", modality, channels)
    pair = load_run_encoder(tmp_path)
    assert isinstance(pair, EncoderPair) and pair.modalities == ("optical", "sar")
    single = load_encoder(tmp_path / "sar.safetensors")
    images = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(pair(images, "sar"), single(images, "sar"))
    for modality, channels in (("optical", 3), ("sar", 1)):
        images = torch.randn(2, channels, 32, 32)
        own = attention_received(load_encoder(tmp_path / f"{modality}.safetensors"), images, modality)
        torch.testing.assert_close(attention_received(pair, images, modality), own)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match="pretrain first"):
        load_run_encoder(empty)


HEADINGS = (
    "Dimensions one by one",
    "Where the features come from",
    "Which bands",
    "What the last layer attends to",
    "Feature correspondence",
)


def explained(tmp_path: Path, target: str, *words: str) -> str:
    index = toy.make_index(tmp_path / "index")
    out = tmp_path / "page"
    given = ["analyze", target, "--data.index", str(index), "--count", "6", "--no-map", "--out", str(out)]
    assert main([*given, *words]) == 0
    return (out / "report.html").read_text()


def test_analyze_explains_a_run_of_two_encoders_by_what_it_trained(tmp_path: Path) -> None:
    config = DeCURConfig(
        encoder=EncoderConfig(arch="hivit_tiny", img_size=32, channels={"optical": 3, "sar": 1}),
        projector=ProjectorConfig(dims=[16, 8]),
        common=0.75,
    )
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(
        yaml.safe_dump({"method": to_dict(config), "output_dir": str(run), "data": {"index": "none"}})
    )
    method = DeCUR(config)
    torch.save({"method": method.state_dict()}, run / "last.pt")
    for modality, channels in (("optical", 3), ("sar", 1)):
        save_side(run / f"encoder_{modality}.safetensors", modality, channels)
    page = explained(tmp_path, str(run), "--size", "32", "--explain", "all")
    assert all(heading in page for heading in HEADINGS) and "Not drawn" not in page
    assert "the first 6 of 8 projected dimensions, which training aligned" in page


def test_all_says_what_an_encoder_lacks_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanations, "MOST_DIMENSIONS", 16)
    page = explained(tmp_path, "random:resnet50", "--size", "64", "--explain", "all")
    assert all(heading in page for heading in HEADINGS)
    assert page.count("Not drawn") == 1 and "needs a ViT or HiViT" in page
    assert "a point is a dimension, 16 of 2048, described" in page


def test_an_encoder_of_one_modality_is_explained_by_what_it_sees(tmp_path: Path) -> None:
    save_side(tmp_path / "sar.safetensors", "sar", 1)
    page = explained(tmp_path, str(tmp_path / "sar.safetensors"), "--explain", "all")
    assert "The encoder takes SAR images only" in page and page.count("Not drawn") == 2
    assert "of the mirrored image at most one patch" in page
    assert "<th>all</th>" in page and "Alignment of patches" not in page
    single = load_run_encoder(tmp_path / "sar.safetensors")
    with pytest.raises(ValueError, match="takes no optical images"):
        encode_pairs(single, read_pairs(open_index([tmp_path / "index"], None), 4, 32))


def test_images_without_partners_are_explained_by_themselves(tmp_path: Path) -> None:
    labelled = make_labelled(tmp_path / "labelled", sides=["optical"])
    words = ["analyze", "random:hivit_tiny", "--data.index", str(labelled), "--size", "48", "--count", "6"]
    assert main([*words, "--explain", "all", "--out", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "report.html").read_text()
    assert "6 images of" in page and "There are no pairs among them: optical images only" in page
    assert page.count("Not drawn: there are no SAR images the encoder takes") == 2
    assert "of the mirrored image at most one patch" in page
    assert "mean and deviation over 6 images" in page
    save_side(tmp_path / "sar.safetensors", "sar", 1)
    with pytest.raises(ValueError, match="holds 0 sar images, and at least two are needed"):
        read_for(load_encoder(tmp_path / "sar.safetensors"), open_index([labelled], None), 4, 32)


def test_the_partner_in_a_mirrored_image_is_known() -> None:
    torch.manual_seed(0)
    encoder, images = Linear(), torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        encoder.map.weight.copy_((encoder.map.weight + encoder.map.weight.flip(-1)) / 2)
        tokens, mirrored = encoder(images, "optical"), encoder(images.flip(-1), "optical")
    torch.testing.assert_close(mirror_grid(mirrored), tokens)
    assert found_in_place(tokens, mirror_grid(mirrored), reach=0)[0] == 1.0
    assert found_in_place(tokens, mirrored, reach=0)[0] < 0.5
    with pytest.raises(ValueError, match="no square grid"):
        mirror_grid(torch.zeros(1, 6, 2))


def test_analyze_explains_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = toy.make_index(tmp_path / "index")
    words = ["analyze", "random:hivit_tiny", "--data.index", str(index), "--size", "32", "--count", "6"]
    assert main([*words, "--no-map", "--explain", "all", "--out", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "report.html").read_text()
    assert all(heading in page for heading in HEADINGS)
    assert main([*words, "--no-map", "--explain", "bands", "--out", str(tmp_path / "few")]) == 0
    assert "Feature correspondence" not in (tmp_path / "few" / "report.html").read_text()
    words[1], words[words.index("32")] = "random:resnet50", "96"
    assert main([*words, "--no-map", "--explain", "attention", "--out", str(tmp_path / "none")]) == 1
    assert "needs a ViT or HiViT" in capsys.readouterr().err
