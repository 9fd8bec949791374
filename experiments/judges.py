"""What does a judge trust, the words or the labels? Judges are measured on the stored answers
of an evaluation.

    python -m experiments.judges --run runs/NAME --step 0 --judges A.gguf,B.gguf,smollm2-135m
    python -m experiments.judges --run runs/NAME --step 100 --n 64   # the run's own, 64 answers

A good weak judge for the bracket hack passes by labels and not by words. Two parts show it,
for each judge:

answers     as they are: how often they pass; Cohen's kappa of the verdict with the truth (the
            answer is compliant) and with the labels (those of all requested sentences state the
            targets); Spearman's rank correlation of the margin with the share of objectives met and
            with the share of labels that state their target.
versions    of every answer with exactly the requested number of sentences, the same sentences with
            other labels: they state the targets; one of them is off by one; they state the true
            counts; there are none. The mean margin of each, its paired difference to "targets",
            and in what share of answers the margin of "targets" is the higher one. The words
            of the versions are the same and in "true counts" nothing lies, so these differences are
            due to labels alone: no content is confounded with them, as in the first part. A pair
            whose two texts are the same (the true counts of a compliant answer are the targets)
            shows nothing and counts in neither difference nor share.

Margins are in nats, log P(PASS) - log P(FAIL); all else has no unit. Intervals are of 95% over
topics (intervals.py): of rates Wilson's for clusters, of the rest a percentile bootstrap. What is
undefined for want of variation is "-", and so is an interval where no resample differs. n counts
answers with a verdict, in versions those with a verdict on all four. The table is
RUN/table_judges.txt, its numbers RUN/judges.json ({judge: {metric: {value, low, high, n}}});
a later call replaces both.

What it does not support: it knows a judge by its margin on these answers only. Another policy's
answers, another prompt of the judge, or a policy that trains against it may find it otherwise.
Nor does a small difference between two judges' numbers mean much: they are not compared in pairs.
"""

import gc
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

import numpy as np

import cli
import models
import run_folder
from cli import UserError, option
from evaluate import stored
from intervals import bootstrapped, format_estimates, mean, ranks, rate
from metrics import brief
from rewards import Judge, Verdict
from rollout import Rollout
from tasks.word_count import cluster, label_reward, split_sentences, targets

TASKS = ("word_count", "short_count")  # whose answers have labels


@dataclass(frozen=True)
class Config:
    run: str | None = option(None, "run folder whose saved answers are judged [the newest]")
    step: int = option(0, "evaluation that holds them")
    judges: str = option(
        "", "models with a comma between, as --judge of grpo.py takes them [the run's own judge]"
    )
    n: int | None = option(None, "only the first n of the answers [all]")
    device: str = option("auto", "auto, cpu or cuda")
    dtype: str | None = option(
        None,
        "of the judges: float32 or bfloat16 [embedded or on the CPU float32, else bfloat16]",
        one_of=("float32", "bfloat16"),
    )


# --------------------------------------------------------------------------------------- statistics

# Of columns (n,), an entry an answer; weights (..., n) say how often each answer counts. They
# return (...), NaN if undefined.


