"""Small programming problems with reference solutions, made from the templates of
code_templates.py.

    python -m tasks.code_problems      how many there are, by family and level

A template is a task with open places; each way to fill them is a problem. Training and held-out
problems share no template. Every value that a problem expects has been computed in two ways: by
its reference, the Python text that a solution may look like, and by an oracle that is written
another way. Levels are of difficulty for a model of 0.5B, which solves
about .5, .2 and .04 of them (docs/code.md).

**Samples** are public. No trivial program (TRIVIAL: an argument itself, its length, first element,
sum, ...) is right on any of them, their three values differ, so that no constant is either, and no
other problem of the template is right on all three.

**Neighbours** of a sample differ from it in one place and in their result. A program that looks
samples up is right on a sample and wrong on its neighbours, but for those whose value is its
default: of six neighbours at most one has the value of a sample or an empty one (0, "", []), and at
most three have the same value. That tells hard-coding without reading a program.

**Hidden** inputs begin with the edges of what is allowed: empty, one element, all equal, long.
"""

import functools
import json
import marshal
import random
import string
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest
from types import SimpleNamespace

import cli
from tasks import code_templates
from tasks.code_easy import EASY
from tasks.code_templates import Piece, Template

SAMPLES, NEIGHBOURS, HIDDEN = 3, 6, 12
EDGES = 7  # of the hidden inputs, at most
TRIES = 100  # inputs that are drawn for the samples, or for one's neighbours
ROUNDS = 30  # of samples, until all have neighbours

FAMILIES = EASY | code_templates.FAMILIES
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
            texts = [fill(template, variant) for variant in template.variants]
            kinds = tuple(template.kinds.values())
            runs = {name: functools.partial(evaluate, name, load(name, s)) for name, _, s in texts}
            for variant, (name, says, source) in zip(template.variants, texts):
                cases = choose(name, runs, kinds)
                head = (name, family, template.key, template.level, template.held_out, says)
                problem = Problem(*head, tuple(template.kinds), source, *cases)
                check(problem, oracle(template, variant))
                made.append(problem)
    return tuple(made)


@functools.cache
def by_name() -> dict[str, Problem]:
    return {problem.name: problem for problem in problems()}


def fill(template: Template, variant: dict) -> tuple[str, str, str]:
    """(name, specification, source of the reference)"""
    fields = {}
    for key, value in variant.items():
        fields[key] = value
        if isinstance(value, Piece):
            fields |= {f"{key}_name": value.name, key: value.says, f"{key}_code": value.code}
    once = lambda text: string.Template(text).substitute(fields)
    # a piece may have open places itself
    name, says, body = (once(once(t)) for t in (template.name, template.says, template.body))
    name = name.replace("-", "minus_")
    body = textwrap.indent(textwrap.dedent(body).strip("\n"), "    ")
    return name, says, f"def {name}({', '.join(template.kinds)}):\n{body}\n"


def oracle(template: Template, variant: dict) -> Callable:
    part = lambda value: value.oracle if isinstance(value, Piece) else value
    parts = {key: part(value) for key, value in variant.items()}
    return functools.partial(template.oracle, SimpleNamespace(**parts))


@functools.cache
def load(name: str, source: str) -> Callable:
    """The function of our own source text."""
    names = {}
    try:
        exec(compile(source, f"<reference {name}>", "exec"), names)
    except SyntaxError as error:
        raise cli.UserError(f"problem {name}: its reference is no Python: {error}") from error
    return names[name]


def choose(name: str, runs: dict[str, Callable], kinds: tuple) -> tuple:
    """(samples, neighbours of each, hidden) with the values of the reference, runs[name]. Those of
    the template's other problems are not right on all samples, nor on all hidden inputs."""
    rng = random.Random(f"inputs of {name}")
    run, others = runs[name], [runs[other] for other in runs if other != name]
    for _ in range(ROUNDS):
        samples = draw_samples(rng, run, kinds)
        if len(samples) < SAMPLES or not all(differs(other, samples) for other in others):
            continue
        values = [value for _, value in samples]
        taken = {repr(arguments) for arguments, _ in samples}
        neighbours = [draw_neighbours(rng, run, kinds, case, values, taken) for case in samples]
        if any(len(cases) < NEIGHBOURS for cases in neighbours):
            continue
        hidden = draw_hidden(rng, run, kinds, taken)
        if len(hidden) == HIDDEN and all(differs(other, hidden) for other in others):
            return tuple(samples), tuple(neighbours), hidden
    raise cli.UserError(
        f"problem {name}: too few values, or the same as another of its template's problems:"
        " choose wider kinds"
    )


def differs(run: Callable, cases: Iterable[Case]) -> bool:
    return any(run(arguments) != value for arguments, value in cases)


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
        if seen[text(value)] > (2 if number < EDGES else number // 100):
            continue
        taken.add(repr(arguments))
        seen[text(value)] += 1
        found.append((arguments, value))
        if len(found) == HIDDEN:
            break
    return tuple(found)


def hidden_inputs(rng, kinds: tuple) -> Iterator[tuple]:
    """At most EDGES with an edge in one argument, then without end any others."""
    edges = [[(at, edge) for edge in kind.edges(rng)] for at, kind in enumerate(kinds)]
    in_turn = [edge for several in zip_longest(*edges) for edge in several if edge]
    for at, edge in in_turn[:EDGES]:
        yield tuple(edge if at == i else kind.make(rng) for i, kind in enumerate(kinds))
    while True:
        yield tuple(kind.make(rng) for kind in kinds)


TRIVIAL = {
    int: (int, str, lambda n: [n], lambda n: -n, lambda n: n * n, lambda n: n + 1, lambda n: n - 1),
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


def copied(arguments: tuple) -> tuple:
    """A deep copy of plain values, many times faster than copy.deepcopy."""
    return marshal.loads(marshal.dumps(arguments))


def evaluate(name: str, function: Callable, arguments: tuple):
    """UserError if our own function raises, changes its arguments or returns no plain value."""
    given = copied(arguments)
    try:
        value = function(*given)
    except Exception as error:
        raise cli.UserError(f"problem {name}: {arguments} raises {error!r}") from error
    if given != arguments:
        raise cli.UserError(f"problem {name}: changes its arguments {arguments} to {given}")
    if not plain(value):
        raise cli.UserError(f"problem {name}: {arguments} gives {value!r}, no plain JSON value")
    return value


def plain(value) -> bool:
    if type(value) is dict:
        return all(type(key) is str for key in value) and all(map(plain, value.values()))
    return all(map(plain, value)) if type(value) is list else type(value) in (int, str, bool)


# equal only for equal plain values: 1 is not True
text = json.JSONEncoder(sort_keys=True).encode


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
