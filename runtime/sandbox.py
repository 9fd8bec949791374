"""Runs model-written functions on inputs, each program in a process that can only answer.

**What is trusted.** Expected values never enter the process that runs a program. It gets source and
arguments, and gives back values as JSON of plain types, which are compared out here (`same`). So
frames, gc, an `__eq__` that is always true, overwritten builtins, atexit or os._exit(0) can spoil
a program's own answers and no more. It may write to the channel itself: what it writes is its
answer, which must still be right. What it prints goes nowhere.

**All inputs at once.** A program sees the arguments of all its calls. They tell it nothing of the
results, nothing lasts from one program to the next, and a process per call would cost a start of
Python each. Calls share the program's globals, as in any test file.

**Levels.** "strong": Landlock (no file but the standard library, for reading), a seccomp list of
the system calls that computing needs (no sockets, fork, threads, exec, signals, ptrace), rlimits,
and a clock outside. They need no root, no package and no user namespace, which many systems deny
(so no bubblewrap either: without open, sockets and fork, only names of files are left to hide).
"weak" promises rlimits and the clock, and takes the others where it finds them. The filter is
written out in sandbox_child.py: libseccomp is not on every machine that has seccomp, and all that
is needed of it is a list of numbers.

**Speed.** Python takes 14 to 22 ms of CPU to start and import, a fork of a started one 4. So each
worker is a clean process of one thread (sandbox_child.py) that forks itself for each program. What
differs from program to program never enters it: requests and answers pass by, in a file and a pipe.
The trainer, large and with threads, is not forked: subprocess starts the workers by vfork.

`python -m runtime.sandbox` says what holds here and measures the speed; docs/sandbox.md has both.
"""

import functools
import json
import marshal
import math
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryFile, mkdtemp

import cli

LEVELS = ("strong", "weak")
STATES = ("ok", "error", "memory", "unserialisable")  # of a call
DEPTH = 64  # of nested lists: who compares or logs an answer must not run into the recursion limit
START_SECONDS = 60.0  # for a process to start, on a busy machine
CHILD = str(Path(__file__).with_name("sandbox_child.py"))
COMMAND = [sys.executable, "-S", "-s", "-P", "-B", CHILD]
ENVIRONMENT = {"PYTHONHASHSEED": "0"}  # a set has the same order in every run; -I would ignore it


@dataclass(frozen=True)
class Raised:
    """In place of the value of a call that returned none; no expected value is equal to it."""

    state: str  # one of STATES but "ok"
    detail: str


@dataclass(frozen=True)
class Outcome:
    """What a program came to."""

    state: str  # "ok" if every call returned a plain value, else what first went wrong: of STATES,
    # or how the process was stopped: "timeout", "output" (too much), "killed" (by a signal)
    values: list  # of the calls in their order, Raised among them; fewer if the program ended early
    detail: str  # one printable line
    seconds: float  # of the wall clock, with the start of the process


@dataclass(frozen=True)
class Sandbox:
    """UserError where the level "strong" cannot be had."""

    level: str = "strong"
    seconds: float = 2.0  # of the wall clock, to load a program and for all its calls
    memory_mb: int = 256  # address space, of which the interpreter takes about 40
    output_kb: int = 64  # all answers of a program
    workers: int = 2  # programs at once

    def __post_init__(self):
        if self.level not in LEVELS:
            raise cli.UserError(f"sandbox level {self.level!r}: choose {' or '.join(LEVELS)}")
        missing = [layer for layer, holds in available().items() if not holds]
        if self.level == "strong" and missing:
            raise cli.UserError(
                f"a strong sandbox needs {' and '.join(missing)}, not to be had on this machine"
                " (they are on Linux 5.13 or later, x86_64 or aarch64, started with landlock);"
                " --sandbox weak lets model-written code have your own rights to files and network"
            )

    def run(self, programs: list[tuple[str, str, list[list]]]) -> list[Outcome]:
        """Outcomes of programs (source, name of the function, [arguments of a call, of the next,
        ...]) in their order. RuntimeError if a process does not start: no fault of its program."""
        layers = [layer for layer, holds in available().items() if holds]
        limits = (self.seconds, self.memory_mb, self.output_kb)
        with ExitStack() as stack, ThreadPoolExecutor(self.workers) as pool:
            idle = SimpleQueue()
            for _ in range(min(self.workers, len(programs))):
                idle.put(stack.enter_context(starter(layers)))

            def work(program):
                control = idle.get()
                try:
                    return run_program(control, *program, *limits)
                finally:
                    idle.put(control)

            return list(pool.map(work, programs))


@contextmanager
def starter(layers: list[str]):
    """A socket to a process that starts programs under these layers."""
    control, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.settimeout(START_SECONDS)
    folder = mkdtemp()
    place = {"cwd": folder, "env": ENVIRONMENT, "start_new_session": True}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        with control, subprocess.Popen(COMMAND, stdin=end, **place, **quiet) as process:
            end.close()
            try:
                control.send(marshal.dumps({"layers": layers, "readable": readable()}))
                yield control
            finally:
                process.kill()
    finally:
        with suppress(RecursionError):  # at the weak level folders can be nested deep
            shutil.rmtree(folder, ignore_errors=True)


