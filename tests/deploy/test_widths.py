"""Which widths are worth having, from times that are made up; no clock decides a test."""

import math
from datetime import datetime, timezone
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from deploy.bench import SYSTEMATIC
from deploy.cli import cli
from deploy.errors import UserError
from deploy.machine import this_environment
from deploy.probes import Probe
from deploy.record import Interval, SessionOptions
from deploy.widths import (
    MeasureWidths,
    Times,
    WidthTable,
    WidthTime,
    doubts,
    layer_times,
    measure_widths,
    read_widths,
    why_not_for,
    worthwhile_widths,
)

NOW = datetime(2026, 1, 2, tzinfo=timezone.utc)


def table(us_by_width, *, half=0.0, operator="conv", precision="float32", **facts):
    """Return a table with intervals of ±``half``, a fraction."""
    environment = msgspec.structs.replace(this_environment(), **facts)
    return WidthTable(
        environment=environment,
        session=SessionOptions(),
        probe=Probe(),
        processes=10,
        measured_at=NOW.isoformat(),
        times=tuple(
            WidthTime(
                operator=operator,
                precision=precision,
                width=width,
                layer_us=Interval(value=us, low=us * (1 - half), high=us * (1 + half)),
            )
            for width, us in sorted(us_by_width.items())
        ),
    )


def test_of_widths_on_one_step_the_largest_is_worth_having():
    stairs = {8: 5.0, 12: 10.0, 16: 10.0, 20: 25.0, 24: 25.0, 28: 25.0, 32: 25.0}
    assert worthwhile_widths(table(stairs)) == [8, 16, 32]


def test_a_width_that_costs_more_than_a_larger_one_is_never_worth_having():
    assert worthwhile_widths(table({56: 81.0, 63: 162.0, 64: 100.0})) == [56, 64]


def test_a_difference_inside_the_noise_is_no_step():
    times = {16: 10.0, 24: 10.6, 32: 20.0}
    assert worthwhile_widths(table(times, half=0.01)) == [16, 24, 32]
    assert worthwhile_widths(table(times, half=0.05)) == [24, 32]


def test_less_than_what_repetition_cannot_average_away_is_no_step():
    assert worthwhile_widths(table({16: 10.0, 32: 10.0 * (1 + SYSTEMATIC / 2)})) == [32]


@given(
    st.dictionaries(st.integers(1, 200), st.floats(0.5, 500), min_size=1),
    st.floats(0, 0.3),
)
def test_what_is_worth_having_gets_slower_with_every_step_and_ends_with_the_largest(times, half):
    found = table(times, half=half)
    worth = worthwhile_widths(found)
    assert worth[-1] == max(times)
    assert all(one < other for one, other in pairwise(worth))
    for width in worth:
        larger = [us for other, us in times.items() if other > width]
        assert all(times[width] < us for us in larger)


def test_layers_that_were_not_measured_are_one_line():
    with pytest.raises(UserError, match="no times of dense layers in int8, only of conv float32"):
        worthwhile_widths(table({8: 1.0}), "dense", "int8")


def test_a_layer_that_cannot_be_timed_is_named_by_what_it_is():
    def refuse(models, *_):
        raise UserError(f"{models[1]}: took too long")

    settings = MeasureWidths(conv=(), dense=(2, 4), precisions=("int8",))
    with pytest.raises(UserError, match=r"^dense-int8-4: took too long$"):
        measure_widths(settings, seed=0, now=NOW, timing=refuse)


def test_what_slows_a_whole_process_is_no_part_of_an_interval():
    rng = np.random.default_rng(0)
    steady = np.log([[1.0], [2.0]]) + rng.normal(0, 0.001, (2, 10))
    slowed = steady + rng.normal(0, 0.5, 10)
    widths = [
        [math.log(seen.high / seen.low) for seen in layer_times(times, 4, seed=0)]
        for times in (steady, slowed)
    ]
    assert widths[1] == pytest.approx(widths[0])
    value = layer_times(np.log(np.full((1, 10), 2.0)), 4, seed=0)[0].value
    assert value == pytest.approx(500)  # 2 ms over 4 layers


def made_up(models, bench, seed, on_progress):
    """Take 1 ms a channel, whatever the models are; say it as a bench would."""
    on_progress(1, 1)
    times = []
    for path in models:
        assert path.stat().st_size > 0
        times.append((math.log(float(path.stem.rsplit("-", 1)[1])),) * bench.processes)
    return Times(log_p50_ms=tuple(times), warnings=("someone else was at work",))


def test_a_table_names_every_layer_once_and_in_order_with_where_it_was_measured():
    settings = MeasureWidths(
        conv=(16, 8, 8), dense=(32,), precisions=("int8", "float32"), processes=5, threads=2,
        probe=Probe(size=4, depth=2),
    )  # fmt: skip
    heard = []
    found = measure_widths(
        settings, seed=0, now=NOW, timing=made_up,
        on_progress=lambda done, total: heard.append((done, total)),
    )  # fmt: skip
    assert [(t.operator, t.precision, t.width, round(t.layer_us.value)) for t in found.times] == [
        ("conv", "float32", 8, 4000),
        ("conv", "float32", 16, 8000),
        ("conv", "int8", 8, 4000),
        ("conv", "int8", 16, 8000),
        ("dense", "float32", 32, 16000),
        ("dense", "int8", 32, 16000),
    ]
    assert heard == [(1, 1)]
    assert found.environment.cpu == this_environment().cpu
    assert found.session == SessionOptions(threads=2)
    assert found.warnings == ("someone else was at work",)
    assert msgspec.json.decode(msgspec.json.encode(found), type=WidthTable) == found


