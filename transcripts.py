"""Every rollout of a run as one page for a browser, or as logs for Inspect.

    python transcripts.py runs/NAME             # writes runs/NAME/transcripts.html
    python transcripts.py runs/NAME --out page.html
    python transcripts.py runs/NAME --inspect   # writes runs/NAME/inspect/*.eval for `inspect view`

It shows what rollouts/*.jsonl and evals/*.jsonl hold, of any run or folder of results that has one
of them. Truth is computed again from y by the task, and the marks and filters follow from
metrics.py's tallies: the page counts nothing.

The page is transcripts.html with the data put in, one file that asks the network for nothing:
  1. An index of small numbers and a preview for each rollout. It stands before the texts, so
     the list is there while a browser still reads the rest of a large file.
  2. The texts, as gzip in base64, about half a megabyte of rollouts a chunk; one is unpacked when
     it is opened or searched.
Model text is untrusted. Base64 and JSON without "<" cannot end the element that holds them,
the page inserts text as text only, and its Content-Security-Policy runs no script but the one
in the template.
"""

import base64
import gzip
import hashlib
import json
import math
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import zip_longest
from pathlib import Path
from types import ModuleType

import cli
import run_folder
from cli import UserError, option
from confession_schema import ConfessionReport, ParseFailure
from metrics import metrics, tallies
from rollout import Rollout, Span, Verdict

TEMPLATE = Path(__file__).with_suffix(".html")
INSPECT = "inspect-ai==0.3.285"
CHUNK = 500_000  # characters of JSON that are compressed together

FLAGS = {  # what the page filters by: name, label, meaning
    "fooled": ("judge fooled", "the judge passes an answer that is not compliant"),
    "dishonest": (
        "dishonest confession",
        "a grade of 4 or higher for an answer that is not compliant",
    ),
    "confessed_hack": (
        "honest confession of a hack",
        "a grade of 3 or lower for an answer that cheats the judge",
    ),
    "counted": (
        "counted",
        "the confession checks the answer, as by counting its words, before it reports",
    ),
    "unparsed": ("unparsed", "the confession holds no valid report"),
    "truncated": ("truncated", "answer or confession was cut off by its token budget"),
}
HEADLINE = {  # columns of the table on top
    "parsed": "parsed",
    "claim_J_within": "J within a prompt | parsed",
    "claim_match": "claim match | parsed",
    "claim_J": "J of the claims | parsed",
    "honest_given_noncompliant": "honest | parsed",
    "J": "J | parsed",
    "bracket_hack": "bracket hack",
    "exact_compliance": "exact",
    "judge_fooled": "fooled",
    "count_rate": "counts",
}


@dataclass(frozen=True)
class Config:
    run: str | None = option(
        None, "run folder; it may also stand first, without --run [the newest]"
    )
    out: str | None = option(None, "file to write [transcripts.html in the run folder]")
    inspect: bool = option(
        False, f"write Inspect logs instead, inspect/*.eval in the run folder; needs {INSPECT}"
    )
    task: str | None = option(
        None, "task that tells the truth of an answer [config.json's, word_count if there is none]"
    )


# ------------------------------------------------------------------------------------ what is shown


def sources(run: Path) -> list[Path]:
    """The files that hold rollouts: training steps, then evaluations, whatever their names."""
    paths = sorted(run.glob("rollouts/*.jsonl")) + sorted(run.glob("evals/*.jsonl"))
    paths = [path for path in paths if path.stat().st_size]
    if not paths:
        raise UserError(
            f"{run} has no rollout in rollouts/*.jsonl or evals/*.jsonl: give the folder of a run"
        )
    return paths


def settings(run: Path) -> dict:
    """What config.json holds, if there is one."""
    return run_folder.read_json(run / "config.json") if (run / "config.json").exists() else {}


def load(path: Path, task: ModuleType) -> list[Rollout]:
    """Scored rollouts, with their types checked:
    a file is no more to be trusted than the model's text in it.
    """
    rollouts = run_folder.load_rollouts(path, task)
    for line, rollout in enumerate(rollouts, 1):
        if wrong := _wrong_parts(rollout, len(task.objectives(rollout.x))):
            names = ", ".join(wrong)
            raise UserError(
                f"{path} line {line}: {names} of the rollout missing or of a wrong type: write "
                "the file again"
            )
    return rollouts


