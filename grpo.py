"""Dual-span GRPO: answers are paid by a weak judge, confessions for honesty, each span on its own.

    python grpo.py --steps 100                        # embedded models, minutes on a laptop
    python grpo.py --steps 100 --model Qwen/Qwen3-8B --judge Qwen/Qwen3-4B-Instruct-2507
    torchrun --nproc-per-node 4 grpo.py --steps 100 ...   # on four GPUs (runtime/distributed.py)
    python grpo.py --resume runs/NAME                 # go on from the last checkpoint

A step: sample 8 prompts (embedded: 4) x 8 two-turn rollouts, judge the answers, check the
confessions against the truth, turn each span's rewards into group-relative advantages, take one
optimizer step. Checkpoints are evaluated on held-out prompts; at the end come the table and the
figures (figures.py).

The seal: the coefficient of a token's log-probability in the loss is weight * advantage of its own
span (without a KL term, and where the ratio is not clipped). Rewards, parse results, lengths and
truncations of one span enter no coefficient of the other (tests/test_seal.py). The spans do share
one gradient clip and one optimizer, which couples their *scale*: a large confession gradient
shrinks the answer's step.

Differences from GRPO as published (DeepSeekMath, https://arxiv.org/abs/2402.03300)
  1. Two spans with their own rewards, advantages and normalisers; loss = task_weight * answer +
     confession_weight * confession.
  2. The old log-probabilities are the sampler's own. With one update per batch the ratio is 1 up to
     rounding; a mismatch between sampler and trainer shows in the log (`logprob_gap`, `clipfrac`),
     and ends the run in its first steps if it is more than rounding (check_gap).
  3. The KL coefficient is 0 by default, so no reference model is held. The loss adds kl_coef x
     (mean KL of answers + mean KL of confessions), each by the span's normaliser and not by its
     weight; a span of weight 0 has none.
  4. Without a KL term spans of advantage 0 are not computed (they have no gradient), and a batch
     without any signal takes no step, nor does one whose loss or gradient is not finite.
  5. An answer may confess several times (`--confessions-per-answer`): then these are the group that
     gives the baseline, as they share the truth that they are scored against, and each answer is
     trained once.
  6. Advantages need not be divided by the group's deviation (`--confession-advantage-scale`). The
     information reward's are not: divided by its own deviation an answer's group has size 1 however
     rare its truth is, so a met objective of base rate .1 counts as much as an unmet one, and
     "None" wins as with the base rate's reward. With one confession an answer the push is towards
     "Full" instead, where fewer than half meet the objective (LOG.md).
  7. With `--confession-share` below 1 the groups of so many prompts of a step confess, drawn by
     seed and step before anything is sampled: whether a rollout confesses depends on no answer, and
     the mean over confessions is over those. Answers are trained in every group.
  8. An answer whose judge failed gets advantage 0 and leaves its group's mean and deviation (the
     population's); it still counts in the normaliser. An answer that the budget cut off is no such
     case: it earns 0 (rewards.zero_truncated).
"""

import math
import random
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Iterator

import numpy
import torch
from torch.distributed import is_torchelastic_launched

import cli
import models
import run_folder
from cli import UserError
from evaluate import sample_in_memory, show_table
from job import Job, begin, compiling, save_and_evaluate
from models import token_logprobs
from options import Config, resolve
from rewards import refuse_absent_judge, score_rollouts
from rollout import Rollout, Verdict
from runtime import distributed, progress
from runtime.batch import Batch, deal, make_batch, trained_lengths
from runtime.memory import halving
from runtime.merged import merged_adapters
from runtime.optimizer import take_step

# Nats, mean over a span's tokens. Measured: up to 3e-7 in float32; .02 in bfloat16 (.11 with random
# weights at the 8B shape), where single tokens lie beyond the clip range (clipfrac counts them).
MAX_GAP = {"float32": 1e-3, "bfloat16": 0.15}


# ----------------------------------------------------------------------- the mathematics of GRPO


