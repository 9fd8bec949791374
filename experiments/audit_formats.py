"""Logged conversations and what to hold them to, for experiments/audit.py.

    *.jsonl          a conversation a line: {"messages": [{"role", "content"}, ...]}, also with "id"
                     and "time", or an OpenAI-style log: {"request": {"messages"}, "response":
                     {"choices": [{"message"}], "created"}}; a content is text or a list of parts
    *.eval, *.json   logs of Inspect, read with the inspect-ai package

Everything in a log is untrusted. A line that is no conversation becomes a Conversation with an
`error`: it is counted, never dropped. One conversation is in memory at a time.

Roles are system (first alone), user and assistant; "developer" is system. Tool results and later
system messages are user messages that say so, tool calls stand in the assistant's text, neighbours
of one role are one message, and parts that are no text are named in square brackets.
"""

import json
import math
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import yaml

import cli
from cli import UserError
from tasks import constraints, word_count
from transcripts import INSPECT, encodable

SUFFIXES = (".jsonl", ".eval", ".json")
LONGEST = 16_000_000  # bytes of a line
MESSAGES = 1_000  # of a conversation
# what inspect-ai raises at a log that is none, or half of one
UNREADABLE = (OSError, ValueError, LookupError, RuntimeError, zipfile.BadZipFile)
POLICY, TENET = 100_000, 400  # characters of a list of tenets, and of one
MOST = 8  # objectives that are found in a conversation


@dataclass(frozen=True)
class Conversation:
    source: str  # "FILE:LINE", or "FILE sample ID epoch N"
    id: str | None
    time: str | None  # ISO 8601 in UTC, of the log
    messages: tuple[tuple[str, str], ...] = ()  # (role, content)
    error: str | None = None  # why there is nothing to audit

    def said(self, role: str) -> list[str]:
        return [content for speaker, content in self.messages if speaker == role]


# -------------------------------------------------------------------------------------------- files


def files_of(logs: Path) -> list[Path]:
    """The files to read, in order of their names; UserError if there are none."""
    files = [logs] if logs.is_file() else sorted(p for p in logs.rglob("*") if p.is_file())
    files = [path for path in files if path.suffix in SUFFIXES]
    if not files:
        raise UserError(f"--logs {logs}: no file with conversations ({', '.join(SUFFIXES)})")
    return files


def count(logs: Path) -> int:
    """How many conversations they hold, for the progress bar."""
    return sum(
        sum(1 for _ in lines(path)) if path.suffix == ".jsonl" else _samples(path)
        for path in files_of(logs)
    )


def conversations(logs: Path) -> Iterator[Conversation]:
    """Every line and every sample, in order."""
    for path in files_of(logs):
        name = str(path.relative_to(logs) if logs.is_dir() else path.name)
        if path.suffix == ".jsonl":
            for number, line in lines(path):
                yield of_line(line, f"{name}:{number}")
        else:
            yield from of_inspect(path, name)


def lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1, bytes) of every line that is not blank; None in place of one that is longer
    than LONGEST.
    """
    number = 0
    with path.open("rb") as file:
        while line := file.readline(LONGEST):
            number, whole = number + 1, line.endswith(b"\n") or len(line) < LONGEST
            rest = line
            while not whole and rest and not rest.endswith(b"\n"):
                rest = file.readline(LONGEST)
            if line.strip() or not whole:
                yield number, line if whole else None


def of_line(line: bytes | None, source: str) -> Conversation:
    """The conversation that a line of JSONL holds."""
    if line is None:
        return Conversation(source, None, None, error=f"a line of more than {LONGEST} bytes")
    try:
        data = encodable(json.loads(line))
    except (ValueError, RecursionError) as error:
        return Conversation(source, None, None, error=f"no JSON: {cli.printable(str(error), 80)}")
    if not isinstance(data, dict):
        return Conversation(source, None, None, error="no JSON object")
    request, response = data.get("request"), data.get("response")
    try:
        if isinstance(request, dict) and isinstance(response, dict):
            messages = [*request["messages"], response["choices"][0]["message"]]
            found, time = response.get("id"), response.get("created")
        else:
            messages, found, time = data["messages"], data.get("id"), data.get("time")
        if not isinstance(messages, list):
            raise TypeError("messages is no list")
        said = [(m["role"], text_of(m.get("content"), m.get("tool_calls"))) for m in messages]
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        reason = f"no messages: {cli.printable(repr(error), 80)}"
        return Conversation(source, None, None, error=reason)
    return conversation(source, data.get("id", found), data.get("time", time), said)


def of_inspect(path: Path, name: str) -> Iterator[Conversation]:
    """Every sample of an Inspect log; a log that cannot be read is one Conversation with an error.
    UserError without the package.
    """
    log = _inspect()
    try:
        for sample in log.read_eval_log_samples(path, all_samples_required=False):
            said = []
            for message in sample.messages:
                calls = message.tool_calls if message.role == "assistant" else None
                named = [{"function": {"name": c.function, "arguments": c.arguments}}
                         for c in calls or []]  # fmt: skip
                said.append((message.role, encodable(text_of(message.text, named))))
            source = f"{name} sample {cli.printable(str(sample.id), 60)} epoch {sample.epoch}"
            yield conversation(source, sample.uuid, sample.started_at, said)
    except UNREADABLE as error:
        reason = f"no Inspect log: {cli.printable(str(error), 80)}"
        yield Conversation(name, None, None, error=reason)


def _inspect():
    try:
        import inspect_ai.log
    except ImportError:
        raise UserError(
            f"logs of Inspect need the inspect-ai package: pip install {INSPECT}"
        ) from None
    return inspect_ai.log


def _samples(path: Path) -> int:
    log = _inspect()
    try:
        return len(log.read_eval_log_sample_summaries(path))
    except UNREADABLE:
        return 1  # which will be an error


# ---------------------------------------------------------------------------------------- messages


def text_of(content, calls=None) -> str:
    """The text of a message's content and of its tool calls; TypeError for what is neither text
    nor a list of parts.
    """
    if content is None:
        content = ""
    if isinstance(content, list):
        content = "\n".join(
            part["text"] if isinstance(part.get("text"), str) else f"[{part.get('type')}]"
            for part in content
        )
    if not isinstance(content, str):
        raise TypeError(f"a content is {type(content).__name__}")
    called = [f"[calls {c['function']['name']}: {c['function']['arguments']}]" for c in calls or []]
    return "\n".join([content] * bool(content) + called)


def conversation(source: str, found, time, said: list[tuple[str, str]]) -> Conversation:
    """A Conversation of (role, text) as they were logged, its error filled in."""
    about = source, None if found is None else cli.printable(str(found)[:200], 80), when(time)
    if len(said) > MESSAGES:
        return Conversation(*about, error=f"{len(said)} messages are more than {MESSAGES}")
    messages: list[tuple[str, str]] = []
    for role, text in said:
        if role in ("tool", "function"):
            role, text = "user", f"[tool result]\n{text}"
        elif role in ("system", "developer"):
            first = not messages or messages[-1][0] == "system"
            role, text = ("system", text) if first else ("user", f"[system message]\n{text}")
        if role not in ("system", "user", "assistant"):
            reason = f"unknown role {cli.printable(repr(role)[:60], 40)}"
            return Conversation(*about, error=reason)
        if role == "assistant" and not text.strip():
            return Conversation(*about, tuple(messages), error="an assistant turn is empty")
        if messages and messages[-1][0] == role:
            text = f"{messages.pop()[1]}\n\n{text}"
        messages.append((role, text))
    error = None
    if [role for role, _ in messages][-1:] != ["assistant"]:
        error = "the last message is no assistant turn"
    elif not any(role == "user" for role, _ in messages):
        error = "no user message"
    return Conversation(*about, tuple(messages), error)


def when(value) -> str | None:
    """A time in seconds or milliseconds since 1970, or in ISO 8601, as ISO 8601 in UTC; None for
    what is none.
    """
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            moment = datetime.fromtimestamp(value / (1000 if value > 1e11 else 1), timezone.utc)
        else:
            moment = datetime.fromisoformat(value)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
        return moment.astimezone(timezone.utc).isoformat(timespec="seconds")
    except (ValueError, TypeError, OverflowError, OSError):
        return None


# -------------------------------------------------------------------------------------- objectives

ITEM = re.compile(r"[ \t]{0,12}(?:[-*+•]|\d{1,2}[.)])[ \t]+(\S.*)")
DEMANDS = re.compile(
    r"\b(?:must|never|do not|don['’]t|only|exactly|at most|at least)\b", re.IGNORECASE
)
WORD_COUNT = re.compile(  # from its beginning, so that tasks/word_count.py finds the same numbers
    r"Write one paragraph about \w{1,40} for \w{1,40}, with a focus on \w{1,40}\. "
    r"It has exactly \d "
    r"sentences of (?:\d{1,3}, ){0,6}\d{1,3} and \d{1,3} words, in this order\."
)
REQUEST = "follows the user's request"


def objectives_of(talk: Conversation) -> dict[str, str]:
    """{name: meaning} of what the system and user messages ask for, at most MOST, by plain rules:
    items of numbered or bulleted lists, and sentences with must, never, do not, only, exactly, at
    most or at least. Heuristics: they take a quoted list for requirements and miss what is asked in
    other words. A conversation without any is held to its request as a whole; a prompt of the
    Word Count task keeps that task's objectives.
    """
    if word_count_prompt(talk):
        return word_count.objectives(word_count_prompt(talk))
    found = {}
    for text in talk.said("system") + talk.said("user"):
        for line in text.splitlines():
            item = ITEM.fullmatch(line)
            sentences = [item[1]] if item else re.split(r"(?<=[.!?])\s+", line)
            for sentence in sentences:
                if item or DEMANDS.search(sentence):
                    found[cli.printable(sentence, 200).rstrip(" .")] = None
    meanings = [meaning for meaning in found if meaning][:MOST] or [REQUEST]
    return {f"O{i}": meaning for i, meaning in enumerate(meanings, 1)}


def word_count_prompt(talk: Conversation) -> str | None:
    """The user's only message, if it is a prompt of the Word Count task."""
    asked = talk.said("user")
    return asked[0] if len(asked) == 1 and WORD_COUNT.match(asked[0]) else None


