"""Load a policy or a judge: an embedded organism, a checkpoint of ours, or any Hugging Face causal LM.

Weights come from safetensors only, and no code of a checkpoint is ever run (trust_remote_code stays off).
"""

import importlib
import json
from pathlib import Path

import huggingface_hub
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from cli import UserError

logging.disable_progress_bar()  # a bar per loaded or saved model would bury the run's own

ORGANISMS = Path(__file__).parent / "organism"
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def is_embedded(name: str) -> bool:
    """Whether a name or path is one of the organisms that come with the repository."""
    return Path(_locate(name)).resolve().parent == ORGANISMS.resolve()


def _locate(name: str) -> str:
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
        raise UserError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}): choose auto, cpu or cuda") from None
    return device


def load(name: str, device: torch.device, dtype: str = "float32"):
    """(model in eval mode, tokenizer). `name`: a hub name or a folder; a LoRA checkpoint loads on top of its base model."""
    name = _locate(name)
    if [*Path(name).glob("*.bin")] and not [*Path(name).glob("*.safetensors")]:
        raise UserError(
            f"{name!r} has pickled weights only (.bin), which may run code when they are loaded: take a safetensors version; "
            "or, if you trust them, load them with transformers and use_safetensors=False, and save_pretrained() them once"
        )
    try:
        adapter = Path(name) / "adapter_config.json"
        base = json.loads(adapter.read_text())["base_model_name_or_path"] if adapter.exists() else name
        common = dict(trust_remote_code=False)  # None would ask on the terminal
        if not (Path(name).exists() and Path(base).exists()) and hub_is_silent():
            common["local_files_only"] = True
        tokenizer = AutoTokenizer.from_pretrained(name, **common)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype), use_safetensors=True, **common).to(device)
    except (OSError, ValueError, ImportError, SafetensorError) as error:  # not found, no safetensors, unknown type, damaged
        raise UserError(
            f"{name!r} cannot be loaded as a causal LM: give a Hugging Face name or an existing folder with safetensors weights "
            f"({' '.join(str(error).split())[:300]})"
        ) from None
    if not len(tokenizer):
        raise UserError(f"{name!r} has no tokenizer files: copy those of its base model into the folder")
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer of {name!r} has no chat template: take an instruction-tuned model")
    if adapter.exists():
        model = peft().PeftModel.from_pretrained(model, name, is_trainable=True)
    return model.eval(), tokenizer


def hub_is_silent(seconds: float = 10) -> bool:
    """Whether the hub takes a request and does not answer: transformers would wait for ever. What was downloaded before is
    used then. A hub that cannot be reached at all is an error that transformers reports itself."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        huggingface_hub.utils.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=seconds)
    except Exception as error:  # which kind depends on the HTTP library of huggingface_hub
        silent = "Timeout" in type(error).__name__
        if silent:
            print(f"{huggingface_hub.constants.ENDPOINT} does not answer: only models downloaded before can be used")
        return silent
    return False


def add_lora(model, rank: int):
    """Wrap a model with LoRA adapters on all seven projections; only they are trained."""
    config = peft().LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_TARGETS, task_type="CAUSAL_LM")
    return peft().get_peft_model(model, config).eval()


def logits_of(model, hidden: torch.Tensor) -> torch.Tensor:
    """Logits (..., V) of the last hidden states (..., D), as the model's own forward makes them: some scale or cap what comes
    out of the head. check_logits() says whether it is the same."""
    logits, config = model.get_output_embeddings()(hidden), model.config.get_text_config()
    if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
        logits = logits * scale
    if (scale := getattr(config, "logits_scaling", None)) is not None:  # Granite
        logits = logits / scale
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma 2
        logits = torch.tanh(logits / cap) * cap
    return logits


@torch.no_grad()
def check_logits(model) -> None:
    """UserError if the model's forward, which samples, makes other logits of a few tokens than logits_of(), which trains."""
    ids = torch.arange(min(8, model.config.get_text_config().vocab_size), device=model.device)[None]  # (1, T)
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state  # (1, T, D)
    own, ours = model(input_ids=ids, use_cache=False).logits.float(), logits_of(model, hidden).float()  # (1, T, V)
    off, largest = (ours - own).abs().max().item(), own.abs().max().item()
    if off > largest * (1e-3 if model.dtype == torch.float32 else 2e-2):
        kind = model.config.get_text_config().model_type
        raise UserError(
            f"models of type {kind!r} change their logits in a way that models.logits_of() does not know (by {off:.2g} of "
            f"{largest:.2g}): they would be trained on another distribution than is sampled; take another model"
        )


def compile_layers(model) -> None:
    """Compile each decoder layer for the training pass, which fuses its small kernels; a minute at the first step.

    The forward alone, and not the whole call: FSDP gathers a layer's parameters in hooks around it.
    """
    for layer in model.get_decoder().layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)


def peft():
    """The package peft, which is optional: only LoRA needs it."""
    try:
        return importlib.import_module("peft")
    except ImportError:
        raise UserError("LoRA needs the package peft: pip install peft, or train all parameters with --lora-rank 0") from None
