"""Fixtures: tokenizers with chat templates of four styles, tiny models of random
weights in three architectures, and at the end those that change how tests run: all of them, or
those of a module that asks for it by `pytestmark = pytest.mark.usefixtures(...)`.
torch and what needs it are imported where they are used: the process of pytest-xdist that deals
out the tests reads this file, too, and the others start after it.
"""

import gc
import os

# read when transformers is imported: no test may reach the network
os.environ["HF_HUB_OFFLINE"] = "1"
# beside other busy processes torch's idle threads cost tenfold
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest

ARCHITECTURES = ("qwen3", "olmo3", "llama")

# Chat templates in the style of the published ones, reduced to what matters between two turns.
QWEN3 = (  # of an earlier assistant message only what follows its thinking is kept
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ "
    "m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# a default system prompt, eos after the last message, and a generation prompt that
# opens the thought
OLMO3 = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful "
    "assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if m.role == 'assistant' and loop.last %}{{ eos_token }}{% else %}<|im_end|>\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}"
    "<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def small_tokenizer(special: str, template: str, **roles: str):
    """A byte-level BPE of about 600 tokens, trained on our own prompts;
    `special` tokens get the first ids.
    """
    import tokenizers as tok
    from transformers import PreTrainedTokenizerFast

    from confession_schema import confession_prompt
    from tasks import word_count

    xs = [word_count.make_prompt(seed) for seed in range(50)]
    texts = xs + [confession_prompt(word_count, xs[0], "forced_count")]
    bpe = tok.Tokenizer(tok.models.BPE())
    bpe.pre_tokenizer, bpe.decoder = (
        tok.pre_tokenizers.ByteLevel(add_prefix_space=False),
        tok.decoders.ByteLevel(),
    )
    alphabet = tok.pre_tokenizers.ByteLevel.alphabet()
    trainer = tok.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special.split(),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, **roles)
    fast.chat_template = template
    return fast


@pytest.fixture(scope="session")
def tokenizers() -> dict:
    """By style. In olmo3's, <think> is several ordinary tokens; in llama's, pad is eos
    and both are id 0.
    """
    from transformers import AutoTokenizer

    import models

    chatml = "<|im_start|> <|im_end|>"
    return {
        "organism": AutoTokenizer.from_pretrained(models.ORGANISMS / "policy"),
        "qwen3": small_tokenizer(
            f"<|endoftext|> {chatml} <think> </think>",
            QWEN3,
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
        ),
        "olmo3": small_tokenizer(
            f"<|pad|> <|endoftext|> {chatml}", OLMO3, eos_token="<|endoftext|>", pad_token="<|pad|>"
        ),
        "llama": small_tokenizer(
            "<|eot_id|> <|begin_of_text|> <|start_header_id|> <|end_header_id|>",
            LLAMA3,
            bos_token="<|begin_of_text|>",
            eos_token="<|eot_id|>",
            pad_token="<|eot_id|>",
        ),
    }


@pytest.fixture(scope="session")
def tiny_models(tokenizers) -> dict[str, tuple]:
    """{architecture: (model, tokenizer)}. Weights are large enough for positions to matter
    and for some streams to stop early; OLMo-3's layers alternate between a window of 16 tokens
    and full attention.
    """
    import torch
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        Olmo3Config,
        Olmo3ForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    from chat_template import suffix_ids

    shape = dict(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2_048,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    windows = dict(sliding_window=16, layer_types=["sliding_attention", "full_attention"] * 2)
    kinds = {
        "qwen3": lambda **ids: Qwen3ForCausalLM(Qwen3Config(head_dim=8, **shape, **ids)),
        "olmo3": lambda **ids: Olmo3ForCausalLM(Olmo3Config(**windows, **shape, **ids)),
        "llama": lambda **ids: LlamaForCausalLM(LlamaConfig(**shape, **ids)),
    }
    out = {}
    for name in ARCHITECTURES:
        tokenizer = tokenizers[name]
        torch.manual_seed(0)
        ids = dict(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model = kinds[name](vocab_size=len(tokenizer), **ids).eval()
        stop_ids = sorted({tokenizer.eos_token_id, suffix_ids(tokenizer, "x")[0]})
        model.lm_head.weight.data *= 2.0
        model.lm_head.weight.data[stop_ids] *= {"qwen3": 3.5, "olmo3": 2.75, "llama": 2.0}[name]
        out[name] = model, tokenizer
    return out


@pytest.fixture(params=ARCHITECTURES)
def tiny(request, tiny_models) -> tuple:
    """(model, tokenizer) of each architecture in turn."""
    return tiny_models[request.param]


def pytest_xdist_auto_num_workers(config) -> int:
    """Processes of `pytest`: one a core, of which more than eight would wait for the longest file;
    none but itself for named files, as another would first have to import torch.
    """
    whole_folders = all(map(os.path.isdir, config.args))
    return min(os.cpu_count() or 1, 8) if whole_folders else 0


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Threads only wait for each other in models of this size, for seconds on a busy machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def quick_collection():
    """A full collection, of which a program may do many, looks at a module's own objects only:
    among those of all tests it takes 0.3 s.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def coarse_pictures():
    """All is drawn, on fewer pixels and without being laid out twice to cut the margins: half the
    time of a picture.
    """
    import figures

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(figures.STYLE, "figure.dpi", 40)
        patch.setitem(figures.STYLE, "savefig.bbox", None)
        yield


@pytest.fixture
def short_windows(monkeypatch):
    """Slots are refilled, turns change and blocks run out several times within tiny budgets."""
    from runtime import engine

    monkeypatch.setattr(engine, "WINDOW", 3)
    monkeypatch.setattr(engine, "BLOCK", 16)
    monkeypatch.setattr(engine, "FEED", 64)
