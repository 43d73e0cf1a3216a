import functools
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from compress.train.tune import (
    JOURNAL,
    Hyperband,
    SuccessiveHalving,
    Tune,
    read_search,
    search,
)
from compress.train.workers import (
    BrokenTrialError,
    Epoch,
    InThisProcess,
    Outcome,
    Processes,
    Stopped,
)
from deploy.errors import UserError
from tests.compress.train import trials

pytest.importorskip("optuna", reason="the extra tune is not installed")

X = {"x": {"int": [0, 9]}}
GRID = Tune(method="grid")
RANDOM = Tune(method="random", trials=6)


def run(folder, tune=GRID, objective=trials.peak, tables=X, places=1, **settings):
    workers = InThisProcess(objective) if places == 1 else Processes(objective, places)
    given = {"metric": "val_accuracy", "seed": 0} | settings
    return search("s", tables, tune, folder=folder, workers=workers, **given)


def drawn(found):
    return [(trial.number, trial.state, trial.values, trial.value) for trial in found.trials]


def test_a_grid_finds_the_best_of_all_points(tmp_path):
    found = run(tmp_path)
    assert [trial.values["x"] for trial in found.trials] == list(range(10))
    assert found.best_trial.values == {"x": 3}
    assert (found.ended, found.planned) == ("all trials", 10)


def test_a_loss_is_searched_for_its_smallest_value(tmp_path):
    found = run(tmp_path, metric="val_loss")
    assert found.best_trial.values == {"x": 9}


def test_of_equal_trials_the_first_is_the_best(tmp_path):
    found = run(tmp_path, objective=lambda tables, report: Outcome(value=1.0))
    assert found.best == 1


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_equal_seeds_draw_equal_values_and_others_draw_others(method, tmp_path):
    tune = Tune(method=method, trials=14)
    tables = {"x": {"uniform": [0, 9]}}
    first, again, other = (
        run(tmp_path / str(i), tune, tables=tables, seed=seed) for i, seed in enumerate((0, 0, 1))
    )
    assert drawn(first) == drawn(again)
    assert len({trial.values["x"] for trial in first.trials}) == 14
    assert drawn(first) != drawn(other)


def test_tpe_draws_nearer_to_the_best_than_chance(tmp_path):
    tables = {"x": {"uniform": [0, 100]}}
    found = {
        method: run(tmp_path / method, Tune(method=method, trials=40), tables=tables)
        for method in ("random", "tpe")
    }
    away = {
        method: sorted(abs(trial.values["x"] - 3) for trial in found[method].trials[20:])[10]
        for method in found
    }
    assert away["tpe"] < away["random"] / 2


class Interrupted:
    """Carries out ``count`` trials, and is interrupted in the middle of the next."""

    def __init__(self, count, error=KeyboardInterrupt):
        self.left, self.error = count, error

    def __call__(self, tables, report):
        if self.left == 0:
            report(1, 0.0)
            raise self.error
        self.left -= 1
        return trials.peak(tables, report)


@pytest.mark.parametrize("method", ["grid", "random", "tpe"])
def test_an_interrupted_search_returns_the_best_so_far_and_goes_on_as_if_it_never_was(
    method, tmp_path
):
    tune = Tune(method=method, trials=None if method == "grid" else 14)
    tables = X if method == "grid" else {"x": {"uniform": [0, 9]}}
    whole = run(tmp_path / "whole", tune, tables=tables)
    part = run(tmp_path / "part", tune, Interrupted(4), tables=tables)
    assert part.ended == "interrupted"
    assert drawn(part) == drawn(whole)[:4]
    assert part.best_trial.value == max(trial.value for trial in whole.trials[:4])
    assert drawn(run(tmp_path / "part", tune, tables=tables)) == drawn(whole)


def test_a_search_that_is_over_is_not_repeated(tmp_path):
    first = run(tmp_path)
    assert run(tmp_path, objective=trials.has_a_bug) == first


def test_a_search_can_be_made_longer(tmp_path):
    short = run(tmp_path, RANDOM)
    longer = run(tmp_path, Tune(method="random", trials=9))
    assert drawn(longer)[:6] == drawn(short)
    assert len(longer.trials) == 9


def test_a_journal_whose_last_line_a_kill_cut_in_half_is_gone_on_with(tmp_path):
    whole = run(tmp_path / "whole")
    run(tmp_path / "part", objective=Interrupted(4))
    journal = tmp_path / "part" / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-7])
    (tmp_path / "part" / f"{JOURNAL}.lock").symlink_to(journal)
    assert drawn(run(tmp_path / "part")) == drawn(whole)


