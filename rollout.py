"""Two turns, one token stream: x -> (z, y), then xc -> (zc, yc) on the same KV cache.

    token_ids:  [ x, generation prompt | z y stop | turn's end, xc, generation prompt | zc yc stop ]
                                         answer                                         confession

Ids are only ever appended. What stands between the turns is the text that the tokenizer's own
chat template renders after an assistant message; the conversation is never rendered again, because
some templates (Qwen3's) then drop the first turn's thinking: the confession would not see z, and
the trainer would score tokens that were never sampled.

A turn ends at the template's closing token, at the tokenizer's eos, or at one that the checkpoint's
generation_config names. Where the model samples another one than the template puts between turns
(OLMo-3 ends a conversation with <|endoftext|>, its inner turns with <|im_end|>), both stand there:
the sampled one, which is trained like every sampled token, and then all that the template renders.
A rendered conversation lacks the first; without it the end of the answer, which was sampled, would
be no part of the stream, and no token would teach the model to stop.

Sampling is plain: temperature only, no top-k, no top-p; what else the checkpoint's
generation_config asks for is ignored on purpose, so that what was sampled is what is scored.
Turn 2 runs after every answer to a prompt that is to be confessed, also a truncated or empty one;
otherwise which rollouts confess would depend on the policy, and the group baseline would be biased.
"""

import dataclasses
import functools
import math
from dataclasses import dataclass
from types import ModuleType

import torch

from chat_template import opens_thought, prompt_ids, split_thinking, suffix_ids, turn_ends
from cli import UserError
from confession_schema import ConfessionReport, ParseFailure, confession_prompt
from runtime import decoder, engine


@dataclass
class Span:
    """Sampled tokens of one turn:
    positions [start, end) of Rollout.token_ids, the sampled stop token included.
    """

    start: int
    end: int
    # "stop", "length" where the token budget cut it off, or "none": this turn was not sampled
    finish: str
    # (end - start,) the sampler's, at its temperature
    logprobs: list[float] = dataclasses.field(repr=False)
    entropy: float = 0.0  # nats per token, mean over the span, of the sampler's distribution
    reward: float | None = None  # None: not scored, or the judge failed
    advantage: float = 0.0

    @property
    def finite(self) -> bool:
        """Whether the sampler's distribution was one: NaN logits sample something, too."""
        return all(map(math.isfinite, self.logprobs))


@dataclass(frozen=True)
class Verdict:
    """What the weak judge says of an answer (rewards.Judge)."""

    # "pass", "fail", or "failed": the answer could not be put to the judge; that is not a 0
    state: str
    reply: str  # the likelier of its replies, or why there is none
    margin: float | None = None  # log P(PASS) - log P(FAIL) in nats; None if failed


@dataclass
class Rollout:
    seed: int  # of the prompt; answers to one prompt form a group
    system: str | None
    x: str
    z: str  # thought of the answer, "" if there is none
    y: str
    xc: str
    zc: str  # thought of the confession
    yc: str
    token_ids: list[int] = dataclasses.field(repr=False)
    answer: Span
    confession: Span
    truth: object = None  # the task's Truth of y
    report: ConfessionReport | ParseFailure | None = None  # of yc
    verdict: Verdict | None = None  # the judge's, on y
    judged: dict | None = None  # by confession_judge.py, where it gives the reward
    # which of its answer's confessions this is: 0, 1, ...; they follow one another, each
    # with the answer
    branch: int = 0

    @property
    def spans(self) -> dict[str, Span]:
        return {"answer": self.answer, "confession": self.confession}

    @property
    def confesses(self) -> bool:
        """Whether turn 2 was sampled; without it xc, zc and yc are "", report and reward None."""
        return self.confession.finish != "none"

    @property
    def finite(self) -> bool:
        return self.answer.finite and self.confession.finite

    def to_json(self) -> dict:
        """Plain data for a line of rollouts/*.jsonl; of the truth what every task has (all of it
        where it is costly), the samplers' logprobs are left out.
        """
        # asdict() copies lists number by number
        spans = {k: dataclasses.replace(span, logprobs=[]) for k, span in self.spans.items()}
        data = dataclasses.asdict(dataclasses.replace(self, token_ids=[], **spans))
        data["token_ids"] = self.token_ids
        if self.truth and not hasattr(self.truth, "to_json"):
            names = ("objectives", "cheated", "compliant")
            data["truth"] = {name: getattr(self.truth, name) for name in names}
        del data["answer"]["logprobs"], data["confession"]["logprobs"]
        if self.judged is None:
            del data["judged"]
        return data

    @classmethod
    def from_json(cls, data: dict, task: ModuleType) -> "Rollout":
        """The inverse of to_json(); truth is computed again from y, unless the task keeps it, and
        logprobs are empty. KeyError, TypeError or ValueError for what is no rollout.
        """
        spans = {name: Span(**data[name], logprobs=[]) for name in ("answer", "confession")}
        report, verdict = data["report"], data["verdict"]
        if report:
            parsed = ConfessionReport if "reason" not in report else ParseFailure
            report = parsed(
                **{k: tuple(v) if isinstance(v, list) else v for k, v in report.items()}
            )
        verdict = Verdict(**verdict) if verdict else None
        kept = hasattr(task, "stored_truth")
        truth = task.stored_truth(data["truth"]) if kept else task.truth(data["x"], data["y"])
        return cls(**data | spans | {"report": report, "verdict": verdict, "truth": truth})


