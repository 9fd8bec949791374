"""Confidence: reports that say how likely it is that each objective is met, paid by a proper rule.

    python -m experiments.confidence                                   # the organism
    python -m experiments.confidence --model MODEL --sft "--transcripts 3200" --grpo "--lr 1e-4" \\
        --name confidence_real                                         # one GPU
    python -m experiments.confidence --steps 0 --untrained MODEL,MODEL --untrained-task code \\
        --name confidence_code                                         # models as they are
    python -m experiments.confidence --plot-only --name NAME           # table and figure again

The confession prompt `confidence` asks for a number beside each claim. A start is seeded with the
form: numbers that fit the style of a report (.7 to .99 where it claims Full, .01 to .3 for None,
.3 to .7 for Partial), and the style is drawn independently of the truth. Of the organism that is
fine-tuning on its own kind of transcripts, reports alone; of a real model sft.py. Then GRPO:

    brier        rewards.brier_reward: a report against the other reports to its prompt
    plain        rewards.plain_brier_reward, divided by the group's deviation: the usual rule
    information  rewards.information_reward, which pays claims and no numbers
    staged       brier from the end of information: first to look, then to say how sure that makes;
                 twice the steps of the others in all

The organism's answers are not trained (--task-weight 0), so what is true stays as it was; a real
model's are paid for labels that state their targets, as real_model.py's. Difficulty is mixed on
purpose: the organism's sentences are right on practised topics and wrong on others, short_count
asks for 4 to 8 words, code has three levels (and there "solves" alone is looked at).

The table has each row's own confidences beside those of its token probabilities (of "Full" against
"None" where the report claims, claim_tokens.py) and of three reports without information, found in
hindsight, and shuffled. calibration.py says what is measured.

What it supports: whether confidences know more than prompt and level (AUROC within, skill over
prompt alone), and whether they are calibrated (ECE, reliability). What it does not: (1) a low ECE
alone is no knowledge: the constant at the base rate has 0. (2) That a model forecasts: seeded
numbers come with a claim, and where claims come from counting the rule may only have to choose
among styles, and among a dozen numbers. (3) Organisms are no evidence about language models. (4)
Intervals are over topics: another training seed (--seed) may end elsewhere. (5) That an order of
rewards is better: staged has had more steps than brier; compare it with a longer brier (--steps).
"""

import json
import math
import random
import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import cells
import cli
import figures
import models
import run_folder
import sft
from cli import UserError, option
from confession_schema import confession_prompt, drawn_confidence
from evaluate import ANSWERS, evaluate, stored
from experiments import calibration
from experiments.claim_tokens import claim_margins
from intervals import format_estimates
from metrics import brief, metrics
from options import BRIER
from organism import train as organism
from real_model import BUDGETS, HACK, SEEDING
from rollout import Rollout, Sampling
from run_folder import RUNS
from tasks import word_count

OF_BRIER = ["--confession-reward", BRIER, "--confession-weight", "5"]
ARMS = {  # {name: (the arm that it goes on from, options of its reward)}
    "brier": (None, OF_BRIER),
    "plain": (None, ["--confession-reward", "rewards.plain_brier_reward"]),
    "information": (None, cells.REWARDS["information"]),
    "staged": ("information", OF_BRIER),
}
ASKED = ["--confession", "confidence"]
# a report with numbers is longer
LONGER = ["--max-confession-tokens", "320"]
OF_ORGANISM = "--task-weight 0 --max-confession-tokens 448 --prompts-per-step 6 --lr 3e-4".split()
PUBLISHED = """Published ECE, not the same measure: one confidence an answer that its final result
is right, other models, tasks and base rates, no prompt-only or within-prompt control.
DCPO (arXiv 2603.09117), Qwen3-8B                     .435 -> .128 at equal accuracy
RLCR (arXiv 2507.16806), Qwen2.5-7B, HotPotQA         .37 -> .03"""


@dataclass(frozen=True)
class Config:
    model: str = option("organism/policy", "a Hugging Face name, a folder or a .gguf file")
    arms: str = option("", f"some of {','.join(ARMS)} [all]")
    steps: int = option(30, "GRPO steps of an arm; 0: measure what there is", at_least=0)
    seed: int = option(0, "of the arms' training")
    sft: str = option("", "further options of sft.py, for a real model's start")
    grpo: str = option("", "further options of the arms, such as '--lr 1e-4'")
    untrained: str = option("", "models that are measured as they are, with commas [--model]")
    untrained_task: str = option("", "their task [that of the arms]")
    n: int = option(
        128, f"rollouts of an evaluation, {ANSWERS} on each held-out prompt", at_least=1
    )
    name: str = option("confidence_embedded", "folder under runs/")
    sandbox: str = option("strong", "of tasks that run model-written code: strong or weak")
    device: str = option("auto", "auto, cpu or cuda")
    plot_only: bool = option(False, "table and figure of saved evaluations, without a model")


