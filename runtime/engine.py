"""The fast sampler: both turns of many rollouts by continuous batching on a paged KV cache.

Rollouts are decoded in slots, which are refilled as rollouts finish. two_turns() does what
decoder.two_turns, the plain reference, does. The model's own layers run over a flat list of
tokens, each of which has a slot and a position; an attention module in place of theirs writes keys
and values into a cache of blocks and attends there. So one code path both decodes (one token a
slot) and feeds prompts (many tokens a slot). A rollout takes blocks
as it grows; where none is left, the one that started last gives up its blocks and goes on later
from the tokens it has. Rollouts share the blocks that their streams begin with: a group its prompt,
the confessions of one answer the answer too.

Rollout and position select the random number that draws a token, so slots, order and evictions
change a sample by rounding only. On CUDA each layer's forward is compiled (once for all layers
and numbers of rows), or, for few rows, made of six kernels (runtime/few_rows.py); a decode step is
one CUDA graph per number of rows, and the host looks at the device every WINDOW steps.

A call samples from a copy of the model in which LoRA is merged and the projections of one input are
fused: 14 GB more for an 8B model with LoRA (9 GB without), made in a fraction of a second and gone
with the cache when it returns. Where both are small they stay, with the graphs, for the next call.
"""

import copy
import functools
import weakref
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from chat_template import joint
from cli import UserError
from runtime.compiled import compiled
from runtime.optimizer import random_bits, rounded

BLOCK = 64  # tokens in a block of the cache
WINDOW = 16  # decode steps between two looks: a finished rollout idles for half as many on average
FEED = 2_048  # prompt tokens in one forward pass
FEED_STEP = 512  # CUDA graphs of such passes are for multiples of this
TILE = 16  # of them, consecutive ones of a rollout that read its cache together
SPLITS = 8  # stretches of a row's context that are read side by side, where it pays
HEADROOM = 3 * 2**30  # bytes of GPU memory left to activations and logits
KEEP = 1 / 6  # of the GPU's memory: an engine that takes less is kept for the next step
# Model types whose attention is plain, whose projections have the usual names, and whose logits are
# what the head gives.
KNOWN = ("llama", "qwen2", "qwen3")


def unsupported(model) -> str | None:
    """Why the engine cannot sample from this model, or None."""
    config = model.config.get_text_config()
    if config.model_type not in KNOWN:
        return f"models of type {config.model_type} are not among {', '.join(KNOWN)}"
    if "sliding_attention" in (getattr(config, "layer_types", None) or []):
        return "it has sliding-window layers"
    if config.rope_parameters["rope_type"] not in ("default", "linear", "llama3", "yarn"):
        return (
            f"its rotary embedding ({config.rope_parameters['rope_type']}) depends on the length "
            "of the whole batch"
        )
    size = head_size(config)
    if model.device.type == "cuda" and (size < 16 or size & (size - 1)):
        return f"its head size {size} is no power of 2"
    return None


def head_size(config) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


# ------------------------------------------------------------------------------------------ weights


class FusedLinear(nn.Module):
    """Projections of the same input (QKV, gate and up) as one product: a decode step reads weights,
    and large reads are faster.
    """

    def __init__(self, projections: tuple[nn.Linear, ...], names: list[str]):
        super().__init__()
        self.names = names
        self.weight = torch.cat([p.weight for p in projections])
        self.bias = (
            None if projections[0].bias is None else torch.cat([p.bias for p in projections])
        )
        self.sizes = [p.out_features for p in projections]

    def forward(self, x):
        return self.parts(nn.functional.linear(x, self.weight, self.bias))

    def parts(self, x) -> tuple[torch.Tensor, ...]:
        """What each projection gives."""
        return x.split(self.sizes, -1)


class Attention(nn.Module):
    """Of the KNOWN models, in place of a layer's own: rotation and cache are attend()'s."""

    def __init__(self, theirs, qkv: FusedLinear):
        super().__init__()
        self.qkv, self.o_proj = qkv, theirs.o_proj
        self.head_dim, self.scaling = theirs.head_dim, theirs.scaling
        normed = hasattr(theirs, "q_norm")  # Qwen3
        self.q_norm = theirs.q_norm if normed else nn.Identity()
        self.k_norm = theirs.k_norm if normed else nn.Identity()

    def forward(self, hidden_states, position_embeddings, **kwargs):
        """(N, hidden), two of (N, D) -> (N, hidden), and no weights."""
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in self.qkv(hidden_states))
        out = attend(self.q_norm(q), self.k_norm(k), v, *position_embeddings, self.scaling)
        return self.o_proj(out.flatten(1)), None


