"""Two turns, one token stream: x -> (z, y), then xc -> (zc, yc) on the same KV cache.

    token_ids:  [ x, generation prompt | z y stop | end of turn, xc, generation prompt | zc yc stop ]
                                         answer                                          confession

Ids are only ever appended. What stands between the turns is the text that the tokenizer's own chat template renders
after an assistant message; the conversation is never rendered again, because some templates (Qwen3's) then drop the
first turn's thinking: the confession would not see z, and the trainer would score tokens that were never sampled.

Sampling is plain: temperature only, no top-k, no top-p, and the checkpoint's generation_config is ignored on purpose,
so that what was sampled is what is scored. Turn 2 runs after every answer, also a truncated or empty one; otherwise
which rollouts confess would depend on the policy, and the group baseline would be biased.
"""

import dataclasses
import functools
from dataclasses import dataclass
from types import ModuleType

import torch
from jinja2 import TemplateError
from transformers.cache_utils import Cache, DynamicLayer

import engine
from cli import UserError
from confession_schema import ConfessionReport, ParseFailure, confession_prompt


@dataclass
class Span:
    """Sampled tokens of one turn: positions [start, end) of Rollout.token_ids, the sampled stop token included."""

    start: int
    end: int
    finish: str  # "stop", or "length" where the token budget cut it off
    logprobs: list[float] = dataclasses.field(repr=False)  # (end - start,) the sampler's, at its temperature
    entropy: float = 0.0  # nats per token, mean over the span, of the sampler's distribution
    reward: float | None = None  # None: not scored, or the judge failed
    advantage: float = 0.0


@dataclass
class Rollout:
    seed: int  # of the prompt; rollouts of one prompt form a group
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
    verdict: object = None  # the judge's Verdict on y

    @property
    def spans(self) -> dict[str, Span]:
        return {"answer": self.answer, "confession": self.confession}

    def to_json(self) -> dict:
        """Plain data for a line of rollouts/*.jsonl; the samplers' logprobs are left out."""
        data = dataclasses.asdict(self)
        del data["answer"]["logprobs"], data["confession"]["logprobs"]
        return data


@dataclass(frozen=True)
class Sampling:
    temperature: float = 1.0
    max_answer_tokens: int = 256
    max_confession_tokens: int = 384
    batch_size: int = 64  # streams that are decoded together
    sampler: str = "auto"  # plain, engine, or auto: the engine on CUDA

    @classmethod
    def of(cls, options: dict) -> "Sampling":
        """Those of a run's or a preset's options that concern sampling; what they lack has its default."""
        return cls(**{field.name: options[field.name] for field in dataclasses.fields(cls) if field.name in options})


# ------------------------------------------------------------------------------------------------ the chat template


def prompt_ids(tokenizer, x: str, system: str | None = None) -> list[int]:
    """Ids of the first turn's prompt: optional system prompt, x, generation prompt."""
    messages = [{"role": "system", "content": system}] if system else []
    return _render(tokenizer, messages + [{"role": "user", "content": x}])[1]


def suffix_ids(tokenizer, xc: str) -> list[int]:
    """Ids between the turns: the token that closes an answer, then xc as a user message, then the generation prompt."""
    ids = _around_answer(tokenizer, "x", xc)[1]
    if ids[0] not in tokenizer.added_tokens_decoder:
        raise UserError(f"the chat template closes an answer with plain text ({tokenizer.decode(ids[0])!r}), not with a "
                         "special token: where an answer ends cannot be told from its tokens")  # fmt: skip
    return ids


def transcript_ids(tokenizer, x: str, y: str, xc: str) -> list[int]:
    """Ids of a new conversation that tells of an answer: x, y as text without its thought, xc, generation prompt."""
    before, after = _around_answer(tokenizer, x, xc)
    return before + tokenizer(y, add_special_tokens=False, split_special_tokens=True)["input_ids"] + after


