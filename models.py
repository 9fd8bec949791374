"""Load a policy or a judge: an embedded organism, a checkpoint of ours, any Hugging Face
causal LM, or a GGUF file.

Weights come from safetensors or GGUF (runtime/gguf_models.py), and no code of a checkpoint is ever
run (trust_remote_code stays off).
"""

import functools
import hashlib
import importlib
import json
import os
from contextlib import contextmanager
from pathlib import Path
from types import MethodType

import huggingface_hub
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.checkpoint import checkpoint as recompute
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from cli import UserError
from runtime import gguf_models
from runtime.compiled import compiled

logging.disable_progress_bar()  # a bar per loaded or saved model would bury the run's own

# what is compiled outlives a restart; by default it is kept in the system's /tmp
if os.access(Path.home(), os.W_OK):
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache" / "confessions"))
ORGANISMS = Path(__file__).parent / "organism"
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def is_embedded(name: str) -> bool:
    """Whether a name or path is one of the organisms that come with the repository, or all of the
    weights of a checkpoint of a run that began at one.
    """
    path = Path(_beside(name)).resolve()
    if path.parent.name == "checkpoints" and not (path / "adapter_config.json").exists():
        try:
            run = json.loads((path.parent.parent / "config.json").read_text())["config"]
            return is_embedded(run["model"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return False
    return path.parent == ORGANISMS.resolve()


def _beside(name: str) -> str:
    """ "organism/policy" is found from any working folder."""
    beside = Path(__file__).parent / name
    return str(beside) if not Path(name).exists() and beside.exists() else name


def device_of(name: str) -> torch.device:
    """`auto`: the GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {name!r} cannot be used ({str(error).splitlines()[0]}): choose "
            "auto, cpu or cuda"
        ) from None
    return device


def load(name: str, device: torch.device, dtype: str = "float32"):
    """(model in eval mode, tokenizer). `name`: a hub name, a folder, a .gguf file or
    "smollm2-135m"; a LoRA checkpoint loads on top of its base model. UserError if it cannot be
    loaded or its weights do not fit the device.
    """
    path = _locate(name)
    if [*Path(path).glob("*.bin")] and not [*Path(path).glob("*.safetensors")]:
        raise UserError(
            f"{name!r} has pickled weights only (.bin), which may run code when they are loaded: "
            "take a safetensors version; "
            "or, if you trust them, load them with transformers and use_safetensors=False, and "
            "save_pretrained() them once"
        )
    with _refusals(name):
        base = _base(name)
        common = _common(name, base)
        tokenizer = _tokenizer(name, common)
        folder = _safetensors(base, tokenizer, device, dtype)
        config = AutoConfig.from_pretrained(folder, **common)
        _refuse_what_does_not_fit(base, config, device, dtype)
        model = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=getattr(torch, dtype), use_safetensors=True, **common
        ).to(device)
    if _is_gguf(base):  # a LoRA checkpoint finds its base again where it was found now
        model.name_or_path = base if base == gguf_models.SMOLLM2 else str(Path(base).resolve())
    if has_adapters(name):
        model = plain_adapters(peft().PeftModel.from_pretrained(model, path, is_trainable=True))
    return without_dropout(model).eval(), tokenizer


def without_dropout(model):
    """The trainer runs in train mode, for gradient checkpointing alone: with dropout it would score
    other distributions than were sampled.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return model


def has_adapters(name: str) -> bool:
    """Whether a model is a LoRA checkpoint."""
    return _base(name) != name


def adapter_rank(name: str) -> int | None:
    """The rank of a LoRA checkpoint's adapters; None for another model."""
    return (
        json.loads((Path(_locate(name)) / "adapter_config.json").read_text())["r"]
        if has_adapters(name)
        else None
    )


def fingerprint(name: str, model) -> str:
    """What tells a loaded model from others: SHA-256 over its files of weights, for LoRA and its
    base model; of a model of the hub the name and the commit.
    """
    path, base = Path(_locate(name)), _base(name)
    if not path.exists():
        return f"{name}@{model.config._commit_hash}"
    own = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(path.glob("*.safetensors")):
        if file.name != "optimizer.safetensors":
            with file.open("rb") as weights:
                own.update(hashlib.file_digest(weights, "sha256").digest())
    return own.hexdigest() if base == name else f"{own.hexdigest()} on {fingerprint(base, model)}"


def _base(name: str) -> str:
    """The model that a LoRA checkpoint stands on; any other model's own name."""
    adapter = Path(_locate(name)) / "adapter_config.json"
    return json.loads(adapter.read_text())["base_model_name_or_path"] if adapter.exists() else name


def load_tokenizer(name: str):
    """The tokenizer alone, of any model that load() takes."""
    with _refusals(name):
        return _tokenizer(name, _common(name))


def _tokenizer(name: str, common: dict):
    if has_adapters(name) and not (Path(_locate(name)) / "tokenizer_config.json").exists():
        name = _base(name)  # adapters that were exported alone
    path = _locate(name)
    if _is_gguf(name) and not gguf_models.copy_of(path).exists():
        tokenizer = gguf_models.read_tokenizer(path)
    else:
        folder = str(gguf_models.copy_of(path)) if _is_gguf(name) else path
        tokenizer = AutoTokenizer.from_pretrained(folder, **common)
    if not len(tokenizer):
        raise UserError(
            f"{name!r} has no tokenizer files: copy those of its base model into the folder"
        )
    if not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer of {name!r} has no chat template: take an instruction-tuned model"
        )
    return tokenizer


def thinks(tokenizer) -> bool:
    """Whether a model has a thinking mode:
    its chat template then opens, drops or switches thoughts.
    """
    return any(
        mark in str(tokenizer.chat_template) for mark in ("<think>", "</think>", "enable_thinking")
    )


def _locate(name: str) -> str:
    """The path of a model for its name, where it has one;
    else the name, which is then the hub's.
    """
    path = gguf_models.shipped(_beside(name))
    if path.endswith(".gguf") and not Path(path).is_file():
        raise UserError(f"{name!r} does not exist: give the path of a .gguf file")
    return path


def _is_gguf(name: str) -> bool:
    return _locate(name).endswith(".gguf")


def _safetensors(name: str, tokenizer, device: torch.device, dtype: str) -> str:
    """The folder or hub name of a model's weights in safetensors: of a GGUF file its copy, which is
    made if there is none.
    """
    path = _locate(name)
    if not _is_gguf(name):
        return path
    copy = gguf_models.copy_of(path)
    if not copy.exists():
        config = gguf_models.read_config(path)
        _refuse_what_does_not_fit(name, config, device, dtype)
        gguf_models.make_copy(path, config, tokenizer)
    return str(copy)


def _common(*names: str) -> dict:
    """Arguments of every from_pretrained() of models of these names."""
    common = dict(trust_remote_code=False)  # None would ask on the terminal
    if not all(Path(_locate(name)).exists() for name in names) and hub_is_silent():
        common["local_files_only"] = True
    return common


@contextmanager
def _refusals(name: str):
    """What goes wrong in reading a model ends in one line."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, ImportError, LookupError, SafetensorError) as error:
        # not found, unknown type, damaged
        raise UserError(
            f"{name!r} cannot be loaded as a causal LM: give a Hugging Face name, "
            "an existing folder with safetensors weights or a .gguf file "
            f"({' '.join(str(error).split())[:300]})"
        ) from None


def _refuse_what_does_not_fit(name: str, config, device: torch.device, dtype: str) -> None:
    memory = device_memory(device)
    if memory is None:
        return
    parameters = _count(config)
    size, (total, used) = getattr(torch, dtype).itemsize, memory
    if parameters * size + used > total:
        raise UserError(
            f"{name!r} does not fit {device}: its {parameters / 1e9:.2f}e9 parameters x {size} "
            f"bytes are {parameters * size / 2**30:.1f} GiB for the weights alone, and of the "
            f"{total / 2**30:.1f} GiB there {used / 2**30:.1f} are in use: take a smaller model or "
            "a larger device"
        )


def num_parameters(name: str) -> int:
    """Of a model that load() takes, from its config alone."""
    with _refusals(name):
        base = _base(name)
        path = _locate(base)
        return _count(
            gguf_models.read_config(path)
            if _is_gguf(base)
            else AutoConfig.from_pretrained(path, **_common(base))
        )


def _count(config) -> int:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False).num_parameters()


def device_memory(device: torch.device) -> tuple[int, int] | None:
    """(all of it, what this process uses) in bytes;
    None for the CPU, whose programs share and swap.
    """
    if device.type != "cuda":
        return None
    return torch.cuda.get_device_properties(device).total_memory, torch.cuda.memory_allocated(
        device
    )


def hub_is_silent(seconds: float = 10) -> bool:
    """Whether the hub takes a request and does not answer: transformers would wait for ever. What
    was downloaded before is used then. A hub that cannot be reached at all is an error that
    transformers reports itself.
    """
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        huggingface_hub.utils.get_session().head(
            huggingface_hub.constants.ENDPOINT, timeout=seconds
        )
    except Exception as error:  # which kind depends on the HTTP library of huggingface_hub
        silent = "Timeout" in type(error).__name__
        if silent:
            print(
                f"{huggingface_hub.constants.ENDPOINT} does not answer: only models downloaded "
                "before can be used"
            )
        return silent
    return False


# ---------------------------------------------------------------------------- defaults by the model

EMBEDDED = dict(
    judge="organism/judge",
    lr=1e-4,
    max_answer_tokens=256,
    max_confession_tokens=384,
    lora_rank=0,
    dtype="float32",
    gradient_checkpointing=False,
    compile=False,
    micro_batch_tokens=2_048,
)
PLAIN = dict(max_answer_tokens=256, max_confession_tokens=640)
THINKING = dict(max_answer_tokens=6_144, max_confession_tokens=4_096)
CPU = dict(
    lora_rank=32,
    dtype="float32",
    gradient_checkpointing=False,
    compile=False,
    micro_batch_tokens=2_048,
)
GPU = dict(  # of 80 GB and more; LoRA wants about ten times the learning rate of full training
    lora_rank=32,
    dtype="bfloat16",
    gradient_checkpointing=True,
    compile=True,
    micro_batch_tokens=16_384,
)
SMALL = 2e9  # parameters; below them, and with short budgets, small_gpu()


def small_gpu(parameters: int) -> dict:
    """Nothing is recomputed: 46 GiB at 1.5B (58 where layers are not compiled), 40 at .5B,
    whose layers take longer to launch than to compute (halved where memory runs out).
    """
    tokens = 16_384 if parameters > 8e8 else 32_768
    return GPU | dict(gradient_checkpointing=False, micro_batch_tokens=tokens)


def defaults(model: str, device: torch.device, thinking: str = "auto") -> dict:
    """The options that depend on the model, by its name, and on where it runs."""
    if is_embedded(model):
        return EMBEDDED
    budgets = THINKING if thinking != "off" and thinks(load_tokenizer(model)) else PLAIN
    if device.type == "cpu":
        return budgets | CPU
    parameters = num_parameters(model)
    small = budgets is PLAIN and parameters < SMALL
    return budgets | (small_gpu(parameters) if small else GPU)


# ------------------------------------------------------------------------------------- LoRA, logits


def add_lora(model, rank: int):
    """Wrap a model with LoRA adapters on all seven projections; only they are trained."""
    config = peft().LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=LORA_TARGETS, task_type="CAUSAL_LM"
    )
    return plain_adapters(peft().get_peft_model(model, config)).eval()


def plain_adapters(model):
    """LoRA's products in the dtype of the activations: peft computes them in that of the adapters,
    float32, which beside bfloat16 weights is half of a training step of a 1.5B. The adapters and
    the sums of their gradients stay in float32; in a float32 model nothing changes.
    """
    for module in model.modules():
        if (
            type(module) is peft().tuners.lora.Linear
            and not module.lora_variant  # DoRA and the like, of adapters made elsewhere
            and all(b.bias is None for b in module.lora_B.values())
        ):
            module.forward = MethodType(_adapted, module)
    return model


def _adapted(module, x: torch.Tensor) -> torch.Tensor:
    """x (..., in) -> (..., out): W x + s B A x of a LoRA layer with one adapter."""
    out, linear = module.base_layer(x), torch.nn.functional.linear
    if module.disable_adapters:
        return out
    name = module.active_adapters[0]
    a, b = (part[name].weight.to(x.dtype) for part in (module.lora_A, module.lora_B))
    return out + linear(linear(x, a), b) * module.scaling[name]


def is_plain(module) -> bool:
    """Whether a module is W x + s B A x as plain_adapters() leaves it, its one adapter on."""
    plain = getattr(module.forward, "__func__", None) is _adapted
    return plain and not module.disable_adapters and [*module.lora_A] == module.active_adapters


def with_lora(model, rank: int):
    """The model with adapters of that rank to train; as it is if it has some, or with rank 0."""
    return add_lora(model, rank) if rank and not hasattr(model, "peft_config") else model


def recompute_activations(model) -> None:
    """Gradient checkpointing, as all programs train with it."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def export_adapter(checkpoint: str, out: str, base: str) -> None:
    """A LoRA checkpoint's adapters alone, in bfloat16, for sharing: half as large, without
    optimizer and tokenizer. `base`: the name by which others find the model that they stand on.
    UserError if the checkpoint has no adapters.
    """
    if not has_adapters(checkpoint):
        raise UserError(f"{checkpoint!r} is no LoRA checkpoint: it has no adapter_config.json")
    folder = Path(checkpoint)
    weights = {
        name: tensor.bfloat16()
        for name, tensor in load_file(folder / "adapter_model.safetensors").items()
    }
    config = json.loads((folder / "adapter_config.json").read_text()) | {
        "base_model_name_or_path": base
    }
    Path(out).mkdir(parents=True, exist_ok=True)
    save_file(weights, Path(out) / "adapter_model.safetensors", metadata={"format": "pt"})
    (Path(out) / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")


def logits_of(model, hidden: torch.Tensor) -> torch.Tensor:
    """Logits (..., V) of the last hidden states (..., D), as the model's own forward makes them:
    some scale or cap what comes out of the head. check_logits() says whether it is the same.
    """
    logits, config = model.get_output_embeddings()(hidden), model.config.get_text_config()
    if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
        logits = logits * scale
    if (scale := getattr(config, "logits_scaling", None)) is not None:  # Granite
        logits = logits / scale
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma 2
        logits = torch.tanh(logits / cap) * cap
    return logits


def token_logprobs(model, ids, trained, temperature: float, chunk: int = 2_048) -> torch.Tensor:
    """Log-probabilities (N,) of the tokens ids (B, T) that are trained (B, T), in row-major order.

    Only trained positions pass the LM head, in chunks that are recomputed in the backward pass:
    full logits of an 8B model would take more memory than its weights.
    """
    # (B, T, D); causal, so no mask
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    places = trained.flatten().nonzero()[:, 0].to(ids.device, non_blocking=True)  # (N,)
    # (N, D), (N,): position t - 1 predicts token t
    hidden, targets = hidden.flatten(0, 1).index_select(0, places - 1), ids.flatten()[places]

    pick = compiled_logprobs() if ids.is_cuda else logprobs_of

    def score(hidden, targets):
        return pick(logits_of(model, hidden), targets, temperature)  # (chunk, V) -> (chunk,)

    chunks = list(zip(hidden.split(chunk), targets.split(chunk)))
    if torch.is_grad_enabled() and len(chunks) > 1:
        return torch.cat([recompute(score, *part, use_reentrant=False) for part in chunks])
    return torch.cat([score(*part) for part in chunks])


def logprobs_of(logits, targets, temperature: float) -> torch.Tensor:
    """Log-probabilities (N,) of the targets (N,), in float32, from logits (N, V)."""
    logits = logits.float() if temperature == 1 else logits.float() / temperature
    return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")


@functools.cache
def compiled_logprobs():
    """logprobs_of() without a float32 copy of logits and gradients, a gigabyte and more each."""
    return compiled(logprobs_of)


@torch.no_grad()
def check_logits(model) -> None:
    """UserError if the model's forward, which samples,
    makes other logits of a few tokens than logits_of(), which trains.
    """
    # (1, T)
    ids = torch.arange(min(8, model.config.get_text_config().vocab_size), device=model.device)[None]
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state  # (1, T, D)
    own, ours = (
        model(input_ids=ids, use_cache=False).logits.float(),
        logits_of(model, hidden).float(),
    )  # (1, T, V)
    off, largest = (ours - own).abs().max().item(), own.abs().max().item()
    if off > largest * (1e-3 if model.dtype == torch.float32 else 2e-2):
        kind = model.config.get_text_config().model_type
        raise UserError(
            f"models of type {kind!r} change their logits in a way that models.logits_of() does "
            f"not know (by {off:.2g} of {largest:.2g}): they would be trained on another "
            "distribution than is sampled; take another model"
        )


def compile_layers(model) -> None:
    """Compile each decoder layer for the training pass, which fuses its small kernels.

    The forward alone, and not the whole call: FSDP gathers a layer's parameters in hooks around it.
    One graph serves all layers and batches: frozen embeddings have a gradient too, or the first
    layer would need a graph of its own. So would a lone row: a short one runs eagerly.
    """
    model.enable_input_require_grads()
    for layer in model.get_decoder().layers:
        layer.forward = compiled_layer(layer.forward)


def are_compiled(model) -> bool:
    """Whether compile_layers() was here."""
    return "forward" in vars(model.get_decoder().layers[0])


def compiled_layer(forward):
    """A decoder layer's forward, compiled for rows of any number and length; a lone short one runs
    eagerly, as it would need a graph of its own.
    """
    fast = compiled(forward)

    @functools.wraps(forward)
    def call(hidden, *args, **kwargs):
        """hidden (B, T, D)"""
        lone = hidden.shape[0] == 1 and hidden.shape[1] < 4_096
        return (forward if lone else fast)(hidden, *args, **kwargs)

    return call


def peft():
    """The package peft, which is optional: only LoRA needs it."""
    try:
        return importlib.import_module("peft")
    except ImportError:
        raise UserError(
            "LoRA needs the package peft: pip install peft, or train all parameters with "
            "--lora-rank 0"
        ) from None