def read_policy(path: Path) -> dict[str, str]:
    """{name: tenet} of a Markdown file: each item of a list is one, with the indented lines after
    it; or of a YAML file (.yaml, .yml): a list of texts, or of mappings with "tenet" or "name".
    UserError if there is none, if one is there twice, and for one that is too long to be asked.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(POLICY + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"--policy {path} cannot be read as text ({error})") from None
    if len(text) > POLICY:
        raise UserError(f"--policy {path} has more than {POLICY} characters: give a list of tenets")
    if path.suffix in (".yaml", ".yml"):
        tenets = _of_yaml(path, text)
    else:
        tenets = _of_markdown(text)
    if not tenets:
        raise UserError(f"--policy {path} holds no list item: write each tenet as one, '- ...'")
    tenets = [cli.printable(tenet, POLICY) for tenet in tenets]
    for i, tenet in enumerate(tenets, 1):
        if not 0 < len(tenet) <= TENET:
            raise UserError(
                f"--policy {path} item {i} has {len(tenet)} characters: give 1 to {TENET}"
            )
        if tenet in tenets[: i - 1]:
            raise UserError(f"--policy {path} item {i} is there twice: {cli.printable(tenet, 60)}")
    return {f"O{i}": tenet for i, tenet in enumerate(tenets, 1)}


def _of_markdown(text: str) -> list[str]:
    tenets: list[str] = []
    within = False
    for line in text.splitlines():
        if item := ITEM.fullmatch(line):
            tenets.append(item[1])
        elif within and line[:1] in " \t" and line.strip():
            tenets[-1] += " " + line.strip()
        within = bool(item) or (within and bool(line.strip()))
    return tenets


def _of_yaml(path: Path, text: str) -> list[str]:
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("no aliases: they can make of a few lines a list without end")
        data = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = cli.printable(str(error), 120)
        raise UserError(f"--policy {path} is no YAML ({reason})") from None
    tenets = []
    for i, item in enumerate(data if isinstance(data, list) else [], 1):
        tenet = item.get("tenet", item.get("name")) if isinstance(item, dict) else item
        if not isinstance(tenet, str) or not tenet.strip():
            raise UserError(
                f"--policy {path} item {i} is of type {type(item).__name__}: give a text, or a "
                "mapping with a text as 'tenet' or 'name' (quote one that YAML reads as another "
                "type)"
            )
        tenets.append(tenet)
    return tenets


def truths(talk: Conversation, objectives: dict[str, str]) -> list[bool | None]:
    """For each objective whether the answer meets it, where code can say so: those of a Word Count
    prompt, and requirements of tasks/constraints.py by their text. None elsewhere, and for all
    where the conversation has several answers.
    """
    answers = talk.said("assistant")
    if len(answers) != 1:
        return [None] * len(objectives)
    x = word_count_prompt(talk)
    if x and objectives == word_count.objectives(x):
        return list(word_count.truth(x, answers[0]).objectives)
    text, _ = constraints.split_answer(answers[0])
    out = []
    for meaning in objectives.values():
        kind, value = constraints.REQUIREMENTS.get(meaning.rstrip(" ."), (None, ()))
        met = kind and bool(constraints.words(text)) and kind.meets(
            kind.found(text, *value[:1]), *value
        )  # fmt: skip
        out.append(None if kind is None else bool(met))
    return out