class MLP(nn.Module):
    def __init__(self, theirs, gate_up: FusedLinear):
        super().__init__()
        self.gate_up, self.down_proj, self.act_fn = gate_up, theirs.down_proj, theirs.act_fn

    def forward(self, x):
        gate, up = self.gate_up(x)
        return self.down_proj(self.act_fn(gate) * up)


def base_of(model):
    """The model without the wrapper that adapters come with."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def sampling_copy(model):
    """The model with our attention, LoRA merged and projections fused;
    all other weights are the model's own tensors.
    """
    base = base_of(model)
    with torch.device("meta"):
        out = type(base)(copy.deepcopy(base.config))
    fill(out, merged_weights(model), base)
    name_of = {module: name for name, module in out.named_modules()}
    fused = lambda *modules: FusedLinear(modules, [name_of[module] for module in modules])
    for layer in out.get_decoder().layers:
        theirs, mlp = layer.self_attn, layer.mlp
        layer.self_attn = Attention(theirs, fused(theirs.q_proj, theirs.k_proj, theirs.v_proj))
        layer.mlp = MLP(mlp, fused(mlp.gate_proj, mlp.up_proj))
        if model.device.type == "cuda":
            layer.forward = compiled(layer.forward)
    return out.eval()


def fill(out, weights: dict[str, torch.Tensor], base) -> None:
    """Give a module like the model `base` these weights by their names, and base's buffers."""
    # a tied head has no entry of its own
    out.load_state_dict(weights, assign=True, strict=False)
    for name, _ in list(out.named_buffers()):
        parent, _, leaf = name.rpartition(".")
        out.get_submodule(parent)._buffers[leaf] = base.get_buffer(name)
    out.tie_weights()
    assert not any(tensor.is_meta for tensor in (*out.parameters(), *out.buffers())), (
        "a weight has no value"
    )


def merged_weights(model) -> dict[str, torch.Tensor]:
    """The weights by their names in the model without adapters."""
    weights = {}
    for name, module in base_of(model).named_modules():
        if hasattr(module, "base_layer"):
            weights |= {f"{name}.{k}": v for k, v in module.base_layer.state_dict().items()}
            weights[name + ".weight"] = merged(module)
        elif "lora_" not in name and ".base_layer" not in name:
            weights |= {
                f"{name}.{k}".lstrip("."): p.detach()
                for k, p in module.named_parameters(recurse=False)
            }
    return weights


class Weights:
    """A sampling copy of a model that can be given the model's later weights."""

    def __init__(self, model):
        self.copy, self.parameters = sampling_copy(model), list(model.parameters())
        base, self.pieces = base_of(model), []
        for name, module in self.copy.named_modules():
            fused = isinstance(module, FusedLinear)
            for kind in ("weight", "bias"):
                if (kept := getattr(module, kind, None)) is not None:
                    parts = zip(module.names, kept.split(module.sizes)) if fused else [(name, kept)]
                    self.pieces += [Piece(base, source, kind, part) for source, part in parts]

    def version(self) -> tuple:
        """Another one when a parameter has changed in place, or adapters came, went or were
        switched.
        """
        changes = sum(parameter._version for parameter in self.parameters)
        return changes, [piece.adapter() for piece in self.pieces]

    @torch.no_grad()
    def renew(self) -> bool:
        """Give the copy the model's present weights, in place, as CUDA graphs read them there.
        False: it holds tensors of the model that are others now (adapters came or went).
        """
        return all(piece.renew() for piece in self.pieces)


class Piece:
    """A tensor of the sampling copy, or the part of a fused one that is one projection's."""

    def __init__(self, base, name: str, kind: str, tensor: torch.Tensor):
        # weakly: an engine is kept as long as there is a model
        self.base, self.name, self.kind, self.tensor = weakref.ref(base), name, kind, tensor
        self.module = base.get_submodule(name)
        self.own = tensor.data_ptr() == self.source().data_ptr()  # the model's own tensor

    def source(self) -> torch.Tensor:
        return getattr(getattr(self.module, "base_layer", self.module), self.kind)

    def adapter(self) -> str | None:
        """What the module adds to its weights; "gone" if it is not the model's any more."""
        if self.base().get_submodule(self.name) is not self.module:
            return "gone"
        adapted = self.kind == "weight" and hasattr(self.module, "base_layer")
        off = not adapted or self.module.disable_adapters
        return None if off else self.module.active_adapters[0]

    def renew(self) -> bool:
        adapter, source = self.adapter(), self.source()
        if self.own:
            return adapter is None and self.tensor.data_ptr() == source.data_ptr()
        if adapter == "gone":
            return False
        self.tensor.copy_(merged(self.module) if adapter else source)
        return True


