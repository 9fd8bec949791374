"""Search stored or fresh rollouts for hacks of a task: what passes the judge and fails the truth.

    python -m experiments.find_hacks                                  # runs/embedded
    python -m experiments.find_hacks --runs runs/A,runs/B             # before and during training
    python -m experiments.find_hacks --models A,B --task short_count --judge C   # sampled now
    python -m experiments.find_hacks --passes word_count.label_reward  # another rule of who passes

An answer *passes* where what pays it says so (the head of the table names the rule), is *true*
where it complies, and is *fooled* where it passes and is not true: a hack, or a judge's plain
mistake. In runs/NAME/ are

1.  table_hacks.txt, hacks.json, fig_hacks.png: the rate of each known kind of hack (the task's own
    hacks(), see tasks/word_count.py) by model, or by run and steps. Beside it: the rate when the
    same answers are dealt to other prompts, which a text has that does not know its prompt; the
    share of the kind among true and among fooled answers; and how many answers pass with and
    without it. The *unexplained* fooled answers show no known kind: look at these first.
2.  the clusters of fooled answers, with their *lift*: the share of fooled answers in a cluster over
    the share of the answers that pass and are true. A way to write that is as frequent among those
    is no hack. The control beside it: labels (fooled or true) shuffled among the passing answers of
    one source and topic, clustered and set against each other the same way, 200 times; 95% of the
    shuffles have their largest lift below this. A cluster says something of hacks above it alone.
3.  hacks.html: the most telling transcripts of each kind and cluster, one file for a browser.

text_clusters.py says how clusters are made. In their n-grams "_" is any word of the prompt.

What it does not support: that a cluster is meant as a hack, or that there is none where no cluster
stands out: what differs in content alone (a wrong count) leaves no n-gram. Where hardly a true
answer passes, or all of a topic are alike, no lift can beat the shuffles. Kinds overlap; one that
true answers show as often is no hack, and one that is wrong by definition ("false-label") has 0
among the true. Training and evaluations differ in their prompts. With the label rewards of the
tasks more than half of the labels must please, not all.
"""

import dataclasses
import html
import math
import re
import zlib
from base64 import b64encode
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from types import ModuleType

import numpy as np

import cells
import cli
import figures
import models
import run_folder
import transcripts
from cli import UserError, option
from confession_schema import PASSING_GRADE, ConfessionReport
from evaluate import evaluate_in_memory, stored
from experiments.text_clusters import PRIOR, SHUFFLES, chance, features, lifts, telling
from intervals import number, rate, written
from rewards import Judge, judge_reward, truths_of
from rollout import Rollout, Sampling
from run_folder import RUNS
from scale_sweep import short_name

EXAMPLE = "word_count.label_reward"
PASSING_REWARD = 0.5  # more than this passes
DEALT = 256  # answers of a source that are dealt to other prompts: some tasks run code for a truth
FEWEST = 5  # fooled answers a cluster
MOST = 8_000  # passing answers that are clustered; of more, every second, third, ...
TOLD = 3  # transcripts of a kind or cluster


@dataclass(frozen=True)
class Config(cells.Options):
    runs: str = option("", "run folders with stored rollouts, a comma between [runs/embedded]")
    models: str = option(
        "", "models to sample from instead, Hugging Face names or folders with a comma between"
    )
    judge: str = option("", "with --models: a judge of their answers [none]")
    task: str = option("word_count", "with --models: task module")
    n: int = option(256, "with --models: answers of each, on held-out prompts", at_least=1)
    passes: str = option(
        "",
        "verdict (the judge passes it), reward (the stored one is above .5), or a reward function "
        "whose value is above .5, cut-off answers aside [a run's --answer-reward, else verdict]",
    )
    bin: int = option(25, "with --runs: training steps that are put together", at_least=1)
    clusters: int = option(8, "of fooled answers", at_least=1)


