"""Dual-span GRPO: train answers to please a weak judge and confessions to be honest, each span with its own reward.

    python grpo.py --steps 100                                    # embedded models, minutes on a laptop
    python grpo.py --steps 100 --model Qwen/Qwen3-8B --judge Qwen/Qwen3-4B-Instruct-2507
    torchrun --nproc-per-node 4 grpo.py --steps 100 ...           # the same on four GPUs (runtime/distributed.py)
    python grpo.py --resume runs/NAME                             # go on from the last checkpoint

A step: sample 8 prompts x 8 two-turn rollouts, judge the answers, check the confessions against the truth, turn each
span's rewards into group-relative advantages, take one optimizer step. Checkpoints are evaluated on held-out prompts;
at the end come the table and the figures (figures.py).

The seal: the coefficient of a token's log-probability in the loss is weight * advantage of its own span (without a KL term, and
where the ratio is not clipped). Rewards, parse results, lengths and truncations of one span enter no coefficient of the other (tests/test_seal.py). The spans do share
one gradient clip and one optimizer, which couples their *scale*: a large confession gradient shrinks the answer's step.

Differences from GRPO as published (DeepSeekMath, https://arxiv.org/abs/2402.03300)
  1. Two spans with their own rewards, advantages and normalisers; loss = task_weight * answer + confession_weight * confession.
  2. The old log-probabilities are the sampler's own. With one update per batch the ratio is 1 up to rounding; a mismatch
     between sampler and trainer shows in the log (`logprob_gap`), is corrected by the ratio within the clip range, and ends
     the run in its first steps if it is more than rounding (check_gap).
  3. The KL coefficient is 0 by default, so no reference model is held. It is not multiplied by the spans' weights, and counts for
     the spans that are trained.
  4. Without a KL term spans of advantage 0 are not computed (they have no gradient), and a batch without any signal takes no
     step, nor does one whose loss or gradient is not finite.
  5. An answer may confess several times (`--confessions-per-answer`): then these are the group that gives the baseline, as
     they share the truth that they are scored against, and each answer is trained once.
  6. Advantages need not be divided by the group's deviation (`--confession-advantage-scale`). The information reward's are
     not: among an answer's confessions the division makes one answer that met an objective weigh no more than each of the
     many that did not, which is the base rate's reward again; among a prompt's answers it pushes the other way.
  7. An answer whose judge failed gets advantage 0 and leaves its group's mean and deviation; it still counts in the
     normaliser. The deviation is the population's, as a group may so shrink to one. An answer that the budget cut off
     is no such case: it earns 0 (rewards.zero_truncated).
"""

import dataclasses
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Iterator

import torch
from tqdm import tqdm
from transformers import set_seed

import cli
import models
import run_folder
from chat_template import prompt_ids, suffix_ids
from cli import UserError
from confession_schema import confession_prompt
from evaluate import evaluate, sample_in_memory, save, show_table
from models import token_logprobs
from options import Config, resolve
from rewards import Judge, RewardFunction, judge_prompt, refuse_absent_judge, score_rollouts
from rollout import Rollout, Sampling, Verdict, check_context
from runtime import distributed, progress
from runtime.batch import Batch, deal, make_batch, trained_lengths
from runtime.memory import halving
from runtime.optimizer import make_optimizer, take_step

# Nats, mean over a span's tokens; measured are up to 3e-7, and .02 (.11 with random weights at the 8B shape). Within ln 1.2, where
# the ratio would be clipped.
MAX_GAP = {"float32": 1e-3, "bfloat16": 0.15}


# ------------------------------------------------------------------------------------------- the mathematics of GRPO


def group_advantages(
    rewards: list[float | None], group_size: int, scale: str = "group", eps: float = 1e-4
) -> tuple[list[float], float]:
    """(advantages, share of groups without signal) of one span; consecutive `group_size` rewards form a group.

    A = (r - mean of the group) / d, where d is the standard deviation + eps of the group (GRPO) or of all rewards ("batch",
    https://arxiv.org/abs/2508.08221), or 1 ("none", https://arxiv.org/abs/2503.20783). None (no reward) gets 0 and leaves
    the statistics.

    >>> group_advantages([1.0, 0.0, 0.5, 0.5, 1.0, None], 2, eps=0.0)
    ([1.0, -1.0, 0.0, 0.0, 0.0, 0.0], 0.6666666666666666)
    """
    advantages, silent = [], 0
    of_batch = _deviation(rewards) + eps
    for first in range(0, len(rewards), group_size):
        group = rewards[first : first + group_size]
        known = [r for r in group if r is not None]
        if not known or max(known) == min(known):
            advantages += [0.0] * len(group)
            silent += 1
            continue
        mean = sum(known) / len(known)
        divisor = {"group": _deviation(known) + eps, "batch": of_batch, "none": 1.0}[scale]
        advantages += [0.0 if r is None else (r - mean) / divisor for r in group]
    return advantages, silent * group_size / len(rewards)


