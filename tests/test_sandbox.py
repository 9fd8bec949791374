"""Model-written code gets out of the sandbox, learns an expected value, passes without one, lives
on, or harms the process that judges it. The programs are in handmade_escapes.py."""

import ctypes
import ctypes.util
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cli
import handmade_escapes
from runtime import sandbox, sandbox_child
from runtime.sandbox import Raised, Sandbox, outcome, parse, same

REPOSITORY = Path(cli.__file__).parent
SECRET = "secret-" + os.urandom(8).hex()  # what every escape should have answered
LEVELS = ["strong", "weak"]
MISSING = [layer for layer, holds in sandbox.available().items() if not holds]
needs_strong = pytest.mark.skipif(bool(MISSING), reason=f"no strong level here, without {MISSING}")


def programs(text: str) -> dict[str, str]:
    """{head: program}"""
    parts = re.split(r"^### (.*)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


ESCAPES = programs(handmade_escapes.ESCAPES)
EXHAUSTING = programs(handmade_escapes.EXHAUSTING)


class World:
    """Outside: a run folder, a folder open to all, sockets that listen, and SECRET in a file, in an
    open descriptor that is inherited, in this process's environment and in its memory."""

    def __init__(self, folder: Path):
        self.run, self.outside, self.candidates = folder / "run", folder / "out", folder / "in"
        for path in (self.run, self.outside, self.candidates):
            path.mkdir()
        (self.run / "expected.json").write_text(json.dumps([SECRET]))
        (self.run / "tests.py").write_text(f"EXPECTED = {SECRET!r}")
        (self.run / "log.jsonl").write_text("a line\n")
        self.inherited = os.open(self.run / "expected.json", os.O_RDONLY)
        os.set_inheritable(self.inherited, True)
        self.buffer = ctypes.create_string_buffer(SECRET.encode())
        self.tcp, self.udp = (
            socket.create_server(("127.0.0.1", 0)),
            socket.socket(type=socket.SOCK_DGRAM),
        )
        self.udp.bind(self.tcp.getsockname())
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(str(folder / "unix"))
        self.unix.listen()
        self.signals = []
        self.handler = signal.signal(signal.SIGUSR1, lambda *caught: self.signals.append(caught))
        mark = f"mark-{os.getpid()}"
        self.marks = [Path("/tmp", mark), Path("/dev/shm", mark), Path.home() / mark]
        self.names = {
            "RUN": self.run,
            "OUTSIDE": self.outside,
            "UNIX": folder / "unix",
            "MARK": mark,
        }
        self.names |= {"HOME": Path.home(), "REPO": REPOSITORY, "PYTEST": pytest.__file__}
        self.names |= {"PID": os.getpid(), "PORT": self.tcp.getsockname()[1], "NULL": "\0"}
        self.names |= {
            "WHERE": ctypes.addressof(self.buffer),
            "RESULT": 3,
        }  # the channel's descriptor
        self.names |= {"DEEP": "(" * 5_000 + ")" * 5_000}
        self.before = self.look()

    def source(self, program: str) -> str:
        """With the prelude, and with what stands for each @NAME."""
        source = handmade_escapes.PRELUDE + program
        return re.sub(r"@([A-Z]+)", lambda match: str(self.names[match[1]]), source)

    def look(self) -> dict:
        """All that a program could have changed."""
        files = [path for top in (self.run, self.outside) for path in (top, *top.rglob("*"))]
        marks = ((path, path.lstat()) for path in files)
        return {
            "files": {str(path): (s.st_mode, s.st_size, s.st_mtime_ns) for path, s in marks},
            "candidates": list(self.candidates.iterdir()),
            "marks": [path for path in self.marks if path.exists()],
            "sockets": select.select([self.tcp, self.udp, self.unix], [], [], 0)[0],
            "signals": list(self.signals),
            "alive": living_in(self.candidates),
        }

    def close(self) -> None:
        signal.signal(signal.SIGUSR1, self.handler)
        os.close(self.inherited)
        for path in self.marks:
            path.unlink(missing_ok=True)
        for listening in (self.tcp, self.udp, self.unix):
            listening.close()


def living_in(folder: Path) -> list[int]:
    """The processes whose working folder is below `folder`, also when that is gone."""
    alive = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            inside = os.readlink(process / "cwd").startswith(str(folder))
        except OSError:
            continue
        alive += [int(process.name)] * inside
    return alive


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPECTED", SECRET)
    world = World(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(world.candidates))
    yield world
    world.close()


@pytest.fixture
def without_kernel(monkeypatch):
    """A machine without Landlock and seccomp."""
    monkeypatch.setattr(sandbox, "available", lambda: {"landlock": False, "seccomp": False})


@pytest.fixture(params=LEVELS)
def level(request) -> str:
    """The weak level as on a machine that has no more than that."""
    if request.param == "strong" and MISSING:
        pytest.skip(f"no strong level here, without {MISSING}")
    if request.param == "weak":
        request.getfixturevalue("without_kernel")
    return request.param


def changed(world: World) -> list[str]:
    after = world.look()
    return [name for name in after if after[name] != world.before[name]]


@pytest.mark.slow
@needs_strong
@pytest.mark.parametrize("head", ESCAPES)
def test_nothing_gets_out(world, head):
    """A program answers with the expected value, or something outside changes."""
    result = Sandbox().run([(world.source(ESCAPES[head]), "f", [[3]])])[0]
    assert not any(same(value, SECRET) for value in result.values)
    plain = {type(None), bool, int, str, list, dict, Raised}
    assert {type(value) for value in result.values} <= plain
    assert changed(world) == []


@pytest.mark.slow
@pytest.mark.parametrize("head", [head for head in ESCAPES if head.endswith("!")])
def test_the_escapes_would_get_out(world, without_kernel, head):
    """An escape tests nothing: it would not get out either if nothing held it."""
    result = Sandbox("weak").run([(world.source(ESCAPES[head]), "f", [[3]])])[0]
    assert any(same(value, SECRET) for value in result.values) or changed(world)


@pytest.mark.slow
@pytest.mark.parametrize("head", EXHAUSTING)
def test_time_and_space_are_bounded(world, level, head):
    """A program takes more than it may, or what it did is not told apart."""
    name, states = re.fullmatch(r"(.*) \((.*)\)", head).groups()
    seconds = 0.3 if "timeout" in states else 10.0
    result = Sandbox(level, seconds).run([(world.source(EXHAUSTING[head]), "f", [[3]])])[0]
    assert result.state in states.split() and result.detail.isprintable()
    assert not [value for value in result.values if not isinstance(value, Raised)]
    assert changed(world) == []


HELD = """frames|gc|environment|every descriptor read|every descriptor as a socket|always equal
equal string|builtins overwritten|json overwritten|harness overwritten|printed verdict|exit 0|atexit
exit 0 in a call|verdict on every descriptor|descriptors closed|exit after a forged end|forged start
interrupt"""


@pytest.mark.slow
@pytest.mark.parametrize("head", re.split(r"[|\n]", HELD))
def test_the_weak_level_holds_what_it_promises(world, without_kernel, head):
    """Without any help of the kernel, the process that runs a program holds an expected value."""
    result = Sandbox("weak").run([(world.source(ESCAPES[head]), "f", [[3]])])[0]
    assert not any(same(value, SECRET) for value in result.values) and changed(world) == []


def test_the_strong_level_is_refused_where_it_does_not_hold(without_kernel):
    """Code runs with less around it than was asked for."""
    with pytest.raises(cli.UserError, match="landlock and seccomp.*--sandbox weak"):
        Sandbox("strong")
    with pytest.raises(cli.UserError, match="choose strong or weak"):
        Sandbox("none")


@pytest.mark.slow
@pytest.mark.parametrize("command", [["false"], [sys.executable, "-c", "input()"]])
def test_a_process_that_does_not_start_is_no_verdict(monkeypatch, command):
    """A machine out of memory or processes makes right programs wrong."""
    monkeypatch.setattr(sandbox, "COMMAND", command)
    monkeypatch.setattr(sandbox, "START_SECONDS", 1.0)
    with pytest.raises((RuntimeError, BrokenPipeError)):  # the latter while it is being started
        Sandbox("weak").run([("def f(x): return x", "f", [[3]])])


@pytest.mark.slow
def test_a_starter_that_a_program_kills_is_no_verdict(without_kernel):
    """At the weak level a program ends what starts the others, and they count as wrong."""
    source = "import os\ndef f(x):\n    os.kill(os.getppid(), 9)\n    return x"
    with pytest.raises(RuntimeError, match="has ended"):
        Sandbox("weak", workers=1).run([(source, "f", [[3]])] * 2)


@pytest.mark.slow
def test_limits_that_cannot_be_set_are_no_verdict(monkeypatch, tmp_path):
    """A program runs although a limit failed."""
    source = Path(sandbox_child.__file__).read_text()
    broken = tmp_path / "child.py"
    broken.write_text(source.replace('call("prctl", 22', 'call("prctl", 9999'))
    monkeypatch.setattr(sandbox, "COMMAND", [*sandbox.COMMAND[:-1], str(broken)])
    monkeypatch.setattr(sandbox, "available", lambda: {"landlock": False, "seccomp": True})
    with pytest.raises(RuntimeError, match="prctl: Invalid argument"):
        Sandbox("weak").run([("def f(x): return x", "f", [[3]])])


@pytest.mark.slow
def test_answers_come_in_order_and_each_call_counts(level):
    """Answers are mixed up between programs or calls, or one failure takes the others with it."""
    sources = [f"def f(x):\n    return [{n}, 6 // x]" for n in range(9)]
    results = Sandbox(level).run([(source, "f", [[1], [0], [2]]) for source in sources])
    for n, result in enumerate(results):
        first, second, third = result.values
        assert (result.state, first, third) == ("error", [n, 6], [n, 3])
        assert second == Raised("error", "ZeroDivisionError: integer division or modulo by zero")
    hangs = ("def f(x):\n    while x: pass\n    return x", "f", [[0], [1], [0]])
    (partial,) = Sandbox(level, seconds=0.3).run([hangs])
    assert (partial.state, partial.values) == ("timeout", [0])
    assert Sandbox(level).run([]) == []


@pytest.mark.slow
def test_nothing_lasts(level):
    """A program, or a call by its arguments, changes what the next one gets."""
    shared = [1, 2]
    spoil = "import math, json\nmath.floor = json.x = 7\n"
    spoil += "def f(x):\n    y = list(x)\n    x.clear()\n    return y"
    look = "import math, json\ndef f(x):\n    return [x, math.floor(2.5), hasattr(json, 'x')]"
    programs = [(spoil, "f", [[shared], [shared]]), (look, "f", [[shared], [shared]])] * 3
    for spoiled, seen in zip(*[iter(Sandbox(level, workers=1).run(programs))] * 2):
        assert spoiled.values == [[1, 2]] * 2 and seen.values == [[[1, 2], 2, False]] * 2
    assert shared == [1, 2]


@pytest.mark.slow
@needs_strong
def test_no_program_finds_another(world):
    """A worker keeps a program or its answer in memory, where the next one may look."""
    knows = f"x = {SECRET!r}\ndef f(x):\n    return globals()['x']"
    looks = "def f(x):\n    return hunt([str(o) for o in gc.get_objects()] + [sys.modules])"
    results = Sandbox(workers=1).run([(world.source(p), "f", [[3]]) for p in (knows, looks)])
    assert [result.values for result in results] == [[SECRET], [None]]


@pytest.mark.slow
@needs_strong
def test_ordinary_programs_run():
    """The sandbox denies what plain code needs: modules, printing, the library's own files."""
    names = """abc array base64 bisect calendar cmath collections copy csv ctypes dataclasses
    datetime decimal difflib enum fractions functools hashlib heapq hmac io itertools json logging
    math numbers operator os pathlib pickle pprint queue random re secrets statistics string struct
    sys textwrap threading time timeit traceback types typing unicodedata unittest uuid warnings
    xml.etree.ElementTree zlib zoneinfo"""
    source = "".join(f"import {name}\n" for name in names.split()) + (
        "@dataclasses.dataclass\nclass Point:\n    x: 'int'\n"
        "def f(x):\n    print('working'); time.sleep(.001); random.random()\n"
        "    zone = zoneinfo.ZoneInfo('UTC') if zoneinfo.available_timezones() else None\n"
        "    return [hashlib.sha256(b'').hexdigest()[:4], str(decimal.Decimal(x)), Point(x).x]\n"
    )
    result = Sandbox(seconds=20.0).run([(source, "f", [[3]])])[0]
    assert (result.state, result.values) == ("ok", [["e3b0", "3", 3]]), result


@pytest.mark.slow
def test_a_set_has_one_order(level):
    """A program that lists a set is right in one run and wrong in the next."""
    source = "def f():\n    return list({'a', 'b', 'c', 'd', 'e', 'f', 'g'})"
    results = [Sandbox(level).run([(source, "f", [[]])])[0].values for _ in range(3)]
    assert results[0] == results[1] == results[2]


PLAIN = [
    None,
    True,
    0,
    -7,
    10**4000,
    0.1,
    float("inf"),
    "",
    'é"\\\n\x00😀',
    [],
    {},
    [[1.5, {"a": [None]}]],
]


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: repr(value)[:20])
def test_plain_values_come_back_as_they_are(value):
    """An answer changes on its way: in type, in a character, in the last digit."""
    state, text = "ok", sandbox_child.encode(value)
    assert same(parse(f'["{state}",{text}]'.encode()), value)


