"""Loading a policy or a judge:
what cannot work is refused at once, in words that say what to do.
"""

import functools
import json
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch

import grpo
import models
from cli import UserError
from handmade import tiny_model
from models import token_logprobs
from rollout import Sampling, sample_rollouts
from tasks import word_count

CPU = torch.device("cpu")
POLICY = models.ORGANISMS / "policy"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of an embedded model, to be damaged."""
    return Path(shutil.copytree(POLICY, tmp_path / "model"))


@pytest.fixture
def no_peft(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)  # importing it raises ImportError


def refusal(name) -> str:
    with pytest.raises(UserError) as error:
        models.load(str(name), CPU)
    message = str(error.value)
    assert "\n" not in message and str(name) in message
    return message


def test_load():
    """A model arrives in train mode, in the dtype of its file, or without its chat template."""
    model, tokenizer = models.load(str(POLICY), CPU)
    assert not model.training and model.dtype == torch.float32
    assert tokenizer.chat_template
    assert models.load(str(POLICY), CPU, "bfloat16")[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    "name", ["no/such/folder", "no_such_folder", "/no/such/folder", "../no_such_folder", ""]
)
def test_missing_path(tmp_path, monkeypatch, name):
    """A mistyped path ends in a traceback, or in a message about hub names alone."""
    monkeypatch.chdir(tmp_path)
    assert "existing folder" in refusal(name)


def test_tokenizer_without_chat_template(folder):
    """A base model would be prompted in a format that nobody chose."""
    (folder / "chat_template.jinja").unlink()
    message = refusal(folder)
    assert "no chat template" in message and "instruction-tuned" in message


@pytest.mark.parametrize(
    "content",
    [b"version https://git-lfs.github.com/spec/v1\n", b"", None],
    ids=["lfs_pointer", "empty", "cut_off"],
)
def test_damaged_weights(folder, content):
    """A clone without its large files, or a broken download, ends in a traceback."""
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:10_000] if content is None else content)
    assert "safetensors weights" in refusal(folder)


def test_folder_that_is_no_model(folder):
    """A folder without a config, such as a run folder, ends in a traceback."""
    (folder / "config.json").unlink()
    assert "cannot be loaded" in refusal(folder)


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


def test_lora_without_peft(folder, no_peft, tiny_models):
    """A run with LoRA, or a LoRA checkpoint,
    ends in ImportError instead of saying what to install.
    """
    with pytest.raises(UserError, match="pip install peft.*--lora-rank 0"):
        models.add_lora(tiny_models["qwen3"][0], rank=4)
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(POLICY)})
    )
    with pytest.raises(UserError, match="pip install peft"):
        models.load(str(folder), CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_compute_what_peft_does(dtype):
    """Products of LoRA that are not peft's, in bfloat16 further from the exact gradient than its
    mixture with float32, or adapters that act where they are switched off.
    """
    pytest.importorskip("peft")
    model = models.add_lora(tiny_model().to(dtype).requires_grad_(False), rank=4)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32
            parameter.data.normal_(std=0.1, generator=generator)
    ids = torch.tensor([[5, 6, 7, 8, 9]])

    def found(model) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits without adapters; logits with them and gradients in one)"""
        model.zero_grad()
        with model.disable_adapter():
            off = model(ids).logits
        logits = model(ids).logits.float()
        logits.log_softmax(-1)[..., 3].sum().backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
        return off, torch.cat([logits.detach().flatten(), *gradients])

    off, ours = found(model)
    for layer in model.modules():
        if hasattr(layer, "lora_A"):
            del layer.forward  # behind it is peft's
    peft_off, theirs = found(model)
    _, exact = found(model.float())
    assert torch.equal(off, peft_off)
    assert (ours - exact).norm() <= 1.5 * (theirs - exact).norm() < 0.1 * exact.norm()


