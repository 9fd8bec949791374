"""LoRA trained on the weights in which the sampler has merged it. A mistake here gives adapters
wrong gradients, which nothing in a run's log would show.
"""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import models
from cli import UserError
from grpo import Config, check_gap, merging_gap
from handmade import (
    SHAPE,
    distance,
    gradients,
    hand_rollout,
    random_rollouts,
    tiny_model,
)
from rollout import Sampling
from runtime import engine, merged

pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("one_thread")


def adapted(kind: str):
    """A model with adapters that are not zero; Qwen2 has biases, Qwen3 normalises heads."""
    torch.manual_seed(0)
    model = {
        "qwen3": tiny_model,
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    }[kind]()
    for name, parameter in model.named_parameters():
        if "bias" in name or "norm" in name:
            parameter.data.normal_(1.0, 0.3)
    model = models.add_lora(model.eval(), rank=4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    return model


def keep_engine(model):
    engine.two_turns(model, [[5, 6, 7], [8, 9]], [[1, 2], [4]], [-1], Sampling(1.0, 4, 4), None)
    return engine.KEPT[model]


def adapters_gradients(model, **options) -> tuple[dict, dict]:
    found, statistics = gradients(model, random_rollouts(6), micro_batch_tokens=60, **options)
    return {name: g for name, g in found.items() if g is not None}, statistics


def without_engine(model, **options) -> tuple[dict, dict]:
    kept = engine.KEPT.pop(model)
    out = adapters_gradients(model, **options)
    engine.KEPT[model] = kept
    return out


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama"])
def test_the_same_gradients(kind):
    """Factors of another projection, a scale, a bias or the weights of an earlier step."""
    model = adapted(kind)
    keep_engine(model)
    for _ in range(2):
        found, statistics = adapters_gradients(model)
        expected, plain = without_engine(model)
        assert len(found) == 2 * 7 * len(model.get_decoder().layers)
        assert distance(found, expected) < 1e-4
        assert statistics == pytest.approx(plain, rel=1e-4)
        with torch.no_grad():  # as the optimizer's step
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter += 0.1 * torch.randn_like(parameter)
    assert model in merged.NETWORKS


def test_where_the_model_itself_is_trained(monkeypatch):
    """Without an engine, with a KL term, adapters switched off or of another kind, or activations
    recomputed, what is trained has to be the model.
    """
    model = adapted("qwen3")

    def network():
        with merged.merged_adapters(model) as out:
            return out

    assert network() is model
    keep_engine(model)
    assert network() is not model
    with model.disable_adapter():
        assert network() is model
    assert network() is not model
    models.recompute_activations(model)
    assert network() is model
    model.gradient_checkpointing_disable()
    assert network() is not model
    found, _ = adapters_gradients(model, reference=model, kl_coef=0.3)
    assert distance(found, without_engine(model, reference=model, kl_coef=0.3)[0]) < 1e-6
    model.add_adapter("other", model.peft_config["default"])  # its gradients would be the first's
    assert network() is model
    model.delete_adapter("other")
    assert network() is not model
    layer = model.get_decoder().layers[1].mlp.up_proj
    monkeypatch.setattr(layer, "forward", type(layer).forward.__get__(layer))  # as DoRA's
    assert network() is model


def test_an_engine_made_with_adapters_off(monkeypatch):
    """Its weights lack them, and some are the model's own, which must not be written to."""
    model = adapted("llama")
    with model.disable_adapter():
        keep_engine(model)
    before = [parameter.clone() for parameter in model.parameters()]
    for _ in range(2):  # the second time nothing has changed since the first
        found, _ = adapters_gradients(model)
        assert distance(found, without_engine(model)[0]) < 1e-6
    assert all(map(torch.equal, before, model.parameters()))


def test_memory_runs_out_while_weights_are_merged(monkeypatch):
    """The next attempt trains on the weights of an earlier step, or on some of both."""
    model, renew = adapted("qwen3"), engine.Weights.renew
    keep_engine(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.1

    def runs_out(*args):
        monkeypatch.setattr(engine.Weights, "renew", renew)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(engine.Weights, "renew", runs_out)
    with pytest.raises(torch.OutOfMemoryError):
        adapters_gradients(model)
    assert distance(adapters_gradients(model)[0], without_engine(model)[0]) < 1e-4


def test_other_parameters_are_trained_too():
    """Adapters of the head, or biases, which the network does not train, stay as they are."""
    torch.manual_seed(0)
    for options in ({"target_modules": [*models.LORA_TARGETS, "lm_head"]}, {"bias": "all"}):
        options = {"target_modules": models.LORA_TARGETS} | options
        base = LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True)).eval()
        adapters = models.peft().LoraConfig(r=4, task_type="CAUSAL_LM", **options)
        model = models.plain_adapters(models.peft().get_peft_model(base, adapters)).eval()
        keep_engine(model)
        found, _ = adapters_gradients(model)
        assert found.keys() == without_engine(model)[0].keys()


def test_an_engine_that_goes_is_gone():
    """The network keeps its weights, a copy of the model's, while the next one is made."""
    model = adapted("qwen2")
    keep_engine(model)
    adapters_gradients(model)
    parts = [m for m in merged.NETWORKS[model].modules() if isinstance(m, merged.Adapted)]
    assert parts and all(part.weight is None for part in parts)


def test_layers_that_are_not_compiled():
    """The network is compiled all the same, as some forwards are wrapped by themselves."""
    model = adapted("llama")
    keep_engine(model)
    adapters_gradients(model)
    assert not models.are_compiled(model) and not models.are_compiled(merged.NETWORKS[model])
    models.compile_layers(model)
    assert models.are_compiled(model)


def test_a_wrong_merge_ends_a_run(monkeypatch):
    """Sampler and network share the merged weights, so their gap stays 0 whatever these are."""
    model = adapted("qwen3")
    config = Config(temperature=1.0, dtype="float32")

    def gap() -> float:
        engine.KEPT.clear()
        arguments = [[5, 6, 7], [8, 9]], [[1, 2], [4]], [-1], Sampling(1.0, 4, 4), None
        rollouts = [
            hand_rollout([prompt, answer[0], joint, confession[0]], [answer[1], confession[1]])
            for prompt, (answer, joint, confession) in zip(
                arguments[0], engine.two_turns(model, *arguments)
            )
        ]
        return merging_gap(model, rollouts, config)

    assert gap() < 1e-4
    merge = engine.merged
    monkeypatch.setattr(engine, "merged", lambda m: 2 * merge(m) - m.base_layer.weight)
    with pytest.raises(UserError, match="disagree"):
        check_gap({"logprob_gap": gap()}, config)