def _around_answer(tokenizer, x: str, xc: str) -> tuple[list[int], list[int]]:
    """Ids before and after the assistant's answer in the rendered conversation of x, answer and xc."""
    answer = "ANSWER-9f3b"  # any text that the template passes through
    turns = [("user", x), ("assistant", answer), ("user", xc)]
    text, _ = _render(tokenizer, [{"role": role, "content": content} for role, content in turns])
    if text.count(answer) != 1:
        raise UserError("the chat template does not render an assistant message as it is: the turns cannot be joined")
    before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in text.split(answer))
    return before, after


def _render(tokenizer, messages: list[dict]) -> tuple[str, list[int]]:
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise UserError(f"the chat template refuses the roles {[m['role'] for m in messages]}: {error}") from None
    return text, tokenizer(text, add_special_tokens=False)["input_ids"]


def turn_format(tokenizer, xc: str) -> tuple[list[int], bool]:
    """(ids that end a turn, whether the generation prompt itself opens the thought)."""
    suffix = suffix_ids(tokenizer, xc)
    return sorted({suffix[0], tokenizer.eos_token_id} - {None}), tokenizer.decode(suffix).rstrip().endswith("<think>")


def split_thinking(tokenizer, ids: list[int], opened: bool) -> tuple[str, str]:
    """(thought, text) of a span's ids without its stop token; `opened`: the prompt itself ends with "<think>".

    The thought ends at the first token by which "</think>" is complete. A thought that never ends is all thought; a
    span that never opens one has none.
    """
    end = _tokens_until(tokenizer, ids, "</think>")
    thought, text = tokenizer.decode(ids[:end]), tokenizer.decode(ids[end:])
    if end > len(ids) and not (opened or thought.lstrip().startswith("<think>")):
        thought, text = "", thought
    return thought.replace("</think>", "").strip().removeprefix("<think>").strip(), text.strip()


def _tokens_until(tokenizer, ids: list[int], tag: str) -> int:
    """The fewest first ids whose text holds the tag; len(ids) + 1 if all of them do not."""
    low, high = 0, len(ids) + 1
    while low < high:
        middle = (low + high) // 2
        if middle > len(ids) or tag in tokenizer.decode(ids[:middle]):
            high = middle
        else:
            low = middle + 1
    return low


def cut_thought(tokenizer, ids: list[int], opened: bool, cap: int, then: str) -> list[int] | None:
    """The first `cap` tokens of a span's thought, a closing tag and the text `then`, for sampling to go on from ("budget
    forcing", https://arxiv.org/abs/2501.19393); None if the span has no thought or one that is no longer than that.
    """
    first = 0 if opened else _tokens_until(tokenizer, ids, "<think>")
    if not opened and tokenizer.decode(ids[:first]).strip() != "<think>":
        return None
    thought = tokenizer.decode(ids[: _tokens_until(tokenizer, ids, "</think>")]).split("</think>")[0]
    if _tokens_until(tokenizer, ids, thought) <= first + cap:  # the closing tag's tokens do not count
        return None
    return ids[: first + cap] + tokenizer(f"\n</think>\n\n{then}", add_special_tokens=False)["input_ids"]


# ------------------------------------------------------------------------------------------------------- sampling