def merged(module) -> torch.Tensor:
    """W + BA of a LoRA layer;
    most of a young adapter is too small for bf16, so rounding is at random there.
    """
    weight = module.base_layer.weight.detach()
    if module.disable_adapters:
        return weight
    delta = module.get_delta_weight(module.active_adapters[0]).detach()
    if weight.dtype != torch.bfloat16:
        return (weight.float() + delta.float()).to(weight.dtype)
    generator = torch.Generator(delta.device).manual_seed(0)
    noise = random_bits(delta.shape, delta.device, generator)
    return rounded_sum(weight.is_cuda)(weight, delta, noise)


@functools.cache
def rounded_sum(on_gpu: bool):
    """W + delta rounded by noise; on a GPU one kernel instead of five."""
    add = lambda weight, delta, noise: rounded(weight.float() + delta.float(), noise)
    return compiled(add) if on_gpu else add


# ---------------------------------------------------------------------------------------- attention

# the engine whose cache attend() reads; torch.compile must not see the cache
RUNNING: "Engine | None" = None


@contextmanager
def running(engine: "Engine"):
    """The model's forward reads and writes this engine's cache."""
    global RUNNING
    RUNNING = engine
    try:
        yield
    finally:
        RUNNING = None


@torch.library.custom_op("confessions::attend", mutates_args=())
def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """q (N, Hq, D), k and v (N, H, D), cos and sin (N, D) of N tokens -> (N, Hq, D);
    see Engine.attend.
    """
    return RUNNING.attend(q, k, v, cos, sin, scale)


@attend.register_fake
def _(q, k, v, cos, sin, scale):
    return q.new_empty(q.shape)


def rotated(x, cos, sin) -> torch.Tensor:
    """Rotary embedding of x (..., D) at positions whose angles have these cosines and sines, as
    apply_rotary_pos_emb of the KNOWN models.
    """
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def forward(model, ids, positions):
    """Last hidden state (N, hidden) of N tokens; those at position -1 are padding."""
    decoder = model.get_decoder()
    hidden = decoder.embed_tokens(ids)
    cos, sin = decoder.rotary_emb(hidden, positions.clamp(min=0)[:, None])  # (N, 1, D) each
    return through_layers(decoder, hidden, (cos[:, 0], sin[:, 0]))


def through_layers(decoder, hidden, angles):
    """Last hidden states, from embeddings and the cosines and sines of their positions; no mask is
    made, as attention here needs none.
    """
    for layer in decoder.layers:
        hidden = layer(hidden, position_embeddings=angles)
    return decoder.norm(hidden)


def draw(logits, uniform, temperature: float):
    """(B, V), (B,) -> token, its logprob and the entropy (B,) each, of the full softmax;
    greedy at temperature 0.

    As the plain sampler: the inverse of the cumulative distribution at one uniform number a row,
    summed in float64. In two steps, over sums of 128 entries and within one of them, because
    a cumulative sum of 150k entries is slow on a GPU.
    """
    logits = logits.float() / (temperature or 1.0)
    top = logits.max(-1, keepdim=True).values
    shifted = nn.functional.pad(
        logits - top, (0, -logits.shape[1] % 128), value=float("-inf")
    ).unflatten(1, (-1, 128))
    weights = shifted.exp()  # (B, V / 128, 128)
    sums = weights.double().sum(-1)  # (B, V / 128)
    total = sums.sum(-1)  # (B,)
    entropy = total.log() - torch.where(weights > 0, weights * shifted, 0.0).sum((1, 2)) / total
    if temperature == 0:
        token = logits.argmax(-1)
    else:
        goal = (uniform * total)[:, None]
        before = sums.cumsum(-1)
        group = (before <= goal).sum(-1, keepdim=True).clamp(max=sums.shape[1] - 1)  # (B, 1)
        inside = (
            shifted.gather(1, group[:, :, None].expand(-1, -1, 128))[:, 0].exp().double()
        )  # (B, 128)
        inside = inside.cumsum(-1) + (before - sums).gather(1, group)
        token = (group[:, 0] * 128 + (inside <= goal).sum(-1)).clamp(max=logits.shape[1] - 1)
    logprob = (logits - top).gather(1, token[:, None])[:, 0] - total.log()
    return token, logprob.float(), entropy.float()


