"""A small judge on a GPU feeds whole streams to a network of its own, not to the plain sampler. A
mistake here pays answers for another text. What chooses it looks for CUDA; the network itself
runs here, in float32.
"""

import copy

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import models
import rewards
from chat_template import prompts_ids
from handmade import SHAPE
from rewards import Judge
from runtime import streams
from runtime.decoder import Decoder
from tasks import word_count
from test_hostile_text import ENCODABLE

pytestmark = pytest.mark.usefixtures("one_thread")

XS = [word_count.make_prompt(seed) for seed in range(3)] + ["Tea?"]  # of unlike lengths
REPLIES = {
    "a token each": [[70], [71]],
    "one row for both": [[70, 80], [70, 81]],
    "of unlike lengths": [[70, 80, 90], [71]],
    "rows of unlike lengths": [[70, 80, 90, 91], [71, 80]],
    "one is the other's beginning": [[70], [70, 80]],
}


@pytest.fixture(params=["qwen3", "llama", "qwen2"])
def judge_model(request, tiny_models) -> tuple:
    """(model, tokenizer) of one type that the engine knows; Qwen2 has biases. A copy, as weights
    move; and tied like most small models.
    """
    if request.param == "qwen2":
        torch.manual_seed(0)
        tokenizer = tiny_models["qwen3"][1]
        shape = SHAPE | dict(vocab_size=len(tokenizer), tie_word_embeddings=True)
        model = Qwen2ForCausalLM(Qwen2Config(**shape, max_position_embeddings=2_048)).eval()
        for name, parameter in model.named_parameters():
            if "bias" in name:
                parameter.data.normal_(1.0, 0.3)
        return model, tokenizer
    model, tokenizer = tiny_models[request.param]
    return copy.deepcopy(model), tokenizer


def by_decoder(model, prompts: list, replies: list) -> torch.Tensor:
    decoder = Decoder(model, [], temperature=0.0, generator=None)
    decoder.append(prompts)
    return decoder.score(replies)


@pytest.mark.parametrize("tokens", [10_000, 300, 1])  # 300: a few rows in a batch; 1: one
@pytest.mark.parametrize("case", REPLIES)
def test_scores_are_the_decoders(judge_model, monkeypatch, case, tokens):
    """A reply is read at another token, row or place, padding is seen, or rows change places;
    or the parts of the head do not add up.
    """
    monkeypatch.setattr(streams, "HEAD_ROWS", 100)
    model, tokenizer = judge_model
    texts = [f"{x} Tea is{' very' * i} hot." for i, x in enumerate([*XS, *XS[::-1]])]
    prompts = prompts_ids(tokenizer, texts, "never")
    expected = by_decoder(model, prompts, REPLIES[case])
    found = streams.scores(model, prompts, REPLIES[case], tokens)
    margins = expected[:, 0] - expected[:, 1]
    assert margins.std() > 0.1, "margins alike: this shows little"
    assert torch.allclose(found[:, 0] - found[:, 1], margins, atol=1e-4)
    assert case == "a token each" or torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("replies", [("A", "B"), rewards.REPLIES])
def test_verdicts_are_the_decoders(judge_model, monkeypatch, replies):
    """Answers to a task, hostile ones too, get each other's verdicts or the frame's check goes."""
    monkeypatch.setattr(rewards, "REPLIES", replies)
    model, tokenizer = judge_model
    answers = [f"Tea is{' very' * i} hot. ({i})" for i in range(5)] + [*ENCODABLE.values()]
    cases = [(XS[i % 4], y) for i, y in enumerate(answers)] + [(XS[0], answers[0])]
    expected = Judge(model, tokenizer).verdicts(cases)
    monkeypatch.setattr(streams, "suits", lambda model: True)
    found = Judge(model, tokenizer, batch_size=3).verdicts(cases)
    judged = [verdict.state != "failed" for verdict in expected]
    assert 40 < sum(judged) < len(judged)
    for ours, theirs in zip(found, expected):
        assert (ours.state, ours.reply) == (theirs.state, theirs.reply)
        assert ours.margin == pytest.approx(theirs.margin, abs=1e-4)
    assert Judge(model, tokenizer).verdicts([]) == []


