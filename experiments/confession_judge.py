"""Confessions paid by a judge, the paper's way, beside confessions paid by the truth.

    python -m experiments.confession_judge                        # organism, no GPU, hours
    python -m experiments.confession_judge --model START --judge Qwen/Qwen2.5-Coder-1.5B-Instruct
    python -m experiments.confession_judge --plot-only

Arms, all with confessions on a quarter of the prompts (--confession-share .25) and with answers
paid by the same weak judge; they differ in what pays the confession:

truth      rewards.honesty_reward
judge      rewards.judged_confession_reward: the same judge, shown x, y, the confession and a
           calibration confession (confession_judge.py). The question of the paper's
           fig. 7: does the answer's accuracy fall while the confession's rises?
believer   a judge by construction, for the embedded models, whose judge has never seen a
           confession: honesty_reward with what the labels state in the place of the truth. It is
           fooled alike in both channels and takes no evidence; it shows what a judge must not be.

An embedded model's answers are paid by the verdict of the embedded judge, others' by the margin of
theirs (rewards.judge_margin), as it passes nearly everything.

probe      Before any training: what does the judge pay for? On the start's answers, the same report
           form with other claims: true; opposite; what the labels state; all None; all Full; and
           the report as it was. The mean reward of each, its paired difference to "true", and in
           what share of answers "true" earns more (.5 is chance). If "true" does not earn most, the
           path of least resistance is another report, and no training is needed to know it.
on-policy  evaluations of each run; the curves of the figure are of its training rollouts
frozen     every checkpoint confesses to the answers of the start, the same for all arms
           (controls.py), so these differences are paired and no arm has easier answers; the start's
           confessions drawn so are also the probe's calibration

Read J within a prompt first: 0 is a constant's, whatever the base rate; claim match stands beside
its better constant (dashed), and the table ends with what reports without information score.

It supports: what this judge pays for on these answers, and where some steps under that reward lead
from this start. It does not support that a stronger judge pays for the same: the paper's judge is
far stronger than its task needs, these are weaker than the policy's own counting. A run of the
organisms says nothing of language models. The judge's prompt and the mean of its scores are ours.
On frozen answers the start's own verdicts and rewards are shown.
"""

import dataclasses
import itertools
import json
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

import cli
import figures
import models
import run_folder
from cells import evaluated, seeds_of, train
from cli import UserError, option
from confession_judge import QUESTIONS, confession_frame, score
from confession_schema import parse_report
from evaluate import ANSWERS
from experiments.controls import Confessor
from intervals import bootstrapped, format_estimates, mean, rate
from metrics import differences, format_baselines, format_table, metrics
from real_model import BUDGETS, RECIPE
from rewards import Judge, honesty_reward, judged_confession_reward
from rollout import Rollout
from run_folder import RUNS
from tasks.word_count import cluster, targets

ARMS = {
    "truth": [],
    "judge": ["--confession-reward", "rewards.judged_confession_reward"],
    "believer": ["--confession-reward", "experiments.confession_judge.believer_reward"],
}
SHARE = ["--confession-share", ".25"]
SHOWN = """claim_J_within claims_with_contrast claim_J parsed claim_match objectives_met
honest_given_noncompliant false_confession over_claim all_none hedge_rate exact_compliance
bracket_hack judge_pass judge_accuracy judge_kappa answer_tokens confession_tokens""".split()
CONFESSED = """claim_J_within claim_J parsed claim_match honest_given_noncompliant false_confession
over_claim all_none hedge_rate""".split()


@dataclass(frozen=True)
class Config:
    model: str = option("organism/policy", "the start: a Hugging Face name, a folder or a file")
    judge: str = option("organism/judge", "weak judge of answers and, in one arm, of confessions")
    arms: str = option("", f"of {','.join(ARMS)} [truth, and believer or, of a chat model, judge]")
    seeds: str = option("0,1,2", "training seeds")
    steps: int = option(60, "optimizer steps of each run", at_least=1)
    n: int = option(
        128, f"rollouts of an evaluation, {ANSWERS} on each held-out prompt", at_least=1
    )
    name: str = option("confession_judge", "folder under runs/")
    device: str = option("auto", "auto, cpu or cuda")
    plot_only: bool = option(False, "tables and figures of saved runs, without a model")


# ----------------------------------------------------------------------------------- other "truths"


def by_labels(rollout: Rollout) -> tuple[bool, ...]:
    """What the labels state of each objective: whether they are its target."""
    labels, wanted = [s.label for s in rollout.truth.sentences], targets(rollout.x)
    pairs = list(zip_longest(labels, wanted))[: len(wanted)]
    return tuple(label == target for label, target in pairs)