NOT_PLAIN = [{1, 2}, {1: 2}, b"x", object(), 1j, range(3), [set()], {"a": {(): 1}}]


@pytest.mark.parametrize("value", NOT_PLAIN, ids=lambda value: type(value).__name__)
def test_what_is_not_plain_is_no_answer(value):
    """{1: 2} and {"1": 2} are one answer, or an object is judged by its text."""
    with pytest.raises(TypeError, match="is no plain value"):
        sandbox_child.encode(value)
    assert sandbox_child.encode((1, (True, "a"))) == '[1,[true,"a"]]'


LINES = [
    b"", b"ok", b"7", b"[]", b"null", b'["ok"]', b'["ok",1,2]', b'["passed",1]', b'{"ok":1}',
    b'[["ok"],1]', b'["error",7]', b'["timeout","x"]', b"\xff\xfe", b'["ok",1]["ok",1]',
    b'["ok",0x1]', b'["ok","\\ud800"]', b'["ok",{"\\udfff":1}]', b'["error",["\x1b"]]',
    b'["ok",' + b"[" * 99_999, b'["ok",' + b"9" * 9_999 + b"]",
    b'["ok",' + b"[" * 65 + b"]" * 65 + b"]", b'["ok",' + b'{"a":' * 90 + b"1" + b"}" * 90 + b"]",
    b'["error","\\ud800\\u001b[31m"]',
]  # fmt: skip


