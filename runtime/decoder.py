"""The plain sampler: a loop over the model's own forward, for any causal LM on any device.
runtime/engine.py is the fast one.

A Decoder holds a batch of token streams and their KV cache; two_turns() is what engine.two_turns
does faster, and its reference.
"""

import functools

import torch
from transformers.cache_utils import Cache, DynamicLayer

from chat_template import joint
from runtime import lean
from runtime.engine import unsupported


def two_turns(
    model, prompts, suffixes, stop_ids, sampling, generator, confessions: int = 1
) -> list[tuple]:
    """Sample both turns after each prompt, a batch at a time; without suffixes (ids between
    the turns) the first one alone.

    With several confessions an answer, as many answers as their confessions fit into
    sampling.batch_size rows. Per answer and each of its confessions, which go on from one KV
    cache: (ids, logprobs, mean entropy) of the answer, ids between the turns, the same three
    of the confession.
    """
    out = []
    size = max(1, sampling.batch_size // confessions)
    for first in range(0, len(prompts), size):
        decoder = Decoder(model, stop_ids, sampling.temperature, generator)
        batch = slice(first, first + size)
        decoder.append(prompts[batch])
        answers = list(zip(*decoder.sample(sampling.max_answer_tokens, last=not suffixes)))
        if not suffixes:
            out += [(answer, [], ([], [], 0.0)) for answer in answers]
            continue
        joints = [joint(ids, suffix) for (ids, _, _), suffix in zip(answers, suffixes[batch])]
        rows = [row for row in range(len(answers)) for _ in range(confessions)]
        if confessions > 1:
            decoder.branch(rows)
        answers, joints = [answers[row] for row in rows], [joints[row] for row in rows]
        decoder.append(joints)
        out += zip(answers, joints, zip(*decoder.sample(sampling.max_confession_tokens, last=True)))
    return out


class Decoder:
    """A batch of token streams and their KV cache. Plain loop: it ends when the
    longest stream ends.

    append() feeds each stream a block of ids, sample() continues every stream until a stop token
    or the budget, score() gives the log-probabilities of given continuations, branch() makes
    several streams of one.
    """

    def __init__(
        self, model, stop_ids: list[int], temperature: float, generator: torch.Generator | None
    ):
        if model.training:
            raise ValueError(
                "sampling needs model.eval(): in train mode gradient checkpointing disables "
                "the KV cache"
            )
        self.model, self.temperature, self.generator = model, temperature, generator
        self.stop_ids = torch.tensor(stop_ids, device=model.device)
        # a sliding window, which the engine does not know, is measured in slots of the cache
        self.gapless = unsupported(model) is not None
        self.lean = lean.supports(model)  # it goes on where the model's forward began
        self.cache = Cache(layer_class_to_replicate=GrowingLayer)
        self.mask = None  # (B, S) which cache slots hold a token of the stream
        self.logits = None  # (B, V) of the next token
        self.unfed = None  # per stream, sampled ids that the model has not seen yet

    @functools.cached_property
    def one_token(self) -> lean.OneToken | None:
        """It copies weights, so it is made when a first token is fed alone."""
        return lean.OneToken(self.model) if lean.OneToken.suits(self.model) else None

    @torch.inference_mode()
    def append(self, blocks: list[list[int]]) -> None:
        """Feed block i to stream i.
        Blocks are left-padded, so the last column is each stream's next-token logits.
        """
        if self.mask is None:
            self.mask = torch.zeros(len(blocks), 0, dtype=torch.bool, device=self.model.device)
        else:
            blocks = [unfed + block for unfed, block in zip(self.unfed, blocks)]
            self._close_gaps()
            extra = [len(block) - min(map(len, blocks)) for block in blocks]
            # padding is a gap between cache and block; where that must not be, what longer blocks
            # begin with goes first
            if any(extra) and self.gapless:
                self._feed([block[:k] for block, k in zip(blocks, extra)], left=False)
                self._close_gaps()
                blocks = [block[k:] for block, k in zip(blocks, extra)]
        self._feed(blocks, left=True)
        self.unfed = [[]] * len(blocks)

    @torch.inference_mode()
    def branch(self, rows: list[int]) -> None:
        """From here on stream i continues what was stream rows[i]:
        a beginning that streams share is fed once.
        """
        self.unfed = [self.unfed[row] for row in rows]
        rows = torch.tensor(rows, device=self.model.device)  # (B',), repeats allowed
        self.mask, self.logits = self.mask[rows], self.logits[rows]  # (B', S), (B', V)
        self.cache.batch_select_indices(rows)

    def _feed(self, blocks: list[list[int]], left: bool) -> None:
        """Feed blocks, padded on the left or on the right."""
        width = max(map(len, blocks))
        pad = lambda row, value: (
            [value] * (width - len(row)) * left + row + [value] * (width - len(row)) * (not left)
        )
        ids = torch.tensor([pad(block, 0) for block in blocks], device=self.model.device)  # (B, T)
        valid = torch.tensor(
            [pad([True] * len(block), False) for block in blocks], device=self.model.device
        )
        self._forward(ids, valid)

    @torch.inference_mode()
    def sample(
        self, max_new_tokens: int, last: bool = False
    ) -> tuple[list[list[int]], list[list[float]], list[float]]:
        """Per stream: sampled ids (stop token included), their log-probabilities, and the mean
        entropy in nats.

        With `last`, streams that have finished are dropped from the batch now and then; no
        append() may follow.
        """
        n = len(self.mask)
        ids = torch.zeros(n, max_new_tokens, dtype=torch.long, device=self.model.device)
        logprobs = torch.zeros(n, max_new_tokens, device=self.model.device)
        entropies = torch.zeros(n, device=self.model.device)  # summed over the stream's tokens
        lengths = torch.full((n,), max_new_tokens, device=self.model.device)
        # (B,) the stream that each row of the batch holds
        rows = torch.arange(n, device=self.model.device)
        running = torch.ones_like(rows, dtype=torch.bool)  # (B,)
        for t in range(max_new_tokens):
            logits = self.logits.float()
            if self.temperature not in (0.0, 1.0):
                logits = logits / self.temperature
            logp = torch.log_softmax(logits, dim=-1)  # (B, V)
            probabilities = logp.exp()
            token = self._draw(probabilities) if self.temperature else logp.argmax(-1)  # (B,)
            ids[rows, t] = token
            logprobs[rows, t] = logp.gather(-1, token[:, None])[:, 0]
            # 0 * -inf is 0 here
            entropy = -torch.linalg.vecdot(probabilities, logp.clamp(min=lean.LOWEST))
            entropies[rows] += entropy.nan_to_num() * running
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

    @torch.inference_mode()
    def score(self, continuations: list[list[int]]) -> torch.Tensor:
        """(B, C) log-probability of each continuation after each stream, summed over its tokens;
        no append() may follow.
        """
        n, longest = len(self.mask), max(map(len, continuations))
        ids = torch.tensor(
            [c + [0] * (longest - len(c)) for c in continuations], device=self.model.device
        )  # (C, L)
        valid = torch.tensor(
            [[t < len(c) for t in range(longest)] for c in continuations], device=self.model.device
        )  # (C, L)
        total = torch.log_softmax(self.logits.float(), dim=-1)[:, ids[:, 0]]  # (B, C)
        if longest > 1:
            self.branch([row for row in range(n) for _ in continuations])
        for t in range(1, longest):
            self._forward(ids[:, t - 1].repeat(n)[:, None], valid[:, t - 1].repeat(n)[:, None])
            logp = torch.log_softmax(self.logits.float(), dim=-1).view(
                n, len(continuations), -1
            )  # (B, C, V)
            total += logp.gather(-1, ids[:, t].expand(n, -1)[:, :, None])[:, :, 0] * valid[:, t]
        return total

    def _draw(self, probabilities: torch.Tensor) -> torch.Tensor:
        """(B, V) -> (B,), by the inverse of the cumulative distribution.

        One uniform number a stream; torch.multinomial draws one for every entry of the vocabulary.
        """
        # float64: the sum of 150k float32 terms would lose the rare tokens
        cumulative = probabilities.cumsum(-1, dtype=torch.float64)
        uniform = torch.rand(
            len(cumulative),
            1,
            dtype=torch.float64,
            generator=self.generator,
            device=cumulative.device,
        )
        found = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)[:, 0]
        # NaN is found after the last: the loss will be NaN, and its step skipped
        return found.clamp(max=cumulative.shape[1] - 1)

    def _forward(self, ids: torch.Tensor, valid: torch.Tensor) -> None:
        # (B, T), padding does not count
        positions = (self.mask.sum(1, keepdim=True) + valid.cumsum(1) - 1).clamp(min=0)
        self.mask = torch.cat([self.mask, valid], dim=1)
        if self.lean and self.cache.layers:
            where = self.cache, ids, self.mask, positions
            one = ids.shape[1] == 1 and self.one_token
            self.logits = one.logits(*where) if one else lean.logits(self.model, *where)
            return
        # layers compiled for training would compile again for each length
        with torch.compiler.set_stance("force_eager"):
            self.logits = self.model(
                input_ids=ids,
                attention_mask=self.mask,
                position_ids=positions,
                past_key_values=self.cache,
                logits_to_keep=1,
            ).logits[:, -1]

    def _close_gaps(self) -> None:
        """Move every stream's tokens to the right end of the cache, which then holds the fewest
        slots.
        """
        # (B, S') empty slots first
        order = self.mask.int().argsort(dim=1, stable=True)[:, -int(self.mask.sum(1).max()) :]
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
            b, h, _, d = key_states.shape
            self.buffers = key_states.new_empty(2, b, h, 0, d)
            self.hold(0)
        new = key_states.shape[2]
        self.hold(self.keys.shape[2] + new)
        self.keys[:, :, -new:], self.values[:, :, -new:] = key_states, value_states
        return self.keys, self.values

    def hold(self, slots: int) -> None:
        """Have so many slots in keys and values, the new ones with anything in them."""
        if slots > self.buffers.shape[3]:
            old = self.buffers
            self.buffers = old.new_empty(*old.shape[:3], slots + self.room, old.shape[4])
            self.buffers[:, :, :, : old.shape[3]] = old
        self.keys, self.values = self.buffers[:, :, :, :slots]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.buffers = self.buffers[:, indices]
        self.hold(self.keys.shape[2])

    def reorder_slots(self, order: torch.Tensor) -> None:
        """order (B, S'): the slots that each stream keeps."""
        index = order[None, :, None, :, None].expand(*self.buffers.shape[:3], -1, -1)
        self.buffers = self.buffers.gather(3, index.expand(-1, -1, -1, -1, self.buffers.shape[4]))
        self.hold(order.shape[1])