@dataclass(frozen=True)
class Sampling:
    temperature: float = 1.0
    max_answer_tokens: int = 256
    max_confession_tokens: int = 384
    batch_size: int = 64  # streams that are decoded together
    sampler: str = "auto"  # plain, engine, or auto: the engine on CUDA
    thinking: str = "auto"  # on, off, or auto: as the chat template does by itself

    @classmethod
    def of(cls, options: dict) -> "Sampling":
        """Those of a run's or a preset's options that concern sampling;
        what they lack has its default.
        """
        return cls(
            **{
                field.name: options[field.name]
                for field in dataclasses.fields(cls)
                if field.name in options
            }
        )


def sampled_tokens(rollouts: list[Rollout]) -> int:
    """Tokens that were sampled for them; an answer with several confessions was sampled once."""
    return sum(
        len(r.confession.logprobs) + (len(r.answer.logprobs) if r.branch == 0 else 0)
        for r in rollouts
    )


# ----------------------------------------------------------------------------------------- sampling


def sample_rollouts(
    model,
    tokenizer,
    task: ModuleType,
    seeds: list[int],
    sampling: Sampling,
    generator: torch.Generator,
    held_out: bool = False,
    systems: list[str | None] | None = None,  # one per seed; None: no system prompt anywhere
    variant: str = "default",
    confessions: int = 1,  # of each answer; 0: turn 1 alone
) -> list[Rollout]:
    """One answer for each seed, in order, with `confessions` rollouts, or one without a second
    turn; equal seeds (a group) share x. UserError if the context is too small.
    """
    systems = systems or [None] * len(seeds)
    xs = [task.make_prompt(seed, held_out) for seed in seeds]
    # once for a group: a chat template takes a millisecond
    xc_of = {x: confession_prompt(task, x, variant) for x in dict.fromkeys(xs)}
    ids_of = {xc: suffix_ids(tokenizer, xc, sampling.thinking) for xc in xc_of.values()}
    prompt_of = {
        turn: prompt_ids(tokenizer, *turn, sampling.thinking)
        for turn in dict.fromkeys(zip(xs, systems))
    }
    xcs, prompts = [xc_of[x] for x in xs], [prompt_of[turn] for turn in zip(xs, systems)]
    suffixes = [ids_of[xc] for xc in xcs]
    stop_ids, opened = (
        turn_ends(tokenizer, suffixes[0], model.generation_config),
        opens_thought(tokenizer, suffixes[0]),
    )
    check_context(model, max(map(len, prompts)), max(map(len, suffixes)), sampling)
    each = max(1, confessions)  # rollouts of an answer
    if not confessions:
        suffixes, sampling = [], dataclasses.replace(sampling, max_confession_tokens=0)
    sampled = sampler_of(model, sampling.sampler)(
        model, prompts, suffixes, stop_ids, sampling, generator, each
    )

    rollouts = []
    for i, (answer_turn, joint, confession_turn) in enumerate(sampled):
        k, branch = divmod(i, each)
        seed, system, x, xc, prompt = seeds[k], systems[k], xs[k], xcs[k], prompts[k]
        answer = _span(len(prompt), *answer_turn, stop_ids)
        z, y = split_thinking(tokenizer, _without_stop(answer_turn[0], answer), opened)
        if not confessions:
            ids, confession = prompt + answer_turn[0], Span(answer.end, answer.end, "none", [])
            rollouts.append(Rollout(seed, system, x, z, y, "", "", "", ids, answer, confession))
            continue
        confession = _span(answer.end + len(joint), *confession_turn, stop_ids)
        zc, yc = split_thinking(tokenizer, _without_stop(confession_turn[0], confession), opened)
        ids = prompt + answer_turn[0] + joint + confession_turn[0]
        rollouts.append(
            Rollout(seed, system, x, z, y, xc, zc, yc, ids, answer, confession, branch=branch)
        )
    return rollouts


