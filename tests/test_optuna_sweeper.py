"""`hydra/sweeper=optuna`: a search ends like an undisturbed one after kills, and keeps skip, retry and the table."""

import os
import random
import re
import signal
import sys
import time

import pytest

optuna = pytest.importorskip("optuna", reason="needs optuna: pip install 'cifarbn[optuna]'")

from processes import Command  # noqa: E402
from test_study import trials_of  # noqa: E402
from test_sweep import TINY, finished_sweep, results, sweep  # noqa: E402

from cifarbn import train  # noqa: E402
from cifarbn.cli.optuna_sweeper import _sampler  # noqa: E402
from cifarbn.errors import RunConflict  # noqa: E402
from cifarbn.runs.result_file import write_result  # noqa: E402

N_TRIALS = 4
OPTUNA = ["-m", "hydra/sweeper=optuna", *TINY, "checkpoint_minutes=0"]
SEARCH = [*OPTUNA, "optim.lr=tag(log,interval(1e-4,1e-1))", "model.dropout=0,0.2", f"hydra.sweeper.n_trials={N_TRIALS}"]
SEARCH += ["+hydra.sweeper.sampler.n_startup_trials=2"]


def stored(cwd):
    return trials_of(f"sqlite:///{cwd}/multirun_outputs/train/optuna.db")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return finished_sweep(tmp_path_factory.mktemp("undisturbed"), *SEARCH)


def test_progress_table_and_best_trial(undisturbed):
    cwd, printed = undisturbed
    assert "sweep: 0 done of 4, 1 running, 3 left\n" in printed
    assert printed.strip().splitlines()[-1] == "4 done of 4"
    accuracies = {name: result["metrics"]["val/acc"] for name, result in results(cwd).items()}
    assert len(accuracies) == N_TRIALS
    assert sorted(accuracies.values()) == sorted(value for *_, value in stored(cwd))
    best = re.search(r"best of 4 trials: val/acc (\S+) with model.dropout=\S+ optim.lr=\S+\n.*/(\S+)\n", printed)
    assert float(best[1]) == pytest.approx(max(accuracies.values()), abs=1e-4)
    assert accuracies[best[2]] == max(accuracies.values())


def test_the_same_search_again_executes_nothing(undisturbed):
    cwd, _ = undisturbed
    before = results(cwd), stored(cwd)
    again = sweep(cwd, *SEARCH)
    assert again.returncode == 0 and again.stdout.count("done before") == N_TRIALS
    assert (results(cwd), stored(cwd)) == before