def _deviation(rewards: list[float | None]) -> float:
    known = [r for r in rewards if r is not None]
    mean = sum(known) / max(1, len(known))
    return math.sqrt(sum((r - mean) ** 2 for r in known) / max(1, len(known)))


def assign_advantages(rollouts: list[Rollout], config: Config) -> dict[str, float]:
    """Fill in both spans' advantages, each from its own rewards; returns each span's share of groups without signal.

    rollouts: per prompt `group_size` answers, each with its `confessions_per_answer` rollouts. Answers to a prompt are a
    group; so are the confessions of an answer, or those of a prompt where each answer has one.
    """
    confessions = config.confessions_per_answer
    advantages, silent = {}, {}
    answers = [rollout.answer.reward for rollout in rollouts[::confessions]]
    advantages["answer"], silent["answer"] = group_advantages(answers, config.group_size, config.answer_advantage_scale)
    advantages["answer"] = [a for a in advantages["answer"] for _ in range(confessions)]
    size = confessions if confessions > 1 else config.group_size
    advantages["confession"], silent["confession"] = group_advantages(
        [rollout.confession.reward for rollout in rollouts], size, config.confession_advantage_scale
    )
    for name, values in advantages.items():
        for rollout, advantage in zip(rollouts, values, strict=True):
            rollout.spans[name].advantage = advantage
    return silent


def span_weights(rollouts: list[Rollout], span: str, weight: float, normaliser: str, kl_coef: float = 0.0) -> list[float]:
    """Per rollout, the weight of each of its tokens in one span's loss; over all of the span's tokens they would sum to `weight`.

    Fixed for the whole batch before it is cut into micro-batches, so how it is cut changes nothing. Without a KL term
    a span of advantage 0 has no gradient: its weight is 0, and nothing is computed for it. An answer counts and is trained
    with its first confession alone.
    """
    spans = [rollout.spans[span] for rollout in rollouts]
    counted = [span == "confession" or rollout.branch == 0 for rollout in rollouts]
    lengths = [s.end - s.start for s in spans]
    total = sum(length if normaliser == "token" else 1 for length, counts in zip(lengths, counted) if counts)
    per_token = [weight / (total if normaliser == "token" else total * length) for length in lengths]
    return [w if counts and (s.advantage or kl_coef) else 0.0 for w, s, counts in zip(per_token, spans, counted)]


def token_losses(logprobs, old_logprobs, advantages, clip_low: float, clip_high: float) -> torch.Tensor:
    """PPO's clipped surrogate per token, (N,), to be weighted and summed (https://arxiv.org/abs/1707.06347, eq. 7)."""
    ratio = (logprobs - old_logprobs).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def k3(logprobs, other_logprobs) -> torch.Tensor:
    """Per-token estimate of KL(policy || other) from the policy's samples (http://joschu.net/blog/kl-approx.html).

    expm1, because exp(x) - 1 cancels near 0, which is where on-policy values lie.
    """
    log_ratio = other_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


# ------------------------------------------------------------------------------------------------------ the update


def trained_batches(
    rollouts: list[Rollout], config: Config, max_tokens: int, device: torch.device
) -> Iterator[tuple[list[int], Batch | None]]:
    """(places among the rollouts, micro-batch) for this rank's share of a step; None where other ranks have one more.

    All that one span's loss knows of a step is in the weights and advantages of its tokens here (tests/test_seal.py).
    """
    weights = {
        "answer": span_weights(rollouts, "answer", config.task_weight, config.normaliser, config.kl_coef),
        "confession": span_weights(rollouts, "confession", config.confession_weight, config.normaliser, config.kl_coef),
    }
    for rows in deal(trained_lengths(rollouts, weights), max_tokens):
        of_rows = {span: [w[i] for i in rows] for span, w in weights.items()}
        yield rows, make_batch([rollouts[i] for i in rows], of_rows, device) if rows else None


