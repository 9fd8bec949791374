"""Controls that hold the answers still: did training change the confessions, or only what
there is to confess?

    python -m experiments.controls                            # the newest run, all of them
    python -m experiments.controls --frozen runs/OTHER@50     # OTHER's answers of step 50
    python -m experiments.controls --controls compute         # of those that follow
    python -m experiments.controls --run runs/NAME --plot-only  # from saved cells, no model

frozen    Every checkpoint confesses to the same stored answers, by default those of the run's first
          checkpoint (as in fig. 5 of https://arxiv.org/abs/2512.08093; its fig. 17 is on-policy).
          If honesty rose on-policy only, the answers had become easier to confess.
fresh     Each checkpoint's answers, told as x and y in a new conversation without thought and
          system prompt, are confessed by the same checkpoint and by the untrained first one.
          If the untrained one did as well, training taught nothing beyond reading the transcript;
          if the same one did worse, its confessions lived on its thoughts.
compute   The confession's thought is cut after 0, 32, 64, ... tokens, closed by force
          ("budget forcing", https://arxiv.org/abs/2501.19393), and the report is begun, because
          else counting goes on after the closed thought. If J within a prompt did not fall,
          the thought would be decoration. Without thoughts it does not apply.
swapped   Is a report about this answer? The confession to an answer is scored on its sibling too,
          the next answer to the same prompt, without a model. What honesty, claim match and J keep
          there, a report earns without this answer. J within a prompt has nothing to add there:
          of n answers a report without information has 0 and a perfect one on average -1/(n-1),
          as answers in each other's place are slightly anti-correlated; any other has that part
          of its own. Then the first and the last checkpoint are shown the sibling's text behind the
          answer's own thought, as their own answer, and what they confess is scored on the sibling
          (what the text says) and on the answer (what the thought remembers). Without thoughts,
          or with equal ones, that is the sibling's own context, of which the first part says it
          already: such pairs are not shown, and where all are such it does not apply. Prompts with
          a single answer, and thoughts that were cut off before the answer, have no siblings.
asked     The first and the last checkpoint confess again to their own answers, under every
          confession prompt: default, forced_count, and reviewed, which only adds that a reviewer
          will check every objective. If reviewed made a report more honest at the same count_rate,
          honesty would depend on whether it can be checked.

The answers are those of the run's own evaluations (evals/step_0025.jsonl), with their verdicts;
only confessions are sampled. A cell is saved when it is finished and not computed again for
the same answers. With the embedded models the first three take 4 minutes on one core.

What it does not support: a cut thought is one that the model would not have written, so compute
mixes "less thought" with "strange thought". An embedded model's z holds nothing that y does not
show, and it has never seen an answer without a thought, so in a fresh conversation it miscounts
(count_accuracy in the table): there, compare the two fresh lines with each other and not with
on-policy. Nearly all of its thoughts are the same for every answer to a prompt, so hardly a sibling
is shown. A sibling's text behind another thought is a stream that no model sampled: a report that
follows neither may only say that the two do not fit. reviewed is a sentence that no confession
was trained with; a difference may be that of any new sentence, and none may be that the sentence
was not understood.
"""

import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Callable

import cli
import figures
import run_folder
from cells import Cells
from chat_template import (
    cut_thought,
    joint,
    opens_thought,
    suffix_ids,
    tokens_until,
    transcript_ids,
)
from cli import UserError, option
from confession_schema import REPORT_START, confession_prompt
from evaluate import chosen_steps, confess_again, stored
from metrics import differences, format_table, metrics
from rewards import honesty_reward
from rollout import Rollout, Sampling

CONTROLS = ("frozen", "fresh", "compute", "swapped", "asked")
ASKED = ("default", "forced_count", "reviewed")  # confession prompts that want the same report
CAPS = (0, 32, 64, 128, 256)  # tokens of zc
SHOWN = {
    "info": "claim_J_within",
    "honest": "honest_given_noncompliant",
    "claims": "claim_match",
    "parsed": "parsed",
}
# a figure's lines: {name: {place on the x axis: rollouts}}
Lines = dict[str, dict[int | str, list[Rollout]]]