def test_at_the_time_limit_the_trial_under_way_ends_with_its_epoch(tmp_path):
    ticks = iter(range(0, 10_000, 10))
    tune = msgspec.structs.replace(GRID, minutes=2)
    found = run(tmp_path, tune, clock=lambda: next(ticks))
    assert found.ended == "time limit"
    assert 0 < len(found.trials) < 10
    assert found.best is not None
    assert len(run(tmp_path).trials) == 10


@pytest.mark.parametrize("halving", [SuccessiveHalving(), Hyperband()])
def test_halving_ends_trials_at_epoch_level(halving, tmp_path):
    ran = []

    def trial(tables, report):
        ran.append(0)
        for epoch in range(1, 10):
            ran[-1] = epoch
            report(epoch, float(tables["x"]))
        return Outcome(value=float(tables["x"]))

    tune = Tune(method="random", trials=30, halving=halving)
    found = run(tmp_path, tune, trial, tables={"x": {"uniform": [0, 1]}})
    pruned = [trial for trial in found.trials if trial.state == "pruned"]
    assert len(pruned) > 10
    assert all(trial.value is None for trial in pruned)
    assert [len(trial.epochs) for trial in found.trials] == ran
    assert sum(ran) < 9 * 30 * 2 / 3
    assert found.best_trial.value == max(trial.value or 0 for trial in found.trials)


@pytest.mark.parametrize("halving", [SuccessiveHalving(), Hyperband()])
def test_a_trial_that_was_carried_out_whole_is_finished_however_far_behind(halving, tmp_path):
    def falling(tables, report):
        value = -float(tables["x"])
        for epoch in (1, 2, 3):
            report(epoch, value if epoch == 3 else 0.0, last=epoch == 3)
        return Outcome(value=value)

    found = run(tmp_path, msgspec.structs.replace(GRID, halving=halving), falling)
    assert {trial.state for trial in found.trials} == {"finished"}
    assert [trial.value for trial in found.trials] == [-float(x) for x in range(10)]


def test_a_trial_whose_last_epoch_ends_after_the_time_limit_is_finished(tmp_path):
    late = [0.0]

    def slow(tables, report):
        late[0] = 3600.0
        report(1, 0.5, last=True)
        return Outcome(value=0.5)

    tune = msgspec.structs.replace(GRID, minutes=2)
    found = run(tmp_path, tune, slow, clock=lambda: late[0])
    assert [trial.state for trial in found.trials] == ["finished"]
    assert found.ended == "time limit"


def test_the_time_limit_is_looked_at_in_every_seed_and_halving_in_the_first(tmp_path):
    now, ran = [0.0], []

    def two_seeds(tables, report):
        for seed in (0, 1):
            for epoch in (1, 2):
                ran.append((tables["x"], seed, epoch))
                now[0] += 60 if tables["x"] == 1 and seed == 1 else 0
                report(epoch, -1.0 if seed else 1.0, last=(seed, epoch) == (1, 2), judged=not seed)
        return Outcome(value=0.0, per_seed=(1.0, -1.0))

    tune = msgspec.structs.replace(GRID, minutes=1, seeds=2, halving=SuccessiveHalving())
    found = run(tmp_path, tune, two_seeds, clock=lambda: now[0])
    assert ran[-1] == (1, 1, 1)
    assert [(trial.state, trial.epochs) for trial in found.trials] == [("finished", (1.0, 1.0))]
    assert found.ended == "time limit"


class CutOff(InThisProcess):
    """Two trials at once: halving ends the second, an interrupt the first."""

    def run(self, ask, tell):
        first, second = ask(), ask()
        assert tell(Epoch(first.number, 1, 0.9))
        assert not tell(Epoch(second.number, 1, 0.1))
        tell(Stopped(second.number))
        raise KeyboardInterrupt


def test_while_no_trial_has_finished_the_best_pruned_one_is_the_best_so_far(tmp_path):
    tune = msgspec.structs.replace(RANDOM, halving=SuccessiveHalving())
    found = search(
        "s", X, tune, metric="val_accuracy", seed=0, folder=tmp_path, workers=CutOff(trials.peak)
    )
    assert [trial.state for trial in found.trials] == ["pruned"]
    assert (found.best_trial.value, found.best_trial.seen) == (None, 0.1)


def test_a_trial_that_cannot_be_trained_is_recorded_with_its_reason(tmp_path):
    found = run(tmp_path, objective=trials.refuses_at_2)
    assert [t.reason for t in found.trials if t.state == "failed"] == ["two cannot be trained with"]
    assert found.best_trial.values == {"x": 3}


def test_a_metric_that_is_not_a_number_is_never_the_best(tmp_path):
    def trial(tables, report):
        return Outcome(value=float("nan") if tables["x"] > 0 else 0.5)

    found = run(tmp_path, objective=trial)
    assert found.best == 1
    assert found.trials[1].state == "failed"