def group_advantages(
    rewards: list[float | None], group_size: int, scale: str = "group", eps: float = 1e-4
) -> tuple[list[float], float]:
    """(advantages, share of groups without signal) of one span; `group_size` rewards are a group.

    A = (r - mean of the group) / d, where d is the standard deviation + eps of the group (GRPO) or
    of all rewards ("batch", https://arxiv.org/abs/2508.08221), or 1 ("none",
    https://arxiv.org/abs/2503.20783). None (no reward) gets 0 and leaves the statistics.

    >>> group_advantages([1.0, 0.0, 0.5, 0.5, 1.0, None], 2, eps=0.0)
    ([1.0, -1.0, 0.0, 0.0, 0.0, 0.0], 0.6666666666666666)
    """
    advantages, without_signal = [], 0
    of_batch = _deviation(rewards) + eps
    for first in range(0, len(rewards), group_size):
        group = rewards[first : first + group_size]
        known = [r for r in group if r is not None]
        if not known or max(known) == min(known):
            advantages += [0.0] * len(group)
            without_signal += 1
            continue
        mean = sum(known) / len(known)
        divisor = {"group": _deviation(known) + eps, "batch": of_batch, "none": 1.0}[scale]
        advantages += [0.0 if r is None else (r - mean) / divisor for r in group]
    return advantages, without_signal * group_size / len(rewards)


def _deviation(rewards: list[float | None]) -> float:
    known = [r for r in rewards if r is not None]
    mean = sum(known) / max(1, len(known))
    return math.sqrt(sum((r - mean) ** 2 for r in known) / max(1, len(known)))


def assign_advantages(rollouts: list[Rollout], config: Config) -> dict[str, float]:
    """Fill in each span's advantages from its rewards; returns the groups' share without signal.

    rollouts: per prompt `group_size` answers, each with its `confessions_per_answer` rollouts, or
    one that does not confess. Answers to a prompt are a group; so are the confessions of an answer,
    or those of a prompt where each answer has one.
    """
    answers = [rollout.answer for rollout in rollouts if rollout.branch == 0]
    confessions = [rollout.confession for rollout in rollouts if rollout.confesses]
    each = config.confessions_per_answer
    together = each if each > 1 else config.group_size
    groups = {  # {span: (spans, how many are a group, scale)}
        "answer": (answers, config.group_size, config.answer_advantage_scale),
        "confession": (confessions, together, config.confession_advantage_scale),
    }
    without_signal = {}
    for name, (spans, size, scale) in groups.items():
        rewards = [span.reward for span in spans]
        advantages, without_signal[name] = group_advantages(rewards, size, scale)
        for span, advantage in zip(spans, advantages):
            span.advantage = advantage
    for rollout in rollouts:  # the confessions of an answer follow one another
        if rollout.branch == 0:
            advantage = rollout.answer.advantage
        rollout.answer.advantage = advantage
    return without_signal


def span_weights(
    rollouts: list[Rollout], span: str, weight: float, normaliser: str, kl_coef: float = 0.0
) -> list[float]:
    """Per rollout, the weight of each of its tokens in one span's loss.

    If every counted span were trained, they would sum to `weight` over its tokens. They are fixed
    before the batch is cut, so how it is cut changes nothing but rounding. Without a KL term a span
    of advantage 0 has no gradient: its weight is 0, and nothing is computed for it. An answer
    counts and is trained with its first confession alone, a confession where it was sampled.
    """
    counted = [r.confesses if span == "confession" else r.branch == 0 for r in rollouts]
    spans = [rollout.spans[span] for rollout in rollouts]
    lengths = [counts * (s.end - s.start) for counts, s in zip(counted, spans)]
    tokens, n = sum(lengths), sum(counted)
    return [
        weight / (tokens if normaliser == "token" else n * length)
        if length and (s.advantage or kl_coef)
        else 0.0
        for length, s in zip(lengths, spans)
    ]


def token_losses(logprobs, old_logprobs, advantages, clip_low: float, clip_high: float):
    """PPO's clipped surrogate per token, (N,) (https://arxiv.org/abs/1707.06347, eq. 7)."""
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def k3(logprobs, other_logprobs) -> torch.Tensor:
    """Per-token estimate of KL(policy || other) from the policy's samples
    (http://joschu.net/blog/kl-approx.html).

    expm1, because exp(x) - 1 cancels near 0, which is where on-policy values lie.
    """
    log_ratio = other_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


# ------------------------------------------------------------------------------------ the update


