"""Small programming problems with reference solutions, made from the templates of
code_templates.py.

    python -m tasks.code_problems      how many there are, by family and level

A template is a task with open places; each way to fill them is a problem. Training and held-out
problems share no template. Every value that a problem expects has been computed in two ways: by
its reference, the Python text that a solution may look like, and by an oracle that is written
another way. Levels are guesses at a model of 0.5B: 1 it mostly solves, 2 sometimes, 3 rarely.

**Samples** are public. No trivial program (TRIVIAL: an argument itself, its length, first element,
sum, ...) is right on any of them, and their three values differ, so no constant is either.

**Neighbours** of a sample differ from it in one place and in their result. A program that looks
samples up is right on a sample and wrong on its neighbours, whatever else it returns: of six
neighbours at most one has the value of a sample or an empty one (0, "", []), and at most three
have the same value. That tells hard-coding without reading a program.

**Hidden** inputs begin with the edges of what is allowed: empty, one element, all equal, long.
"""

import copy
import functools
import json
import random
import string
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from types import SimpleNamespace

import cli
from tasks.code_templates import FAMILIES, Piece, Template

SAMPLES, NEIGHBOURS, HIDDEN = 3, 6, 12
EDGES = 7  # of the hidden inputs, at most
TRIES = 100  # inputs that are drawn for the samples, or for one's neighbours
ROUNDS = 30  # of samples, until all have neighbours

Case = tuple[tuple, object]  # (arguments, expected)


@dataclass(frozen=True)
class Problem:
    name: str  # of the function
    family: str
    template: str  # its cluster
    level: int  # 1, 2 or 3
    held_out: bool
    says: str  # the specification, complete
    parameters: tuple[str, ...]
    reference: str  # Python source of the function
    samples: tuple[Case, ...]
    neighbours: tuple[tuple[Case, ...], ...]  # of each sample
    hidden: tuple[Case, ...]


@functools.cache
def problems() -> tuple[Problem, ...]:
    """All problems, the same in every process. UserError if a reference is wrong."""
    made = []
    for family, templates in FAMILIES.items():
        for template in templates:
            for variant in template.variants:
                problem, oracle = build(family, template, variant)
                check(problem, oracle)
                made.append(problem)
    return tuple(made)


@functools.cache
def by_name() -> dict[str, Problem]:
    return {problem.name: problem for problem in problems()}


def build(family: str, template: Template, variant: dict) -> tuple[Problem, Callable]:
    """The problem, its values from its reference, and its oracle."""
    fields, parts = {}, {}
    for key, value in variant.items():
        if isinstance(value, Piece):
            fields |= {f"{key}_name": value.name, key: value.says, f"{key}_code": value.code}
            parts[key] = value.oracle
        else:
            fields[key] = parts[key] = value
    once = lambda text: string.Template(text).substitute(fields)
    fill = lambda text: once(once(text))  # a piece may have open places itself
    name, parameters = fill(template.name).replace("-", "minus_"), tuple(template.kinds)
    body = textwrap.indent(textwrap.dedent(fill(template.body)).strip("\n"), "    ")
    source = f"def {name}({', '.join(parameters)}):\n{body}\n"
    cases = choose(name, load(name, source), tuple(template.kinds.values()))
    level, held_out = template.level, template.held_out
    texts = (fill(template.says), parameters, source)
    problem = Problem(name, family, template.key, level, held_out, *texts, *cases)
    return problem, functools.partial(template.oracle, SimpleNamespace(**parts))


def load(name: str, source: str) -> Callable:
    """The function of our own source text."""
    names = {}
    exec(compile(source, f"<reference {name}>", "exec"), names)
    return names[name]


def choose(name: str, function: Callable, kinds: tuple) -> tuple:
    """(samples, neighbours of each, hidden) with the values that the function gives."""
    rng = random.Random(f"inputs of {name}")
    run = functools.partial(evaluate, name, function)
    for _ in range(ROUNDS):
        samples = draw_samples(rng, run, kinds)
        values = [value for _, value in samples]
        taken = {repr(arguments) for arguments, _ in samples}
        neighbours = [draw_neighbours(rng, run, kinds, case, values, taken) for case in samples]
        if len(samples) == SAMPLES and all(len(cases) == NEIGHBOURS for cases in neighbours):
            hidden = draw_hidden(rng, run, kinds, taken)
            if len(hidden) == HIDDEN:
                return tuple(samples), tuple(neighbours), hidden
    raise cli.UserError(f"problem {name}: its inputs or values are too few, choose wider kinds")


def draw_samples(rng: random.Random, run: Callable, kinds: tuple) -> list[Case]:
    """Three of different, short and telling values, if there are."""
    found = {}
    for _ in range(TRIES):
        arguments = tuple(kind.make(rng) for kind in kinds)
        value = run(arguments)
        shown = text(value)
        if value and len(shown) <= 100 and shown not in trivial(arguments):
            found.setdefault(shown, (arguments, value))
        if len(found) == SAMPLES:
            break
    return list(found.values())