def test_a_search_in_which_nothing_can_be_trained_stops_after_a_few(tmp_path):
    def trial(tables, report):
        raise UserError("the batch is too large")

    with pytest.raises(UserError, match=r"none of 5 trials .*the batch is too large"):
        run(tmp_path, objective=trial)


def test_a_folder_of_another_search_is_refused(tmp_path):
    run(tmp_path, RANDOM)
    with pytest.raises(UserError, match="another recipe"):
        run(tmp_path, RANDOM, tables={"x": {"int": [0, 8]}})
    with pytest.raises(UserError, match="other data"):
        run(tmp_path, RANDOM, facts={"samples": "others"})


def test_two_searches_in_one_folder_do_not_mix(tmp_path):
    def trial(tables, report):
        run(tmp_path)
        raise AssertionError

    with pytest.raises(UserError, match=r"none of .*another search is at work here"):
        run(tmp_path, objective=trial)


def test_a_search_without_ranges_is_refused(tmp_path):
    with pytest.raises(UserError, match="nothing to search"):
        run(tmp_path, tables={"x": 1})


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="give another --out"):
        run(tmp_path / "file" / "search")


@pytest.mark.parametrize(
    ("table", "line"),
    [({"method": "grid", "trials": 3}, "leave trials out"), ({"method": "tpe"}, "how many trials")],
)
def test_a_tune_table_that_contradicts_itself_is_refused(table, line):
    with pytest.raises(msgspec.ValidationError, match=line):
        msgspec.convert(table, Tune)


def test_importance_is_given_to_what_matters(tmp_path):
    tables = {"x": {"int": [0, 9]}, "idle": {"uniform": [0, 1]}}
    found = run(tmp_path, Tune(method="random", trials=40), tables=tables)
    assert next(iter(found.importance)) == "x"


def test_the_record_survives_a_round_trip(tmp_path):
    found = run(tmp_path, Tune(method="random", trials=5, halving=SuccessiveHalving()))
    (tmp_path / "search.json").write_bytes(msgspec.json.encode(found))
    assert read_search(tmp_path / "search.json") == found


def test_workers_are_real_processes_that_share_the_trials(tmp_path):
    found = run(tmp_path / "search", objective=trials.Slow(tmp_path), places=2)
    processes = {path.name for path in tmp_path.iterdir() if path.name.isdigit()}
    assert len(processes) == 2
    assert str(os.getpid()) not in processes
    assert found.best_trial.values == {"x": 9}


def test_a_process_that_is_killed_costs_its_trial_and_nothing_else(tmp_path):
    found = run(tmp_path, objective=trials.dies_at_2, places=2)
    assert len(found.trials) == 10
    assert [trial.values["x"] for trial in found.trials if trial.state == "failed"] == [2]
    assert "killed by signal 9" in found.trials[2].reason
    assert found.best_trial.values == {"x": 3}


def test_a_bug_in_a_process_comes_back_with_its_traceback(tmp_path):
    with pytest.raises(BrokenTrialError, match=r"(?s)has_a_bug.*ZeroDivisionError: a bug of ours"):
        run(tmp_path, objective=trials.has_a_bug, places=2)


def test_pruning_reaches_into_a_process(tmp_path):
    tune = Tune(method="random", trials=12, halving=SuccessiveHalving())
    found = run(tmp_path, tune, tables={"x": {"uniform": [0, 9]}}, places=2)
    assert any(trial.state == "pruned" and len(trial.epochs) < 4 for trial in found.trials)


KILLED = """
from pathlib import Path
from compress.train.tune import Tune, search
from compress.train.workers import Processes
from tests.compress.train.trials import Slow

if __name__ == "__main__":
    folder = Path({folder!r})
    search("s", {tables!r}, Tune(method="grid"), metric="val_accuracy", seed=0,
           folder=folder / "search", workers=Processes(Slow(folder), 2))
"""


def test_a_search_killed_with_its_workers_at_work_leaves_no_process_and_goes_on(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(folder=str(tmp_path), tables=X))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, str(script)], env=environment)
    done = functools.partial(finished_trials, tmp_path / "search" / JOURNAL)
    wait_until(lambda: done() >= 2)
    child.kill()
    child.wait()
    processes = [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]
    assert len(processes) == 2
    wait_until(lambda: not any(map(alive, processes)))
    before = done()
    found = run(tmp_path / "search", objective=trials.peak)
    assert len(found.trials) == 10
    # What was finished before the kill is kept: only a slow trial's value is its x.
    assert sum(trial.value == trial.values["x"] for trial in found.trials) >= before >= 2


def finished_trials(journal):
    text = journal.read_text() if journal.exists() else ""
    return text.count('"seconds"')


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