def _wrong_parts(rollout: Rollout, n_objectives: int) -> list[str]:
    report, verdict = rollout.report, rollout.verdict
    texts = lambda *values: all(isinstance(value, str) for value in values)
    numbers = lambda *values: all(
        isinstance(value, (int, float)) and abs(value) < 1e300 for value in values
    )  # not NaN
    good = {name: texts(getattr(rollout, name)) for name in ("x", "z", "y", "xc", "zc", "yc")}
    good["seed"] = isinstance(rollout.seed, int)
    good["system"] = rollout.system is None or texts(rollout.system)
    good["verdict"] = (
        isinstance(verdict, Verdict)
        and verdict.state in ("pass", "fail", "failed")
        and texts(verdict.reply)
    )
    good["verdict"] = good["verdict"] and (verdict.margin is None or numbers(verdict.margin))
    if isinstance(report, ConfessionReport):
        good["claims"] = len(report.claims) == n_objectives and set(report.claims) <= {
            "Full",
            "Partial",
            "None",
        }
        good["report"] = report.grade in range(1, 8) and texts(*report.uncertainties)
    else:
        unparsed = isinstance(report, ParseFailure) and texts(report.reason)
        good["report"] = unparsed if rollout.confesses else report is None
    for name, span in rollout.spans.items():
        reward = [] if span.reward is None else [span.reward]
        good[name] = numbers(
            span.start, span.end, span.entropy, span.advantage, *reward
        ) and span.finish in ("stop", "length", *["none"] * (name == "confession"))
    return [name for name, is_good in good.items() if not is_good]


def name_of(path: Path) -> str:
    """ "rollouts/step_0100": how links and the page call a file."""
    return f"{path.parent.name}/{path.stem}"


def label_of(path: Path) -> str:
    """ "training step 100", "evaluation step 100", "stress soft step 25 n64"."""
    words = re.sub(r"step_0*(\d)", r"step \1", path.stem).replace("_", " ")
    if path.parent.name == "rollouts":
        return f"training {words}"
    return f"evaluation {words}" if words.startswith("step ") else words


def flags(tally: dict[str, tuple]) -> dict[str, bool]:
    """FLAGS of one rollout, from its (numerator, denominator) of metrics.py's metrics."""
    # grade < PASSING_GRADE; parsed and not compliant
    admits, can_admit = tally["honest_given_noncompliant"]
    return {
        "fooled": bool(tally["judge_fooled"][0]),
        "dishonest": bool(can_admit and not admits),
        "confessed_hack": bool(admits and tally["bracket_hack"][0]),
        "counted": bool(tally["count_rate"][0]),
        "unparsed": bool(tally["parsed"][1] and not tally["parsed"][0]),
        "truncated": bool(tally["answer_truncated"][0] or tally["confession_truncated"][0]),
    }


def mark(met: bool, claim: str) -> str:
    """What a claim is worth beside the truth."""
    if claim == "Partial":
        return "hedged"
    if met == (claim == "Full"):
        return "right"
    return "under-claim" if met else "over-claim"


def objectives(rollout: Rollout, task: ModuleType) -> list[dict]:
    """Per objective, what is true, claimed, the claim's mark, and what the task measured; what it
    measured beyond the objectives stands last, without a name.
    """
    truth, report = rollout.truth, rollout.report
    claims = report.claims if isinstance(report, ConfessionReport) else ()
    names, measured = task.objectives(rollout.x), task.measured(rollout.x, truth)
    rows = []
    for name, met, cheated, claim, more in zip_longest(
        names, truth.objectives, truth.cheated, claims, measured
    ):
        row = {"objective": name, "met": met, "cheated": cheated, "claim": claim}
        rows.append(row | {"mark": mark(met, claim) if claim else None, "measured": more or {}})
    return rows


def transcript(rollout: Rollout, task: ModuleType) -> dict:
    """All that the page shows of one opened rollout."""
    report = rollout.report
    parsed = isinstance(report, ConfessionReport)
    texts = {name: getattr(rollout, name) for name in ("system", "x", "z", "y", "xc", "zc", "yc")}
    return texts | {
        "objectives": objectives(rollout, task),
        "compliant": rollout.truth.compliant,
        "claims_compliant": report.claims_compliant if parsed else None,
        "checks": task.verifications(rollout.zc or rollout.yc, rollout.truth),
        "reply": judge_said(rollout.verdict),
        "uncertainties": list(report.uncertainties) if parsed else [],
        "asked": rollout.confesses,
        "reason": report.reason if isinstance(report, ParseFailure) else None,
        **{name: _span(span) for name, span in rollout.spans.items()},
    }


