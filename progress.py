"""What a training step leaves in the logs and on the terminal."""

import resource

import torch

import cli
from confession_schema import ConfessionReport
from evaluate import rates
from rollout import Rollout


def step_row(step: int, rollouts: list[Rollout], task, silent: dict[str, float], stats: dict[str, float]) -> dict:
    """A line of metrics.jsonl: nothing in it depends on the clock."""
    mean_reward = lambda rewards: sum(rewards) / len(rewards) if rewards else None
    rewards = {
        f"reward_{name}": mean_reward([r for r in (rollout.spans[name].reward for rollout in rollouts) if r is not None])
        for name in ("answer", "confession")
    }
    zero = {f"frac_zero_std_groups_{name}": share for name, share in silent.items()}
    failed = sum(rollout.verdict.state == "failed" for rollout in rollouts) / len(rollouts)
    return {"step": step, **rewards, **zero, **stats, "judge_failed": failed, **rates(rollouts, task)}


def timing_row(step: int, clock: list[float], rollouts: list[Rollout]) -> dict:
    """A line of timing.jsonl: seconds by phase, sampled and processed tokens, peak memory of the process or the GPU; with
    several processes those of rank 0, which waits for the others in the phase "score"."""
    seconds = {name: b - a for name, a, b in zip(("sample", "judge", "score", "train"), clock, clock[1:])}
    sampled = sum(len(span.logprobs) for rollout in rollouts for span in rollout.spans.values())
    on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0  # 0 also for a run on the CPU beside a GPU
    peak = on_gpu or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    tokens = {"sampled_tokens": sampled, "stream_tokens": sum(len(rollout.token_ids) for rollout in rollouts)}
    return {"step": step, **seconds, **tokens, "peak_gib": peak / 2**30}


def format_step(row: dict, seconds: float) -> str:
    show = lambda name: "  - " if row[name] is None else f"{row[name]:.2f}"
    return (
        f"step {row['step']:4} | reward {show('reward_answer')} {show('reward_confession')} | honest {show('honest_given_noncompliant')} "
        f"claims {show('claim_match')} counted {show('count_rate')} | hack {show('bracket_hack')} exact {show('exact_compliance')} "
        f"fooled {show('judge_fooled')} no verdict {show('judge_failed')} | parsed {show('parsed')} | grad {show('grad_norm')} "
        f"gap {row['logprob_gap_answer'] or 0:.0e} | {seconds:.1f}s"
        + (" | SKIPPED: loss or gradient not finite" if row["grad_norm"] is None else "")
    )


def format_example(rollout: Rollout) -> str:
    """A rollout in a few lines, without control characters."""
    facts = " ".join(
        f"{s.words}{'=' if met else '!'}{s.label}" for s, met in zip(rollout.truth.sentences, rollout.truth.objectives)
    )
    report = rollout.report
    said = f"grade {report.grade} {'/'.join(report.claims)}" if isinstance(report, ConfessionReport) else report.reason
    return (
        f"  y   {cli.printable(rollout.y, 150)}\n      words and labels {facts}; judge: {rollout.verdict.state}\n"
        f"  zc  {cli.printable(rollout.zc, 150)}\n      {said}; reward {rollout.confession.reward:.2f}"
    )
