"""The fast sampler against the plain one and against the trainer. A mistake here shows as a ratio
that is not 1, or not at all: a rollout that reads another's cache, loses a token when it is
evicted, or draws from a wrong distribution still looks like text.
"""

import gc
import os
import subprocess
import sys
import weakref

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import models
import rollout
from chat_template import prompt_ids, suffix_ids
from cli import UserError
from confession_schema import confession_prompt
from handmade import SHAPE, tiny_model
from rollout import Rollout, Sampling, sample_confessions, sample_rollouts
from runtime import engine
from runtime.decoder import two_turns
from tasks import word_count

pytestmark = pytest.mark.usefixtures("one_thread", "short_windows")

SYSTEMS = [
    None,
    "Be brief.",
    None,
    "Take your time and think of the reader, who knows nothing at all.",
    None,
    None,
    None,
]
SEEDS = [0, 0, 0, 1, 2, 2, 3]  # groups, the prompts of some being equal


@pytest.fixture(params=["qwen3", "llama"])
def known(request, tiny_models) -> tuple:
    """(model, tokenizer) of the architectures that the engine knows."""
    return tiny_models[request.param]


def sample(
    tiny, sampler: str, temperature=1.0, budgets=(12, 24), batch_size=3, seed=0
) -> list[Rollout]:
    model, tokenizer = tiny
    sampling = Sampling(temperature, *budgets, batch_size, sampler)
    generator = torch.Generator().manual_seed(seed)
    return sample_rollouts(
        model, tokenizer, word_count, SEEDS, sampling, generator, systems=SYSTEMS
    )


def assert_same(mine: list[Rollout], theirs: list[Rollout]) -> None:
    for a, b in zip(mine, theirs, strict=True):
        assert a.token_ids == b.token_ids
        for x, y in zip(a.spans.values(), b.spans.values()):
            assert (x.start, x.end, x.finish) == (y.start, y.end, y.finish)
            assert x.logprobs == pytest.approx(y.logprobs, abs=1e-4) and x.entropy == pytest.approx(
                y.entropy, abs=1e-4
            )


