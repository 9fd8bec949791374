"""The templates of the programming problems: FAMILIES, {family: its templates}.

A template's name, specification and body are texts with open places, "$k"; each of its variants is
a dictionary that fills them. A value that is a Piece fills three places: "$keep" is how the piece
reads in a sentence, "$keep_name" in a name, "$keep_code" in Python. The oracle gets the variant
(v.k, and of a piece what it computes) and the arguments. It is written another way than the body,
on purpose: recursion for a loop, a slice for an index, a formula for a simulation.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate, groupby, product, takewhile
from typing import NamedTuple

from tasks.code_inputs import Choice, Fixed, Grid, Int, Interval, Joined, List, Row, Table


class Piece(NamedTuple):
    name: str
    says: str
    code: str
    oracle: object  # a function, or what else the template's oracle takes


@dataclass(frozen=True)
class Template:
    key: str
    level: int
    name: str
    kinds: dict  # {parameter: the kind of its values}
    says: str
    body: str
    oracle: Callable  # of the variant and the arguments
    variants: list[dict]
    held_out: bool = False


T, P = Template, Piece


def pieces(key: str, *values) -> list[dict]:
    """A variant for each piece (name, how it reads, code, oracle)."""
    return [{key: Piece(*value)} for value in values]


def each(**choices) -> list[dict]:
    """All combinations."""
    return [dict(zip(choices, values)) for values in product(*choices.values())]


def rows(names: str, *values) -> list[dict]:
    return [dict(zip(names.split(), row)) for row in values]


NUMBERS = {"numbers": List(Int(-9, 20))}
LETTERS = Choice("aabcdeeghiorst")
TEXT = {"text": Joined(LETTERS, most=9)}
WORD = Joined(LETTERS, least=1, most=6)
SENTENCE = {"sentence": Joined(WORD, " ", most=5)}
WORDS = {"words": List(WORD, most=6)}
NUMBER = {"n": Int(0, 99999)}
GRID = {"grid": Grid(Int(0, 9))}

EVEN = Piece("even", "even", "n % 2 == 0", lambda n: str(n)[-1] in "02468")
ODD = Piece("odd", "odd", "n % 2 == 1", lambda n: str(n)[-1] in "13579")
NEGATIVE = Piece("negative", "negative", "n < 0", lambda n: str(n)[0] == "-")
THREES = Piece("multiples_of_3", "divisible by 3", "n % 3 == 0", lambda n: n // 3 * 3 == n)
OVER_4 = Piece("over_4", "greater than 4", "n > 4", lambda n: max(n, 5) == n)
FIVES = Piece("multiples_of_5", "divisible by 5", "n % 5 == 0", lambda n: str(n)[-1] in "05")

SQUARES = Piece("squares", "the squares", "n * n", lambda n: abs(n) ** 2)
TRIPLES = Piece("triples", "three times the values", "3 * n", lambda n: n + n + n)
SIZES = Piece("absolutes", "the absolute values", "abs(n)", lambda n: max(n, -n))

SUM = Piece("sum", "sum", "sum(part)", lambda s: reduce(lambda a, b: a + b, s))
MAX = Piece("maximum", "maximum", "max(part)", lambda s: sorted(s)[-1])
MIN = Piece("minimum", "minimum", "min(part)", lambda s: sorted(s)[0])
SPAN = Piece(
    "spread",
    "difference of maximum and minimum",
    "max(part) - min(part)",
    lambda s: sorted(s)[-1] - sorted(s)[0],
)
ENDS = Piece(
    "ends",
    "sum of the first and the last element",
    "part[0] + part[-1]",
    lambda s: sum([*s[:1], *s[::-1][:1]]),
)

VOWELS = Piece("vowels", "a vowel (a, e, i, o, u)", "c in 'aeiou'", re.compile("[aeiou]").match)
EARLY = Piece("a_to_g", "one of the letters a to g", "'a' <= c <= 'g'", re.compile("[a-g]").match)
IN_REST = Piece("rest", "one of the letters r, e, s, t", "c in 'rest'", re.compile("[rest]").match)


def windows(items, k: int) -> list:
    return [items[i : i + k] for i in range(len(items) - k + 1)]


def blocks(items, k: int) -> list:
    return [items[:k], *blocks(items[k:], k)] if items else []


# ------------------------------------------------------------------------------------------- lists


def growing_run(numbers, goes_on):
    """The run of the greatest sum, the first of equals."""
    starts = [i for i in range(len(numbers)) if i == 0 or not goes_on(numbers[i - 1], numbers[i])]
    runs = [numbers[a:b] for a, b in zip(starts, [*starts[1:], len(numbers)])]
    return max(runs, key=sum, default=[])


def cancel(numbers, clash):
    """Remove the first clashing pair until there is none."""
    for i in range(len(numbers) - 1):
        if clash(*numbers[i : i + 2]):
            return cancel(numbers[:i] + numbers[i + 2 :], clash)
    return numbers


def slide_once(numbers, grow):
    """Pairs within each stretch of equal elements."""
    for n, equal in groupby(filter(None, numbers)):
        pairs, single = divmod(len(list(equal)), 2)
        yield from [grow(n)] * pairs + [n] * single


def slide_on(numbers, grow):
    join = lambda s, n: [*s[:-1], grow(n)] if s[-1:] == [n] else [*s, n]
    return reduce(join, filter(None, numbers), [])


# What makes up one variant stands together, in a line or two.
# fmt: off

LISTS = [
    T("map_filter_sum", 1, "sum_of_${map_name}_of_$keep_name", NUMBERS,
        "Add up $map of those elements of the list numbers that are $keep. "
        "If there are none, the result is 0.",
        "return sum($map_code for n in numbers if $keep_code)",
        lambda v, numbers: sum(map(v.map, filter(v.keep, numbers))),
        each(map=[SQUARES, TRIPLES, SIZES], keep=[EVEN, ODD, THREES, OVER_4])[:11],
    ),
    T("map_some", 1, "${map_name}_for_each_$keep_name", NUMBERS,
        "Return a new list in which each element of numbers that is $keep is replaced by $map, "
        "while all other elements stay as they are. An empty list stays empty.",
        "return [$map_code if $keep_code else n for n in numbers]",
        lambda v, numbers: [(v.map if v.keep(n) else int)(n) for n in numbers],
        each(
            map=[
                P("square", "its square", "n * n", lambda n: abs(n) ** 2),
                P("last_digit", "its last digit (that of -12 is 2)", "abs(n) % 10",
                  lambda n: int(str(n)[-1])),
            ],
            keep=[EVEN, ODD, NEGATIVE, OVER_4],
        )[:7],
    ),
    T("sum_against_sum", 1, "sum_of_${keep_name}_minus_rest", NUMBERS,
        "Return the sum of those elements of the list numbers that are $keep, minus the sum of all "
        "other elements. The result is 0 for an empty list.",
        "return sum(n if $keep_code else -n for n in numbers)",
        lambda v, numbers: 2 * sum(filter(v.keep, numbers)) - sum(numbers),
        each(keep=[EVEN, NEGATIVE, THREES, OVER_4, FIVES]),
    ),
    T("index_weights", 1, "sum_times_index_${twist_name}", NUMBERS,
        "Multiply each element of the list numbers by $twist and return the sum of the products; "
        "0 for an empty list. The first index is 0.",
        "return sum(n * ($twist_code) for i, n in enumerate(numbers))",
        lambda v, numbers: sum(v.twist(i, numbers) for i in range(len(numbers))),
        pieces("twist",
            ("plus_1", "its index plus 1", "i + 1", lambda i, s: s[i] + i * s[i]),
            ("plus_2", "its index plus 2", "i + 2", lambda i, s: s[i] * 2 + i * s[i]),
            ("squared", "the square of its index", "i * i", lambda i, s: i**2 * s[i]),
            ("from_end", "the number of elements behind it", "len(numbers) - 1 - i",
             lambda i, s: len(s[i + 1 :]) * s[i]),
        )),
    T("limit", 1, "sum_limited_to_${low}_and_$high", {"numbers": List(Int(-20, 30))},
        "Raise each element of the list numbers that is below $low to $low, lower each that is "
        "above $high to $high, and return the sum of all. An empty list gives 0.",
        "return sum(min(max(n, $low), $high) for n in numbers)",
        lambda v, numbers: sum(sorted([v.low, n, v.high])[1] for n in numbers),
        rows("low high", (0, 10), (-5, 5), (2, 20), (-10, 15)),
    ),
    T("gaps", 2, "${way_name}_at_distance_$k", NUMBERS,
        "For each element of the list numbers that has another one $k places after it, take "
        "$way. Return these in order; the result is empty if numbers has $k elements or fewer.",
        "return [$way_code for a, b in zip(numbers, numbers[$k:])]",
        lambda v, s: [v.way(s[i], s[i + v.k]) for i in range(len(s) - v.k)],
        each(
            k=[2, 3, 4],
            way=[
                P("increase", "the later one minus the earlier one", "b - a", lambda a, b: -a + b),
                P("product", "the product of the two", "a * b", lambda a, b: b * a),
            ],
        )),
    T("window", 2, "${way_name}_of_windows_of_$k", NUMBERS,
        "For every run of $k consecutive elements of the list numbers, from left to right, take "
        "its $way, and return the list of these. If there are fewer than $k elements, return an "
        "empty list.",
        """
        result = []
        for start in range(len(numbers) - $k + 1):
            part = numbers[start:start + $k]
            result.append($way_code)
        return result
        """,
        lambda v, numbers: [v.way(part) for part in windows(numbers, v.k)],
        each(k=[2, 3], way=[MAX, SPAN, ENDS]),
    ),
    T("blocks", 2, "${way_name}_of_blocks_of_$k", NUMBERS,
        "Cut the list numbers into blocks of $k elements (the last one may be shorter) and return "
        "the list with the $way of each block. An empty list gives an empty list.",
        """
        result = []
        for start in range(0, len(numbers), $k):
            part = numbers[start:start + $k]
            result.append($way_code)
        return result
        """,
        lambda v, numbers: [v.way(part) for part in blocks(numbers, v.k)],
        each(k=[2, 3], way=[SUM, MIN, SPAN]),
        held_out=True,
    ),
    T("sort_by", 2, "sort_by_${key_name}", NUMBERS,
        "Return the elements of the list numbers sorted by $key, the smallest first; elements that "
        "agree in it are sorted by their own value, $ties first.",
        "return sorted(numbers, key=lambda n: ($key_code, $sign))",
        lambda v, s: sorted(sorted(s, reverse=v.sign == "-n"), key=v.key),
        [
            {"key": key, "ties": ties, "sign": sign}
            for key, ties, sign in (
                (P("last_digit", "the last digit (that of -12 is 2)", "abs(n) % 10",
                   lambda n: int(str(n)[-1])),
                 "the largest", "-n"),
                (P("distance_to_5", "the distance to 5", "abs(n - 5)", lambda n: max(n - 5, 5 - n)),
                 "the smallest", "n"),
                (P("rest_by_4", "the remainder on division by 4 (never negative)", "n % 4",
                   lambda n: n & 3), "the largest", "-n"),
                (P("rest_by_3", "the remainder on division by 3 (never negative)", "n % 3",
                   lambda n: n - n // 3 * 3), "the smallest", "n"),
            )
        ]),
    T("repeats", 2, "values_${way_name}", {"numbers": List(Int(-3, 4), most=9)},
        "Return the different values that occur $way in the list numbers, "
        "$order; empty if there are none.",
        "return sorted({n for n in numbers if $way_code}$reverse)",
        lambda v, s: sorted(
            (n for n, k in Counter(s).items() if v.way(k)), reverse=v.order[0:9] == "the large"
        ),
        [
            {"way": way, "order": order, "reverse": reverse}
            for way, order, reverse in (
                (P("seen_once", "exactly once", "numbers.count(n) == 1", lambda k: k < 2),
                 "the largest first", ", reverse=True"),
                (P("seen_again", "at least twice", "numbers.count(n) >= 2", lambda k: k > 1),
                 "the smallest first", ""),
                (P("seen_oddly", "an odd number of times", "numbers.count(n) % 2 == 1",
                 lambda k: k & 1), "the smallest first", ""),
            )
        ]),
    T("records", 1, "find_$way_name", NUMBERS,
        "Return those elements of the list numbers, in order, that are $way. The first element "
        "always counts; an empty list gives an empty list.",
        "return [n for i, n in enumerate(numbers) if all($way_code for m in numbers[:i])]",
        lambda v, s: s[:1] + [b for i, b in enumerate(s[1:], 1) if v.way(s[:i], b)],
        pieces("way",
            ("new_highs", "greater than every element before them", "n > m",
             lambda s, n: n > max(s)),
            ("new_lows", "smaller than every element before them", "n < m",
             lambda s, n: n < min(s)),
            ("not_near_before", "more than 2 away from every element before them", "abs(n - m) > 2",
             lambda s, n: not {n - 2, n - 1, n, n + 1, n + 2} & set(s)),
        )),
    T("peaks", 2, "find_$way_name", {"numbers": List(Int(0, 20), most=8)},
        "Return the elements of the list numbers, in order, that have a neighbour on each side and "
        "are $way. The first and the last element never count.",
        "return [b for a, b, c in zip(numbers, numbers[1:], numbers[2:]) if $way_code]",
        lambda v, s: [part[1] for part in windows(s, 3) if v.way(*part)],
        pieces("way",
            ("peaks", "greater than both neighbours", "a < b > c", lambda a, b, c: b > max(a, c)),
            ("valleys", "smaller than both neighbours", "a > b < c", lambda a, b, c: b < min(a, c)),
            ("above_neighbour_sum", "greater than the sum of both neighbours", "b > a + c",
             lambda a, b, c: b - a - c > 0),
            ("between_neighbours", "strictly between both neighbours in value",
             "a < b < c or a > b > c", lambda a, b, c: min(a, c) < b < max(a, c)),
        )),
    T("insert_between", 2, "insert_${way_name}", NUMBERS,
        "Return a new list that has, between any two neighbouring elements of numbers, also "
        "$way. Lists with fewer than two elements stay as they are.",
        """
        result = numbers[:1]
        for a, b in zip(numbers, numbers[1:]):
            result += [$way_code, b]
        return result
        """,
        lambda v, s: [
            x for i, n in enumerate(s) for x in ([v.way(s[i - 1], n)] if i else []) + [n]
        ],
        pieces("way",
            ("sums", "the sum of the two", "a + b", lambda a, b: b + a),
            ("larger", "the larger one of the two", "max(a, b)", lambda a, b: a if a > b else b),
            ("distances", "the distance of the two (never negative)", "abs(a - b)",
             lambda a, b: max(a, b) - min(a, b)),
            ("steps", "the right one minus the left one", "b - a", lambda a, b: -(a - b)),
        )),
    T("restart_totals", 3, "totals_restarting_at_$keep_name", NUMBERS,
        "Return the list of running totals of the list numbers, where every element that is $keep "
        "sets the total back to 0 before it is itself added. An empty list gives an empty list.",
        """
        totals, total = [], 0
        for n in numbers:
            if $keep_code:
                total = 0
            total += n
            totals.append(total)
        return totals
        """,
        lambda v, s: list(accumulate(s, lambda a, n: n if v.keep(n) else a + n)),
        each(keep=[EVEN, NEGATIVE, THREES, OVER_4, FIVES]),
    ),
    T("best_run", 3, "best_${way_name}_run", NUMBERS,
        "A run is a stretch of consecutive elements of the list numbers in which each element "
        "$way the one before it, as long as it can be. Return the elements of the run with "
        "the greatest sum, the first such run if several have it; an empty list gives an empty "
        "list.",
        """
        runs = []
        for n in numbers:
            if runs and $way_code:
                runs[-1].append(n)
            else:
                runs.append([n])
        return max(runs, key=sum, default=[])
        """,
        lambda v, s: growing_run(s, v.way),
        pieces("way",
            ("rising", "is greater than", "n > runs[-1][-1]", lambda a, b: b - a > 0),
            ("falling", "is smaller than", "n < runs[-1][-1]", lambda a, b: a - b > 0),
            ("close", "differs by at most 6 from", "abs(n - runs[-1][-1]) <= 6",
             lambda a, b: max(a, b) - 6 <= min(a, b)),
        )),
    T("slow_follower", 3, "follow_by_steps_of_${k}_from_$start", {"numbers": List(Int(-9, 20))},
        "A follower begins at $start. For each element of the list numbers it moves towards that "
        "element, by at most $k and never past it. Return the list of its positions after each "
        "move.",
        """
        place, places = $start, []
        for n in numbers:
            step = min(abs(n - place), $k)
            place += step if n > place else -step
            places.append(place)
        return places
        """,
        lambda v, s: list(
            accumulate(s, lambda p, n: sorted([p - v.k, n, p + v.k])[1], initial=v.start)
        )[1:],
        rows("k start", (3, 0), (5, 0), (4, 10), (2, 5)),
    ),
    T("cancel_neighbours", 3, "cancel_neighbours_$way_name", {"numbers": List(Int(1, 6), most=8)},
        "Go through the list numbers and build a new list: if the new list's last element and the "
        "current element $way, remove that last element and drop the current one, otherwise append "
        "the current one. Return the new list.",
        """
        result = []
        for n in numbers:
            if result and $way_code:
                result.pop()
            else:
                result.append(n)
        return result
        """,
        lambda v, s: cancel(s, v.way),
        pieces("way",
            ("equal", "are equal", "result[-1] == n", lambda a, b: not a - b),
            ("sum_7", "have the sum 7", "result[-1] + n == 7", lambda a, b: a == 7 - b),
            ("next", "differ by exactly 1", "abs(result[-1] - n) == 1",
             lambda a, b: a in (b - 1, b + 1)),
        )),
    T("slide_and_merge", 3, "slide_left_${grow_name}_$again", {"numbers": List(Int(0, 2), most=8)},
        "Zeros in the list numbers are empty places: remove them. Then go from left to right: two "
        "equal neighbours merge into one element, $grow, and an element made by merging $rule. "
        "Return the list that is left; it is empty if there were only zeros.",
        """
        result, rest = [], [n for n in numbers if n != 0]
        while rest:
            if len(rest) > 1 and rest[0] == rest[1]:
                $then
            else:
                result.append(rest.pop(0))
        return result
        """,
        lambda v, s: list((slide_once if v.again == "once" else slide_on)(s, v.grow)),
        [
            {"grow": grow, "again": again, "rule": rule, "then": then}
            for grow in (
                P("doubled", "twice their value", "2 * rest[0]", lambda n: n + n),
                P("raised", "greater than them by 1", "rest[0] + 1", lambda n: -~n),
            )
            for again, rule, then in (
                ("once", "does not merge again",
                 "result.append($grow_code)\n                rest = rest[2:]"),
                ("on", "can at once merge with the next one, if that is equal",
                 "rest = [$grow_code] + rest[2:]"),
            )
        ]),
]


# ----------------------------------------------------------------------------------------- strings


ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def shift(c: str, k: int) -> str:
    return (ALPHABET * 3)[ALPHABET.index(c) + 26 + k] if c in ALPHABET else c


def annihilate(text: str, pattern: str) -> str:
    changed = re.sub(pattern, "", text, count=1)
    return text if changed == text else annihilate(changed, pattern)


def weave(a: str, b: str, done: str, rest: Callable) -> str:
    """Characters of a and b in turn, then rest(what is left)."""
    return weave(a[1:], b[1:], done + a[0] + b[0], rest) if a and b else done + rest(a or b)


def depth(text: str) -> int:
    """How far the sum of steps lies above its lowest point."""
    sums = [0, *accumulate(map({"(": 1, ")": -1}.get, re.sub("[^()]", "", text)))]
    return sums[-1] - min(sums)


STRINGS = [
    T("drop_letters", 1, "text_without_${kind_name}_$then_name", TEXT,
        "Remove from text every character that is $kind and return what is left $then. "
        "An empty text stays empty.",
        "return ''.join(c for c in text if not ($kind_code))$then_code",
        lambda v, text: v.then("".join(c for c in text if not v.kind(c))),
        each(
            kind=[VOWELS, EARLY, IN_REST],
            then=[
                P("reversed", "in reverse order", "[::-1]", lambda s: "".join(reversed(s))),
                P("twice", "twice, one after the other", " * 2", lambda s: s + s),
            ],
        )),
    T("mark_letters", 1, "text_with_${kind_name}_${change_name}", TEXT,
        "Return text with every character that is $kind $change; the other characters stay as "
        "they are.",
        "return ''.join($change_code if $kind_code else c for c in text)",
        lambda v, text: "".join(v.change(c) if v.kind(c) else c for c in text),
        each(
            kind=[VOWELS, EARLY, IN_REST],
            change=[
                P("in_capitals", "written as a capital", "c.upper()", lambda c: chr(ord(c) - 32)),
                P("tripled", "written three times in a row", "c * 3", lambda c: c + c + c),
                P("in_brackets", "put in round brackets", "'(' + c + ')'", "({})".format),
            ],
        )[::2],
    ),
    T("every_kth", 1, "${change_name}_every_${k}", TEXT,
        "Return text with its characters number $k, ${k2}, ${k3} and so on (the first character is "
        "number 1) $change, all others as they are.",
        "return ''.join($change_code if i % $k == 0 else c for i, c in enumerate(text, 1))",
        lambda v, text: "".join(
            part[:-1] + v.change(part[-1]) if len(part) == v.k else part
            for part in blocks(text, v.k)
        ),
        [
            {"k": k, "k2": 2 * k, "k3": 3 * k, "change": change}
            for k in (2, 3)
            for change in (
                P("capital", "written as capitals", "c.upper()", lambda c: chr(ord(c) - 32)),
                P("star", "replaced by a star (*)", "'*'", lambda c: "*"),
                P("double", "written twice", "c * 2", lambda c: c + c),
            )
        ][:5],
    ),
    T("letter_values", 1, "letter_sum_$way_name", TEXT,
        "text holds lower-case letters. Count a as 1, b as 2, ... z as 26, and return $way; "
        "0 for an empty text.",
        """
        values = [ord(c) - ord('a') + 1 for c in text]
        return $way_code
        """,
        lambda v, text: v.way([ALPHABET.find(c) + 1 for c in text]),
        pieces("way",
            ("times_place", "the sum of all letters' values, each times the place of its letter "
             "(the first place is 1)", "sum(i * value for i, value in enumerate(values, 1))",
             lambda s: sum(sum(s[i:]) for i in range(len(s)))),
            ("of_neighbours", "the sum of the products of the values of neighbouring letters",
             "sum(a * b for a, b in zip(values, values[1:]))",
             lambda s: sum(s[i] * s[i - 1] for i in range(1, len(s)))),
            ("alternating", "the value of the first letter minus that of the second plus that of "
             "the third and so on", "sum(values[::2]) - sum(values[1::2])",
             lambda s: reduce(lambda total, n: n - total, s[::-1], 0)),
            ("of_different",
             "the sum of the values of all different letters, each letter counted once",
             "sum(set(values))", lambda s: sum(n for i, n in enumerate(s) if n not in s[:i])),
        )),
    T("run_lengths", 2, "run_lengths_$way_name", {"text": Joined(Choice("aaabc"), most=10)},
        "Cut text into runs of equal characters, as long as possible, and write for each run $way, "
        "all in one string. An empty text gives an empty string.",
        """
        result, start = '', 0
        for i in range(len(text)):
            if i + 1 == len(text) or text[i + 1] != text[i]:
                c, count = text[i], i + 1 - start
                result += $way_code
                start = i + 1
        return result
        """,
        lambda v, text: "".join(v.way(m[1], len(m[0])) for m in re.finditer(r"(.)\1*", text)),
        pieces("way",
            ("after", "its character and then its length", "c + str(count)", "{}{}".format),
            ("before", "its length and then its character", "str(count) + c",
             lambda c, k: f"{k}{c}"),
            ("short", "its character, and then its length if that is more than 1",
             "c + str(count) if count > 1 else c", lambda c, k: f"{c}{k}"[: 1 + 9 * (k > 1)]),
            ("squared", "its character, as many times as the square of its length",
             "c * count ** 2", lambda c, k: c * k * k),
        )),
    T("expand", 2, "expand_blocks_$way_name",
      {"text": Joined(Fixed(("abcde", "12345")), " ", most=5)},
        "text is made of blocks with one space between them; a block is a letter and a digit. "
        "Return one string in which $way, without spaces. An empty text gives an empty string.",
        """
        result = ''
        for block in text.split():
            letter, count = block[0], int(block[1])
            $way_code
        return result
        """,
        lambda v, text: v.way([(c, int(d)) for c, d in zip(text[::3], text[1::3])]),
        pieces("way",
            ("plain", "each block has become its letter, as many times as its digit says",
             "result += letter * count", lambda s: "".join(c * k for c, k in s)),
            ("from_the_end", "each block has become its letter, as many times as its digit says, "
             "the last block first", "result = letter * count + result",
             lambda s: "".join(c * k for c, k in s[::-1])),
            ("with_dashes", "each block has become its letter, as many times as its digit says, "
             "followed by a dash (-)", "result += letter * count + '-'",
             lambda s: "".join(c.ljust(k, c) + "-" for c, k in s)),
        )),
    T("mirror", 1, "mirror_text_$way_name", TEXT,
        "Return $way. An empty text gives an empty string.",
        "return $way_code",
        lambda v, text: v.way(text, "".join(reversed(text))),
        pieces("way",
            ("around_last", "text followed by its reverse, but with its last character only once, "
             "in the middle", "text + text[:-1][::-1]", lambda s, r: s + r[1:]),
            ("outward", "the reverse of text followed by text", "text[::-1] + text",
             lambda s, r: r + s),
            ("with_bar", "text, a bar (|), and text in reverse", "text + '|' + text[::-1]",
             lambda s, r: "|".join([s, r])),
        ),
        held_out=True,
    ),
    T("interleave", 2, "interleave_$way_name",
      {"first": Joined(LETTERS, most=6), "second": Joined(LETTERS, most=6)},
        "Return a string that takes characters from first and second in turn, beginning with "
        "$start. What is left over of the longer one $rest.",
        """
        result = ''.join($pair for a, b in zip(first, second))
        shorter = min(len(first), len(second))
        return result + (first[shorter:] + second[shorter:])$way_code
        """,
        lambda v, a, b: v.way(*((a, b) if v.pair == "a + b" else (b, a))),
        [
            {"way": P(name, "", code, oracle), "start": start, "pair": pair, "rest": rest}
            for name, start, pair, rest, code, oracle in (
                ("and_append", "the first of first", "a + b", "is appended as it is", "",
                 lambda a, b: weave(a, b, "", lambda s: s)),
                ("and_append_reversed", "the first of second", "b + a",
                 "is appended in reverse order", "[::-1]",
                 lambda a, b: weave(a, b, "", lambda s: s[::-1])),
                ("and_cut", "the first of first", "a + b", "is left out", "[:0]",
                 lambda a, b: weave(a, b, "", lambda s: "")),
            )
        ]),
    T("by_frequency", 2, "letters_by_frequency_$order_name",
      {"text": Joined(Choice("aaabbcde"), most=10)},
        "Return a string with each different character of text once, $order. An empty text gives "
        "an empty string.",
        "return ''.join(sorted(set(text), key=lambda c: $order_code))",
        lambda v, text: "".join(c for c, _ in v.order(Counter(text), text)),
        pieces("order",
            ("then_alphabet", "the most frequent first; characters that are equally frequent in "
             "alphabetical order", "(-text.count(c), c)",
             lambda k, s: sorted(sorted(k.items()), key=lambda item: item[1], reverse=True)),
            ("then_first_seen",
             "the most frequent first; of equally frequent ones that which comes first in text",
             "(-text.count(c), text.index(c))", lambda k, s: k.most_common()),
            ("rare_first",
             "the rarest first; characters that are equally frequent in alphabetical order",
             "(text.count(c), c)",
             lambda k, s: sorted(sorted(k.items()), key=lambda item: item[1])),
        )),
    T("columns", 2, "read_in_${k}_columns_$way_name", {"text": Joined(LETTERS, most=10)},
        "Write text row by row into $k columns (the last row may be short), read it column by "
        "column, $way, each from top to bottom, and return all as one string.",
        "return ''.join(text[start::$k] for start in $way_code)",
        lambda v, text: "".join(
            row[i] for i in v.way(list(range(v.k))) for row in blocks(text, v.k) if i < len(row)
        ),
        each(
            k=[2, 3, 4],
            way=[
                P("left_to_right", "the leftmost column first", "range($k)", lambda s: s),
                P("right_to_left", "the rightmost column first", "range($k - 1, -1, -1)",
                  lambda s: s[::-1]),
            ],
        )[:5],
    ),
    T("flip_blocks", 2, "flip_${way_name}_of_$k", {"text": Joined(LETTERS, most=10)},
        "Cut text into blocks of $k characters (the last one may be shorter), reverse $way, and "
        "return the blocks joined in their order.",
        """
        parts = [text[i:i + $k] for i in range(0, len(text), $k)]
        return ''.join(part[::-1] if $way_code else part for i, part in enumerate(parts))
        """,
        lambda v, text: "".join(v.way(i, b) for i, b in enumerate(blocks(text, v.k))),
        each(
            k=[3, 4],
            way=[
                P("long_blocks", "every block of more than 2 characters", "len(part) > 2",
                  lambda i, b: "".join(reversed(b)) if b[2:] else b),
                P("odd_blocks", "the first, third, fifth block and so on", "i % 2 == 0",
                  lambda i, b: b if i & 1 else "".join(reversed(b))),
                P("even_blocks", "the second, fourth, sixth block and so on", "i % 2 == 1",
                  lambda i, b: "".join(reversed(b)) if i & 1 else b),
            ],
        ),
        held_out=True,
    ),
    T("annihilate", 3, "remove_pairs_$way_name", {"text": Joined(Choice("abcABC"), most=10)},
        "Remove from text two neighbouring characters that are $way, and go on as long as there "
        "are such neighbours, also those that only became neighbours by a removal. Return what is "
        "left. Where pairs overlap, the leftmost goes first.",
        """
        left = []
        for c in text:
            if left and $way_code:
                left.pop()
            else:
                left.append(c)
        return ''.join(left)
        """,
        lambda v, text: annihilate(text, v.way),
        pieces("way",
            ("same_letter_other_case", "the same letter, one of them a capital and the other not",
             "left[-1] != c and left[-1].lower() == c.lower()", "aA|Aa|bB|Bb|cC|Cc"),
            ("same_letter_any_case", "the same letter, capital or not",
             "left[-1].lower() == c.lower()", "[aA]{2}|[bB]{2}|[cC]{2}"),
            ("capital_before_small",
             "a capital followed by a small letter, whatever letters they are",
             "left[-1].isupper() and c.islower()", "[A-Z][a-z]"),
        )),
    T("keyboard", 3, "typed_with_$rule_name", {"keys": Joined(Choice("abc<##!"), most=8)},
        "keys are keys pressed one after the other, and a text grows from nothing. A letter is "
        "appended; '<' deletes the last character of the text, if there is one; '#' $rule; '!' "
        "reverses the whole text. Return the text at the end.",
        """
        text = ''
        for key in keys:
            if key == '<':
                text = text[:-1]
            elif key == '#':
                text = $rule_code
            elif key == '!':
                text = text[::-1]
            else:
                text += key
        return text
        """,
        lambda v, keys: reduce(
            lambda s, k: {
                "<": s[: max(0, len(s) - 1)],
                "#": v.rule(s),
                "!": "".join(reversed(s)),
            }.get(k, s + k),
            keys,
            "",
        ),
        pieces("rule",
            ("repeat_key", "repeats the last character of the text, if there is one",
             "text + text[-1:]", lambda s: s and s + s[len(s) - 1]),
            ("double_key", "doubles the whole text", "text + text", lambda s: 2 * s),
            ("front_key", "moves the last character of the text to its front",
             "text[-1:] + text[:-1]", lambda s: s and s[len(s) - 1] + s[: len(s) - 1]),
            ("cut_key", "deletes the first half of the text, rounded down", "text[len(text) // 2:]",
             lambda s: s[int(len(s) / 2) :]),
        )),
    T("depths", 2, "depth_$way_name", {"text": Joined(Choice("(()ab"), most=9)},
        "A depth begins at 0; from left to right each '(' of text raises it by 1 and each ')' "
        "lowers it by 1, but never below 0. Return $way.",
        """
        depth, found = 0, []
        for c in text:
            if c == '(':
                depth += 1
            elif c == ')':
                depth = max(depth - 1, 0)
            else:
                found.append((c, depth))
        return $way_code
        """,
        lambda v, text: v.way(
            [(c, depth(text[:i])) for i, c in enumerate(text) if c not in "()"]
        ),
        pieces("way",
            ("of_letters", "the list of the depths at which the other characters stand",
             "[d for c, d in found]", lambda s: [pair[1] for pair in s]),
            ("written_out", "the other characters in their order, each followed by the depth at "
             "which it stands, as one string", "''.join(c + str(d) for c, d in found)",
             lambda s: "".join(f"{c}{d}" for c, d in s)),
            ("repeats", "the other characters in their order, each repeated once more than the "
             "depth at which it stands, as one string", "''.join(c * (d + 1) for c, d in found)",
             lambda s: "".join(c + c * d for c, d in s)),
        )),
]


# ------------------------------------------------------------------------------------------- words


def peel(word: str, suffix: str) -> str:
    head = "".join(takewhile(lambda c: c not in "aeio", word))
    return word[len(head) :] + head + suffix


WORD_TEMPLATES = [
    T("change_each_word", 1, "${way_name}_in_each_word", SENTENCE,
        "sentence holds words with one space between two of them. Return it with $way in "
        "every word, whatever its length. An empty sentence stays empty.",
        "return ' '.join($way_code for word in sentence.split())",
        lambda v, s: re.sub("[a-z]+", lambda m: v.way(m[0]), s),
        pieces("way",
            ("reversed_letters", "the letters reversed", "word[::-1]",
             lambda w: "".join(reversed(w))),
            ("first_to_end", "the first letter moved to the end", "word[1:] + word[0]",
             lambda w: (w * 2)[1 : len(w) + 1]),
            ("last_to_front", "the last letter moved to the front", "word[-1] + word[:-1]",
             lambda w: (w * 2)[len(w) - 1 : -1]),
            ("sorted_letters", "the letters in alphabetical order", "''.join(sorted(word))",
             lambda w: "".join(c * w.count(c) for c in map(chr, range(97, 123)))),
            ("last_capital", "the last letter as a capital", "word[:-1] + word[-1].upper()",
             lambda w: w[::-1].capitalize()[::-1]),
        )),
    T("letters_of_words", 1, "${way_name}_of_words", SENTENCE,
        "sentence holds words with one space between two of them. Return one string of $way, in "
        "the order of the words. An empty sentence gives an empty string.",
        "return ''.join($way_code)",
        lambda v, s: "".join(map(v.way, re.findall("[a-z]+", s))),
        pieces("way",
            ("capital_initials", "the first letters of all words, as capitals",
             "word[0].upper() for word in sentence.split()", lambda w: chr(ord(w[0]) - 32)),
            ("last_letters", "the last letters of all words",
             "word[-1] for word in sentence.split()", lambda w: w[len(w) - 1 :]),
            ("initials_of_long", "the first letters of those words that have more than 3 letters",
             "word[0] for word in sentence.split() if len(word) > 3", lambda w: w[3:] and w[:1]),
            ("middles", "the middle letters of all words (of a word of even length the left one of "
             "the two)", "word[(len(word) - 1) // 2] for word in sentence.split()",
             lambda w: w[: (len(w) + 1) // 2][-1]),
        ),
        held_out=True,
    ),
    T("order_words", 2, "words_by_$key_name", WORDS,
        "Return the list words sorted by $key. Equal words may repeat.",
        "return sorted(words, key=lambda word: $key_code)",
        lambda v, words: v.key(sorted(words)) if v.alphabet else v.key(words),
        [
            {"key": P(*piece), "alphabet": alphabet}
            for alphabet, *piece in (
                (True, "length",
                 "length, the shortest first; words of the same length in alphabetical order",
                 "(len(word), word)", lambda s: [w for k in range(99) for w in s if len(w) == k]),
                (False, "length_from_long",
                 "length, the longest first; words of the same length stay in their order",
                 "-len(word)", lambda s: [w for k in range(99) for w in s if len(w) == 99 - k]),
                (True, "last_letter",
                 "their last letter; words with the same last letter in alphabetical order",
                 "(word[-1], word)",
                 lambda s: [w for c in map(chr, range(97, 123)) for w in s if w.endswith(c)]),
                (False, "number_of_vowels", "the number of their vowels (a, e, i, o, u), the "
                 "fewest first; words with equally many stay in their order",
                 "sum(c in 'aeiou' for c in word)", lambda s: [
                 w for k in range(99) for w in s if len(re.findall("[aeiou]", w)) == k]),
            )
        ]),
    T("join_chosen", 2, "join_words_${keep_name}_$then_name", WORDS,
        "Take those of words that $keep, $then, and join them with a dash (-). If there are "
        "none, return an empty string.",
        "return '-'.join([word for word in words if $keep_code]$then_code)",
        lambda v, words: "-".join(v.then(list(filter(v.keep, words)))),
        each(
            keep=[
                P("with_a_double", "have a letter that occurs in them more than once",
                  "len(set(word)) < len(word)", lambda w: max(map(w.count, w)) > 1),
                P("of_odd_length", "have an odd number of letters", "len(word) % 2 == 1",
                  lambda w: len(w) & 1),
                P("from_vowel", "begin with a vowel (a, e, i, o, u)", "word[0] in 'aeiou'",
                  re.compile("[aeiou]").match),
            ],
            then=[
                P("in_order", "in their order", "", lambda s: s),
                P("backwards", "the last one first", "[::-1]", lambda s: list(reversed(s))),
            ],
        )),
    T("word_lengths", 1, "${way_name}_of_words", SENTENCE,
        "sentence holds words with one space between two of them. Return a list with $way, "
        "one entry a word, in order; an empty sentence gives an empty list.",
        "return [$way_code for word in sentence.split()]",
        lambda v, s: [v.way(w) for w in re.findall("[a-z]+", s)],
        pieces("way",
            ("vowel_counts", "how many vowels (a, e, i, o, u) each word has",
             "sum(c in 'aeiou' for c in word)", lambda w: len(re.sub("[^aeiou]", "", w))),
            ("different_letters", "how many different letters each word has", "len(set(word))",
             lambda w: sum(c not in w[:i] for i, c in enumerate(w))),
            ("squared_lengths", "the square of each word's length", "len(word) ** 2",
             lambda w: sum(len(w) for _ in w)),
        )),
    T("swap_words", 2, "${way_name}_words", SENTENCE,
        "sentence holds words with one space between two of them. Return it with $way. An empty "
        "sentence stays empty.",
        """
        words = sentence.split()
        $way_code
        return ' '.join(words)
        """,
        lambda v, s: " ".join(v.way(re.findall("[a-z]+", s))),
        pieces("way",
            ("swap_pairs_of", "the first and the second word swapped, the third and the fourth, "
             "and so on; a last word without a partner stays",
             "for i in range(0, len(words) - 1, 2):"
             "\n            words[i], words[i + 1] = words[i + 1], words[i]",
             lambda w: [x for pair in blocks(w, 2) for x in pair[::-1]]),
            ("swap_outer", "the first and the last word swapped",
             "if words:\n            words[0], words[-1] = words[-1], words[0]",
             lambda w: w if len(w) < 2 else [w[-1], *w[1:-1], w[0]]),
            ("reverse_all_but_first", "the first word in its place and all others in reverse order",
             "words[1:] = words[:0:-1]", lambda w: w[:1] + list(reversed(w[1:]))),
        )),
    T("peel_words", 3, "peel_words_with_$suffix", SENTENCE,
        "sentence holds words with one space between two of them. In each word that does not begin "
        "with one of the letters a, e, i, o, move all letters before the first a, e, i or o to the "
        "end (all letters, in their order, if it has none of these: then it looks the same) and "
        "append '$suffix'; words that begin with a, e, i or o get '$other' instead. An empty "
        "sentence stays empty.",
        """
        result = []
        for word in sentence.split():
            start = 0
            while start < len(word) and word[start] not in 'aeio':
                start += 1
            result.append(word[start:] + word[:start] + ('$suffix' if start else '$other'))
        return ' '.join(result)
        """,
        lambda v, s: " ".join(
            peel(w, v.other if w[0] in "aeio" else v.suffix) for w in re.findall("[a-z]+", s)
        ),
        rows("suffix other", ("um", "x"), ("ko", "na"), ("is", "e")),
    ),
    T("word_chain", 3, "chain_of_words_$link_name",
      {"words": List(Joined(Choice("aabbc"), least=1, most=4), most=7)},
        "Build a chain: the first of words is its first link; then go through the other words in "
        "order and append a word if $link the last link, otherwise skip it. Return the list of "
        "links; no words, no links.",
        """
        chain = words[:1]
        for word in words[1:]:
            if $link_code:
                chain.append(word)
        return chain
        """,
        lambda v, words: chain(words[:1], words[1:], v.link),
        pieces("link",
            ("last_to_first", "its first letter is the last letter of", "word[0] == chain[-1][-1]",
             lambda a, b: a.endswith(b[0])),
            ("other_length", "it has another length than", "len(word) != len(chain[-1])",
             lambda a, b: abs(len(a) - len(b)) > 0),
            ("other_first", "its first letter differs from that of", "word[0] != chain[-1][0]",
             lambda a, b: not a.startswith(b[0])),
            ("nothing_in_common", "it has no letter in common with",
             "not set(word) & set(chain[-1])", lambda a, b: not any(c in a for c in b)),
        ),
        held_out=True,
    ),
]


def chain(links: list, words: list, link) -> list:
    if not words:
        return links
    return chain(links + words[:1] * bool(link(links[-1], words[0])), words[1:], link)


# ------------------------------------------------------------------------------------------ digits


def digits_of(n: int, base: int = 10) -> list[int]:
    return [*digits_of(n // base, base), n % base] if n >= base else [n]


D_EVEN = P("even", "even", "d % 2 == 0", lambda d: d in (0, 2, 4, 6, 8))
D_ODD = P("odd", "odd", "d % 2 == 1", lambda d: d in (1, 3, 5, 7, 9))
D_BIG = P("large", "greater than 4", "d > 4", lambda d: d in (5, 6, 7, 8, 9))

DIGIT_TEMPLATES = [
    T("digit_sums", 1, "sum_of_${map_name}_of_${keep_name}_digits", NUMBER,
        "Return the sum of $map of those decimal digits of the number n (0 or greater) that are "
        "$keep; 0 if there are none.",
        "return sum($map_code for d in map(int, str(n)) if $keep_code)",
        lambda v, n: sum(v.map(d) for d in digits_of(n) if v.keep(d)),
        each(
            keep=[D_EVEN, D_ODD, D_BIG],
            map=[
                P("squares", "the squares", "d * d", lambda d: d**2),
                P("successors", "the values plus 1", "d + 1", lambda d: -~d),
            ],
        )),
    T("change_digits", 2, "digits_$way_name", NUMBER,
        "Replace every decimal digit d of the number n (0 or greater) by $way and read the result "
        "as a number again; zeros at its front vanish.",
        "return int(''.join(str($way_code) for d in map(int, str(n))))",
        lambda v, n: reduce(lambda total, d: 10 * total + v.way(d), digits_of(n), 0),
        pieces("way",
            ("plus_3", "the last digit of d + 3", "(d + 3) % 10", lambda d: int("3456789012"[d])),
            ("from_9", "9 - d", "9 - d", lambda d: int("9876543210"[d])),
            ("times_3", "the last digit of 3 * d", "3 * d % 10", lambda d: int("0369258147"[d])),
            ("to_even", "d if d is even, otherwise d - 1", "d - d % 2",
             lambda d: int("0022446688"[d])),
        )),
    T("digit_order", 1, "number_with_$way_name", NUMBER,
        "Take the decimal digits of the number n (0 or greater), $way, and read them as a number "
        "again; zeros at its front vanish, and no digits give 0.",
        """
        digits = str(n)
        return int($way_code or '0')
        """,
        lambda v, n: sum(d * 10**i for i, d in enumerate(v.way(digits_of(n))[::-1])),
        pieces("way",
            ("digits_descending", "order them from the largest to the smallest",
             "''.join(sorted(digits, reverse=True))",
             lambda s: [d for k in range(9, -1, -1) for d in s if d == k]),
            ("no_repeated_digits", "keep of equal digits only the first one",
             "''.join(dict.fromkeys(digits))",
             lambda s: [d for i, d in enumerate(s) if d not in s[:i]]),
            ("odd_digits_only", "keep only the odd ones in their order",
             "''.join(d for d in digits if int(d) % 2)", lambda s: [d for d in s if d & 1]),
            ("first_digit_last", "move the first one to the end", "digits[1:] + digits[0]",
             lambda s: s[1:] + s[:1]),
        )),
    T("digit_orbit", 3, "${step_name}_until_below_$stop", {"n": Int(0, 9999)},
        "Start with the number n (0 or greater). As long as the number is $stop or greater, "
        "replace it by $step. Return the list of all numbers on the way, n and the last one "
        "included.",
        """
        seen = [n]
        while n >= $stop:
            digits = [int(d) for d in str(n)]
            n = $step_code
            seen.append(n)
        return seen
        """,
        lambda v, n: orbit(n, v.stop, v.step),
        [
            {"stop": stop, "step": P(*piece)}
            for stop, *piece in (
                (10, "digit_sums", "the sum of its decimal digits", "sum(digits)",
                 lambda n, s: sum(s)),
                (100, "square_sums", "the sum of the squares of its decimal digits, minus 1",
                 "sum(d * d for d in digits) - 1", lambda n, s: sum(map(lambda d: d**2, s)) - 1),
                (20, "cut_and_add", "itself without its last digit, plus 2 times that digit",
                 "n // 10 + 2 * digits[-1]", lambda n, s: (n - s[-1]) // 10 + s[-1] + s[-1]),
            )
        ]),
    T("bases", 2, "base_${b}_$way_name", NUMBER,
        "Write the number n (0 or greater) in base $b and return $way. The number 0 has one "
        "digit, 0.",
        """
        digits = [n % $b]
        while n >= $b:
            n //= $b
            digits.append(n % $b)
        return $way_code
        """,
        lambda v, n: v.way(digits_of(n, v.b)),
        [
            {"b": b, "way": P(*piece)}
            for b, piece in zip(
                (3, 4, 6, 7, 5),
                (("digits", "the list of its digits, the most significant first", "digits[::-1]",
                 lambda s: s), ("text", "its digits as a string, the most significant first",
                 "''.join(map(str, reversed(digits)))", lambda s: "".join(map(str, s))), ("mirror",
                 "the number that one gets by reading its digits in reverse order, "
                 "again in base 6", "sum(d * 6 ** i for i, d in enumerate(reversed(digits)))",
                 lambda s: reduce(lambda t, d: 6 * t + d, s[::-1])), ("as_decimal",
                 "its digits, most significant first, read as a decimal number",
                 "sum(d * 10 ** i for i, d in enumerate(digits))",
                 lambda s: int("".join(map(str, s)))), ("lowest_first",
                 "the list of its digits, the least significant first", "digits",
                 lambda s: list(reversed(s)))),
            )
        ]),
    T("check_digit", 3, "append_check_digit_${a}_$b", NUMBER,
        "Compute a check digit for the number n (0 or greater): its decimal digits are multiplied "
        "from right to left by $a, $b, $a, $b and so on, the products are added up, and the check "
        "digit is what must be added to get the next multiple of 10 (0 if the sum is one "
        "already). Return the number that is n with the check digit appended.",
        """
        total = 0
        for i, d in enumerate(reversed(str(n))):
            total += int(d) * ($a if i % 2 == 0 else $b)
        return 10 * n + -total % 10
        """,
        lambda v, n: next(
            10 * n + k
            for k in range(10)
            if str(
                v.a * sum(digits_of(n)[::-1][::2]) + v.b * sum(digits_of(n)[::-1][1::2]) + k
            ).endswith("0")
        ),
        rows("a b", (3, 1), (7, 3), (2, 1), (9, 4)),
        held_out=True,
    ),
    T("divisors", 1, "divisors_$way_name", {"n": Int(1, 240)},
        "Return the list of all divisors d of n (from 1 to n, ascending; n is at least 1) for "
        "which $way. It may be empty.",
        "return [d for d in range(1, n + 1) if n % d == 0 and $way_code]",
        lambda v, n: sorted(
            n // k for k in range(1, n + 1) if k * (n // k) == n and v.way(n // k, k)
        ),
        pieces("way",
            ("that_are_even", "d is even", "d % 2 == 0", lambda d, k: str(d)[-1] in "02468"),
            ("up_to_a_third", "d is at most a third of n", "3 * d <= n", lambda d, k: k >= 3),
            ("with_odd_partner", "n divided by d is odd", "n // d % 2 == 1", lambda d, k: k & 1),
            ("smaller_than_partner", "d is smaller than n divided by d", "d < n // d",
             lambda d, k: k > d),
        ),
        held_out=True,
    ),
    T("prime_factors", 2, "prime_factors_$way_name", {"n": Int(1, 2000)},
        "Write n (at least 1) as a product of primes (the number 1 is the product of none) and "
        "return $way.",
        """
        factors, p = [], 2
        while n > 1:
            while n % p == 0:
                factors.append(p)
                n //= p
            p += 1
        return $way_code
        """,
        lambda v, n: v.way(factors(n)),
        pieces("way",
            ("ascending", "the list of them, ascending, each as often as it divides n", "factors",
             lambda s: sorted(s)),
            ("summed", "the sum of them, each as often as it divides n; 0 for 1", "sum(factors)",
             lambda s: reduce(int.__add__, s, 0)),
            ("descending", "the list of the different ones, the largest first",
             "sorted(set(factors), reverse=True)", lambda s: sorted(dict.fromkeys(s))[::-1]),
            ("as_text", "a string with all of them, ascending, each as often as it divides n, "
             "with a star (*) between two; an empty string for 1", "'*'.join(map(str, factors))",
             lambda s: "*".join(f"{p}" for p in sorted(s))),
        )),
]


def orbit(n: int, stop: int, step: Callable) -> list[int]:
    return [n] + ([] if n < stop else orbit(step(n, digits_of(n)), stop, step))


def factors(n: int) -> list[int]:
    """From the largest divisor down."""
    split = next((d for d in range(n - 1, 1, -1) if n % d == 0), None)
    return factors(split) + factors(n // split) if split else [n] * (n > 1)


# ---------------------------------------------------------------------------------------- counting


COUNTING = [
    T("pair_sums", 2, "sum_over_pairs_$way_name", {"numbers": List(Int(0, 15), most=6)},
        "Look at all pairs of two elements a and b of the list numbers where a stands before b, "
        "also pairs of equal numbers. Add up $way over all those pairs $those; 0 if there are "
        "none.",
        """
        total = 0
        for i, a in enumerate(numbers):
            for b in numbers[i + 1:]:
                if $those_code:
                    total += $way_code
        return total
        """,
        lambda v, s: sum(
            v.way(s[i], s[j]) for j in range(len(s)) for i in range(j) if v.those(s[i], s[j])
        ),
        [
            {"way": P(f"{name}_{which}", says, code, oracle), "those": P(which, *those)}
            for name, says, code, oracle in (
                ("products", "the product a * b", "a * b", lambda a, b: b * a),
                ("distances", "the distance of a and b", "abs(a - b)",
                 lambda a, b: max(a, b) - min(a, b)),
            )
            for which, *those in (
                ("rising", "in which a is smaller than b", "a < b", lambda a, b: b - a > 0),
                ("of_odd_sum", "whose sum is odd", "(a + b) % 2 == 1", lambda a, b: a & 1 != b & 1),
                ("nearby", "that differ by at most 4", "abs(a - b) <= 4",
                 lambda a, b: b - 4 <= a <= b + 4),
            )
        ]),
    T("histogram", 2, "histogram_in_steps_of_$k", {"numbers": List(Int(0, 19), most=9)},
        "The elements of the list numbers lie between 0 and 19. Return a list of $size counts: how "
        "many elements lie from 0 to $last, from $k to ${last2}, and so on, for each range of $k "
        "numbers up to 19 (the last range may be shorter).",
        """
        counts = [0] * $size
        for n in numbers:
            counts[n // $k] += 1
        return counts
        """,
        lambda v, s: [len([n for n in s if low <= n < low + v.k]) for low in range(0, 20, v.k)],
        rows("k size last last2", (4, 5, 3, 7), (5, 4, 4, 9), (6, 4, 5, 11), (3, 7, 2, 5)),
    ),
    T("stairs", 3, "ways_to_climb_${name}", {"n": Int(0, 45)},
        "In how many ways can one climb n stairs with steps of $steps stairs, where the order of "
        "the steps matters? For 0 stairs there is one way.",
        """
        ways = [1]
        for i in range(1, n + 1):
            ways.append(sum(ways[i - step] for step in $tuple if step <= i))
        return ways[n]
        """,
        lambda v, n: compositions(n, v.tuple),
        rows("name steps tuple",
            ("by_1_or_3", "1 or 3", (1, 3)),
            ("by_2_or_3", "2 or 3", (2, 3)),
            ("by_1_or_4", "1 or 4", (1, 4)),
            ("by_2_3_or_5", "2, 3 or 5", (2, 3, 5)),
        ),
        held_out=True,
    ),
    T("change", 2, "greedy_change_$name", {"amount": Int(0, 400)},
        "Pay an amount (0 or greater) with coins of $says, always taking the largest coin that is "
        "not more than what is left. Return the list of how many coins of each kind are used, the "
        "largest coin first.",
        """
        counts = []
        for coin in $coins:
            counts.append(amount // coin)
            amount %= coin
        return counts
        """,
        lambda v, amount: greedy(amount, v.coins),
        rows("name says coins",
            ("of_50_20_5_1", "50, 20, 5 and 1", (50, 20, 5, 1)),
            ("of_64_16_4_1", "64, 16, 4 and 1", (64, 16, 4, 1)),
            ("of_100_30_7_1", "100, 30, 7 and 1", (100, 30, 7, 1)),
        )),
    T("letter_positions", 1, "positions_of_$kind_name", TEXT,
        "Return the list of the indexes, ascending, at which text has a character that is $kind; "
        "the first index is $start. The list is empty if there is none.",
        "return [i for i, c in enumerate(text, $start) if $kind_code]",
        lambda v, text: [m + v.start for m in range(len(text)) if v.kind(text[m])],
        [{"kind": kind, "start": start} for kind, start in ((VOWELS, 0), (EARLY, 1), (IN_REST, 0))],
    ),
    T("most_frequent", 2, "most_frequent_$key_name", {"numbers": List(Int(0, 99), most=8)},
        "Group the elements of the list numbers by $key. Return the elements of the largest group "
        "in their order; of several largest groups the one with the "
        "smallest $short. An empty list gives an empty list.",
        """
        groups = {}
        for n in numbers:
            groups.setdefault($key_code, []).append(n)
        return max((groups[key] for key in sorted(groups)), key=len, default=[])
        """,
        lambda v, s: [
            n
            for n in s
            if v.key(n) == min(map(v.key, s), key=lambda k: (-sum(v.key(m) == k for m in s), k))
        ],
        [
            {"key": P(*piece), "short": short}
            for short, *piece in (
                ("last digit", "last_digit", "their last digit", "n % 10",
                 lambda n: int(str(n)[-1])),
                ("tens digit", "tens_digit", "their tens digit (0 for numbers below 10)", "n // 10",
                 lambda n: int(f"{n:02}"[0])),
                ("digit sum", "digit_sum", "the sum of their digits", "n // 10 + n % 10",
                 lambda n: sum(map(int, str(n)))),
                ("remainder", "remainder_by_4", "the remainder on division by 4", "n % 4",
                 lambda n: n & 3),
            )
        ]),
    T("multiples_sum", 1, "sum_of_multiples_$way_name", {"n": Int(0, 300)},
        "Add up all whole numbers from 1 to n (n included) that are $way; 0 if there are none.",
        "return sum(i for i in range(1, n + 1) if $way_code)",
        lambda v, n: sum(map(v.way, range(n + 1))),
        pieces("way",
            ("of_3_or_7", "multiples of 3 or of 7 or of both", "i % 3 == 0 or i % 7 == 0",
             lambda i: i * (i % 3 * (i % 7) == 0)),
            ("of_4_not_6", "multiples of 4 but not of 6", "i % 4 == 0 and i % 6 != 0",
             lambda i: i * (i % 12 in (4, 8))),
            ("of_3_or_5_not_both", "multiples of 3 or of 5, but not of both",
             "(i % 3 == 0) != (i % 5 == 0)", lambda i: i * (i % 15 in (3, 5, 6, 9, 10, 12))),
            ("of_neither_2_nor_5", "multiples neither of 2 nor of 5", "i % 2 != 0 and i % 5 != 0",
             lambda i: i * (str(i)[-1] in "1379")),
        ),
        held_out=True,
    ),
    T("overtakers", 3, "${way_name}_counts", {"numbers": List(Int(0, 12))},
        "Return a list with one count for each element of the list numbers, in order: the "
        "number of $way. An empty list gives an empty list.",
        "return [sum($way_code for m in numbers[$slice]) for i, n in enumerate(numbers)]",
        lambda v, s: [v.way(s[:i], n, s[i + 1 :]) for i, n in enumerate(s)],
        [
            {"slice": cut, "way": P(*piece)}
            for cut, *piece in (
                ("i + 1:", "later_smaller", "later elements that are smaller than it", "m < n",
                 lambda a, n, b: len([m for m in b if n - m > 0])),
                (":i", "earlier_within_2", "earlier elements that differ from it by at most 2",
                 "abs(m - n) <= 2",
                 lambda a, n, b: len(list(filter(lambda m: m in range(n - 2, n + 3), a)))),
                (":i", "earlier_same_parity", "earlier elements that are greater than it and, like "
                 "it, odd, or, like it, even", "m > n and (m - n) % 2 == 0",
                 lambda a, n, b: sum(m in range(n + 2, 99, 2) for m in a)),
            )
        ]),
]


def compositions(n: int, steps: tuple) -> int:
    """Ways to write n as a sum of steps in order, by powers of a polynomial."""
    total, power = 0, Counter({0: 1})
    while power:
        total += power[n]
        following = Counter()
        for size, count in power.items():
            for step in steps:
                if size + step <= n:
                    following[size + step] += count
        power = following
    return total


def greedy(amount: int, coins: tuple) -> list[int]:
    """Coin by coin."""
    taken = []
    while amount:
        taken.append(max(coin for coin in coins if coin <= amount))
        amount -= taken[-1]
    return [taken.count(coin) for coin in coins]


# --------------------------------------------------------------------------------------- sequences

SEQUENCES = [
    T("recurrence", 2, "sequence_from_${a}_${b}_$way_name", {"n": Int(0, 40)},
        "A sequence begins with $a and $b; every later term is $way, where x is the term two "
        "places before it and y the term just before it. Return term number n; the first "
        "term is number 0.",
        """
        x, y = $a, $b
        for _ in range(n):
            x, y = y, $way_code
        return x
        """,
        lambda v, n: reduce(lambda s, _: [*s, v.way(*s[-2:])], range(n), [v.a, v.b])[n],
        [
            {"a": a, "b": b, "way": P(*piece)}
            for a, b, *piece in (
                (1, 2, "x_plus_2y", "x + 2 * y", "x + 2 * y", lambda x, y: y + y + x),
                (2, 5, "3y_minus_x", "3 * y - x", "3 * y - x", lambda x, y: y + y - x + y),
                (1, 1, "x_plus_y_plus_1", "x + y + 1", "x + y + 1", lambda x, y: -~(y + x)),
                (0, 3, "y_minus_2x", "y - 2 * x", "y - 2 * x", lambda x, y: y - x - x),
                (3, 4, "mod_1000", "the remainder of x * y + 7 on division by 1000",
                 "(x * y + 7) % 1000", lambda x, y: int(str(y * x + 7)[-3:])),
            )
        ]),
    T("two_way_steps", 2, "path_$way_name", {"start": Int(1, 60), "steps": Int(0, 8)},
        "Begin with the number start (at least 1) and apply this rule exactly steps times: $way. "
        "Return the list of all numbers on the way, start included, so of steps + 1 numbers.",
        """
        numbers = [start]
        for _ in range(steps):
            n = numbers[-1]
            numbers.append($way_code)
        return numbers
        """,
        lambda v, start, steps: list(accumulate([start, *range(steps)], lambda n, _: v.way(n))),
        pieces("way",
            ("halve_or_3n_minus_1", "an even number is halved, an odd number n becomes 3 * n - 1",
             "n // 2 if n % 2 == 0 else 3 * n - 1", lambda n: (n // 2, n + n + n - 1)[n & 1]),
            ("third_or_plus_4", "a multiple of 3 is divided by 3, any other number grows by 4",
             "n // 3 if n % 3 == 0 else n + 4",
             lambda n: divmod(n, 3)[0] if n in range(0, n + 1, 3) else n + 4),
            ("double_or_minus_25", "a number below 30 is doubled, any other shrinks by 25",
             "2 * n if n < 30 else n - 25", lambda n: n + (n if 30 > n else -25)),
            ("plus_last_digit", "the number grows by its last digit, or by 7 if that is 0",
             "n + (n % 10 or 7)", lambda n: n + [7, *range(1, 10)][int(str(n)[-1])]),
            ("half_or_plus_9", "an even number is halved, an odd number grows by 9",
             "n // 2 if n % 2 == 0 else n + 9", lambda n: (n >> 1, n + 9)[n & 1]),
        )),
    T("kth_without", 2, "nth_number_$way_name", {"n": Int(1, 60)},
        "Take the whole numbers 1, 2, 3, ... in order and leave out all that $way. Return the n-th "
        "of those that stay (n is at least 1; the first is number 1).",
        """
        number, left = 0, n
        while left > 0:
            number += 1
            if not ($way_code):
                left -= 1
        return number
        """,
        lambda v, n: [i for i in range(1, 40 * n) if not v.way(i)][n - 1],
        pieces("way",
            ("without_digit_3", "have the digit 3", "'3' in str(number)", lambda i: (
             i % 10 == 3 or i // 10 % 10 == 3 or i // 100 % 10 == 3 or i // 1000 % 10 == 3)),
            ("not_by_4_or_6", "are multiples of 4 or of 6", "number % 4 == 0 or number % 6 == 0",
             lambda i: i % 12 in (0, 4, 6, 8)),
            ("of_odd_digit_sum", "have an even sum of digits",
             "sum(map(int, str(number))) % 2 == 0",
             lambda i: len(re.findall("[13579]", str(i))) % 2 == 0),
            ("no_equal_neighbours", "have two equal digits side by side",
             "any(a == b for a, b in zip(str(number), str(number)[1:]))",
             lambda i: re.search(r"(\d)\1", str(i))),
        )),
    T("self_growth", 3, "grow_by_$way_name", {"start": Int(1, 99), "count": Int(0, 9)},
        "Return a list of count terms. The first is start (at least 1), and each later "
        "term is the one before it plus $way. For count 0 the list is empty.",
        """
        terms = []
        term = start
        for _ in range(count):
            terms.append(term)
            term += $way_code
        return terms
        """,
        lambda v, start, count: list(
            accumulate([start, *range(count)], lambda n, _: n + v.way(str(n)))
        )[:count],
        pieces("way",
            ("digit_sum", "the sum of its digits", "sum(int(d) for d in str(term))",
             lambda s: sum(int(d) * s.count(d) for d in set(s))),
            ("largest_digit", "its largest digit", "max(int(d) for d in str(term))",
             lambda s: int(sorted(s)[-1])),
            ("reversed_number", "the number with its digits in reverse order",
             "int(str(term)[::-1])", lambda s: int("".join(reversed(s)))),
            ("different_digits", "the square of how many different digits it has",
             "len(set(str(term))) ** 2", lambda s: len(Counter(s)) ** 2),
        ),
        held_out=True,
    ),
    T("circle_removal", 3, "circle_order_${name}", {"n": Int(0, 12), "k": Int(1, 5)},
        "The numbers from 1 to n stand in a circle. Counting begins at number 1; the k-th that is "
        "counted is taken out (k is at least 1), and counting goes on $rule. Return the list of "
        "the numbers in the order in which they are taken out; it is empty for n = 0.",
        """
        circle, order, place = list(range(1, n + 1)), [], 0
        while circle:
            place = (place + k - 1) % len(circle)
            order.append(circle.pop(place))
            $then
        return order
        """,
        lambda v, n, k: list(turn([*range(1, n + 1)], k, v.name)),
        rows("name rule then",
            ("onwards", "with the next one that is still there", "pass"),
            ("skipping", "behind the next one that is still there, which is skipped", "place += 1"),
            ("growing", "with the next one that is still there, but k grows by 1 each time",
             "k += 1"),
            ("turning_back", "with number 1 again, or with the smallest number that is left",
             "place = 0"),
        )),
    T("range_with_rule", 1, "numbers_${way_name}_between",
      {"low": Int(-20, 40), "high": Int(20, 60)},
        "Return the list of all whole numbers from low to high, both included, ascending, that are "
        "$way. It is empty if there are none or if low is greater than high.",
        "return [n for n in range(low, high + 1) if $way_code]",
        lambda v, low, high: [n for n in range(-99, 99) if low <= n <= high and v.way(n)],
        pieces("way",
            ("by_6_rest_1", "greater by 1 than a multiple of 6", "n % 6 == 1",
             lambda n: (n - 1) // 6 * 6 == n - 1),
            ("by_7_or_end_5", "multiples of 7 or end with the digit 5",
             "n % 7 == 0 or abs(n) % 10 == 5",
             lambda n: n in range(-98, 99, 7) or str(n)[-1] == "5"),
            ("by_digit_4", "written with the digit 4", "'4' in str(n)",
             lambda n: abs(n) % 10 == 4 or abs(n) // 10 == 4),
        )),
    T("zigzag", 3, "bounce_between_${low}_and_$high",
      {"start": Int(0, 9), "steps": List(Int(-9, 9), least=1)},
        "A point at start (between 0 and 9) moves by each of steps in turn (negative: down). "
        "Whenever it would go below $low or above $high it is thrown back from there by as much as "
        "it would have gone beyond. Return the list of its places after each step.",
        """
        place, places = start, []
        for step in steps:
            place += step
            if place < $low:
                place = 2 * $low - place
            if place > $high:
                place = 2 * $high - place
            places.append(place)
        return places
        """,
        lambda v, start, steps: [
            *accumulate(
                steps, lambda p, s: fold(p + s - v.low, v.high - v.low) + v.low, initial=start
            )
        ][1:],
        rows("low high", (0, 9), (0, 12), (-3, 10)),
    ),
]


def fold(place: int, size: int) -> int:
    """Reflect at 0 and at size."""
    return size - abs(size - place % (2 * size))


def turn(circle: list, k: int, way: str):
    """By rotation of the list."""
    while circle:
        at = (k - 1) % len(circle)
        yield circle[at]
        circle = circle[at + 1 :] + circle[:at]
        k += way == "growing"
        if way == "skipping":
            circle = circle[1:] + circle[:1]
        if way == "turning_back":
            circle = sorted(circle)


# ------------------------------------------------------------------------------------------- grids


def moved(grid: list, rows: int, columns: int) -> list:
    """The cells at this distance, 0 outside."""
    at = {(i, j): cell for i, row in enumerate(grid) for j, cell in enumerate(row)}
    return [
        [at.get((i + rows, j + columns), 0) for j in range(len(grid[0]))] for i in range(len(grid))
    ]


BOX = "grid is a list of rows of equal length, with at least one row and one column. "

GRIDS = [
    T("line_reduce", 1, "${way_name}_of_each_$line", GRID,
        BOX + "Return the list of the $way of each $line, $order.",
        "return [$way_code for part in $lines]",
        lambda v, grid: (
            [v.way([row[j] for row in grid]) for j in range(len(grid[0]))]
            if v.line == "column"
            else [v.way(grid[i]) for i in range(len(grid))]
        ),
        [
            {"way": way, "line": line, "order": order, "lines": lines}
            for line, order, lines in (
                ("column", "from left to right", "zip(*grid)"),
                ("row", "from top to bottom", "grid"),
            )
            for way in (MAX, SPAN, ENDS)
        ][:5],
    ),
    T("cells_sum", 2, "sum_of_$which_name", GRID,
        BOX + "Return the sum of $which. Rows and columns are numbered from 0.",
        """
        total = 0
        for i, row in enumerate(grid):
            for j, cell in enumerate(row):
                if $which_code:
                    total += cell
        return total
        """,
        lambda v, grid: v.which(grid),
        pieces("which",
            ("border", "all cells at the border (the first and last row and column)",
             "i in (0, len(grid) - 1) or j in (0, len(row) - 1)",
             lambda g: sum(map(sum, g)) - sum(map(sum, [row[1:-1] for row in g[1:-1]]))),
            ("inner_cells", "all cells that do not lie at the border (0 if there are none)",
             "0 < i < len(grid) - 1 and 0 < j < len(row) - 1",
             lambda g: sum(map(sum, [row[1:-1] for row in g[1:-1]]))),
            ("dark_squares", "all cells whose row number and column number have an odd sum",
             "(i + j) % 2 == 1",
             lambda g: sum(sum(row[1 - i % 2 :: 2]) for i, row in enumerate(g))),
            ("upper_triangle", "all cells whose column number is greater than their row number",
             "j > i", lambda g: sum(sum(row[i + 1 :]) for i, row in enumerate(g))),
            ("row_maxima", "all cells that are as great as the greatest cell of their row, each of "
             "several equal ones counted", "cell == max(row)",
             lambda g: sum(max(row) * row.count(max(row)) for row in g)),
        )),
    T("rearrange", 2, "grid_$way_name", GRID,
        BOX + "Return a new grid, $way.",
        "return $way_code",
        lambda v, grid: v.way(grid, range(len(grid)), range(len(grid[0]))),
        pieces("way",
            ("turned_right", "grid turned clockwise by a quarter",
             "[list(column)[::-1] for column in zip(*grid)]",
             lambda g, r, c: [[g[i][j] for i in reversed(r)] for j in c]),
            ("turned_left", "grid turned counter-clockwise by a quarter",
             "[list(column) for column in zip(*grid)][::-1]",
             lambda g, r, c: [[g[i][j] for i in r] for j in reversed(c)]),
            ("with_shifted_rows",
             "in which row number i (from 0) is rotated to the left by i places",
             "[row[i % len(row):] + row[:i % len(row)] for i, row in enumerate(grid)]",
             lambda g, r, c: [[g[i][(j + i) % len(c)] for j in c] for i in r]),
            ("over_the_corner", "mirrored at the diagonal from the top right to the bottom left "
             "(its rows are the columns of grid from right to left, each read from bottom to top)",
             "[list(column)[::-1] for column in zip(*grid)][::-1]",
             lambda g, r, c: [[g[i][j] for i in reversed(r)] for j in reversed(c)]),
        )),
    T("read_out", 2, "read_grid_$way_name", GRID,
        BOX + "Return one list of all its cells, $way.",
        """
        cells = []
        for i, line in enumerate($lines):
            cells += list(line)[::$step]
        return cells
        """,
        lambda v, grid: v.way(grid, len(grid), len(grid[0])),
        [
            {"lines": lines, "step": step, "way": P(name, says, "", oracle)}
            for name, says, lines, step, oracle in (
                ("snake", "row by row from the top, the first row from left to right, the next "
                 "from right to left, and so on in turn", "grid", "-1 if i % 2 else 1",
                 lambda g, r, c: [
                 g[i][j if i % 2 == 0 else c - 1 - j] for i in range(r) for j in range(c)]),
                ("snake_of_columns", "column by column from the left, the first column from bottom "
                 "to top, the next from top to bottom, and so on in turn", "zip(*grid)",
                 "1 if i % 2 else -1", lambda g, r, c: [
                 g[i if j % 2 else r - 1 - i][j] for j in range(c) for i in range(r)]),
                ("columns_from_right", "column by column from the right, each from top to bottom",
                 "list(zip(*grid))[::-1]", "1",
                 lambda g, r, c: [g[i][j] for j in range(c - 1, -1, -1) for i in range(r)]),
            )
        ],
        held_out=True,
    ),
    T("neighbour_sums", 3, "grid_$way_name", {"grid": Grid(Int(0, 5), most=3)},
        BOX + "Return a new grid of the same size in which each cell is $way, always "
        "taken from the given grid. Outside of the grid there are no cells.",
        """
        result = [[0] * len(row) for row in grid]
        for i, row in enumerate(grid):
            for j, cell in enumerate(row):
                around = [grid[i + a][j + b] for a, b in $steps
                          if 0 <= i + a < len(grid) and 0 <= j + b < len(row)]
                result[i][j] = $way_code
        return result
        """,
        lambda v, grid: [
            [v.way(cell, list(values)) for cell, values in zip(row, zip(*lines))]
            for row, *lines in zip(grid, *[moved(grid, a, b) for a, b in v.steps])
        ],
        [
            {"steps": steps, "way": P(*piece)}
            for steps, *piece in (
                (((-1, 0), (1, 0), (0, -1), (0, 1)), "of_neighbour_sums",
                 "the sum of the cells above, below, left and right of it", "sum(around)",
                 lambda c, s: sum(s)),
                (((-1, -1), (-1, 1), (1, -1), (1, 1)), "of_diagonal_maxima", "the greatest of the "
                 "four cells that touch it only at a corner, or 0 if there are none",
                 "max(around, default=0)", lambda c, s: sorted(s)[-1]),
                (((-1, 0), (1, 0), (0, -1), (0, 1)), "of_greater_neighbours", "the number of cells "
                 "above, below, left or right of it that are greater than it",
                 "sum(other > cell for other in around)",
                 lambda c, s: len([x for x in s if x > c])),
                (((0, -1), (0, 1)), "plus_both_sides",
                 "itself plus twice the sum of the cells just left and just right of it",
                 "cell + 2 * sum(around)", lambda c, s: c + sum(s) + sum(s)),
            )
        ]),
    T("gravity", 3, "let_fall_$way", {"grid": Grid(Choice("..AB"), most=4)},
        BOX
        + "Each cell is a letter or an empty place ('.'). All letters $fall as far as they can, "
        "without changing their order in their $line. Return the new grid.",
        """
        lines = [list(line) for line in $lines]
        result = []
        for line in lines:
            full = [cell for cell in line if cell != '.']
            empty = ['.'] * (len(line) - len(full))
            result.append($sum)
        return $back
        """,
        lambda v, grid: v.check(grid),
        [
            {"way": way, "fall": fall, "line": line, "lines": lines, "sum": total, "back": back,
             "check": check}
            for way, fall, line, lines, total, back, check in (
                ("down", "fall down", "column", "zip(*grid)", "empty + full",
                 "[list(row) for row in zip(*result)]", lambda g: [
                 *map(list, zip(*[sorted(c, key=lambda x: x != ".") for c in zip(*g)]))]),
                ("up", "rise to the top", "column", "zip(*grid)", "full + empty",
                 "[list(row) for row in zip(*result)]", lambda g: [
                 *map(list, zip(*[sorted(c, key=lambda x: x == ".") for c in zip(*g)]))]),
                ("right", "slide to the right", "row", "grid", "empty + full", "result",
                 lambda g: [sorted(row, key=lambda x: x != ".") for row in g]),
            )
        ],
        held_out=True,
    ),
    T("rings", 3, "spiral_$way_name", GRID,
        BOX + "Return the list of all cells on a spiral that begins at the top left corner, runs "
        "$way, and winds inwards around what is left until every cell has been visited.",
        """
        rows, cells = [list(row) for row in grid], []
        $turned
        while rows:
            cells += rows.pop(0)
            rows = [list(column) for column in zip(*rows)][::-1]
        return cells
        """,
        lambda v, grid: walk_inwards(grid, v.first),
        [
            {"way": P(name, says, "", None), "turned": turned, "first": first}
            for name, says, turned, first in (
                ("clockwise", "first to the right along the first row, then down", "pass", (0, 1)),
                ("counter_clockwise", "first down along the first column, then to the right",
                 "rows = [list(column) for column in zip(*grid)]", (1, 0)),
            )
        ]),
    T("robot_on_grid", 3, "collect_on_grid_$edge_name",
      {"grid": Grid(Int(1, 9), most=4), "moves": Joined(Choice("UDLR"), most=8)},
        BOX + "A robot begins on the top left cell and makes the moves U, D, L and R (up, down, "
        "left, right). A move over the edge $edge. Return the sum of the cells where it stands at "
        "the beginning and after each move, a cell as often as it stands there.",
        """
        i = j = 0
        total = grid[0][0]
        for move in moves:
            a = i + (move == 'D') - (move == 'U')
            b = j + (move == 'R') - (move == 'L')
            $edge_code
            total += grid[i][j]
        return total
        """,
        lambda v, grid, moves: v.edge(grid, moves),
        pieces("edge",
            ("staying", "is left out, but the cell where the robot stands counts again",
             "if 0 <= a < len(grid) and 0 <= b < len(grid[0]):\n                i, j = a, b",
             lambda g, m: roam(g, m, lambda p, q, size: q if 0 <= q < size else p)),
            ("round", "leads to the opposite end of the same row or column",
             "i, j = a % len(grid), b % len(grid[0])",
             lambda g, m: roam(g, m, lambda p, q, size: q % size)),
            ("home", "takes the robot back to the top left cell",
             "inside = 0 <= a < len(grid) and 0 <= b < len(grid[0])\n"
             "            i, j = (a, b) if inside else (0, 0)", lambda g, m: roam(g, m, None)),
        )),
]


def roam(grid: list, moves: str, bound) -> int:
    place, total = (0, 0), grid[0][0]
    size = (len(grid), len(grid[0]))
    for move in moves:
        step = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}[move]
        there = tuple(map(int.__add__, place, step))
        if bound:
            place = tuple(map(bound, place, there, size))
        else:
            place = there if all(0 <= n < most for n, most in zip(there, size)) else (0, 0)
        total += grid[place[0]][place[1]]
    return total


def walk_inwards(grid: list, step: tuple) -> list:
    """Cell by cell, with a turn where the way is blocked."""
    free = {(i, j): cell for i, row in enumerate(grid) for j, cell in enumerate(row)}
    a, b = step
    turn = (lambda a, b: (b, -a)) if step == (0, 1) else (lambda a, b: (-b, a))
    place, cells = (0, 0), []
    while free:
        cells.append(free.pop(place))
        if (place[0] + a, place[1] + b) not in free:
            a, b = turn(a, b)
        place = (place[0] + a, place[1] + b)
    return cells


# ---------------------------------------------------------------------------------------- encoding

PLAIN = {"text": Joined(Choice("abcehmtxz "), most=8)}
BITS = {"bits": Joined(Choice("01"), most=10)}


def to_front(text: str, order: str, move: Callable) -> list[int]:
    if not text:
        return []
    at = order.find(text[0])
    return [at, *to_front(text[1:], move(order, at), move)]


ENCODING = [
    T("shift_letters", 2, "shift_letters_$way_name", PLAIN,
        "text holds lower-case letters and spaces. Replace each letter by the one $way in "
        "the alphabet (after z comes a again, before a comes z); spaces stay. Return the new text.",
        """
        result = ''
        for i, c in enumerate(text):
            if c == ' ':
                result += c
            else:
                result += chr((ord(c) - ord('a') + $way_code) % 26 + ord('a'))
        return result
        """,
        lambda v, text: "".join(shift(c, v.way(i)) for i, c in enumerate(text)),
        pieces("way",
            ("by_3", "3 places after it", "3", lambda i: 3),
            ("back_by_5", "5 places before it", "-5", lambda i: -5),
            ("by_index", "as many places after it as its index in text (from 0, spaces count)", "i",
             lambda i: i),
            ("by_index_back",
             "as many places before it as its index in text (from 0, spaces count)", "-i",
             lambda i: -i),
            ("in_turn", "2 places after it at an even index in text, 4 places before it at an odd "
             "index (the first index is 0, spaces count)", "(2 if i % 2 == 0 else -4)",
             lambda i: (2, -4)[i & 1]),
        )),
    T("mirror_alphabet", 2, "swap_letters_$way_name", PLAIN,
        "text holds lower-case letters and spaces. Return it with every letter replaced: $way. "
        "Spaces stay.",
        """
        letters = 'abcdefghijklmnopqrstuvwxyz'
        swapped = $way_code
        return ''.join(swapped[letters.index(c)] if c in letters else c for c in text)
        """,
        lambda v, text: "".join(map(v.way, text)),
        pieces("way",
            ("mirrored", "a by z, b by y, c by x, and so on to z by a", "letters[::-1]",
             lambda c: c if c == " " else chr(219 - ord(c))),
            ("halves",
             "a by n, b by o, and so on to m by z, and n by a, o by b, and so on to z by m",
             "letters[13:] + letters[:13]", lambda c: shift(c, 13)),
            ("in_pairs", "a by b and b by a, c by d and d by c, and so on to y by z and z by y",
             "''.join(letters[i ^ 1] for i in range(26))", lambda c: (c if c == " "
             else c.translate(str.maketrans(
             ALPHABET[::2] + ALPHABET[1::2], ALPHABET[1::2] + ALPHABET[::2])))),
        )),
    T("key_shift", 3, "shift_by_key_$way_name",
      {"text": Joined(Choice("abcehmtxz "), most=8), "key": Joined(Choice("abcd"), "", 1, 3)},
        "text holds lower-case letters and spaces, key at least one lower-case letter. Go through "
        "text and key at the same time (key begins again when it ends; $spaces). Each letter of "
        "text moves $way in the alphabet as the key letter says (a: 0, b: 1, c: 2, ...); after z "
        "comes a again. Spaces stay. Return the new text.",
        """
        result, used = '', 0
        for c in text:
            step = ord(key[used % len(key)]) - ord('a')
            if c == ' ':
                result += c
                used += $skip
            else:
                result += chr((ord(c) - ord('a') $sign step) % 26 + ord('a'))
                used += 1
        return result
        """,
        lambda v, text, key: "".join(
            shift(
                c,
                int(v.sign + "1")
                * ALPHABET.index((key * 99)[i if v.skip else len(text[:i].replace(" ", ""))]),
            )
            for i, c in enumerate(text)
        ),
        [
            {"way": P(name, says, "", None), "spaces": spaces, "skip": skip, "sign": sign}
            for name, says, spaces, skip, sign in (
                ("over_spaces", "forward by as many places",
                 "a space of text uses up no key letter", 0, "+"),
                ("with_spaces", "forward by as many places",
                 "a space of text uses up one key letter, too", 1, "+"),
                ("backwards", "back by as many places", "a space of text uses up no key letter", 0,
                 "-"),
            )
        ]),
    T("bit_rules", 3, "bits_$way_name", BITS,
        "bits is a string of the digits 0 and 1. Return $way. An empty string gives an "
        "empty string.",
        "return ''.join($way_code)",
        lambda v, bits: "".join(map(str, v.way([*map(int, bits)]))),
        pieces("way",
            ("changes", "a string of the same length: its first character is that of bits, and "
             "each other one is 1 if the bit there differs from the one before it, else 0",
             "'1' if b != a else '0' for a, b in zip('0' + bits, bits)",
             lambda s: [b if i == 0 else s[i - 1] ^ b for i, b in enumerate(s)]),
            ("running_parity", "a string of the same length with, at each place, 1 if the number "
             "of ones up to there, this place included, is odd, else 0",
             "str(bits[:i].count('1') % 2) for i in range(1, len(bits) + 1)",
             lambda s: accumulate(s, int.__xor__)),
            ("stuffed", "bits with an additional 0 behind every 1 that follows on another 1",
             "'10' if a + b == '11' else b for a, b in zip('0' + bits, bits)",
             lambda s: re.sub("(?<=1)1", "10", "".join(map(str, s)))),
            ("majority",
             "a string of the same length with, at each place, the bit that occurs more "
             "often among this place and its two neighbours (outside of bits there are zeros)",
             "str(int(('0' + bits + '0')[i:i + 3].count('1') > 1) ) for i in range(len(bits))",
             lambda s: [a & b | b & c | a & c for a, b, c in zip([0, *s], s, [*s[1:], 0])]),
        )),
    T("move_to_front", 3, "encode_with_list_$way_name", {"text": Joined(Choice("abcde"), most=7)},
        "A list begins as the letters a, b, c, d, e. For each letter of text write down its index "
        "in the list (the first is 0), and then $way. Return all indexes in order.",
        """
        order, found = list('abcde'), []
        for c in text:
            i = order.index(c)
            found.append(i)
            $way_code
        return found
        """,
        lambda v, text: to_front(text, "abcde", v.way),
        pieces("way",
            ("to_front", "move it to the front of the list", "order.insert(0, order.pop(i))",
             lambda s, i: s[i] + s.replace(s[i], "")),
            ("to_end", "move it to the end of the list", "order.append(order.pop(i))",
             lambda s, i: s.replace(s[i], "") + s[i]),
            ("one_forward", "swap it with the one before it in the list, if there is one",
             "if i > 0:\n                order[i - 1], order[i] = order[i], order[i - 1]",
             lambda s, i: s[: i - 1] + s[i] + s[i - 1] + s[i + 1 :] if i else s),
            ("turned",
             "rotate the list so that it is at the front, the order in the circle being kept",
             "order = order[i:] + order[:i]", lambda s, i: (s + s)[i : i + 5]),
        )),
    T("deltas", 1, "decode_$way_name", {"codes": List(Int(-9, 9))},
        "codes are the steps of a list of numbers that begins with $start: each code says $way. "
        "Return that list with its first number, so with one more element than codes.",
        """
        numbers = [$start]
        for code in codes:
            numbers.append($way_code)
        return numbers
        """,
        lambda v, codes: list(accumulate([v.start, *codes], v.way)),
        [
            {"start": start, "way": P(*piece)}
            for start, *piece in (
                (0, "steps_from_0", "by how much the next number is greater than the one before it",
                 "numbers[-1] + code", lambda n, c: c + n),
                (100, "losses_from_100",
                 "by how much the next number is smaller than the one before it",
                 "numbers[-1] - code", lambda n, c: -(c - n)),
                (5, "mirrored_from_5", "what the sum of the next number and the one before it is",
                 "code - numbers[-1]", lambda n, c: -n + c),
            )
        ],
        held_out=True,
    ),
    T("table_code", 2, "${way_name}_code", {"text": Joined(Choice("abefghklmosty"), most=6)},
        "text holds lower-case letters. Number them a: 0, b: 1, ... z: 25 and write for each "
        "letter $way. Return it all as one string; an empty text gives an empty string.",
        """
        result = ''
        for c in text:
            n = ord(c) - ord('a')
            result += $way_code
        return result
        """,
        lambda v, text: "".join(v.way(ALPHABET.find(c)) for c in text),
        pieces("way",
            ("row_and_column", "the row and then the column of its number in a table that has "
             "6 numbers in each row, row by row (rows and columns count from 1)",
             "str(n // 6 + 1) + str(n % 6 + 1)",
             lambda n: next(f"{r + 1}{n - 6 * r + 1}" for r in range(5) if n < 6 * r + 6)),
            ("two_digit", "its number with two digits, so a as 00 and z as 25", "f'{n:02d}'",
             lambda n: str(n // 10) + str(n % 10)),
            ("base_3", "its number in base 3 with three digits, so a as 000 and z as 221",
             "str(n // 9) + str(n // 3 % 3) + str(n % 3)",
             lambda n: "".join(map(str, digits_of(27 + n, 3)[1:]))),
            ("letter_and_tens", "the letter that has the number n % 5, and then the whole part of "
             "n / 5, where n is its number", "'abcde'[n % 5] + str(n // 5)",
             lambda n: chr(97 + n - n // 5 * 5) + f"{(n - n % 5) // 5}"),
        ),
        held_out=True,
    ),
    T("parity_blocks", 3, "${way_name}_blocks", BITS,
        "Cut bits, a string of 0 and 1, into blocks of $k (the last one may be shorter). For each "
        "block write $way, all in one string; an empty string stays empty.",
        """
        result = ''
        for start in range(0, len(bits), $k):
            block = bits[start:start + $k]
            ones = block.count('1')
            result += $way_code
        return result
        """,
        lambda v, bits: "".join(v.way(block, sum(map(int, block))) for block in blocks(bits, v.k)),
        [
            {"k": k, "way": P(*piece)}
            for k, *piece in (
                (3, "parity", "the block and then 1 if it has an odd number of ones, else 0",
                 "block + str(ones % 2)", lambda b, n: b + "01"[n & 1]),
                (4, "count", "the number of its ones, and then the block in reverse",
                 "str(ones) + block[::-1]", lambda b, n: f"{n}{''.join(reversed(b))}"),
                (4, "invert", "the block with 0 and 1 swapped followed by '!' if more than half of "
                 "it are ones, else the block as it is",
                 "block.translate({48: '1', 49: '0'}) + '!' if 2 * ones > len(block) else block",
                 lambda b, n: (b if n <= len(b) - n else "".join(str(1 - int(c)) for c in b) + "!"
                 )),
            )
        ],
        held_out=True,
    ),
]

# ---------------------------------------------------------------------------------------- machines

TOKENS = {"tokens": List(Choice(("1", "2", "3", "5", "8", "+", "-", "dup", "swap")), most=8)}
MOVES = Joined(Choice("FFLR"), most=9)


def stack_machine(tokens: list[str], empty: bool, other: Callable) -> list[int]:
    """By matching the whole stack."""
    stack = ()
    for token in tokens:
        match token, stack:
            case "+", (*rest, a, b):
                stack = (*rest, a + b)
            case "-", (*rest, a, b):
                stack = (*rest, other(a, b))
            case "swap", (*rest, a, b):
                stack = (*rest, b, a)
            case "dup", (*rest, a):
                stack = (*rest, a, a)
            case (("+" | "-" | "swap" | "dup"), _):
                stack = () if empty else stack
            case _:
                stack = (*stack, int(token))
    return list(stack)


def stations(text: str, state: str, table: dict) -> str:
    return state + stations(text[1:], table[f"{state} {text[0]}"], table) if text else state


def walk(moves: str, act: Callable) -> list[int]:
    """In complex numbers: x to the right, y up, at first facing up."""
    place, facing = 0j, 1j
    for number, move in enumerate(moves, 1):
        place, facing = act(place, facing, move, number)
    return [int(place.real), int(place.imag)]


MACHINES = [
    T("line_walker", 2, "walk_on_line_$rule_name", {"moves": Joined(Choice("LRRX"), most=9)},
        "A walker begins at place 0 and follows the letters of moves: L is one step to the left "
        "(minus 1), R one step to the right (plus 1), and X $rule. Return the list of "
        "its places after each letter.",
        """
        place, places = 0, []
        for move in moves:
            if move == 'L':
                place -= 1
            elif move == 'R':
                place += 1
            else:
                place = $rule_code
            places.append(place)
        return places
        """,
        lambda v, moves: list(
            accumulate(moves, lambda p, m: {"L": p - 1, "R": p + 1}.get(m, v.rule(p)), initial=0)
        )[1:],
        pieces("rule",
            ("doubling", "doubles the number of the place", "place * 2", lambda p: p + p),
            ("mirroring", "takes the walker to the mirrored place on the other side of 0", "-place",
             lambda p: 0 - p),
            ("jumping", "is a jump by 3 to the right", "place + 3", lambda p: 3 + p),
            ("squaring", "multiplies the number of the place by itself", "place * place",
             lambda p: abs(p) ** 2),
        )),
    T("stack", 3, "run_stack_$way_name", TOKENS,
        "A stack is empty at first. Of the list tokens each is handled in turn: a number (as a "
        "string, '3') is put on top; '+' takes the two top numbers off and puts their sum on; '-' "
        "does so with $way; 'dup' puts the top number on once more; 'swap' swaps "
        "the two top numbers. A token for which there are too few numbers $few. Return the stack "
        "as a list, its top last.",
        """
        stack = []
        for token in tokens:
            if token.isdigit():
                stack.append(int(token))
            elif len(stack) < (1 if token == 'dup' else 2):
                $few_code
            elif token == 'dup':
                stack.append(stack[-1])
            else:
                b, a = stack.pop(), stack.pop()
                stack += {'+': [a + b], '-': [$way_code], 'swap': [b, a]}[token]
        return stack
        """,
        lambda v, tokens: stack_machine(tokens, v.few(), v.way),
        [
            {"way": P(*way), "few": P("", *few)}
            for way, few in (
                (("skipping", "the lower of them minus the upper", "a - b", lambda a, b: -b + a),
                 ("is skipped", "pass", lambda: False)),
                (("clearing", "the upper of them minus the lower", "b - a", lambda a, b: -a + b),
                 ("empties the stack", "stack = []", lambda: True)),
                (("distances", "their distance (never negative)", "abs(a - b)",
                 lambda a, b: max(a, b) - min(a, b)), ("is skipped", "continue", lambda: False)),
            )
        ]),
    T("turtle", 3, "turtle_$rule_name", {"moves": MOVES},
        "A turtle begins at x = 0, y = 0 and faces up (y grows). Of the letters of moves, L is a "
        "quarter turn to the left, R one to the right, and F $rule. Return [x, y] at the end.",
        """
        x, y, dx, dy = 0, 0, 0, 1
        for number, move in enumerate(moves, 1):
            if move == 'L':
                dx, dy = -dy, dx
            elif move == 'R':
                dx, dy = dy, -dx
            else:
                $rule_code
        return [x, y]
        """,
        lambda v, moves: walk(moves, v.rule),
        pieces("rule",
            ("with_growing_steps", "is a step ahead whose length is the number of the letter in "
             "moves (the first letter has number 1, all letters count)",
             "x, y = x + number * dx, y + number * dy",
             lambda p, f, m, k: (p, f * {"L": 1j, "R": -1j}[m]) if m != "F" else (p + k * f, f)),
            ("in_a_box", "is a step of length 1 ahead, which is left out if it would make x or y "
             "greater than 2 or smaller than -2",
             "x, y = max(-2, min(2, x + dx)), max(-2, min(2, y + dy))", lambda p, f, m, k: (
             (p, f * {"L": 1j, "R": -1j}[m]) if m != "F"
             else (p + f * (abs((p + f).real) < 3 and abs((p + f).imag) < 3), f))),
            ("that_turns_on_odd", "is a step of length 2 ahead and then, if it is not an even-"
             "numbered letter of moves (the first letter has number 1), a quarter turn to the left",
             "x, y = x + 2 * dx, y + 2 * dy\n" "                if number % 2 == 1:\n"
             "                    dx, dy = -dy, dx", lambda p, f, m, k: (
             (p, f * {"L": 1j, "R": -1j}[m]) if m != "F" else (p + f + f, f * (1j if k & 1 else 1))
             )),
        )),
    T("compass", 1, "walk_by_compass_$rule_name", {"moves": Joined(Choice("NESW"), most=9)},
        "A walker begins at x = 0, y = 0. N adds 1 to y, S takes 1 from y, E adds 1 to x, W takes "
        "1 from x, for each letter of moves in turn. Return $rule.",
        """
        x = y = 0
        path = [[0, 0]]
        for move in moves:
            x += (move == 'E') - (move == 'W')
            y += (move == 'N') - (move == 'S')
            path.append([x, y])
        return $rule_code
        """,
        lambda v, moves: v.rule(
            moves, lambda s: [s.count("E") - s.count("W"), s.count("N") - s.count("S")]
        ),
        pieces("rule",
            ("to_the_end", "[x, y] at the end", "[x, y]", lambda s, at: at(s)),
            ("distances", "the list of x + y after each letter", "[a + b for a, b in path[1:]]",
             lambda s, at: [sum(at(s[:i])) for i in range(1, len(s) + 1)]),
            ("corners",
             "[the smallest x, the greatest y] of all places on the way, the first one included",
             "[min(a for a, b in path), max(b for a, b in path)]", lambda s, at: [
             min(at(s[:i])[0] for i in range(len(s) + 1)),
             max(at(s[:i])[1] for i in range(len(s) + 1))]),
        )),
    T("battery", 2, "charge_of_battery_$name", {"changes": List(Int(-9, 9), most=8)},
        "A battery can hold from 0 to $most and begins at $start. For each number in changes its "
        "charge changes by that number, but stays between 0 and $most: what is too much or missing "
        "$lost. Return $what.",
        """
        charge, lost, charges = $start, 0, []
        for change in changes:
            wanted = charge + change
            charge = max(0, min($most, wanted))
            lost += abs(wanted - charge)
            charges.append(charge)
        return $result
        """,
        lambda v, changes: v.oracle(changes, v.most, v.start),
        rows("name most start lost what result oracle",
            ("over_time", 20, 10, "is lost", "the list of its charges after each change", "charges",
             lambda s, m, c: [*accumulate(s, lambda a, b: sorted([0, a + b, m])[1], initial=c)][1:
             ]),
            ("with_loss", 12, 6, "is added up, as a positive number, as the loss",
             "[the charge at the end, the loss]", "[charge, lost]", lambda s, m, c: reduce(
             lambda r, n: [sorted([0, r[0] + n, m])[1], r[1] + max(0, r[0] + n - m, -r[0] - n)], s,
             [c, 0])),
            ("summed", 15, 0, "is lost", "the sum of its charges after each change", "sum(charges)",
             lambda s, m, c: sum(
             [*accumulate(s, lambda a, b: sorted([0, a + b, m])[1], initial=c)][1:])),
        )),
    T("account", 3, "account_$rule_name", {"amounts": List(Int(-60, 60), most=8)},
        "An account begins with 0. The list amounts holds payments in (positive) and out "
        "(negative). $rule Return [the balance at the end, the number of refused payments].",
        """
        balance = refused = 0
        for amount in amounts:
            if $rule_code:
                refused += 1
            else:
                balance += amount
        return [balance, refused]
        """,
        lambda v, amounts: reduce(
            lambda state, n: (
                [state[0], state[1] + 1]
                if v.rule(state[0], n, state[1])
                else [state[0] + n, state[1]]
            ),
            amounts,
            [0, 0],
        ),
        pieces("rule",
            ("without_debt", "A payment out is refused if it is greater than the balance.",
             "balance + amount < 0", lambda b, n, r: -n > b),
            ("with_limit",
             "A payment is refused if the balance would then be below -50 or above 80.",
             "not -50 <= balance + amount <= 80", lambda b, n, r: b + n not in range(-50, 81)),
            ("half_at_most", "A payment out is refused if it is greater than half of the balance.",
             "amount < 0 and -2 * amount > balance", lambda b, n, r: n < 0 and b + n < -n),
            ("no_small", "A payment is refused if it is, in or out, smaller than 10, or would make "
             "the balance negative.", "abs(amount) < 10 or balance + amount < 0",
             lambda b, n, r: n in range(-9, 10) or b < -n),
        )),
    T("automaton", 3, "states_of_automaton_$name", {"text": Joined(Choice("xy"), most=9)},
        "A machine has the states A, B and C and begins in A. It reads text, which holds the "
        "letters x and y, and changes its state with each letter: $says. Return the string of its "
        "states, A at the beginning included.",
        """
        rules = $rules
        state = states = 'A'
        for c in text:
            state = rules[state + c]
            states += state
        return states
        """,
        lambda v, text: stations(text, "A", dict(re.findall("in (. .) leads to (.)", v.says))),
        [
            {"name": name, "says": ", ".join(f"in {state} {c} leads to {to}"
             for (state, c), to in zip(product("ABC", "xy"), targets)),
             "rules": {s + c: to for (s, c), to in zip(product("ABC", "xy"), targets)}}
            for name, targets in (
                ("p", "BACBCA"),
                ("q", "ABCAAC"),
                ("r", "CBBACB"),
                ("s", "BCABAA"),
            )
        ]),
    T("thermostat", 3, "heating_$way_name", {"temperatures": List(Int(12, 26), most=9)},
        "A heating is off at first. For each element of the list temperatures, in order: it goes "
        "on if the temperature is below $low, goes off if it is above $high, and stays as it is "
        "otherwise. Return $way.",
        """
        on, days = False, []
        for t in temperatures:
            on = t < $low or on and t <= $high
            days.append((t, on))
        return $way_code
        """,
        lambda v, s: v.way(
            s,
            [
                ([0] + [1 if t < v.low else 0 for t in s[: i + 1] if not v.low <= t <= v.high])[-1]
                for i in range(len(s))
            ],
        ),
        [
            {"low": low, "high": high, "way": P(*piece)}
            for low, high, *piece in (
                (17, 21, "log", "a string with 1 for each element at which it is then on and 0 for "
                 "each other, in order", "''.join(str(int(on)) for t, on in days)",
                 lambda s, on: "".join(map(str, on))),
                (18, 20, "sum", "the sum of the temperatures at which it is then on",
                 "sum(t for t, on in days if on)", lambda s, on: sum(t * x for t, x in zip(s, on))),
                (16, 22, "off_list", "the list of the temperatures at which it is then off",
                 "[t for t, on in days if not on]",
                 lambda s, on: [t for t, x in zip(s, on) if x == 0]),
            )
        ],
        held_out=True,
    ),
    T("streaks", 3, "score_with_$rule_name", {"results": Joined(Choice("WWLD"), most=9)},
        "results holds the games of a team in order: W for a win, D for a draw, L for a loss. A "
        "draw gives 1 point, a loss none, and a win $rule. Return the points of each game "
        "as a list.",
        """
        points, streak = [], 0
        for i, game in enumerate(results):
            streak = streak + 1 if game == 'W' else 0
            points.append(($rule_code) if game == 'W' else int(game == 'D'))
        return points
        """,
        lambda v, r: [
            v.rule(len(r[: i + 1]) - len(r[: i + 1].rstrip("W")), r[:i])
            if c == "W"
            else {"D": 1, "L": 0}[c]
            for i, c in enumerate(r)
        ],
        pieces("rule",
            ("growing_streaks", "1 point, plus 1 for each win in the row of wins that ends with "
             "it, itself included", "streak + 1", lambda k, b: k + 1),
            ("capped_streaks", "3 points, but 5 from the third win in a row on",
             "5 if streak >= 3 else 3", lambda k, b: 3 + 2 * (k > 2)),
            ("comeback", "2 points, and 4 more if the game just before it was a loss",
             "6 if results[:i][-1:] == 'L' else 2", lambda k, b: 6 if b.endswith("L") else 2),
            ("debts",
             "3 points less the number of losses before it in results, but at least 1 point",
             "max(3 - results[:i].count('L'), 1)",
             lambda k, b: [3, 2, 1][min(2, len(re.findall("L", b)))]),
        )),
    T("lift", 2, "lift_travel_$way_name", {"floors": List(Int(0, 12), most=8)},
        "A lift begins at floor 0 and goes to each floor of the list floors in turn. $way",
        """
        place = total = 0
        for floor in floors:
            way = abs(floor - place)
            $way_code
            place = floor
        return total
        """,
        lambda v, floors: sum(v.way(abs(a - b), a < b) for a, b in zip([0, *floors], floors)),
        pieces("way",
            ("with_stops", "It takes 2 seconds for each floor that it travels and 5 more at each "
             "stop where it has moved before. Return the seconds; 0 for an empty list.",
             "total += 2 * way + (5 if way else 0)", lambda d, up: 2 * d + 5 * (d > 0)),
            ("up_and_down", "Each floor up costs 3, each floor down costs 1. Return the whole "
             "cost; 0 for an empty list.", "total += 3 * way if floor > place else way",
             lambda d, up: d + d * 2 * up),
            ("long_ways", "Each floor costs 4, but on a trip of more than 3 floors each floor "
             "after the third costs 1. Return the whole cost; 0 for an empty list.",
             "total += 4 * min(way, 3) + max(way - 3, 0)",
             lambda d, up: sum([4, 4, 4, *[1] * 9][:d])),
        ),
        held_out=True,
    ),
    T("queue", 3, "serve_queue_$rule_name", {"events": Joined(Choice("abcde--"), most=9)},
        "A queue is empty at first. Each letter in events joins at its end; each dash (-) serves "
        "the one at the front, if there is one. $rule Return $what.",
        """
        queue, served = '', ''
        for event in events:
            if event == '-':
                served += queue[:1]
                queue = queue[1:]
            else:
                $rule_code
        return $result
        """,
        lambda v, events: v.result_of(
            *reduce(
                lambda state, e: (
                    (state[0] + state[1][:1], state[1][1:])
                    if e == "-"
                    else (state[0], v.rule(state[1], e))
                ),
                events,
                ("", ""),
            )
        ),
        [
            {"what": what, "result": result, "result_of": oracle, "rule": P(*piece)}
            for what, result, oracle, *piece in (
                ("the string of those served, in order, a slash (/), and those still in the queue",
                 "served + '/' + queue", lambda s, q: "/".join([s, q]), "of_three",
                 "If three are waiting already, a new letter goes away.",
                 "queue += event if len(queue) < 3 else ''", lambda q, e: (q + e)[:3]),
                ("the string of those served, in order, a slash (/), and those still in the queue",
                 "served + '/' + queue", lambda s, q: f"{s}/{q}", "with_vowels_first",
                 "The letters a and e, however, join at its front.",
                 "queue = event + queue if event in 'ae' else queue + event",
                 lambda q, e: "".join([e, q] if e in ("a", "e") else [q, e])),
                ("the string of those served, in order, a slash (/), and those still in the queue",
                 "served + '/' + queue", lambda s, q: f"{s}/{q}", "dropping_the_oldest",
                 "If three are waiting already, the one at the front goes away unserved when a new "
                 "letter joins.", "queue = (queue + event)[-3:]", lambda q, e: q[len(q) > 2 :] + e),
                ("the string of those still in the queue", "queue", lambda s, q: q,
                 "without_doubles",
                 "A letter that is waiting already leaves its place and joins at the end.",
                 "queue = queue.replace(event, '') + event",
                 lambda q, e: "".join(c for c in q if c != e) + e),
            )
        ]),
    T("cells_in_line", 3, "cells_after_step_$way_name",
      {"cells": Joined(Choice("01"), most=10), "steps": Int(0, 4)},
        "cells is a string of 0 and 1; outside of it all cells are 0. In one step all cells "
        "change at the same time: a cell becomes 1 if $way, otherwise 0. "
        "Return the string after steps such steps, of the same length.",
        """
        for _ in range(steps):
            wide = '0' + cells + '0'
            cells = ''
            for left, cell, right in zip(wide, wide[1:], wide[2:]):
                cells += '1' if $way_code else '0'
        return cells
        """,
        lambda v, cells, steps: reduce(
            lambda s, _: "".join(str(v.way[int(part, 2)]) for part in windows(f"0{s}0", 3)),
            range(steps),
            cells,
        ),
        [
            {"way": P(name, says, code, table)}
            for name, says, code, table in (
                ("one_side", "exactly one of its two neighbours is 1", "left != right",
                 (0, 1, 0, 1, 1, 0, 1, 0)),
                ("grow",
                 "it is 0 and its left neighbour is 1, or it is 1 and its right neighbour is 0",
                 "(left == '1' if cell == '0' else right == '0')", (0, 0, 1, 0, 1, 1, 1, 0)),
                ("two_of_three", "exactly two of the three, itself and its two neighbours, are 1",
                 "(left + cell + right).count('1') == 2", (0, 0, 0, 1, 0, 1, 1, 0)),
                ("lonely", "it is 0 and both neighbours are equal, or it is 1 and they differ",
                 "(left == right) == (cell == '0')", (1, 0, 0, 1, 0, 1, 1, 0)),
            )
        ],
        held_out=True,
    ),
]

# ------------------------------------------------------------------------------------------ tables

NAMES = ("ann", "bob", "cy", "dee", "eva")
SCORES = Table(NAMES, Int(0, 30))
ORDERS = {"orders": List(Row((Choice(("tea", "rice", "salt")), Int(1, 9))), most=6)}

TABLES = [
    T("score_list", 2, "names_$way_name", {"scores": SCORES},
        "scores is a dictionary from names to whole numbers. Return the list of the names $way. An "
        "empty dictionary gives an empty list.",
        "return $way_code",
        lambda v, d: v.way([(n, name) for name, n in d.items()]),
        pieces("way",
            ("by_score", "from the highest to the lowest score; equal ones in alphabetical order",
             "sorted(scores, key=lambda name: (-scores[name], name))", lambda s: [
             b for a, b in sorted(sorted(s, key=lambda p: p[1]), key=lambda p: 99 - p[0])]),
            ("from_the_lowest",
             "from the lowest to the highest score; equal ones in reverse alphabetical order",
             "sorted(sorted(scores, reverse=True), key=scores.get)",
             lambda s: [b for k in range(31) for a, b in sorted(s)[::-1] if a == k]),
            ("above_mean",
             "whose score is greater than the mean of all scores, in alphabetical order",
             "sorted(name for name in scores if scores[name] * len(scores) > "
             "sum(scores.values()))", lambda s: [
             b for b, a in sorted((b, a) for a, b in s) if sum(a - x for x, _ in s) > 0]),
        )),
    T("merge_tables", 1, "merge_$way_name", {"first": SCORES, "second": SCORES},
        "first and second are dictionaries from names to whole numbers. Return a new dictionary "
        "$way.",
        "return $way_code",
        lambda v, a, b: v.way(a, b),
        pieces("way",
            ("adding", "with all names of both, each with the sum of its numbers (a name that is "
             "missing in one counts as 0 there)",
             "{name: first.get(name, 0) + second.get(name, 0) for name in [*first, *second]}",
             lambda a, b: {k: sum(d[k] for d in (a, b) if k in d) for k in NAMES if k in a or k in b
             }),
            ("common", "with those names that both have, each with the number in first minus "
             "that in second",
             "{name: first[name] - second[name] for name in first if name in second}",
             lambda a, b: {k: -(b[k] - a[k]) for k in NAMES if k in a and k in b}),
            ("larger", "with all names of both, each with its number, or with the larger one if "
             "both have it",
             "{name: max(d[name] for d in (first, second) if name in d) for name in "
             "[*first, *second]}",
             lambda a, b: {**a, **{k: n for k, n in b.items() if k not in a or a[k] < n}}),
            ("only_one", "with those names that only one of the two has, each with its number",
             "{k: n for k, n in {**first, **second}.items() if (k in first) != (k in second)}",
             lambda a, b: {k: {**a, **b}[k] for k in set(a) ^ set(b)}),
        )),
    T("group_orders", 2, "orders_$way_name", ORDERS,
        "orders is a list of [article, quantity]; an article may occur several times. Return a "
        "dictionary from each article that occurs $way. An empty list gives an empty "
        "dictionary.",
        """
        groups = {}
        for article, quantity in orders:
            groups.setdefault(article, []).append(quantity)
        return {article: $way_code for article, found in groups.items()}
        """,
        lambda v, orders: {
            name: v.way([q for other, q in orders if other == name]) for name, _ in orders
        },
        pieces("way",
            ("in_total", "to the sum of its quantities", "sum(found)",
             lambda s: reduce(int.__add__, s)),
            ("listed", "to the list of its quantities, the largest first",
             "sorted(found, reverse=True)", lambda s: sorted(s)[::-1]),
            ("without_largest",
             "to the sum of its quantities without the largest one (once, if several are equal)",
             "sum(found) - max(found)", lambda s: sum(sorted(s)[:-1])),
            ("first_and_last", "to the list of its first and its last quantity (the same one twice "
             "if there is only one)", "[found[0], found[-1]]", lambda s: [*s[:1], *s[::-1][:1]]),
        )),
    T("turn_table", 2, "invert_table_$way_name", {"scores": Table(NAMES, Int(1, 4))},
        "scores is a dictionary from names to whole numbers. Return a dictionary whose keys are "
        "$way. An empty dictionary gives an empty one.",
        """
        result = {}
        for name in sorted(scores):
            result.setdefault($key, []).append(name)
        return result
        """,
        lambda v, d: {
            key: sorted(n for n in d if v.way(n, d[n]) == key)
            for key in {v.way(n, d[n]) for n in d}
        },
        [
            {"key": key, "way": P(name, says, "", oracle)}
            for name, says, key, oracle in (
                ("by_number", "these numbers as strings, each with the list of the names that have "
                 "it, in alphabetical order", "str(scores[name])", lambda n, s: f"{s}"),
                ("by_parity", "'even' and 'odd', each with the list of the names whose number is "
                 "even or odd, in alphabetical order; a key without names is left out",
                 "'odd' if scores[name] % 2 else 'even'",
                 lambda n, s: "even" if s in (2, 4) else "odd"),
                ("by_initial_and_number", "the first letter of a name followed by its number, such "
                 "as 'a3', each with the list of such names in alphabetical order",
                 "name[0] + str(scores[name])", lambda n, s: f"{n:.1}{s}"),
            )
        ],
        held_out=True,
    ),
    T("transfers", 3, "accounts_after_$rule_name", {"balances": Table(NAMES[:4], Int(0, 20)),
         "transfers": List(Row((Choice(NAMES[:3]), Choice(NAMES[1:4]), Int(1, 15))), most=5)},
        "balances is a dictionary from names to money. Each of transfers is [giver, taker, amount] "
        "and is carried out in order; who is not in balances counts as having 0 (and gets an entry "
        "when money comes in). $rule Return the new dictionary of balances.",
        """
        money = dict(balances)
        for giver, taker, amount in transfers:
            amount = $rule_code
            if amount > 0:
                money[giver] = money.get(giver, 0) - amount
                money[taker] = money.get(taker, 0) + amount
        return money
        """,
        lambda v, balances, transfers: reduce(
            lambda m, t: give(m, *t[:2], v.rule(m.get(t[0], 0), t[2], t[0] == t[1])),
            transfers,
            balances,
        ),
        pieces("rule",
            ("full_transfers", "A transfer of more than the giver has is skipped.",
             "amount if amount <= money.get(giver, 0) else 0",
             lambda have, n, own: n * (have >= n)),
            ("partial_transfers",
             "If the giver has less than the amount, all that is there is transferred.",
             "min(amount, money.get(giver, 0))", lambda have, n, own: have if have < n else n),
            ("half_transfers", "If the amount is more than half of what the giver has, only half "
             "of that is transferred, rounded down.", "min(amount, money.get(giver, 0) // 2)",
             lambda have, n, own: int(have / 2) if n + n > have else n),
        )),
    T("stock", 3, "stock_after_$rule_name",
      {"stock": Table(("tea", "rice", "salt", "nuts"), Int(0, 9)), **ORDERS},
        "stock is a dictionary from articles to quantities, orders a list of [article, quantity] "
        "that is handled in order. $rule Articles that are not in stock are ignored. Return the "
        "new dictionary.",
        """
        left = dict(stock)
        for article, quantity in orders:
            if article in left:
                $rule_code
        return left
        """,
        lambda v, stock, orders: {
            name: reduce(v.rule, [q for other, q in orders if other == name], n)
            for name, n in stock.items()
            if reduce(v.rule, [q for other, q in orders if other == name], n) is not None
        },
        pieces("rule",
            ("small_orders", "An order takes its quantity out, but at most what is there.",
             "left[article] -= min(quantity, left[article])", lambda n, q: sorted([0, n - q])[1]),
            ("whole_orders", "An order takes its quantity out if there is enough, otherwise "
             "nothing, and then 1 is added to what is there.",
             "left[article] -= quantity if quantity <= left[article] else -1",
             lambda n, q: n + 1 if n < q else n - q),
            ("refilled_orders", "An order takes its quantity out, but at most what is there; if "
             "nothing is left then, the quantity becomes 10.",
             "left[article] = max(left[article] - quantity, 0) or 10",
             lambda n, q: n - q if n > q else 10),
        )),
    T("best_of", 1, "table_$way_name", {"scores": SCORES},
        "scores is a dictionary from names to whole numbers. Return $way; for an empty dictionary "
        "an empty one.",
        "return {name: $way_code}",
        lambda v, d: dict(v.way(sorted(d.items()))),
        [
            {"way": P(name, says, code, oracle)}
            for name, says, code, oracle in (
                ("doubled_over_9", "a dictionary with the same names in which every number greater "
                 "than 9 is doubled", "2 * n if n > 9 else n for name, n in scores.items()",
                 lambda s: [(k, n + n * (n >= 10)) for k, n in s]),
                ("of_distances_to_best", "a dictionary with the same names, each with the greatest "
                 "number of all minus its own",
                 "max(scores.values()) - n for name, n in scores.items()",
                 lambda s: [(k, max(b - n for _, b in s)) for k, n in s]),
                ("of_even_halves",
                 "a dictionary with only those names whose number is even, each with half of it",
                 "n // 2 for name, n in scores.items() if n % 2 == 0",
                 lambda s: [(k, n >> 1) for k, n in s if not n & 1]),
                ("of_ranks", "a dictionary with the same names, each with 1 plus the number of "
                 "names that have a greater number",
                 "1 + sum(m > n for m in scores.values()) for name, n in scores.items()",
                 lambda s: [(k, sorted([-m for _, m in s]).index(-n) + 1) for k, n in s]),
            )
        ],
        held_out=True,
    ),
]


def give(money: dict, giver: str, taker: str, amount: int) -> dict:
    if amount <= 0:
        return money
    after = Counter(money)
    after.update({giver: -amount})
    after.update({taker: amount})
    return dict(after)


# --------------------------------------------------------------------------------------- intervals

SPANS = {"intervals": List(Interval(0, 20, 7), most=5)}
TIME = Fixed(("01", "0123456789", ":", "012345", "0123456789"))


def covered(spans: list, least: int = 1) -> list[int]:
    """The unit steps [x, x + 1] that at least so many intervals cover."""
    return [x for x in range(25) if sum(a <= x < b for a, b in spans) >= least]


def runs_of(points: list[int]) -> list[list[int]]:
    starts = [x for x in points if x - 1 not in points]
    ends = [x + 1 for x in points if x + 1 not in points]
    return [list(pair) for pair in zip(starts, ends)]


def minute(clock: str) -> int:
    return sum(map(int.__mul__, map(int, clock.replace(":", "")), (600, 60, 10, 1)))


INTERVALS = [
    T("interval_list", 1, "intervals_$way_name", SPANS,
        "intervals is a list of [start, end] with start less than end. Return $way. "
        "An empty list gives an empty list.",
        "return $way_code",
        lambda v, s: v.way(s),
        pieces("way",
            ("inner_sizes",
             "the list of how many whole numbers lie strictly between start and end, in order",
             "[end - start - 1 for start, end in intervals]",
             lambda s: [len(range(*pair)[1:]) for pair in s]),
            ("long_ones", "the list of those that are longer than 5, in order",
             "[[start, end] for start, end in intervals if end - start > 5]",
             lambda s: [pair for pair in s if pair[0] + 5 < pair[1]]),
            ("widened",
             "the list of them in order, each with a start smaller by 1 and an end greater by 2",
             "[[start - 1, end + 2] for start, end in intervals]",
             lambda s: [list(map(int.__add__, pair, (-1, 2))) for pair in s]),
            ("doubled_middles",
             "the list of start plus end of those that hold the number 10 (start "
             "and end included), in order",
             "[start + end for start, end in intervals if start <= 10 <= end]",
             lambda s: [sum(pair) for pair in s if 10 in range(pair[0], pair[1] + 1)]),
        )),
    T("union", 3, "union_of_intervals_$way_name", SPANS,
        "intervals is a list of [start, end] with start less than end, in any order. Those that "
        "overlap or touch (one ends where another starts) are merged. Return $way.",
        """
        merged = []
        for start, end in sorted(intervals):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([start, end])
        return $way_code
        """,
        lambda v, s: v.way(covered(s)),
        pieces("way",
            ("as_list", "the list of what has come out, as [start, end], ascending", "merged",
             runs_of),
            ("total_length", "the sum of the lengths of what has come out; 0 for an empty list",
             "sum(end - start for start, end in merged)", len),
            ("gaps", "the list of the gaps between what has come out, as [end of one, start of the "
             "next], ascending; empty if there are none",
             "[[a[1], b[0]] for a, b in zip(merged, merged[1:])]",
             lambda p: [[a + 1, b] for a, b in zip(p, p[1:]) if b - a > 1]),
        )),
    T("overlaps", 3, "overlap_$way_name", {"intervals": List(Interval(0, 15), most=6)},
        "intervals is a list of [start, end] with start less than end. For whole x from 0 to 14, "
        "the step from x to x + 1 is covered by an interval if start <= x and x + 1 <= end. Return "
        "$way.",
        """
        counts = [0] * 15
        for start, end in intervals:
            for x in range(start, end):
                counts[x] += 1
        return $way_code
        """,
        lambda v, s: v.way(s),
        pieces("way",
            ("of_two",
             "the list of all x whose step is covered by exactly two intervals, ascending",
             "[x for x, count in enumerate(counts) if count == 2]",
             lambda s: [x for x in covered(s, 2) if x not in covered(s, 3)]),
            ("product", "the sum of the squares of how many intervals cover each step",
             "sum(count ** 2 for count in counts)",
             lambda s: sum(len(set(range(*a)) & set(range(*b))) for a in s for b in s)),
            ("uncovered", "the list of all x whose step is covered by no interval, ascending",
             "[x for x, count in enumerate(counts) if count == 0]",
             lambda s: sorted(set(range(15)).difference(*(range(*pair) for pair in s)))),
        ),
        held_out=True,
    ),
    T("clock", 2, "clock_$way_name", {"time": TIME, "minutes": Int(0, 1500)},
        "time is a time of day such as '07:35' (hours, colon, minutes). $way",
        """
        hours, rest = time.split(':')
        total = int(hours) * 60 + int(rest)
        total = ($way_code) % 1440
        return f'{total // 60:02d}:{total % 60:02d}'
        """,
        lambda v, time, minutes: "{}{}:{}{}".format(
            *(
                v.way(minute(time), minutes) % 1440 // n % m
                for n, m in ((600, 10), (60, 10), (10, 6), (1, 10))
            )
        ),
        pieces("way",
            ("later",
             "Return the time that is minutes minutes later, in the same form; after 23:59 "
             "comes 00:00.", "total + minutes", lambda t, m: t + m),
            ("earlier", "Return the time that is minutes minutes earlier, in the same form; before "
             "00:00 comes 23:59.", "total - minutes", lambda t, m: t + 1440 * 2 - m),
            ("hours_back_minutes_on", "Go back by 2 hours and forward by twice minutes minutes, "
             "and return that time in the same form; 00:00 and 23:59 are neighbours.",
             "total - 120 + 2 * minutes", lambda t, m: t + m + m + 1320),
        )),
    T("clock_list", 3, "breaks_$way_name", {"times": List(TIME, most=5)},
        "times is a list of times of one day such as '07:35', in any order. Sort them and "
        "return $way. With fewer than two times the list is empty.",
        """
        minutes = []
        for time in sorted(times):
            hours, rest = time.split(':')
            minutes.append(int(hours) * 60 + int(rest))
        return $way_code
        """,
        lambda v, times: v.way(sorted(map(minute, times))),
        pieces("way",
            ("between", "the list of the minutes between each time and the next",
             "[b - a for a, b in zip(minutes, minutes[1:])]",
             lambda s: [s[i] - s[i - 1] for i in range(1, len(s))]),
            ("in_hours", "the list of the full hours and the minutes that are left, as "
             "[hours, minutes], between each time and the next",
             "[[(b - a) // 60, (b - a) % 60] for a, b in zip(minutes, minutes[1:])]",
             lambda s: [list(divmod(s[i] - s[i - 1], 60)) for i in range(1, len(s))]),
            ("over_an_hour", "the list of the minutes between each time and the next, where that "
             "is more than 60, less those 60",
             "[b - a - 60 for a, b in zip(minutes, minutes[1:]) if b - a > 60]",
             lambda s: [n for n in (s[i] - s[i - 1] - 60 for i in range(1, len(s))) if n > 0]),
        ),
        held_out=True,
    ),
    T("merge_two", 2, "points_of_two_$way_name",
      {"first": Interval(0, 20), "second": Interval(5, 25)},
        "first and second are intervals [start, end] of whole numbers, start and end included. "
        "Return the list of all whole numbers, ascending, that lie in $way.",
        """
        result = []
        for x in range(min(first + second), max(first + second) + 1):
            in_first = first[0] <= x <= first[1]
            in_second = second[0] <= x <= second[1]
            if $way_code:
                result.append(x)
        return result
        """,
        lambda v, a, b: sorted(v.way(set(range(a[0], a[1] + 1)), set(range(b[0], b[1] + 1)))),
        pieces("way",
            ("in_both", "both", "in_first and in_second", set.intersection),
            ("in_one", "exactly one of them", "in_first != in_second", set.symmetric_difference),
            ("first_only", "first but not in second", "in_first and not in_second", set.difference),
        )),
]

FAMILIES = {
    "lists": LISTS,
    "strings": STRINGS,
    "words": WORD_TEMPLATES,
    "digits": DIGIT_TEMPLATES,
    "counting": COUNTING,
    "sequences": SEQUENCES,
    "grids": GRIDS,
    "encoding": ENCODING,
    "machines": MACHINES,
    "tables": TABLES,
    "intervals": INTERVALS,
}