def test_a_search_killed_at_random_moments_ends_as_the_undisturbed_one(undisturbed, tmp_path):
    cwd, _ = undisturbed
    chance = random.Random(int(os.environ.get("CIFARBN_KILL_SEED", "0")))
    killed = 0
    for kill in range(int(os.environ.get("CIFARBN_KILLS", "3"))):
        process = Command("cifarbn.train", *SEARCH, cwd=tmp_path)
        # The first kill is during the start, the next ones after that many trials.
        after = f"sweep: {min(kill, N_TRIALS - 1)} done"
        while kill and (line := process.stdout.readline()) and not line.startswith(after):
            pass
        time.sleep(chance.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed
    finished = sweep(tmp_path, *SEARCH)
    assert finished.returncode == 0, finished.stderr
    assert results(tmp_path) == results(cwd), "the same trials, none lost and none twice"
    assert stored(tmp_path) == stored(cwd)


def test_two_commands_share_a_study(tmp_path):
    both = [Command("cifarbn.train", *SEARCH, "epochs=1", cwd=tmp_path) for _ in range(2)]
    printed = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert len(stored(tmp_path)) == len(results(tmp_path)) == N_TRIALS


@pytest.fixture
def here(monkeypatch, tmp_path, capsys):
    """The command line, run in this process in an empty folder; returns the exit code and the captured output."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides, base=(*OPTUNA, "epochs=1")):
        monkeypatch.setattr("sys.argv", ["train", *base, "hydra.sweeper.n_trials=2", *overrides])
        try:
            train.main()
            code = 0
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        return (1, out, err + code) if isinstance(code, str) else (code, out, err)

    return run


def results_are(monkeypatch, metrics):
    """Let each run end at once with these metrics, a function of its config."""

    def ended(cfg, folder, overrides):
        result = {"status": "done", "config": {}, "metrics": metrics(cfg)}
        write_result(folder / "result.json", result)
        return result

    monkeypatch.setattr(train, "train", ended)


def test_each_data_set_has_a_study_of_its_own(here, monkeypatch):
    accuracies = {"flowers": 1.0, "cars": 0.6}
    results_are(monkeypatch, lambda cfg: {"val/acc": accuracies[cfg.data.root.rpartition("/")[2]]})
    base = ("-m", "hydra/sweeper=optuna", "data=folder", "data.cache=false", "model.dropout=0,0.2")
    assert "best of 2 trials: val/acc 1.0000" in here("data.root=flowers", base=base)[1]
    assert "best of 2 trials: val/acc 0.6000" in here("data.root=cars", base=base)[1]
    assert "best of 3 trials: val/acc 0.6" in here("data.root=x/cars", "hydra.sweeper.n_trials=3", base=base)[1]


def test_the_value_of_a_run_that_was_trained_again_is_replaced(here, monkeypatch):
    for accuracy in (0.09, 0.08):
        results_are(monkeypatch, lambda cfg, accuracy=accuracy: {"val/acc": accuracy - cfg.model.dropout / 100})
        _, out, _ = here("model.dropout=0,0.2", "resume=false")
        assert f"best of 2 trials: val/acc {accuracy:.4f} with model.dropout=0\n" in out


def test_equal_trials_are_trained_once_also_with_resume_false(here, monkeypatch, tmp_path):
    started = []
    results_are(monkeypatch, lambda cfg: started.append((cfg.seed, cfg.resume)) or {"val/acc": 0.5})
    for _ in range(2):
        started.clear()
        here("seed=1,2", "resume=false", "hydra.sweeper.n_trials=5")
        assert len(started) == 5
        assert sorted(seed for seed, resume in started if not resume) == [1, 2]


def test_a_run_without_the_metric_is_an_error(here, monkeypatch):
    results_are(monkeypatch, lambda cfg: {"train/acc": 0.5})
    code, out, err = here("model.dropout=0,0.2")
    assert code == 1 and "1 done of 2" in out and "best of" not in out
    assert re.match(
        "error: a search needs the val/acc of each run, but .* has none: end the run with a whole epoch", err
    )


def test_a_conflict_leaves_a_trial_as_it_is(here, monkeypatch, tmp_path):
    def conflict(cfg, folder, overrides):
        raise RunConflict(f"{folder} holds a run of a different config")

    results_are(monkeypatch, lambda cfg: {"val/acc": 0.5})
    here("model.dropout=0,0.2")
    before = stored(tmp_path)
    for file in tmp_path.glob("multirun_outputs/train/*/result.json"):
        write_result(file, {"status": "diverged", "config": {}})
    monkeypatch.setattr(train, "train", conflict)
    code, out, _ = here("model.dropout=0,0.2")
    assert code == 1 and "2 conflict of 2" in out and stored(tmp_path) == before


def test_failed_trials_are_retried_by_the_same_command(here, tmp_path):
    search = ["optim.lr=range(-3,0)", "hydra.sweeper.n_jobs=2"]
    code, out, err = here(*search)
    assert code == 1 and "2 failed of 2" in out and "Invalid learning rate" in err and "Traceback" not in err
    assert [state.name for _, state, _ in stored(tmp_path)] == ["FAIL", "FAIL"]
    code, out, err = here(*search, "retry=false")
    assert code == 1 and out.count("failed before") == 2 and "Invalid" not in err and "best of" not in out
    assert "Invalid" in here(*search)[2] and len(stored(tmp_path)) == 2


def test_a_diverged_trial_counts_as_worse_than_all_others(here, tmp_path):
    code, out, _ = here("optim.lr=interval(1e30,2e30)", "loss=mse", "hydra.sweeper.n_trials=1")
    assert code == 0 and "1 diverged of 1" in out
    assert [state.name for _, state, _ in stored(tmp_path)] == ["PRUNED"]


def test_equal_trials_are_one_run(here, tmp_path):
    code, out, err = here("seed=7,7", "hydra.sweeper.n_jobs=2")
    assert "n_jobs=2 trials are chosen at a time, but executed one after the other; add hydra/launcher=local" in err
    assert code == 0 and len(results(tmp_path)) == 1
    ((_, state, value), other) = stored(tmp_path)
    assert state.name == "COMPLETE" and other[1:] == (state, value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hydra.sweeper.n_trials=0", "hydra.sweeper.n_trials takes a whole number of at least 1, not 0"),
        ("hydra.sweeper.n_jobs=two", "hydra.sweeper.n_jobs takes a whole number of at least 1, not two"),
        ("hydra.sweeper.metric=test/acc", "takes val/acc or val/loss, not test/acc: test metrics are not allowed"),
        ("hydra.sweeper.direction=up", "hydra.sweeper.direction takes maximize or minimize, not up"),
        ("hydra.sweeper.sampler._target_=optuna.samplers.Typo", "hydra.sweeper.sampler: .*Typo"),
        (
            "hydra.sweeper.sampler._target_=collections.Counter",
            "sampler._target_ must be a sampler of Optuna, not Counter",
        ),
        ("hydra.sweeper.sampler.seed=x", "hydra.sweeper.sampler.seed takes a whole number or null, not x"),
        ("hydra.sweeper.n_trial=3", "n_trial"),
        ("data.val_size=0", "data.val_size=0 leaves no images"),
        ("optim.lr=1e-3", "a search needs at least one key with several values"),
    ],
)
def test_a_wrong_option_is_one_clear_error(here, override, message):
    code, _, err = here("optim.lr=interval(1e-3,2e-3)", override)
    assert code == 1 and re.search(message, err) and "\n" not in err, err


def test_trials_in_parallel(here, tmp_path):
    search = ("hydra/launcher=local", "optim.lr=interval(1e-3,2e-3)")
    code, _, err = here(*search, "hydra.launcher.jobs=2")
    assert code == 1 and "a search starts hydra.sweeper.n_jobs=1 runs at a time; use hydra.sweeper.n_jobs=2, too" in err
    finished = sweep(tmp_path, *OPTUNA, "epochs=1", *search, "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2")
    assert finished.returncode == 0 and finished.stdout.strip().endswith("3 done of 3"), finished.stderr
    assert "up to 2 parallel runs" in finished.stdout and len(results(tmp_path)) == 3


def test_a_missing_optuna_is_named_with_its_extra(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    for module in ("cifarbn.cli.optuna_sweeper", "cifarbn.cli.study", "cifarbn.cli.search_space"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    code, _, err = here("optim.lr=interval(1e-3,2e-3)")
    assert code == 1 and "hydra/sweeper=optuna needs optuna: pip install 'cifarbn[optuna]'" in err


@pytest.mark.filterwarnings("ignore:QMCSampler is experimental")
def test_each_trial_has_its_own_seed_except_of_a_sequence():
    def samplers(target):
        return [_sampler({"_target_": f"optuna.samplers.{target}", "seed": 0}, index) for index in (0, 1, 0)]

    draws = [sampler._rng.rng.random() for sampler in samplers("RandomSampler")]
    assert draws[0] == draws[2] != draws[1]
    assert [sampler._seed for sampler in samplers("QMCSampler")] == [0, 0, 0]