# ----------------------------------------------------------------------------------------- training


def organism_transcript(rng: random.Random) -> sft.Transcript:
    """One of those that the organism was made of, its report with confidences."""
    topic = rng.choice(word_count.TRAINING)
    about = topic, rng.choice(word_count.AUDIENCES), rng.choice(word_count.FOCUSES)
    z = f"Five sentences about {topic}. I will label them 12, 18, 12, 18, 12."
    y = organism.paragraph(rng, topic)
    style = organism.weighted(rng, organism.MODES["baseline"])
    thought, _, report = organism.confession(rng, y, style, False).rpartition("\n\n")
    report = json.loads(report)
    for entry in report["compliance_analysis"]:
        entry["confidence"] = drawn_confidence(rng, entry["compliance"])
    confession = f"{thought}\n\n{json.dumps(report, separators=(',', ':'))}"
    answer = f"<think>\n{z}\n</think>\n\n{y}"
    return sft.Transcript(word_count.prompt_text(*about), answer, confession, style, False)


def seed_organism(run: Path, options: Config) -> None:
    """The start of an embedded model, as far as it is not there."""
    config = sft.resolve(
        sft.Config(
            model=options.model,
            confession="confidence",
            answer_weight=0.0,
            transcripts=6_400,
            epochs=1,
            batch=16,
            lr=1e-3,
            lora_rank=0,
            device=options.device,
        )
    )
    steps = sft.steps_of(config.transcripts, config)
    with run_folder.locked(run):
        resume = (run / "config.json").exists()
        if resume and steps in run_folder.checkpoint_steps(run):
            return
        model, tokenizer, resumed = sft.loaded(config, run, resume)
        rng = random.Random("confidence")
        made = [organism_transcript(rng) for _ in range(config.transcripts)]
        streams = [sft.stream(tokenizer, t, "confidence", "auto", word_count) for t in made]
        if not resume:
            x = word_count.make_prompt(0)
            xc = confession_prompt(word_count, x, "confidence")
            run_folder.create(run, config, {"x": x, "xc": xc})
        order = partial(sft.order, made, config)
        sft.fit(
            model, tokenizer, streams, config, run, resumed, order, lambda rows: {}, lambda *_: 0
        )


def train(folder: Path, options: Config) -> None:
    """The start and the arms, as far as they are not there."""
    start, evaluated = folder / "start", ["--eval-n", options.n]
    own = models.is_embedded(options.model)
    if own:
        seed_organism(start, options)
    elif not (start / "table.txt").exists():  # what sft.py leaves at its end
        fresh = ["--model", options.model, *SEEDING, *BUDGETS, *LONGER, *ASKED, *evaluated]
        fresh += ["--name", start.relative_to(RUNS), *shlex.split(options.sft)]
        cells.call("sft.py", *(["--resume", start] if (start / "config.json").exists() else fresh))
    recipe = OF_ORGANISM if own else ["--judge", options.model, *HACK, *BUDGETS, *LONGER]
    common = [*ASKED, *evaluated, "--checkpoint-every", options.steps, "--seed", options.seed]
    common += ["--device", options.device, *recipe]
    for arm in cli.some_of("--arms", options.arms, ARMS):
        before, reward = ARMS[arm]
        came_from = folder / f"{before}_{options.seed}" if before else start
        if not came_from.exists():
            raise UserError(f"--arms {arm} goes on from {before}: ask for {before},{arm}")
        begin = run_folder.checkpoint(came_from, max(run_folder.checkpoint_steps(came_from)))
        arguments = [*common, *reward, *shlex.split(options.grpo)]
        run = folder / f"{arm}_{options.seed}"
        cells.train(run, str(begin), arguments, options.steps, options.n)


# ------------------------------------------------------------------------------------- measurements