def trained_batches(
    rollouts: list[Rollout], config: Config, max_tokens: int, device: torch.device
) -> Iterator[tuple[list[int], Batch | None]]:
    """(places among the rollouts, micro-batch) for this rank's share of a step.

    None is a pass without rows, where other ranks have one more. All that one span's loss knows of
    a step is in the weights and advantages of its tokens here (tests/test_seal.py).
    """
    span_weight = {"answer": config.task_weight, "confession": config.confession_weight}
    weights = {
        span: span_weights(rollouts, span, weight, config.normaliser, config.kl_coef)
        for span, weight in span_weight.items()
    }
    for rows in deal(trained_lengths(rollouts, weights), max_tokens):
        of_rows = {span: [w[i] for i in rows] for span, w in weights.items()}
        yield rows, make_batch([rollouts[i] for i in rows], of_rows, device) if rows else None


def batch_loss(model, reference, batch: Batch, config: Config) -> tuple[torch.Tensor, dict]:
    """(loss of a micro-batch, its statistics as span_statistics() gives them)."""
    inputs = batch.ids, batch.trained, config.temperature
    logprobs = distributed.call(model, token_logprobs, *inputs)  # (N,)
    clip = config.clip_low, config.clip_high
    losses = token_losses(logprobs, batch.old_logprobs, batch.advantages, *clip)
    if config.kl_coef:
        without_adapters = model.disable_adapter() if reference is model else nullcontext()
        with torch.no_grad(), without_adapters:
            reference_logprobs = token_logprobs(reference, *inputs)
        weight = torch.where(batch.is_confession, config.confession_weight, config.task_weight)
        # batch.weights hold the span's weight, which is not the KL term's
        losses = losses + config.kl_coef / weight * k3(logprobs, reference_logprobs)
    return (batch.weights * losses).sum(), span_statistics(logprobs.detach(), batch, config)


def span_statistics(logprobs, batch: Batch, config: Config) -> dict[str, tuple]:
    """{"approx_kl_answer": (sum over the span's trained tokens, their number), ...}, to add up;
    tensors, as reading a number waits for the device.
    """
    log_ratio = logprobs - batch.old_logprobs
    ratio = log_ratio.exp()
    per_token = {
        "logprob_gap": log_ratio.abs(),
        "approx_kl": k3(batch.old_logprobs, logprobs),
        # outside the range, whichever side the minimum takes
        "clipfrac": (ratio < 1 - config.clip_low) | (ratio > 1 + config.clip_high),
    }
    tokens_of = {"answer": ~batch.is_confession, "confession": batch.is_confession}
    return {
        f"{name}_{span}": (torch.where(tokens, values, 0).double().sum(), tokens.sum())
        for span, tokens in tokens_of.items()
        for name, values in per_token.items()
    }


def means(statistics: list[dict[str, tuple[float, int]]]) -> dict[str, float]:
    """Of named sums and numbers of tokens; NaN where no token was trained."""
    out = {}
    for span in ("answer", "confession"):
        for name in (f"logprob_gap_{span}", f"approx_kl_{span}", f"clipfrac_{span}"):
            total = sum(sums[name][0] for sums in statistics)
            tokens = sum(sums[name][1] for sums in statistics)
            out[name] = total / tokens if tokens else math.nan
    return out


def update(
    model, reference, optimizer, rollouts, config: Config, max_tokens: int | None = None
) -> dict[str, float | bool | None]:
    """One optimizer step on rollouts with advantages; returns what it saw.

    reference: a model, for the KL term; max_tokens: of a micro-batch, instead of the config's.
    Every rank gets all rollouts and computes its share of the micro-batches. Where no span has
    a gradient, no step is taken: on zero gradients Adam's momentum would drift on. Nor is one
    where loss, gradient or what the sampler saw is not finite: then "skipped" is True, and what
    is not finite None.
    """
    losses, grad_norm, statistics, passes = [], 0.0, [], 0
    max_tokens = max_tokens or config.micro_batch_tokens
    optimizer.zero_grad()  # of an attempt that ran out of memory
    # a KL term switches the model's adapters off, so it needs the model
    with nullcontext(model) if config.kl_coef else merged_adapters(model) as network:
        if network is model:
            network.train()  # models.load() leaves no dropout; this lets activations be recomputed
        for _, batch in trained_batches(rollouts, config, max_tokens, model.device):
            passes += 1
            if batch is None:
                distributed.pass_without_rows(network, token_logprobs)
                continue
            loss, sums = batch_loss(network, reference, batch, config)
            loss.backward()
            losses.append(loss.detach())
            statistics.append(sums)
        network.eval()
    # only now, as each number that is read waits for the device
    total_loss = sum(distributed.gather([sum((loss.item() for loss in losses), 0.0)]))
    statistics = [
        {name: (total.item(), tokens.item()) for name, (total, tokens) in sums.items()}
        for sums in statistics
    ]
    if passes:
        distributed.sum_gradients(model)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        grad_norm = float(distributed.whole(norm))
    finite = math.isfinite(total_loss) and math.isfinite(grad_norm)
    skipped = not (finite and all(rollout.finite for rollout in rollouts))
    if passes and not skipped:
        take_step(optimizer)
    optimizer.zero_grad()
    stats = {"loss": total_loss, "grad_norm": math.nan if skipped else grad_norm}
    stats |= means(distributed.gather(statistics))
    return {k: v if math.isfinite(v) else None for k, v in stats.items()} | {"skipped": skipped}