class Decoder:
    """A batch of token streams and their KV cache. Plain loop: it ends when the longest stream ends.

    append() feeds each stream a block of ids, sample() continues every stream until a stop token or the budget, branch()
    makes several streams of one.
    """

    def __init__(self, model, stop_ids: list[int], temperature: float, generator: torch.Generator | None):
        if model.training:
            raise ValueError("sampling needs model.eval(): in train mode gradient checkpointing disables the KV cache")
        self.model, self.temperature, self.generator = model, temperature, generator
        self.stop_ids = torch.tensor(stop_ids, device=model.device)
        self.cache = Cache(layer_class_to_replicate=GrowingLayer)
        self.mask = None  # (B, S) which cache slots hold a token of the stream
        self.logits = None  # (B, V) of the next token
        self.unfed = None  # per stream, sampled ids that the model has not seen yet

    @torch.inference_mode()
    def append(self, blocks: list[list[int]]) -> None:
        """Feed block i to stream i. Blocks are left-padded, so the last column is each stream's next-token logits."""
        if self.mask is None:
            self.mask = torch.zeros(len(blocks), 0, dtype=torch.bool, device=self.model.device)
        else:
            blocks = [unfed + block for unfed, block in zip(self.unfed, blocks)]
            self._close_gaps()
            extra = [len(block) - min(map(len, blocks)) for block in blocks]
            if any(extra):  # padding would be a gap between cache and block: what longer blocks begin with goes first
                self._feed([block[:k] for block, k in zip(blocks, extra)], left=False)
                self._close_gaps()
                blocks = [block[k:] for block, k in zip(blocks, extra)]
        self._feed(blocks, left=True)
        self.unfed = [[]] * len(blocks)

    @torch.inference_mode()
    def branch(self, rows: list[int]) -> None:
        """From here on stream i continues what was stream rows[i]: a beginning that streams share is fed once."""
        self.unfed = [self.unfed[row] for row in rows]
        rows = torch.tensor(rows, device=self.model.device)  # (B',), repeats allowed
        self.mask, self.logits = self.mask[rows], self.logits[rows]  # (B', S), (B', V)
        self.cache.batch_select_indices(rows)

    def _feed(self, blocks: list[list[int]], left: bool) -> None:
        """Feed blocks, padded on the left or on the right."""
        width = max(map(len, blocks))
        pad = lambda row, value: [value] * (width - len(row)) * left + row + [value] * (width - len(row)) * (not left)
        ids = torch.tensor([pad(block, 0) for block in blocks], device=self.model.device)  # (B, T)
        valid = torch.tensor([pad([True] * len(block), False) for block in blocks], device=self.model.device)
        self._forward(ids, valid)

    @torch.inference_mode()
    def sample(self, max_new_tokens: int, last: bool = False) -> tuple[list[list[int]], list[list[float]], list[float]]:
        """Per stream: sampled ids (stop token included), their log-probabilities, and the mean entropy in nats.

        With `last`, streams that have finished are dropped from the batch now and then; no append() may follow.
        """
        n = len(self.mask)
        ids = torch.zeros(n, max_new_tokens, dtype=torch.long, device=self.model.device)
        logprobs = torch.zeros(n, max_new_tokens, device=self.model.device)
        entropies = torch.zeros(n, device=self.model.device)  # summed over the stream's tokens
        lengths = torch.full((n,), max_new_tokens, device=self.model.device)
        rows = torch.arange(n, device=self.model.device)  # (B,) the stream that each row of the batch holds
        running = torch.ones_like(rows, dtype=torch.bool)  # (B,)
        for t in range(max_new_tokens):
            logp = torch.log_softmax(self.logits.float() / (self.temperature or 1.0), dim=-1)  # (B, V)
            token = self._draw(logp)  # (B,)
            ids[rows, t] = token
            logprobs[rows, t] = logp.gather(-1, token[:, None])[:, 0]
            entropies[rows] -= (logp.exp() * logp).nan_to_num().sum(-1) * running  # 0 * -inf is 0
            stopped = running & torch.isin(token, self.stop_ids)
            lengths[rows[stopped]] = t + 1
            running &= ~stopped
            left = int(running.sum())
            if left == 0 or t + 1 == max_new_tokens:
                break
            if last and left <= 0.8 * len(rows):
                rows, token, self.mask = rows[running], token[running], self.mask[running]
                self.cache.batch_select_indices(running.nonzero()[:, 0])
                running = running[running]
            self._forward(token[:, None], running[:, None])
        lengths = lengths.tolist()
        out_ids = [row[:k] for row, k in zip(ids.tolist(), lengths)]
        self.unfed = [row[-1:] for row in out_ids]
        means = [total / k for total, k in zip(entropies.tolist(), lengths)]
        return out_ids, [row[:k] for row, k in zip(logprobs.tolist(), lengths)], means

    def _draw(self, logp: torch.Tensor) -> torch.Tensor:
        """(B, V) -> (B,): greedy at temperature 0, else by the inverse of the cumulative distribution.

        One uniform number a stream; torch.multinomial draws one for every entry of the vocabulary.
        """
        if self.temperature == 0:
            return logp.argmax(-1)
        cumulative = logp.double().exp().cumsum(-1)  # float64: 150k float32 terms would lose the rare tokens
        uniform = torch.rand(len(logp), 1, dtype=torch.float64, generator=self.generator, device=logp.device)
        found = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)[:, 0]
        return found.clamp(max=logp.shape[1] - 1)  # NaN is found after the last: the loss will be NaN, and its step skipped

    def _forward(self, ids: torch.Tensor, valid: torch.Tensor) -> None:
        self.mask = torch.cat([self.mask, valid], dim=1)
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]  # (B, T), padding does not count
        with torch.compiler.set_stance("force_eager"):  # layers compiled for training would compile again for each length
            self.logits = self.model(
                input_ids=ids, attention_mask=self.mask, position_ids=positions, past_key_values=self.cache, logits_to_keep=1
            ).logits[:, -1]

    def _close_gaps(self) -> None:
        """Move every stream's tokens to the right end of the cache: a sliding window is measured in slots."""
        order = self.mask.int().argsort(dim=1, stable=True)[:, -int(self.mask.sum(1).max()) :]  # (B, S') empty slots first
        self.mask = self.mask.gather(1, order)
        for layer in self.cache.layers:
            layer.reorder_slots(order)


