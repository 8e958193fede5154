"""What was kept from before, damaged: a cache is ignored with a line, a saved conversation is refused with one."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recycle_onnx
from recycle_onnx.bundle import Bundle
from recycle_onnx.cache import VerifiedFiles, cache_folder
from recycle_onnx.errors import InputError
from recycle_onnx.runtime import tensor_file
from recycle_onnx.runtime.decoding.calibration import MachineCalibration, calibration_file
from recycle_onnx.runtime.model import Model

BROKEN = ["[" * 100_000, "{", "[1]", "7", '{"a": ' + "1" * 5000 + "}", "\udcff\udcfe", None]


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECYCLE_ONNX_CACHE", str(tmp_path / "cache"))


def put(path: Path, content: str | None) -> None:
    """Write a text, or make a folder of that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_text(content, encoding="utf-8", errors="surrogateescape")


@pytest.mark.parametrize("content", BROKEN)
def test_damaged_caches_stop_no_load(content: str | None, tiny_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = Bundle.open(tiny_bundle)
    (cache_folder() / "verified.json").unlink()
    names = ["verified.json", f"equal_runs/{bundle.digest[:32]}-cpu-default.json"]
    for path in [*(cache_folder() / name for name in names), calibration_file(bundle, "cpu", None)]:
        put(path, content)
    model = recycle_onnx.load(tiny_bundle)
    assert model.calibration is None
    assert len(model.generate("the cat", max_new_tokens=3).tokens) > 0
    assert "verified.json" in caplog.text
    assert "calibration" in caplog.text


def test_a_cache_that_holds_half_a_character_stops_no_load(tiny_bundle: Path) -> None:
    Bundle.open(tiny_bundle)
    path = cache_folder() / "verified.json"
    path.write_text(json.dumps({"\ud800": "\udfff", **json.loads(path.read_text())}))
    (tiny_bundle / "config.json").touch()  # so that the list has to be written again
    recycle_onnx.load(tiny_bundle).close()
    assert len(json.loads(path.read_text())) > 1


GOOD: dict[str, Any] = {"step_ms": {"full_1": 2.0, "recycle_1": 0.5, "recycle_2": 0.6}, "acceptance": {"module": [0.5]}}
WRONG_CALIBRATIONS: dict[str, dict[str, Any]] = {
    "steps in a list": {"step_ms": [1.0]},
    "a step in a text": {"step_ms": {"full_1": "2"}},
    "an unknown step": {"step_ms": {"full_everything": 2.0}},
    "endless": {"step_ms": {"full_1": float("inf")}},
    "no number": {"step_ms": {"full_1": float("nan")}},
    "rates in a list": {"acceptance": [0.5]},
    "one rate": {"acceptance": {"module": 0.5}},
    "rates in a text": {"acceptance": {"module": "0.5"}},
    "a rate of 2": {"acceptance": {"module": [2.0]}},
    "a processor that is none": {"processor": 7},
}


@pytest.mark.parametrize("name", WRONG_CALIBRATIONS)
def test_a_calibration_of_wrong_kinds_is_ignored(
    name: str, tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = Bundle.open(tiny_bundle)
    path = MachineCalibration.of_this_machine(**GOOD).save(bundle, "cpu", None)
    assert MachineCalibration.find(bundle, "cpu", None) is not None
    path.write_text(json.dumps(json.loads(path.read_text()) | WRONG_CALIBRATIONS[name]))
    assert MachineCalibration.find(bundle, "cpu", None) is None
    assert "ignored" in caplog.text


def test_verified_files_of_wrong_kinds_are_hashed_again(tiny_bundle: Path) -> None:
    Bundle.open(tiny_bundle)
    path = cache_folder() / "verified.json"
    path.write_text(json.dumps({name: [1] for name in json.loads(path.read_text())}))
    Bundle.open(tiny_bundle)
    assert all(isinstance(value, str) for value in json.loads(path.read_text()).values())


def test_a_user_without_a_home_has_no_cache(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> None:
        raise KeyError("uid not found")

    for name in ("RECYCLE_ONNX_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    VerifiedFiles.load().save()
    assert len(recycle_onnx.load(tiny_bundle, prepacked=True).generate("the cat", max_new_tokens=3).tokens) > 0
    assert not Path(os.devnull).is_dir()


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return recycle_onnx.load(tiny_bundle)


@pytest.fixture
def saved(model: Model, tmp_path: Path) -> Path:
    conversation = model.conversation(template="plain")
    for _ in conversation.send("the cat", max_new_tokens=4):
        pass
    conversation.save(tmp_path / "saved")
    return tmp_path / "saved"


Change = Callable[[dict[str, np.ndarray], dict[str, str]], object]
TOKENS, KEY = "full.tokens", "full.past_key_values.0.key"
FORGED: dict[str, Change] = {
    "no tokens": lambda arrays, about: arrays.pop(TOKENS),
    "no keys": lambda arrays, about: arrays.pop(KEY),
    "fewer rows": lambda arrays, about: arrays.update({KEY: arrays[KEY][:, :-1]}),
    "other heads": lambda arrays, about: arrays.update({KEY: arrays[KEY][:1, :, :4]}),
    "half precision": lambda arrays, about: arrays.update({KEY: arrays[KEY].astype(np.float16)}),
    "tokens that are floats": lambda arrays, about: arrays.update({TOKENS: arrays[TOKENS].astype(np.float32)}),
    "unknown tokens": lambda arrays, about: arrays.update({TOKENS: arrays[TOKENS] + 10**6}),
    "negative tokens": lambda arrays, about: arrays.update({TOKENS: arrays[TOKENS] - 10**6}),
    "tokens in two rows": lambda arrays, about: arrays.update({TOKENS: arrays[TOKENS][None]}),
    "states of another width": lambda arrays, about: arrays.update({"states": np.zeros((1, 3), np.float32)}),
    "too many states": lambda arrays, about: arrays.update({"states": np.zeros((999, 32), np.float32)}),
    "no messages": lambda arrays, about: about.pop("messages"),
    "messages that are none": lambda arrays, about: about.update(messages="7"),
    "messages without end": lambda arrays, about: about.update(messages="[" * 100_000),
    "variables in a list": lambda arrays, about: about.update(template_variables="[1]"),
    "no bundle": lambda arrays, about: about.pop("bundle"),
    "another way out": lambda arrays, about: about.update(overflow="explode"),
    "a template that is none": lambda arrays, about: about.update(template="nowhere"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_conversation_that_says_other_things_is_refused(name: str, saved: Path, model: Model) -> None:
    arrays, about = tensor_file.read(saved)
    FORGED[name](arrays, about)
    tensor_file.write(saved, arrays, about)
    with pytest.raises(InputError):
        model.load_conversation(saved)


def with_header(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


DAMAGED_FILES = {
    "nothing": b"",
    "a header without end": with_header(b"[" * 100_000),
    "a header of 2^63 bytes": (1 << 63).to_bytes(8, "little"),
    "a list": with_header(b"[]"),
    "a number": with_header(b"7"),
    "metadata that is a number": with_header(b'{"__metadata__": {"format": 7}}'),
    "sizes beyond all": with_header(
        b'{"__metadata__": {}, "a": {"dtype": "F32", "shape": [' + b"9" * 40 + b'], "data_offsets": [0, 0]}}'
    ),
    "half a character": with_header(
        b'{"__metadata__": {}, "\\ud800": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}'
    ),
    "a type that is a list": with_header(
        b'{"__metadata__": {}, "a": {"dtype": [], "shape": [0], "data_offsets": [0, 0]}}'
    ),
}


@pytest.mark.parametrize("name", DAMAGED_FILES)
def test_a_file_that_is_no_conversation_is_refused(name: str, model: Model, tmp_path: Path) -> None:
    (tmp_path / "saved").write_bytes(DAMAGED_FILES[name])
    with pytest.raises(InputError, match="damaged"):
        model.load_conversation(tmp_path / "saved")


def test_what_is_no_file_is_no_conversation(model: Model, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "device"):
        with pytest.raises(InputError, match="expected a regular file"):
            model.load_conversation(path)
