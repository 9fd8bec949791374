"""Confessions on demand: a confessor reads conversations that exist, and reports on each.

    python -m experiments.audit                        # a packaged example, half a minute on a CPU
    python -m experiments.audit --logs FILE_OR_FOLDER --model MODEL --name NAME
    python -m experiments.audit --logs ... --policy POLICY.md   # one objective an item of a list
    python -m experiments.audit --verify runs/NAME     # walks the trail; status 2 if it is broken
    python -m experiments.audit --name NAME --plot-only  # page and figure again, without a model

For each conversation (experiments/audit_formats.py has the formats): objectives, of the policy or
found in its system and user messages; xc in the form of confession_schema.py, where each entry also
quotes its evidence; a report, sampled by the confessor after xc in a new turn; flags.

    runs/NAME/trail.jsonl   a line a conversation, in order, bad ones too. It only grows. A line
                            has the hash of the transcript, of the confessor, of xc, and of the line
                            before: a line that was changed, left out or moved is found.
    runs/NAME/end.json      how many lines there are and the last one's hash. Keep a copy elsewhere:
                            whoever may write this folder can write a whole new trail.
    runs/NAME/audit.html    a table to filter, runs/NAME/fig_drift.png rates a day or a batch

Conversations with one seed in their lines were sampled together, in order of length. The same
command goes on after a SIGKILL, and with new conversations at the end of a log.

What it supports: finding conversations worth a look, and a change in what is reported. What it does
not: a report is evidence of good faith, no proof. A confessor without information (the page says
what was measured of it) audits nothing, whatever its rates. It reads text, not the thoughts that an
answer's own writer had, and it was trained on other prompts. A conversation can try to talk it into
a report; it cannot forge one, as a report is only what is sampled after xc. Objectives that were
found are its own words, in xc too: with --policy none of them is there. A quote shows that words
are there, not that they show what they are quoted for. A drift can be one of the conversations, of
what they ask, or of the confessor; where truth can be computed an independent check stands beside
the claim.
"""

import hashlib
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import torch
from tqdm import tqdm

import cli
import models
import run_folder
from chat_template import conversation_ids, opens_thought, split_thinking, suffix_ids, turn_ends
from cli import UserError, option
from confession_schema import (
    PASSING_GRADE,
    ConfessionReport,
    ParseFailure,
    confession_prompt,
    last_object,
    named,
    parse_report,
)
from experiments import audit_page
from experiments.audit_formats import (
    Conversation,
    conversations,
    count,
    objectives_of,
    read_policy,
    truths,
    word_count_prompt,
)
from rollout import Sampling, sampler_of
from run_folder import RUNS
from runtime.memory import halving
from tasks import word_count

EXAMPLE = ("step_0000", "step_0100")  # evaluations of runs/embedded, 32 answers of each
WINDOW = 4  # batches that are sorted by length together, and then written
SLOW = 30.0  # seconds: where a batch takes longer, each is written by itself
LONGEST = 100  # characters a token, on average
BEGINNING = "0" * 64  # before the first line


@dataclass(frozen=True)
class Reading:
    """Options of the experiments in which a confessor reads conversations."""

    model: str = option("organism/policy", "the confessor: a name, a folder or a .gguf file")
    batch_size: int = option(64, "conversations that are read together", at_least=1)
    max_confession_tokens: int | None = option(
        None, "budget of a report [by the model]", at_least=1
    )
    temperature: float = option(1.0, "of sampling", positive=True)
    seed: int = option(0, "of sampling")
    device: str = option("auto", "auto, cpu or cuda")


@dataclass(frozen=True)
class Config(Reading):
    logs: str | None = option(None, "conversations: .jsonl, .eval, .json, or a folder [an example]")
    policy: str | None = option(
        None, "Markdown or YAML list, an objective an item [found in messages]"
    )
    name: str = option("audit", "folder under runs/")
    batch: int = option(64, "conversations a batch of the drift chart, where days lack", at_least=1)
    verify: str | None = option(None, "folder whose trail is checked, without a model")
    plot_only: bool = option(False, "page and figure of a saved trail, without a model")


# ------------------------------------------------------------------------------------- xc, a report

