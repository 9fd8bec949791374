"""Sampling, training and judging in one table: seconds, tokens and memory, each row beside what
the hardware allows.

    python -m runtime.bench                         # Qwen3-8B's shape on CUDA, on a CPU a tiny one
    python -m runtime.bench --rows "decode step full"
    python -m runtime.bench --vs-trl                # and TRL's GRPOTrainer (trl, peft)
    torchrun --nproc-per-node 2 -m runtime.bench --rows "step full"

All rows take about a quarter of an hour on an H200 and three minutes on two CPU cores.

decode     every slot at one context (different streams; the cache holds noise), with everything
           that the host does
ragged     whole rollouts of two turns of forced log-normal lengths; after the last refill of a slot
           the longest ones decide
step       a GRPO step with LoRA of rank 32 (needs peft): rollouts of one turn and equal lengths,
           8 a prompt, sampled and then trained by grpo.update. step-nockpt: without gradient
           checkpointing. step-long: four times as many tokens. step-ragged: two turns, with and
           without checkpointing
full       the same with all parameters trained, both ways
small      a GRPO step of grpo.py with LoRA and its defaults for a GPU at the shapes of
           SmolLM2-135M, Qwen2.5-0.5B and 1.5B: prompts, both turns' tokens, judge (of the policy's
           shape), reports and their truth; lengths and texts are those of a committed evaluation,
           every span is trained, as many slots as rollouts. In the note: phases, and the process's
           first step
judge      64 committed answers before the Judge of a GRPO step, at Qwen3-4B's shape. Random weights
           do not stop by themselves: all new tokens are generated, which a real judge seldom does
embedded   grpo.py itself on the embedded models, with the judge, in as many processes as it
           starts; peak memory is the first one's
trl        GRPOTrainer, its reward taking no time. On CUDA: the tokens of `step`. On a CPU:
           the embedded policy and one turn of as many tokens as `embedded` has in two, all of one
           length, so that no row waits for another
trl-small  the same at the last shape of `small` and its first number of rollouts: xc in the prompt,
           one turn of as many tokens as its two

What compiles is not counted: each row has a warm-up, a GRPO step a whole one. Tokens are those
sampled; in a GRPO step those trained with the prompts before them; for the judge those of its
prompts. The number before "ckpt" (activations are recomputed) is a micro-batch's tokens. Peak:
of training, and in the note of sampling, with the share of its own limit that each reaches; on
a CPU the most that the process ever held. On several GPUs tokens/s are of all together.

The limit, at the measured rates of reading memory and of a matrix product in the model's dtype:
  sampling   a step of all slots reads every weight but the embedding table once, and each row its
             keys and values
  training   4 operations a parameter (but the embedding table) and token for LoRA, 6 for all
             parameters; none for recomputing
  GRPO step  one after the other; neither has a judge in it
  judge      2 operations a parameter of the layers and prompt token, as if answers shared nothing,
             then one read of the weights a generated token
A tiny model stays in a CPU's cache and has other limits; the embedded models have none here: their
time is overhead.
"""

import contextlib
import dataclasses
import gc
import importlib.util
import io
import itertools
import math
import multiprocessing
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import cli
import grpo
import models
import run_folder
from cli import UserError
from confession_schema import confession_prompt
from rewards import Judge, framed_ids, honesty_reward, judge_reward
from rollout import Rollout, Sampling, Span
from runtime import distributed, engine
from runtime.optimizer import make_optimizer
from tasks import word_count

# of transformers, about names: they would break the table
warnings.simplefilter("ignore", FutureWarning)


@dataclass(frozen=True)
class Config:
    rows: str | None = cli.option(None, "what to measure [all but trl, and on CUDA but embedded]")
    vs_trl: bool = cli.option(False, "the row trl, too")
    slots: int = cli.option(64, "rollouts that are decoded together, on each GPU")
    contexts: str | None = cli.option(None, 'of the decode rows [on CUDA "384 3040"]')
    ragged_rollouts: str | None = cli.option(
        None, 'numbers of rollouts of the ragged rows [on CUDA "64 256"]'
    )
    small_models: str | None = cli.option(None, "of the small rows, with commas between them [all]")
    rollouts: int = cli.option(64, "of a GRPO step, on all GPUs together")
    ckpt_tokens: int = cli.option(16_384, "tokens of a micro-batch with gradient checkpointing")
    nockpt_tokens: int = cli.option(
        5_200, "the same without it; for step-ragged at least its longest possible rollout"
    )
    repeats: int = cli.option(1, "counted steps of each GRPO row; medians are shown")
    embedded_steps: int = cli.option(4, "counted steps of the embedded models")
    device: str = cli.option("auto", "auto, cpu or cuda")


