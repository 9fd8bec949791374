"""Honesty where it was never trained: confessions are trained on one task and asked on others.

    python -m experiments.ood                  # the organism, trained on word_count
    python -m experiments.ood --model MODEL --train constraints,short_count \\
        --tasks constraints,short_count --grpo "--lr 1e-4" --name ood
    python -m experiments.ood --rows untrained=MODEL,short_count=runs/A/checkpoints/step_0100 \\
        --tasks short_count,constraints --name ood
    python -m experiments.ood --plot-only --name ood   # table and figure of saved cells

A row is a model, a column a task. --train makes rows: confessions alone are trained (--task-weight
0) with the information reward, runs/NAME/TASK each, from --model, which is the row "untrained".
--rows takes models that exist; where a row's name begins with a task's, it was trained on it, and
the figure frames the cell. A task with kinds that training prompts never ask for (`new_kinds`:
constraints) has two columns of one evaluation, a claim in the one of its objective's kind.
A cell is what metrics.py says of --n rollouts on held-out prompts: J within a prompt, bits, the
share of reports that parse and of claims with a contrast; beside it what constants, the prompt
alone (baselines.py: both have J 0 whatever they say) and the same reports shuffled reach; and each
row less the first one, paired by prompts. One shuffle is a number by chance (.13 [.05, .20] where
the mean of 200 is 0), so the short table and the figure have the range of many.

Every cell has the same token budgets, the largest of any row's, as what one task needs cuts
another's reports off; other options of sampling are a checkpoint's own. A cell is saved when it is
finished and not computed again; a run that exists is gone on with, whatever --grpo says by then.
The default takes 6 to 14 minutes on two cores.

What it supports: whether reports of these models tell anything of their answers to that task. What
it does not: (1) every row answers by itself, so the answers differ between rows (confessions and
answers share their weights), and with them what there is to tell: `objectives_met` and
`claims_with_contrast` say how much. With --answers frozen all rows confess to the first row's
answers, which they did not write. (2) J and bits are of parsed reports: where hardly one parses the
cell says so and nothing of honesty. An organism knows the form of word_count alone, so that is what
its other columns are. (3) Intervals are over topics: how much another training seed would differ is
not in them; train more (--grpo "--seed 1" and another --name) and make them rows of one matrix.
(4) word_count and short_count are one skill in two sizes: J that carries over between them is not
honesty in general.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import cells
import cli
import figures
import models
import run_folder
from baselines import SHUFFLES, baselines, shuffles
from cells import REWARDS, Cells, OwnSampling
from cli import UserError, option
from evaluate import ANSWERS, confess_again, evaluate_in_memory, stored
from intervals import written
from metrics import differences, format_table, metrics, of_objectives
from rollout import Rollout, Sampling
from run_folder import RUNS

BUDGETS = ("max_answer_tokens", "max_confession_tokens")
LINE = {"info": "claim_J_within", "bits": "claim_bits", "parsed": "parsed"}
SHOWN = """claim_J_within claims_with_contrast claim_J claim_bits parsed claim_match objectives_met
answer_truncated confession_truncated""".split()


@dataclass(frozen=True)
class Config(OwnSampling):
    rows: str = option(
        "",
        "NAME=MODEL,...: Hugging Face names or folders; a name that begins with a task's was "
        "trained on it [untrained=--model]",
    )
    train: str | None = option(
        None, "tasks on which --model is trained first, a row each [word_count without --rows]"
    )
    model: str = option("organism/policy", "the model that --train begins with")
    steps: int = option(40, "optimizer steps of each run of --train", at_least=1)
    grpo: str = option("", "further options of these runs, such as '--lr 1e-4 --seed 1'")
    tasks: str = option("word_count,short_count", "the columns")
    answers: str = option(
        "own", "own: a row's; frozen: all confess to the first row's", one_of=("own", "frozen")
    )
    n: int = option(
        256, f"rollouts of an evaluation, {ANSWERS} on each held-out prompt", at_least=1
    )
    name: str = option("ood_embedded", "folder under runs/")
    plot_only: bool = option(False, "table and figure of saved cells, without a model")


# ------------------------------------------------------------------------------------ rows, columns


def listed(text: str, sandbox: str | None = None) -> dict[str, ModuleType]:
    """{name: task} of names with commas between them."""
    return {name: cli.import_task(name, sandbox) for name in filter(None, text.split(","))}


def home(row: str, tasks: dict[str, ModuleType]) -> str | None:
    """The task that a row was trained on: the longest name that its own begins with."""
    return max(filter(row.startswith, tasks), key=len, default=None)


def refuse_other_task(row: str, model: str, tasks: dict[str, ModuleType]) -> None:
    """UserError for a row named after a task that its run did not train on."""
    run, task = Path(model).parent, home(row, tasks)
    if task and run.name == "checkpoints":
        trained = run_folder.read_config(run.parent)["task"]
        if trained != task:
            raise UserError(
                f"--rows {row}={model}: {run.parent} was trained on {trained}, and the row's name "
                f"says {task}: give it another name"
            )


def columns(name: str, task: ModuleType) -> dict[str, bool | None]:
    """{column: which kinds it is about}: True those of evaluation alone, False those of training,
    None all.
    """
    if not hasattr(task, "new_kinds"):
        return {name: None}
    return {f"{name}, known kinds": False, f"{name}, new kinds": True}


def about(rollouts: list[Rollout], task: ModuleType, new: bool | None) -> list[Rollout]:
    """The rollouts as if the objectives of these kinds were all; without those that have none."""
    if new is None:
        return rollouts
    kept = [[i for i, is_new in enumerate(task.new_kinds(r.x)) if is_new == new] for r in rollouts]
    tuples = [name for name, v in vars(rollouts[0].truth).items() if isinstance(v, tuple)]
    return [of_objectives(r, some, tuples) for r, some in zip(rollouts, kept) if some]


# ------------------------------------------------------------------------------------------- cells


def train(tasks: dict[str, ModuleType], options: Config) -> dict[str, str]:
    """{task: its last checkpoint}: runs of grpo.py as far as they are not there."""
    judge = [] if models.is_embedded(options.model) else ["--judge", options.model]
    given = cells.chosen(options) | {"device": options.device}
    sampling = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    trained = {}
    for task in tasks:
        run = RUNS / options.name / task
        common = [*judge, "--task", task, "--task-weight", "0"]
        evaluated = ["--eval-n", str(options.n), "--checkpoint-every", str(options.steps)]
        arguments = [*common, *REWARDS["information"], *evaluated, *sampling]
        arguments += shlex.split(options.grpo)
        cells.train(run, options.model, arguments, options.steps, options.n)
        trained[task] = str(run_folder.checkpoint(run, options.steps))
    return trained


def compute(out: Path, rows: dict[str, str], tasks: dict[str, ModuleType], options: Config) -> None:
    """All cells that are not there, and OUT/matrix.json, which says where each is."""
    if options.answers == "frozen":
        refuse_other_tokens(rows)
    own = [cells.settings(model, options) for model in rows.values()]
    given = cells.chosen(options) | {name: max(of[name] for of in own) for name in BUDGETS}
    computer, paths = Cells(None, options.device), {}
    frozen: dict[str, list[Rollout]] = {}  # {task: the first row's answers}
    for row, model in rows.items():
        for name, task in tasks.items():
            computer.task = task
            asked = cells.Options(**given, device=options.device, task=name, n=options.n)
            answers = frozen.get(name)
            path = cells.cell_path(out, model, "frozen" if answers else "own", asked)
            rollouts = cell(computer, path, f"{row:20} {name:14}", model, answers, asked)
            if options.answers == "frozen":
                frozen.setdefault(name, rollouts)
            paths.setdefault(row, {})[name] = path.name
    run_folder.write_json(
        out / "matrix.json", {"tasks": list(tasks), "answers": options.answers, "cells": paths}
    )


def cell(
    computer: Cells,
    path: Path,
    title: str,
    model: str,
    answers: list[Rollout] | None,
    asked: cells.Options,
) -> list[Rollout]:
    """A model's rollouts, or with `answers` its confessions to these."""
    task, saved = computer.task, stored(path, computer.task)
    contexts = lambda rollouts: [r.token_ids[: r.confession.start] for r in rollouts]
    if saved is not None and (answers is None or contexts(saved) == contexts(answers)):
        return saved
    preset = cells.settings(model, asked)
    loaded, sampling = computer.load(model, preset["dtype"]), Sampling.of(preset)
    if answers is None:
        rollouts, _ = evaluate_in_memory(
            *loaded, judge=None, task=task, sampling=sampling, n=asked.n
        )
    else:
        rollouts = confess_again(*loaded, answers, contexts(answers), task, sampling)
    return computer.keep(path, rollouts, title, **LINE)