def test_less_memory_makes_smaller_batches(tiny_models, monkeypatch):
    """A judge that runs out of memory ends the run, or verdicts get lost on the way."""
    model, tokenizer = copy.deepcopy(tiny_models["qwen3"][0]), tiny_models["qwen3"][1]
    judge, shapes, within = Judge(model, tokenizer), [], streams.forward
    cases = [(XS[0], f"Tea is{' very' * i} hot. ({i})") for i in range(9)]
    expected = judge.verdicts(cases)

    def short_of_memory(decoder, ids, use_cache):
        shapes.append(ids.shape)
        if ids.numel() > 3_000:
            raise torch.OutOfMemoryError
        return within(decoder, ids, use_cache)

    monkeypatch.setattr(streams, "suits", lambda model: True)
    monkeypatch.setattr(streams, "forward", short_of_memory)
    found = judge.verdicts(cases)
    assert [v.margin for v in found] == pytest.approx([v.margin for v in expected], abs=1e-4)
    assert shapes[0].numel() > 3_000 and judge.batch_size < 64
    done = len(shapes)
    judge.verdicts(cases)
    assert all(shape.numel() <= 3_000 for shape in shapes[done:])


def test_the_model_is_as_before(judge_model, tmp_path):
    """Its weights are kept twice, are lost in saving, or the network keeps those of before."""
    model, _ = judge_model
    prompts, before = [[5, 6, 7], [8, 9]], copy.deepcopy(model)
    network = streams.network(model, compiles=False)
    ours = {p.untyped_storage().data_ptr() for p in network.parameters()}
    fused = [m for m in network.modules() if isinstance(m, streams.engine.FusedLinear)]
    ours |= {m.weight.untyped_storage().data_ptr() for m in fused}
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    assert {p.untyped_storage().data_ptr() for p in weights} == ours and len(fused) > 3
    same = lambda a, b: all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))
    assert same(model, before)
    assert torch.equal(by_decoder(model, prompts, [[3]]), by_decoder(before, prompts, [[3]]))
    model.save_pretrained(tmp_path)
    assert same(type(model).from_pretrained(tmp_path), before)

    assert streams.network(model, compiles=False) is network  # kept
    scores = lambda: streams.scores(model, prompts, [[70, 80], [71, 90]], tokens=100)
    for change in (lambda p: p.data.mul_(1.5), lambda p: setattr(p, "data", p.data * 0.5)):
        change(model.get_decoder().layers[1].self_attn.k_proj.weight)
        assert torch.allclose(scores(), by_decoder(model, prompts, [[70, 80], [71, 90]]), atol=1e-4)
    model.double()  # as .to() another device
    assert streams.network(model, compiles=False) is not network
    assert scores().dtype == torch.float32


def test_which_models_it_suits(tiny_models, monkeypatch):
    """A model with adapters, of another type, a large one or one on the CPU loses them, its windows
    or time.
    """
    model, other = copy.deepcopy(tiny_models["llama"][0]), tiny_models["olmo3"][0]
    assert not streams.suits(model)
    for kind in (LlamaForCausalLM, type(other)):  # heads of 8 are no reason on a real device
        monkeypatch.setattr(kind, "device", torch.device("cuda"))
    monkeypatch.setattr(streams.engine, "head_size", lambda config: 16)
    assert streams.suits(model) and not streams.suits(other)
    monkeypatch.setattr(streams, "SMALL", 1_000)
    assert not streams.suits(model)
    monkeypatch.setattr(streams, "SMALL", 1e9)
    assert streams.suits(model)
    pytest.importorskip("peft")
    assert not streams.suits(models.add_lora(model, rank=2))


def test_a_model_of_another_kind_is_judged_with_as_before():
    """GPT-2 calls its layers otherwise, and is asked for them."""
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=50))
    assert not streams.suits(gpt2)


def test_one_graph_serves_layers_and_batches(tiny_models, monkeypatch):
    """Each layer or shape compiles by itself, seconds each; or what is compiled computes anything
    else.
    """
    graphs, plain = [], torch.compile
    backend = lambda graph, inputs: graphs.append(graph) or graph.forward
    monkeypatch.setattr(torch, "compile", lambda f, **options: plain(f, backend=backend, **options))
    model = copy.deepcopy(tiny_models["qwen3"][0])
    for n, length in ((5, 20), (3, 33), (8, 50), (1, 7)):
        prompts = [[7 + i] * (length - i) for i in range(n)]
        found = streams.scores(model, prompts, [[70], [71]], 10_000, compiles=True)
        expected = by_decoder(model, prompts, [[70], [71]])
        assert torch.allclose(found.diff(dim=1), expected.diff(dim=1), atol=1e-4)
    assert len(graphs) == 1
