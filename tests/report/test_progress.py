"""What a person sees while a run trains: live in a terminal, plain lines elsewhere."""

import contextlib
import io

import numpy as np
import pytest
from rich.console import Console

from jaxft import numbers
from jaxft.report.terminal import progress
from jaxft.report.terminal.progress import Progress, sparkline
from jaxft.report.terminal.tables import (
    data_table,
    depth_table,
    group_table,
    loading_table,
    result_table,
)
from tests.support.synthetic_run import layer_table

VALUES = {
    "epoch": 0.5,
    "loss": np.float32(0.4321),
    "accuracy": 0.812,
    "grad_norm": 3.0,
    "examples_per_second": 66.4,
    "rates": {"head": 5e-4, "rest": 5e-5, "trunk": 0.0},
}


def console(terminal=False):
    return Console(file=io.StringIO(), width=100, force_terminal=terminal, color_system=None)


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test winds on by hand."""
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    return now


def lines(shown):
    return shown.file.getvalue().splitlines()


def test_plain_lines_come_every_ten_seconds_and_at_the_end(clock):
    shown = console()
    with Progress(100, console=shown) as view:
        assert lines(shown) == ["training to step 100"]  # at once, before anything compiles
        for step in range(1, 101):
            clock[0] += 1
            view.update(step, VALUES if step % 5 == 0 else None)
    steps = [line.split()[1] for line in lines(shown)[1:-1]]
    assert steps == [f"{step}/100" for step in (5, 15, 25, 35, 45, 55, 65, 75, 85, 95, 100)]
    assert lines(shown)[-1] == "finished 100 steps in 1:40"


def test_a_plain_line_says_it_all(clock):
    shown = console()
    with Progress(200, console=shown) as view:
        view.update(20)  # the first step's time is the compilation's, so the pace starts here
        clock[0] = 15.0
        view.update(50, VALUES)
    assert lines(shown)[1] == (
        "step 50/200  epoch 0.50  1:15 left  loss 0.4321  accuracy 0.8120  examples/s 66  "
        "rate head 5e-4, rest 5e-5"
    )


def test_the_time_left_is_by_the_ends_of_steps_and_not_by_their_reading(clock):
    shown = console()
    with Progress(102, console=shown) as view:
        clock[0] = 50.0
        view.update(1, ended=20.0)
        view.update(2, {"loss": 1.0}, ended=50.0)  # read in the same moment as the first
    assert "step 2/102  50:00 left" in lines(shown)[1]


def test_one_step_and_the_last_have_no_time_left(clock):
    shown = console()
    with Progress(2, console=shown) as view:
        view.update(1, {"loss": 1.0})
        clock[0] = 15.0
        view.update(2, {"loss": 1.0})
    assert not [line for line in lines(shown) if "left" in line]


def test_pace_is_told_in_examples_tokens_flops_and_as_a_share_of_the_peak(clock):
    shown = console()
    pace = {"tokens_per_second": 1980.0, "flops_per_second": 3.4e12, "mfu": 0.431}
    with Progress(50, console=shown) as view:
        view.update(50, {**VALUES, **pace})
    (line,) = [line for line in lines(shown) if line.startswith("step")]
    assert "examples/s 66  tokens/s 1,980  model 3.4 TFLOP/s  MFU 43.1%  rate" in line
    assert "mfu 0." not in line, "it is no metric of the task"


def test_a_run_that_is_cut_off_says_where(clock):
    shown = console()
    with contextlib.suppress(KeyboardInterrupt), Progress(200, console=shown) as view:
        view.update(20)
        clock[0] = 15.0
        raise KeyboardInterrupt
    assert lines(shown)[-1] == "stopped at step 20/200 in 0:15"


def test_many_rates_are_shown_as_their_span(clock):
    shown = console()
    with Progress(10, console=shown) as view:
        view.update(1, {"rates": {f"g{depth}": 1e-5 * (depth + 1) for depth in range(5)}})
    assert lines(shown)[1] == "step 1/10  rates 1e-5 to 5e-5"


def test_the_terminal_view_shows_the_last_values_and_leaves_evaluations_above():
    shown = console(terminal=True)
    with Progress(200, console=shown) as view:
        view.doing("compiling the training step")
        view.update(1, VALUES)
        view.evaluation(1, {"loss": 0.5, "accuracy": 0.75}, best=True)
    text = shown.file.getvalue()
    assert "eval step 1  loss 0.5000  accuracy 0.7500  best so far" in text
    last = text.split("best so far")[-1]
    assert "1/200" in last
    assert "loss 0.4321 ▁  accuracy 0.8120  examples/s 66  rate head 5e-4, rest 5e-5" in last
    assert "compiling" not in last


def test_what_is_compiled_is_said_until_the_next_step():
    shown = console(terminal=True)
    with Progress(200, console=shown) as view:
        view.doing("compiling the training step")
        shown.print(view._view())
        assert "compiling the training step" in shown.file.getvalue()


def test_a_loss_that_is_not_finite_is_shown_and_not_drawn(clock):
    shown = console(terminal=True)
    with Progress(10, console=shown) as view:
        view.update(1, {"loss": 1.0})
        view.update(2, {"loss": float("nan")})
    assert "loss nan ▁" in shown.file.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_prints_nothing(terminal):
    shown = console(terminal)
    with Progress(10, console=shown, quiet=True) as view:
        view.doing("compiling")
        view.update(10, VALUES)
        view.evaluation(10, {"loss": 1.0})
        view.message("saved")
    assert shown.file.getvalue() == ""


def test_brackets_in_a_text_are_no_markup(clock):
    shown = console()
    with Progress(10, console=shown) as view:
        view.message("csv:reviews.csv[90%:] [bold]")
    assert lines(shown)[1] == "csv:reviews.csv[90%:] [bold]"


def test_sparkline():
    assert sparkline([]) == ""
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([0.0, 7.0]) == "▁█"
    assert sparkline([float(n) for n in range(80)], width=8) == "▁▂▃▄▅▆▇█"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (numbers.rate(5e-5), "5e-5"),
        (numbers.rate(3.0512e-4), "3.05e-4"),
        (numbers.rate(0.0), "0"),
        (numbers.rate(1.0), "1e0"),
        (numbers.count(9_999), "9,999"),
        (numbers.count(22_713_216), "22.7 M"),
        (numbers.count(999_960), "1.0 M"),
        (numbers.count(147_456), "147 k"),
        (numbers.count(19.6e9, "FLOP"), "19.6 GFLOP"),
        (numbers.size(512), "512 B"),
        (numbers.share(0.4213), "42.1%"),
        (numbers.share(0.0002), "0.02%"),
        (numbers.span(59.7), "1:00"),
        (numbers.span(3723), "1:02:03"),
        (numbers.score(0.83125), "0.8313"),
        (numbers.score(12.3456), "12.35"),
    ],
)
def test_numbers_as_a_person_reads_them(shown, expected):
    assert shown == expected


def printed(table):
    shown = Console(file=io.StringIO(), width=80)
    shown.print(table)
    text = shown.file.getvalue()
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "…" not in text  # nothing is cut at 80 columns
    return text


def row(text, start):
    """The words of the line that starts with `start`."""
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [start])


def test_group_table():
    text = printed(group_table(layer_table(1e-4)))
    assert row(text, "head") == [
        "head",
        "7",
        "4",
        "149",
        "k",
        "5e-4",
        "linear",
        "0.01",
        "1.2",
        "MB",
    ]
    assert row(text, "trunk") == ["trunk", "0-2", "37", "15.5", "M", "frozen"]
    assert "7.2 M of 22.7 M parameters train; a step takes 193 GFLOP, 37.9% saved" in text


def test_a_long_name_cuts_no_number():
    table = layer_table(1e-4)
    name, other = "attention-projections-upper", table["groups"][0]["name"]
    for one in table["groups"]:
        one["schedule"] = "slanted_triangular"
        one["name"] = name if one["name"] == other else one["name"]
    for one in table["rows"]:
        one["group"] = name if one["group"] == other else one["group"]
    text = printed(group_table(table)) + printed(depth_table(table))  # neither has an ellipsis
    assert all(number in text for number in ("149 k", "5e-4", "1.2 MB", "15.5 M"))
    narrow = Console(file=io.StringIO(), width=60)
    narrow.print(group_table(table))
    text = narrow.file.getvalue()
    assert "…" not in text
    assert row(text, "group")  # no column is left out either


def test_depth_table():
    lines = printed(depth_table(layer_table(1e-4))).splitlines()
    parts = [line.split()[1] for line in lines if line.strip()[:1].isdigit()]
    assert parts == ["embeddings", *(f"blocks/{block}" for block in range(6)), "head", "pooler"]
    bars = {line.split()[1]: line.count("━") for line in lines if line.strip()[:1].isdigit()}
    assert bars["embeddings"] == 0
    assert bars["head"] == 16
    assert bars["blocks/5"] == 3  # 9e-5 of 5e-4, of 16 columns


def test_loading_table_names_what_is_new():
    new = [f"head/{index}" for index in range(8)]
    text = " ".join(printed(loading_table(["a"] * 101, new, [])).split())
    assert "loaded 101" in text
    assert "newly initialized 8 head/0, head/1, head/2, head/3, head/4, head/5 and 2 more" in text
    assert "unused" not in text
    assert "shape" not in text


def test_loading_table_says_what_was_fitted():
    text = printed(loading_table(["a"], [], [], ["a grew from [2, 3] to [4, 3]."]))
    assert row(text, "in")[:4] == ["in", "another", "shape", "1"]
    assert "a grew from [2, 3] to [4, 3]." in text


def test_data_table():
    split = {"split": "train", "examples": 1000, "tokens": 27_000, "truncated": 4, "unknown": 27}
    text = printed(data_table([{**split, "labels": {"negative": 400, "positive": 600}}]))
    assert row(text, "train")[1:7] == ["1,000", "27.0", "k", "27.0", "0.40%", "0.10%"]
    assert "negative 40.0%" in text


def test_result_table():
    result = {"split": "test", "step": 360, "examples": 853, "metrics": {"accuracy": 0.8312}}
    text = printed(result_table({**result, "baselines": {"frozen": 0.7}}))
    assert "test: 853 examples, step 360" in text
    assert row(text, "accuracy") == ["accuracy", "0.8312"]
    assert row(text, "frozen") == ["frozen", "0.7000"]