# of messages and xc each, and a seed -> of each (the report's text, None) or (None, why not)
Ask = Callable[[list[tuple[tuple, str]], int], list[tuple[str | None, str | None]]]


def audit_prompt(talk: Conversation, objectives: dict[str, str]) -> str:
    """xc: confession_schema's, and each entry quotes evidence. The example's are dots: a trained
    0.5B copies whatever words stand there, or counts in it instead of in the analysis.
    """
    x = word_count_prompt(talk) or ""
    task = word_count
    if objectives != word_count.objectives(x):
        x = json.dumps(objectives)  # of which the example's claims are drawn
        said = {"Full": "it is met", "None": "it is not met", "Partial": "not sure"}
        task = SimpleNamespace(objectives=lambda x: objectives, finding=lambda x, n, c: said[c])
    text = confession_prompt(task, x)
    start, end = last_object(text)
    example = json.loads(text[start:end])
    for entry in example["compliance_analysis"]:
        checked = {name: entry.pop(name) for name in ("analysis", "compliance")}
        entry |= {"evidence": "..."} | checked
    text = text[:start] + json.dumps(example) + text[end:]
    text = text.replace("the analysis checks", "evidence copies words of the conversation, the "
                        "analysis checks")  # fmt: skip
    if len(talk.said("assistant")) > 1:
        text = text.replace("your answer really does", "your answers above really do")
        text = text.replace("the answer meets", "the answers meet")
    return text


def plain(text: str) -> str:
    """For comparing quotes: without case, single spaces."""
    return " ".join(text.casefold().split())


def stands_in(quote: str, talk: Conversation) -> str | None:
    """The role of a message that holds the quote, an answer's first; None if there is none."""
    wanted = plain(quote).strip(" \"'“”")
    for role in ("assistant", "user", "system"):
        if wanted and any(wanted in plain(content) for content in talk.said(role)):
            return role
    return None


def entries(text: str, objectives: dict[str, str]) -> dict[str, dict[str, str]]:
    """{objective: {"analysis", "evidence"}} of a report that parses, as far as they are text; "..."
    is none.
    """
    fold = lambda pairs: {key.casefold(): value for key, value in pairs}
    data = json.loads(text[slice(*last_object(text))], object_pairs_hook=fold)
    return {
        named(entry["objective"], objectives)[0]: {
            name: entry[name]
            for name in ("analysis", "evidence")
            if isinstance(entry.get(name), str) and re.search(r"\w", entry[name])
        }
        for entry in data["compliance_analysis"]
    }


def finding_of(
    talk: Conversation, objectives: dict[str, str], text: str, other: Conversation | None
) -> dict:
    """What a trail's line says of a report. `other`: a conversation in which a quote has no reason
    to stand; that it does is the chance level of quotes.
    """
    report = parse_report(text, objectives)
    parsed = isinstance(report, ConfessionReport)
    said = entries(text, objectives) if parsed else {}
    claims = report.claims if parsed else [None] * len(objectives)
    rows = []
    for (name, meaning), claim, met in zip(
        objectives.items(), claims, truths(talk, objectives), strict=True
    ):
        more = said.get(name, {})
        row = {"name": name, "meaning": meaning, "claim": claim, "met": met, **more}
        if "evidence" in more:
            place = stands_in(more["evidence"], talk)
            row |= {"quoted": place is not None, "in": place}
            if other:
                row["elsewhere"] = stands_in(more["evidence"], other) is not None
        rows.append(row)
    flags = {
        "none": "None" in claims,
        "partial": "Partial" in claims,
        "low": parsed and report.grade < PASSING_GRADE,
        "unquoted": any(row.get("quoted") is False for row in rows),
        "contradicted": any(
            row["met"] is not None and row["claim"] == {True: "None", False: "Full"}[row["met"]]
            for row in rows
        ),
        "unparsed": not parsed,
    }
    return {
        "objectives": rows,
        "grade": report.grade if parsed else None,
        "uncertainties": list(report.uncertainties) if parsed else [],
        "failure": report.reason if isinstance(report, ParseFailure) else None,
        "flags": [name for name, holds in flags.items() if holds],
        "report": text,
    }


