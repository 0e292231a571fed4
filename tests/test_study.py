"""A study keeps each trial once, after a kill at any moment and with several commands at a time."""

import itertools
import os
import signal
from contextlib import contextmanager

import pytest

optuna = pytest.importorskip("optuna", reason="needs optuna: pip install 'cifarbn[optuna]'")

from optuna.samplers import TPESampler  # noqa: E402
from optuna.storages.journal import JournalFileBackend  # noqa: E402
from optuna.trial import TrialState  # noqa: E402
from sqlalchemy import event  # noqa: E402
from sqlalchemy.engine import Engine  # noqa: E402

from cifarbn.cli.search_space import SearchSpace  # noqa: E402
from cifarbn.cli.study import CHOSEN, RETRY_OF, Study  # noqa: E402
from cifarbn.errors import UserError  # noqa: E402

SPACE = SearchSpace(["data=shapes", "optim.lr=tag(log,interval(1e-4,1e-1))", "model.width=4,8"])
STORAGES = ["sqlite", "journal"]
N_TRIALS = 2


def open_study(folder, storage="sqlite", **options):
    url = f"sqlite:///{folder}/optuna.db" if storage == "sqlite" else str(folder / "optuna.journal")
    options = {
        "name": "study",
        "search": "the search",
        "direction": "maximize",
        "sampler": lambda index: TPESampler(seed=index),
    } | options
    return Study(folder, url, space=SPACE, **options)


def trials_of(url):
    """Chosen values, state and value of each trial of the only study in a storage."""
    (study,) = optuna.get_all_study_summaries(url)
    trials = optuna.load_study(study_name=study.study_name, storage=url).trials
    return [(each.user_attrs[CHOSEN], each.state, each.value) for each in trials if CHOSEN in each.user_attrs]


def trials(study):
    """The same of an open study."""
    return [(each.user_attrs[CHOSEN], each.state, each.value) for each in study._trials()]


def execute(study, n_trials=N_TRIALS):
    """Execute all trials; the value of each follows from its learning rate."""
    for trial in study.earlier():
        study.tell(trial, *value_of(trial))
    while asked := study.ask(1, n_trials):
        for trial in asked:
            study.tell(trial, *value_of(trial))


def value_of(trial):
    return TrialState.COMPLETE, float(trial.chosen[0].partition("=")[2])


@contextmanager
def each_write(storage, hook):
    """Call `hook` before each write to the storage."""

    def before_statement(_, __, statement, *___):
        if not statement.startswith("SELECT"):
            hook()

    def append(backend, logs):
        hook()
        append_logs(backend, logs)

    append_logs = JournalFileBackend.append_logs
    if storage == "sqlite":
        event.listen(Engine, "before_cursor_execute", before_statement)
    else:
        JournalFileBackend.append_logs = append
    yield
    if storage == "sqlite":
        event.remove(Engine, "before_cursor_execute", before_statement)
    else:
        JournalFileBackend.append_logs = append_logs


@pytest.fixture(scope="module", params=STORAGES)
def undisturbed(request, tmp_path_factory):
    """The storage, its trials, and the writes to kill at: some that create the tables, and all that change trials."""
    writes = []
    with each_write(request.param, lambda: writes.append(None)):
        study = open_study(tmp_path_factory.mktemp("undisturbed"), request.param)
        created = len(writes)
        execute(study)
    return request.param, trials(study), [*range(0, created, 8), *range(created, len(writes))]


def killed_at_write(number, folder, storage):
    """Execute the study in another process, which kills itself at a write to the storage; return whether it did."""
    pid = os.fork()
    if pid == 0:
        writes = itertools.count()
        with each_write(storage, lambda: next(writes) == number and os.kill(os.getpid(), signal.SIGKILL)):
            execute(open_study(folder, storage))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_a_study_killed_at_any_write_ends_like_the_undisturbed_one(undisturbed, tmp_path):
    storage, expected, writes = undisturbed
    assert len(writes) > 4 * N_TRIALS
    for number in writes:
        folder = tmp_path / str(number)
        folder.mkdir()
        assert killed_at_write(number, folder, storage)
        study = open_study(folder, storage)
        execute(study)
        assert trials(study) == expected, f"killed at write {number}"


def test_the_undisturbed_study(undisturbed):
    _, done, _ = undisturbed
    assert len(done) == N_TRIALS and len({tuple(chosen) for chosen, *_ in done}) == N_TRIALS
    assert all(state is TrialState.COMPLETE for _, state, _ in done)


def test_a_journal_with_a_torn_last_line_is_repaired(tmp_path):
    """A power failure or a full disk can leave half a line, and Optuna itself would append to it."""
    execute(open_study(tmp_path, "journal"), n_trials=2)
    whole = trials(open_study(tmp_path, "journal"))
    with (tmp_path / "optuna.journal").open("ab") as file:
        file.write(b'{"op_code":4,"wor')
    study = open_study(tmp_path, "journal")
    assert trials(study) == whole
    execute(study, n_trials=3)
    assert trials(open_study(tmp_path, "journal"))[:2] == whole