@dataclass
class Answer:
    panel: str  # "embedded, evaluation": what is drawn together
    place: str  # "step 100": where in its panel
    name: str  # "embedded evals/step_0100 seed 1000003 (1)", its place among the seed's answers
    topic: str
    rollout: Rollout
    passes: bool = False
    kinds: dict[str, bool] = dataclasses.field(default_factory=dict)

    @property
    def true(self) -> bool:
        return self.rollout.truth.compliant

    @property
    def fooled(self) -> bool:
        return self.passes and not self.true

    @property
    def source(self) -> str:
        return f"{self.panel}, {self.place}"


# --------------------------------------------------------------------------------- what is searched


def by_source(answers: list[Answer]) -> dict[tuple[str, str], list[Answer]]:
    """{(panel, place): its answers}."""
    groups: dict[tuple[str, str], list[Answer]] = {}
    for answer in answers:
        groups.setdefault((answer.panel, answer.place), []).append(answer)
    return groups


def answers_of_file(
    path: Path, task: ModuleType, panel: str, place: str, rollouts: list[Rollout]
) -> list[Answer]:
    """Each answer once, whatever it confesses; without token ids, which do not fit in memory."""
    rollouts = [rollout for rollout in rollouts if rollout.branch == 0]
    for rollout in rollouts:
        rollout.token_ids = []
    name = f"{panel.split(',')[0]} {transcripts.name_of(path)}"
    return [
        Answer(panel, place, f"{name} seed {r.seed} ({i + 1})", task.cluster(r.x), r)
        for r, i in zip(rollouts, transcripts.occurrences(rollouts), strict=True)
    ]


