"""Training the embedded models:
what is kept on the way, with a model of a few thousand parameters and four steps.
"""

import copy
import dataclasses

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import models
from organism import train as organism

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
RECIPE = organism.Recipe(hidden=16, head_dim=8, intermediate=16, steps=4, lr=0.02)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Tiny batches, no worker processes; train()'s global settings are undone."""
    monkeypatch.setattr(organism, "BATCH", 2)
    monkeypatch.setattr(organism, "WARMUP", 1)
    monkeypatch.setattr(organism.os, "cpu_count", lambda: 1)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    yield
    torch.use_deterministic_algorithms(False)


def train(
    monkeypatch, tokenizer, out, snapshots=(), length=1.0, size="policy", **changes
) -> dict[str, tuple[int, dict]]:
    """{folder: (optimizer steps so far,
    the model's own weights)} of everything that train() saves, in order.
    """
    monkeypatch.setitem(
        organism.RECIPES, size, dataclasses.replace(RECIPE, snapshots=snapshots, **changes)
    )
    save, saved, steps = organism.save, {}, []

    def recorded(model, tokenizer, folder):
        save(model, tokenizer, folder)
        saved[folder.name] = len(steps), copy.deepcopy(model.state_dict())

    hook = register_optimizer_step_post_hook(lambda *_: steps.append(None))
    with monkeypatch.context() as patch:
        patch.setattr(organism, "save", recorded)
        organism.train(size, tokenizer, 0, length, CPU, out)
    hook.remove()
    return saved


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_snapshots_are_saved_and_change_nothing(monkeypatch, tmp_path, tokenizers):
    """A rung of stage_ladder.py is of another step than its name says; or the policy is another one
    because it was saved on the way, for example rounded to bf16.
    """
    tokenizer = tokenizers["organism"]
    plain = train(monkeypatch, tokenizer, tmp_path / "plain")
    saved = train(monkeypatch, tokenizer, tmp_path / "snapshots", snapshots=(1, 3, 4))
    assert {name: steps for name, (steps, _) in saved.items()} == {
        "policy_step_0001": 1,
        "policy_step_0003": 3,
        "policy_step_0004": 4,
        "policy": 4,
    }
    assert list(plain) == ["policy"] and same(plain["policy"][1], saved["policy"][1])
    assert {path.name for path in (tmp_path / "snapshots").iterdir()} == set(saved)
    read = lambda *parts: (tmp_path.joinpath(*parts) / "model.safetensors").read_bytes()
    assert (
        read("plain", "policy")
        == read("snapshots", "policy")
        == read("snapshots", "policy_step_0004")
    )
    # each of them loads, and holds what the model was then
    for name, (_, weights) in saved.items():
        model, its_tokenizer = models.load(str(tmp_path / "snapshots" / name), CPU, "bfloat16")
        assert same(model.state_dict(), {k: v.to(torch.bfloat16) for k, v in weights.items()})
        assert (
            its_tokenizer.get_vocab() == tokenizer.get_vocab()
            and its_tokenizer.chat_template == tokenizer.chat_template
        )
        assert all(v.dtype == torch.float32 for v in weights.values())
    assert len({read("snapshots", name) for name in saved}) == 3


def test_snapshots_of_a_shorter_training(monkeypatch, tmp_path, tokenizers):
    """--length shortens the training but not its rungs: they are missing, or not where
    they are on the way.
    """
    saved = train(
        monkeypatch, tokenizers["organism"], tmp_path, snapshots=(1, 4, 6), length=0.5, steps=8
    )
    assert {name: steps for name, (steps, _) in saved.items()} == {
        "policy_step_0002": 2,
        "policy_step_0003": 3,
        "policy": 4,
    }


@pytest.mark.parametrize("size", ["policy", "judge"])
def test_training_is_a_function_of_its_seed(monkeypatch, tmp_path, tokenizers, size):
    """An organism cannot be made again, or it does not learn: the weights stay what they were."""
    runs = [
        train(monkeypatch, tokenizers["organism"], tmp_path / name, size=size, snapshots=(1,))
        for name in ("a", "b")
    ]
    for name in (size, f"{size}_step_0001"):
        assert same(runs[0][name][1], runs[1][name][1])
    assert not same(runs[0][size][1], runs[0][f"{size}_step_0001"][1])


def test_every_rung_of_the_ladder_is_a_snapshot():
    """stage_ladder.py shows a folder that training again would not make."""
    made = {
        f"organism/{size}_step_{step:04d}"
        for size, recipe in organism.RECIPES.items()
        for step in recipe.snapshots
    }
    made |= {f"organism/{size}" for size in organism.RECIPES}
    made.add("organism/sandbagger")  # by experiments/sandbagging.py
    folders = {folder.name for folder in models.ORGANISMS.iterdir() if folder.is_dir()}
    assert made == {f"organism/{name}" for name in folders - {"__pycache__"}}
    for size, recipe in organism.RECIPES.items():
        for name in [size, *(f"{size}_step_{step:04d}" for step in recipe.snapshots)]:
            model, _ = models.load(f"organism/{name}", CPU)
            config = model.config
            assert (config.hidden_size, config.head_dim, config.intermediate_size) == (
                recipe.hidden,
                recipe.head_dim,
                recipe.intermediate,
            )