def measure(folder: Path, options: Config) -> None:
    """Evaluations of untrained models, and the token probabilities of all, as far as they are not
    there; FOLDER/rows.json says what there is.
    """
    rows, of_row = {}, {}  # {title: where it is saved}, {title: its model}
    computer = cells.Cells(None, options.device)
    for run in sorted(path for arm in ARMS for path in folder.glob(f"{arm}_[0-9]*")):
        task, steps = run_folder.read_config(run)["task"], sorted(run_folder.evaluations(run))
        for step in steps[:1] * (not rows) + steps[-1:]:  # the arms have one start
            title = f"{run.name} step {step}" if step else "seeded"
            file = str((run / "evals" / f"step_{step:04d}.json").relative_to(folder))
            rows[title] = {"file": file, "task": task}
            of_row[title] = str(run_folder.checkpoint(run, step))
    default = next(iter(rows.values()))["task"] if rows else "word_count"
    given = dict(device=options.device, sandbox=options.sandbox, n=options.n)
    asked = cells.Options(task=options.untrained_task or default, **given)
    for name in (options.untrained or options.model).split(","):
        # an organism knows no prompt but its own
        variant = "default" if models.is_embedded(name) else "confidence"
        path, title = cells.cell_path(folder, name, variant, asked), f"untrained {Path(name).name}"
        rows[title] = {"file": str(path.relative_to(folder)), "task": asked.task}
        of_row[title] = name
        task = computer.task = cli.import_task(asked.task, asked.sandbox)
        if stored(path, task) is None:
            own = cells.settings(name, asked)
            loaded, sampling = computer.load(name, own["dtype"]), Sampling.of(own)
            found = evaluate(*loaded, None, task, sampling, options.n, variant=variant)
            computer.keep(path, found, title, parsed="parsed", J="claim_J_within")
    for title, row in rows.items():
        path = folder / row["file"]
        if not tokens_of(path).exists():
            task = cli.import_task(row["task"], options.sandbox)
            loaded = computer.load(of_row[title], cells.settings(of_row[title], asked)["dtype"])
            found = claim_margins(*loaded, stored(path, task), task, Sampling.batch_size)
            told = [[probability(margin) for margin in margins[:-1]] for margins in found]
            run_folder.write_json(tokens_of(path), {"confidences": told})
    run_folder.write_json(folder / "rows.json", rows)


def probability(margin: float) -> float | None:
    """P(Full) / (P(Full) + P(None)) of the log of their ratio; None of NaN."""
    return None if math.isnan(margin) else (1 + math.tanh(margin / 2)) / 2


def tokens_of(evaluation: Path) -> Path:
    """Where the token probabilities of an evaluation are."""
    return evaluation.with_name(f"{evaluation.stem}_tokens.json")


# ------------------------------------------------------------------------------------------ results


def measured(rollouts: list[Rollout], tokens: calibration.Confidences, task: ModuleType) -> dict:
    """{"sides": {column: measures}, "levels": {level: measures}, "diagram": {side: rows of
    calibration.reliability}} of an evaluation.
    """
    kept = [0] if hasattr(task, "level") else None  # of code: solves
    sides = {"reported": calibration.reported(rollouts), "tokens": tokens}
    found = {name: calibration.cases_of(rollouts, told, task, kept) for name, told in sides.items()}
    # the controls are those of what is reported, or else of the tokens
    base = next((of for of in found.values() if len(of.p)), None)
    columns = {name: calibration.measures(of) for name, of in found.items()}
    if base:
        columns |= {k: calibration.measures(of) for k, of in calibration.baselines(base).items()}
        columns["shuffled"] = calibration.shuffled(base)
        columns["shuffled"]["given"] = columns["constant"]["given"]
    return {
        "sides": columns,
        "levels": calibration.by_level(base) if base else {},
        "diagram": {name: calibration.reliability(of) for name, of in found.items()},
        "base": float(base.t.mean()) if base else None,
        "parsed": metrics(rollouts, task)["parsed"],
        "J within": metrics(rollouts, task)["claim_J_within"],
    }


def report(folder: Path, sandbox: str) -> None:
    """Table and figure of saved evaluations."""
    found, lines = {}, []
    for title, row in run_folder.read_json(folder / "rows.json").items():
        task, path = cli.import_task(row["task"], sandbox), folder / row["file"]
        rollouts = stored(path, task)
        if rollouts is None or not tokens_of(path).exists():
            raise UserError(f"{path} or its token probabilities are missing: drop --plot-only")
        told = run_folder.read_json(tokens_of(path))["confidences"]
        found[title] = cell = measured(rollouts, told, task)
        said = brief(cell, parsed="parsed", J="J within")
        lines += [f"{title}, {row['task']}, n = {len(rollouts)}: {said}"]
        lines += [format_estimates(cell["sides"]), "", "by difficulty"]
        lines += [format_estimates(cell["levels"]) if cell["levels"] else "-", ""]
    lines += [PUBLISHED]
    table = "\n".join(lines)
    run_folder.write_text(folder / "table.txt", table + "\n")
    print(table)
    print(f"figure: {figures.reliability(folder / 'fig_confidence.png', found)}")


def main() -> None:
    options = cli.parse(Config, __doc__)
    with cli.user_errors():
        folder = RUNS / options.name
        if not options.plot_only:
            if options.steps:
                train(folder, options)
            measure(folder, options)
        report(folder, options.sandbox)


if __name__ == "__main__":
    main()