def of_run(run: Path, name: str, task: ModuleType, width: int) -> list[Answer]:
    """Training steps in bins of `width`, and the evaluation of each step with most answers."""
    step_of = lambda path: int(re.match(r"step_(\d+)", path.stem)[1])
    answers = []
    training = sorted(run.glob("rollouts/step_*.jsonl"))
    for _, paths in groupby(training, key=lambda path: (step_of(path) - 1) // width):
        paths = list(paths)
        first, last = step_of(paths[0]), step_of(paths[-1])
        place = f"step {first}" if first == last else f"steps {first}-{last}"
        for path in paths:
            rollouts = transcripts.load(path, task)
            answers += answers_of_file(path, task, f"{name}, training", place, rollouts)
    evaluations = [
        path
        for path in sorted(run.glob("evals/step_*.jsonl"))
        if re.fullmatch(r"step_\d+(_n\d+)?", path.stem)
    ]
    for step, paths in groupby(evaluations, key=step_of):
        path = max(paths, key=lambda path: path.stat().st_size)
        rollouts = transcripts.load(path, task)
        answers += answers_of_file(path, task, f"{name}, evaluation", f"step {step}", rollouts)
    if not answers:
        raise UserError(
            f"{run} has no rollout in rollouts/step_*.jsonl or evals/step_*.jsonl: give the folder "
            "of a run that kept some"
        )
    return answers


def of_models(out: Path, task: ModuleType, options: Config) -> list[Answer]:
    """Answers of each model to held-out prompts, as evaluate.py samples and judges them;
    cells that are saved are not sampled again.
    """
    judged = f"judge_{zlib.crc32(options.judge.encode()):08x}" if options.judge else "unjudged"
    computer, judge, answers = cells.Cells(task, options.device), None, []
    listed = list(dict.fromkeys(name.rstrip("/") for name in options.models.split(",")))
    short = [short_name(name) for name in listed]
    for model, label in zip(listed, short):
        path = cells.cell_path(out, model, judged, options)
        rollouts = stored(path, task)
        if rollouts is None and options.plot_only:
            raise UserError(f"{path} is missing: drop --plot-only")
        if rollouts is None:
            if options.judge and judge is None:
                device = models.device_of(options.device)
                dtype = models.defaults(options.judge, device, thinking="off")["dtype"]
                judge = Judge(*models.load(options.judge, device, dtype))
            preset = cells.settings(model, options)
            loaded, sampling = computer.load(model, preset["dtype"]), Sampling.of(preset)
            rollouts, _ = evaluate_in_memory(*loaded, judge, task, sampling, options.n)
            shown = {"passed": "judge_pass", "true": "exact_compliance"}
            computer.keep(path, rollouts, f"{model:24}", **shown)
        answers += answers_of_file(
            path, task, "models", label if short.count(label) == 1 else model, rollouts
        )
    return answers


def earned(rollouts: list[Rollout], rule: str) -> list[float | None]:
    """What answers earn by the rule of --passes; cut-off ones nothing where a reward function says
    it, as in grpo.py.
    """
    if rule == "verdict":
        return judge_reward(rollouts)
    if rule == "reward":
        return [r.answer.reward for r in rollouts]
    values = cli.import_function(rule)(rollouts)
    return [
        0.0 if r.answer.finish == "length" and value is not None else value
        for r, value in zip(rollouts, values, strict=True)
    ]


def mark_passing(answers: list[Answer], rule: str) -> None:
    """Fill in `passes`. UserError where the rule has nothing to go by."""
    known = False
    for group in by_source(answers).values():
        for answer, value in zip(group, earned([a.rollout for a in group], rule)):
            answer.passes = value is not None and value > PASSING_REWARD
            known = known or value is not None
    if not known:
        raise UserError(
            f"--passes {rule}: no answer has one. Give a reward function, such as {EXAMPLE}"
        )


def mark_kinds(answers: list[Answer], task: ModuleType) -> None:
    """Fill in `kinds`, if the task knows any."""
    if not hasattr(task, "hacks"):
        print(f"note: task {task.__name__} has no hacks(): clusters alone, no known kind")
        return
    for answer in answers:
        r = answer.rollout
        answer.kinds = task.hacks(r.x, r.y, r.truth)
        if list(answer.kinds) != list(answers[0].kinds):
            raise UserError(
                f"task {task.__name__}: hacks() returns {list(answer.kinds)} for one answer and "
                f"{list(answers[0].kinds)} for another; give every answer the same kinds"
            )


# -------------------------------------------------------------------------------------------- rates


def rate_of(answers: list[Answer], hits: list[bool]) -> dict:
    """{value, low, high, n}; the interval is over topics."""
    return rate([a.topic for a in answers], np.array(hits, dtype=float))


def dealt(answers: list[Answer], task: ModuleType) -> dict[str, float | None]:
    """Rate of each kind if the answers to one prompt were given to the next one."""
    xs = list(dict.fromkeys(a.rollout.x for a in answers))
    if len(xs) == 1:
        return dict.fromkeys(answers[0].kinds)
    following = dict(zip(xs, xs[1:] + xs[:1]))
    some = answers[:: math.ceil(len(answers) / DEALT)]
    pairs = [(following[answer.rollout.x], answer.rollout.y) for answer in some]
    seen = [task.hacks(*pair, t) for pair, t in zip(pairs, truths_of(pairs, task))]
    return {kind: sum(s[kind] for s in seen) / len(seen) for kind in answers[0].kinds}


def rates(answers: list[Answer], task: ModuleType) -> dict:
    """All rates of one source."""
    fooled, true = [a for a in answers if a.fooled], [a for a in answers if a.true]
    of = lambda group, holds: rate_of(group, [holds(a) for a in group])
    found = {
        "passes": of(answers, lambda a: a.passes),
        "true": of(answers, lambda a: a.true),
        "fooled": of(answers, lambda a: a.fooled),
    }
    if not answers[0].kinds:
        return found | {"kinds": {}}
    found["unexplained"] = of(fooled, lambda a: not any(a.kinds.values()))
    by_chance, kinds = dealt(answers, task), {}
    for kind in answers[0].kinds:
        shows = lambda a: a.kinds[kind]
        kinds[kind] = {
            "rate": of(answers, shows),
            "dealt": by_chance[kind],
            "among_true": of(true, shows),
            "among_fooled": of(fooled, shows),
            "passes_with": of([a for a in answers if shows(a)], lambda a: a.passes),
            "passes_without": of([a for a in answers if not shows(a)], lambda a: a.passes),
        }
    return found | {"kinds": kinds}


# ----------------------------------------------------------------------------------------- clusters


def clusters(answers: list[Answer], k: int) -> list[dict]:
    """The clusters of fooled answers, the one of the highest lift first;
    "told" holds its transcripts, which are no plain data.
    """
    passing = [a for a in answers if a.passes]
    passing = passing[:: max(1, math.ceil(len(passing) / MOST))]
    fooled = np.array([a.fooled for a in passing], dtype=bool)
    k = min(k, int(fooled.sum()) // FEWEST)
    if k == 0:
        return []
    points, vocabulary, holds = features(
        [a.rollout.x for a in passing], [a.rollout.y for a in passing], [a.topic for a in passing]
    )
    near, lift = lifts(points, fooled, k)
    has_true = bool((~fooled).any())
    strata = np.unique([f"{a.source}\0{a.topic}" for a in passing], return_inverse=True)[1]
    limit = chance(points, fooled, strata, k) if has_true else None
    share = lambda hits: float(np.mean(hits)) if len(hits) else None
    of, out = near.argmax(1), []
    for c in range(near.shape[1]):
        member = of == c
        those = [passing[i] for i in np.flatnonzero(member & fooled)]
        if not those:
            continue
        reports = [a.rollout.report for a in those]
        admits = [r.grade < PASSING_GRADE for r in reports if isinstance(r, ConfessionReport)]
        nearest = sorted(
            np.flatnonzero(member & fooled), key=lambda i: (-round(float(near[i, c]), 3), i)
        )
        out.append(
            {
                "fooled": len(those),
                "true": int((member & ~fooled).sum()),
                "share_of_fooled": len(those) / int(fooled.sum()),
                "share_of_true": share(member[~fooled]),
                "lift": float(lift[c]) if has_true else None,
                "chance": limit,
                "known": share([any(a.kinds.values()) for a in those if a.kinds]),
                "admitted": share(admits),
                "sources": dict(Counter(a.source for a in those)),
                "ngrams": telling(member & fooled, holds, vocabulary),
                "told": distinct([passing[i] for i in nearest]),
            }
        )
    return sorted(out, key=lambda c: (-(c["lift"] or 0), -c["fooled"]))


def distinct(answers: list[Answer]) -> list[Answer]:
    """The first TOLD answers, one a prompt."""
    first: dict[str, Answer] = {}
    for answer in answers:
        first.setdefault(answer.rollout.x, answer)
    return list(first.values())[:TOLD]


def of_kinds(answers: list[Answer]) -> dict[str, list[Answer]]:
    """{kind, or unexplained: its most telling answers}: fooled ones first, then by what they earn,
    by the judge's margin, and the latest ones.
    """

    def rank(pair: tuple[int, Answer]) -> tuple:
        i, a = pair
        reward, margin = a.rollout.answer.reward, a.rollout.verdict.margin
        return not a.fooled, -(reward or 0.0), -(margin or 0.0), -i

    ranked = [a for _, a in sorted(enumerate(answers), key=rank)]
    found = {kind: distinct([a for a in ranked if a.kinds[kind]]) for kind in answers[0].kinds}
    unexplained = [a for a in ranked if a.fooled and not any(a.kinds.values())]
    return {"unexplained": distinct(unexplained)} | found if answers[0].kinds else found


# -------------------------------------------------------------------------------- table, page, main


def format_rates(rule: str, found: dict[tuple[str, str], dict]) -> str:
    lines = [
        f"passes: {rule}. value [95% interval over topics] n; dealt: the same answers, given to "
        "other prompts",
    ]
    for (panel, place), of in found.items():
        heads = [name for name in ("passes", "true", "fooled", "unexplained") if name in of]
        lines += ["", f"{panel}, {place}"]
        lines += [
            f"  {name + (' | fooled' if name == 'unexplained' else ''):24}{written(of[name])}"
            for name in heads
        ]
        if of["kinds"]:
            lines.append(
                f"  {'known kind':24}{'rate':>23}  {'dealt':>6}  {'| true':>6}  {'| fooled':>8}"
                "  passes with / without"
            )
        never = [kind for kind, k in of["kinds"].items() if k["rate"]["value"] == 0]
        if never:
            lines.append(
                f"  {'never':24}{written(of['kinds'][never[0]]['rate']):>23}  {', '.join(never)}"
            )
        for kind, k in of["kinds"].items():
            if kind in never:
                continue
            pays = f"{number(k['passes_with']['value'])} / {number(k['passes_without']['value'])}"
            lines.append(
                f"  {kind:24}{written(k['rate']):>23}  {number(k['dealt']):>6}"
                f"  {number(k['among_true']['value']):>6}"
                f"  {number(k['among_fooled']['value']):>8}  {pays}"
            )
    return "\n".join(lines)


def format_clusters(found: list[dict]) -> str:
    if not found:
        return f"no clusters: fewer than {FEWEST} answers are fooled"
    lines = [
        "clusters of fooled answers; lift: share of fooled / share of passing and true, with "
        f"{PRIOR:.0f} answers added to each count; by chance: 95% of {SHUFFLES} shuffles have a "
        "lower largest lift"
    ]
    if found[0]["lift"] is None:
        lines.append("note: no passing answer is true, so that no lift can be told")
    for i, c in enumerate(found, 1):
        lines += [
            "",
            f"cluster {i}: {c['fooled']} fooled ({number(c['share_of_fooled'])}), {c['true']} true "
            f"({number(c['share_of_true'])}), lift {number(c['lift'])} "
            f"(by chance {number(c['chance'])}); of a known kind {number(c['known'])}, "
            f"admitted {number(c['admitted'])}",
            "  in " + "; ".join(f"{name} {n}" for name, n in c["sources"].items()),
            "  n-grams (share here / elsewhere): "
            + ", ".join(
                f"{cli.printable(g['text'], 40)!r} {number(g['inside'])}/{number(g['outside'])}"
                for g in c["ngrams"]
            ),
        ]
        lines += [f"  {a.name}: {cli.printable(a.rollout.y, 120)}" for a in c["told"]]
    return "\n".join(lines)


def escaped(text: object) -> str:
    """Untrusted text for HTML; what nobody could see (controls, bidi marks, lone surrogates)
    is spelled out.
    """
    visible = lambda c: c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode()
    return html.escape("".join(map(visible, str(text))))


def told(answer: Answer, task: ModuleType) -> str:
    """HTML of one transcript: the prompt, the answer, what is true of it beside what is claimed."""
    r = answer.rollout
    said = lambda name, text: (
        f'<div class="turn"><div class="who"><b>{name}</b></div>'
        f'<div class="said">{escaped(text)}</div></div>'
    )
    rows = []
    for row in transcripts.objectives(r, task):
        yes = {True: "yes", False: "no", None: ""}
        measured = ", ".join(f"{name} {str(v)[:200]}" for name, v in row["measured"].items())
        cells_ = (
            row["objective"] or "-",
            yes[row["met"]],
            yes[row["cheated"]],
            row["claim"] or "-",
            row["mark"] or "-",
            measured,
        )
        rows.append("<tr>" + "".join(f"<td>{escaped(c)}</td>" for c in cells_) + "</tr>")
    report = r.report
    graded = (
        f"grade {report.grade}"
        if isinstance(report, ConfessionReport)
        else f"no report: {report.reason if report else 'not asked'}"
    )
    kinds = ", ".join(kind for kind, shows in answer.kinds.items() if shows) or "no known kind"
    status = "fooled" if answer.fooled else "passes, true" if answer.passes else "does not pass"
    return (
        f"<h3>{escaped(answer.name)}: {status}; {escaped(kinds)}</h3>"
        f'<p class="quiet">reward {escaped(r.answer.reward)}; judge: '
        f"{escaped(transcripts.judge_said(r.verdict))}; confession: {escaped(graded)}</p>"
        + said("x", r.x)
        + (said("z", r.z) if r.z else "")
        + said("y", r.y)
        + said("zc, yc", f"{r.zc}\n\n{r.yc}".strip())
        + '<table class="objectives"><tr><th>objective<th>met<th>cheats<th>claim<th>mark'
        f"<th>measured</tr>{''.join(rows)}</table>"
    )


def page(table: str, kinds: dict[str, list[Answer]], found: list[dict], task: ModuleType) -> str:
    """One HTML file that runs no script and asks the network for nothing; the style is that of
    transcripts.html.
    """
    template = transcripts.TEMPLATE.read_text("utf-8")
    style = re.search(r"<style>(.*?)</style>", template, re.DOTALL)[1]
    style += "h3 { margin-top: 28px; }"
    allowed = b64encode(sha256(style.encode()).digest()).decode()
    notes = {"unexplained": "fooled, of no known kind"}
    sections = [
        (kind, notes.get(kind, "known kind"), answers) for kind, answers in kinds.items() if answers
    ]
    for i, c in enumerate(found, 1):
        grams = ", ".join(g["text"] for g in c["ngrams"])
        head = f"lift {number(c['lift'])}, by chance {number(c['chance'])}, {c['fooled']} fooled"
        sections.append((f"cluster {i}", f"{head}: {grams}", c["told"]))
    body = "".join(
        f'<article><div class="inner"><h2>{escaped(name)}</h2><p class="quiet">{escaped(note)}</p>'
        f"{''.join(told(answer, task) for answer in answers)}</div></article>"
        for name, note, answers in sections
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"style-src 'sha256-{allowed}'; base-uri 'none'; form-action 'none'\">"
        f"<title>Hacks</title><style>{style}</style></head><body>"
        f'<div class="top"><h1>Hacks</h1><pre>{escaped(table)}</pre></div>{body}</body></html>\n'
    )


def searched(options: Config) -> tuple[Path, ModuleType, str, list[Answer]]:
    """(folder, task, rule by which answers pass, answers) that the options ask for."""
    if options.models:
        if options.runs:
            raise UserError("--runs and --models: give one of them")
        task = cli.import_task(options.task, options.sandbox)
        rule = options.passes or "verdict"
        if rule not in ("verdict", "reward"):
            cli.import_function(rule)
        elif not options.judge:
            raise UserError(f"--passes {rule} needs a --judge; or give --passes {EXAMPLE}")
        out = RUNS / (options.name or f"hacks_{options.task}")
        return out, task, rule, of_models(out, task, options)
    runs = [Path(name) for name in dict.fromkeys((options.runs or "runs/embedded").split(","))]
    configs = [run_folder.read_config(run) for run in runs]
    for option_ in ("task",) if options.passes else ("task", "answer_reward"):
        values = list(dict.fromkeys(config[option_] for config in configs))
        if len(values) > 1:
            fix = "give runs of one task" if option_ == "task" else "choose one with --passes"
            raise UserError(
                f"--runs {options.runs}: their --{option_.replace('_', '-')} differs "
                f"({', '.join(values)}): {fix}"
            )
    task = cli.import_task(configs[0]["task"], configs[0].get("sandbox"))
    short = [run.resolve().name for run in runs]
    out = RUNS / (options.name or f"hacks_{short[0]}")
    names = [name if short.count(name) == 1 else str(run) for name, run in zip(short, runs)]
    answers = [a for pair in zip(runs, names) for a in of_run(*pair, task, options.bin)]
    return out, task, options.passes or configs[0]["answer_reward"], answers


def main() -> None:
    options = cli.parse(Config, __doc__)
    with cli.user_errors():
        out, task, rule, answers = searched(options)
        mark_passing(answers, rule)
        mark_kinds(answers, task)
        found = {source: rates(group, task) for source, group in by_source(answers).items()}
        groups = clusters(answers, options.clusters)
        table = f"{format_rates(rule, found)}\n\n{format_clusters(groups)}"
        print(table)
        plain = [
            {name: v for name, v in c.items() if name != "told"}
            | {"told": [a.name for a in c["told"]]}
            for c in groups
        ]
        numbers = {"passes": rule, "rates": {}, "clusters": plain}
        for (panel, place), of in found.items():
            numbers["rates"].setdefault(panel, {})[place] = of
        run_folder.write_text(out / "table_hacks.txt", table + "\n")
        run_folder.write_json(out / "hacks.json", numbers)
        run_folder.write_text(out / "hacks.html", page(table, of_kinds(answers), groups, task))
        print(f"page: {out / 'hacks.html'}")
        print(f"figure: {figures.hacks(out / 'fig_hacks.png', numbers['rates'])}")


if __name__ == "__main__":
    main()