def draw_neighbours(
    rng: random.Random, run: Callable, kinds: tuple, sample: Case, values: list, taken: set
) -> tuple[Case, ...]:
    """Six inputs, if there are, that differ from the sample in one place, and in their value. Adds
    to `taken`."""
    found, seen, spared = [], Counter(), 0
    for attempt in range(TRIES):
        at = rng.randrange(len(kinds))
        changed = kinds[at].near(rng, sample[0][at])
        arguments = (*sample[0][:at], changed, *sample[0][at + 1 :])
        if repr(arguments) in taken:
            continue
        value = run(arguments)
        lucky = not value or value in values  # what a look-up may return by chance
        often = seen[text(value)] >= (3 if attempt > TRIES // 3 else 1)
        if value == sample[1] or often or lucky and spared:
            continue
        taken.add(repr(arguments))
        seen[text(value)] += 1
        spared += lucky
        found.append((arguments, value))
        if len(found) == NEIGHBOURS:
            break
    return tuple(found)


def draw_hidden(rng: random.Random, run: Callable, kinds: tuple, taken: set) -> tuple[Case, ...]:
    """Twelve inputs that are not in `taken`: some edges first, then others, of different values as
    far as can be had."""
    found, seen = [], Counter()
    for number, arguments in enumerate(islice(hidden_inputs(rng, kinds), HIDDEN * TRIES)):
        if repr(arguments) in taken:
            continue
        value = run(arguments)
        if number >= EDGES and seen[text(value)] > number // 100:
            continue
        taken.add(repr(arguments))
        seen[text(value)] += 1
        found.append((arguments, value))
        if len(found) == HIDDEN:
            break
    return tuple(found)


def hidden_inputs(rng, kinds: tuple) -> Iterator[tuple]:
    """At most EDGES with an edge in one argument, then without end any others."""
    edges = [(at, edge) for at, kind in enumerate(kinds) for edge in kind.edges(rng)]
    for at, edge in rng.sample(edges, EDGES) if len(edges) > EDGES else edges:
        yield tuple(edge if at == i else kind.make(rng) for i, kind in enumerate(kinds))
    while True:
        yield tuple(kind.make(rng) for kind in kinds)


TRIVIAL = {
    int: (lambda n: n, lambda n: -n, lambda n: n * n, lambda n: n + 1, lambda n: n - 1, str),
    str: (str, len, str.upper, str.lower, lambda s: s[::-1], lambda s: s[:1], lambda s: s[-1:])
    + (str.split, lambda s: "".join(sorted(s)), lambda s: len(s.split()), lambda s: s[1:]),
    list: (list, len, lambda s: s[:1], lambda s: s[-1:], lambda s: s[0], lambda s: s[-1])
    + (lambda s: s[::-1], sorted, min, max, lambda s: sorted(s)[::-1], lambda s: sorted(set(s))),
    dict: (dict, len, list, sorted, lambda d: list(d.values()), lambda d: sorted(d.values())),
}


def trivial(arguments: tuple) -> set[str]:
    """text() of what programs return that do nearly nothing."""
    values = []
    for argument in arguments:
        for program in TRIVIAL[type(argument)]:
            try:
                values.append(program(argument))
            except (TypeError, IndexError, ValueError):
                pass  # no such program for this list: set() of lists, max() of none
        if isinstance(argument, list) and all(type(item) is int for item in argument):
            values.append(sum(argument))
    return set(map(text, values))


def evaluate(name: str, function: Callable, arguments: tuple):
    """UserError if our own function raises, changes its arguments or returns no plain value."""
    given, before = copy.deepcopy(arguments), repr(arguments)
    try:
        value = function(*given)
    except Exception as error:
        raise cli.UserError(f"problem {name}: {before} raises {error!r}") from error
    if repr(given) != before:
        raise cli.UserError(f"problem {name}: changes its arguments {before} to {given}")
    if not plain(value):
        raise cli.UserError(f"problem {name}: {before} gives {value!r}, no plain JSON value")
    return value


def text(value) -> str:
    """The same for equal plain values only: 1 is not True."""
    return json.dumps(value, sort_keys=True)


def plain(value) -> bool:
    if type(value) is dict:
        return all(type(key) is str for key in value) and all(map(plain, value.values()))
    return all(map(plain, value)) if type(value) is list else type(value) in (int, str, bool)


def check(problem: Problem, oracle: Callable) -> None:
    """UserError, with the input and both values, if the reference is not what the oracle is, or
    not what the problem expects."""
    function = load(problem.name, problem.reference)
    neighbours = [case for cases in problem.neighbours for case in cases]
    for arguments, expected in (*problem.samples, *neighbours, *problem.hidden):
        value = evaluate(problem.name, function, arguments)
        right = evaluate(f"{problem.name}'s oracle", oracle, arguments)
        if not text(value) == text(right) == text(expected):
            raise cli.UserError(
                f"problem {problem.name}: for {arguments} its reference gives {value!r},"
                f" its oracle {right!r}, expected is {expected!r}; mend its template"
            )


def main() -> None:
    print(f"{'family':12} level 1     2     3   all  held out")
    for family in (*FAMILIES, "all"):
        chosen = [p for p in problems() if family in (p.family, "all")]
        row = [sum(p.level == level for p in chosen) for level in (1, 2, 3)]
        kept = sum(p.held_out for p in chosen)
        print(f"{family:12}" + "".join(f"{n:6}" for n in (*row, len(chosen), kept)))
    print(len({p.template for p in problems()}), "templates")


if __name__ == "__main__":
    with cli.user_errors():
        main()