@pytest.mark.parametrize("line", LINES, ids=lambda line: repr(line)[:24])
def test_a_hostile_line_is_no_answer(line):
    """A line raises in the process that judges, now or when its value is logged or compared."""
    value = parse(line)
    assert isinstance(value, Raised) and value.state != "ok" and value.detail.isprintable()
    assert not same(value, value) and not same(value, None)


def test_equal_is_equal_in_type():
    """True passes for 1, 2.0 for 2, or nan for anything."""
    kinds = [
        1,
        True,
        1.0,
        "1",
        None,
        [1],
        {"1": 1},
        [True],
        [1.0],
        {"1": True},
        {"1": 1, "2": 2},
        [1, 1],
    ]
    assert all(same(a, b) == (i == j) for i, a in enumerate(kinds) for j, b in enumerate(kinds))
    assert not same(float("nan"), float("nan")) and not same((1,), [1])
    assert same(parse(b'["ok",{"a":1,"a":2}]'), {"a": 2})


def test_more_lines_than_calls_say_nothing():
    """Lines past the last call, or one that is cut short, become answers; an early end passes."""
    lines = b'["ok",1]\n["ok",2]\n["ok",3]\n'
    assert outcome(lines, 2, "", 0, 0.0).values == [1, 2]
    assert outcome(lines[:-1], 3, "", 0, 0.0).state == "error"
    assert outcome(b"", 1, "", 0, 0.0).state == "error"
    assert outcome(lines, 3, "", -9, 0.0).state == "ok"
    assert outcome(lines, 4, "", -9, 0.0).state == "killed"
    assert outcome(lines, 3, "timeout", -9, 0.0).state == "timeout"


