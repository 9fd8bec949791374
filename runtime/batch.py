"""From rollouts to tensors:
which tokens are trained, padding, micro-batches, and which rank computes them.
"""

import bisect
from dataclasses import dataclass

import torch

from rollout import Rollout
from runtime import distributed


def trained_lengths(rollouts: list[Rollout], weights: dict[str, list[float]]) -> dict[int, int]:
    """{i: tokens of rollout i up to the end of its last span that is trained},
    without those that train none.
    """
    ends = {
        i: [s.end for name, s in r.spans.items() if weights[name][i]]
        for i, r in enumerate(rollouts)
    }
    return {i: max(e) for i, e in ends.items() if e}


@dataclass
class Batch:
    """Right-padded token streams, and one entry per trained token in row-major order (N,)."""

    ids: torch.Tensor  # (B, T)
    # (B, T) bool, the sampled tokens of trained spans, from positions and never from a pad id;
    # on the CPU, which has to know their number
    trained: torch.Tensor
    is_confession: torch.Tensor  # (N,) bool
    old_logprobs: torch.Tensor  # (N,)
    advantages: torch.Tensor  # (N,)
    weights: torch.Tensor  # (N,)


def make_batch(
    rollouts: list[Rollout], weights: dict[str, list[float]], device: torch.device
) -> Batch:
    """A micro-batch; weights: {"answer": one per rollout, "confession": one per rollout}.

    token_ids  x x z y .  c c r .      prompt, answer, stop token, confession prompt, confession
    trained    0 0 1 1 1  0 0 1 1
    weights        a a a      b b       a = weights["answer"][i], b = weights["confession"][i]

    A span of weight 0 is not trained, and what follows a rollout's last trained token is left out.
    Every rollout here has a trained span.
    """
    ends = trained_lengths(rollouts, weights).values()
    ids = torch.zeros(len(rollouts), max(ends), dtype=torch.long)
    trained = torch.zeros_like(ids, dtype=torch.bool)
    per_token = []  # (is_confession, old logprob, advantage, weight)
    for i, (rollout, end) in enumerate(zip(rollouts, ends, strict=True)):
        ids[i, :end] = torch.tensor(rollout.token_ids[:end])
        for name, span in rollout.spans.items():
            if weights[name][i]:
                trained[i, span.start : span.end] = True
                per_token += [
                    (name == "confession", logprob, span.advantage, weights[name][i])
                    for logprob in span.logprobs
                ]
    assert trained.sum() == len(per_token), (
        f"{int(trained.sum())} trained positions, {len(per_token)} sampled log-probabilities"
    )
    # to a device that still computes the last batch: what waits for it lets it idle afterwards
    ids, *columns = (
        tensor.to(device, non_blocking=True)
        for tensor in (ids, *map(torch.tensor, zip(*per_token)))
    )
    return Batch(ids, trained, *columns)


def micro_batches(lengths: dict[int, int], max_tokens: int) -> list[list[int]]:
    """Keys of {rollout: tokens}, longest first,
    cut so that a padded micro-batch holds at most max_tokens (or one rollout).
    """
    out = []
    for i in sorted(lengths, key=lambda i: -lengths[i]):
        if out and (len(out[-1]) + 1) * lengths[out[-1][0]] <= max_tokens:
            out[-1].append(i)
        else:
            out.append([i])
    return out


def deal(lengths: dict[int, int], max_tokens: int) -> list[list[int]]:
    """This rank's micro-batches, as many as every other's (some may be empty): smaller than
    allowed, to be alike.

    >>> deal({0: 9, 1: 5, 2: 4}, 10)
    [[0], [1, 2]]
    """
    ranks, batches = distributed.world(), micro_batches(lengths, max_tokens)
    if ranks == 1:
        return batches
    rounds = -(-len(batches) // ranks)
    enough = lambda tokens: len(micro_batches(lengths, tokens)) <= rounds * ranks
    batches = micro_batches(lengths, bisect.bisect_left(range(max_tokens), True, key=enough))
    return [
        batches[i] if i < len(batches) else []
        for i in range(distributed.rank(), rounds * ranks, ranks)
    ]