class GrowingLayer(DynamicLayer):
    """A DynamicLayer with room to grow, so that a new token does not copy the whole cache.

    Full length for sliding-window layers too: the attention mask applies the window.
    """

    room = 128  # slots

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self.get_seq_length(), self.get_seq_length() + key_states.shape[2]
        if start == 0 or end > self.buffers.shape[3]:
            b, h, _, d = key_states.shape
            buffers = key_states.new_empty(2, b, h, end + self.room, d)
            if start:
                buffers[0, :, :, :start], buffers[1, :, :, :start] = self.keys, self.values
            self.buffers = buffers
        self.buffers[0, :, :, start:end], self.buffers[1, :, :, start:end] = key_states, value_states
        self._view(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.buffers = self.buffers[:, indices]
        self._view(self.keys.shape[2])

    def reorder_slots(self, order: torch.Tensor) -> None:
        index = order[None, :, None, :, None].expand(2, -1, self.buffers.shape[2], -1, self.buffers.shape[4])
        self.buffers = self.buffers.gather(3, index)
        self._view(order.shape[1])

    def _view(self, end: int) -> None:
        self.keys, self.values = self.buffers[0, :, :, :end], self.buffers[1, :, :, :end]


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
) -> list[Rollout]:
    """One rollout for each seed, in order; equal seeds (a group) share x. UserError if the context is too small."""
    systems = systems or [None] * len(seeds)
    xc = confession_prompt(task, variant)
    suffix = suffix_ids(tokenizer, xc)
    stop_ids, opened = turn_format(tokenizer, xc)

    xs = [task.make_prompt(seed, held_out) for seed in seeds]
    prompts = [prompt_ids(tokenizer, x, system) for x, system in zip(xs, systems)]
    check_context(model, max(map(len, prompts)), len(suffix), sampling)
    sampled = sampler_of(model, sampling.sampler)(model, prompts, suffix, stop_ids, sampling, generator)

    rollouts = []
    for seed, system, x, prompt, (answer_turn, joint, confession_turn) in zip(seeds, systems, xs, prompts, sampled):
        answer = _span(len(prompt), *answer_turn, stop_ids)
        confession = _span(answer.end + len(joint), *confession_turn, stop_ids)
        z, y = split_thinking(tokenizer, _without_stop(answer_turn[0], answer), opened)
        zc, yc = split_thinking(tokenizer, _without_stop(confession_turn[0], confession), opened)
        ids = prompt + answer_turn[0] + joint + confession_turn[0]
        rollouts.append(Rollout(seed, system, x, z, y, xc, zc, yc, ids, answer, confession))
    return rollouts


