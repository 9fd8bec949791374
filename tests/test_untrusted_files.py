"""A checkpoint from outside may run nothing here:
none of its own code, and no pickle of its weights or adapters.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

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
    """A model from the hub runs its own code here, or its user is asked on the terminal whether it
    may (yes is typed fast).
    """
    ran = folder.parent / "ran"
    (folder / "theirs.py").write_text(f"open({str(ran)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "theirs",
        "auto_map": {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {
        "tokenizer_class": "Theirs",
        "auto_map": {"AutoTokenizer": ["theirs.Theirs", None]},
    }
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