def test_layers_are_really_timed_in_processes_of_their_own():
    settings = MeasureWidths(
        conv=(2,), dense=(3,), precisions=("int8",), processes=5, probe=Probe(size=2, depth=1)
    )
    found = measure_widths(settings, seed=0, now=NOW)
    assert [(t.operator, t.width) for t in found.times] == [("conv", 2), ("dense", 3)]


def test_nothing_to_measure_is_refused():
    with pytest.raises(ValueError, match="no layer to time"):
        MeasureWidths(conv=(), dense=())
    with pytest.raises(ValueError, match="no layer to time"):
        MeasureWidths(precisions=())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t | {"times": []}, "must ascend"),
        (lambda t: t | {"times": t["times"][::-1]}, "must ascend"),
        (lambda t: t | {"times": [t["times"][0]] * 2}, "must ascend"),
        (lambda t: t | {"kind": "other"}, "Invalid value"),
        (lambda t: t | {"more": 1}, "unknown field"),
        (
            lambda t: t | {"times": [t["times"][0] | {"layer_us": {"value": 1, "low": 2, "high": 3}}]},
            "inside its interval",
        ),
        (lambda _: [], "Expected `object`"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_table_is_one_line(change, says, tmp_path):
    path = tmp_path / "widths.json"
    good = msgspec.to_builtins(table({8: 1.0, 16: 2.0}))
    path.write_bytes(msgspec.json.encode(good))
    assert worthwhile_widths(read_widths(path)) == [8, 16]
    path.write_bytes(msgspec.json.encode(change(good)))
    with pytest.raises(UserError, match=says) as refused:
        read_widths(path)
    assert str(refused.value).startswith(f"{path}: no table of widths")
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="cannot be read"):
        read_widths(tmp_path / "none.json")


def test_a_table_of_another_target_is_refused_and_one_of_another_processor_doubted():
    pi = table({8: 1.0}, cpu="Cortex-A72", target="arm64")
    assert why_not_for(pi, "arm64") is None
    assert "measured on Cortex-A72 (arm64), which is no x86-vnni" in why_not_for(pi, "x86-vnni")
    here = this_environment()
    assert doubts(table({8: 1.0}), here, SessionOptions()) == []
    (said,) = doubts(table({8: 1.0}, cpu="Other"), here, SessionOptions())
    assert said.startswith("the table of widths was measured with a Other, here it is ")
    older = table({8: 1.0}, versions={"onnxruntime": "1.20.0"})
    assert len(doubts(older, here, SessionOptions(threads=2))) == 2


def run(*words):
    return CliRunner().invoke(cli, ["widths", *map(str, words)])


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "pi4.json"
    stairs = table({8: 5.0, 12: 10.0, 16: 10.0})
    path.write_bytes(msgspec.json.encode(stairs))
    return path


def test_a_table_that_was_brought_back_is_shown_with_its_steps_marked(saved):
    result = run("--from", saved)
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()[3:]]
    assert [(row[0], row[2] == "*") for row in rows] == [("8", True), ("12", False), ("16", True)]
    assert max(map(len, result.stdout.splitlines())) <= 100
    as_json = run("--from", saved, "--json")
    assert msgspec.json.decode(as_json.stdout, type=WidthTable) == read_widths(saved)


def test_a_table_is_drawn(saved, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")
    picture = tmp_path / "stairs.svg"
    assert run("--from", saved, "--plot", picture).exit_code == 0
    assert b"<svg" in picture.read_bytes()


def test_the_command_measures_and_writes_a_table_that_it_reads_again(tmp_path):
    out = tmp_path / "widths.json"
    words = ("--conv", "none", "--dense", "2:6:2", "--precision", "float32", "--processes", 5)
    result = run(*words, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert [time.width for time in read_widths(out).times] == [2, 4, 6]
    assert run("--from", out).stdout == result.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--conv", "8:4:1"), "--conv: needs FROM:TO:STEP"),
        (("--conv", "8:16:0"), "--conv: needs"),
        (("--dense", "a,b"), "--dense: needs"),
        (("--dense", "0"), "--dense: needs"),
        (("--conv", "1:4000:1"), "at most 256"),
        (("--conv", "none", "--dense", "none"), "widths: gives no layer to time"),
        (("--threads", "9999"), "threads: must be at most"),
        (("--plot", "stairs.txt"), "--plot: must end in"),
        (("--from", "t.json", "--conv", "8"), "--from shows a table as it is"),
        (("--from", "t.json", "--on", "pi"), "--from shows a table as it is"),
        (("--on", "a b"), "--on: needs a host"),
    ],
)
def test_what_cannot_be_measured_is_one_line(words, says):
    result = run(*words)
    assert result.exit_code == 2
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