@pytest.mark.slow
def test_deep_folders_do_not_stop_the_trainer(without_kernel):
    """What a program leaves in its folder cannot be removed, and that error ends the run."""
    source = "import os\ndef f(n):\n    for _ in range(n): os.mkdir('d'); os.chdir('d')"
    assert Sandbox("weak").run([(source, "f", [[1_200]])])[0].values == [None]


@pytest.mark.slow
def test_programs_die_with_the_trainer(tmp_path):
    """A trainer is killed, and what it had started runs on."""
    code = (
        "import tempfile; from runtime.sandbox import Sandbox; tempfile.tempdir = {!r}\n"
        "Sandbox('weak', seconds=99.0).run([('while True: pass', 'f', [[]])] * 2)"
    )
    command = [sys.executable, "-c", code.format(str(tmp_path))]
    with subprocess.Popen(command, cwd=REPOSITORY) as trainer:
        wait_until(lambda: len(living_in(tmp_path)) == 4)
        trainer.kill()
    wait_until(lambda: not living_in(tmp_path))


@pytest.mark.slow
def test_a_program_whose_starter_is_dead_does_not_start():
    """The starter is killed before its death would take the program along."""
    code = "import sandbox_child\nsandbox_child.limit(9, 1 << 30, parent=-1)\nprint('alive')"
    place = {"cwd": Path(sandbox_child.__file__).parent, "capture_output": True}
    done = subprocess.run([sys.executable, "-S", "-c", code], **place)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


@pytest.mark.slow
def test_no_file_grows(world, without_kernel):
    """The weak level lets a program fill the disk."""
    source = "def f(x):\n    with open('file', 'wb', buffering=0) as file: file.write(b'1')"
    assert "File too large" in Sandbox("weak").run([(source, "f", [[3]])])[0].detail


def wait_until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("machine", sandbox_child.ARCHITECTURES)
def test_numbers_of_system_calls(machine):
    """The list lets another call through than it names, on a machine that no test ran on."""
    if not (name := ctypes.util.find_library("seccomp")):
        pytest.skip("libseccomp, which knows the numbers, is not installed")
    library = ctypes.CDLL(name)
    column, architecture = sandbox_child.ARCHITECTURES[machine]
    calls = sandbox_child.SYSCALLS | {"openat": sandbox_child.OPENAT}
    for name, numbers in calls.items():
        token = ctypes.c_uint32(architecture)
        found = library.seccomp_syscall_resolve_name_arch(token, name.encode())
        assert found == numbers[column], name