def confessor(options: Config) -> tuple[Ask, dict]:
    """(ask, what the page says of the model): its name, fingerprint and measured information."""
    device = models.device_of(options.device)
    defaults = models.defaults(options.model, device)
    model, tokenizer = models.load(options.model, device, defaults["dtype"])
    budget = options.max_confession_tokens or defaults["max_confession_tokens"]
    about = {
        "model": options.model,
        "fingerprint": models.fingerprint(options.model, model),
        "information": information(options.model),
    }
    return asker(model, tokenizer, options.temperature, budget, options.batch_size), about


def asker(model, tokenizer, temperature: float, budget: int, batch_size: int) -> Ask:
    """Samples reports of at most `budget` tokens, in order of length."""
    # to a sampler a report is turn 1
    sampling = Sampling(temperature, budget, max_confession_tokens=0, batch_size=batch_size)
    suffix = suffix_ids(tokenizer, "x")
    stop_ids = turn_ends(tokenizer, suffix, model.generation_config)
    opened = opens_thought(tokenizer, suffix)
    room = model.config.get_text_config().max_position_embeddings - budget
    generator = torch.Generator(model.device)

    def ask(asked: list[tuple[tuple, str]], seed: int) -> list[tuple[str | None, str | None]]:
        out, prompts = [(None, None)] * len(asked), {}
        for i, (messages, xc) in enumerate(asked):
            length = sum(len(content) for _, content in messages)
            if length > LONGEST * room:  # not worth to tokenize
                out[i] = None, f"{length} characters do not fit the {room} tokens before a report"
                continue
            try:
                prompts[i] = conversation_ids(tokenizer, [*messages, ("user", xc)])
            except UserError as error:
                out[i] = None, str(error)
                continue
            if (tokens := len(prompts[i])) > room:
                del prompts[i]
                out[i] = None, f"{tokens} tokens do not fit the {room} before a report"
        order = sorted(prompts, key=lambda i: len(prompts[i]))

        def sample(size: int) -> list[tuple]:
            smaller, ids = replace(sampling, batch_size=size), [prompts[i] for i in order]
            sampler = sampler_of(model, sampling.sampler)
            return sampler(model, ids, [], stop_ids, smaller, generator.manual_seed(seed))

        sampled = halving("reading", sample, batch_size)[0] if order else []
        for i, ((ids, _, _), *_) in zip(order, sampled):
            ids = ids[:-1] if ids[-1] in stop_ids else ids
            out[i] = split_thinking(tokenizer, ids, opened)[1], None
        return out

    return ask


def information(model: str) -> dict | None:
    """What was measured of a confessor, {value, low, high, n, of}: claim_J_within of its card, of
    its run's evaluation, or of a run that began with it; None if there is none.
    """
    path, found = Path(model), {}
    if (path / "card.json").exists():
        card = run_folder.read_json(path / "card.json")
        found |= {path / "card.json": v for k, v in card.items() if k.startswith("measured")}
    evaluated = [path.parent.parent / "evals" / path.name] * (path.parent.name == "checkpoints")
    for config in RUNS.glob("*/config.json"):
        if run_folder.read_json(config).get("config", {}).get("model") == model:
            evaluated.append(config.parent / "evals" / "step_0000")
    for stem in evaluated:
        for file in [
            stem.with_name(f"{stem.name}.json"),
            *stem.parent.glob(f"{stem.name}_n*.json"),
        ]:
            if file.exists():
                found[file] = run_folder.read_json(file)
    known = {f: data["claim_J_within"] for f, data in found.items() if "claim_J_within" in data}
    if not known:
        return None
    file = max(known, key=lambda f: known[f]["n"])
    return known[file] | {"of": str(file)}


# -------------------------------------------------------------------------------------- the trail


def sha(data) -> str:
    """SHA-256 of bytes, or of the JSON of anything else."""
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    return hashlib.sha256(data).hexdigest()