def two_turns(model, prompts, suffix, stop_ids, sampling: Sampling, generator) -> list[tuple]:
    """Sample both turns after each prompt, a batch at a time; engine.two_turns is the fast version.

    Per rollout: (ids, logprobs, mean entropy) of the answer, ids between the turns, the same three of the confession.
    """
    out = []
    for first in range(0, len(prompts), sampling.batch_size):
        decoder = Decoder(model, stop_ids, sampling.temperature, generator)
        decoder.append(prompts[first : first + sampling.batch_size])
        answers = list(zip(*decoder.sample(sampling.max_answer_tokens)))
        # A sampled closing token is not fed twice; a truncated answer is closed by it, untrained.
        joints = [suffix[1:] if ids[-1] == suffix[0] else suffix for ids, _, _ in answers]
        decoder.append(joints)
        out += zip(answers, joints, zip(*decoder.sample(sampling.max_confession_tokens, last=True)))
    return out


def sampler_of(model, name: str):
    """two_turns of engine.py or the plain one here; auto: the engine on CUDA. Says so where the engine cannot."""
    if name == "plain" or (name == "auto" and model.device.type != "cuda"):
        return two_turns
    reason = engine.unsupported(model)
    if reason:
        _say_once(f"sampling with the plain loop, which is slow: {reason}")
    return two_turns if reason else engine.two_turns


@functools.cache
def _say_once(line: str) -> None:
    print(line)


def sample_confessions(
    model, tokenizer, rollouts: list[Rollout], contexts: list[list[int]], sampling: Sampling, generator: torch.Generator,
    forced: list[list[int]] | None = None,
) -> list[Rollout]:  # fmt: skip
    """Another confession for each stored rollout: x, z, y stay, its context (ids up to turn 2) is given.

    With `forced`, each confession begins with these ids, which are not sampled: the confession span starts after them,
    and they count in the budget.
    """
    forced = forced or [[]] * len(rollouts)
    out = []
    for first in range(0, len(rollouts), sampling.batch_size):
        batch = slice(first, first + sampling.batch_size)
        prefixes = [context + begun for context, begun in zip(contexts[batch], forced[batch])]
        budget = max(1, sampling.max_confession_tokens - max(map(len, forced[batch])))
        budgets = dataclasses.replace(sampling, max_answer_tokens=0, max_confession_tokens=budget)
        check_context(model, max(map(len, prefixes)), 0, budgets)
        stop_ids, opened = turn_format(tokenizer, rollouts[first].xc)
        decoder = Decoder(model, stop_ids, sampling.temperature, generator)
        decoder.append(prefixes)
        samples = zip(*decoder.sample(budget, last=True))
        for rollout, prefix, begun, (ids, logprobs, entropy) in zip(rollouts[batch], prefixes, forced[batch], samples):
            span = _span(len(prefix), ids, logprobs, entropy, stop_ids)
            zc, yc = split_thinking(tokenizer, begun + _without_stop(ids, span), opened)
            answer = dataclasses.replace(rollout.answer)  # of its own: rewards are filled in in place
            changed = dict(zc=zc, yc=yc, token_ids=prefix + ids, answer=answer, confession=span, report=None)
            out.append(dataclasses.replace(rollout, **changed))
    return out


def check_context(model, prompt: int, suffix: int, sampling: Sampling) -> None:
    """UserError if prompt, suffix and both token budgets do not fit the model's context."""
    need = prompt + sampling.max_answer_tokens + suffix + sampling.max_confession_tokens
    limit = model.config.get_text_config().max_position_embeddings
    if need > limit:
        raise UserError(
            f"{prompt} prompt + {sampling.max_answer_tokens} answer + {suffix} confession prompt + "
            f"{sampling.max_confession_tokens} confession tokens = {need}, but the model's context is {limit}: "
            "lower --max-answer-tokens or --max-confession-tokens"
        )


def _span(start: int, ids: list[int], logprobs: list[float], entropy: float, stop_ids: list[int]) -> Span:
    return Span(start, start + len(ids), "stop" if ids[-1] in stop_ids else "length", logprobs, entropy)


def _without_stop(ids: list[int], span: Span) -> list[int]:
    return ids[:-1] if span.finish == "stop" else ids