def run_program(
    control: socket.socket,
    source: str,
    function: str,
    calls: list[list],
    seconds: float,
    memory_mb: int,
    output_kb: int,
) -> Outcome:
    start = time.perf_counter()
    request = {"source": source, "function": function, "calls": calls}
    request |= {"seconds": math.ceil(seconds) + 1, "memory": memory_mb << 20}
    with TemporaryFile() as file:
        file.write(marshal.dumps(request, 2))  # version 2: no two calls share a list
        file.seek(0)
        reader, writer = os.pipe()
        with open(reader, "rb"):
            with open(writer, "wb"):
                pid = ask(control, [file.fileno(), writer])
            try:
                data, stopped = read(reader, seconds, output_kb << 10)
            finally:
                for kill in (os.killpg, os.kill):  # a program may have left its group
                    with suppress(ProcessLookupError):
                        kill(pid, signal.SIGKILL)
                status = ask(control)
    head, _, body = data.partition(b"\n")
    if head != b"ready":
        raise RuntimeError(f"a sandbox did not start: {head[:300]!r}, status {status}")
    return outcome(body, len(calls), stopped, status, time.perf_counter() - start)


def ask(control: socket.socket, descriptors=()) -> int:
    """What sandbox_child.serve answers: the pid of a new process, then the status of its end."""
    with suppress(OSError):
        socket.send_fds(control, [b"1"], descriptors)
        if message := control.recv(16):
            return int(message)
    raise RuntimeError("the process that starts sandboxes has ended")


def read(fd: int, seconds: float, limit: int) -> tuple[bytes, str]:
    """(what the process wrote until its end, or little more than `limit` bytes of it; "", or why it
    is to be stopped: "timeout", "output"). Its time runs from its first line on, "ready"."""
    data, deadline = bytearray(), time.perf_counter() + START_SECONDS
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while (left := deadline - time.perf_counter()) > 0 and poll.poll(left * 1000):
        chunk = os.read(fd, 1 << 16)
        if not chunk or len(data) > limit:
            return bytes(data), "output" if chunk else ""
        if b"\n" in chunk and b"\n" not in data:
            deadline = time.perf_counter() + seconds
        data += chunk
    return bytes(data), "timeout"


def outcome(body: bytes, calls: int, stopped: str, status: int, seconds: float) -> Outcome:
    """What untrusted lines and the end of their process come to; a line cut short is dropped."""
    values = [parse(line) for line in body.split(b"\n")[:-1][:calls]]
    where = f"with {len(values)} of {calls} calls answered"
    first = next((value for value in values if isinstance(value, Raised)), None)
    if stopped:
        return Outcome(stopped, values, f"stopped {where}", seconds)
    if first:
        return Outcome(first.state, values, first.detail, seconds)
    if len(values) == calls:
        return Outcome("ok", values, "", seconds)
    if status < 0:
        return Outcome("killed", values, f"ended by signal {-status} {where}", seconds)
    return Outcome("error", values, f"ended with status {status} {where}", seconds)


def parse(line: bytes):
    """The plain value of one untrusted line, or Raised. Of two equal keys the last counts."""
    try:
        state, value = json.loads(line)  # ValueError also above 4,300 digits
        if state == "ok" and nesting(value) <= DEPTH:
            json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate breaks a log
            return value
        if state in STATES[1:] and isinstance(value, str):
            return Raised(state, cli.printable(value, 300))
        return Raised("unserialisable", "no answer, or one that is nested too deep")
    except (ValueError, TypeError, RecursionError) as error:
        return Raised("unserialisable", f"no answer: {type(error).__name__}")


def nesting(value) -> int:
    """Lists and dictionaries around the innermost value, and one."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(nesting, items), default=0)


def same(value, expected) -> bool:
    """Plain values equal in value and type at every level: 1 is not True, 2 is not 2.0, and NaN is
    nothing's equal."""
    if type(value) is not type(expected) or isinstance(value, Raised):
        return False
    if isinstance(value, list):
        return len(value) == len(expected) and all(map(same, value, expected))
    if isinstance(value, dict):
        return value.keys() == expected.keys() and all(same(value[k], expected[k]) for k in value)
    return value == expected


@functools.cache
def readable() -> list[tuple[str, bool]]:
    """What a program may read, (path, whether also the content): the standard library without
    site-packages, and the shared libraries that its modules load."""
    library, beside = Path(sysconfig.get_path("stdlib")), Path(sys.base_prefix, "lib")
    files = [f for f in library.iterdir() if f.name not in ("site-packages", "dist-packages")]
    files += beside.glob("lib*.so*")
    system = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")
    files += map(Path, system)
    return [(str(library), False), *((str(path), True) for path in files if path.exists())]


PROBES = {"landlock": "open('/proc/self/environ')", "seccomp": "import os; os.kill(os.getpid(), 0)"}


@functools.cache
def available() -> dict[str, bool]:
    """Whether each layer holds here, as seen by a program that does what it denies."""
    holds = {}
    for layer, act in PROBES.items():
        source = f"def f():\n try:\n  {act}\n except PermissionError:\n  return True"
        try:
            with starter([layer]) as control:
                outcome = run_program(control, source, "f", [[]], 10.0, 256, 64)
            holds[layer] = outcome.values == [True]
        except (RuntimeError, OSError):
            holds[layer] = False
    return holds


def main(programs: int = 64, repeats: int = 10) -> None:
    print(*(f"{layer}: {'holds' if holds else 'MISSING'}" for layer, holds in available().items()))
    for imports in ("", "import collections, heapq, itertools, math, re"):
        source = f"{imports}\ndef f(n):\n    return sorted(range(n))"
        batch, walls, before = [(source, "f", [[n] for n in range(10)])] * programs, [], os.times()
        for _ in range(repeats):
            start = time.perf_counter()
            states = {outcome.state for outcome in Sandbox("weak").run(batch)}
            walls.append(time.perf_counter() - start)
        cpu = (sum(os.times()[:4]) - sum(before[:4])) / programs / repeats
        spread = f"{min(walls):.2f} to {max(walls):.2f} s, {cpu * 1000:.1f} ms of CPU a program"
        print(f"{programs} programs of 10 calls: {spread}, {', '.join(states)}; {imports}")


if __name__ == "__main__":
    with cli.user_errors():
        main()