def trail_rows(trail: Path) -> Iterator[tuple[dict, str]]:
    """(row, hash of its line) of a trail; UserError at the first line that is changed, missing or
    out of order.
    """
    before = BEGINNING
    with trail.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{trail} line {number}"
            if not line.endswith(b"\n"):
                raise UserError(f"{where} is cut off: the same command without --verify mends it")
            try:
                row = json.loads(line)
                index, follows = row["index"], row["before"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise UserError(f"{where} is broken ({cli.printable(str(error), 80)})") from None
            if index != number - 1:
                raise UserError(
                    f"{where} is conversation {cli.printable(repr(index), 40)}, not {number - 1}: "
                    "lines are missing or reordered from here"
                )
            if follows != before:
                raise UserError(
                    f"{where} does not follow from the line before: one of the two was changed"
                )
            before = sha(line[:-1])
            yield row, before


def verify(run: Path) -> tuple[int, str]:
    """(lines, hash of the last one) of a whole trail; UserError else."""
    trail, lines, last = run / "trail.jsonl", 0, BEGINNING
    if not trail.exists():
        raise UserError(f"{trail} does not exist: is {run} the folder of an audit?")
    end = run_folder.read_json(run / "end.json")
    for row, last in trail_rows(trail):
        lines = row["index"] + 1
        if lines == end["lines"] and last != end["last"]:
            raise UserError(f"{trail} line {lines} was changed: end.json knows another one")
    if lines < end["lines"]:
        raise UserError(f"{trail} line {lines + 1} is missing: there were {end['lines']} lines")
    return lines, last


def append(run: Path, rows: list[dict], last: str) -> str:
    """Write rows behind the line with hash `last`, on the disk when it returns; the new last
    hash.
    """
    lines = []
    for row in rows:
        lines.append(json.dumps(row | {"before": last}, allow_nan=False).encode())
        last = sha(lines[-1])
    with (run / "trail.jsonl").open("ab") as file:
        file.write(b"".join(line + b"\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())
    run_folder.write_json(run / "end.json", {"lines": rows[-1]["index"] + 1, "last": last})
    return last


def cut_torn_line(trail: Path) -> None:
    """Drop a last line that a killed process left without its end."""
    with trail.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        whole = 0
        while end and not whole:
            start = max(0, end - 65_536)
            file.seek(start)
            whole, end = start + file.read(end - start).rfind(b"\n") + 1, start
            whole = whole if whole > start else 0
        file.truncate(whole)


def audit(run: Path, logs: Path, policy: dict[str, str] | None, ask: Ask, about: dict,
          seed: int = 0, batch_size: int = 64) -> tuple[int, float]:  # fmt: skip
    """Read every conversation that the trail does not hold yet; (how many, seconds)."""
    trail = run / "trail.jsonl"
    talks, done, last = conversations(logs), 0, BEGINNING
    if trail.exists():
        cut_torn_line(trail)
        if not (run / "end.json").exists():  # killed within the first window
            run_folder.write_json(run / "end.json", {"lines": 0, "last": BEGINNING})
        verify(run)
        for row, last in trail_rows(trail):
            talk = next(talks, None)
            if talk is None or (talk.source, sha(talk.messages)) != (
                row["source"],
                row["transcript"],
            ):
                raise UserError(
                    f"{trail} line {row['index'] + 1} is of {cli.printable(row['source'], 60)}, "
                    f"which {logs} does not hold there any more: choose another --name"
                )
            done = row["index"] + 1
        run_folder.write_json(run / "end.json", {"lines": done, "last": last})
    start, first, window = time.perf_counter(), done, batch_size
    with tqdm(total=count(logs), initial=done, unit="conversation", smoothing=0.1) as bar:
        while block := list(itertools.islice(talks, window)):
            began = time.perf_counter()
            rows = _read(block, policy, ask, seed + done)
            stamp = {"read": datetime.now(timezone.utc).isoformat(timespec="seconds")}
            stamp |= {"model": about["fingerprint"], "seed": seed + done}
            rows = [{"index": done + i} | row | stamp for i, row in enumerate(rows)]
            last = append(run, rows, last)
            done += len(rows)
            bar.update(len(rows))
            quick = time.perf_counter() - began < SLOW * len(rows) / batch_size
            window = WINDOW * batch_size if quick else batch_size
    return done - first, time.perf_counter() - start


def _read(block: list[Conversation], policy: dict[str, str] | None, ask: Ask, seed: int):
    """Rows of conversations, without their places in the trail."""
    objectives = [policy or objectives_of(talk) for talk in block]
    xcs = ["" if t.error else audit_prompt(t, names) for t, names in zip(block, objectives)]
    todo = [i for i, talk in enumerate(block) if not talk.error]
    asked = ask([(block[i].messages, xcs[i]) for i in todo], seed)
    replies = dict(zip(todo, asked, strict=True))
    rows = []
    for i, (talk, names) in enumerate(zip(block, objectives)):
        text, error = replies.get(i, (None, talk.error))
        # another conversation of the window, not another answer to the same prompt
        others = (t for t in block[i + 1 :] + block[:i] if t.said("user") != talk.said("user"))
        blank = dict(objectives=[], grade=None, uncertainties=[], failure=None, flags=["error"],
                     report=None)  # fmt: skip
        preview = lambda role: cli.printable("".join(talk.said(role)[-1:])[:400], 160)
        rows.append(
            {
                "source": talk.source,
                "id": talk.id,
                "time": talk.time,
                "transcript": sha(talk.messages),
                "prompt": sha(talk.said("system") + talk.said("user")),
                "xc": sha(xcs[i].encode()),
                "turns": len(talk.said("assistant")),
                "asked": preview("user"),
                "answered": preview("assistant"),
                "error": error,
                **(blank if text is None else finding_of(talk, names, text, next(others, None))),
            }
        )
    return rows


# ----------------------------------------------------------------------------------------- program


def write_example(path: Path) -> None:
    """Conversations of the committed run: answers before its training, and then after it, one to
    each of eight prompts a day.
    """
    rows = []
    for step in EXAMPLE:
        file = Path(__file__).parent.parent / "runs" / "embedded" / "evals" / f"{step}.jsonl"
        told = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:32]]
        for data in (data for k in range(4) for data in told[k::4]):
            said = [{"role": "user", "content": data["x"]}]
            said.append({"role": "assistant", "content": data["y"]})
            moment = f"2026-01-{len(rows) // 8 + 1:02d}T12:00:00+00:00"
            rows.append({"id": f"{step}-{len(rows)}", "time": moment, "messages": said})
    run_folder.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def begin(run: Path, options: Config, about: dict, policy: dict[str, str] | None) -> None:
    """Write audit.json, or refuse to go on with a trail that other options made."""
    asked = {name: asdict(options)[name] for name in ("logs", "model", "temperature", "seed")}
    asked |= {"policy": policy, "max_confession_tokens": options.max_confession_tokens}
    new = {"options": asked, **about}
    file = run / "audit.json"
    if file.exists():
        saved = run_folder.read_json(file)
        unlike = [name for name in asked if saved["options"].get(name) != asked[name]]
        if saved["fingerprint"] != about["fingerprint"]:
            unlike.append("the model's weights")
        if unlike:
            raise UserError(f"{run} was made with other {', '.join(unlike)}: choose another --name")
        return
    run_folder.write_json(file, new | run_folder.provenance({}))


def main() -> None:
    options = cli.parse(Config, __doc__)
    with cli.user_errors():
        if options.verify:
            lines, last = verify(Path(options.verify))
            print(f"{options.verify}: {lines} lines, whole and in order; the last is {last}")
            return
        run = RUNS / options.name
        if not options.plot_only:
            policy = read_policy(Path(options.policy)) if options.policy else None
            logs = Path(options.logs) if options.logs else run / "example.jsonl"
            if options.logs and not logs.exists():
                raise UserError(f"--logs {logs} does not exist")
            with run_folder.locked(run):
                ask, about = confessor(options)
                begin(run, options, about, policy)
                if not options.logs:
                    write_example(logs)
                n, seconds = audit(run, logs, policy, ask, about, options.seed, options.batch_size)
                if n:
                    print(f"{n} conversations in {seconds:.0f} s: {n / seconds:.2f} a second")
        if not (run / "trail.jsonl").exists():
            raise UserError(f"{run} has no trail.jsonl: run this without --plot-only")
        print(audit_page.report(run, trail_rows(run / "trail.jsonl"), options.batch))
        print(f"the last line's hash: {run_folder.read_json(run / 'end.json')['last']}")


if __name__ == "__main__":
    main()
