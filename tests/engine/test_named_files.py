import dataclasses
import hashlib
import json
from pathlib import Path

from codemae.engine.named_files import initial_weights, named_files, without_initial_weights
from codemae.engine.settings import PretrainConfig
from codemae.methods.codemae import CoDeMAEConfig, OKDConfig
from codemae.models.factory import EncoderConfig
from codemae.models.teacher import TeacherConfig


def config(init: object = "", weights: object = None, vault: object = None) -> PretrainConfig:
    teacher = TeacherConfig(weights=weights and str(weights), vault=vault and str(vault))
    method = CoDeMAEConfig(encoder=EncoderConfig(init=str(init)), okd=OKDConfig(teacher=teacher))
    return PretrainConfig(output_dir="x", method=method)


def test_files_are_known_by_content_and_vaults_by_key(tmp_path: Path) -> None:
    (tmp_path / "init.pth").write_bytes(b"first")
    (tmp_path / "teacher.pth").write_bytes(b"second")
    (tmp_path / "vault").mkdir()
    (tmp_path / "vault" / "vault.json").write_text(json.dumps({"key": "0123abcd"}))
    found = named_files(config(tmp_path / "init.pth", tmp_path / "teacher.pth", tmp_path / "vault"))
    assert found == {
        "method.encoder.init": hashlib.sha256(b"first").hexdigest(),
        "method.okd.teacher.weights": hashlib.sha256(b"second").hexdigest(),
        "method.okd.teacher.vault": "0123abcd",
    }


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    assert named_files(config()) == {}
    assert named_files(config("itpn_base_pixel", tmp_path / "gone.pth", tmp_path / "nowhere")) == {}
    assert named_files(config(vault=tmp_path)) == {}


def test_a_method_without_its_initial_weights_is_otherwise_the_same() -> None:
    given = config("itpn_base_pixel")
    assert initial_weights(given) == "itpn_base_pixel"
    cleared = without_initial_weights(given.method)
    assert cleared == config().method
    assert without_initial_weights(cleared) is cleared
    assert given.method.encoder.init == "itpn_base_pixel"
    assert initial_weights(dataclasses.replace(given, method=object())) == ""