def batch_loss(model, reference, batch: Batch, config: Config) -> tuple[torch.Tensor, dict[str, tuple[float, int]]]:
    """(loss of a micro-batch, its statistics as span_statistics() gives them)."""
    logprobs = distributed.call(model, token_logprobs, batch.ids, batch.trained, config.temperature)  # (N,)
    losses = token_losses(logprobs, batch.old_logprobs, batch.advantages, config.clip_low, config.clip_high)
    if config.kl_coef:
        switched_off = model.disable_adapter() if reference is model else nullcontext()
        with torch.no_grad(), switched_off:
            reference_logprobs = token_logprobs(reference, batch.ids, batch.trained, config.temperature)
        span_weight = torch.where(batch.is_confession, config.confession_weight, config.task_weight)  # which is in batch.weights
        losses = losses + config.kl_coef / span_weight * k3(logprobs, reference_logprobs)
    return (batch.weights * losses).sum(), span_statistics(logprobs.detach(), batch, config)


def span_statistics(logprobs, batch: Batch, config: Config) -> dict[str, tuple[float, int]]:
    """{"approx_kl_answer": (sum over the span's trained tokens, their number), ...}: what ranks and micro-batches add up."""
    log_ratio = logprobs - batch.old_logprobs
    ratio = log_ratio.exp()
    per_token = {
        "logprob_gap": log_ratio.abs(),
        "approx_kl": k3(batch.old_logprobs, logprobs),
        "clipfrac": (ratio < 1 - config.clip_low) | (ratio > 1 + config.clip_high),
    }
    tokens_of = {"answer": ~batch.is_confession, "confession": batch.is_confession}
    return {
        f"{name}_{span}": (float(values[tokens].double().sum()), int(tokens.sum()))
        for span, tokens in tokens_of.items()
        for name, values in per_token.items()
    }


def update(
    model, reference, optimizer, rollouts: list[Rollout], config: Config, micro_batch_tokens: int | None = None
) -> dict[str, float | bool | None]:
    """One optimizer step on rollouts with advantages; returns what it saw. `reference`: a model, for the KL term;
    `micro_batch_tokens`: instead of the config's.

    Every rank gets all rollouts and computes its share of the micro-batches. Where no span has a gradient, no step is
    taken: on zero gradients Adam's momentum would drift on. Nor is one where loss, gradient or what the sampler saw is
    not finite: then "skipped" is True, and what is not finite None.
    """
    total_loss, grad_norm, statistics, passes = 0.0, 0.0, [], 0
    optimizer.zero_grad()  # of an attempt that ran out of memory
    model.train()  # models.load() leaves no dropout; this only lets gradient checkpointing act
    for _, batch in trained_batches(rollouts, config, micro_batch_tokens or config.micro_batch_tokens, model.device):
        passes += 1
        if batch is None:
            distributed.pass_without_rows(model, token_logprobs)
            continue
        loss, sums = batch_loss(model, reference, batch, config)
        loss.backward()
        total_loss += loss.item()
        statistics.append(sums)
    total_loss = sum(distributed.gather([total_loss]))
    if passes:
        distributed.sum_gradients(model)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        grad_norm = float(distributed.whole(norm))
    skipped = not (math.isfinite(total_loss) and math.isfinite(grad_norm) and all(r.finite for r in rollouts))
    if passes and not skipped:
        take_step(optimizer)
    optimizer.zero_grad()
    model.eval()
    seen = {"loss": total_loss, "grad_norm": math.nan if skipped else grad_norm} | means(distributed.gather(statistics))
    return {name: value if math.isfinite(value) else None for name, value in seen.items()} | {"skipped": skipped}


STATISTICS = [f"{name}_{span}" for span in ("answer", "confession") for name in ("logprob_gap", "approx_kl", "clipfrac")]


def means(statistics: list[dict[str, tuple[float, int]]]) -> dict[str, float]:
    """Of named sums and numbers of tokens; NaN where no token was trained."""
    added = {name: [sum(column) for column in zip(*(s[name] for s in statistics))] or [0.0, 0] for name in STATISTICS}
    return {name: total / tokens if tokens else math.nan for name, (total, tokens) in added.items()}