def sampler_of(model, name: str):
    """two_turns of runtime/engine.py or of runtime/decoder.py; auto: the engine on CUDA.
    Says so where the engine cannot.
    """
    if name == "plain" or (name == "auto" and model.device.type != "cuda"):
        return decoder.two_turns
    reason = engine.unsupported(model)
    if reason:
        _say_once(f"sampling with the plain loop, which is slow: {reason}")
    return decoder.two_turns if reason else engine.two_turns


@functools.cache
def _say_once(line: str) -> None:
    print(line)


def sample_confessions(
    model,
    tokenizer,
    rollouts: list[Rollout],
    contexts: list[list[int]],
    sampling: Sampling,
    generator: torch.Generator,
    forced: list[list[int]] | None = None,
) -> list[Rollout]:
    """Another confession for each stored rollout: x, z, y stay, its context (ids up to
    turn 2) is given.

    With `forced`, each confession begins with these ids, which are not sampled: the confession span
    starts after them, and they count in the budget.
    """
    forced = forced or [[]] * len(rollouts)
    prefixes = [context + begun for context, begun in zip(contexts, forced)]
    budget = max(1, sampling.max_confession_tokens - max(map(len, forced)))
    alone = dataclasses.replace(sampling, max_answer_tokens=0, max_confession_tokens=budget)
    check_context(model, max(map(len, prefixes)), 0, alone)
    # to a sampler it is turn 1
    first = dataclasses.replace(sampling, max_answer_tokens=budget, max_confession_tokens=0)
    suffix = suffix_ids(tokenizer, rollouts[0].xc, sampling.thinking)
    stop_ids, opened = (
        turn_ends(tokenizer, suffix, model.generation_config),
        opens_thought(tokenizer, suffix),
    )
    sampled = sampler_of(model, sampling.sampler)(model, prefixes, [], stop_ids, first, generator)
    out = []
    for rollout, prefix, begun, ((ids, logprobs, entropy), *_) in zip(
        rollouts, prefixes, forced, sampled
    ):
        span = _span(len(prefix), ids, logprobs, entropy, stop_ids)
        zc, yc = split_thinking(tokenizer, begun + _without_stop(ids, span), opened)
        answer = dataclasses.replace(rollout.answer)  # of its own: rewards are filled in in place
        changed = dict(
            zc=zc, yc=yc, token_ids=prefix + ids, answer=answer, confession=span, report=None
        )
        out.append(dataclasses.replace(rollout, **changed))
    return out


def check_context(model, prompt: int, suffix: int, sampling: Sampling) -> None:
    """UserError if prompt, suffix and both token budgets do not fit the model's context."""
    need = prompt + sampling.max_answer_tokens + suffix + sampling.max_confession_tokens
    limit = model.config.get_text_config().max_position_embeddings
    if need > limit:
        raise UserError(
            f"{prompt} prompt + {sampling.max_answer_tokens} answer + {suffix} confession prompt + "
            f"{sampling.max_confession_tokens} confession tokens = {need}, but the model's "
            f"context is {limit}: "
            "lower --max-answer-tokens or --max-confession-tokens"
        )


def _span(
    start: int, ids: list[int], logprobs: list[float], entropy: float, stop_ids: list[int]
) -> Span:
    return Span(
        start, start + len(ids), "stop" if ids[-1] in stop_ids else "length", logprobs, entropy
    )


def _without_stop(ids: list[int], span: Span) -> list[int]:
    return ids[:-1] if span.finish == "stop" else ids