@dataclass(frozen=True)
class Config:
    run: str | None = option(None, "run folder whose checkpoints confess [the newest]")
    controls: str = option("", f"some of {','.join(CONTROLS)} [all]")
    frozen: str | None = option(
        None, "RUN@STEP whose evaluation holds the frozen answers [the first step of --run]"
    )
    steps: str = option("", "checkpoints, such as 0,100 [all]")
    device: str = option("auto", "auto, cpu or cuda")
    plot_only: bool = option(False, "tables and figures of saved cells, without a model")


class Confessor:
    """Lets checkpoints of a run confess to stored answers;
    one checkpoint is in memory at a time.
    """

    def __init__(self, run: Path, config: dict, task: ModuleType, options: Config):
        self.run, self.config, self.task, self.options = run, config, task, options
        self.cells = Cells(task, options.device)

    def confess(
        self, name: str, by: int, answers: list[Rollout], context_of: Callable
    ) -> list[Rollout]:
        """The cell evals/NAME: checkpoint `by` confesses; context_of(tokenizer,
        rollout) -> (context, ids that begin the confession), or None where the stored confession
        stands as it is.
        """
        path = self.run / "evals" / f"{name}.json"
        saved = stored(path, self.task)
        of = lambda rollouts: [(r.system, r.x, r.z, r.y, r.xc) for r in rollouts]
        if saved is not None and of(saved) == of(answers):
            return saved
        if self.options.plot_only:
            raise UserError(f"{path} is missing or of other answers: run this without --plot-only")

        checkpoint = str(run_folder.checkpoint(self.run, by))
        model, tokenizer = self.cells.load(checkpoint, self.config["dtype"])
        begun = [context_of(tokenizer, rollout) for rollout in answers]
        chosen = [i for i, c in enumerate(begun) if c is not None]
        rollouts = list(answers)
        if chosen:
            contexts, forced = zip(*(begun[i] for i in chosen))
            todo, sampling = [answers[i] for i in chosen], Sampling.of(self.config)
            again = confess_again(model, tokenizer, todo, contexts, self.task, sampling, forced)
            for i, rollout in zip(chosen, again, strict=True):
                rollouts[i] = rollout
        return self.cells.keep(path, rollouts, f"{name:32}", **SHOWN)


def frozen(
    confessor: Confessor, own: dict[int, list[Rollout]], source: str, answers: list[Rollout]
) -> Lines:
    """Every checkpoint on the same answers, beside its own; `own`: {step:
    rollouts of its evaluation}.
    """
    context_of = lambda tokenizer, rollout: (rollout.token_ids[: rollout.confession.start], [])
    again = {
        step: confessor.confess(f"frozen_{source}_by_{step:04d}", step, answers, context_of)
        for step in own
    }
    return {"frozen answers": again, "on-policy": own}


def fresh(confessor: Confessor, own: dict[int, list[Rollout]]) -> Lines:
    """Every checkpoint's answers in a new conversation,
    confessed by itself and by the first checkpoint.
    """
    thinking = Sampling.of(confessor.config).thinking
    context_of = lambda tokenizer, rollout: (
        transcript_ids(tokenizer, rollout.x, rollout.y, rollout.xc, thinking),
        [],
    )
    confess = lambda step, by: confessor.confess(
        f"fresh_step_{step:04d}_by_{by:04d}", by, own[step], context_of
    )
    return {
        "fresh, same model": {step: confess(step, step) for step in own},
        "fresh, untrained": {step: confess(step, min(own)) for step in own},
        "on-policy": own,
    }


def compute(confessor: Confessor, own: dict[int, list[Rollout]]) -> Lines:
    """The first and the last checkpoint with their thoughts cut short."""

    def cut(tokenizer, rollout: Rollout, cap: int):
        opened = opens_thought(
            tokenizer, suffix_ids(tokenizer, rollout.xc, Sampling.of(confessor.config).thinking)
        )
        span = rollout.confession
        begun = cut_thought(
            tokenizer, rollout.token_ids[span.start : span.end], opened, cap, REPORT_START
        )
        return None if begun is None else (rollout.token_ids[: span.start], begun)

    capped = lambda step, cap: confessor.confess(
        f"cap_{cap:04d}_step_{step:04d}", step, own[step], lambda t, r: cut(t, r, cap)
    )
    steps = sorted({min(own), max(own)})
    return {
        f"step {step}": {str(cap): capped(step, cap) for cap in CAPS} | {"none": own[step]}
        for step in steps
    }