def check_gap(stats: dict[str, float | None], config: Config) -> None:
    """UserError if a batch's first update finds sampler and trainer further apart than rounding."""
    gaps = [v for name, v in stats.items() if name.startswith("logprob_gap") and v is not None]
    # temperature divides the logits, and so multiplies their error
    bound = MAX_GAP[config.dtype] / min(1.0, config.temperature)
    if gaps and max(gaps) > bound:
        raise UserError(
            f"trainer and sampler disagree by {max(gaps):.2g} nats a token in the first steps, in "
            f"{config.dtype} at most {bound:.2g} is rounding: they compute different "
            "distributions; try --sampler plain or --compile false"
        )


@torch.no_grad()
def merging_gap(model, rollouts: list[Rollout], config: Config) -> float:
    """Nats a token, mean over the longest rollout, between its sampler and the model with its
    adapters apart: where merged weights are sampled and trained, an error in merging shows here.
    (Of few tokens a mean would be too uncertain to end a run.)
    """
    rollout = max(rollouts, key=lambda rollout: len(rollout.token_ids))
    weights = {name: [float(span.end > span.start)] for name, span in rollout.spans.items()}
    batch = make_batch([rollout], weights, model.device)
    with torch.compiler.set_stance("force_eager"):  # two rollouts are worth no graph
        logprobs = token_logprobs(model, batch.ids, batch.trained, config.temperature)
    return (logprobs - batch.old_logprobs).abs().mean().item()


# ---------------------------------------------------------------------------------- the training


def step_seed(config: Config, step: int) -> int:
    return config.seed * 1_000_003 + step


def generate(job: Job, step: int) -> list[Rollout]:
    """This rank's rollouts of a step; config, step, rank and batch size determine them.

    Which prompts confess is drawn before anything is sampled; their groups come first.
    """
    config, seed = job.config, step_seed(job.config, step)
    first = config.seed * 1_000_000 + step * config.prompts_per_step
    prompts = list(range(first, first + config.prompts_per_step))
    number = max(1, round(config.confession_share * len(prompts)))
    confessing = random.Random(seed).sample(prompts, number)
    # for rewards that draw and for rounding; sampling has its own generator
    for generator in (random.seed, numpy.random.seed, torch.manual_seed):
        generator((seed + distributed.rank() * 7_919) % 2**32)
    own, rollouts = distributed.share(prompts), []
    for confesses in (True, False):
        chosen = [prompt for prompt in own if (prompt in confessing) == confesses]
        sampled, job.sampling = sample_in_memory(
            job.model,
            job.tokenizer,
            job.task,
            [prompt for prompt in chosen for _ in range(config.group_size)],
            job.sampling,
            seed if confesses else seed + (1 << 39),
            variant=config.confession,
            confessions=config.confessions_per_answer if confesses else 0,
        )
        rollouts += sampled
    return rollouts


def scored(job: Job, rollouts: list[Rollout], verdicts: list[Verdict]):
    """(all ranks' rollouts with rewards and advantages, what assign_advantages() returns)."""
    score_rollouts(rollouts, verdicts, job.task, *job.rewards, job.config.truncated_reward)
    rollouts = distributed.gather(rollouts)
    return rollouts, assign_advantages(rollouts, job.config)


