"""Kinds of arguments for the programming problems: how to make a value, how to change it a little,
and which values lie at the edge of the kind. All values are plain JSON types.

Each kind has `make(rng)`, `near(rng, value)` (another value of the kind that differs in one place)
and `edges(rng)` (empty, one element, all equal, long).
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Int:
    """Whole numbers from low to high."""

    low: int
    high: int

    def make(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)

    def near(self, rng: random.Random, value: int) -> int:
        steps = [value + sign * step for step in (1, 2, 3, 10, 100, 1000) for sign in (1, -1)]
        return rng.choice([n for n in steps if self.low <= n <= self.high])

    def edges(self, rng: random.Random) -> list[int]:
        return [n for n in dict.fromkeys((self.low, 0, 1, self.high)) if self.low <= n <= self.high]


@dataclass(frozen=True)
class Choice:
    """One of some strings (or of the letters of a string)."""

    options: str | tuple[str, ...]

    def make(self, rng: random.Random) -> str:
        return rng.choice(self.options)

    def near(self, rng: random.Random, value: str) -> str:
        return rng.choice([option for option in self.options if option != value])

    def edges(self, rng: random.Random) -> list[str]:
        return []


@dataclass(frozen=True)
class Fixed:
    """A string whose first letter is one of the first alphabet, and so on: Fixed("abc", "123")."""

    alphabets: tuple[str, ...]

    def make(self, rng: random.Random) -> str:
        return "".join(map(rng.choice, self.alphabets))

    def near(self, rng: random.Random, value: str) -> str:
        at = rng.choice([i for i, letters in enumerate(self.alphabets) if len(letters) > 1])
        other = rng.choice([c for c in self.alphabets[at] if c != value[at]])
        return value[:at] + other + value[at + 1 :]

    def edges(self, rng: random.Random) -> list[str]:
        return ["".join(letters[0] for letters in self.alphabets)]


@dataclass(frozen=True)
class Row:
    """A list with one value of each kind."""

    kinds: tuple

    def make(self, rng: random.Random) -> list:
        return [kind.make(rng) for kind in self.kinds]

    def near(self, rng: random.Random, value: list) -> list:
        at = rng.randrange(len(value))
        return [*value[:at], self.kinds[at].near(rng, value[at]), *value[at + 1 :]]

    def edges(self, rng: random.Random) -> list[list]:
        return []


@dataclass(frozen=True)
class Interval:
    """[start, end] with low <= start < end <= high, mostly not longer than `length`."""

    low: int
    high: int
    length: int = 99

    def make(self, rng: random.Random) -> list[int]:
        start = rng.randrange(self.low, self.high)
        return [start, rng.randint(start + 1, min(start + self.length, self.high))]

    def near(self, rng: random.Random, value: list[int]) -> list[int]:
        ways = [(value[0] + a, value[1] + b) for a in (-1, 0, 1) for b in (-2, -1, 0, 1, 2)]
        ways = [list(way) for way in ways if self.low <= way[0] < way[1] <= self.high]
        return rng.choice([way for way in ways if way != value])

    def edges(self, rng: random.Random) -> list[list[int]]:
        return [[self.low, self.high]]


@dataclass(frozen=True)
class List:
    """least to most values of one kind, in any order."""

    item: object
    least: int = 0
    most: int = 7

    def make(self, rng: random.Random) -> list:
        size = rng.randint(max(self.least, min(4, self.most - 1)), self.most)
        return [self.item.make(rng) for _ in range(size)]

    def near(self, rng: random.Random, value: list) -> list:
        way, at = rng.random(), rng.randrange(len(value) + 1)
        if way < 0.2 or not value:
            return [*value[:at], self.item.make(rng), *value[at:]]
        at = rng.randrange(len(value))
        if way < 0.3 and len(value) > max(1, self.least):
            return value[:at] + value[at + 1 :]
        if way < 0.4 and at:
            return [*value[: at - 1], value[at], value[at - 1], *value[at + 1 :]]
        changed = rng.choice(value) if way < 0.5 else self.item.near(rng, value[at])
        return [*value[:at], changed, *value[at + 1 :]]

    def edges(self, rng: random.Random) -> list[list]:
        one = self.item.make(rng)
        sizes = [[]] * (self.least == 0) + [[one]] * (self.least <= 1)
        equal, long = [one] * max(3, self.least), [self.item.make(rng) for _ in range(16)]
        return [
            *sizes,
            equal,
            long,
            *([item] * max(1, self.least) for item in self.item.edges(rng)),
        ]


@dataclass(frozen=True)
class Joined:
    """A string of items with a separator, none at all being the empty string."""

    item: object
    separator: str = ""
    least: int = 0
    most: int = 7

    def _items(self) -> List:
        return List(self.item, self.least, self.most)

    def make(self, rng: random.Random) -> str:
        return self.separator.join(self._items().make(rng))

    def near(self, rng: random.Random, value: str) -> str:
        items = (value.split(self.separator) if value else []) if self.separator else list(value)
        return self.separator.join(self._items().near(rng, items))

    def edges(self, rng: random.Random) -> list[str]:
        return [self.separator.join(items) for items in self._items().edges(rng)]


@dataclass(frozen=True)
class Grid:
    """Rows of equal length, at least one cell."""

    item: object
    most: int = 4
    square: bool = False

    def make(self, rng: random.Random, rows: int = 0, columns: int = 0) -> list[list]:
        rows = rows or rng.randint(3, self.most)
        columns = rows if self.square else columns or rng.randint(3, self.most)
        return [[self.item.make(rng) for _ in range(columns)] for _ in range(rows)]

    def near(self, rng: random.Random, value: list[list]) -> list[list]:
        changed = [list(row) for row in value]
        row = rng.choice(changed)
        at = rng.randrange(len(row))
        row[at] = self.item.near(rng, row[at])
        return changed

    def edges(self, rng: random.Random) -> list[list[list]]:
        shapes = ((1, 1), (1, 4), (4, 1), (2, 2), (6, 6))
        return [self.make(rng, *shape) for shape in shapes]


@dataclass(frozen=True)
class Table:
    """A dictionary from some of the names to values of one kind."""

    names: tuple[str, ...]
    item: object

    def make(self, rng: random.Random) -> dict:
        names = rng.sample(self.names, rng.randint(3, len(self.names) - 1))
        return {name: self.item.make(rng) for name in names}

    def near(self, rng: random.Random, value: dict) -> dict:
        name = rng.choice(self.names)
        if name in value and rng.random() < 0.8:
            return {**value, name: self.item.near(rng, value[name])}
        if name in value:
            return {other: value[other] for other in value if other != name}
        return {**value, name: self.item.make(rng)}

    def edges(self, rng: random.Random) -> list[dict]:
        same = self.item.make(rng)
        return [{}, {self.names[-1]: same}, {name: same for name in reversed(self.names)}]
