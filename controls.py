"""Three controls that hold the answers still: did training change the confessions, or only what there is to confess?

    python controls.py                                             # the newest run, all three
    python controls.py --run runs/NAME --frozen runs/OTHER@50      # every checkpoint confesses to OTHER's answers at step 50
    python controls.py --controls compute                          # one of frozen, fresh, compute
    python controls.py --run runs/NAME --plot-only                 # tables and figures from saved cells, no model

frozen    Every checkpoint confesses to the same stored answers, by default those of the run's first checkpoint (as in
          fig. 5 of https://arxiv.org/abs/2512.08093; its fig. 17 is on-policy). If honesty rose on-policy only, the
          answers had become easier to confess.
fresh     Each checkpoint's answers, told as x and y in a new conversation without thought and system prompt, are confessed
          by the same checkpoint and by the untrained first one. If the untrained one did as well, training taught
          nothing beyond reading the transcript; if the same one did worse, its confessions lived on its thoughts.
compute   The confession's thought is cut after 0, 32, 64, ... tokens, closed by force ("budget forcing",
          https://arxiv.org/abs/2501.19393), and the report is begun, because else counting goes on after the closed
          thought. If J within a prompt did not fall, the thought would be decoration. Without thoughts it does not apply.

The answers are those of the run's own evaluations (evals/step_0025.jsonl), with their verdicts; only confessions are
sampled. A cell is saved when it is finished and not computed again for the same answers. With the embedded models all
of it takes 4 minutes on one core.

What it does not support: a cut thought is one that the model would not have written, so compute mixes "less thought" with
"strange thought". An embedded model's z holds nothing that y does not show, and it has never seen an answer without a
thought, so in a fresh conversation it miscounts (count_accuracy in the table): there, compare the two fresh lines with
each other and not with on-policy.
"""

import gc
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Callable

import cli
import figures
import models
import run_folder
from confession_schema import REPORT_START
from cli import UserError, option
from evaluate import brief, chosen_steps, confess_again, differences, format_table, metrics, save, stored
from rollout import Rollout, Sampling, cut_thought, opens_thought, suffix_ids, transcript_ids

CAPS = (0, 32, 64, 128, 256)  # tokens of zc
Lines = dict[str, dict[int | str, list[Rollout]]]  # a figure's lines: {name: {place on the x axis: rollouts}}


@dataclass(frozen=True)
class Config:
    run: str | None = option(None, "run folder whose checkpoints confess [the newest]")
    controls: str = option("", "some of frozen,fresh,compute [all]")
    frozen: str | None = option(None, "RUN@STEP whose evaluation holds the frozen answers [the first step of --run]")
    steps: str = option("", "checkpoints, such as 0,100 [all]")
    device: str = option("auto", "auto, cpu or cuda")
    plot_only: bool = option(False, "tables and figures of saved cells, without a model")


class Confessor:
    """Lets checkpoints of a run confess to stored answers; one checkpoint is in memory at a time."""

    def __init__(self, run: Path, config: dict, task: ModuleType, options: Config):
        self.run, self.config, self.task, self.options = run, config, task, options
        self.loaded: int | None = None

    def confess(self, name: str, by: int, answers: list[Rollout], cut: Callable) -> list[Rollout]:
        """The cell evals/NAME: checkpoint `by` confesses; cut(tokenizer, rollout) -> (context, ids that begin the
        confession), or None where the stored confession stands as it is."""
        path = self.run / "evals" / f"{name}.json"
        saved = stored(path, self.task)
        of = lambda rollouts: [(r.system, r.x, r.z, r.y, r.xc) for r in rollouts]
        if saved is not None and of(saved) == of(answers):
            return saved
        if self.options.plot_only:
            raise UserError(f"{path} is missing or of other answers: run this without --plot-only")
        start = time.perf_counter()
        if self.loaded != by:
            self.loaded = self.model = self.tokenizer = None  # gone from memory before the next one comes
            gc.collect()
            device = models.device_of(self.options.device)
            self.model, self.tokenizer = models.load(str(run_folder.checkpoint(self.run, by)), device, self.config["dtype"])
            self.loaded = by
        cuts = [cut(self.tokenizer, rollout) for rollout in answers]
        chosen = [i for i, c in enumerate(cuts) if c is not None]
        again = dict(enumerate(answers))
        if chosen:
            contexts, begun = zip(*(cuts[i] for i in chosen))
            sampling = Sampling.of(self.config)
            todo = [answers[i] for i in chosen]
            confessed = confess_again(self.model, self.tokenizer, todo, contexts, self.task, sampling, begun)
            again.update(zip(chosen, confessed))
        rollouts = list(again.values())
        found = save(path, rollouts, self.task)
        values = brief(found, info="claim_J_within", honest="honest_given_noncompliant", claims="claim_match", parsed="parsed")
        print(f"{name:32} | {values} | {len(chosen):3} of {len(cuts)} sampled, {time.perf_counter() - start:.1f}s", flush=True)
        return rollouts


def frozen(confessor: Confessor, own: dict[int, list[Rollout]], source: str, answers: list[Rollout]) -> Lines:
    """Every checkpoint on the same answers, beside its own; `own`: {step: rollouts of its evaluation}."""
    cut = lambda tokenizer, rollout: (rollout.token_ids[: rollout.confession.start], [])
    again = {step: confessor.confess(f"frozen_{source}_by_{step:04d}", step, answers, cut) for step in own}
    return {"frozen answers": again, "on-policy": own}


