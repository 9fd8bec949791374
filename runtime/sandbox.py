"""Runs model-written functions on inputs, each program in a process of its own that can do nothing but answer.

**What is trusted.** Expected values never enter the process that runs a program. It gets source and arguments, and gives back
values as JSON of plain types, which are compared out here (`same`). So frames, gc, /proc/self/mem, an `__eq__` that is always
true, overwritten builtins, atexit or os._exit(0) can spoil a program's own answers and no more. It may write to the channel
itself: what it writes is its answer, which must still be right. What it prints goes nowhere.

**All inputs at once.** A program sees the arguments of all its calls. That tells it nothing of the results, nothing lasts from
one program to the next, and a process per call would cost 15 ms each; calls share the program's globals, as in any test file.

**Levels.** "strong": Landlock (no file but the standard library, for reading) and a seccomp list of the 39 system calls that
computing needs (no sockets, fork, threads, exec, signals, ptrace), rlimits, and a clock outside. Both work without root, in
containers too, where user namespaces and bubblewrap often do not; without fork and sockets there is nothing left for a pid or
network namespace to hide. "weak": rlimits and the clock; the two others where they are there. docs/sandbox.md has the table.

**Speed.** A fresh interpreter a program (12 ms of CPU) meets 64 programs a second on two cores, so there is no fork server whose
memory a program could reach. The trainer is large and has threads: it is never forked, `subprocess` uses vfork.

`python -m runtime.sandbox` says what holds here and measures the speed.
"""

import functools
import json
import marshal
import math
import os
import select
import signal
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import cli

LEVELS = ("strong", "weak")
STATES = ("ok", "error", "memory", "unserialisable")  # of a call
DEPTH = 64  # of nested lists: comparing and logging an answer must not run into the recursion limit
START_SECONDS = 60.0  # for the process to start, on a busy machine
COMMAND = [sys.executable, "-S", "-s", "-P", "-B", str(Path(__file__).with_name("sandbox_child.py"))]
ENVIRONMENT = {"PYTHONHASHSEED": "0"}  # the order of a set is the same in every run; -I would ignore it


@dataclass(frozen=True)
class Raised:
    """Stands for the value of a call that returned none: equal to no expected value. state: one of STATES but "ok"."""

    state: str
    detail: str


@dataclass(frozen=True)
class Outcome:
    """state: "ok" if every call returned a plain value; else what first went wrong: one of STATES, or of the process "timeout",
    "output" (more than was allowed), "killed" (by a signal). values: of the calls in their order, with Raised among them, fewer
    than there were calls if the program ended early. detail: one printable line. seconds: of the wall clock, start included."""

    state: str
    values: list
    detail: str
    seconds: float


class Sandbox:
    """seconds: of the wall clock, for loading a program and all its calls; memory_mb: address space with the interpreter's 40 MB;
    output_kb: all answers of a program; workers: programs at once. UserError if "strong" cannot be had here."""

    def __init__(self, level="strong", seconds=2.0, memory_mb=256, output_kb=64, workers=2):
        if level not in LEVELS:
            raise cli.UserError(f"--sandbox {level!r} is unknown: choose {' or '.join(LEVELS)}")
        missing = [layer for layer, holds in available().items() if not holds]
        if level == "strong" and missing:
            raise cli.UserError(
                f"--sandbox strong: {' and '.join(missing)} cannot be had here (Linux 5.13 or later on x86_64 or aarch64, with "
                "landlock in /sys/kernel/security/lsm); --sandbox weak runs model-written code with your rights to files and network"
            )
        self.layers = [layer for layer, holds in available().items() if holds]
        self.seconds, self.memory_mb, self.output_kb, self.workers = seconds, memory_mb, output_kb, workers

    def run(self, programs: list[tuple[str, str, list[list]]]) -> list[Outcome]:
        """Outcomes of (source, name of the function, [the arguments of each call]), in their order. RuntimeError if a process could
        not be started, which says nothing about its program."""
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(lambda program: self._run(*program), programs))

    def _run(self, source: str, function: str, calls: list[list]) -> Outcome:
        limits = {"seconds": math.ceil(self.seconds) + 1, "memory": self.memory_mb << 20}
        confined = {"layers": self.layers, "readable": readable()}
        request = {"source": source, "function": function, "calls": calls, **limits, **confined}
        start = time.perf_counter()
        with TemporaryFile() as stdin, TemporaryDirectory(ignore_cleanup_errors=True) as empty:
            stdin.write(marshal.dumps(request, 2))  # version 2: two calls share no list
            stdin.seek(0)
            with subprocess.Popen(
                COMMAND,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=empty,
                env=ENVIRONMENT,
                start_new_session=True,
            ) as process:
                try:
                    data, stopped = self._read(process.stdout.fileno())
                finally:
                    os.killpg(process.pid, signal.SIGKILL)  # before wait(): until then nobody else has this pid
                process.wait()
        head, _, body = data.partition(b"\n")
        if head != b"ready":
            raise RuntimeError(f"sandbox: a process did not start: {cli.printable(str(head), 300)}, {process.returncode}")
        return outcome(body, len(calls), stopped, process.returncode, time.perf_counter() - start)

    def _read(self, fd: int) -> tuple[bytes, str]:
        """(what the process wrote, "" or why it must stop: "timeout", "output")."""
        data, limit, deadline = b"", self.output_kb << 10, time.perf_counter() + START_SECONDS
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while poll.poll(max(deadline - time.perf_counter(), 0) * 1000):
            chunk = os.read(fd, 1 << 16)
            if not chunk or len(data) > limit:
                return data, "output" if chunk else ""
            if b"\n" not in data and b"\n" in chunk:
                deadline = time.perf_counter() + self.seconds
            data += chunk
        return data, "timeout"


