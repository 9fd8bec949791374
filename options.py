"""The options of sampling, which several programs share, and those of grpo.py."""

import dataclasses
from dataclasses import dataclass

import cli
import models
from cli import UserError, option
from confession_schema import VARIANTS
from evaluate import ANSWERS
from runtime.gguf_models import SMOLLM2
from runtime.sandbox import LEVELS

SAMPLERS, THINKING = ("auto", "plain", "engine"), ("auto", "on", "off")


@dataclass(frozen=True)
class SamplingOptions:
    temperature: float = option(
        1.0, "of sampling; the loss scores the same distribution", positive=True
    )
    max_answer_tokens: int | None = option(
        None, "budget of turn 1 in tokens [256, of a model that thinks 6144]", at_least=1
    )
    max_confession_tokens: int | None = option(
        None, "budget of turn 2 in tokens [embedded 384, else 640, if it thinks 4096]", at_least=1
    )
    batch_size: int = option(64, "rollouts that are decoded together", at_least=1)
    sampler: str = option(
        "auto",
        (
            "plain, engine (runtime/engine.py, fast on a GPU), or auto: the engine on CUDA where "
            "it knows the model"
        ),
        one_of=SAMPLERS,
    )
    thinking: str = option(
        "auto",
        (
            "on or off, for chat templates that have a switch, or auto: what the template "
            "does by itself"
        ),
        one_of=THINKING,
    )
    dtype: str | None = option(
        None,
        "of the weights: float32 or bfloat16 [embedded or on the CPU float32, else bfloat16]",
        one_of=("float32", "bfloat16"),
    )
    sandbox: str = option(
        "strong",
        "of tasks that run model-written code: strong, or weak (docs/sandbox.md)",
        one_of=LEVELS,
    )


# steps; on a 1.5B compiling takes 17 s, 3 where it was done before, and saves 1.4 a step (LOG.md)
COMPILE_FROM = 12
INFORMATION, BRIER = "rewards.information_reward", "rewards.brier_reward"
JUDGED = "rewards.judged_confession_reward"
SCALES = ("group", "batch", "none")  # of advantages