def check_gap(stats: dict[str, float | None], config: Config) -> None:
    """UserError if the first update of a batch finds sampler and trainer further apart than rounding."""
    gaps = [gap for name, gap in stats.items() if name.startswith("logprob_gap") and gap is not None]
    bound = MAX_GAP[config.dtype] / min(1.0, config.temperature)  # which divides the logits
    if gaps and max(gaps) > bound:
        raise UserError(
            f"trainer and sampler disagree by {max(gaps):.2g} nats a token in the first steps, in {config.dtype} at most "
            f"{bound:.2g} is rounding: they compute different distributions; try --sampler plain or --compile false"
        )


# ----------------------------------------------------------------------------------------------------- the training


@dataclass
class Job:
    """What a run works with."""

    config: Config
    run: Path
    task: ModuleType
    rewards: tuple[RewardFunction, RewardFunction]  # of answers and of confessions
    tokenizer: object
    model: object  # what samples
    learner: object  # what is trained: the model itself, or its sharded copy
    reference: object  # for the KL term, or None
    judge: Judge
    optimizer: torch.optim.Optimizer
    sampling: Sampling  # this and the next get smaller where memory runs out
    micro_batch_tokens: int


def prepared(config: Config, run: Path, resumed: int | None) -> Job:
    """Load everything, from a checkpoint if there is one to go on from, and refuse what cannot work."""
    device = models.device_of(config.device)
    source = config.model if resumed is None else str(run_folder.checkpoint(run, resumed))
    model, tokenizer = models.load(source, device, config.dtype)
    judge = Judge(*models.load(config.judge, device, config.dtype))
    task, sampling = cli.import_task(config.task), Sampling.of(dataclasses.asdict(config))
    rewards = cli.import_function(config.answer_reward), cli.import_function(config.confession_reward)
    xs = [task.make_prompt(seed) for seed in range(64)]
    xcs = [confession_prompt(task, x, config.confession) for x in xs]
    longest_x = max(len(prompt_ids(tokenizer, x, thinking=config.thinking)) for x in xs)
    longest_xc = max(len(suffix_ids(tokenizer, xc, config.thinking)) for xc in xcs)
    check_context(model, longest_x, longest_xc, sampling)
    models.check_logits(model)
    torch.manual_seed(config.seed)  # for the adapters' initialisation; sampling has its own generators
    model = models.with_lora(model, config.lora_rank)
    learner = model if config.lora_rank else distributed.sharded(model)
    if config.gradient_checkpointing:
        models.recompute_activations(learner)
    if compiles(config):
        models.compile_layers(learner)
    reference = None
    if config.kl_coef:  # with new adapters it is the model with them switched off
        new_adapters = config.lora_rank and not models.has_adapters(config.model)
        reference = model if new_adapters else models.load(config.model, device, config.dtype)[0].requires_grad_(False)
    optimizer = make_optimizer(learner, config.lr)
    if resumed is not None:
        run_folder.load_optimizer(run, resumed, optimizer)
    return Job(
        config=config, run=run, task=task, rewards=rewards, tokenizer=tokenizer, model=model, learner=learner,
        reference=reference, judge=judge, optimizer=optimizer, sampling=sampling, micro_batch_tokens=config.micro_batch_tokens,
    )  # fmt: skip


def compiles(config: Config) -> bool:
    return config.compile and models.device_of(config.device).type == "cuda"


def save_and_evaluate(job: Job, step: int) -> None:
    """Checkpoint and evaluation of a step, as far as they are not there yet."""
    if step not in run_folder.checkpoint_steps(job.run):
        state = run_folder.optimizer_tensors(job.optimizer)
        run_folder.save_checkpoint(job.run, step, job.model, job.tokenizer, state)
    path = job.run / "evals" / f"step_{step:04d}.json"
    if not run_folder.exists(path):
        n, variant = job.config.eval_n, job.config.confession
        save(path, evaluate(job.model, job.tokenizer, job.judge, job.task, job.sampling, n, variant=variant), job.task)