def outcome(body: bytes, calls: int, stopped: str, status: int, seconds: float) -> Outcome:
    """What the untrusted lines and the end of a process come to. A last line without its end is dropped."""
    values = [parse(line) for line in body.split(b"\n")[:-1][:calls]]
    first = next((value for value in values if isinstance(value, Raised)), None)
    if stopped:
        return Outcome(stopped, values, f"stopped in call {len(values) + 1} of {calls}", seconds)
    if first:
        return Outcome(first.state, values, first.detail, seconds)
    if len(values) == calls:
        return Outcome("ok", values, "", seconds)
    state, how = ("killed", f"by signal {-status}") if status < 0 else ("error", f"with status {status}")
    return Outcome(state, values, f"ended {how} in call {len(values) + 1} of {calls}", seconds)


def parse(line: bytes):
    """The plain value of one untrusted line, or Raised. Duplicate keys: the last; NaN is read, and equal to nothing."""
    try:
        state, value = json.loads(line)  # ValueError also for integers of more than 4,300 digits
        if state == "ok" and nesting(value) <= DEPTH:
            json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate could not be written to a log
            return value
        if state in STATES[1:] and isinstance(value, str):
            return Raised(state, cli.printable(value, 300))
        return Raised("unserialisable", "a line that is no answer, or one nested too deep")
    except (ValueError, TypeError, RecursionError) as error:
        return Raised("unserialisable", f"a line that is no answer: {type(error).__name__}")


def nesting(value) -> int:
    """Lists and dictionaries around the innermost value."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(nesting, items), default=0)


def same(value, expected) -> bool:
    """Equal in value and type at every level (1 is not True, 2 is not 2.0); both of plain types."""
    if type(value) is not type(expected):
        return False
    if isinstance(value, list):
        return len(value) == len(expected) and all(map(same, value, expected))
    if isinstance(value, dict):
        return value.keys() == expected.keys() and all(same(value[key], expected[key]) for key in value)
    return not isinstance(value, Raised) and value == expected


@functools.cache
def readable() -> list[tuple[str, bool]]:
    """(path, whether its files may be read or only its names): the standard library without site-packages, and the shared
    libraries that its modules load."""
    library, beside = Path(sysconfig.get_path("stdlib")), Path(sys.base_prefix, "lib")
    shared = [*beside.glob("lib*.so*"), *map(Path, ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"))]
    modules = [path for path in library.iterdir() if path.name not in ("site-packages", "dist-packages")]
    zones = Path("/usr/share/zoneinfo")
    return [(str(library), False), *((str(path), True) for path in (*modules, *shared, zones) if path.exists())]


PROBES = {"landlock": "open('/proc/self/environ')", "seccomp": "import os; os.kill(os.getpid(), 0)"}


@functools.cache
def available() -> dict[str, bool]:
    """By layer, whether it holds here: tried by a program that does what it denies."""
    sandbox, holds = Sandbox.__new__(Sandbox), {}
    sandbox.seconds, sandbox.memory_mb, sandbox.output_kb = 10.0, 256, 64
    for layer, act in PROBES.items():
        sandbox.layers = [layer]
        source = f"def denied():\n try:\n  {act}\n except PermissionError:\n  return True\n return False"
        try:
            holds[layer] = sandbox._run(source, "denied", [[]]).values == [True]
        except RuntimeError:
            holds[layer] = False
    return holds


def main(count: int = 64, repeats: int = 10) -> None:
    print(", ".join(f"{layer}: {'holds' if holds else 'MISSING'}" for layer, holds in available().items()))
    source = "import math, re\ndef f(n):\n    return sum(i for i in range(n) if math.gcd(i, n) == 1)"
    sandbox = Sandbox("weak")
    for _ in range(repeats):
        start = time.perf_counter()
        states = {outcome.state for outcome in sandbox.run([(source, "f", [[n] for n in range(10)])] * count)}
        print(f"{count} programs of 10 calls, {sandbox.workers} at once: {time.perf_counter() - start:.2f} s, {states}")


if __name__ == "__main__":
    with cli.user_errors():
        main()