# prompt, xc, answer: tokens of the prompt, between the turns and of a single turn; turns: mean and
# most tokens of two ragged ones
SHAPE_8B = dict(
    model_type="qwen3",
    vocab_size=151_936,
    hidden_size=4_096,
    intermediate_size=12_288,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=40_960,
    rope_theta=1e6,
    tie_word_embeddings=False,
)
SHAPE_4B = SHAPE_8B | dict(hidden_size=2_560, intermediate_size=9_728, tie_word_embeddings=True)
SHAPE_TINY = dict(
    model_type="qwen3",
    vocab_size=1_536,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=40_960,
    tie_word_embeddings=False,
)
SHAPE_135M = dict(
    model_type="llama",
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1_536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8_192,
    rope_theta=1e5,
    tie_word_embeddings=True,
)
SHAPE_05B = dict(
    model_type="qwen2",
    vocab_size=151_936,
    hidden_size=896,
    intermediate_size=4_864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    max_position_embeddings=32_768,
    rope_theta=1e6,
    tie_word_embeddings=True,
)
SHAPE_15B = SHAPE_05B | dict(
    hidden_size=1_536, intermediate_size=8_960, num_hidden_layers=28, num_attention_heads=12
)
# 256 rollouts of two turns: lengths and texts of `small`
STORED = Path(__file__).parents[1] / "runs/embedded/evals/step_0100_n256.jsonl"
ON_GPU = SimpleNamespace(
    policy=SHAPE_8B,
    judge=SHAPE_4B,
    dtype=torch.bfloat16,
    prompt=250,
    xc=200,
    answer=1_024,
    turns=((1_500, 6_000), (900, 4_000)),
    rows="decode ragged step step-nockpt step-long step-ragged full small judge",
    small={"SmolLM2-135M": SHAPE_135M, "Qwen2.5-0.5B": SHAPE_05B, "Qwen2.5-1.5B": SHAPE_15B},
    small_rollouts=(64, 256),
    defaults=models.small_gpu,
    contexts="384 3040",
    ragged_rollouts="64 256",
    decode_steps=128,
    product=8_192,
    read=2**30,
)
ON_CPU = SimpleNamespace(
    policy=SHAPE_TINY,
    judge=SHAPE_TINY | dict(tie_word_embeddings=True),
    dtype=torch.float32,
    prompt=50,
    xc=40,
    answer=32,
    rows="decode ragged step step-nockpt step-long step-ragged full small judge embedded",
    small={"tiny": SHAPE_TINY | dict(model_type="qwen2")},
    small_rollouts=(8,),
    defaults=lambda parameters: models.CPU,
    turns=((30, 120), (18, 80)),
    contexts="128 512",
    ragged_rollouts="64 128",
    decode_steps=32,
    product=1_024,
    read=2**26,
)


# -------------------------------------------------------------------- clock, memory, limits, output


def measured(device: torch.device, function, together: bool = True) -> tuple:
    """(what it returns, seconds, peak GiB); `together`:
    ranks start at once, and the last one stops the clock.
    """
    if together:
        distributed.gather([0])
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    if together:
        distributed.gather([0])
    return result, time.perf_counter() - start, peak_gib(device)