@pytest.mark.parametrize("storage", STORAGES)
def test_two_commands_share_the_trials(tmp_path, storage):
    one, other = open_study(tmp_path, storage), open_study(tmp_path, storage)
    (first,) = one.ask(1, 3)
    assert other.earlier() == [], "the trial is being executed"
    second, third = other.ask(5, 3)
    assert [first.number, second.number, third.number] == [0, 1, 2] and one.ask(1, 3) == []
    other.tell(second, TrialState.COMPLETE, 1.0)
    one.tell(first, TrialState.PRUNED, None)
    assert [trial.number for trial in one.earlier()] == [0, 1]
    other.tell(third, None, None)
    assert [trial.number for trial in one.earlier()] == [0, 1, 2], "it was left to the next command"


def test_a_failed_trial_that_succeeds_later_is_stored_once_more(tmp_path):
    study = open_study(tmp_path)
    (failed,) = study.ask(1, 2)
    study.tell(failed, TrialState.FAIL, None)
    assert study.best() is None
    for _ in range(2):  # the second time, as by another command
        study.tell(failed, TrialState.COMPLETE, 0.5)
    (before, again) = study._trials()
    assert before.state is TrialState.FAIL and again.user_attrs[RETRY_OF] == failed.number
    assert again.params == before.params and study.best()[1] == 0.5
    assert len(study) == 1 and [trial.number for trial in study.earlier()] == [again.number]
    assert len(study.ask(5, 2)) == 1, "the repetition does not count"


def test_a_trial_that_ends_differently_the_next_time_is_stored_once_more(tmp_path):
    study = open_study(tmp_path)
    first, second = study.ask(2, 2)
    study.tell(first, TrialState.COMPLETE, 0.9)
    study.tell(second, TrialState.COMPLETE, 0.7)
    study.tell(first, TrialState.COMPLETE, 0.9)
    assert len(study._trials()) == 2 and study.best() == (first, 0.9)
    study.tell(first, TrialState.COMPLETE, 0.6)
    study.tell(second, None, None)
    assert study.best() == (second, 0.7) and len(study) == 2
    again = next(trial for trial in study.earlier() if trial.chosen == first.chosen)
    study.tell(again, TrialState.COMPLETE, 0.8)
    assert study.best()[0].chosen == first.chosen and study.best()[1] == 0.8
    study.tell(second, TrialState.PRUNED, None)
    assert [value for *_, value in trials(study)] == [0.9, 0.7, 0.6, 0.8, None] and study.best()[1] == 0.8


def test_of_two_commands_that_train_a_trial_again_the_last_one_counts(tmp_path):
    one, two = open_study(tmp_path), open_study(tmp_path)
    (first,) = one.ask(1, 1)
    one.tell(first, TrialState.COMPLETE, 0.9)
    both = [study.earlier()[0] for study in (one, two)]
    one.tell(both[0], TrialState.COMPLETE, 0.3)
    two.tell(both[1], TrialState.COMPLETE, 0.4)
    assert one.best()[1] == two.best()[1] == 0.4 and len(one) == 1 == len(two.earlier())


def test_a_larger_number_of_trials_continues_the_study(tmp_path):
    execute(open_study(tmp_path), n_trials=2)
    study = open_study(tmp_path)
    execute(study, n_trials=4)
    (whole := tmp_path / "whole").mkdir()
    at_once = open_study(whole)
    execute(at_once, n_trials=4)
    assert trials(study) == trials(at_once)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_best_trial(tmp_path, direction):
    study = open_study(tmp_path, direction=direction)
    execute(study)
    values = [value for *_, value in trials(study)]
    assert study.best()[1] == (max if direction == "maximize" else min)(values)


def test_a_study_of_another_search_is_an_error(tmp_path):
    open_study(tmp_path)
    message = r"study in sqlite.* is of another search \(the search\); use another hydra.sweeper.study_name"
    with pytest.raises(UserError, match=message):
        open_study(tmp_path, search="another")


@pytest.mark.parametrize(
    ("storage", "reason"),
    [
        ("sqlite:////nowhere/optuna.db", "unable to open database file"),
        ("sqlite:///{damaged}", "file is not a database"),
        ("{damaged}", ""),
        ("nosuchdb://host/name", "nosuchdb"),
    ],
)
def test_a_storage_that_cannot_be_used_is_an_error(tmp_path, storage, reason):
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"no database\n" * 100)
    url = storage.format(damaged=damaged)
    with pytest.raises(UserError, match=f"cannot use the study in hydra.sweeper.storage=.*{reason}"):
        Study(tmp_path, url, "study", "the search", "maximize", SPACE, lambda index: TPESampler())


def test_a_journal_in_a_missing_folder_is_an_error_that_names_its_key(tmp_path):
    with pytest.raises(UserError, match=r"nowhere/x\.log: No such file .*: hydra\.sweeper\.storage=.*nowhere/x\.log$"):
        Study(tmp_path, f"{tmp_path}/nowhere/x.log", "study", "", "maximize", SPACE, lambda index: TPESampler())
