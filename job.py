"""What a training run works with: everything that it loads, and its checkpoints and evaluations."""

import dataclasses
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

import cli
import models
import run_folder
from chat_template import prompt_ids, suffix_ids
from confession_judge import QUESTIONS, ConfessionJudge, confession_frame
from confession_schema import confession_prompt
from evaluate import evaluate, save
from options import JUDGED, Config
from rewards import Judge, RewardFunction, judge_prompt
from rollout import Sampling, check_context
from runtime import distributed
from runtime.optimizer import make_optimizer


@dataclass
class Job:
    config: Config
    run: Path
    task: ModuleType
    rewards: tuple[RewardFunction, RewardFunction]  # of answers and of confessions
    tokenizer: object
    model: object  # what samples
    learner: object  # what is trained: the model itself, or its sharded copy
    reference: object  # the policy as it began, for the KL term or the next, or None
    judge: Judge
    confession_judge: ConfessionJudge | None  # where it gives the confessions' reward
    optimizer: torch.optim.Optimizer
    sampling: Sampling  # this and the next get smaller where memory runs out
    micro_batch_tokens: int


def begin(config: Config, run: Path, resume: bool) -> tuple[Job, int]:
    """(what a run works with, steps done): a new run, or on from its newest checkpoint.

    What cannot work is a UserError, before anything is written. What was recorded after the
    checkpoint is forgotten.
    """
    # the step to go on from; None if the run was killed before its first checkpoint
    resumed = run_folder.newest_checkpoint(run) if resume else None
    job = _loaded(config, run, resumed)
    if not resume:
        x = job.task.make_prompt(0)
        xc = confession_prompt(job.task, x, config.confession)
        prompts = {"x": x, "xc": xc, "judge": judge_prompt("X", "Y")}
        if job.confession_judge:
            prompts["confession_judge"] = confession_frame(*"XYCR", " ".join(QUESTIONS.values()))
        run_folder.create(run, config, prompts)
    run_folder.forget_after(run, resumed or 0)
    return job, resumed or 0


def _loaded(config: Config, run: Path, resumed: int | None) -> Job:
    device = models.device_of(config.device)
    source = config.model if resumed is None else str(run_folder.checkpoint(run, resumed))
    model, tokenizer = models.load(source, device, config.dtype)
    judge = Judge(*models.load(config.judge, device, config.dtype), compiles=compiles(config))
    task, sampling = (
        cli.import_task(config.task, config.sandbox),
        Sampling.of(dataclasses.asdict(config)),
    )
    rewards = (
        cli.import_function(config.answer_reward),
        cli.import_function(config.confession_reward),
    )
    check_prompts(model, tokenizer, task, sampling, config.confession)
    models.check_logits(model)
    # for the adapters' initialisation; sampling has its own generators
    torch.manual_seed(config.seed)
    model = models.with_lora(model, config.lora_rank)
    learner = model if config.lora_rank else distributed.sharded(model)
    if config.gradient_checkpointing:
        models.recompute_activations(learner)
    if compiles(config):
        models.compile_layers(learner)
    judges_confessions = config.confession_reward == JUDGED
    reference, confession_judge = None, None
    if config.kl_coef or judges_confessions:
        # with new adapters it is the model with them switched off
        new_adapters = config.lora_rank and not models.has_adapters(config.model)
        reference = (
            model
            if new_adapters
            else models.load(config.model, device, config.dtype)[0].requires_grad_(False)
        )
    if judges_confessions:
        of_confessions = dataclasses.replace(judge, frame=confession_frame)
        confession_judge = ConfessionJudge(of_confessions, model, reference, tokenizer)
    optimizer = make_optimizer(learner, config.lr)
    if resumed is not None:
        run_folder.load_optimizer(run, resumed, optimizer)
    return Job(
        config=config,
        run=run,
        task=task,
        rewards=rewards,
        tokenizer=tokenizer,
        model=model,
        learner=learner,
        reference=reference,
        judge=judge,
        confession_judge=confession_judge,
        optimizer=optimizer,
        sampling=sampling,
        micro_batch_tokens=config.micro_batch_tokens,
    )


def check_prompts(model, tokenizer, task: ModuleType, sampling: Sampling, variant: str) -> None:
    """UserError if the longest of 64 training prompts and the budgets do not fit the context."""
    xs = [task.make_prompt(seed) for seed in range(64)]
    xcs = {confession_prompt(task, x, variant) for x in xs}  # few, of most tasks one
    longest_x = max(len(prompt_ids(tokenizer, x, thinking=sampling.thinking)) for x in xs)
    longest_xc = max(len(suffix_ids(tokenizer, xc, sampling.thinking)) for xc in xcs)
    check_context(model, longest_x, longest_xc, sampling)


def compiles(config: Config) -> bool:
    return config.compile and models.device_of(config.device).type == "cuda"


@contextmanager
def compiling(config: Config):
    """Within it layers run compiled or eagerly, the sampler's too; yields what step 1 waits for."""
    waiting_for = "compiling: half a minute, a few seconds when it was done here before"
    with torch.compiler.set_stance("default" if compiles(config) else "force_eager"):
        yield waiting_for if compiles(config) else ""


def save_and_evaluate(job: Job, step: int) -> list[float]:
    """Checkpoint and evaluation of a step, as far as they are not there yet; [seconds] that it took
    if the evaluation was not.
    """
    start = time.perf_counter()
    run_folder.keep_checkpoint(job.run, step, job.model, job.tokenizer, job.optimizer)
    path = job.run / "evals" / f"step_{step:04d}.json"
    if not run_folder.exists(path):
        n, variant = job.config.eval_n, job.config.confession
        rollouts = evaluate(
            job.model, job.tokenizer, job.judge, job.task, job.sampling, n, variant=variant
        )
        save(path, rollouts, job.task)
        return [time.perf_counter() - start]
    return []