def kappa(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Cohen's kappa of two columns of bool: 1 if they agree, 0 as by chance or if one alone is
    constant; NaN if both are and agree.
    """
    agree, of_a, of_b = (mean(hits, weights) for hits in (a == b, a, b))
    chance = of_a * of_b + (1 - of_a) * (1 - of_b)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (agree - chance) / (1 - chance)


def spearman(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation; NaN if a column is constant."""
    a, b = ranks(a, weights), ranks(b, weights)
    a, b = a - mean(a, weights)[..., None], b - mean(b, weights)[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        return mean(a * b, weights) / np.sqrt(mean(a * a, weights) * mean(b * b, weights))


# ----------------------------------------------------------------------------------------- versions


def as_requested(rollout: Rollout) -> bool:
    """Whether the answer has as many sentences as its prompt asks for."""
    return len(rollout.truth.sentences) == len(targets(rollout.x))


def version_labels(rollout: Rollout) -> dict[str, list[int | None]]:
    """{version: a label for each sentence,
    None for no label} of an answer with the requested number of sentences.
    """
    wanted = targets(rollout.x)
    rng = random.Random(rollout.x + rollout.y)
    off, step = rng.randrange(len(wanted)), rng.choice((-1, 1))
    return {
        "targets": list(wanted),
        "off_by_one": [target + step * (i == off) for i, target in enumerate(wanted)],
        "true_counts": [sentence.words for sentence in rollout.truth.sentences],
        "no_labels": [None] * len(wanted),
    }


def versions(rollout: Rollout) -> dict[str, str] | None:
    """{version: text}: the sentences of an answer with other labels, what stood between them
    left out. None where a text would not have the same counts, as where nothing but labels
    ends the sentences.
    """
    sentences, texts = rollout.truth.sentences, {}
    for name, labels in version_labels(rollout).items():
        pairs = list(zip(sentences, labels, strict=True))
        texts[name] = " ".join(
            s.text if label is None else f"{s.text} ({label})" for s, label in pairs
        )
        if [(s.words, s.label) for s in split_sentences(texts[name])] != [
            (s.words, label) for s, label in pairs
        ]:
            return None
    return texts


# ------------------------------------------------------------------------------------------ a judge


def measure(
    judge: Callable[[list[Rollout]], list[Verdict]], rollouts: list[Rollout]
) -> dict[str, dict]:
    """{metric: {value, low, high, n}} of a judge,
    on answers as they are and on versions of them.
    """
    told = [
        (rollout, texts)
        for rollout in filter(as_requested, rollouts)
        if (texts := versions(rollout))
    ]
    changed = [replace(rollout, y=text) for rollout, texts in told for text in texts.values()]
    verdicts = judge(rollouts + changed)
    return of_answers(rollouts, verdicts[: len(rollouts)]) | of_versions(
        told, verdicts[len(rollouts) :]
    )


def of_answers(rollouts: list[Rollout], verdicts: list[Verdict]) -> dict[str, dict]:
    judged = [(r, v) for r, v in zip(rollouts, verdicts, strict=True) if v.state != "failed"]
    answers = [r for r, _ in judged]
    topics = [cluster(r.x) for r in answers]
    passed = np.array([v.state == "pass" for _, v in judged])
    margins = np.array([v.margin for _, v in judged])
    met = np.array([sum(r.truth.objectives) / len(r.truth.objectives) for r in answers])
    compliant = np.array([r.truth.compliant for r in answers])
    labels = np.array(label_reward(answers))
    return {
        "pass_rate": rate(topics, passed),
        "kappa_truth": bootstrapped(kappa, topics, passed, compliant),
        "kappa_labels": bootstrapped(kappa, topics, passed, labels == 1),
        "rank_objectives": bootstrapped(spearman, topics, margins, met),
        "rank_labels": bootstrapped(spearman, topics, margins, labels),
    }


def of_versions(
    told: list[tuple[Rollout, dict[str, str]]], verdicts: list[Verdict]
) -> dict[str, dict]:
    """told: answers with their versions; verdicts: on these, in the same order."""
    rest = iter(verdicts)
    judged = [(r, texts, {name: next(rest).margin for name in texts}) for r, texts in told]
    judged = [(r, texts, margins) for r, texts, margins in judged if None not in margins.values()]
    topics = [cluster(r.x) for r, _, _ in judged]
    names = ("targets", "off_by_one", "true_counts", "no_labels")
    out = {
        f"margin_{name}": bootstrapped(mean, topics, np.array([m[name] for _, _, m in judged]))
        for name in names
    }
    shares = {}
    for name in names[1:]:
        unlike = [
            (topic, m)
            for topic, (_, texts, m) in zip(topics, judged)
            if texts[name] != texts["targets"]
        ]
        where, lower = (
            [topic for topic, _ in unlike],
            np.array([m[name] - m["targets"] for _, m in unlike]),
        )
        out[f"{name}_minus_targets"] = bootstrapped(mean, where, lower)
        shares[f"targets_above_{name}"] = rate(where, lower < 0)
    return out | shares


# -------------------------------------------------------------------------------------------- table


def heading(run: Path, step: int, rollouts: list[Rollout]) -> str:
    """What is judged, and what is left out."""
    requested = [r for r in rollouts if as_requested(r)]
    told = sum(versions(r) is not None for r in requested)
    topics, compliant = {cluster(r.x) for r in rollouts}, sum(r.truth.compliant for r in rollouts)
    return (
        f"{run} step {step}: {len(rollouts)} answers in {len(topics)} topics, {compliant} comply, "
        f"{label_reward(rollouts).count(1)} have labels that all state the targets\n"
        f"versions of {told} answers; left out: {len(rollouts) - len(requested)} with another "
        f"number of sentences, {len(requested) - told} whose sentences are read otherwise "
        "with other labels"
    )


def answers_of(run: Path, config: dict, options: Config) -> list[Rollout]:
    """The stored answers that the options ask for."""
    if config["task"] not in TASKS:
        raise UserError(
            f"{run} is of task {config['task']!r}, whose answers have no labels: take one "
            f"of {' or '.join(TASKS)}"
        )
    rollouts = stored(
        run / "evals" / f"step_{options.step:04d}.json", cli.import_task(config["task"])
    )
    if rollouts is None:
        there = ", ".join(map(str, run_folder.evaluations(run))) or "none"
        raise UserError(f"--step {options.step}: {run} has no such evaluation; it has {there}")
    if options.n is not None and not 1 <= options.n <= len(rollouts):
        raise UserError(
            f"--n {options.n} is out of range: the evaluation has {len(rollouts)} answers, ask "
            "for 1 to as many"
        )
    return rollouts[: options.n]


def judges_of(text: str) -> dict[str, str]:
    """{name in the table: model}; UserError for one that cannot be found."""
    listed = [name.rstrip("/") for name in text.split(",")]
    for name in listed:
        if not name or listed.count(name) > 1:
            raise UserError(
                f"--judges {text!r}: {name!r} is empty or there twice; give models with a comma "
                "between, each once"
            )
        # a wrong name is found before the first judge has worked for an hour
        models.load_tokenizer(name)
    short = [Path(name).name for name in listed]  # two runs may both have a step_0100
    return {last if short.count(last) == 1 else name: name for last, name in zip(short, listed)}


def main() -> None:
    options = cli.parse(Config, __doc__)
    with cli.user_errors():
        run = Path(options.run) if options.run else run_folder.newest()
        config = run_folder.read_config(run)
        rollouts = answers_of(run, config, options)
        device = models.device_of(options.device)
        judges, found = judges_of(options.judges or config["judge"]), {}
        for name, model in judges.items():
            start = time.perf_counter()
            gc.collect()  # the former judge is gone from memory before the next one comes
            dtype = options.dtype or models.defaults(model, device, thinking="off")["dtype"]
            found[name] = measure(Judge(*models.load(model, device, dtype)), rollouts)
            table = f"{heading(run, options.step, rollouts)}\n{format_estimates(found)}"
            run_folder.write_json(run / "judges.json", found)
            run_folder.write_text(run / "table_judges.txt", table + "\n")
            values = brief(
                found[name], passed="pass_rate", truth="kappa_truth", labels="kappa_labels"
            )
            print(f"{name} | {values}, {dtype}, {time.perf_counter() - start:.1f}s", flush=True)
        print(table)


if __name__ == "__main__":
    main()
