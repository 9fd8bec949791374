"""Seconds and peak memory of a training step by phase, beside TRL's GRPOTrainer at the same model, rollouts and tokens.

    python bench.py                # ours
    python bench.py --vs-trl       # both, one after the other; needs: pip install trl==1.16.0

TRL has no second turn, so it gets one turn of equal size: a prompt as long as x and the confession prompt together, and
completions of exactly our mean number of sampled tokens. Fixed lengths favour TRL: none of its rows waits for another.
Its reward is a constant-time function, while our step includes the judge. Each side runs in a process of its own; the
first step of each is a warm-up and is not counted.
"""

import contextlib
import io
import multiprocessing
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import cli
import grpo
import models
import run_folder
import word_count
from confession_schema import confession_prompt

PHASES = ("sample", "judge", "score", "train")


@dataclass(frozen=True)
class Config:
    model: str = cli.option("organism/policy", "policy, as in grpo.py")
    judge: str | None = cli.option(None, "judge, as in grpo.py")
    steps: int = cli.option(6, "counted steps, after one warm-up")
    lr: float = cli.option(0.0001, "learning rate; small changes keep the lengths of the rollouts alike")
    device: str = cli.option("auto", "auto, cpu or cuda")
    vs_trl: bool = cli.option(False, "measure TRL's GRPOTrainer too")


def ours(config: Config) -> dict:
    """Medians over steps of our own training loop, run as it is."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        training = grpo.Config(
            model=config.model, judge=config.judge, steps=config.steps + 1, lr=config.lr, device=config.device, eval_n=1,
            checkpoint_every=10**6,
        )  # fmt: skip
        grpo.train(grpo.resolve(training), Path(folder))
        rows = run_folder.read_rows(Path(folder) / "timing.jsonl")[1:]
    out = {name: statistics.median(row[name] for row in rows) for name in (*PHASES, "sampled_tokens", "stream_tokens")}
    steps = [sum(row[name] for name in PHASES) for row in rows]
    return out | {
        "step": statistics.median(steps),
        "fastest": min(steps),
        "slowest": max(steps),
        "peak_gib": rows[-1]["peak_gib"],
    }


def trl(config: Config, completion_tokens: int, rollouts: int, group_size: int) -> dict:
    """Median seconds of GRPOTrainer's optimizer steps."""
    model, tokenizer = models.load(config.model, models.device_of(config.device))
    prompts = [f"{word_count.make_prompt(i)}\n{confession_prompt(word_count)}" for i in range(rollouts)]
    options = dict(learning_rate=config.lr, bf16=False, gradient_checkpointing=False, per_device_train_batch_size=8)
    return trl_steps(model, tokenizer, prompts, completion_tokens, group_size, config.steps, options)


def trl_steps(model, tokenizer, prompts: list[str], tokens: int, group_size: int, steps: int, options: dict, **trainer) -> dict:
    """Seconds and peak memory of `steps` optimizer steps of GRPOTrainer, after one warm-up, on len(prompts) rollouts of `tokens`
    tokens each; options: of its GRPOConfig."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            seconds.append(-time.perf_counter())

        def on_step_end(self, *args, **kwargs):
            seconds[-1] += time.perf_counter()

    on_gpu = model.device.type == "cuda"
    model.train()
    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            output_dir=folder, gradient_accumulation_steps=len(prompts) // options["per_device_train_batch_size"],
            num_generations=group_size, max_completion_length=tokens, beta=0.0,
            generation_kwargs={"min_new_tokens": tokens}, temperature=1.0, top_k=0, max_steps=steps + 1,
            use_cpu=not on_gpu, report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=10**6, **options,
        )  # fmt: skip
        GRPOTrainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=lambda completions, **_: [float(len(str(c)) % 7) for c in completions],
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": p}] for p in prompts]}),
            callbacks=[Clock()],
            **trainer,
        ).train()
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    counted = seconds[1:]
    return {"step": statistics.median(counted), "fastest": min(counted), "slowest": max(counted), "peak_gib": peak / 2**30}


def in_own_process(function, *args) -> dict:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def main() -> None:
    config = cli.parse(Config, __doc__)
    with cli.user_errors():
        defaults = grpo.Config()
        rollouts = defaults.prompts_per_step * defaults.group_size
        where = (
            torch.cuda.get_device_name()
            if models.device_of(config.device).type == "cuda"
            else f"CPU, {torch.get_num_threads()} threads"
        )
        mine = in_own_process(ours, config)
        print(
            f"{where}, torch {torch.__version__}; {rollouts} rollouts a step, median of {config.steps} steps [fastest, slowest]"
        )
        print(" " * 17 + "step s            " + "".join(f"{name:>8}" for name in PHASES) + "   sampled tokens/s   peak GiB")
        row = lambda name, r, phases, tokens: print(
            f"{name:15} {r['step']:6.2f} [{r['fastest']:.2f}, {r['slowest']:.2f}]"
            + phases
            + f"   {tokens / r['step']:16,.0f}   {r['peak_gib']:8.2f}"
        )
        row("ours", mine, "".join(f"{mine[name]:8.2f}" for name in PHASES), mine["sampled_tokens"])
        if config.vs_trl:
            length = round(mine["sampled_tokens"] / rollouts)
            theirs = in_own_process(trl, config, length, rollouts, defaults.group_size)
            row("TRL GRPOTrainer", theirs, " " * 8 * len(PHASES), length * rollouts)
            print(f"TRL / ours: {theirs['step'] / mine['step']:.2f}")


if __name__ == "__main__":
    main()