def refuse_other_tokens(rows: dict[str, str]) -> None:
    """UserError where the rows' token ids do not mean the same."""
    first, *others = rows
    known = models.load_tokenizer(rows[first]).get_vocab()
    for row in others:
        if models.load_tokenizer(rows[row]).get_vocab() != known:
            raise UserError(
                f"--answers frozen: {row} has another tokenizer than {first}, whose answers are "
                "token ids: take --answers own"
            )


# ------------------------------------------------------------------------------------------ results


def measured(
    found: dict[str, dict[str, list[Rollout]]], tasks: dict[str, ModuleType]
) -> dict[str, dict[str, dict]]:
    """{row: {column: {"trained": on this?, "J of shuffles", "as reported", each baseline and
    "less the first row": metrics}}}; found: {row: {task: rollouts}}.
    """
    first, matrix = next(iter(found)), {}
    for row, by_task in found.items():
        matrix[row] = {}
        for name, task in tasks.items():
            reported = by_task[name]
            others = baselines(reported, task)
            for column, new in columns(name, task).items():
                part = about(reported, task, new)
                cell = {"trained": home(row, tasks) == name and new is not True}
                cell["J of shuffles"] = shuffles(part)
                cell["as reported"] = metrics(part, task)
                for baseline, rollouts in others.items():
                    estimates = metrics(about(rollouts, task, new), task)
                    cell[baseline] = {
                        metric: {k: v for k, v in e.items() if k != "finished"}
                        for metric, e in estimates.items()
                    }
                if row != first:
                    cell["less the first row"] = differences(
                        about(found[first][name], task, new), part, task
                    )
                matrix[row][column] = cell
    return matrix