def generate(job: Job, step: int) -> list[Rollout]:
    """This rank's rollouts of a step. Step and rank alone determine prompts and noise, so a resumed run repeats them."""
    config = job.config
    first = config.seed * 1_000_000 + step * config.prompts_per_step
    seeds = distributed.share(list(range(first, first + config.prompts_per_step)))
    seeds = [seed for seed in seeds for _ in range(config.group_size)]
    noise = config.seed * 1_000_003 + step
    set_seed((noise + distributed.rank() * 7_919) % 2**32)  # for rewards that draw and rounding; sampling has its own
    turns = {"variant": config.confession, "confessions": config.confessions_per_answer}
    rollouts, job.sampling = sample_in_memory(
        job.model, job.tokenizer, job.task, seeds, job.sampling, noise, **turns
    )
    return rollouts


def scored(job: Job, rollouts: list[Rollout], verdicts: list[Verdict]) -> tuple[list[Rollout], dict[str, float]]:
    """(all ranks' rollouts with rewards and advantages, each span's share of groups without signal)."""
    score_rollouts(rollouts, verdicts, job.task, *job.rewards, job.config.truncated_reward)
    rollouts = distributed.gather(rollouts)
    return rollouts, assign_advantages(rollouts, job.config)


def learn(job: Job, step: int, rollouts: list[Rollout]) -> dict[str, float | bool | None]:
    """The updates on a step's rollouts; returns what the last one saw, and how far sampler and trainer were apart at the first."""
    longest = max(len(rollout.token_ids) for rollout in rollouts)
    smallest = longest if distributed.world() == 1 else job.micro_batch_tokens  # one rank cannot repeat a part alone
    attempt = partial(update, job.learner, job.reference, job.optimizer, rollouts, job.config)
    for repeat in range(job.config.updates_per_batch):
        stats, job.micro_batch_tokens = halving("training", attempt, job.micro_batch_tokens, smallest)
        if repeat == 0:
            gaps = {name: gap for name, gap in stats.items() if name.startswith("logprob_gap")}
            if step <= 2:  # at the first one new adapters still change nothing
                check_gap(stats, job.config)
        if stats["skipped"]:
            run_folder.save_nonfinite(job.run, step, rollouts)
            break
    distributed.copy_back(job.learner, job.model)
    return stats | gaps


def train(config: Config, run: Path, resume: bool = False) -> None:
    """Train to config.steps, evaluating and saving on the way: a new run, or on from its newest checkpoint."""
    resumed = run_folder.newest_checkpoint(run) if resume else None  # None if it was killed before the first
    job = prepared(config, run, resumed)
    if not resume:
        x = job.task.make_prompt(0)
        xc = confession_prompt(job.task, x, config.confession)
        run_folder.create(run, config, {"x": x, "xc": xc, "judge": judge_prompt("X", "Y")})
    done = resumed or 0  # steps
    run_folder.forget_after(run, done)
    with (
        torch.compiler.set_stance("default" if compiles(config) else "force_eager"),  # for the sampler's layers too
        cli.finish_step_on_interrupt() as interrupted,
        tqdm(total=config.steps, initial=done, unit="step", disable=distributed.rank() > 0) as bar,
    ):
        if compiles(config):
            bar.set_description("compiling: a minute or two, half of that when it was done here before")
        save_and_evaluate(job, done)
        for step in range(done + 1, config.steps + 1):
            clock = [time.perf_counter()]
            rollouts = generate(job, step)
            clock.append(time.perf_counter())
            verdicts = job.judge(rollouts)
            clock.append(time.perf_counter())
            rollouts, silent = scored(job, rollouts, verdicts)
            if step == 1:
                refuse_absent_judge(rollouts)
            clock.append(time.perf_counter())
            stats = learn(job, step, rollouts)
            clock.append(time.perf_counter())

            row = progress.step_row(step, rollouts, job.task, silent, stats)
            run_folder.record_step(run, row, progress.timing_row(step, clock, rollouts), rollouts)
            bar.set_description("")
            bar.update()
            bar.write(progress.format_step(row, clock[-1] - clock[0]))
            if row["skipped"]:
                run_folder.stop_after_three_skipped(run)
            if step % 10 == 0:
                bar.write("\n".join(progress.format_example(r, job.task) for r in (rollouts[0], rollouts[-1])))
            last = any(distributed.gather([bool(interrupted)]))
            if step % config.checkpoint_every == 0 or step == config.steps or last:
                save_and_evaluate(job, step)
            if last:
                raise KeyboardInterrupt


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


if __name__ == "__main__":
    main()