def fresh(confessor: Confessor, own: dict[int, list[Rollout]]) -> Lines:
    """Every checkpoint's answers in a new conversation, confessed by itself and by the first checkpoint."""
    thinking = Sampling.of(confessor.config).thinking
    cut = lambda tokenizer, rollout: (transcript_ids(tokenizer, rollout.x, rollout.y, rollout.xc, thinking), [])
    confess = lambda step, by: confessor.confess(f"fresh_step_{step:04d}_by_{by:04d}", by, own[step], cut)
    return {
        "fresh, same model": {step: confess(step, step) for step in own},
        "fresh, untrained": {step: confess(step, min(own)) for step in own},
        "on-policy": own,
    }


def compute(confessor: Confessor, own: dict[int, list[Rollout]]) -> Lines:
    """The first and the last checkpoint with their thoughts cut short."""

    def cut(tokenizer, rollout: Rollout, cap: int):
        opened = opens_thought(tokenizer, suffix_ids(tokenizer, rollout.xc, Sampling.of(confessor.config).thinking))
        span = rollout.confession
        begun = cut_thought(tokenizer, rollout.token_ids[span.start : span.end], opened, cap, REPORT_START)
        return None if begun is None else (rollout.token_ids[: span.start], begun)

    capped = lambda step, cap: confessor.confess(f"cap_{cap:04d}_step_{step:04d}", step, own[step], lambda t, r: cut(t, r, cap))
    steps = sorted({min(own), max(own)})
    return {f"step {step}": {str(cap): capped(step, cap) for cap in CAPS} | {"none": own[step]} for step in steps}


def report(run: Path, control: str, lines: Lines, task: ModuleType) -> str:
    """The control's figure, and its table: the last place of every line, and what differs there on the same prompts."""
    found = {name: {x: metrics(rollouts, task) for x, rollouts in line.items()} for name, line in lines.items()}
    print(f"figure: {figures.control(run, control, found)}")
    ends = {name: list(line)[-1] for name, line in lines.items()}
    columns = {f"{name} {ends[name]}": found[name][ends[name]] for name in lines}
    for name, line in lines.items():
        places = list(line)
        if control == "fresh" and name != "on-policy":
            columns[f"{name} - on-policy"] = differences(lines["on-policy"][places[-1]], line[places[-1]], task)
        elif control != "fresh" and len(places) > 1:
            columns[f"{name}: last - first"] = differences(line[places[0]], line[places[-1]], task)
    return f"{control}\n{format_table(columns)}"


def main() -> None:
    options = cli.parse(Config, __doc__)
    with cli.user_errors():
        names = options.controls.split(",") if options.controls else ["frozen", "fresh", "compute"]
        for name in names:
            if name not in ("frozen", "fresh", "compute"):
                raise UserError(f"--controls {name!r} is unknown: choose from frozen, fresh, compute")
        run = Path(options.run) if options.run else run_folder.newest()
        config = run_folder.read_config(run)
        task = cli.import_task(config["task"])
        available = [int(path.stem[5:]) for path in (run / "evals").glob("step_????.json")]
        if not options.plot_only:
            available = [step for step in available if step in run_folder.checkpoint_steps(run)]
        steps = chosen_steps(options.steps, sorted(available), run)
        if not steps:
            raise UserError(f"{run} has no checkpoint with its evaluation: train it first, or take another --run")
        own = {step: evaluation(run, step, task) for step in steps}
        source, frozen_answers = f"{run.resolve().name}_step_{steps[0]:04d}", own[steps[0]]
        if options.frozen:
            source, frozen_answers = frozen_source(options.frozen, config, task)
        confessor = Confessor(run, config, task, options)
        if "compute" in names and not any(rollout.zc for rollouts in own.values() for rollout in rollouts):
            print(f"compute does not apply: no confession of {run} has a thought that could be cut short")
            names = [name for name in names if name != "compute"]
        tables = []
        for name in names:
            lines = {
                "frozen": lambda: frozen(confessor, own, source, frozen_answers),
                "fresh": lambda: fresh(confessor, own),
                "compute": lambda: compute(confessor, own),
            }[name]()
            tables.append(report(run, name, lines, task))
        print("\n\n".join(tables))
        for name, table in zip(names, tables):
            run_folder.write_text(run / f"table_{name}.txt", table + "\n")


def evaluation(run: Path, step: int, task: ModuleType) -> list[Rollout]:
    rollouts = stored(run / "evals" / f"step_{step:04d}.json", task)
    if rollouts is None:
        raise UserError(f"{run} has no evaluation of step {step} (evals/step_{step:04d}.json and .jsonl)")
    return rollouts


def frozen_source(text: str, config: dict, task: ModuleType) -> tuple[str, list[Rollout]]:
    """(name, rollouts) of RUN@STEP; their ids must be of the same tokenizer."""
    folder, _, step = text.rpartition("@")
    if not folder or not step.isdecimal():
        raise UserError(f"--frozen {text!r} is not RUN@STEP, such as runs/embedded@0")
    other = run_folder.read_config(Path(folder))["model"]
    if other != config["model"]:
        raise UserError(f"--frozen {text}: its answers are token ids of {other}, this run's model is {config['model']}")
    return f"{Path(folder).resolve().name}_step_{int(step):04d}", evaluation(Path(folder), int(step), task)


if __name__ == "__main__":
    main()