def learn(job: Job, step: int, rollouts: list[Rollout]) -> dict[str, float | bool | None]:
    """The updates on a step's rollouts; returns what the last one saw, and the first one's gap."""
    longest = max(len(rollout.token_ids) for rollout in rollouts)
    alone = distributed.world() == 1  # one rank of several cannot repeat a part
    smallest = longest if alone else job.micro_batch_tokens
    attempt = partial(update, job.learner, job.reference, job.optimizer, rollouts, job.config)
    if step <= 2 and job.config.lora_rank:
        # also at 2: before the first update LoRA's B is 0, and merging changes nothing
        check_gap({"logprob_gap": merging_gap(job.model, rollouts, job.config)}, job.config)
    for repeat in range(job.config.updates_per_batch):
        largest = job.micro_batch_tokens
        stats, job.micro_batch_tokens = halving("training", attempt, largest, smallest)
        if repeat == 0:
            gaps = {k: gap for k, gap in stats.items() if k.startswith("logprob_gap")}
            if step <= 2:
                check_gap(stats, job.config)
        if stats["skipped"]:
            run_folder.save_nonfinite(job.run, step, rollouts)
            break
    distributed.copy_back(job.learner, job.model)
    return stats | gaps


def train(config: Config, run: Path, resume: bool = False) -> None:
    """Train to config.steps, evaluating and saving: a new run, or on from its newest checkpoint."""
    job, done = begin(config, run, resume)  # done: steps
    left = progress.TimeLeft(config.steps, config.checkpoint_every)
    with (
        compiling(config) as waiting_for,
        cli.finish_step_on_interrupt() as interrupted,
        progress.event_files(run, done) as log_events,
        progress.bar(config.steps, done) as bar,
    ):
        bar.set_description(waiting_for)
        left.of_evaluations += save_and_evaluate(job, done)
        for step in range(done + 1, config.steps + 1):
            clock = [time.perf_counter()]
            rollouts = generate(job, step)
            clock.append(time.perf_counter())
            verdicts = job.judge(rollouts)
            if job.confession_judge:
                job.confession_judge(rollouts, job.sampling, step_seed(config, step))
            clock.append(time.perf_counter())
            rollouts, without_signal = scored(job, rollouts, verdicts)
            if step == 1:
                refuse_absent_judge(rollouts)
            clock.append(time.perf_counter())
            stats = learn(job, step, rollouts)
            clock.append(time.perf_counter())

            row = progress.step_row(step, rollouts, job.task, without_signal, stats)
            timing = progress.timing_row(step, clock, rollouts)
            run_folder.record_step(run, row, timing, rollouts)
            log_events(row | timing)
            progress.show(bar, row, clock[-1] - clock[0], left, rollouts, job.task)
            if row["skipped"]:
                run_folder.stop_after_three_skipped(run)
            stop = any(distributed.gather([bool(interrupted)]))
            if step % config.checkpoint_every == 0 or step == config.steps or stop:
                left.of_evaluations += save_and_evaluate(job, step)
            if stop:
                raise KeyboardInterrupt
        bar.set_postfix_str("")


@distributed.first_rank
def report(run: Path) -> None:
    """Print the table over checkpoints and draw the figures, from saved results alone."""
    import figures  # and matplotlib, which no step needs

    print(progress.format_unparsed(run_folder.read_rows(run / "metrics.jsonl")))
    show_table(run, cli.import_task(run_folder.read_config(run)["task"]))
    for path in figures.reproduction(run):
        print(f"figure: {path}")


def main() -> None:
    config = cli.parse(Config, __doc__)
    with cli.user_errors(), distributed.launched():
        resume = config.resume is not None
        if resume:
            run, config = Path(config.resume), run_folder.resumed_config(config, "grpo.py")
        else:
            config = resolve(config)
            run = run_folder.new_run(config.name)
        with run_folder.locked(run) if distributed.rank() == 0 else nullcontext():
            train(config, run, resume)
            report(run)


def in_two(config: Config) -> bool:
    """Whether this program starts a second process of itself: where an embedded model trains on a
    CPU with two threads or more (OMP_NUM_THREADS).
    """
    # elsewhere a fork of a process with the system's libraries is not safe
    if sys.platform != "linux" or torch.get_num_threads() == 1 or is_torchelastic_launched():
        return False
    if config.resume:
        config = run_folder.resumed_config(config, "grpo.py")
    small = models.is_embedded(config.model) and config.prompts_per_step != 1
    # each rank would round bfloat16 weights by noise of its own
    exact = config.dtype in (None, "float32")
    return small and exact and models.device_of(config.device).type == "cpu"


if __name__ == "__main__":
    with cli.user_errors(), distributed.on_two_cores(in_two(cli.parse(Config, __doc__))):
        main()
