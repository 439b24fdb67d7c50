import argparse
import os
import pickle
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ddp_helpers import _context
from torch import nn

from codemae.checkpoint import (
    CheckpointError,
    EncoderMetadata,
    InputSpec,
    WeightsError,
    has_run_state,
    load_run_state,
    load_strictly,
    read_encoder,
    read_weights,
    save_encoder,
    save_run_state,
)


def metadata() -> EncoderMetadata:
    spec = InputSpec(channels=3, mean=[0.1, 0.2, 0.3], std=[0.5, 0.5, 0.5], scaling="uint8 / 255", size=64)
    return EncoderMetadata(
        arch="hivit_tiny",
        arch_kwargs={"img_size": 64, "channels": {"optical": 3}},
        inputs={"optical": spec},
        method="codemae",
        steps=7,
        source_commit="abc",
        licence_notes=["DINOv3 licence"],
    )


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_an_encoder_file_gives_back_weights_and_metadata(tmp_path):
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, net(), metadata())
    state, read = read_encoder(path)
    assert read == metadata()
    assert state.keys() == net().state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in net().state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ["encoder.safetensors"]


def test_tied_weights_can_be_saved(tmp_path):
    weight = torch.ones(2, 2)
    save_encoder(tmp_path / "e.safetensors", {"a": weight, "b": weight.T}, metadata())
    assert read_encoder(tmp_path / "e.safetensors")[0].keys() == {"a", "b"}


def test_an_encoder_file_without_a_description_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(WeightsError, match="codemae convert"):
        read_encoder(tmp_path / "plain.safetensors")


@pytest.mark.parametrize("wrap", [None, "model", "state_dict", "module"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrapped_and_prefixed_weights_are_read(tmp_path, wrap, prefix):
    weights = {f"{prefix}{key}": value for key, value in net().state_dict().items()}
    content = weights if wrap is None else {wrap: weights, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").keys() == net().state_dict().keys()


def test_numpy_numbers_beside_the_weights_are_no_obstacle(tmp_path):
    torch.save({"model": {"a": torch.ones(1)}, "best": np.float64(0.5)}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth")["a"].item() == 1


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_nothing_runs(tmp_path, zipped):
    path, target = tmp_path / "evil.pth", tmp_path / "made-by-the-pickle"
    content = {"model": {"a": torch.ones(1)}, "extra": _Bomb(target)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="could run code"):
        read_weights(path)
    with pytest.raises(WeightsError, match="could run code"):
        load_run_state(path)
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists(), "the pickle was harmless, so this test showed nothing"


def test_a_bare_pickle_is_refused_and_nothing_runs(tmp_path):
    path, target = tmp_path / "evil.pkl", tmp_path / "made"
    path.write_bytes(pickle.dumps(_Bomb(target), protocol=2))
    with pytest.raises(WeightsError):
        read_weights(path)
    assert not target.exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_cut_off_file_is_named_as_such(tmp_path, name, share):
    path = tmp_path / name
    if name.endswith("pth"):
        torch.save({"model": net().state_dict()}, path)
    else:
        save_encoder(path, net(), metadata())
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(WeightsError, match="copy or download it again"):
        read_weights(path)


def test_a_file_without_weights_or_of_a_run_says_what_to_use(tmp_path):
    torch.save({"method": {}, "optimizer": {}, "step": 1}, tmp_path / "last.pt")
    with pytest.raises(WeightsError, match="encoder.safetensors beside it"):
        read_weights(tmp_path / "last.pt")
    torch.save({"epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="no state dict.*epoch"):
        read_weights(tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="no weights file at"):
        read_weights(tmp_path / "absent.pth")


def test_strict_loading_names_every_difference():
    state = net().state_dict()
    del state["0.bias"]
    state["1.extra"] = torch.ones(1)
    state["0.weight"] = torch.ones(4, 5)
    with pytest.raises(WeightsError) as error:
        load_strictly(net(), state)
    message = str(error.value)
    assert "missing: 0.bias" in message
    assert "unexpected: 1.extra" in message
    assert "shape: 0.weight is (4, 5) in the file and (4, 3) in the model" in message


def test_excused_differences_are_reported_and_the_rest_is_loaded():
    state = {key: value + 1 for key, value in net().state_dict().items() if key != "0.bias"}
    state["head.weight"] = torch.ones(1)
    module = net()
    before = module[0].bias.clone()
    report = load_strictly(module, state, allow_missing=[r"0\.bias"], allow_unexpected=[r"head\..*"])
    assert report.missing == ["0.bias"] and report.unexpected == ["head.weight"]
    assert torch.equal(module[0].weight, state["0.weight"])
    assert torch.equal(module[0].bias, before)
    with pytest.raises(WeightsError):
        load_strictly(net(), state, allow_missing=["0"], allow_unexpected=["head"])


def test_the_previous_state_is_kept_and_used_when_the_last_is_damaged(tmp_path):
    save_run_state(tmp_path, {"step": 1, "w": torch.ones(100)})
    save_run_state(tmp_path, {"step": 2, "w": torch.ones(100)})
    assert load_run_state(tmp_path)["step"] == 2
    os.truncate(tmp_path / "last.pt", 200)
    with pytest.warns(UserWarning, match="falling back to previous.pt"):
        assert load_run_state(tmp_path)["step"] == 1
    with pytest.raises(WeightsError):
        load_run_state(tmp_path / "last.pt")
    os.truncate(tmp_path / "previous.pt", 200)
    with pytest.raises(WeightsError), pytest.warns(UserWarning):
        load_run_state(tmp_path)


def test_nothing_to_resume_from_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="nothing to resume from"):
        load_run_state(tmp_path)


def _save_forever(folder: str) -> None:
    for step in range(10_000):
        save_run_state(folder, {"step": step, "w": torch.full((200_000,), float(step))})


def test_killed_while_saving_the_folder_always_holds_a_whole_state(tmp_path):
    rng = random.Random(0)
    highest = -1
    for _ in range(6):
        process = _context().Process(target=_save_forever, args=(str(tmp_path),))
        process.start()
        deadline = time.monotonic() + 60
        while not has_run_state(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.15 + 0.2 * rng.random())
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        state = load_run_state(tmp_path)
        assert torch.equal(state["w"], torch.full((200_000,), float(state["step"])))
        highest = max(highest, state["step"])
    assert highest > 0, "killed before anything was saved, so this test showed nothing"


def _save_on_a_full_disk(folder: str) -> str:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    try:
        save_run_state(folder, {"step": 2, "w": torch.ones(1_000_000)})
    except CheckpointError as error:
        return str(error)
    return "it fitted"


def test_a_disk_that_fills_up_while_saving_leaves_the_last_state_whole(tmp_path):
    from ddp_helpers import run_on_ranks

    save_run_state(tmp_path, {"step": 1, "w": torch.ones(10)})
    (message,) = run_on_ranks(_save_on_a_full_disk, str(tmp_path), world_size=1)
    assert "could not write" in message and "free some space" in message
    assert load_run_state(tmp_path)["step"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CheckpointError, match="could not write .*file"):
        save_run_state(tmp_path / "file", {"step": 1})
