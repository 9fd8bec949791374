"""Models that change their logits after the head (Cohere, Granite, Gemma 2): the trainer must score
what was sampled. Otherwise the ratio of the loss is not 1 on the policy's own samples, and what is
trained is another distribution.
"""

import pytest
import torch
import transformers

import grpo
import models
from cli import UserError
from rollout import Sampling
from runtime import engine
from runtime.decoder import two_turns

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.2,
    pad_token_id=0,
    eos_token_id=1,
    bos_token_id=2,
)
KINDS = {  # what the published models of the architecture say, or stronger
    "Cohere": dict(logit_scale=0.25),
    "Granite": dict(logits_scaling=8.0, residual_multiplier=0.22, embedding_multiplier=12.0),
    "Gemma2": dict(head_dim=8, final_logit_softcapping=2.0, attn_logit_softcapping=50.0),
    "Qwen2": {},
    "Llama": {},
}
TRANSFORMS = ("Cohere", "Granite", "Gemma2")


def tiny(kind: str, **options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SHAPE, **options)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    model.get_output_embeddings().weight.data *= 2.0  # far from an even distribution
    return model


def gap(model, sampler, temperature: float = 1.0) -> float:
    """The largest difference between sampled and trained log-probabilities of both turns."""
    prompts, suffixes = [[5, 6, 7], [8, 9]], [[1, 2, 3], [4]]
    largest = 0.0
    sampled = sampler(
        model,
        prompts,
        suffixes,
        [-1],
        Sampling(temperature, 12, 12),
        torch.Generator().manual_seed(0),
    )
    for prompt, (answer, joint, confession) in zip(prompts, sampled):
        ids = torch.tensor([prompt + answer[0] + joint + confession[0]])
        trained = torch.zeros_like(ids, dtype=torch.bool)
        trained[0, len(prompt) :] = True
        trained[0, len(prompt) + len(answer[0]) : -len(confession[0])] = False
        with torch.no_grad():
            found = models.token_logprobs(model, ids, trained, temperature)
        largest = max(largest, (found - torch.tensor(answer[1] + confession[1])).abs().max().item())
    return largest


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_trainer_scores_what_was_sampled(kind, temperature):
    """The trainer forgets a scale or a cap of the logits, or applies it after the temperature."""
    model = tiny(kind, **KINDS[kind])
    assert gap(model, two_turns, temperature) < 1e-4
    if engine.unsupported(model) is None:
        assert gap(model, engine.two_turns, temperature) < 1e-4
    assert (engine.unsupported(model) is None) == (kind in ("Qwen2", "Llama")), (
        "the engine draws from the bare head"
    )
    models.check_logits(model)


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_transforms_matter(kind, monkeypatch):
    """The test above would pass with the bare head;
    and the check before training would let such a model through.
    """
    model = tiny(kind, **KINDS[kind])
    monkeypatch.setattr(
        models, "logits_of", lambda model, hidden: model.get_output_embeddings()(hidden)
    )
    assert gap(model, two_turns) > 1e-2
    with pytest.raises(
        UserError, match=f"models of type '{kind.lower()}' .*logits_of.*take another model"
    ):
        models.check_logits(model)


@pytest.mark.parametrize(
    "kind, options", [("HyperCLOVAX", dict(logits_scaling=0.5)), ("Arcee", dict(logit_scale=0.9))]
)
def test_unknown_transform_is_refused(kind, options):
    """A model is trained on what was not sampled, because it multiplies where Granite divides,
    or has Cohere's option in its config and does not use it.
    """
    with pytest.raises(UserError, match="take another model"):
        models.check_logits(tiny(kind, **options))


def test_head_of_lora_and_of_bfloat16():
    """The check refuses a model for rounding, or does not find config and head behind adapters."""
    models.check_logits(tiny("Gemma2", **KINDS["Gemma2"]).to(torch.bfloat16))
    pytest.importorskip("peft")
    model = models.add_lora(tiny("Cohere", **KINDS["Cohere"]), rank=2)
    models.check_logits(model)
    assert gap(model, two_turns) < 1e-4


# ----------------------------------------------------------------------------- the first step's gap


def stats(answer: float | None, confession: float | None) -> dict:
    return {
        "loss": 0.0,
        "logprob_gap_answer": answer,
        "logprob_gap_confession": confession,
        "approx_kl_answer": 9.0,
    }


@pytest.mark.parametrize(
    "dtype, temperature, answer, confession, fine",
    [
        ("float32", 1.0, 9e-4, 9e-4, True),
        ("float32", 1.0, 1.1e-3, 0.0, False),
        ("float32", 1.0, None, 1.1e-3, False),
        ("bfloat16", 1.0, 0.11, 0.075, True),  # measured
        ("bfloat16", 1.0, 0.1, 0.16, False),
        ("bfloat16", 0.5, 0.1, 0.29, True),  # the temperature divides logits and their rounding
        ("bfloat16", 2.0, 0.1, 0.16, False),
    ],
)
def test_check_gap(dtype, temperature, answer, confession, fine):
    """A broken sampler trains on with a number in the log, or rounding ends a run."""
    config = grpo.Config(dtype=dtype, temperature=temperature)
    if fine:
        grpo.check_gap(stats(answer, confession), config)
    else:
        with pytest.raises(UserError, match="nats a token .* --sampler plain") as error:
            grpo.check_gap(stats(answer, confession), config)
        assert "\n" not in str(error.value)


def test_a_step_without_any_signal_has_no_gap():
    """It ends the run."""
    grpo.check_gap(stats(None, None), grpo.Config(dtype="float32"))


def test_run_with_a_wrong_sampler_ends_at_its_first_step(tmp_path, monkeypatch):
    """The check is not part of the training loop: the trainer here is 1 nat off, and no checkpoint
    after step 0 may come.
    """
    policy, score = str(models.ORGANISMS / "policy"), models.token_logprobs
    monkeypatch.setattr(grpo, "token_logprobs", lambda *args: score(*args) - 1.0)
    options = dict(
        model=policy,
        judge=policy,
        max_answer_tokens=8,
        max_confession_tokens=8,
        eval_n=1,
        checkpoint_every=1,
    )
    options |= dict(
        steps=2,
        prompts_per_step=1,
        group_size=4,
        answer_reward="test_logit_transforms.length_reward",
        truncated_reward="judge",
    )
    config = grpo.resolve(grpo.Config(**options))
    with pytest.raises(
        UserError, match=r"disagree by 1 nats a token in the first steps, in float32 at most 0.001"
    ):
        grpo.train(config, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step_0000"]


def length_reward(rollouts) -> list[float]:
    return [float(sum(rollout.token_ids) % 97) for rollout in rollouts]
