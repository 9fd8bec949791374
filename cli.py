"""Command lines made from frozen dataclasses, and how a program ends on bad input or Ctrl-C."""

import dataclasses
import errno
import importlib.util
import io
import math
import os
import signal
import sys
from contextlib import contextmanager, suppress

from transformers import HfArgumentParser


def option(
    default,
    help: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    positive: bool = False,
    one_of=None,
):
    """A dataclass field that becomes the option --field-name. check() holds its value to the bounds
    and choices given here; None stands for a default to come.
    """
    bounds = {"at_least": at_least, "at_most": at_most, "positive": positive, "one_of": one_of}
    return dataclasses.field(
        default=default, metadata={"help": help.replace("%", "%%"), "bounds": bounds}
    )


def parse(config_class, doc: str, first: str | None = None):
    """The config that the command line asks for, checked; bad options end the program with one
    line and status 2.

    `first`: the option that a leading argument without a dash stands for.
    """
    arguments = sys.argv[1:]
    if first and arguments and not arguments[0].startswith("-"):
        arguments = [f"--{first}", *arguments]
    described = lambda f: dataclasses.field(
        default=f.default, metadata={"help": f.metadata["help"]}
    )
    options = dataclasses.make_dataclass(
        "Options", [(f.name, f.type, described(f)) for f in dataclasses.fields(config_class)]
    )
    spec = sys.modules["__main__"].__spec__  # of python -m
    parser = HfArgumentParser(
        options,
        prog=spec and f"python -m {spec.name}",
        description=doc.strip().split("\n\n")[0],
        allow_abbrev=False,
    )
    given, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    if unknown:
        parser.error(f"unknown option {unknown[0]!r}; --help lists them all")
    config = config_class(**vars(given))
    with user_errors():
        check(config)
    return config


def check(config) -> None:
    """UserError for an option outside the bounds and choices that stand at it."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"--{field.name.replace('_', '-')}"
        if value is None:
            continue
        at_least, at_most, positive, one_of = field.metadata["bounds"].values()
        if one_of is not None and value not in one_of:
            raise UserError(f"{name} {value!r} is unknown: choose {' or '.join(one_of)}")
        if positive and not 0 < value < math.inf:
            raise UserError(f"{name} {value} must be a positive number")
        if at_least is not None and at_most is not None and not at_least <= value <= at_most:
            raise UserError(f"{name} {value} is out of range: from {at_least} to {at_most}")
        if at_least is not None and not at_least <= value < math.inf:
            raise UserError(f"{name} {value} is out of range: at least {at_least}, and finite")


def some_of(option: str, text: str, known) -> list[str]:
    """The names of an option that takes some, with commas between them; all for "". UserError for
    one that is not known.
    """
    names = text.split(",") if text else list(known)
    for name in names:
        if name not in known:
            raise UserError(f"{option} {name!r} is unknown: choose from {', '.join(known)}")
    return names


class UserError(ValueError):
    """Bad input: the message names the value and the fix."""


@contextmanager
def user_errors():
    """Run a program: bad input or a full disk ends it with one clear line and status 2, Ctrl-C
    with status 130.
    """
    for stream in (sys.stdout, sys.stderr):
        # model text may hold what a terminal's encoding lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in OUTSIDE:
            raise
        print(
            f"error: {error.filename or 'a file'}: {error.strerror}. What was saved "
            "before is whole: "
            "free some space or make the folder writable, then go on (a training run "
            "with --resume)",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


# nothing that we can mend
OUTSIDE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def finish_step_on_interrupt():
    """On the first Ctrl-C the yielded list becomes true and the step goes on;
    the second one stops at once.
    """
    interrupted = []

    def handler(signum, frame):
        if interrupted:
            raise KeyboardInterrupt
        interrupted.append(signum)
        # Not print: a handler may run in the middle of one, which refuses a second.
        os.write(2, b"\nCtrl-C: finishing this step, then saving (again to stop now and lose it)\n")

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def printable(text: str, width: int) -> str:
    """Model text for a terminal: one line, no control characters, at most `width` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= width else line[: width - 3] + "..."


PROTOCOL = (
    "make_prompt",
    "cluster",
    "objectives",
    "finding",
    "verify_first",
    "truth",
    "verifications",
    "measured",
)


def import_task(name: str, sandbox: str | None = None):
    """A task module with all that tasks/word_count.py's docstring lists. sandbox: the level for
    one that runs model-written code; UserError where that cannot be had.
    """
    module = _found(name) if name.isidentifier() else None
    if module is None:
        raise UserError(
            f"--task {name!r}: there is no tasks/{name}.py; the tasks are files such "
            "as tasks/word_count.py"
        )
    task = importlib.import_module(module)
    missing = [part for part in PROTOCOL if not hasattr(task, part)]
    if missing:
        raise UserError(
            f"--task {name!r}: {name}.py lacks {', '.join(missing)}; tasks/word_count.py says "
            "what a task holds"
        )
    if sandbox and hasattr(task, "use_sandbox"):
        task.use_sandbox(sandbox)
    return task


def _found(name: str) -> str | None:
    """The module of that name in tasks/, or else of the top level; None if there is none."""
    for module in (f"tasks.{name}", name):
        with suppress(ImportError, ValueError):  # no such package, or no such name
            if importlib.util.find_spec(module):
                return module
    return None


def import_function(path: str):
    """The function "module.function" of a module in tasks/ or of the top level;
    UserError if there is none.
    """
    module, _, name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(_found(module) or module), name)
    except (ModuleNotFoundError, AttributeError, ValueError, TypeError):
        # ValueError and TypeError: "name", "..name"
        function = None
    if not callable(function):
        raise UserError(
            f"reward function {path!r} does not exist: give module.function, such "
            "as rewards.judge_reward"
        )
    return function
