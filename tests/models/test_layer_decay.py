import pytest
import torch
from torch import nn

from codemae.cli import main
from codemae.models.factory import create_encoder
from codemae.models.hivit import HiViT
from codemae.models.layer_decay import VARIANTS, LayerDecayError, layer_table, parameter_groups

# hivit_base by hand: entries 0-2 MLP, 3 merge, 4-6 MLP, 7 merge, 8-31 attention.
ATTENTION = range(24)
BY_HAND = {
    "official": ([*range(1, 33)], 32),
    "hivit": ([1, 2, 3, 3, 4, 5, 6, 6, *(7 + n for n in ATTENTION)], 31),
    "itpn": ([1, 2, 3, 3, 4, 5, 6, 6, *(7 + n for n in ATTENTION)], 31),
    "hivit_detection": ([0, 0, 0, 0, 0, 0, 0, 0, *(1 + n for n in ATTENTION)], 25),
}
# Worked out with a pocket calculator: 0.85^32, 0.85^31, 0.85^13 (= (0.85^(13/31))^31) and 0.85^25.
STEM = {"official": 0.005513, "hivit": 0.006486, "itpn": 0.120905, "hivit_detection": 0.017198}
# The last block: 0.85^0, 0.85^1, 0.85^(13/31), 0.85^1.
LAST_BLOCK = {"official": 1.0, "hivit": 0.85, "itpn": 0.934117, "hivit_detection": 0.85}


@pytest.fixture(scope="module")
def base() -> HiViT:
    with torch.device("meta"):
        return create_encoder("hivit_base")


class Model(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(4, 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_table_of_hivit_base_is_the_one_worked_by_hand(base: HiViT, variant: str) -> None:
    ids, top = BY_HAND[variant]
    table = layer_table(base, variant, 0.85)
    assert len(ids) == 32
    assert [line.id for line in table] == [0, *ids, top]
    assert table[0].scale == pytest.approx(STEM[variant], abs=1e-6)
    assert table[-2].scale == pytest.approx(LAST_BLOCK[variant], abs=1e-6)
    assert table[-1].scale == 1.0
    assert [line.kind for line in table[1:-1]].index("attention") == 8
    assert sum(line.parameters for line in table) == sum(p.numel() for p in base.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_gets_the_scale_of_its_layer_and_the_right_weight_decay(
    base: HiViT, variant: str
) -> None:
    ids, top = BY_HAND[variant]
    decay = 0.85 ** (13 / 31) if variant == "itpn" else 0.85
    model = Model(base)
    found = {
        id(parameter): (group["lr_scale"], group["weight_decay"])
        for group in parameter_groups(model, "encoder", variant, 0.85, 0.05)
        for parameter in group["params"]
    }
    assert len(found) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        words = name.split(".")
        if words[0] == "encoder" and words[1] in ("patch_embed", "absolute_pos_embed"):
            number = 0
        else:
            number = ids[int(words[2])] if words[1] == "blocks" else top
        wd = 0.05 if parameter.ndim > 1 and words[-1] != "absolute_pos_embed" else 0.0
        scale, weight_decay = found[id(parameter)]
        assert scale == pytest.approx(decay ** (top - number)), name
        assert weight_decay == wd, name


def test_decay_1_is_one_rate_and_the_only_one_for_other_encoders() -> None:
    model = Model(nn.Linear(3, 4))
    assert {group["lr_scale"] for group in parameter_groups(model, "encoder", "official", 1.0, 0.1)} == {1.0}
    with pytest.raises(LayerDecayError, match="Linear has no layers.*set the layer decay to 1"):
        parameter_groups(model, "encoder", "official", 0.85, 0.1)
    with pytest.raises(LayerDecayError, match="at most 1, got 1.2"):
        parameter_groups(Model(create_encoder("hivit_tiny")), "encoder", "official", 1.2, 0.1)


def test_frozen_parameters_are_left_out() -> None:
    model = Model(create_encoder("hivit_tiny"))
    model.encoder.requires_grad_(False)
    groups = parameter_groups(model, "encoder", "official", 0.85, 0.05)
    assert [p for group in groups for p in group["params"]] == [model.head.bias, model.head.weight]


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layer-decay", "hivit_base", "--variant", "hivit_detection"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (merge,) = (line for line in lines if "blocks.7 " in line)
    assert "merge" in merge and "0.017198" in merge
    (last,) = (line for line in lines if "blocks.31 " in line)
    assert "attention" in last and "24" in last and "0.850000" in last
    assert main(["layer-decay", "hivit_bse"]) == 1
    assert "hivit_base" in capsys.readouterr().err
