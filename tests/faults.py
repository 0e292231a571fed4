"""The faults that a run, a sweep or a report survives, as a list: what happens, and which tests show it.

`python tests/faults.py` prints the table in docs/reliability.md.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    """One fault.

    Attributes:
        name: as a user would describe it.
        outcome: what is true afterwards.
        tests: `FILE::TEST` of the tests that cause it.
    """

    name: str
    outcome: str
    tests: tuple[str, ...]


FAULTS: tuple[Fault, ...] = (
    # Kills.
    Fault(
        "a run is killed (SIGKILL, power button, out-of-memory killer) at any step, in a validation or in the test",
        "the same command ends like the undisturbed run, bit for bit",
        (
            "test_train.py::test_a_run_killed_in_the_middle_of_an_epoch_continues_bit_for_bit",
            "test_train.py::test_a_run_cut_off_while_testing_keeps_the_metrics_of_its_training",
            "test_resume.py::test_under_every_schedule_and_optimizer",
            "test_resume.py::test_with_every_loader",
            "test_faults.py::test_a_run_that_is_interrupted_at_any_step_continues_under_every_option",
        ),
    ),
    Fault(
        "a sweep is killed at random moments",
        "the same sweep ends with the table, metrics and weights of the undisturbed one, bit for bit",
        ("test_sweep.py::test_a_sweep_killed_at_random_moments_ends_as_the_undisturbed_one",),
    ),
    Fault(
        "one process of several is killed: a run of `hydra/launcher=local` or of `reproduce --jobs`, the server from "
        "which they are forked, a rank of `trainer=ddp`",
        "the other runs finish, the other ranks end with a message; the same command continues",
        (
            "test_local_launcher.py::test_a_killed_run_is_reported_and_the_others_finish",
            "test_ddp.py::test_a_killed_process_ends_the_run_which_continues_later",
            "test_ddp.py::test_a_process_ends_although_the_first_one_was_killed_before_they_were_connected",
            "test_parallel_runs.py::test_a_failure_does_not_affect_other_processes",
            "test_fork_server.py::test_without_the_server_the_end_of_a_command_is_noticed",
        ),
    ),
    Fault(
        "a kill while `last.ckpt`, its checksums, `result.json`, `metrics.csv` or `recordings.npz` is written, at any "
        "moment of the write",
        "the same command ends like the undisturbed run, bit for bit",
        ("test_faults.py::test_a_kill_at_any_moment_of_a_write_costs_nothing_but_time",),
    ),
    Fault(
        "a kill while a report is written",
        "each file has its old or its new content; the same command completes the report",
        ("test_faults.py::test_a_report_that_is_killed_at_any_moment_is_completed_by_the_same_command",),
    ),
    Fault(
        "a power failure, also one that loses what was not synced to disk",
        "at most the steps since the checkpoint before the last are computed again; the run ends bit for bit alike",
        (
            "test_checkpoints.py::test_no_cut_loses_more_than_the_steps_since_the_checkpoint_before",
            "test_checkpoints.py::test_after_a_cut_at_any_moment_the_same_command_ends_like_the_undisturbed_run",
            "test_run_folder.py::test_a_result_that_a_power_cut_has_damaged",
        ),
    ),
    # Signals.
    Fault(
        "Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2 once",
        "the step finishes, a checkpoint is saved, the launcher's handler is called, exit code 128 + signal; the same "
        "command continues",
        (
            "test_resume_checkpoint.py::test_a_signal_lets_the_step_finish_saves_and_stops",
            "test_resume_checkpoint.py::test_a_launcher_s_handler_is_called_after_the_save_and_its_exit_passes",
            "test_resume_checkpoint.py::test_a_signal_that_comes_while_a_checkpoint_is_written_is_not_lost",
            "test_train.py::test_ctrl_c_saves_reports_it_and_can_be_resumed",
            "test_train.py::test_sigterm_during_validation_saves_the_epoch_first",
            "test_local_launcher.py::test_sigterm_saves_all_runs_and_the_same_sweep_continues",
        ),
    ),
    Fault(
        "Ctrl-C twice",
        "the run stops at once; the same command continues from the last checkpoint",
        (
            "test_faults.py::test_a_second_ctrl_c_stops_at_once_and_the_same_command_continues",
            "test_parallel_runs.py::test_a_second_interruption_kills_processes_that_do_not_end",
        ),
    ),
    Fault(
        "the terminal is closed, without and with `nohup`",
        "the run saves and stops; with `nohup` it continues",
        (
            "test_faults.py::test_a_run_whose_terminal_is_closed_saves",
            "test_faults.py::test_a_hangup_saves_and_stops_unless_it_is_ignored_as_by_nohup",
        ),
    ),
    # Disks and folders.
    Fault(
        "the disk is full: at `last.ckpt`, its checksums, `metrics.csv`, `recordings.npz`, `result.json` or the event "
        "file",
        "one message that names the file, status `failed`, earlier files are intact; after space is freed, the same "
        "command continues",
        (
            "test_resume_checkpoint.py::test_a_full_disk_names_the_file_and_leaves_no_temporary_one",
            "test_resume_checkpoint.py::test_a_full_disk_under_the_event_file",
            "test_run_folder.py::test_on_a_full_disk_the_result_is_overwritten_in_its_place",
            "test_run_folder.py::test_wherever_a_real_run_fills_the_disk_there_is_one_message_and_the_same_command_continues",
        ),
    ),
    Fault(
        "the disk is full during a sweep",
        "one message at the start or for each run, exit code 1; after space is freed, the same command continues",
        ("test_faults.py::test_a_sweep_on_a_full_disk_fails_with_a_message_and_the_same_command_continues",),
    ),
    Fault(
        "the disk is full while a report is written",
        "one message; the earlier report is intact",
        ("test_faults.py::test_a_full_disk_ends_a_report_with_one_message_and_keeps_the_earlier_one",),
    ),
    Fault(
        "the disk becomes read-only",
        "one message",
        ("test_run_folder.py::test_a_disk_that_becomes_read_only",),
    ),
    Fault(
        "the run folder is removed or replaced during the run",
        "one message; the run ends and writes nothing more",
        ("test_run_folder.py::test_a_folder_that_is_removed_or_replaced_meanwhile_ends_its_run",),
    ),
    # Damaged files.
    Fault(
        "`last.ckpt` is truncated at any length, or any byte of it is flipped",
        "detected by its checksum: the run continues from `previous.ckpt` with a message, and ends bit for bit alike; "
        "`predict` stops with an error",
        (
            "test_checkpoints.py::test_a_flipped_byte_and_a_lost_end_are_found_wherever_they_are",
            "test_checkpoints.py::test_a_run_whose_last_checkpoint_is_damaged_continues_from_the_one_before",
            "test_checkpoints.py::test_predict_refuses_a_checkpoint_with_one_flipped_byte",
        ),
    ),
    Fault(
        "both checkpoints are damaged",
        "the run starts from scratch with a message and keeps the damaged files",
        ("test_checkpoints.py::test_without_a_usable_checkpoint_the_run_starts_again_reports_it_and_keeps_both",),
    ),
    Fault(
        "`result.json`, `.run.json`, `metrics.csv`, `recordings.npz`, `last.ckpt` or its checksums are truncated, "
        "flipped, empty, binary or removed, in an interrupted run",
        "the same command ends like the undisturbed run, bit for bit",
        ("test_faults.py::test_an_interrupted_run_with_a_damaged_file_ends_like_the_undisturbed_one",),
    ),
    Fault(
        "the same in a finished run",
        "`report`, `cifarbn.runs.frame` and `predict` name the file, or do not need it; no number is wrong; the run's "
        "command repairs `result.json`",
        (
            "test_faults.py::test_a_finished_run_with_a_damaged_file_is_never_reported_wrongly",
            "test_faults.py::test_the_command_of_a_finished_run_repairs_its_result",
            "test_faults.py::test_any_flipped_byte_of_a_result_is_an_error_or_changes_nothing",
            "test_faults.py::test_any_flipped_byte_of_recordings_is_an_error_or_changes_nothing",
            "test_untrusted.py::test_for_any_a_file_holds_there_is_a_report_that_names_the_run",
        ),
    ),
    Fault(
        "`config.yaml`, `overrides.yaml` or `hydra.yaml` in `.hydra` is truncated, flipped, empty, binary or removed",
        "`--config-path RUN/.hydra` repeats exactly that run or stops with one message; no other command reads them",
        ("test_faults.py::test_a_run_whose_hydra_folder_is_damaged_is_repeated_as_it_was_or_not_at_all",),
    ),
    Fault(
        "any byte of a file of CIFAR-10 is flipped, or the file is truncated or removed",
        "one message that names the file; the run does not start",
        (
            "test_faults.py::test_any_flipped_byte_of_the_images_is_named",
            "test_downloads.py::test_every_damaged_file_is_named_and_none_is_replaced",
        ),
    ),
    # Several processes.
    Fault(
        "two sweeps or processes use the same folder",
        "each run is executed by one of them",
        (
            "test_sweep.py::test_two_sweeps_in_one_folder_share_the_work",
            "test_run_folder.py::test_a_folder_is_open_to_one_at_a_time",
        ),
    ),
    Fault(
        "two or four processes use the same folder on a file system without locks",
        "a warning at the start; the process that started last continues, the others end with a message before their "
        "next write; the run ends like an undisturbed one",
        (
            "test_faults.py::test_without_locks_several_processes_in_one_folder_never_mix_their_runs",
            "test_faults.py::test_a_run_that_another_process_has_taken_over_writes_nothing_more",
            "test_locks.py::test_a_file_system_without_locks_is_said_once_and_done_without",
        ),
    ),
    # The machine, and the runs themselves.
    Fault(
        "the system clock is set back",
        "durations stay correct, and no finished run counts as new",
        (
            "test_run_folder.py::test_a_clock_that_is_set_back_changes_no_duration",
            "test_sweep.py::test_a_clock_that_is_set_back_does_not_make_a_new_run_old",
        ),
    ),
    Fault(
        "one run of a sweep needs more memory than there is, on a CPU or a GPU",
        "one message with the remedy, status `failed`; the other runs continue, and the same command tries it again",
        (
            "test_faults.py::test_a_run_without_enough_memory_is_one_message_and_the_sweep_continues",
            "test_faults.py::test_every_kind_of_memory_shortage_is_one_message_with_the_remedy",
            "test_faults.py::test_a_model_that_does_not_fit_into_memory_is_one_message",
        ),
    ),
    Fault(
        "the loss of one run of a sweep becomes NaN or infinite at some step",
        "that run is `diverged` at that step, which is a result and not an error; the other runs continue",
        (
            "test_faults.py::test_a_loss_that_becomes_nan_at_a_step_ends_that_run_only",
            "test_metrics_logger.py::test_the_first_bad_step_is_found_however_often_it_looks",
            "test_train.py::test_a_diverged_run_is_a_result",
        ),
    ),
    Fault(
        "one run of a sweep or of `reproduce` fails",
        "the other runs continue, the exit code is 1, and the same command tries it again",
        (
            "test_sweep.py::test_a_failed_run_does_not_stop_the_others_and_is_tried_again",
            "test_reproduce.py::test_a_failed_run_does_not_stop_the_others_and_the_table_has_the_order_of_the_suite",
        ),
    ),
    Fault(
        "a run fails before its first step, for example at a damaged image, and its data or config changes",
        "the same command starts the run in its folder",
        ("test_faults.py::test_a_folder_in_which_no_step_was_made_is_taken_over_by_another_config",),
    ),
    Fault(
        "a run fails in its test",
        "the same command only tests again",
        ("test_faults.py::test_a_run_that_failed_in_its_test_is_only_tested_again",),
    ),
    Fault(
        "the budget of `reproduce` ends",
        "all runs save, the page is written, the same command continues",
        ("test_reproduce.py::test_an_exhausted_budget_leaves_a_page_and_the_same_command_continues",),
    ),
    Fault(
        "the GPU step cannot be compiled or captured",
        "the run continues without, and `step_notes` has the reason",
        ("test_training_step.py::test_a_failing_compiler_is_a_note",),
    ),
    Fault(
        "the code or the config of a run folder changed",
        "an error that names the modules or keys",
        (
            "test_run_folder.py::test_code_that_changed_is_an_error_by_name",
            "test_run_folder.py::test_another_config_in_the_same_folder_is_an_error_with_the_remedy",
        ),
    ),
    Fault(
        "a run folder from somebody else",
        "`report`, `predict` and `cifarbn.load` execute nothing in it ([SECURITY.md](../SECURITY.md))",
        (
            "test_load.py::test_hostile_run_folders_execute_nothing",
            "test_untrusted.py::test_damaged_recordings_are_named_and_run_nothing",
        ),
    ),
)


def table() -> str:
    """Return the list as a table in Markdown."""
    lines = ["| fault | what is true afterwards | tested in |", "| --- | --- | --- |"]
    for fault in FAULTS:
        files = ", ".join(f"`{file}`" for file in dict.fromkeys(test.partition("::")[0] for test in fault.tests))
        lines.append(f"| {fault.name} | {fault.outcome} | {files} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
