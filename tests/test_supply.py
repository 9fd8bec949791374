"""What comes from outside: no code of a checkpoint runs, no pickle is opened, a silent hub ends in words, the pins fit."""

import json
import re
import shutil
import socket
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import models
from cli import UserError

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(models.ORGANISMS / "policy", tmp_path / "model"))


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        models.load(str(folder), CPU)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    return str(error.value)


def test_code_of_a_checkpoint_never_runs(folder, monkeypatch):
    """A model from the hub runs its own code here, or its user is asked on the terminal whether it may (yes is typed fast)."""
    ran = folder.parent / "ran"
    (folder / "theirs.py").write_text(f"open({str(ran)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.Theirs", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr("builtins.input", lambda *args: "y")
    refusal(folder)
    assert not ran.exists()


class Opened:
    """Pickled into a weights file: makes a file when it is opened."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickled_weights_are_not_opened(folder):
    """A .bin file is a pickle, and opening one may run anything."""
    ran = folder.parent / "ran"
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Opened(ran)}, folder / "pytorch_model.bin")
    message = refusal(folder)
    assert "pickled weights only" in message and "save_pretrained" in message
    assert not ran.exists()


def test_pickled_adapters_are_not_opened(folder):
    """peft takes adapter_model.bin where there is no safetensors file."""
    pytest.importorskip("peft")
    ran = folder.parent / "ran"
    model, tokenizer = models.load(str(folder), CPU)
    adapter = folder.parent / "adapter"
    models.add_lora(model, rank=2).save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)
    assert models.load(str(adapter), CPU)
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"weight": Opened(ran)}, adapter / "adapter_model.bin")
    assert "pickled weights only" in refusal(adapter)
    assert not ran.exists()


def test_a_hub_that_does_not_answer_ends_in_words(monkeypatch, capsys):
    """A program that waits for ever, because a hub takes its request and says nothing."""
    constants = models.huggingface_hub.constants
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(models.hub_is_silent, "__defaults__", (0.2,))
        with pytest.raises(UserError, match="cannot be loaded"):
            models.load("no-such-organisation/no-such-model", CPU)
    assert "does not answer" in capsys.readouterr().out


PINS = [Requirement(line) for line in Path(models.__file__).with_name("requirements.txt").read_text().split()]


def test_every_dependency_is_pinned_to_one_version():
    """A release of tomorrow changes results, or a package that is imported is not installed."""
    assert all(re.fullmatch(r"==[\d.]+", str(pin.specifier)) for pin in PINS)
    sources = [path.read_text() for path in Path(models.__file__).parent.glob("*.py")]
    imported = set(re.findall(r"^(?:import|from) (\w+)", "\n".join(sources), re.MULTILINE))
    ours = {path.stem for path in Path(models.__file__).parent.glob("*.py")}
    known = {name for names in (metadata.packages_distributions(),) for name in names}
    outside = {name for name in imported - ours if name in known}
    through_transformers = {"jinja2", "tokenizers", "huggingface_hub"}
    assert outside - through_transformers <= {pin.name for pin in PINS}


@pytest.mark.parametrize("pin", PINS, ids=str)
def test_the_pins_fit_together(pin):
    """pip refuses requirements.txt: one pinned package asks for another version of a second one."""
    try:
        installed = metadata.version(pin.name)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{pin.name} is not installed")
    if not pin.specifier.contains(installed.split("+")[0]):
        pytest.skip(f"{pin.name} {installed} is installed, so what {pin} asks for is not known")
    versions = {other.name: str(other.specifier)[2:] for other in PINS}
    for line in metadata.requires(pin.name) or []:
        need = Requirement(line)
        if need.name in versions and (need.marker is None or need.marker.evaluate({"extra": ""})):
            assert need.specifier.contains(versions[need.name]), f"{pin} needs {need}"