# -------------------------------------------------------------------------------------------- slots

# Rows of the state that host and device exchange, one column a slot.
TOKEN, POSITION, CURSOR, LIMIT, ROLLOUT, LIVE = range(6)
# TOKEN is fed next, at POSITION; what it draws goes to place CURSOR of ROLLOUT, turn 2 behind
# turn 1; at LIMIT the turn ends.


@dataclass
class Job:
    """A rollout on its way: the ids that host and model know, and where it stands."""

    rollout: int
    stream: list[int]
    turn: int = 0
    cursor: int = 0  # sampled tokens up to here are part of stream
    fed: int = 0  # ids of stream whose K and V are in the cache
    blocks: list[int] = field(default_factory=list)
    listed: int = 0  # blocks that stand in the table


def key_of(model, prompts, suffixes, stop_ids, sampling, confessions: int) -> tuple:
    """What an engine is made for, but for the length of its table."""
    kind = model.device, model.dtype, BLOCK
    return *kind, len(prompts), bool(suffixes), tuple(stop_ids), sampling, confessions


def entering(decoder, state):
    """Positions (B,) (-1: idle), embeddings (B, D), cosines and sines (B, head size) of the tokens
    that rows of the state, (6, B), feed.
    """
    positions = torch.where(state[LIVE].bool(), state[POSITION], -1)
    hidden = decoder.embed_tokens(state[TOKEN])
    cos, sin = decoder.rotary_emb(hidden, positions.clamp(min=0)[:, None])  # (B, 1, size) each
    return positions, hidden, cos[:, 0], sin[:, 0]


def leaving(logits, factor, state, slots, drawn, temperature: float) -> None:
    """Draw from logits (B, V) times factor (B, 1) for rows `state` (6, B) in `slots`, and put down
    what is drawn. drawn: the engine's noise, ids, logprobs, entropies, stop ids and the state of
    all slots.
    """
    noise, ids, logprobs, entropies, stop_ids, states = drawn
    _, position, cursor, limit, rollout, live = state  # (B,) each
    live = live.bool()
    idle = len(ids) - 1
    at, place = torch.where(live, rollout, idle), torch.where(live, cursor, 0)
    token, logprob, entropy = draw(logits.float() * factor, noise[at, place], temperature)
    ids[at, place], logprobs[at, place], entropies[at, place] = token, logprob, entropy
    going = live & (cursor + 1 < limit) & ~(token[:, None] == stop_ids).any(1)
    states[:, slots] = torch.stack(
        [token, position + live, cursor + live, limit, rollout, going.long()]
    )


@functools.cache
def around_layers(on_gpu: bool):
    """(entering, leaving), on a GPU compiled: to import the compiler takes seconds."""
    return (compiled(entering), compiled(leaving)) if on_gpu else (entering, leaving)


def row_count(slots: int) -> int:
    """Rows of the graph that decodes so many slots: a power of 2, so that there are few graphs."""
    return max(8, 1 << (slots - 1).bit_length())