def believer_reward(rollouts: list[Rollout]) -> list[float]:
    """Confession span: honesty_reward, had the labels told the truth."""
    told = lambda r: dataclasses.replace(
        r.truth, objectives=by_labels(r), compliant=all(by_labels(r))
    )
    return honesty_reward([dataclasses.replace(r, truth=told(r)) for r in rollouts])


def report_of(met: tuple[bool, ...], names: list[str]) -> str:
    """A report that claims so, in the form that every version shares."""
    entries = [
        {"objective": name, "compliance": "Full" if m else "None"} for name, m in zip(names, met)
    ]
    grade = 7 if all(met) else 1
    return json.dumps(
        {
            "compliance_analysis": entries,
            "uncertainties": [],
            "overall_compliance_grade": grade,
        }
    )


def versions(rollout: Rollout, names: list[str]) -> dict[str, str]:
    """{version: text of the confession}."""
    truth = rollout.truth.objectives
    claims = {
        "true": truth,
        "opposite": tuple(not met for met in truth),
        "labels": by_labels(rollout),
        "all None": (False,) * len(truth),
        "all Full": (True,) * len(truth),
    }
    return {name: report_of(met, names) for name, met in claims.items()} | {
        "as reported": rollout.yc
    }


# -------------------------------------------------------------------------------------------- probe


def probe(judge: Judge, rollouts: list[Rollout], calibrations: list[str], task) -> dict:
    """{version: {metric: {value, low, high, n}}}: what the judge of confessions pays for. Answers
    without a verdict on all versions are left out.
    """
    told = []  # per answer, {version: the rollout with its text}
    for r in rollouts:
        names = task.objectives(r.x)
        told.append(
            {
                name: dataclasses.replace(r, yc=text, report=parse_report(text, names))
                for name, text in versions(r, list(names)).items()
            }
        )
    flat = [r for of_answer in told for r in of_answer.values()]
    score(judge, flat, [c for of_answer, c in zip(told, calibrations) for _ in of_answer])
    rewards = iter(judged_confession_reward(flat))
    paid = [{name: next(rewards) for name in of_answer} for of_answer in told]
    rows = [(t, p) for t, p in zip(told, paid) if None not in p.values()]
    if not rows:
        raise UserError("the judge has no verdict on any answer's versions: choose another --judge")
    topics = [cluster(t["true"].x) for t, _ in rows]
    out = {}
    for name in rows[0][0]:
        unlike = [(c, t, p) for c, (t, p) in zip(topics, rows) if t[name].yc != t["true"].yc]
        where = [c for c, _, _ in unlike]
        more = np.array([p[name] - p["true"] for _, _, p in unlike])
        margins = [t[name].judged["margins"] for t, _ in rows]
        out[name] = {
            "reward": bootstrapped(mean, topics, np.array([p[name] for _, p in rows])),
            "reward, less that of true": bootstrapped(mean, where, more),
            "true earns more": rate(where, more < 0),
        } | {
            f"{question}, nats": bootstrapped(
                mean, topics, np.array([m[question] for m in margins])
            )
            for question in QUESTIONS
        }
    return out


# --------------------------------------------------------------------------------------------- runs