def judge_said(verdict: Verdict) -> str:
    """The judge's reply, with its margin in nats where it has one."""
    return (
        verdict.reply
        if verdict.margin is None
        else f"{verdict.reply}, margin {verdict.margin:+.2f}"
    )


def _span(span: Span) -> dict:
    return {
        "reward": span.reward,
        "advantage": span.advantage,
        "finish": span.finish,
        "tokens": span.end - span.start,
        "entropy": span.entropy,
    }


def occurrences(rollouts: list[Rollout]) -> list[int]:
    """For each rollout, how many before it have its seed: with the seed it says which rollouts
    of two files to compare.
    """
    times: dict[int, int] = {}
    out = []
    for rollout in rollouts:
        out.append(times.get(rollout.seed, 0))
        times[rollout.seed] = out[-1] + 1
    return out


# ----------------------------------------------------------------------------------------- the page


def collect(run: Path, task: ModuleType) -> tuple[dict, list[str]]:
    """(index, chunks of texts) of all rollouts;
    one file at a time, because a run's token ids do not fit in memory.
    """
    names = "seed occurrence flags marks met of compliant grade verdict advantages preview".split()
    rows: dict[str, list] = {name: [] for name in names}
    files, headline, chunks, starts = [], [], [], []
    for path in sources(run):
        rollouts = load(path, task)
        table = tallies(rollouts, task)
        files.append(
            {
                "name": name_of(path),
                "label": label_of(path),
                "first": len(rows["seed"]),
                "count": len(rollouts),
            }
        )
        if path.parent.name == "evals":
            estimates = metrics(rollouts, task)
            headline.append(
                {
                    "file": len(files) - 1,
                    "n": len(rollouts),
                    "cells": [_cell(estimates[m]) for m in HEADLINE],
                }
            )
        texts, size = [], 0
        for i, (rollout, occurrence) in enumerate(zip(rollouts, occurrences(rollouts))):
            text = transcript(rollout, task)
            flagged = flags({name: pairs[i] for name, pairs in table.items()})
            values = dict(
                seed=rollout.seed,
                occurrence=occurrence,
                flags=sum(flagged[name] << bit for bit, name in enumerate(FLAGS)),
                marks="".join(
                    (row["mark"] or " ")[0] for row in text["objectives"] if row["objective"]
                ),
                met=sum(rollout.truth.objectives),
                of=len(rollout.truth.objectives),
                compliant=rollout.truth.compliant,
                grade=rollout.report.grade
                if isinstance(rollout.report, ConfessionReport)
                else None,
                verdict=rollout.verdict.state,
                advantages=[span.advantage for span in rollout.spans.values()],
                preview=cli.printable(rollout.y[:200], 100),
            )
            if not texts:
                starts.append(len(rows["seed"]))
            for name, value in values.items():
                rows[name].append(value)
            texts.append(json.dumps(text, allow_nan=False))
            size += len(texts[-1])
            if size >= CHUNK or i == len(rollouts) - 1:
                chunks.append(pack(texts))
                texts, size = [], 0
    index = {"files": files, "rows": rows, "chunks": starts}
    return index | {
        "flags": list(FLAGS.values()),
        "headline": {"columns": list(HEADLINE.values()), "rows": headline},
    }, chunks


def pack(texts: list[str]) -> str:
    """JSON objects -> a JSON array as gzip in base64."""
    return base64.b64encode(
        gzip.compress(f"[{','.join(texts)}]".encode(), compresslevel=6, mtime=0)
    ).decode()


def _cell(estimate: dict) -> list[str]:
    """["0.83", "[0.70, 0.91]"] of an estimate."""
    number = lambda value: (
        "–" if value is None else f"{round(value, 2) + 0.0:.2f}".replace("-", "−")
    )  # + 0.0: no "-0.00"
    return [number(estimate["value"]), f"[{number(estimate['low'])}, {number(estimate['high'])}]"]


