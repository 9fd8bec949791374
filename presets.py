"""The options of sampling, which several programs share, and the defaults that depend on the model."""

from dataclasses import dataclass

import torch

import models
from cli import option


@dataclass(frozen=True)
class SamplingOptions:
    temperature: float = option(1.0, "of sampling; the loss scores the same distribution", above=0)
    max_answer_tokens: int | None = option(None, "budget of turn 1 in tokens [256, of a model that thinks 6144]", at_least=1)
    max_confession_tokens: int | None = option(
        None, "budget of turn 2 in tokens [embedded 384, else 640, if it thinks 4096]", at_least=1
    )
    batch_size: int = option(64, "rollouts that are decoded together", at_least=1)
    sampler: str = option(
        "auto",
        "plain, engine (engine.py, fast on a GPU), or auto: the engine on CUDA where it knows the model",
        one_of=("auto", "plain", "engine"),
    )
    thinking: str = option(
        "auto",
        "on or off, for chat templates that have a switch, or auto: what the template does by itself",
        one_of=("auto", "on", "off"),
    )
    dtype: str | None = option(
        None,
        "of the weights: float32 or bfloat16 [embedded or on the CPU float32, else bfloat16]",
        one_of=("float32", "bfloat16"),
    )


EMBEDDED = dict(
    judge="organism/judge", lr=1e-4, max_answer_tokens=256, max_confession_tokens=384, lora_rank=0,
    dtype="float32", gradient_checkpointing=False, compile=False, micro_batch_tokens=2_048,
)  # fmt: skip
PLAIN = dict(max_answer_tokens=256, max_confession_tokens=640)
THINKING = dict(max_answer_tokens=6_144, max_confession_tokens=4_096)
CPU = dict(lora_rank=32, dtype="float32", gradient_checkpointing=False, compile=False, micro_batch_tokens=2_048)
GPU = dict(  # of 80 GB and more; LoRA wants about ten times the learning rate of full training
    lora_rank=32, dtype="bfloat16", gradient_checkpointing=True, compile=True, micro_batch_tokens=16_384,
)  # fmt: skip


def defaults(model: str, device: torch.device, thinking: str = "auto") -> dict:
    """The options that depend on the model, by its name, and on where it runs."""
    if models.is_embedded(model):
        return EMBEDDED
    budgets = THINKING if thinking != "off" and models.thinks(models.load_tokenizer(model)) else PLAIN
    return budgets | (CPU if device.type == "cpu" else GPU)