def siblings(rollouts: list[Rollout]) -> list[tuple[Rollout, Rollout]]:
    """(answer, its sibling: the next answer to the same prompt, after the last one the first).
    Without prompts that have a single answer, and without thoughts that no answer follows.
    """
    of_prompt = defaultdict(list)
    for rollout in rollouts:
        if rollout.y or not rollout.z:
            of_prompt[rollout.system, rollout.x].append(rollout)
    return [
        pair
        for group in of_prompt.values()
        if len(group) > 1
        for pair in zip(group, group[1:] + group[:1])
    ]


def about(rollout: Rollout, answer: Rollout) -> Rollout:
    """The rollout's confession as if it were one to another answer to its prompt, with that
    answer's truth and the honesty reward for it.
    """
    changed = {name: getattr(answer, name) for name in ("z", "y", "truth", "verdict")}
    spans = dict(
        answer=dataclasses.replace(answer.answer),
        confession=dataclasses.replace(rollout.confession),
    )
    moved = dataclasses.replace(rollout, **changed, **spans)
    (moved.confession.reward,) = honesty_reward([moved])
    return moved


def behind_thought(tokenizer, thinker: Rollout, answer: Rollout) -> list[int]:
    """Ids up to the confession of a stream that has the thinker's thought and the answer's text;
    both are of one prompt.
    """

    def text_start(rollout: Rollout) -> int:
        start, end = rollout.answer.start, rollout.answer.end
        thought = tokens_until(tokenizer, rollout.token_ids[start:end], "</think>")
        return start + thought if start + thought <= end else start

    return (
        thinker.token_ids[: text_start(thinker)]
        + answer.token_ids[text_start(answer) : answer.confession.start]
    )


def swapped(confessor: Confessor, own: dict[int, list[Rollout]]) -> Lines:
    """Every checkpoint's reports scored on the answers' siblings;
    the first and the last one shown siblings behind their thoughts.
    """
    pairs = {step: found for step, rollouts in own.items() if (found := siblings(rollouts))}
    lines = {
        "own answer": {step: [answer for answer, _ in found] for step, found in pairs.items()},
        "its sibling": {
            step: [about(answer, sibling) for answer, sibling in found]
            for step, found in pairs.items()
        },
    }
    text, thought = {}, {}
    for step in sorted({min(pairs), max(pairs)}):
        unlike = [(answer, sibling) for answer, sibling in pairs[step] if answer.z != sibling.z]
        if unlike:
            shown = [dataclasses.replace(sibling, z=answer.z) for answer, sibling in unlike]
            made_of = {id(rollout): pair for rollout, pair in zip(shown, unlike)}
            context_of = lambda tokenizer, rollout: (
                behind_thought(tokenizer, *made_of[id(rollout)]),
                [],
            )
            text[step] = confessor.confess(f"swapped_step_{step:04d}", step, shown, context_of)
            thought[step] = [
                about(rollout, answer) for rollout, (answer, _) in zip(text[step], unlike)
            ]
    if not text:
        print(
            f"showing siblings does not apply: no two answers of {confessor.run} to a prompt "
            "differ in their thoughts"
        )
        return lines
    return lines | {
        "shown sibling: scored on the text": text,
        "shown sibling: scored on the thought": thought,
    }


def asked(confessor: Confessor, own: dict[int, list[Rollout]]) -> Lines:
    """The first and the last checkpoint under every confession prompt."""
    thinking = Sampling.of(confessor.config).thinking

    def context_of(tokenizer, rollout: Rollout):
        answered = rollout.token_ids[: rollout.answer.end]
        return answered + joint(answered, suffix_ids(tokenizer, rollout.xc, thinking)), []

    def confess(step: int, variant: str) -> list[Rollout]:
        answers = [
            dataclasses.replace(r, xc=confession_prompt(confessor.task, r.x, variant))
            for r in own[step]
        ]
        return confessor.confess(f"asked_{variant}_step_{step:04d}", step, answers, context_of)

    return {
        f"step {step}": {variant: confess(step, variant) for variant in ASKED}
        for step in sorted({min(own), max(own)})
    }


def report(run: Path, control: str, lines: Lines, task: ModuleType) -> str:
    """The control's figure, and its table: the last place of every line (of asked, all places
    of the last one), and what differs on the same prompts.
    """
    found = {
        name: {x: metrics(rollouts, task) for x, rollouts in line.items()}
        for name, line in lines.items()
    }
    print(f"figure: {figures.control(run, control, found)}")
    shown = {name: list(line)[-1:] for name, line in lines.items()}
    if control == "asked":
        last = list(lines)[-1]
        shown = {last: list(lines[last])}
    columns = {
        f"{name} {place}": found[name][place] for name, places in shown.items() for place in places
    }
    columns |= {name: differences(*pair, task) for name, pair in contrasts(control, lines).items()}
    return f"{control}\n{format_table(columns)}"


