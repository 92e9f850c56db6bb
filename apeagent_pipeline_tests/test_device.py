"""Device and number format: who chooses, what is measured and remembered, and what is said when a device is missing."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from apeagent_pipeline import device
from apeagent_pipeline.device import DeviceError, chosen_device, number_format
from apeagent_pipeline.settings import SettingsError, load_settings
from apeagent_pipeline.workers import Workers

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("APEAGENT_HOME", str(tmp_path))
    device._remembered.cache_clear()
    yield tmp_path
    device._remembered.cache_clear()


@pytest.mark.parametrize(
    ("cuda", "mps", "asked", "chosen"),
    [
        (True, True, "auto", "cuda"),
        (False, True, "auto", "mps"),
        (False, False, "auto", "cpu"),
        (True, True, "cpu", "cpu"),
        (True, True, "mps", "mps"),
    ],
)
def test_one_setting_chooses_the_device_for_gan_and_student(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, asked: str, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setenv("APEAGENT_DEVICE", asked)
    assert chosen_device().type == chosen
    assert Workers(together=False).device.type == chosen


@pytest.mark.parametrize("asked", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_an_error_that_names_setting_and_remedy(
    monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setenv("APEAGENT_DEVICE", asked)
    with pytest.raises(DeviceError, match=rf"APEAGENT_DEVICE={asked}: .* only cpu.*APEAGENT_DEVICE=auto"):
        chosen_device()
    monkeypatch.setenv("APEAGENT_DEVICE", "tpu")
    with pytest.raises(SettingsError, match="APEAGENT_DEVICE='tpu'"):
        load_settings()


@pytest.mark.parametrize(
    ("speeds", "chosen"), [((100, 300), "bfloat16"), ((100, 105), "float32"), ((200, 80), "float32")]
)
def test_bfloat16_is_chosen_where_it_was_measured_to_be_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, speeds: tuple[int, int], chosen: str
) -> None:
    operations = 4 * device._ROWS * 576 * 1536 / 1e9
    one_round = [tick for speed in speeds for tick in (0.0, operations / speed)]
    ticks = iter(one_round * (device._ROUNDS + 1))
    monkeypatch.setattr(device, "perf_counter", lambda: next(ticks))
    found = number_format(CPU)
    assert (found.chosen, found.float32, found.bfloat16) == (chosen, *speeds)


def test_the_measured_format_is_remembered_with_processor_and_torch(own_home: Path) -> None:
    found = number_format(CPU)
    assert device.cpu_name() in str(found)
    path = own_home / "cache" / "number_format.json"
    (key,) = known = json.loads(path.read_text())
    assert device.cpu_name() in key and torch.__version__ in key
    # What is remembered is believed by the next process, not measured again.
    other = "float32" if found.chosen == "bfloat16" else "bfloat16"
    path.write_text(json.dumps({key: known[key] | {"chosen": other}}))
    device._remembered.cache_clear()
    assert number_format(CPU).chosen == other


@pytest.mark.parametrize("content", ["", "[]", '{"x": 1}', "garbage"])
def test_a_broken_memory_is_measured_anew(own_home: Path, content: str) -> None:
    path = own_home / "cache" / "number_format.json"
    path.parent.mkdir()
    path.write_text(content)
    assert number_format(CPU).float32 > 0


def test_a_tiny_model_computes_as_the_embedded_student_does() -> None:
    assert number_format(CPU, (64, 128)) == number_format(CPU)


def test_a_processor_held_back_is_measured_as_another_machine(own_home: Path) -> None:
    code = "import torch; from apeagent_pipeline.device import number_format; number_format(torch.device('cpu'))"
    for limit in ({}, {"ONEDNN_MAX_CPU_ISA": "AVX2"}):
        subprocess.run([sys.executable, "-c", code], env={**os.environ, **limit}, check=True)
    assert len(json.loads((own_home / "cache" / "number_format.json").read_text())) == 2