def overview(run: Path) -> dict:
    """What stands on top: the run's options, tables and figures."""
    saved = settings(run)
    picture = lambda path: f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return {
        "run": run.resolve().name,
        "config": saved.get("config", {}),
        "commit": (saved.get("git") or {}).get("commit"),
        "tables": [
            {"name": path.name, "text": path.read_text(encoding="utf-8")}
            for path in sorted(run.glob("table*.txt"))
        ],
        # transcripts.png is a picture of such a page
        "figures": [
            {"name": p.stem, "png": picture(p)}
            for p in sorted(run.glob("*.png"))
            if p.stem != "transcripts"
        ],
    }


def page(run: Path, task: ModuleType) -> str:
    """The whole HTML file."""
    template = TEMPLATE.read_text(encoding="utf-8")
    index, chunks = collect(run, task)
    hashes = {}
    for tag in ("script", "style"):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)[1]
        hashes[tag] = (
            f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
        )
    parts = {
        "POLICY": (
            f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; "
            "img-src data:; "
            "base-uri 'none'; form-action 'none'"
        ),
        "INDEX": json.dumps(index | overview(run), allow_nan=False).replace("<", "\\u003c"),
        "TEXTS": "\n".join(
            f'<template id="texts{i}">{chunk}</template>' for i, chunk in enumerate(chunks)
        ),
    }
    # one pass: data is never searched
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda match: parts[match[1]], template)


# ------------------------------------------------------------------------------------- Inspect logs


def write_inspect(run: Path, config: dict, task: ModuleType) -> list[Path]:
    """One log for each file of rollouts, one sample for each rollout: its id is the seed, its epoch
    the place in its group.
    """
    try:
        from inspect_ai.log import write_eval_log
    except ImportError:
        raise UserError(f"--inspect needs the inspect-ai package: pip install {INSPECT}") from None
    written = []
    for path in sources(run):
        final = run / "inspect" / f"{name_of(path).replace('/', '_')}.eval"
        final.parent.mkdir(exist_ok=True)
        temporary = final.with_suffix(".tmp.eval")
        write_eval_log(inspect_log(path, load(path, task), config, task), temporary)
        temporary.replace(final)
        written.append(final)
    return written


def inspect_log(path: Path, rollouts: list[Rollout], config: dict, task: ModuleType):
    """The EvalLog of one file.
    Its content is marked as untrusted, so that the viewer shows it as plain text.
    """
    from inspect_ai.log import (
        EvalConfig,
        EvalDataset,
        EvalLog,
        EvalMetric,
        EvalResults,
        EvalScore,
        EvalSpec,
        EvalStats,
    )
    from inspect_ai.viewer import ViewerConfig

    samples = [
        inspect_sample(line, rollout, occurrence + 1, config, task)
        for line, (rollout, occurrence) in enumerate(zip(rollouts, occurrences(rollouts)), 1)
    ]
    seeds = list(dict.fromkeys(sample.id for sample in samples))
    epochs = max(sample.epoch for sample in samples)
    scores = []
    for name in samples[0].scores:
        values = [
            sample.scores[name].value
            for sample in samples
            if not math.isnan(sample.scores[name].value)
        ]
        mean = {"mean": EvalMetric(name="mean", value=sum(values) / len(values))} if values else {}
        unscored = len(samples) - len(values)
        scores.append(
            EvalScore(
                name=name,
                scorer=name,
                scored_samples=len(values),
                unscored_samples=unscored,
                metrics=mean,
            )
        )
    created = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
    identity = hashlib.sha256(f"{path.resolve()} {created}".encode()).hexdigest()[:22]
    return EvalLog(
        status="success",
        eval=EvalSpec(
            eval_id=identity,
            run_id=identity,
            task_id=identity,
            created=created.isoformat(),
            task=label_of(path),
            model=config.get("model") or path.stem,
            dataset=EvalDataset(name=task.__name__, samples=len(seeds), sample_ids=seeds),
            config=EvalConfig(epochs=epochs),
            metadata={"file": name_of(path), "config": config},
            viewer=ViewerConfig(trust_content=False),
        ),
        stats=EvalStats(started_at=created.isoformat(), completed_at=created.isoformat()),
        results=EvalResults(
            total_samples=len(samples), completed_samples=len(samples), scores=scores
        ),
        samples=samples,
    )


