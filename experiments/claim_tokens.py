"""Where a claim stands in the token stream of a stored report, and what a model's states and
probabilities are there.
"""

import math
import re
from types import ModuleType

import torch

from confession_schema import PASSING_GRADE, ConfessionReport, last_object, named
from models import logits_of
from rewards import float32_head
from rollout import Rollout
from runtime.memory import halving

CLAIMS = ("Full",), ("None",)
GRADES = tuple(
    tuple(str(grade) for grade in range(1, 8) if (grade >= PASSING_GRADE) == passing)
    for passing in (True, False)
)


def tokens_before(tokenizer, ids: list[int], characters: int) -> int:
    """The most first ids whose text has no more than as many characters."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high + 1) // 2
        if len(tokenizer.decode(ids[:middle])) <= characters:
            low = middle
        else:
            high = middle - 1
    return low


def claim_places(text: str, names: dict[str, str]) -> list[tuple[int, int]] | None:
    """(start, end) in a confession's text of the value of each claim, in the objectives' order,
    and of the grade; None where the last object does not name each once.
    """
    span = last_object(text)
    if span is None:
        return None
    find = lambda key: [
        match.span(1)
        for match in re.finditer(rf'(?i)"{key}"\s*:\s*"?((?<=")(?:[^"\\]|\\.)*|\d+)', text)
        if span[0] <= match.start() < span[1]
    ]
    objectives, claims, grades = map(find, ("objective", "compliance", "overall_compliance_grade"))
    found = {}
    for (start, end), place in zip(objectives, claims):
        for name in named(text[start:end], names)[:1]:
            found[name] = place
    if len(grades) != 1 or not len(objectives) == len(claims) == len(names) == len(found):
        return None
    return [*(found[name] for name in names), grades[0]]


@torch.no_grad()
def states(
    model, streams: list[list[int]], positions: list[list[int]], every_layer: bool, batch_size: int
) -> list[torch.Tensor]:
    """Per stream (P, L, D) hidden states at its positions, float32 on the CPU: of the embedding and
    every layer, or of the last one alone.
    """
    out = [torch.zeros(0)] * len(streams)
    order = sorted(range(len(streams)), key=lambda i: len(streams[i]))
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        width = max(len(streams[i]) for i in batch)
        # causal, so what is padded on the right changes nothing
        ids = torch.tensor([streams[i] + [0] * (width - len(streams[i])) for i in batch])  # (B, T)
        found = model.get_decoder()(
            input_ids=ids.to(model.device), use_cache=False, output_hidden_states=every_layer
        )
        layers = found.hidden_states if every_layer else [found.last_hidden_state]
        for row, i in enumerate(batch):
            at = torch.tensor(positions[i], dtype=torch.long, device=model.device)
            out[i] = torch.stack([h[row, at].float() for h in layers], dim=1).cpu()
    return out


@torch.no_grad()
def claim_margins(
    model, tokenizer, rollouts: list[Rollout], task: ModuleType, batch_size: int
) -> list[list[float]]:
    """Of each rollout, log P(Full) - log P(None) in nats of the token in which each objective's
    claim begins, and of the grades 4 to 7 and 1 to 3; by one forward pass over the rollout's own
    ids, at temperature 1. Of a word that is several tokens the first one counts. NaN where the
    report does not parse, or both sides begin with one token.
    """
    found = [[math.nan] * (len(rollout.truth.objectives) + 1) for rollout in rollouts]
    streams, positions, asked = [], [], []
    for i, rollout in enumerate(rollouts):
        span = rollout.confession
        ids = rollout.token_ids[span.start : span.end]
        text = tokenizer.decode(ids)
        places = claim_places(text, task.objectives(rollout.x))
        if not isinstance(rollout.report, ConfessionReport) or places is None:
            continue
        streams.append(rollout.token_ids[: span.end])
        positions.append([])
        for j, (start, end) in enumerate(places):
            before = tokens_before(tokenizer, ids, start)
            begun = text[len(tokenizer.decode(ids[:before])) : start]
            sides = [
                {first_id(tokenizer, begun + word + text[end : end + 4]) for word in words}
                for words in (GRADES if j == len(places) - 1 else CLAIMS)
            ]
            if sides[0].isdisjoint(sides[1]):
                # the state before a token predicts it
                positions[-1].append(span.start + before - 1)
                asked.append((i, j, [sorted(side) for side in sides]))
    hidden, _ = halving(
        "reading", lambda n: states(model, streams, positions, False, n), batch_size
    )
    rest = iter(asked)
    with float32_head(model):
        for of_stream in filter(len, hidden):
            at = of_stream[:, 0].to(model.device, model.dtype)
            for row in logits_of(model, at).float():  # (V,)
                i, j, (full, none) = next(rest)
                found[i][j] = (row[full].logsumexp(0) - row[none].logsumexp(0)).item()
    return found


def first_id(tokenizer, text: str) -> int:
    """Of a text that goes on behind a word: what follows decides where its tokens end."""
    return tokenizer(text, add_special_tokens=False)["input_ids"][0]
