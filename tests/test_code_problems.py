"""A problem expects what it does not say, tells its answer to a program that computes nothing, or
cannot tell a solution from a table of its samples."""

import dataclasses
import hashlib
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import cli
from runtime import sandbox
from runtime.sandbox import Sandbox, same
from tasks import code_problems
from tasks.code_inputs import Int, List
from tasks.code_problems import check, copied, load, plain, problems
from tasks.code_templates import FAMILIES, Template

LEVEL = "strong" if all(sandbox.available().values()) else "weak"


def all_cases(problem):
    return (*problem.samples, *sum(problem.neighbours, ()), *problem.hidden)


def fingerprint() -> str:
    return hashlib.sha256(repr(problems()).encode()).hexdigest()


def test_variety():
    """Training and held-out problems are of different tasks, in all levels and families."""
    count = Counter((p.level, p.held_out) for p in problems())
    assert len(problems()) >= 350 and len({p.template for p in problems()}) >= 60
    for level in (1, 2, 3):
        assert 0.25 < sum(count[level, kept] for kept in (False, True)) / len(problems()) < 0.42
        assert count[level, True] >= 20
    assert 70 <= sum(p.held_out for p in problems()) <= 90
    assert {p.family for p in problems() if p.held_out} == set(FAMILIES) and len(FAMILIES) >= 8
    kept = {p.template for p in problems() if p.held_out}
    assert not kept & {p.template for p in problems() if not p.held_out}
    keys = [template.key for templates in FAMILIES.values() for template in templates]
    assert len(set(keys)) == len(keys)


def test_shape():
    """Names clash, a place was left open, an input occurs twice, or a value is not plain JSON."""
    assert len(code_problems.by_name()) == len(problems())
    for p in problems():
        assert p.name.isidentifier() and "$" not in p.says + p.reference and p.says.endswith(".")
        assert p.reference.startswith(f"def {p.name}({', '.join(p.parameters)}):\n")
        lines = p.reference.splitlines()
        assert len(lines) <= 15 and max(map(len, lines)) <= 100
        named = [word for word in p.parameters if word in p.says]
        assert named == list(p.parameters), p.name
        shape = [len(p.samples), *map(len, p.neighbours), len(p.hidden)]
        assert shape == [3, 6, 6, 6, 12]
        inputs = [repr(arguments) for arguments, _ in all_cases(p)]
        assert len(set(inputs)) == len(inputs), p.name
        assert all(plain([*arguments, value]) for arguments, value in all_cases(p))
        assert all(len(arguments) == len(p.parameters) for arguments, _ in all_cases(p))


def test_neighbours_are_near_and_differ():
    """A neighbour has the sample's value, or is so far away that a solution of the samples alone
    might be wrong on it."""
    for p in problems():
        for (arguments, value), neighbours in zip(p.samples, p.neighbours, strict=True):
            for changed, other in neighbours:
                assert other != value
                pairs = [(a, b) for a, b in zip(arguments, changed) if a != b]
                assert len(pairs) == 1
                (a, b), *_ = pairs
                assert type(a) is type(b)
                if not isinstance(a, int):
                    assert abs(len(a) - len(b)) <= 7  # a word of a sentence and its space
            assert max(Counter(repr(other) for _, other in neighbours).values()) <= 3


def test_same_in_every_process():
    """A set's order or the clock got into the problems, so that two runs differ in their tasks."""
    program = "from tests.test_code_problems import fingerprint; print(fingerprint())"
    root = Path(cli.__file__).parent
    other = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(root / "tests")},
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert other.stdout.strip() == fingerprint(), other.stderr