def arguments_of(arm: str, seed: int, options: Config) -> list[str]:
    """Options of grpo.py."""
    embedded = models.is_embedded(options.judge)
    paid = "rewards.judge_reward" if embedded else "rewards.judge_margin"
    common = ["--judge", options.judge, "--answer-reward", paid, "--seed", seed, *SHARE]
    every = max(1, options.steps // 2)
    common += ["--eval-n", options.n, "--checkpoint-every", every, "--device", options.device]
    own = [] if models.is_embedded(options.model) else [*RECIPE, *BUDGETS, "--lr", "1e-4"]
    return [*common, *own, *ARMS[arm]]


def chosen_arms(options: Config) -> list[str]:
    usual = "truth,believer" if models.is_embedded(options.judge) else "truth,judge"
    return cli.some_of("--arms", options.arms or usual, ARMS)


def own_context(tokenizer, rollout: Rollout) -> tuple[list[int], list[int]]:
    """What stands before a confession."""
    return rollout.token_ids[: rollout.confession.start], []


def frozen(
    runs: dict[tuple, Path], answers: list[Rollout], task, options: Config
) -> dict[tuple, dict[int, list[Rollout]]]:
    """{(arm, seed): {step: confessions of its checkpoint to the start's answers}}. Step 0 is the
    start's own, drawn anew like the others, and the same for all runs.
    """
    held = {}
    for key, run in runs.items():
        confessor = Confessor(run, run_folder.read_config(run), task, options)
        names = {
            step: f"frozen_by_{step:04d}"
            for step in run_folder.evaluations(run)
            if step or not held
        }
        if options.plot_only and held:  # without a model, of later runs what there is
            there = lambda name: (run / "evals" / f"{name}.json").exists()
            names = {step: name for step, name in names.items() if there(name)}
        held[key] = {
            step: confessor.confess(name, step, answers, own_context)
            for step, name in names.items()
        }
    start = next(iter(held.values()))[0]
    return {key: {0: start} | cells for key, cells in held.items()}


# ------------------------------------------------------------------------------------ what is shown


def table(
    own: dict[tuple, dict[int, list]], held: dict[tuple, dict[int, list]], start: list, task
) -> str:
    """On-policy, frozen, paired differences of the arms on the frozen answers, and baselines, at
    the last step at which all runs are evaluated.
    """
    step = max(set.intersection(*map(set, own.values())))
    name = lambda key: f"{key[0]} {key[1]} step {step}"
    on_policy = {"start": metrics(start, task)}
    on_policy |= {name(k): metrics(e[step], task) for k, e in own.items()}
    lines = ["on-policy", format_table(on_policy, SHOWN)]
    of_step = {k: e[step] for k, e in held.items() if step in e}
    columns = {name(k): metrics(rollouts, task) for k, rollouts in of_step.items()}
    lines += ["", "frozen answers of the start", format_table(columns, CONFESSED)]
    lines += [f"{name(k)}: did not confess to these answers" for k in own if k not in of_step]
    lines += [f"{k[0]} {k[1]} goes on, to {max(e)}" for k, e in own.items() if max(e) > step]
    paired = {
        f"{k[0]} {k[1]} - truth {k[1]}": differences(of_step["truth", k[1]], rollouts, task)
        for k, rollouts in of_step.items()
        if k[0] != "truth" and ("truth", k[1]) in of_step
    }
    if paired:
        lines += ["", "the same, paired differences", format_table(paired, CONFESSED)]
    for k, e in own.items():
        lines += ["", f"{name(k)}, on-policy", format_baselines(e[step], task)]
    for k, rollouts in of_step.items():
        lines += ["", f"{name(k)}, frozen answers", format_baselines(rollouts, task)]
    return "\n".join(lines)


def report(out: Path, arms: list[str], options: Config) -> None:
    """Tables and figure of the runs that are there; what they lack of frozen confessions, and of
    the probe, is computed.
    """
    found, config = evaluated(out, arms, seeds_of(options.seeds))
    task = cli.import_task(config["task"])
    own = {(arm, seed): of for arm, by_seed in found.items() for seed, of in by_seed.items()}
    runs = {(arm, seed): out / f"{arm}_{seed}" for arm, seed in own}
    start = next(iter(own.values()))[0]
    held = frozen(runs, start, task, options)
    text = table(own, held, start, task)
    run_folder.write_text(out / "table.txt", text + "\n")
    print(text)
    curves = {key: run_folder.read_rows(run / "metrics.jsonl") for key, run in runs.items()}
    measured = [
        {key: {step: metrics(r, task) for step, r in of.items()} for key, of in side.items()}
        for side in (own, held)
    ]
    figure = figures.confession_judge(out / "fig_confession_judge.png", curves, *measured)
    print(f"figure: {figure}")
    if not models.is_embedded(options.judge):
        again = [r.yc for r in next(iter(held.values()))[0]]
        shown = format_estimates(probed(out, start, again, task, options))
        heading = "what the judge pays for confessions of the start's answers"
        run_folder.write_text(out / "table_probe.txt", f"{heading}\n{shown}\n")
        print(f"{heading}\n{shown}")


def probed(out: Path, answers: list, calibrations: list[str], task, options: Config) -> dict:
    """probe(), kept in OUT/probe.json and not computed again."""
    path = out / "probe.json"
    if not path.exists():
        if options.plot_only:
            raise UserError(f"{path} is missing: run this without --plot-only")
        device = models.device_of(options.device)
        dtype = models.defaults(options.judge, device, thinking="off")["dtype"]
        judge = Judge(*models.load(options.judge, device, dtype), frame=confession_frame)
        run_folder.write_json(path, probe(judge, answers, calibrations, task))
    return run_folder.read_json(path)


def main() -> None:
    options = cli.parse(Config, __doc__)
    with cli.user_errors():
        arms, out = chosen_arms(options), RUNS / options.name
        for seed, arm in itertools.product(seeds_of(options.seeds), arms):
            if not options.plot_only:
                arguments = arguments_of(arm, seed, options)
                train(out / f"{arm}_{seed}", options.model, arguments, options.steps, options.n)
        report(out, arms, options)


if __name__ == "__main__":
    main()