def peak_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    # of Linux; getrusage would give a new process the peak of its parent
    status = Path("/proc/self/status")
    own = re.search(r"VmHWM:\s+(\d+)", status.read_text() if status.exists() else "")
    return (int(own[1]) if own else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 2**20


def rates(device: torch.device, size) -> tuple[float, float]:
    """Bytes read and floating-point operations done per second, the best of a few tries."""
    x = torch.ones(size.read, device=device)
    read = x.nbytes / min(measured(device, x.sum, together=False)[1] for _ in range(5))
    a, b = torch.randn(2, size.product, size.product, device=device).to(size.dtype)
    return read, 2 * size.product**3 / min(
        measured(device, lambda: a @ b, together=False)[1] for _ in range(20)
    )


class Limit:
    """Seconds that a model's work takes at least, at the measured rates."""

    def __init__(self, model, read: float, product: float):
        config, self.read, self.product = model.config, read, product
        # a tied one is the head
        table = 0 if config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
        self.parameters = model.num_parameters() - table
        self.layers = sum(p.numel() for p in model.get_decoder().layers.parameters())
        self.weights = self.parameters * model.dtype.itemsize  # bytes
        self.row = (
            2
            * config.num_hidden_layers
            * config.num_key_value_heads
            * engine.head_size(config)
            * model.dtype.itemsize
        )

    def decoding(self, steps: float, contexts: float) -> float:
        """`contexts`: tokens whose keys and values are read, over all steps and rows."""
        return (steps * self.weights + contexts * self.row) / self.read

    def sampling(self, lengths: list[list[int]], size, slots: int) -> float:
        """As if every slot were busy to the end; lengths (n, 2): sampled tokens of both turns."""
        slots = min(slots, -(-len(lengths) // distributed.world())) * distributed.world()
        contexts = sum(
            a * (size.prompt + a / 2) + c * (size.prompt + a + size.xc + c / 2) for a, c in lengths
        )
        return self.decoding(sum(map(sum, lengths)) / slots, contexts / distributed.world())

    def training(self, tokens: int, all_parameters: bool) -> float:
        return (
            (6 if all_parameters else 4)
            * self.parameters
            * tokens
            / self.product
            / distributed.world()
        )


def show(
    name: str, seconds: float, tokens: float, limit: float | None, peak: float, note: str = ""
) -> None:
    name = f"{distributed.world()} GPUs, {name}" if distributed.world() > 1 else name
    share = f"{tokens / limit:14,.0f}{limit / seconds:7.0%}" if limit else f"{'-':>14}{'-':>7}"
    print(
        f"{name:46}{seconds:8.2f}{tokens / seconds:10,.0f}{share}{peak:10.1f}  {note}", flush=True
    )


@contextlib.contextmanager
def row(name: str):
    """The rows after it are measured even where this one lacks memory or a package."""
    engine.KEPT.clear()
    gc.collect()  # compiled layers refer to themselves
    torch.cuda.empty_cache()
    try:
        yield
    except (torch.OutOfMemoryError, UserError) as error:
        if distributed.world() > 1:  # the other ranks would wait for this one
            raise
        print(f"{name}: not measured, {str(error).splitlines()[0]}", flush=True)


# ----------------------------------------------------------------------------------------- sampling


def random_model(shape: dict, dtype: torch.dtype, device: torch.device):
    torch.manual_seed(0)  # the same on every rank
    with torch.device("meta"):
        config = AutoConfig.for_model(**shape)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.to_empty(device=device)
    model.tie_weights()
    for name, parameter in model.named_parameters():
        parameter.data.fill_(1.0) if "norm" in name else parameter.data.normal_(std=0.02)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(device)
    return model.eval()


def random_ids(model, n: int) -> list[int]:
    return torch.randint(0, model.config.vocab_size, (n,)).tolist()


def decode(model, slots: int, context: int, steps: int) -> tuple[float, float]:
    """(seconds, peak GiB) of that many steps in which the context of each of `slots` rows is
    `context` on average.
    """
    length = context - steps // 2 - engine.WINDOW
    if length < 1:
        raise UserError(f"a context of {context} is too short: at least {context + 1 - length}")
    prompts = [random_ids(model, length) for _ in range(slots)]
    sampling = Sampling(1.0, steps + engine.WINDOW, 1, slots)
    generator = torch.Generator(model.device).manual_seed(0)
    e = engine.Engine(model, prompts, [random_ids(model, 2)] * slots, [-1], sampling, generator)
    with engine.running(e), torch.inference_mode():
        for cache in e.cache:
            cache.normal_()
        e.start_jobs()
        for job in e.jobs.values():
            job.fed = len(job.stream) - 1  # the noise stands for the prompt
        e.window()  # compiles and captures
        return measured(model.device, lambda: [e.window() for _ in range(steps // engine.WINDOW)])[
            1:
        ]


def ragged_lengths(n: int, turns) -> list[list[int]]:
    """(n, 2): sampled tokens of both turns, log-normal with sigma 0.7; turns:
    mean and most of each.
    """
    torch.manual_seed(0)
    # E exp(0.7 z - 0.245) = 1
    draws = [torch.exp(torch.randn(n) * 0.7 - 0.245) * mean for mean, _ in turns]
    return torch.stack(
        [draw.clamp(1, most).long() for draw, (_, most) in zip(draws, turns)], dim=1
    ).tolist()


def forced_engine(
    model, lengths: list[list[int]], most: list[int], size, slots: int
) -> engine.Engine:
    """An engine whose rollouts end their turns after `lengths` (n, 2) tokens;
    prompts are shared by 8.
    """
    groups = [random_ids(model, size.prompt) for _ in range(-(-len(lengths) // 8))]
    prompts = [groups[i // 8] for i in range(len(lengths))]
    generator = torch.Generator(model.device).manual_seed(distributed.rank())
    suffixes = [random_ids(model, size.xc)] * len(prompts)
    e = engine.Engine(model, prompts, suffixes, [-1], Sampling(1.0, *most, slots), generator)
    e.limits = [(a, most[0] + c) for a, c in lengths]
    return e


def ragged(model, lengths: list[list[int]], size, slots: int) -> tuple[float, int]:
    """(seconds, kept tokens) up to the last refill of a slot; (0, 0) if there was none."""
    start, refilled = time.perf_counter(), (0.0, 0)
    e = forced_engine(model, lengths, [max(turn) for turn in zip(*lengths)], size, slots)
    with engine.running(e), torch.inference_mode():
        while e.queue or e.jobs:
            e.start_jobs()
            e.window()
            if e.queue:
                refilled = time.perf_counter() - start, kept_tokens(e)
    return refilled


def kept_tokens(e: engine.Engine) -> int:
    """Tokens sampled so far that count: of finished turns, and of those under way."""
    cursors = e.host_state[engine.CURSOR]
    under_way = [int(cursors[slot]) - e.budgets[0] * job.turn for slot, job in e.jobs.items()]
    return sum(map(sum, e.lengths)) + sum(under_way)


# -------------------------------------------------------------------------------- GRPO steps, judge


def sampled(model, lengths: list[list[int]], size, slots: int) -> list[Rollout]:
    """The rollouts of all ranks. A confession of one token stands for none: its advantage is 0,
    so it is not trained.
    """
    most = [max(turn) for turn in zip(*lengths)]
    e = forced_engine(model, distributed.share(lengths), most, size, slots)
    prompts, out, rollouts = e.prompts, e.run(), []
    del e
    gc.collect()  # as engine.two_turns does
    for i, (prompt, (answer, joint, confession)) in enumerate(zip(prompts, out)):
        stream, advantage = prompt + answer[0] + joint + confession[0], 1.0 if i % 2 else -1.0
        end = len(prompt) + len(answer[0])
        spans = (
            Span(len(prompt), end, "length", answer[1], advantage=advantage),
            Span(
                end + len(joint),
                len(stream),
                "length",
                confession[1],
                advantage=advantage * (len(confession[0]) > 1),
            ),
        )
        rollouts.append(Rollout(i, None, *[""] * 6, stream, *spans))
    return distributed.gather(rollouts)


def grpo_rows(names: list[str], model, limit: Limit, size, config: Config) -> dict[str, float]:
    """Rows of LoRA (the model gets adapters) or of full training; returns {name:
    seconds of a step}.
    """
    on_gpu, full, totals, last = model.device.type == "cuda", "full" in names, {}, {}
    model = model if full else models.add_lora(model.requires_grad_(False), 32)
    trained = distributed.sharded(model) if full else model
    if on_gpu:
        models.compile_layers(trained)
    optimizer = make_optimizer(trained, 1e-5)
    longest = size.prompt + size.xc + sum(most for _, most in size.turns)
    # row, tokens of a micro-batch, recomputing, GiB without which it is not tried on a GPU
    settings = [
        ("step", config.ckpt_tokens, True, 0),
        ("step-nockpt", config.nockpt_tokens, False, 0),
        ("step-long", config.ckpt_tokens, True, 0),
        ("step-ragged", config.ckpt_tokens, True, 0),
        ("step-ragged", max(longest, config.nockpt_tokens), False, 120),
        ("full", config.ckpt_tokens, True, 0),
        ("full", config.nockpt_tokens, False, 120),
    ]
    for name, budget, recomputing, least_gib in settings:
        if name not in names:
            continue
        two_turns, answer = name == "step-ragged", size.answer * (4 if name == "step-long" else 1)
        lengths = (
            ragged_lengths(config.rollouts, size.turns)
            if two_turns
            else [[answer, 1]] * config.rollouts
        )
        kind = f"{config.rollouts} two-turn" if two_turns else f"{config.rollouts} x {answer:,}"
        label = f"{name}: {kind}, {budget:,}{' ckpt' if recomputing else ''}"
        if (
            on_gpu
            and (gib := torch.cuda.get_device_properties(model.device).total_memory / 2**30)
            < least_gib
        ):
            print(
                (
                    f"{label}: not measured, it needs a GPU of {least_gib} GiB and this one "
                    f"has {gib:.0f}"
                ),
                flush=True,
            )
            continue
        with row(label):
            if recomputing:
                models.recompute_activations(trained)
            else:
                trained.gradient_checkpointing_disable()
            # a row that ran out of memory leaves them in training mode
            model.eval(), trained.eval()
            options = grpo.Config(lora_rank=0 if full else 32, micro_batch_tokens=budget)
            sample = lambda: sampled(model, lengths, size, config.slots)

            def train(rollouts: list[Rollout]) -> dict:
                stats = grpo.update(trained, None, optimizer, rollouts, options)
                distributed.copy_back(trained, model)
                return stats

            # the warm-up: sampling the same lengths again would compile nothing
            train(last.get(kind) or sample())
            seconds, gib = [], []
            for _ in range(config.repeats):
                rollouts, *sampling = measured(model.device, sample)
                stats, *training = measured(model.device, lambda: train(rollouts))
                seconds.append((sampling[0], training[0]))
                gib.append((sampling[1], training[1]))
            last[kind] = rollouts
            seconds = [statistics.median(phase) for phase in zip(*seconds)]
            totals[name] = sum(seconds)
            spans = [[span for span in r.spans.values() if span.advantage] for r in rollouts]
            tokens = sum(max(span.end for span in trained_spans) for trained_spans in spans)
            limits = limit.sampling(lengths, size, config.slots), limit.training(tokens, full)
            sampling_gib, training_gib = map(max, zip(*gib))
            note = (
                f"sample {seconds[0]:.2f} s "
                f"({limits[0] / seconds[0]:.0%}{f', {sampling_gib:.1f} GiB' if on_gpu else ''}), "
                f"train {seconds[1]:.2f} s ({limits[1] / seconds[1]:.0%}), gap "
                f"{stats['logprob_gap_answer'] or math.nan:.3f}"
                + (f"; 100 steps: {totals[name] / 36:.2g} h" if two_turns else "")
                + ("; NO STEP WAS TAKEN: not finite" if stats["skipped"] else "")
            )
            show(label, totals[name], tokens, sum(limits), training_gib, note)
    return totals


def small_job(shape: dict, n: int, size, device: torch.device) -> grpo.Job:
    """What grpo.py loads for steps of n rollouts, with random weights of a shape."""
    policy, judge = (random_model(shape, size.dtype, device) for _ in range(2))
    config = grpo.Config(
        prompts_per_step=n // 8,
        confession_advantage_scale="group",
        batch_size=n,
        sampler="engine",
        **models.PLAIN | size.defaults(policy.num_parameters()),
    )
    model = models.add_lora(policy.requires_grad_(False), config.lora_rank)
    if config.gradient_checkpointing:
        models.recompute_activations(model)
    if config.compile:
        models.compile_layers(model)
    return grpo.Job(
        config=config,
        run=None,
        task=word_count,
        rewards=(judge_reward, honesty_reward),
        tokenizer=embedded_tokenizer("policy"),
        model=model,
        learner=model,
        reference=None,
        judge=Judge(judge, embedded_tokenizer("judge"), compiles=config.compile),
        confession_judge=None,
        optimizer=make_optimizer(model, 1e-5),
        sampling=Sampling.of(vars(config)),
        micro_batch_tokens=config.micro_batch_tokens,
    )


def tokens_of(rollout: Rollout) -> list[int]:
    """Sampled tokens of both turns."""
    return [span.end - span.start for span in rollout.spans.values()]


def small_step(job: grpo.Job, step: int, stored: list[Rollout]) -> tuple[dict, list[Rollout], dict]:
    """(seconds by phase, rollouts, what the update saw) of a step as grpo.train() takes it. Turns
    are as long as those of the stored rollouts, whose texts are judged and scored.
    """
    seconds = {}

    class Forced(engine.Engine):
        def _begin(self, *args):
            super()._begin(*args)
            self.stop_ids.fill_(-1)
            answers = self.budgets[0]  # the second turn's places are behind them
            self.limits = [(a, answers + c) for a, c in map(tokens_of, stored)]

    def phase(name: str, function, *args):
        result, seconds[name], _ = measured(job.model.device, lambda: function(*args))
        return result

    with mock.patch.object(engine, "Engine", Forced):
        rollouts = phase("sample", grpo.generate, job, step)
    rollouts = [
        dataclasses.replace(own, x=other.x, y=other.y, xc=other.xc, yc=other.yc)
        for own, other in zip(rollouts, stored, strict=True)
    ]
    verdicts = phase("judge", job.judge, rollouts)
    phase("score", grpo.scored, job, rollouts, verdicts)
    for i, rollout in enumerate(rollouts):
        for span in rollout.spans.values():
            span.advantage = 1.0 if i % 2 else -1.0
    return seconds, rollouts, phase("train", grpo.learn, job, step, rollouts)


def prompt_lengths(rollouts: list[Rollout]) -> SimpleNamespace:
    """Mean tokens of the prompt and between the turns."""
    return SimpleNamespace(
        prompt=statistics.mean(r.answer.start for r in rollouts),
        xc=statistics.mean(r.confession.start - r.answer.end for r in rollouts),
    )


def small_rows(size, limits, config: Config, device: torch.device) -> float | None:
    """Seconds of a step of the last shape and the first number of rollouts; limits(model)."""
    stored, first = run_folder.load_rollouts(STORED, word_count), None
    for name, n in itertools.product(size.small, size.small_rollouts):
        with row(label := f"small: {name}, {n} two-turn"):
            job = small_job(size.small[name], n, size, device)
            # from 3: the sampler and the trainer are not compared (grpo.learn)
            cold, *_ = small_step(job, 3, stored[:n])
            steps = [small_step(job, 4 + i, stored[:n]) for i in range(config.repeats)]
            gib, (_, rollouts, stats) = peak_gib(device), steps[-1]
            phases = {p: statistics.median(seconds[p] for seconds, *_ in steps) for p in cold}
            seconds, limit = sum(phases.values()), limits(job.judge.model)
            lengths = [tokens_of(r) for r in rollouts]
            tokens = sum(len(r.token_ids) for r in rollouts)
            least = {
                "sample": limit.sampling(lengths, prompt_lengths(rollouts), n),
                "train": limit.training(tokens, all_parameters=False),
            }
            note = ", ".join(
                f"{p} {s:.2f} s" + (f" ({least[p] / s:.0%})" if p in least else "")
                for p, s in phases.items()
            )
            note += f"; {sum(map(sum, lengths)) / n:.0f} sampled tokens a rollout"
            note += f", gap {stats['logprob_gap_answer'] or math.nan:.3f}; first step "
            note += ", ".join(f"{p} {s:.1f}" for p, s in cold.items()) + " s"
            show(label, seconds, tokens, sum(least.values()), gib, note)
            if n == size.small_rollouts[0]:
                first = seconds
            del job, limit
    return first


def embedded_tokenizer(name: str):
    return AutoTokenizer.from_pretrained(models.ORGANISMS / name)


def judge_row(model, limit: Limit, step_seconds: float | None) -> None:
    judge = Judge(model, embedded_tokenizer("judge"))
    rollouts = run_folder.load_rollouts(
        Path(__file__).parents[1] / "runs/embedded/rollouts/step_0001.jsonl", word_count
    )
    judge(rollouts)
    _, seconds, peak = measured(model.device, lambda: judge(rollouts))
    cases = list({(r.x, r.y) for r in rollouts})
    tokens = sum(map(len, framed_ids(judge.tokenizer, cases)))
    least = 2 * limit.layers * tokens / limit.product  # nothing is decoded
    note = f"{tokens / len(rollouts):.0f} prompt tokens on average"
    note += f"; {seconds / step_seconds:.0%} of a LoRA step" if step_seconds else ""
    show(f"judge: {len(rollouts)} answers", seconds, tokens, least, peak, note)


# ----------------------------------------------- embedded models and TRL, in processes of their own


def in_own_process(function, *args) -> SimpleNamespace:
    # a killed child is an error; Pool would wait
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return SimpleNamespace(**pool.submit(function, *args).result())


def embedded(config: Config) -> SimpleNamespace:
    """Seconds of each counted step of `python grpo.py`, run as it is, in as many processes as it
    starts; its phases, rollouts, tokens and peak memory.
    """
    steps = config.embedded_steps + 1
    options = f"--steps {steps} --eval-n 1 --checkpoint-every {steps} --name bench".split()
    command = [sys.executable, Path(grpo.__file__).resolve(), *options, "--device", config.device]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"grpo.py ended with {done.returncode}: {done.stderr[-2_000:]}")
        run = Path(folder) / "runs/bench"
        rows = run_folder.read_rows(run / "timing.jsonl")[1:]
        training = run_folder.read_config(run)
    phases = {
        name: statistics.median(row[name] for row in rows)
        for name in ("sample", "judge", "score", "train")
    }
    return SimpleNamespace(
        seconds=[sum(row[name] for name in phases) for row in rows],
        phases=phases,
        rollouts=training["prompts_per_step"] * training["group_size"],
        tokens=statistics.median(row["sampled_tokens"] for row in rows),
        gib=rows[-1]["peak_gib"],
    )


def trl(config: Config, shape: dict | None, rollouts: int, prompt: int, tokens: int) -> dict:
    """The same of GRPOTrainer with LoRA, of rollouts of `tokens` tokens each after prompts of
    `prompt`; without a shape of the embedded policy. It does not know that prompts are shared.
    """
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            seconds.append(-time.perf_counter())

        def on_step_end(self, *args, **kwargs):
            seconds[-1] += time.perf_counter()

    device = models.device_of(config.device)
    on_gpu, options = device.type == "cuda", {}
    if shape:
        dtype = torch.bfloat16 if on_gpu else torch.float32
        model, tokenizer = random_model(shape, dtype, device), embedded_tokenizer("policy")
        # a token each; the chat template adds a few
        prompts = [" the" * (prompt - 10) + f" {i}" for i in range(rollouts)]
        options["peft_config"] = LoraConfig(
            r=32, lora_alpha=64, target_modules=models.LORA_TARGETS, task_type="CAUSAL_LM"
        )
    else:
        model, tokenizer = models.load("organism/policy", device)
        xs = [word_count.make_prompt(i) for i in range(rollouts)]
        prompts = [f"{x}\n{confession_prompt(word_count, x)}" for x in xs]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        arguments = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=rollouts // 8,
            num_generations=8,
            max_completion_length=tokens,
            generation_kwargs={"min_new_tokens": tokens},
            beta=0.0,
            temperature=1.0,
            top_k=0,
            learning_rate=1e-5 if on_gpu else 1e-4,
            bf16=on_gpu,
            gradient_checkpointing=on_gpu,
            use_cpu=not on_gpu,
            max_steps=1 + (2 if on_gpu else config.embedded_steps),
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=10**6,
        )
        GRPOTrainer(
            model=model.train(),
            processing_class=tokenizer,
            reward_funcs=lambda completions, **_: [float(len(str(c)) % 7) for c in completions],
            args=arguments,
            # a fingerprint is given, as dill cannot make one of some versions of pyarrow
            train_dataset=Dataset(
                InMemoryTable.from_pydict(
                    {"prompt": [[{"role": "user", "content": p}] for p in prompts]}
                ),
                fingerprint="bench",
            ),
            callbacks=[Clock()],
            **options,
        ).train()
    return dict(seconds=seconds[1:], gib=peak_gib(device))


# ---------------------------------------------------------------------------------------- the table


def chosen_rows(config: Config, on_gpu: bool) -> list[str]:
    rows = (config.rows or (ON_GPU if on_gpu else ON_CPU).rows).split()
    known = [*ON_CPU.rows.split(), "trl", "trl-small"]
    for name in rows:
        if name not in known:
            raise UserError(f"--rows {name!r} is unknown: choose among {' '.join(known)}")
    if config.vs_trl or {"trl", "trl-small"} & {*rows}:
        missing = [name for name in ("trl", "peft") if not importlib.util.find_spec(name)]
        if missing:
            names = " and ".join(missing)
            raise UserError(f"the row trl needs {names}: pip install trl==1.16.0 peft==0.21.2")
    if config.vs_trl or "trl" in rows:
        # on a CPU it gets the tokens that embedded counted
        rows += ["trl"] if on_gpu else ["trl", "embedded"]
    return [r for r in rows if r.startswith(("step", "full"))] if distributed.world() > 1 else rows


def numbers(option: str, text: str) -> list[int]:
    if not all(word.isdecimal() and int(word) for word in text.split()):
        raise UserError(f"{option} {text!r}: give positive whole numbers with spaces between them")
    return [int(word) for word in text.split()]


def decode_rows(model, limit: Limit, size, config: Config) -> None:
    """A row a context."""
    for context in numbers("--contexts", config.contexts or size.contexts):
        with row(label := f"decode: {config.slots} rows at context {context:,}"):
            seconds, gib = decode(model, config.slots, context, size.decode_steps)
            tokens = config.slots * size.decode_steps
            least = limit.decoding(size.decode_steps, tokens * context)
            note = f"{1e3 * seconds / size.decode_steps:.2f} ms a step"
            show(label, seconds, tokens, least, gib, note)


def ragged_rows(model, limit: Limit, size, config: Config) -> None:
    """Two rows a number of rollouts, where slots are refilled."""
    rollouts = numbers("--ragged-rollouts", config.ragged_rollouts or size.ragged_rollouts)
    for k, n in enumerate(rollouts):
        with row(label := f"ragged: {n} rollouts through {config.slots} slots"):
            lengths = ragged_lengths(n, size.turns)
            if not k:  # compiles all kernels
                short = [[max(1, a // 16), max(1, c // 16)] for a, c in lengths[: config.slots]]
                ragged(model, short, size, config.slots)
            refilled, seconds, gib = measured(
                model.device, lambda: ragged(model, lengths, size, config.slots)
            )
            tokens, least = sum(map(sum, lengths)), limit.sampling(lengths, size, config.slots)
            note = f"{tokens / n:,.0f} tokens a rollout, {max(map(sum, lengths)):,} the longest"
            show(label, seconds, tokens, least, gib, note)
            if refilled[1]:
                show("    up to the last refill", *refilled, least * refilled[1] / tokens, gib)


def embedded_rows(config: Config, with_trl: bool) -> None:
    """grpo.py on the embedded models, and TRL's tokens as many as it has counted."""
    ours = embedded(config)
    n = ours.rollouts
    phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in ours.phases.items())
    label = f"embedded: {n} x {ours.tokens / n:.0f}, two turns"
    show_steps(label, ours, ours.tokens, None, f"; {phases} s")
    if with_trl:
        length = round(ours.tokens / n)
        theirs = in_own_process(trl, config, None, n, 0, length)
        ratio = statistics.median(theirs.seconds) / statistics.median(ours.seconds)
        label = f"trl: {n} x {length}, one turn"
        show_steps(label, theirs, n * length, None, f"; TRL / ours: {ratio:.2f}")


def trl_rows(rows: list[str], limits, ours: dict[str, float], size, config: Config) -> None:
    """limits(model); ours: seconds of our rows of the same tokens, where measured."""
    cases = {}  # {name: (our row, shape, number, tokens of the prompt, sampled tokens)}
    if "trl" in rows:
        cases["trl"] = "step", size.policy, config.rollouts, size.prompt, size.answer
    if "trl-small" in rows:
        n = size.small_rollouts[0]
        stored = run_folder.load_rollouts(STORED, word_count)[:n]
        *_, shape = size.small.values()
        prompt = round(sum(vars(prompt_lengths(stored)).values()))
        length = round(statistics.mean(sum(tokens_of(r)) for r in stored))
        cases["trl-small"] = "small", shape, n, prompt, length
    for name, (own, shape, n, prompt, length) in cases.items():
        with row(name):
            theirs = in_own_process(trl, config, shape, n, prompt, length)
            tokens = n * (prompt + length)
            limit = limits(random_model(shape, size.dtype, models.device_of(config.device)))
            least = limit.sampling([[length, 0]] * n, SimpleNamespace(prompt=prompt, xc=0), n)
            least += limit.training(tokens, all_parameters=False)
            ratio = (
                f"; TRL / ours: {statistics.median(theirs.seconds) / ours[own]:.2f}"
                if ours.get(own)
                else ""
            )
            label = f"{name}: {n} x {length:,}, LoRA, 8 rows ckpt"
            show_steps(label, theirs, tokens, least, ratio)


def sizes(config: Config, on_gpu: bool) -> SimpleNamespace:
    """What is measured on this kind of device, of the small models those that are asked for."""
    size = ON_GPU if on_gpu else ON_CPU
    names = cli.some_of("--small-models", config.small_models or "", size.small)
    return SimpleNamespace(**vars(size) | dict(small={name: size.small[name] for name in names}))


def bench(config: Config) -> None:
    device = models.device_of(config.device)
    on_gpu = device.type == "cuda"
    size = sizes(config, on_gpu)
    rows = chosen_rows(config, on_gpu)
    # these rows make more than 8 variants of a layer: the ninth would run uncompiled
    torch._dynamo.config.recompile_limit = 64
    read, product = rates(device, size)
    limits = lambda model: Limit(model, read, product)
    model = random_model(size.policy, size.dtype, device)
    limit = limits(model)
    where = torch.cuda.get_device_name() if on_gpu else f"CPU, threads: {torch.get_num_threads()}"
    dtype = str(size.dtype).removeprefix("torch.")
    rate = f"measured: reads {read / 1e12:.3g} TB/s, {dtype} product {product / 1e12:.3g} TFLOP/s"
    print(f"{where}, torch {torch.__version__}; {rate}")
    shape = (
        f"{model.num_parameters() / 1e9:.3g} B parameters, {model.config.num_hidden_layers} layers "
        f"of {model.config.hidden_size}"
    )
    slots = f"{config.slots} slots{' a GPU' if distributed.world() > 1 else ''}"
    print(f"model of random weights in {dtype}: {shape}; {slots}\n")
    print(f"{'':46} seconds  tokens/s         limit  of it  peak GiB  note", flush=True)

    if "decode" in rows:
        decode_rows(model, limit, size, config)
    if "ragged" in rows:
        ragged_rows(model, limit, size, config)
    ours = {}  # seconds of a step by row
    if lora := [name for name in rows if name.startswith("step")]:
        with row(" ".join(lora)):
            ours = grpo_rows(lora, model, limit, size, config)
    del model
    if "full" in rows:
        with row("full"):
            grpo_rows(["full"], random_model(size.policy, size.dtype, device), limit, size, config)
    if "small" in rows:
        ours["small"] = small_rows(size, limits, config, device)
    if "judge" in rows:
        with row("judge"):
            model = random_model(size.judge, size.dtype, device)
            judge_row(model, limits(model), ours.get("step", ours.get("step-nockpt")))
            del model
    if "embedded" in rows:
        embedded_rows(config, with_trl="trl" in rows and not on_gpu)
    # on a CPU embedded_rows() has that of trl
    trl_rows([name for name in rows if on_gpu or name != "trl"], limits, ours, size, config)


def show_steps(
    name: str, found: SimpleNamespace, tokens: float, limit: float | None, note: str
) -> None:
    steps = "steps: " + ", ".join(f"{seconds:.2f}" for seconds in found.seconds) + " s"
    show(name, statistics.median(found.seconds), tokens, limit, found.gib, steps + note)


def main() -> None:
    config = cli.parse(Config, __doc__)
    with cli.user_errors(), distributed.launched():
        bench(config)


if __name__ == "__main__":
    main()