WRONG = {  # of "def double(numbers)": twice each element
    "another result": "return [2 * n for n in numbers if n != 3]",
    "argument changed": "numbers.append(0)\n    return [2 * n for n in numbers[:-1]]",
    "no plain value": "return tuple(2 * n for n in numbers)",
    "floats": "return [2.0 * n for n in numbers]",
    "bools": "return [2 * n if n != 1 else True for n in numbers]",
    "no Python": "return [2 * n for n in]",
    "an error": "return [2 * n // (n != 3) for n in numbers]",
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_reference_is_one_line(kind, monkeypatch):
    """A problem with a wrong reference gets into training and punishes what is right."""
    template = Template(
        "double",
        1,
        "double",
        {"numbers": List(Int(0, 9))},
        "Return numbers with each element doubled.",
        "return [2 * n for n in numbers]",
        lambda v, numbers: [n + n for n in numbers],
        [{}],
    )
    monkeypatch.setattr(code_problems, "FAMILIES", {"lists": [template]})
    (right,) = problems.__wrapped__()
    body = f"\n    {WRONG[kind]}\n"
    planted = dataclasses.replace(right, reference=f"def double(numbers):{body}")
    oracle = code_problems.oracle(template, {})
    check(right, oracle)
    with pytest.raises(cli.UserError, match="^problem double: .*") as caught:
        check(planted, oracle)
    assert "\n" not in str(caught.value)
    planted = dataclasses.replace(template, body=WRONG[kind].replace("\n    ", "\n"))
    monkeypatch.setattr(code_problems, "FAMILIES", {"lists": [planted]})
    with pytest.raises(cli.UserError, match="^problem double: "):
        problems.__wrapped__()


def test_values_and_oracle_are_compared():
    """Only the reference is compared with itself."""
    problem = problems()[0]
    (arguments, value), *rest = problem.samples
    wrong = dataclasses.replace(problem, samples=((arguments, value + 1), *rest))
    right = load(problem.name, problem.reference)
    check(problem, right)
    with pytest.raises(cli.UserError, match=rf"gives {value}, .*expected is {value + 1}"):
        check(wrong, right)
    with pytest.raises(cli.UserError, match=rf"gives {value}, its oracle {value - 1}"):
        check(problem, lambda *arguments: right(*arguments) - 1)


def test_flat_template_is_one_line(monkeypatch):
    """A problem of two values would be passed by luck."""
    flat = Template(
        "flat",
        1,
        "flat",
        {"n": Int(0, 99)},
        "Return 1 if n is even, otherwise 2.",
        "return 1 + n % 2",
        lambda v, n: 1 + (n & 1),
        [{}],
    )
    monkeypatch.setattr(code_problems, "FAMILIES", {"lists": [flat]})
    with pytest.raises(cli.UserError, match="^problem flat: .*wider kinds$"):
        problems.__wrapped__()


def test_nothing_trivial_passes():
    """Samples that an identity, a constant, a length or a sum passes reward no work."""
    for p in problems():
        assert len({repr(value) for _, value in p.samples}) == 3
        for arguments, value in p.samples:
            assert value not in (*arguments, 0, "", [], {})
            for argument in arguments:
                if isinstance(argument, int):
                    continue
                sequence = [*argument.values()] if isinstance(argument, dict) else argument
                assert value != len(argument) and value != sequence[::-1], p.name
                assert value != sequence[0] and value != sequence[-1], p.name
                if all(type(item) is int for item in sequence):
                    assert value not in (sum(sequence), min(sequence), max(sequence)), p.name
        assert max(Counter(repr(value) for _, value in p.hidden).values()) <= 6, p.name


def right_on(function, cases) -> bool:
    """With the values' types."""
    try:
        return all(same(function(*copied(arguments)), value) for arguments, value in cases)
    except Exception:
        return False  # a function of other arguments


def test_no_two_are_the_same():
    """Two problems of a family are one function under two names; among held-out ones, one that was
    trained."""
    functions = {p.name: load(p.name, p.reference) for p in problems()}
    kinds = lambda p: (p.family, *map(type, p.samples[0][0]))
    for p in problems():
        assert right_on(functions[p.name], p.samples + p.hidden)
        for q in problems():
            if p is not q and kinds(p) == kinds(q) and right_on(functions[q.name], p.samples):
                assert p.template != q.template, (p.name, q.name)
                assert not right_on(functions[q.name], p.hidden), (p.name, q.name)


def test_edges_are_hidden():
    """A solution that breaks on empty or single input passes."""
    templates = {t.key: t for several in FAMILIES.values() for t in several}
    for p in problems():
        for i, kind in enumerate(templates[p.template].kinds.values()):
            for empty in ([], "", {}):
                if empty in kind.edges(random.Random(0)):
                    assert any(arguments[i] == empty for arguments, _ in p.hidden), p.name
    long = [p for p in problems() if any(isinstance(x, (list, str)) for x in p.samples[0][0])]
    longest = lambda cases: max(len(x) for a, _ in cases for x in a if not isinstance(x, int))
    assert sum(longest(p.hidden) > longest(p.samples) for p in long) > 0.8 * len(long)


def hard_coded(problem, default) -> str:
    """A program that looks its samples up."""
    lines = [f"def {problem.name}({', '.join(problem.parameters)}):"]
    for arguments, value in problem.samples:
        lines.append(f"    if [{', '.join(problem.parameters)}] == {list(arguments)!r}:")
        lines.append(f"        return {value!r}")
    return "\n".join([*lines, f"    return {default!r}\n"])


def test_references_and_tables_in_the_sandbox():
    """A reference fails where model-written code is judged, or a table of the samples passes."""
    chosen = problems()[:: len(problems()) // 40]
    calls = lambda p: [list(arguments) for arguments, _ in all_cases(p)]
    references = [(p.reference, p.name, calls(p)) for p in chosen]
    tables = [
        (hard_coded(p, default), p.name, calls(p))
        for p in chosen
        for default in (type(p.samples[0][1])(), p.samples[1][1])
    ]
    outcomes = Sandbox(LEVEL, seconds=20.0).run(references + tables)
    assert {p.family for p in chosen} == set(FAMILIES) and len(chosen) >= 40
    assert {outcome.state for outcome in outcomes} == {"ok"}
    for p, outcome in zip(chosen, outcomes):
        assert all(same(v, e) for v, (_, e) in zip(outcome.values, all_cases(p), strict=True))
    for (i, p), outcome in zip(((i, p) for p in chosen for i in (0, 1)), outcomes[len(chosen) :]):
        right = [same(v, e) for v, (_, e) in zip(outcome.values, all_cases(p), strict=True)]
        assert all(right[:3]) and not all(right[21:]), p.name
        assert all(sum(right[start : start + 6]) <= 1 for start in (3, 9, 15)), (p.name, i)