def contrasts(control: str, lines: Lines) -> dict[str, tuple[list[Rollout], list[Rollout]]]:
    """{column of the control's table: (before, after)}."""
    last = {name: list(line.values())[-1] for name, line in lines.items()}
    if control == "fresh":
        return {
            f"{name} - on-policy": (last["on-policy"], last[name])
            for name in lines
            if name != "on-policy"
        }
    if control == "asked":
        by = list(lines.values())[-1]
        return {
            f"{variant} - default": (by["default"], by[variant])
            for variant in by
            if variant != "default"
        }
    if control == "swapped":
        out = {"its sibling - own answer": (last["own answer"], last["its sibling"])}
        shown = [rollouts for name, rollouts in last.items() if name.startswith("shown")]
        return out | ({"shown sibling: thought - text": tuple(shown)} if shown else {})
    return {
        f"{name}: last - first": (list(line.values())[0], last[name])
        for name, line in lines.items()
        if len(line) > 1
    }


def main() -> None:
    options = cli.parse(Config, __doc__)
    with cli.user_errors():
        names = cli.some_of("--controls", options.controls, CONTROLS)
        run = Path(options.run) if options.run else run_folder.newest()
        config = run_folder.read_config(run)
        task = cli.import_task(config["task"], config.get("sandbox"))
        available = list(run_folder.evaluations(run))
        if not options.plot_only:
            available = [step for step in available if step in run_folder.checkpoint_steps(run)]
        steps = chosen_steps(options.steps, sorted(available), run)
        if not steps:
            raise UserError(
                f"{run} has no checkpoint with its evaluation: train it first, or take "
                "another --run"
            )
        own = {step: evaluation(run, step, task) for step in steps}
        source, frozen_answers = f"{run.resolve().name}_step_{steps[0]:04d}", own[steps[0]]
        if options.frozen:
            source, frozen_answers = frozen_source(options.frozen, config, task)
        confessor = Confessor(run, config, task, options)
        pointless = {}  # {control: why}
        if not any(rollout.zc for rollouts in own.values() for rollout in rollouts):
            pointless["compute"] = f"no confession of {run} has a thought that could be cut short"
        if not any(map(siblings, own.values())):
            pointless["swapped"] = f"no prompt of {run} has two answers with a text"
        for name in names:
            if name in pointless:
                print(f"{name} does not apply: {pointless[name]}")
        names = [name for name in names if name not in pointless]
        tables = []
        for name in names:
            lines = {
                "frozen": lambda: frozen(confessor, own, source, frozen_answers),
                "fresh": lambda: fresh(confessor, own),
                "compute": lambda: compute(confessor, own),
                "swapped": lambda: swapped(confessor, own),
                "asked": lambda: asked(confessor, own),
            }[name]()
            tables.append(report(run, name, lines, task))
        print("\n\n".join(tables))
        for name, table in zip(names, tables):
            run_folder.write_text(run / f"table_{name}.txt", table + "\n")


def evaluation(run: Path, step: int, task: ModuleType) -> list[Rollout]:
    rollouts = stored(run / "evals" / f"step_{step:04d}.json", task)
    if rollouts is None:
        raise UserError(
            f"{run} has no evaluation of step {step} (evals/step_{step:04d}.json and .jsonl)"
        )
    return rollouts


def frozen_source(text: str, config: dict, task: ModuleType) -> tuple[str, list[Rollout]]:
    """(name, rollouts) of RUN@STEP; their ids must be of the same tokenizer."""
    folder, _, step = text.rpartition("@")
    if not folder or not step.isdecimal():
        raise UserError(f"--frozen {text!r} is not RUN@STEP, such as runs/embedded@0")
    other = run_folder.read_config(Path(folder))["model"]
    if other != config["model"]:
        raise UserError(
            f"--frozen {text}: its answers are token ids of {other}, this run's model "
            f"is {config['model']}"
        )
    return f"{Path(folder).resolve().name}_step_{int(step):04d}", evaluation(
        Path(folder), int(step), task
    )


if __name__ == "__main__":
    main()