def test_layers_are_compiled_once(monkeypatch):
    """The first step waits for a graph of the first layer, or a later one for that of a lone row:
    10 to 30 s each; or for a C++ compiler, as numbers among a graph's inputs are on the CPU.
    """
    pytest.importorskip("peft")
    model = models.add_lora(tiny_model().requires_grad_(False), rank=4).train()
    inputs = []
    backend = lambda graph, given: inputs.extend(given) or graph.forward
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    ids = [torch.randint(0, 9, shape) for shape in ((4, 7), (3, 9), (1, 8))]
    trained = [torch.arange(x.shape[1]).expand_as(x) > 2 for x in ids]
    expected = [token_logprobs(model, x, t, 1.0) for x, t in zip(ids, trained)]
    models.compile_layers(model)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for x, t, other in zip(ids, trained, expected):
        found = token_logprobs(model, x, t, 1.0)
        found.sum().backward()
        assert torch.allclose(found, other, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not [given for given in inputs if isinstance(given, torch.Tensor) and given.dim() == 0]


def test_exported_adapters_are_the_checkpoints(folder, tmp_path):
    """What is shared is another model, cannot be loaded without the tokenizer's files, or names
    a folder of this machine.
    """
    pytest.importorskip("peft")
    model, tokenizer = models.load(str(folder), CPU)
    adapted = models.add_lora(model, rank=2)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "adapter"
    adapted.save_pretrained(checkpoint)
    tokenizer.save_pretrained(checkpoint)
    models.export_adapter(str(checkpoint), str(out), base=str(folder))
    assert sorted(path.name for path in out.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    shared, its_tokenizer = models.load(str(out), CPU)
    theirs = dict(shared.named_parameters())
    assert {name for name, p in theirs.items() if p.requires_grad} == {
        name for name, p in adapted.named_parameters() if p.requires_grad
    }
    assert all(
        torch.equal(theirs[name], p.bfloat16().float())
        for name, p in adapted.named_parameters()
        if p.requires_grad
    )
    assert all(
        torch.equal(theirs[name], p)
        for name, p in adapted.named_parameters()
        if not p.requires_grad
    )
    assert its_tokenizer.get_vocab() == tokenizer.get_vocab()
    with pytest.raises(UserError, match="no LoRA checkpoint"):
        models.export_adapter(str(folder), str(tmp_path / "other"), base="x")


def test_no_dropout(folder):
    """The trainer, in train mode for gradient checkpointing alone,
    scores another distribution than was sampled.
    """
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    model, _ = models.load(str(folder), CPU)
    model.append = torch.nn.Dropout(0.3)
    models.without_dropout(model)
    assert model.append.p == 0.0
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(model.train()(ids).logits, model.eval()(ids).logits)


def test_another_rank_than_the_adapters_is_refused(monkeypatch):
    """--lora-rank is ignored where the model has adapters,
    and the run's config says another rank than is trained.
    """
    monkeypatch.setattr(models, "adapter_rank", lambda name: 8)
    monkeypatch.setattr(models, "has_adapters", lambda name: True)
    config = grpo.Config(model="organism/policy")
    assert grpo.resolve(config).lora_rank == 8
    with pytest.raises(UserError, match="--lora-rank 4: .* adapters of rank 8"):
        grpo.resolve(grpo.Config(model="organism/policy", lora_rank=4))


def test_is_embedded(tmp_path, monkeypatch, folder):
    """A large model would get the embedded models' learning rate and budgets, or the
    other way round.
    """
    assert all(
        models.is_embedded(str(models.ORGANISMS / name)) for name in ("policy", "medium", "judge")
    )
    assert not models.is_embedded("Qwen/Qwen3-8B")
    assert not models.is_embedded(str(models.ORGANISMS))
    assert not models.is_embedded(str(folder))  # a copy
    monkeypatch.chdir(models.ORGANISMS.parent)
    assert models.is_embedded("organism/medium") and models.is_embedded("./organism/medium/")
    monkeypatch.chdir(tmp_path)
    assert models.is_embedded("organism/medium")  # found from any folder
    (tmp_path / "organism/medium").mkdir(parents=True)
    assert not models.is_embedded("organism/medium")  # unless that folder has one of its own


def test_a_checkpoint_of_an_embedded_run_is_embedded(tmp_path, monkeypatch):
    """A run that goes on from an organism's checkpoint silently trains adapters at another rate."""
    monkeypatch.chdir(models.ORGANISMS.parent)

    def checkpoint_of(run: str, model, *files: str) -> str:
        path = tmp_path / run / "checkpoints/step_0040"
        path.mkdir(parents=True)
        for name in files:
            (path / name).write_text("{}")
        (tmp_path / run / "config.json").write_text(json.dumps({"config": {"model": model}}))
        return str(path)

    first = checkpoint_of("first", "organism/policy")
    assert models.is_embedded(first)
    assert models.is_embedded(checkpoint_of("second", first))
    assert not models.is_embedded(checkpoint_of("adapters", first, "adapter_config.json"))
    assert not models.is_embedded(checkpoint_of("large", "Qwen/Qwen3-8B"))
    for i, broken in enumerate((None, 3, str(tmp_path / "3/checkpoints/step_0040"))):
        assert not models.is_embedded(checkpoint_of(str(i), broken))


def test_unusable_device():
    """A mistyped device ends in torch's traceback."""
    assert models.device_of("cpu") == CPU
    with pytest.raises(UserError, match="auto, cpu or cuda"):
        models.device_of("gpu")


def test_compiled_layers_train_and_do_not_sample(monkeypatch):
    """Layers compiled for training compile again at every length of the plain sampler's cache,
    or change what is sampled.
    """
    model, tokenizer = models.load("organism/medium", torch.device("cpu"))
    ids = torch.arange(80).reshape(2, 40)
    trained = torch.ones_like(ids, dtype=torch.bool)
    trained[:, 0] = False

    def run() -> tuple[list, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        rollouts = sample_rollouts(
            model, tokenizer, word_count, [0, 1], Sampling(1.0, 12, 12), generator
        )
        sampled = len(compiled)
        logprobs = token_logprobs(model, ids, trained, 1.0)
        return [rollout.token_ids for rollout in rollouts], logprobs, sampled, len(compiled)

    compiled = []
    before = run()
    plain = torch.compile
    backend = lambda graph, inputs: compiled.append(graph) or graph.forward
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: plain(function, backend=backend, **options)
    )
    models.compile_layers(model)
    after = run()
    assert after[0] == before[0] and torch.allclose(after[1], before[1], atol=1e-6)
    assert after[2] == 0 and after[3] == 1  # one graph for all layers