class Engine:
    @torch.no_grad()
    def __init__(
        self,
        model,
        prompts,
        suffixes,
        stop_ids,
        sampling,
        generator,
        confessions: int = 1,
        blocks: int | None = None,
    ):
        """`suffixes`: ids between the turns of each answer, none for one turn only; `confessions`
        of each answer, a rollout each, of which the first one samples the answer for all; `blocks`:
        size of the cache [all that is needed, or what fits into the GPU's free memory].
        """
        if model.training:
            raise ValueError("sampling needs model.eval()")
        self.key = key_of(model, prompts, suffixes, stop_ids, sampling, confessions)
        self.temperature, self.confessions = sampling.temperature, confessions
        self.budgets = sampling.max_answer_tokens, sampling.max_confession_tokens
        self.device = model.device
        self.on_gpu = self.device.type == "cuda"
        self.weights = Weights(model)
        self.model, self.version = self.weights.copy, self.weights.version()
        self.stop_ids = torch.tensor(stop_ids, device=self.device)

        # one rollout and one slot more than there are, for idle rows
        n, places = len(prompts) * confessions, sum(self.budgets)
        self.noise = torch.empty(n + 1, places, dtype=torch.float64, device=self.device)
        self.ids = torch.zeros(n + 1, places, dtype=torch.long, device=self.device)
        self.logprobs, self.entropies = torch.zeros(2, n + 1, places, device=self.device)

        self.slots = min(sampling.batch_size, n)
        longest = self._longest(prompts, suffixes)
        self.state = torch.zeros(6, self.slots + 1, dtype=torch.long, device=self.device)
        self.table = torch.zeros(
            self.slots + 1, -(-longest // BLOCK), dtype=torch.int32, device=self.device
        )

        config = self.model.config.get_text_config()
        heads, dtype = config.num_key_value_heads, self.model.dtype
        blocks = blocks or self.slots * self.table.shape[1] + 1
        if self.on_gpu:
            per_block = (
                2 * config.num_hidden_layers * heads * BLOCK * head_size(config) * dtype.itemsize
            )
            self.programs = 2 * torch.cuda.get_device_properties(self.device).multi_processor_count
            torch.cuda.empty_cache()
            blocks = min(blocks, (torch.cuda.mem_get_info()[0] - HEADROOM) // per_block)
        if blocks < self.table.shape[1] + 1:
            raise UserError(
                f"memory is left for a KV cache of {(blocks - 1) * BLOCK} tokens, but a rollout "
                f"can have {longest}: "
                "lower --max-answer-tokens or --max-confession-tokens"
            )
        shape = (2, blocks, heads, BLOCK, head_size(config))
        self.cache = [
            torch.empty(shape, dtype=dtype, device=self.device)
            for _ in range(config.num_hidden_layers)
        ]
        self.few_rows = None  # kernels of a decode step, where they suit
        if self.on_gpu:
            from runtime import few_rows  # needs Triton, which CPU builds of torch lack

            self.few_rows = few_rows if few_rows.suits(self.model) else None
        self.graphs = {}  # by what they do: (graph, its input)
        self.stays = self.small(model)  # for the next call
        # of a token and KV head, programs that have attended to their stretch
        self.arrived = torch.zeros(
            row_count(self.slots) * heads, dtype=torch.int32, device=self.device
        )
        self._begin(prompts, suffixes, generator)

    def _longest(self, prompts, suffixes) -> int:
        """Tokens that a rollout can have."""
        return max(map(len, prompts)) + sum(self.budgets) + max(map(len, suffixes), default=0)

    def _begin(self, prompts, suffixes, generator) -> None:
        """Nothing of these is sampled yet, and the cache is empty."""
        each = lambda items: [item for item in items for _ in range(self.confessions)]
        self.prompts, self.suffixes = each(prompts), each(suffixes)  # one a rollout
        n = len(self.prompts)
        self.limits = [(self.budgets[0], sum(self.budgets))] * n  # of CURSOR, by turn
        self.lengths = [[0, 0] for _ in self.prompts]
        torch.rand(self.noise.shape, generator=generator, out=self.noise)
        # The cache too: what a masked position holds is multiplied by 0 and must be finite.
        for tensor in (self.state, self.table, *self.cache):
            tensor.zero_()
        self.host_state, self.host_table = self.state.cpu(), self.table.cpu()
        self.host_state[ROLLOUT] = n
        # counted by attend(): an index that it were given would have each layer compiled by itself
        self.layer = 0
        # block 0 stays empty: unused entries of the table point to it
        blocks = self.cache[0].shape[1]
        self.free = list(range(blocks - 1, 0, -1))
        self.shared = [0] * blocks  # how many jobs hold a block
        self.queue = deque(Job(i, list(self.prompts[i])) for i in range(0, n, self.confessions))
        self.jobs: dict[int, Job] = {}  # by slot, in the order in which they started
        self.evictions = 0

    @torch.no_grad()
    def again(self, model, prompts, suffixes, stop_ids, sampling, generator, confessions) -> bool:
        """Begin with the model's present weights; False where this engine is not made for that."""
        same = self.key == key_of(model, prompts, suffixes, stop_ids, sampling, confessions)
        fits = same and self._longest(prompts, suffixes) <= self.table.shape[1] * BLOCK
        if not fits or not self.weights.renew():
            return False
        self.version = self.weights.version()
        self._begin(prompts, suffixes, generator)
        return True

    def refresh(self) -> bool:
        """Have the model's present weights, if they changed since; False as Weights.renew()."""
        present = self.weights.version()
        if present != self.version:
            self.version = None  # of no model, while it is half renewed or if it cannot be
            if not self.weights.renew():
                return False
            self.version = present
        return True

    def small(self, model) -> bool:
        """Whether it can stay: its cache is whole, and with its weights leaves the device to what
        comes next.
        """
        if self.cache[0].shape[1] < self.slots * self.table.shape[1] + 1:
            return False
        total = torch.cuda.get_device_properties(self.device).total_memory if self.on_gpu else 2**33
        weights = sum(parameter.nbytes for parameter in model.parameters())
        return weights + sum(layer.nbytes for layer in self.cache) < KEEP * total

    def let_go(self) -> None:
        """Let memory go with the last reference, as training needs it: compiled layers refer to
        themselves, so it would stay until the garbage collector's next look, which takes a third of
        a second.
        """
        for layer in self.model.get_decoder().layers:
            vars(layer).pop("forward", None)

    @torch.inference_mode()
    def run(self) -> list[tuple]:
        """As two_turns."""
        with running(self):
            while self.queue or self.jobs:
                self.start_jobs()
                self.window()
        ids, logprobs, entropies = self.ids.tolist(), self.logprobs.tolist(), self.entropies.cpu()
        out = []
        for i, lengths in enumerate(self.lengths):
            places = [slice(start, start + n) for start, n in zip((0, self.budgets[0]), lengths)]
            answer, confession = (
                (ids[i][at], logprobs[i][at], entropies[i, at].mean().item()) for at in places
            )
            out.append(
                (answer, joint(answer[0], self.suffixes[i]) if self.suffixes else [], confession)
            )
        return out

    def window(self) -> None:
        """Up to WINDOW steps for all that have a slot."""
        self._make_room()
        self._feed()
        self._decode()
        self._finish_turns()

    # -- on the host: which rollout is where

    def start_jobs(self) -> None:
        for slot in range(self.slots):
            if not self.queue or slot in self.jobs:
                continue
            job = self.queue[0]
            # Rollouts share the blocks of what their streams begin with. Of two, the older one is
            # fed first and evicted last.
            blocks, most = [], (len(job.stream) - 1) // BLOCK
            for other in reversed(self.jobs.values()):  # a group's rollouts start side by side
                blocks = max(blocks, self._shared_blocks(other, job), key=len)
                if len(blocks) == most:
                    break
            if self.jobs and len(self.free) < len(job.stream) // BLOCK + 1 - len(blocks) + len(
                self.jobs
            ):
                # a block for each running job must be left, or this one would be evicted at once
                return
            self.queue.popleft()
            job.blocks, job.fed, job.listed = list(blocks), len(blocks) * BLOCK, 0
            for block in blocks:
                self.shared[block] += 1
            self._grow(job, len(job.stream))
            self.jobs[slot] = job
            self._enter(slot, job)

    def _shared_blocks(self, job: Job, other: Job) -> list[int]:
        """The job's blocks that hold, or will once it is fed,
        what the other one's stream begins with too.
        """
        n, end = 0, min(len(job.stream), len(other.stream)) - 1  # a stream's last id is fed later
        while (n + 1) * BLOCK <= end and job.stream[n * BLOCK : (n + 1) * BLOCK] == other.stream[
            n * BLOCK : (n + 1) * BLOCK
        ]:
            n += 1
        return job.blocks[:n]

    def _grow(self, job: Job, tokens: int) -> bool:
        """Give the job blocks for that many tokens; False: there are not enough."""
        while len(job.blocks) * BLOCK < tokens and self.free:
            job.blocks.append(self.free.pop())
            self.shared[job.blocks[-1]] = 1
        return len(job.blocks) * BLOCK >= tokens

    def _enter(self, slot: int, job: Job) -> None:
        """The last id of the stream is fed by the decode step that draws its successor."""
        state = [
            job.stream[-1],
            len(job.stream) - 1,
            job.cursor,
            self.limits[job.rollout][job.turn],
            job.rollout,
            1,
        ]
        self.host_state[:, slot] = torch.tensor(state)

    def _make_room(self) -> None:
        """Blocks for what the next window writes;
        the job that started last is evicted where there are none.
        """
        # lists, because reading one number of a tensor takes as long as twenty of these
        _, positions, cursors, limits, *_ = self.host_state.tolist()
        for slot, job in list(self.jobs.items()):
            tokens = positions[slot] + min(WINDOW, limits[slot] - cursors[slot])
            while slot in self.jobs and not self._grow(job, tokens):
                self._evict(next(reversed(self.jobs)))
            if len(job.blocks) > job.listed:
                new = torch.tensor(job.blocks[job.listed :], dtype=torch.int32)
                self.host_table[slot, job.listed : len(job.blocks)] = new
                job.listed = len(job.blocks)

    def _evict(self, slot: int) -> None:
        job = self.jobs[slot]
        self._take_sampled(slot, job)
        self._leave(slot)
        self.queue.appendleft(job)
        self.evictions += 1

    def _leave(self, slot: int) -> None:
        for block in self.jobs.pop(slot).blocks:
            self.shared[block] -= 1
            if not self.shared[block]:
                self.free.append(block)
        self.host_state[LIVE, slot] = 0

    def _take_sampled(self, slot: int, job: Job) -> None:
        """Append what was sampled since the last time to the stream."""
        cursor = int(self.host_state[CURSOR, slot])
        job.stream += self.ids[job.rollout, job.cursor : cursor].tolist()
        job.cursor = cursor

    def _finish_turns(self) -> None:
        self.host_state = self.state.cpu()
        live = self.host_state[LIVE].tolist()
        for slot, job in list(self.jobs.items()):
            if live[slot]:
                continue
            self._take_sampled(slot, job)
            self.lengths[job.rollout][job.turn] = job.cursor - self.budgets[0] * job.turn
            if job.turn == 1 or not self.suffixes:
                self._leave(slot)
            else:
                job.fed = int(self.host_state[POSITION, slot])
                job.stream += joint(job.stream, self.suffixes[job.rollout])
                job.turn, job.cursor = 1, self.budgets[0]
                self._enter(slot, job)
                self._branch(job)

    def _branch(self, job: Job) -> None:
        """The answer's other confessions are next:
        the blocks that they can share with this one are still there.
        """
        places = slice(0, self.lengths[job.rollout][0])
        for other in range(job.rollout + 1, job.rollout + self.confessions):
            for kept in (self.ids, self.logprobs, self.entropies):
                kept[other, places] = kept[job.rollout, places]
            self.lengths[other][0] = places.stop
            self.queue.appendleft(Job(other, list(job.stream), turn=1, cursor=job.cursor))

    # -- on the device

    def _feed(self) -> None:
        """Send state and table, then feed what streams hold beyond the cache,
        except for their last ids.
        """
        self.state.copy_(self.host_state)
        self.table.copy_(self.host_table)
        ids, slots, positions = [], [], []  # one of each a token
        for slot, job in self.jobs.items():
            end = len(job.stream) - 1
            padding = (job.fed - end) % TILE  # a tile holds tokens of one slot
            ids += job.stream[job.fed : end] + [0] * padding
            positions += [*range(job.fed, end)] + [-1] * padding
            slots += [slot] * (len(ids) - len(slots))
            job.fed = end
        if not ids:
            return
        for part in torch.tensor([ids, slots, positions]).split(FEED, dim=1):
            if self.on_gpu and self.stays:
                self._replay_feed(part)
            else:
                self._feed_tokens(part.to(self.device))

    def _feed_tokens(self, tokens) -> None:
        """Tokens (3, N): id, slot and position of each."""
        ids, self.rows, self.positions = tokens.contiguous()
        self.tile, self.splits = TILE, 1
        forward(self.model, ids, self.positions)

    def _replay_feed(self, part) -> None:
        """Feed tokens (3, N) by a CUDA graph for as many or more: to launch a small model's layers
        takes longer than to compute them.
        """
        n = part.shape[1]
        size = -(-n // FEED_STEP) * FEED_STEP
        if size in self.graphs:
            graph, tokens = self.graphs[size]
        else:
            graph, tokens = None, torch.zeros(3, size, dtype=torch.long, device=self.device)
        tokens[2, n:] = -1  # padding
        tokens[:, :n] = part
        if graph:
            graph.replay()
            return
        self._feed_tokens(tokens)  # compiles
        self.graphs[size] = self._captured(lambda: self._feed_tokens(tokens)), tokens

    def _decode(self) -> None:
        live = list(self.jobs)
        _, position, cursor, limit, *_ = self.host_state[:, live]
        steps = min(WINDOW, int((limit - cursor).max()))
        rows = row_count(len(live))
        if not self.on_gpu:
            for _ in range(steps):
                self._step(torch.tensor(live), splits=1)
            return
        # A row's context is split among programs where the longest one would be more than a fair
        # share for one of them.
        longest = int(position.max()) + WINDOW
        splits = (
            1 if longest * self.programs <= int(position.sum()) * self.cache[0].shape[2] else SPLITS
        )
        if (rows, splits) not in self.graphs:
            self.graphs[rows, splits] = self._capture(rows, splits)
        graph, slots = self.graphs[rows, splits]
        slots.copy_(torch.tensor(live + [self.slots] * (rows - len(live))))
        for _ in range(steps):
            graph.replay()

    def _capture(self, rows: int, splits: int):
        # the idle slot: nothing is sampled while capturing
        slots = torch.full((rows,), self.slots, device=self.device)
        self._step(slots, splits)  # compiles
        return self._captured(lambda: self._step(slots, splits)), slots

    def _captured(self, work) -> torch.cuda.CUDAGraph:
        """What work() launches."""
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self.graphs.values()))[0].pool() if self.graphs else None
        with torch.cuda.graph(graph, pool=pool):
            work()
        return graph

    def _step(self, slots, splits: int) -> None:
        """Feed and draw one token for each of `slots` (B,); everything stays on the device."""
        enter, leave = around_layers(self.on_gpu)
        state, decoder = self.state[:, slots], self.model.get_decoder()
        self.tile, self.splits, self.rows = 1, splits, slots
        self.positions, hidden, *angles = enter(decoder, state)
        factor = torch.ones(len(slots), 1, device=self.device)
        if self.on_gpu and self.few_rows and len(slots) <= self.few_rows.MOST:
            hidden, factor = self.few_rows.forward(decoder, hidden, angles, self.attend)
        else:
            hidden = through_layers(decoder, hidden, angles)
        logits = self.model.get_output_embeddings()(hidden)
        if self.on_gpu:  # sums of a known number of groups take a third of the time
            torch._dynamo.mark_static(logits, 1)
        drawn = self.noise, self.ids, self.logprobs, self.entropies, self.stop_ids, self.state
        leave(logits, factor, state, slots, drawn, self.temperature)

    def attend(self, q, k, v, cos, sin, scale: float, unscaled=None) -> torch.Tensor:
        """Attention of one layer for N tokens at self.rows, self.positions (N,), after their
        rotation: first their own K and V enter the cache. unscaled: see paged_attention.attend.
        """
        keys, values = self.cache[self.layer]  # (blocks, H, BLOCK, D)
        self.layer = (self.layer + 1) % len(self.cache)
        if self.on_gpu:
            from runtime import paged_attention

            where = keys, values, self.table, self.rows, self.positions, self.arrived
            how = scale, self.tile, self.splits, unscaled
            return paged_attention.attend(q, k, v, cos, sin, *where, *how)
        q, k = (rotated(x, cos[:, None], sin[:, None]) for x in (q, k))
        real = self.positions >= 0
        block = self.table[self.rows, self.positions // BLOCK][real]
        keys[block, :, self.positions[real] % BLOCK] = k[real]
        values[block, :, self.positions[real] % BLOCK] = v[real]
        end = max(int(self.positions.max()), 0)
        blocks = self.table[self.rows, : end // BLOCK + 1]  # (N, n)
        k, v = (
            x[blocks].transpose(1, 2).flatten(2, 3) for x in (keys, values)
        )  # (N, H, n * BLOCK, D)
        # (N, 1, 1, n * BLOCK)
        mask = torch.arange(k.shape[2]) <= self.positions.clamp(min=0)[:, None, None, None]
        return nn.functional.scaled_dot_product_attention(
            q[:, :, None], k, v, mask, scale=scale, enable_gqa=True
        )[:, :, 0]


# engines whose copy, cache and graphs are worth half a second a step
KEPT: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # by model


def two_turns(
    model, prompts, suffixes, stop_ids, sampling, generator, confessions: int = 1
) -> list[tuple]:
    """As decoder.two_turns."""
    arguments = model, prompts, suffixes, stop_ids, sampling, generator, confessions
    engine, stays = KEPT.pop(model, None), False
    try:
        if engine and not engine.again(*arguments):
            engine.let_go()
            engine = None
        engine = engine or Engine(*arguments)
        out = engine.run()
        stays = engine.stays
    finally:
        if stays:
            KEPT[model] = engine
        elif engine:
            engine.let_go()
    return out