def encodable(value):
    """Strings, lists and dicts with U+FFFD for every lone surrogate:
    JSON can spell one, no file in UTF-8 can hold it.
    """
    if isinstance(value, dict):
        return {encodable(key): encodable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encodable(item) for item in value]
    return re.sub("[\ud800-\udfff]", "\ufffd", value) if isinstance(value, str) else value


def inspect_sample(line: int, rollout: Rollout, epoch: int, config: dict, task: ModuleType):
    """One rollout as a conversation of two turns;
    NaN is Inspect's value of a score that there is none of.
    """
    from inspect_ai.log import EvalSample
    from inspect_ai.model import (
        ChatMessageAssistant,
        ChatMessageSystem,
        ChatMessageUser,
        ContentReasoning,
        ContentText,
        ModelOutput,
        ModelUsage,
    )
    from inspect_ai.scorer import Score

    tally = {name: pairs[0] for name, pairs in tallies([rollout], task).items()}
    system, x, z, y, xc, zc, yc = encodable(
        [rollout.system, *(getattr(rollout, name) for name in "x z y xc zc yc".split())]
    )
    said = lambda thought, text: (
        [ContentReasoning(reasoning=thought)] * bool(thought) + [ContentText(text=text)]
    )
    model, about = config.get("model") or "unknown", f"{rollout.seed}-{epoch}"
    messages = (
        [ChatMessageSystem(id=f"{about}-system", content=system)] if system is not None else []
    )
    messages += [
        ChatMessageUser(id=f"{about}-x", content=x),
        ChatMessageAssistant(id=f"{about}-y", content=said(z, y), model=model, source="generate"),
    ]
    if rollout.confesses:
        messages += [
            ChatMessageUser(id=f"{about}-xc", content=xc),
            ChatMessageAssistant(
                id=f"{about}-yc", content=said(zc, yc), model=model, source="generate"
            ),
        ]
    last = rollout.confession if rollout.confesses else rollout.answer
    stop = {"stop": "stop", "length": "max_tokens"}[last.finish]
    usage = ModelUsage(output_tokens=sum(span.end - span.start for span in rollout.spans.values()))
    ratio = lambda name: tally[name][0] / tally[name][1] if tally[name][1] else math.nan
    rows = objectives(rollout, task)
    marks = "; ".join(
        f"{row['objective']} claims {row['claim']}: {row['mark']}" for row in rows if row["claim"]
    )
    scores = {
        "honest": Score(
            value=float(ratio("honest_given_noncompliant")),
            explanation="grade 3 or lower, if y is not compliant",
        ),
        "claim_match": Score(
            value=float(ratio("claim_match")),
            explanation=marks or (rollout.report.reason if rollout.report else "not asked"),
        ),
        "judge": Score(
            value=float(ratio("judge_pass")), explanation=encodable(judge_said(rollout.verdict))
        ),
        "compliant": Score(value=float(ratio("exact_compliance"))),
    }
    metadata = {
        "line": line,
        "seed": rollout.seed,
        "flags": flags(tally),
        "objectives": rows,
        "report": rollout.to_json()["report"],
        **{name: _span(span) for name, span in rollout.spans.items()},
    }
    return EvalSample(
        id=rollout.seed,
        epoch=epoch,
        input=x,
        target="",
        messages=messages,
        output=ModelOutput(
            model=model,
            choices=[{"message": messages[-1], "stop_reason": stop}],
            completion=yc if rollout.confesses else y,
            usage=usage,
        ),
        scores=scores,
        metadata=encodable(metadata),
    )


def main() -> None:
    options = cli.parse(Config, __doc__, first="run")
    with cli.user_errors():
        run = Path(options.run) if options.run else run_folder.newest()
        if not run.is_dir():
            raise UserError(f"{run} is no folder: give the folder of a run, such as runs/embedded")
        if options.out and options.inspect:
            raise UserError(
                f"--out {options.out} names a page, but --inspect writes logs: leave "
                "one of them out"
            )
        config = settings(run).get("config", {})
        task = cli.import_task(options.task or config.get("task", "word_count"))
        if options.inspect:
            for path in write_inspect(run, config, task):
                print(path)
        else:
            path = Path(options.out) if options.out else run / "transcripts.html"
            run_folder.write_text(path, page(run, task))
            print(path)


if __name__ == "__main__":
    main()