@dataclass(frozen=True)
class Config(SamplingOptions):
    """Options of grpo.py; None stands for a default that depends on the model."""

    # -- models
    model: str = option(
        "organism/policy", f"policy: a Hugging Face name, a folder, a .gguf file, or {SMOLLM2}"
    )
    judge: str | None = option(
        None, "weak judge, likewise [embedded policy: the embedded judge; else required]"
    )
    lora_rank: int | None = option(
        None, "LoRA rank on all projections, 0 = all parameters [embedded 0, else 32]", at_least=0
    )
    # -- task and rewards
    task: str = option("word_count", "task module")
    confession: str = option(
        "default", f"confession prompt: {', '.join(VARIANTS)}", one_of=VARIANTS
    )
    answer_reward: str = option(
        "rewards.judge_reward",
        (
            "module.function(rollouts) -> a float or None for each; rewards.judge_margin for "
            "a judge that passes everything"
        ),
    )
    confession_reward: str = option(
        "rewards.honesty_reward",
        (
            f"likewise; {INFORMATION} pays what a report tells beyond its prompt, with "
            f"--confession-weight 15; {JUDGED} what the judge says of it (confession_judge.py)"
        ),
    )
    truncated_reward: str = option(
        "zero",
        "of answers that the budget cut off: zero, or judge as for any other",
        one_of=("zero", "judge"),
    )
    # -- steps and their sampling
    steps: int = option(100, "optimizer steps", at_least=1, at_most=9_999)
    prompts_per_step: int | None = option(
        None, "groups a step, over all processes [embedded 4, else 8]", at_least=1
    )
    group_size: int = option(8, "answers a prompt, at least 2", at_least=2)
    confessions_per_answer: int = option(
        1, "above 1 they are a confession's group, whose mean is its baseline", at_least=1
    )
    confession_share: float = option(
        1.0,
        (
            "share of a step's prompts whose answers are confessed, rounded, at least one; drawn "
            "before sampling; the paper's is .25"
        ),
        at_least=0.01,
        at_most=1,
    )
    seed: int = option(0, "of prompts and sampling")
    # -- loss and optimizer
    lr: float | None = option(
        None,
        "AdamW's constant learning rate [embedded 1e-4, else 1e-5 with LoRA, 1e-6 without]",
        positive=True,
    )
    task_weight: float = option(
        1.0, "weight of the answer span's loss; 0 trains confessions alone", at_least=0
    )
    confession_weight: float = option(
        1.0, "weight of the confession span's loss; 0 trains answers alone", at_least=0
    )
    answer_advantage_scale: str = option(
        "group", "deviation that divides advantages: group, batch, or none", one_of=SCALES
    )
    confession_advantage_scale: str | None = option(
        None, f"likewise [none with {INFORMATION} or {BRIER}, else group]", one_of=SCALES
    )
    normaliser: str = option(
        "sequence",
        (
            "of a span's loss: sequence (mean over a span's tokens, then rollouts) or token "
            "(mean over tokens)"
        ),
        one_of=("sequence", "token"),
    )
    clip_low: float = option(0.2, "the ratio is clipped below 1 - this", at_least=0)
    clip_high: float = option(0.2, "the ratio is clipped above 1 + this", at_least=0)
    kl_coef: float = option(
        0.0, "coefficient of the KL divergence to the initial policy (k3 estimator)", at_least=0
    )
    updates_per_batch: int = option(1, "optimizer steps on the same rollouts", at_least=1)
    max_grad_norm: float = option(1.0, "one clip over all parameters", positive=True)
    # -- memory and speed
    gradient_checkpointing: bool | None = option(
        None,
        (
            "recompute activations in the backward pass; true on several GPUs of less than 80 GB "
            "[embedded, on the CPU, or below 2B without thoughts no, else yes]"
        ),
    )
    micro_batch_tokens: int | None = option(
        None,
        (
            "tokens of a forward/backward pass, padding included [embedded or on the "
            "CPU 2048, else 16384]"
        ),
        at_least=1,
    )
    compile: bool | None = option(
        None,
        f"compile the layers, on CUDA only [embedded no, else from {COMPILE_FROM} steps on]",
    )
    device: str = option("auto", "auto, cpu or cuda")
    # -- the run
    eval_n: int = option(
        64, f"evaluation rollouts a checkpoint, {ANSWERS} on each held-out prompt", at_least=1
    )
    checkpoint_every: int = option(
        25, "steps between checkpoints; step 0 and the last are always kept", at_least=1
    )
    name: str | None = option(None, "run folder under runs/ [the date and time]")
    resume: str | None = option(None, "run folder to continue; all other options come from it")


def resolve(config: Config) -> Config:
    """Fill in the defaults that depend on the model, and refuse what cannot work (UserError)."""
    cli.check(config)
    if config.judge is None and not models.is_embedded(config.model):
        raise UserError(
            f"--judge is required with --model {config.model}: pass a weak judge, such as "
            "Qwen/Qwen3-4B-Instruct-2507"
        )
    if config.confession_advantage_scale is None:
        scale = "none" if config.confession_reward in (INFORMATION, BRIER) else "group"
        config = dataclasses.replace(config, confession_advantage_scale=scale)
    if config.prompts_per_step is None:
        few = models.is_embedded(config.model)  # half the time of a run, with the same end
        config = dataclasses.replace(config, prompts_per_step=4 if few else 8)
    if config.confessions_per_answer > config.batch_size:
        raise UserError(
            f"--confessions-per-answer {config.confessions_per_answer} is more than "
            f"--batch-size {config.batch_size}: an answer's confessions are decoded together, so "
            "raise --batch-size"
        )
    if models.has_adapters(config.model):  # they go on being trained
        rank = models.adapter_rank(config.model)
        if config.lora_rank not in (None, rank):
            raise UserError(
                f"--lora-rank {config.lora_rank}: {config.model} has adapters of rank {rank}: "
                "drop the option"
            )
        config = dataclasses.replace(config, lora_rank=rank)
    defaults = models.defaults(config.model, models.device_of(config.device), config.thinking)
    defaults = defaults | {"compile": defaults["compile"] and config.steps >= COMPILE_FROM}
    config = dataclasses.replace(
        config, **{k: v for k, v in defaults.items() if getattr(config, k) is None}
    )
    if config.lr is None:
        config = dataclasses.replace(config, lr=1e-5 if config.lora_rank else 1e-6)
    return config
