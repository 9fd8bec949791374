"""The one table of runtime/bench.py on tiny sizes. A row that breaks is found here and
not on a rented GPU.
"""

import math
import re
import sys
from types import SimpleNamespace

import pytest

from runtime import bench

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = (
    "--device cpu --slots 4 --contexts 64 --ragged-rollouts 6 --rollouts 4 --ckpt-tokens 300 "
    "--nockpt-tokens 200"
).split()


def table(monkeypatch, capsys, *options: str) -> str:
    monkeypatch.setattr(bench.ON_CPU, "turns", ((6, 12), (4, 8)))
    monkeypatch.setattr(bench.ON_CPU, "answer", 8)
    monkeypatch.setattr(bench, "tokens_of", lambda rollout: [8, 6])
    # a third of a second each beside the objects of all tests
    monkeypatch.setattr(bench, "gc", SimpleNamespace(collect=int))
    monkeypatch.setattr(sys, "argv", ["bench.py", *TINY, *options])
    bench.main()
    return capsys.readouterr().out


def test_each_row_prints_finite_numbers(monkeypatch, capsys):
    pytest.importorskip("peft")
    names = "decode ragged step step-nockpt step-long step-ragged full small judge".split()
    lines = table(monkeypatch, capsys, "--rows", " ".join(names)).splitlines()
    lines = lines[lines.index("") + 2 :]
    assert [line.split(":")[0].strip() for line in lines if ":" in line[:20]] == [
        *names[:6],
        "step-ragged",
        "full",
        "full",
        "small",
        "judge",
    ]
    assert not [line for line in lines if "not measured" in line]
    for line in lines:
        seconds, tokens, limit, share, peak = (
            float(x.strip("%").replace(",", "")) for x in line[46:95].split()
        )
        assert min(seconds, tokens, limit, peak) > 0 and math.isfinite(
            seconds + tokens + limit + share + peak
        ), line
        assert "NO STEP" not in line
    gaps = [float(gap) for gap in re.findall(r"gap (\S+?)[;\s]", "\n".join(lines) + "\n")]
    assert len(gaps) == 8 and max(gaps) < 1e-3  # what is trained is what was sampled


def test_a_lack_of_memory_costs_one_row(monkeypatch, capsys):
    def fails(*args):
        raise bench.torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(bench, "decode", fails)
    out = table(monkeypatch, capsys, "--rows", "decode ragged")
    assert (
        "decode: 4 rows at context 64: not measured, out of memory" in out
        and "ragged: 6 rollouts" in out
    )


@pytest.mark.parametrize(
    "options, message",
    [(["--rows", "decode stepp"], "'stepp'"), (["--contexts", "64 x"], "'64 x'")],
)
def test_unknown_rows_and_numbers_are_refused(monkeypatch, capsys, options, message):
    with pytest.raises(SystemExit) as end:
        table(monkeypatch, capsys, *options)
    err = capsys.readouterr().err
    assert end.value.code == 2 and message in err and err.count("\n") == 1