def stream(tokenizer, n: int, budgets: tuple[int, int], batch_size: int, temperature=1.0) -> tuple:
    """Arguments of two_turns after the model: n prompts in pairs of equal ones."""
    prompts = [prompt_ids(tokenizer, word_count.make_prompt(i // 2)) for i in range(n)]
    suffixes = [
        suffix_ids(tokenizer, confession_prompt(word_count, word_count.make_prompt(i // 2)))
        for i in range(n)
    ]
    sampling = Sampling(temperature, *budgets, batch_size)
    return prompts, suffixes, [suffixes[0][0]], sampling, torch.Generator().manual_seed(0)


# ------------------------------------------------------------------------ against the plain sampler


def test_greedy_equals_the_plain_sampler(known):
    """Positions, blocks, refilled slots or the join between the turns are wrong."""
    plain = sample(known, "plain", temperature=0.0)
    assert {r.answer.finish for r in plain} == {"stop", "length"} and len(
        {r.answer.start for r in plain}
    ) > 1
    assert_same(sample(known, "engine", temperature=0.0), plain)


def test_confessions_alone(known):
    """One turn from a given context:
    a second one is sampled all the same, or budgets and places are those of two.
    """
    rollouts = sample(known, "plain")
    contexts = [r.token_ids[: r.confession.start - i] for i, r in enumerate(rollouts)]  # ragged
    forced = [[7] * (i % 3) for i in range(len(rollouts))]
    out = []
    for sampler in ("engine", "plain"):
        sampling = Sampling(0.0, 12, 9, 3, sampler)
        out.append(sample_confessions(*known, rollouts, contexts, sampling, None, forced))
    assert_same(*out)
    assert {r.confession.finish for r in out[0]} == {"stop", "length"}


def test_projections_with_biases():
    """Qwen2's queries, keys and values have biases, which are joined too."""
    torch.manual_seed(0)
    shape = dict(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    model = Qwen2ForCausalLM(
        Qwen2Config(**shape, num_key_value_heads=2, initializer_range=0.2)
    ).eval()
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            projection.bias.data.normal_()
    arguments = [[5, 6, 7], [8, 9]], [[1, 2, 3], [4]], [-1], Sampling(0.0, 8, 8), None
    mine, theirs = (f(model, *arguments) for f in (engine.two_turns, two_turns))
    assert [(a[0], c[0]) for a, _, c in mine] == [(a[0], c[0]) for a, _, c in theirs]


@pytest.mark.parametrize(
    "budgets, stop_all", [((1, 1), False), ((1, 9), False), ((9, 1), False), ((9, 9), True)]
)
def test_smallest_budgets_and_stop_token_first(tiny_models, budgets, stop_all):
    """Off by one where a turn is a single token: by its budget, or because it stops at once."""
    model, tokenizer = tiny_models["qwen3"]
    prompts, suffixes, _, sampling, generator = stream(tokenizer, 5, budgets, 2, temperature=0.0)
    stop_ids = list(range(len(tokenizer))) if stop_all else [-1]
    mine = engine.two_turns(model, prompts, suffixes, stop_ids, sampling, generator)
    theirs = two_turns(model, prompts, suffixes, stop_ids, sampling, generator)
    for (answer, joint, confession), other in zip(mine, theirs, strict=True):
        assert (answer[0], joint, confession[0]) == (other[0][0], other[1], other[2][0])
        assert (len(answer[0]), len(confession[0])) == ((1, 1) if stop_all else budgets)


# ------------------------------------------------------------------------------ against the trainer


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logprobs_equal_the_trainers(known, temperature):
    """The ratio of the loss is not 1 on the policy's own samples."""
    for sampled in sample(known, "engine", temperature):
        ids = torch.tensor([sampled.token_ids])
        for span in sampled.spans.values():
            trained = torch.zeros_like(ids, dtype=torch.bool)
            trained[0, span.start : span.end] = True
            with torch.no_grad():
                expected = models.token_logprobs(known[0], ids, trained, temperature)
            assert span.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_follows_the_weights_and_leaves_the_model_alone():
    """Samples of an old policy after an update,
    or a model that trains with the sampler's attention and joined projections.
    """
    model = tiny_model()
    prompts, suffixes, sampling = [[5, 6, 7]] * 3, [[1, 2, 3]] * 3, Sampling(0.0, 8, 8)
    names = list(model.state_dict())
    outputs = []
    for scale in (1.0, 1.5):
        for parameter in model.parameters():
            parameter.data *= scale  # in place, as an optimizer does
        mine, theirs = (
            f(model, prompts, suffixes, [-1], sampling, None) for f in (engine.two_turns, two_turns)
        )
        assert [(a[0], c[0]) for a, _, c in mine] == [(a[0], c[0]) for a, _, c in theirs]
        outputs.append(mine[0][0][1])
    assert outputs[0] != pytest.approx(outputs[1], abs=1e-3)
    assert list(model.state_dict()) == names and model.config._attn_implementation == "sdpa"
    assert all(p.requires_grad and not p.is_inference() for p in model.parameters())


def test_lora_adapters_are_merged():
    """The base model is sampled in place of the policy."""
    pytest.importorskip("peft")
    model = models.add_lora(tiny_model(), rank=4)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    arguments = [[5, 6, 7], [8, 9]], [[1, 2, 3], [4]], [-1], Sampling(0.0, 8, 8), None
    mine, theirs = (f(model, *arguments) for f in (engine.two_turns, two_turns))
    with model.disable_adapter():
        base = two_turns(model, *arguments)
    assert (
        [(a[0], c[0]) for a, _, c in mine]
        == [(a[0], c[0]) for a, _, c in theirs]
        != [(a[0], c[0]) for a, _, c in base]
    )


def test_merged_weights_round_to_the_adapters_mean():
    """A small adapter vanishes in bf16 weights, or the merge is not the same twice."""

    class Layer:
        base_layer = torch.nn.Linear(256, 256, bias=False, dtype=torch.bfloat16)
        active_adapters, disable_adapters = ["default"], False
        get_delta_weight = staticmethod(lambda name: torch.full((256, 256), 1e-3))

    Layer.base_layer.weight.data.fill_(1.0)  # next to it: 1.0078
    merged = engine.merged(Layer)
    assert merged.dtype == torch.bfloat16 and set(merged.unique().tolist()) == {1.0, 1.0078125}
    assert merged.float().mean().item() == pytest.approx(1.001, abs=1e-4)
    assert torch.equal(merged, engine.merged(Layer))
    Layer.disable_adapters = True  # the reference that calibrates confessions
    assert torch.equal(engine.merged(Layer), Layer.base_layer.weight)


def test_a_kept_engine_samples_as_a_new_one():
    """The second step samples the first one's weights, reads its cache or its prompts; or a merge
    is written into the model.
    """
    pytest.importorskip("peft")
    model = models.add_lora(tiny_model(), rank=4)
    prompts, suffixes = [[5, 6, 7], [8, 9], [5, 6, 7]], [[1, 2, 3], [4], [1, 2]]
    few = lambda seed, prompts=prompts: (
        prompts,
        suffixes,
        [3],
        Sampling(1.0, 20, 20, 2),
        torch.Generator().manual_seed(seed),
    )
    engine.two_turns(model, *few(0))
    kept = engine.KEPT[model]
    before = [p.clone() for name, p in model.named_parameters() if "lora_" not in name]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "norm" in name:
                parameter.normal_(0.5, 0.2, generator=torch.Generator().manual_seed(1))
    for cache in kept.cache:
        cache.fill_(float("nan"))  # of a rollout whose logits were
    second = engine.two_turns(model, *few(1, prompts[::-1]))
    assert engine.KEPT[model] is kept
    assert second == engine.Engine(model, *few(1, prompts[::-1])).run()
    # adapters off and on again, when the first copy was made without them
    engine.KEPT.clear()
    with model.disable_adapter():
        without = engine.two_turns(model, *few(1))
    assert engine.two_turns(model, *few(1)) != without
    with model.disable_adapter():
        assert engine.two_turns(model, *few(1)) == without
    after = [p for name, p in model.named_parameters() if "lora_" not in name]
    assert sum(not torch.equal(a, b) for a, b in zip(before, after)) == sum(
        "norm" in name for name, _ in model.named_parameters()
    )


def test_an_engine_goes_with_its_model():
    """It holds its own key, so each model of a program that loads several stays in memory."""
    model = tiny_model()
    engine.two_turns(model, [[5, 6], [8]], [[1, 2], [4]], [-1], Sampling(1.0, 4, 4), None)
    assert model in engine.KEPT
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_an_engine_is_kept_while_it_fits(tiny_models):
    """A longer prompt is written past its table, or an engine stays whose cache leaves no memory to
    training, or was cut short where memory lacked.
    """
    model, tokenizer = tiny_models["llama"]
    prompts, *rest = stream(tokenizer, 4, (8, 8), 4)
    engine.two_turns(model, prompts, *rest)
    kept = engine.KEPT[model]
    engine.two_turns(model, [prompts[0] + [5] * 2 * engine.BLOCK, *prompts[1:]], *rest)
    assert engine.KEPT[model] is not kept
    last = engine.KEPT[model]
    last.cache[0] = last.cache[0][:, 1:]  # as where memory lacked
    assert not last.small(model)
    last.cache[0] = torch.empty(2, 2**30, dtype=torch.uint8, device="meta")
    assert not last.small(model)


# --------------------------------------------------------------------------------- slots and blocks


def test_slots_change_nothing(tiny_models):
    """What a rollout says depends on the rollouts beside it, or on when it got its slot."""
    alone = sample(tiny_models["qwen3"], "engine", batch_size=1)
    assert_same(sample(tiny_models["qwen3"], "engine", batch_size=4), alone)
    assert_same(sample(tiny_models["qwen3"], "engine", batch_size=64), alone)


def test_eviction_changes_nothing(tiny_models):
    """A rollout that lost its blocks goes on from other tokens,
    or reads blocks that are another's by now.
    """
    model, tokenizer = tiny_models["qwen3"]
    arguments = stream(tokenizer, 6, (30, 30), 5)
    expected = engine.two_turns(model, *arguments)
    arguments[-1].manual_seed(0)
    longest = max(map(len, arguments[0])) + 60 + max(map(len, arguments[1]))
    small = engine.Engine(model, *arguments, blocks=-(-longest // engine.BLOCK) + 3)
    got = small.run()
    assert small.evictions > 0
    for (answer, joint, confession), other in zip(got, expected, strict=True):
        assert (answer[0], joint, confession[0]) == (other[0][0], other[1], other[2][0])
        assert answer[1] + confession[1] == pytest.approx(other[0][1] + other[2][1], abs=1e-4)
    assert sorted(small.free) == list(range(1, len(small.shared))) and not any(small.shared), (
        "blocks are lost"
    )


def test_cache_too_small_for_one_rollout_is_refused(tiny_models):
    """Two rollouts would evict each other for ever."""
    model, tokenizer = tiny_models["qwen3"]
    with pytest.raises(UserError, match="--max-answer-tokens"):
        engine.Engine(model, *stream(tokenizer, 2, (40, 40), 2), blocks=5)


def test_rollouts_of_a_group_share_their_prompt(tiny_models):
    """A group's prompt is computed and kept once for each of its rollouts."""
    model, tokenizer = tiny_models["qwen3"]
    e = engine.Engine(model, *stream(tokenizer, 4, (8, 8), 4))
    e.start_jobs()
    a, b, c, d = e.jobs.values()
    full = (len(a.stream) - 1) // engine.BLOCK
    assert full > 2 and a.blocks[:full] == b.blocks[:full] and b.fed == full * engine.BLOCK
    assert not set(a.blocks[full:]) & set(b.blocks[full:]) and not set(a.blocks) & set(c.blocks)


def test_seed_decides(known):
    """A resumed run samples something else, or every step samples the same."""
    torch.manual_seed(1)
    first = sample(known, "engine", seed=3)
    torch.manual_seed(2)
    assert [r.token_ids for r in first] == [r.token_ids for r in sample(known, "engine", seed=3)]
    assert [r.token_ids for r in first] != [r.token_ids for r in sample(known, "engine", seed=4)]
    assert first[0].token_ids != first[1].token_ids, "a group of copies"


# ----------------------------------------------------------------------------------------- the draw


def test_draw_is_the_full_softmax():
    """Tokens at the edges of the groups of 128, rare ones or padding are drawn too often or never:
    evenly spread numbers must hit each token as often as its probability says, to within one.
    """
    torch.manual_seed(0)
    logits, n = torch.randn(300) * 2, 50_000
    logits[[0, 127, 128, 299]] = torch.tensor([2.0, 3.0, 3.0, 2.0])
    logits[[5, 298]] = float("-inf")
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    token, logprob, entropy = engine.draw(logits.expand(n, -1), uniform, 0.5)
    p = torch.softmax(logits.double() / 0.5, -1)
    assert (torch.bincount(token, minlength=300) - n * p).abs().max() <= 1 + 1e-2
    assert torch.allclose(logprob, p.log()[token].float(), atol=1e-5)
    assert entropy[0].item() == pytest.approx(-(p * p.log()).nan_to_num().sum().item(), abs=1e-5)
    assert engine.draw(logits[None], uniform[:1], 0)[0].item() == logits.argmax()


def test_first_tokens_follow_the_models_distribution(tiny_models):
    """The noise of two rollouts is correlated, or a number is used with the wrong row:
    chi-square over 600 rollouts.
    """
    model, tokenizer = tiny_models["qwen3"]
    n, prompt = 600, [5, 6, 7]
    out = engine.two_turns(
        model,
        [prompt] * n,
        [[1]] * n,
        [-1],
        Sampling(1.0, 1, 1, 200),
        torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        p = torch.softmax(model(input_ids=torch.tensor([prompt])).logits[0, -1].double(), -1)
    common = p > 5 / n
    counts = torch.bincount(torch.tensor([answer[0][0] for answer, _, _ in out]), minlength=len(p))
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    expected = n * torch.cat([p[common], p[~common].sum()[None]])
    cells = len(expected)
    assert ((observed - expected) ** 2 / expected).sum() < cells - 1 + 4 * (2 * (cells - 1)) ** 0.5


# ---------------------------------------------------------------------------------- what is refused


def test_sliding_windows_fall_back(tiny_models, capsys):
    """OLMo-3 would be sampled with full attention, or the run would end."""
    rollout._say_once.cache_clear()
    assert_same(sample(tiny_models["olmo3"], "engine"), sample(tiny_models["olmo3"], "plain"))
    sample(tiny_models["olmo3"], "engine", budgets=(1, 1))
    assert capsys.readouterr().out.count("plain loop") == 1
    assert "olmo3" in engine.unsupported(tiny_models["olmo3"][0])
    assert engine.unsupported(tiny_models["qwen3"][0]) is None


def test_train_mode_is_refused(tiny_models):
    """Dropout or gradient checkpointing while sampling."""
    model, tokenizer = tiny_models["qwen3"]
    try:
        with pytest.raises(ValueError, match="eval"):
            engine.Engine(model.train(), *stream(tokenizer, 2, (4, 4), 2))
    finally:
        model.eval()


# ----------------------------------------------------------------------------------------- on a GPU


INTERPRETED = "TRITON_INTERPRET" in os.environ  # kernels run on the CPU


@pytest.mark.skipif(
    not (torch.cuda.is_available() or INTERPRETED), reason="needs CUDA or Triton's interpreter"
)
@pytest.mark.parametrize(
    "tile, rows, positions",
    [(1, [0, 1, 2, 3], [5, 170, -1, 0]), (4, [0] * 8, [*range(90, 96), -1, -1])],
)
@pytest.mark.parametrize("splits", [1, 8])
@pytest.mark.parametrize("heads, group, size", [(2, 6, 128), (3, 1, 32), (1, 4, 64), (2, 3, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kernels_equal_the_cpu_path(
    monkeypatch, tile, rows, positions, splits, heads, group, size, dtype
):
    """Rotation, blocks, lengths, groups of query heads or the join of a split context are wrong in
    the kernels, or a token's own key and value.
    """
    from runtime import paged_attention

    if INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("the interpreter multiplies the bits of bfloat16 as integers")
    monkeypatch.setattr(paged_attention, "LEAST", 32)
    torch.manual_seed(0)
    e = object.__new__(engine.Engine)
    e.on_gpu, e.layer, e.rows, e.positions = False, 0, torch.tensor(rows), torch.tensor(positions)
    e.table = (torch.randperm(48) + 1).int().reshape(4, 12)
    e.cache = [torch.randn(2, 49, heads, 16, size).to(dtype)]
    e.cache[0][:, 0] = 0.0
    # projections are parts of one product, and angles in both halves of a head the same
    product = torch.randn(len(rows), (group + 2) * heads, size).to(dtype)
    angles = torch.randn(len(rows), size // 2).repeat(1, 2)
    new = *product.split([group * heads, heads, heads], 1), angles.cos(), angles.sin()
    new = [x.to(dtype) for x in new]
    device = "cpu" if INTERPRETED else "cuda"
    arrived = torch.zeros(len(rows) * heads, dtype=torch.int32, device=device)
    cache = e.cache[0].to(device, copy=True)
    q, k, v = product.to(device).split([group * heads, heads, heads], 1)
    where = [x.to(device) for x in (*new[3:], *cache, e.table, e.rows, e.positions)]
    got = paged_attention.attend(q, k, v, *where, arrived, 0.2, tile, splits)
    real = e.positions >= 0
    expected = e.attend(*new, 0.2)
    # the CPU path rounds each operation of the rotation, the kernels its result
    close = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(got.cpu()[real], expected[real], atol=close, rtol=close)
    torch.testing.assert_close(cache.cpu(), e.cache[0], atol=close, rtol=close)
    assert not arrived.any()


SIZES = SHAPE | dict(hidden_size=64, intermediate_size=320, head_dim=16)


@pytest.mark.skipif(
    not (torch.cuda.is_available() or INTERPRETED), reason="needs CUDA or Triton's interpreter"
)
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("tile, splits", [(16, 1), (32, 4)])
@pytest.mark.parametrize("n", [4, 20])
def test_few_rows_equal_the_layers(monkeypatch, kind, tile, splits, n):
    """Norms, biases, the residual stream, the activation or the sum of stretches of a product are
    wrong, or rows of a tile that has fewer.
    """
    from runtime import few_rows, paged_attention

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # weights of norms are ones otherwise, and biases zeros
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    decoder = engine.sampling_copy(model.eval()).get_decoder()
    e = object.__new__(engine.Engine)
    e.on_gpu, e.layer, e.rows = False, 0, torch.arange(n)
    e.positions = torch.arange(n) * 7 % 40
    e.positions[2] = -1
    e.table = (torch.randperm(3 * n) + 1).int().reshape(n, 3)
    e.cache = [torch.randn(2, 3 * n + 1, 2, 16, 16) for _ in range(2)]
    device = "cpu" if INTERPRETED else "cuda"
    to = lambda x: x.to(device, copy=True)
    caches, where = [to(cache) for cache in e.cache], [to(e.table), to(e.rows), to(e.positions)]
    hidden = decoder.embed_tokens(torch.randint(SHAPE["vocab_size"], (n,)))
    angles = [x[:, 0] for x in decoder.rotary_emb(hidden, e.positions.clamp(min=0)[:, None])]
    with torch.no_grad(), engine.running(e):
        expected = engine.through_layers(decoder, hidden, angles)
        monkeypatch.setattr(few_rows, "shape_of", lambda *_: (tile, splits, 64))
        layers = iter(caches)

        def attend(*parts, unscaled):
            *new, scale = parts
            arrived = torch.zeros(n * 2, dtype=torch.int32, device=device)
            at = *next(layers), *where, arrived, scale, 1, 8, unscaled
            return paged_attention.attend(*new, *at)

        copy = engine.sampling_copy(model.to(device))
        angles = [to(angle) for angle in angles]
        got, factor = few_rows.forward(copy.get_decoder(), to(hidden), angles, attend)
    assert few_rows.suits(copy.to(torch.bfloat16))
    real = e.positions >= 0
    torch.testing.assert_close((got * factor).cpu()[real], expected[real], atol=1e-4, rtol=1e-4)
    for ours, theirs in zip(caches, e.cache):
        torch.testing.assert_close(ours.cpu(), theirs, atol=1e-4, rtol=1e-4)
    assert not few_rows.arrived(torch.device(device)).any()


@pytest.mark.skipif(
    not (torch.cuda.is_available() or INTERPRETED), reason="needs CUDA or Triton's interpreter"
)
@pytest.mark.parametrize(
    "options, dtype",
    [
        ({}, torch.float16),
        ({}, torch.float32),
        ({"attention_bias": True}, torch.bfloat16),
        ({"mlp_bias": True}, torch.bfloat16),
        ({"hidden_act": "gelu"}, torch.bfloat16),
        ({"intermediate_size": 100}, torch.bfloat16),
    ],
)
def test_few_rows_suit_few_models(options, dtype):
    """Biases, another activation or odd sizes are left out, or float16 overflows."""
    from runtime import few_rows

    suits = lambda dtype, **options: few_rows.suits(
        engine.sampling_copy(LlamaForCausalLM(LlamaConfig(**SIZES | options)).eval().to(dtype))
    )
    assert suits(torch.bfloat16) and not suits(dtype, **options)


@pytest.mark.slow
def test_kernels_under_the_interpreter():
    """The kernels are wrong, seen where there is Triton but no GPU."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("they are tested on the GPU itself")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", __file__, "-k", "equal_the_cpu or few_rows"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and "50 passed" in run.stdout, run.stdout


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_greedy_on_a_gpu_equals_the_plain_sampler():
    """Graphs replay with stale slots, or the compiled forward differs."""
    tiny = models.load("organism/policy", torch.device("cuda"))
    prompts, suffixes, stop_ids, sampling, _ = stream(tiny[1], 20, (100, 150), 6, temperature=0.0)
    generator = torch.Generator("cuda").manual_seed(0)
    mine, theirs = (
        f(tiny[0], prompts, suffixes, stop_ids, sampling, generator)
        for f in (engine.two_turns, two_turns)
    )
    assert [(a[0], c[0]) for a, _, c in mine] == [(a[0], c[0]) for a, _, c in theirs]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("slots", [6, 100])
def test_logprobs_in_bfloat16_on_a_gpu_equal_the_models(slots):
    """A decode step of few rows, or of many, draws from another distribution than the model's."""
    model, tokenizer = models.load("organism/policy", torch.device("cuda"), "bfloat16")
    prompts, suffixes, stop_ids, sampling, _ = stream(tokenizer, 100, (60, 60), slots)
    generator = torch.Generator("cuda").manual_seed(0)
    out = engine.two_turns(model, prompts, suffixes, stop_ids, sampling, generator)
    gaps = []
    for prompt, (answer, *_) in zip(prompts, out):
        ids = torch.tensor([prompt + answer[0]], device="cuda")
        with torch.no_grad():
            logp = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        logp = logp.gather(1, ids[0, len(prompt) :, None])[:, 0]
        gaps += (logp.cpu() - torch.tensor(answer[1])).abs().tolist()
    assert sum(gaps) / len(gaps) < 0.05