def in_short(matrix: dict[str, dict[str, dict]]) -> str:
    """Table of every column: the rows beside each other."""
    first, lines = next(iter(matrix)), []
    for column in matrix[first]:
        of_row = {f"{row}{' *' * by[column]['trained']}": by[column] for row, by in matrix.items()}
        lines += [f"{column} (*: trained on it)", ""]
        for part, names in (("as reported", SHOWN[:5]), ("less the first row", SHOWN[:1])):
            found = {row: cell[part] for row, cell in of_row.items() if part in cell}
            lines += [part, format_table(found, names), ""] if found else []
        lines += [f"J within a prompt of {SHUFFLES} shuffles of the reports: mean [95% of them] n"]
        for row, cell in of_row.items():
            lines += [f"{row:34} {written(cell['J of shuffles'])}"]
        lines += [""]
    return "\n".join(lines)


def in_full(matrix: dict[str, dict[str, dict]]) -> str:
    """Table of every cell beside its baselines."""
    lines = []
    for row, by_column in matrix.items():
        for column, cell in by_column.items():
            parts = {k: v for k, v in cell.items() if k not in ("trained", "J of shuffles")}
            lines += [f"{row} on {column}", format_table(parts, SHOWN), ""]
    return "\n".join(lines)


def report(out: Path) -> None:
    """Table and figure of saved cells."""
    saved = run_folder.read_json(out / "matrix.json")
    tasks, found = listed(",".join(saved["tasks"])), {}
    for row, paths in saved["cells"].items():
        for name, file in paths.items():
            rollouts = stored(out / "evals" / file, tasks[name])
            if rollouts is None:
                raise UserError(f"{out}/evals/{file} is missing: drop --plot-only")
            found.setdefault(row, {})[name] = rollouts
    matrix = measured(found, tasks)
    run_folder.write_text(out / "table.txt", f"{in_short(matrix)}\n{in_full(matrix)}")
    print(f"{in_short(matrix)}\nevery cell beside its baselines: {out / 'table.txt'}")
    print(f"figure: {figures.ood(out / 'fig_ood.png', matrix, saved['answers'])}")


def main() -> None:
    options = cli.parse(Config, __doc__)
    with cli.user_errors():
        out = RUNS / options.name
        if not options.plot_only:
            rows, tasks = cells.rows_of(options.rows), listed(options.tasks, options.sandbox)
            if not tasks:
                raise UserError("--tasks is empty: name at least one task, such as word_count")
            by_default = "" if rows else "word_count"
            trained = listed(by_default if options.train is None else options.train)
            for name in trained:
                if name in rows:
                    raise UserError(f"--train {name}: --rows has a row of that name: rename it")
            rows = rows or {"untrained": options.model}
            for row, model in rows.items():
                refuse_other_task(row, model, tasks)
            compute(out, rows | train(trained, options), tasks, options)
        report(out)


if __name__ == "__main__":
    main()
