"""What a training step leaves in the logs and on the terminal."""

import resource
import statistics
from collections import Counter, deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import zip_longest
from pathlib import Path

import torch
from tqdm import tqdm

import cli
from confession_schema import ConfessionReport, ParseFailure
from metrics import TRUNCATED, rates
from rollout import Rollout, sampled_tokens
from runtime import distributed

ALIKE = 0.95  # of a step's reports being one and the same: the step's line says so


def step_row(
    step: int,
    rollouts: list[Rollout],
    task,
    without_signal: dict[str, float],
    stats: dict[str, float],
) -> dict:
    """A line of metrics.jsonl: nothing in it depends on the clock."""
    mean_reward = lambda rewards: sum(rewards) / len(rewards) if rewards else None
    rewards = {
        f"reward_{name}": mean_reward(
            [r for r in (rollout.spans[name].reward for rollout in rollouts) if r is not None]
        )
        for name in ("answer", "confession")
    }
    zero = {f"frac_zero_std_groups_{name}": share for name, share in without_signal.items()}
    reports = Counter(
        (r.report.claims, r.report.grade)
        for r in rollouts
        if isinstance(r.report, ConfessionReport)
    )
    (claims, grade), times = reports.most_common(1)[0] if reports else (((), None), 0)
    alike = {
        "reports_alike": times / sum(r.confesses for r in rollouts),
        "most_common_report": [*claims, grade],
    }
    unparsed = Counter(r.report.kind for r in rollouts if isinstance(r.report, ParseFailure))
    return {
        "step": step,
        **rewards,
        **zero,
        **stats,
        **rates(rollouts, task),
        **alike,
        "unparsed": dict(unparsed.most_common()),
    }


def timing_row(step: int, clock: list[float], rollouts: list[Rollout]) -> dict:
    """A line of timing.jsonl: seconds by phase, sampled and processed tokens, peak memory
    of the process or the GPU; with several processes those of rank 0, which waits for the others in
    the phase "score".
    """
    seconds = {
        name: b - a for name, a, b in zip(("sample", "judge", "score", "train"), clock, clock[1:])
    }
    # 0 also for a run on the CPU beside a GPU
    on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    peak = on_gpu or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    tokens = {
        "sampled_tokens": sampled_tokens(rollouts),
        "stream_tokens": sum(len(rollout.token_ids) for rollout in rollouts),
    }
    return {"step": step, **seconds, **tokens, "peak_gib": peak / 2**30}


@contextmanager
def event_files(run: Path, done: int):
    """Yields log(row), which writes a row's numbers into TensorBoard's event files in run/events,
    under their names; without the package `tensorboard`, or on another rank, it does nothing.

    done: steps of the run so far. What an interrupted run wrote beyond them is purged.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        SummaryWriter = None
    if SummaryWriter is None or distributed.rank():
        yield lambda row: None
        return
    with SummaryWriter(run / "events", purge_step=done + 1) as writer:

        def log(row: dict) -> None:
            for name, value in row.items():
                if isinstance(value, (int, float)) and name != "step":
                    writer.add_scalar(name, value, row["step"])
            writer.flush()

        yield log


@dataclass
class TimeLeft:
    """How long a run will still take, from the seconds that its steps and its evaluations took."""

    steps: int  # of the run
    checkpoint_every: int
    # the newest: rollouts grow and shrink with training, and compiling makes the first one slow
    of_steps: deque = field(default_factory=lambda: deque(maxlen=10))
    # of saving and evaluating
    of_evaluations: deque = field(default_factory=lambda: deque(maxlen=3))

    def after(self, step: int) -> float:
        """Seconds when a step is done, but not yet its checkpoint and evaluation."""
        evaluations = sum(
            s % self.checkpoint_every == 0 or s == self.steps for s in range(step, self.steps + 1)
        )
        each = statistics.median(self.of_evaluations) if self.of_evaluations else 0.0
        return (self.steps - step) * statistics.median(self.of_steps) + evaluations * each


def bar(steps: int, done: int) -> tqdm:
    """Of a run, on the first rank; the time left is show()'s, as tqdm's own knows steps alone."""
    form = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
    return tqdm(total=steps, initial=done, bar_format=form, disable=distributed.rank() > 0)


def show(bar, row: dict, seconds: float, left: TimeLeft, rollouts: list[Rollout], task) -> None:
    """Move a tqdm bar by a step and write its line above it, with two examples at every tenth."""
    left.of_steps.append(seconds)
    bar.set_description("", refresh=False)
    bar.set_postfix_str(f"{timedelta(seconds=round(left.after(row['step'])))} left", refresh=False)
    bar.update()
    bar.write(format_step(row, seconds))
    if row["step"] % 10 == 0:
        bar.write(
            "\n".join(format_example(rollout, task) for rollout in (rollouts[0], rollouts[-1]))
        )


def format_step(row: dict, seconds: float) -> str:
    show = lambda name: "  - " if row[name] is None else f"{row[name]:.2f}"
    common = (
        f"{row['reports_alike']:.0%} OF THE REPORTS ARE ALIKE: "
        f"{' '.join(map(str, row['most_common_report']))}"
    )
    cut = " and ".join(
        f"{row[f'{span}_truncated']:.0%} OF THE {span.upper()}S"
        for span in ("answer", "confession")
        if (row[f"{span}_truncated"] or 0) > TRUNCATED
    )
    return (
        f"step {row['step']:4} | reward {show('reward_answer')} {show('reward_confession')} | J "
        f"within prompts {show('claim_J_within')} on {show('claims_with_contrast')} of the "
        f"claims | honest {show('honest_given_noncompliant')} claims {show('claim_match')} counted "
        f"{show('count_rate')} | "
        f"hack {show('bracket_hack')} exact {show('exact_compliance')} fooled "
        f"{show('judge_fooled')} no verdict {show('judge_failed')} | "
        f"parsed {show('parsed')} | grad {show('grad_norm')} gap "
        f"{row['logprob_gap_answer'] or 0:.0e} | {seconds:.1f}s"
        + (f" | {common}" if row["reports_alike"] >= ALIKE else "")
        + (f" | CUT OFF BY THE BUDGET: {cut}" if cut else "")
        + (" | SKIPPED: loss or gradient not finite" if row["skipped"] else "")
    )


def format_unparsed(rows: list[dict]) -> str:
    """Why reports did not parse, counted over all steps."""
    kinds = sum((Counter(row["unparsed"]) for row in rows), Counter())
    return "unparsed reports over all steps: " + (
        ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()) or "none"
    )


def format_example(rollout: Rollout, task) -> str:
    """A rollout in a few lines, without control characters."""
    report = rollout.report
    parsed = isinstance(report, ConfessionReport)
    said = f"grade {report.grade}" if parsed else report.reason if report else "not asked"
    reward = rollout.confession.reward
    rows = zip_longest(
        task.objectives(rollout.x), rollout.truth.objectives, report.claims if parsed else ()
    )
    claims = "   ".join(
        f"{name} {'met' if met else 'not met'}{f', claimed {claim}' if claim else ''}"
        for name, met, claim in rows
    )
    return (
        f"  y   {cli.printable(rollout.y, 150)}\n      judge: {rollout.verdict.state}\n"
        f"  zc  {cli.printable(rollout.zc or rollout.yc, 150)}\n      {claims}\n      {said}; "
        f"reward {'-' if reward is None else f'{reward:.2f}'}"
    )
