"""Attacks that regraft once fell to, or that were tried later, and the tests that hold them off.

Where REGRAFT_FIGURES names a folder, a run of pytest writes `attacks.json` there: for each attack whether all tests of
its that ran have passed. An attack of which no test ran counts as neither.
"""

import json
import os
from pathlib import Path
from typing import Any

Tests = tuple[str, ...]
FELL: dict[str, Tests] = {
    "--out deletes the user's own data": (
        "tests/faults/test_user_files.py::test_what_was_there_stays_or_is_named",
        "tests/core/test_ownership.py::test_what_somebody_else_put_there_stays",
    ),
    "what is verified is not what runs": (
        "tests/bundle/test_loading.py::test_a_model_answers_as_it_was_loaded_whatever_its_folder_holds_now",
        "tests/bundle/test_loading.py::test_another_model_than_the_one_asked_for_is_refused",
        "tests/serving/test_serving.py::test_a_model_is_kept_though_its_folder_is_replaced",
    ),
    "a bundle reads any file, or runs for ever": (
        "tests/faults/test_bundles.py::test_a_graph_that_would_read_other_files_is_refused",
        "tests/backbones/test_onnx_check.py::test_what_is_no_plain_network_is_refused",
        "tests/backbones/test_onnx_check.py::test_what_would_take_too_much_is_refused_before_it_is_compiled",
        "tests/bundle/test_loading.py::test_a_file_that_is_no_part_of_a_bundle_is_refused_and_hidden_ones_are_let_be",
    ),
    "a server that never recovers": (
        "tests/serving/test_pool.py::test_nothing_that_a_worker_says_ends_the_pool",
        "tests/serving/test_pool.py::test_nothing_that_a_worker_does_ends_the_pool",
        "tests/serving/test_pool.py::test_a_model_that_does_not_answer_is_found_before_anyone_asks",
    ),
    "a body in chunks of one byte": (
        "tests/serving/test_connection.py::test_others_have_their_turn_between_pieces",
        "tests/serving/test_connection.py::test_a_body_of_more_frame_than_picture_is_refused",
    ),
    "a photo of unbounded work": (
        "tests/data/test_file_limits.py::test_what_asks_for_unbounded_work_is_refused_from_its_header",
    ),
    "photos of unbounded memory": (
        "tests/data/test_file_limits.py::test_64_large_pictures_at_once_share_one_budget",
        "tests/data/test_file_limits.py::test_a_picture_that_takes_more_memory_than_all_may_is_refused_before_it_is_decoded",
    ),
    "manifests that lie": (
        "tests/bundle/test_loading.py::test_a_manifest_that_says_something_else_than_the_files_is_refused",
        "tests/bundle/test_loading.py::test_names_of_classes_that_were_exchanged_are_noticed",
        "tests/faults/test_bundles.py::test_a_manifest_made_to_do_harm_is_refused_or_does_none",
    ),
    "a class named in Latin-1": (
        "tests/data/test_scan.py::test_a_class_whose_name_is_no_text_is_refused_with_the_cure",
        "tests/serving/test_app.py::test_names_that_are_no_unicode_are_answered",
    ),
    "a TIFF that fills the log": (
        "tests/data/test_pillow_settings.py::test_what_decoders_say_of_odd_files_is_counted_and_goes_nowhere_else",
    ),
    "Transfer-Encoding and Content-Length": (
        "tests/serving/test_app.py::test_a_request_with_two_lengths_is_refused",
    ),
    "POSTs from other sites": (
        "tests/serving/test_app.py::test_pages_of_other_sites_cannot_make_the_server_compute",
    ),
    "clients that send on": (
        "tests/serving/test_connection.py::test_who_sends_on_after_the_answer_hears_it_and_is_cut_off",
    ),
    "an empty token": (
        "tests/serving/test_serving.py::test_an_empty_token_in_the_environment_is_refused",
        "tests/serving/test_app.py::test_a_token_that_would_keep_nobody_out_is_refused",
    ),
    "bearer in lower case": ("tests/serving/test_app.py::test_the_scheme_of_a_token_may_be_written_in_any_case",),
    "a worker outlives its server": (
        "tests/serving/test_serving.py::test_a_worker_ends_with_a_server_that_is_killed_whatever_it_is_doing",
    ),
    "a stopped worker looks healthy": (
        "tests/serving/test_pool.py::test_an_idle_worker_that_is_stopped_is_missed_and_replaced",
        "tests/serving/test_app.py::test_health_tells_whether_all_workers_are_there",
    ),
    "suspects.csv with +pos": (
        "tests/data/test_lists.py::test_suspects_of_odd_names_handed_back_unchanged_change_nothing",
        "tests/core/test_csv_cells.py::test_every_text_comes_back",
    ),
    "versions that do harm are allowed": (
        "tests/test_floors.py::test_versions_that_do_harm_are_excluded_wherever_a_package_is_named",
    ),
    "a TIFF of 5 GB of tags": (
        "tests/test_floors.py::test_versions_that_do_harm_are_excluded_wherever_a_package_is_named",
    ),
    "a lock that is a link or folder": (
        "tests/core/test_files.py::test_a_lock_that_is_not_ours_is_refused_by_name",
    ),
    "a sparse file of a terabyte": ("tests/data/test_file_limits.py::test_a_sparse_file_is_refused_by_its_size",),
    "an icon decoded before its limit": (
        "tests/data/test_file_limits.py::test_what_asks_for_unbounded_work_is_refused_from_its_header",
    ),
    "/healthz/ redirects elsewhere": (
        "tests/serving/test_app.py::test_a_slash_at_the_end_is_answered_and_leads_nowhere",
    ),
}  # fmt: skip
TRIED_LATER: dict[str, Tests] = {
    "a full disk and a clock that jumps": (
        "tests/faults/test_http.py::test_a_clock_that_jumps_and_a_full_disk_change_nothing_under_load",
    ),
    "64 bombs at once": (
        "tests/faults/test_http.py::test_sixty_four_bombs_at_once_are_refused_and_others_are_answered",
    ),
    "a hub that lies": ("tests/commands/test_lying_hub.py::test_a_hub_that_lies_is_cut_off_and_nothing_is_kept",),
    "weights that unpack to more than they are": (
        "tests/backbones/test_hostile_weights.py::test_what_asks_for_more_than_it_brings_is_refused_unread",
    ),
    "tensors that overlap, huge headers": (
        "tests/backbones/test_weights.py::test_a_lying_safetensors_header_is_refused",
        "tests/backbones/test_hostile_weights.py::test_what_asks_for_more_than_it_brings_is_refused_unread",
    ),
    "a cache that others may write to": (
        "tests/core/test_foreign_cache.py::test_planted_features_are_believed_only_where_nobody_else_could_plant_them",
        "tests/core/test_foreign_cache.py::test_a_cache_that_everybody_may_write_to_is_not_used",
    ),
    "AVIF bombs": ("tests/data/test_coded_sizes.py::test_memory_is_taken_for_what_is_coded",),
    "HEIC bombs": ("tests/data/test_coded_sizes.py::test_a_heic_file_that_asks_for_work_by_numbers_is_refused",),
    "reports of a hostile run": (
        "tests/reporting/test_injection.py::test_a_browser_runs_fetches_and_reports_nothing",
        "tests/reporting/test_injection_elsewhere.py::test_lists_of_embeddings_are_no_programs_and_say_every_name",
        "tests/reporting/test_injection_elsewhere.py::test_a_class_that_leads_out_of_what_is_written_leads_nowhere",
        "tests/labelling/test_label_page.py::test_names_are_shown_and_never_run",
    ),
}  # fmt: skip
_passed: dict[str, bool] = {}  # by test, whether every one of its cases has


def pytest_runtest_logreport(report: Any) -> None:
    """Note how a test has ended."""
    if report.failed or (report.when == "call" and report.passed):
        name = report.nodeid.partition("[")[0]
        _passed[name] = _passed.get(name, True) and not report.failed


def pytest_sessionfinish(session: Any) -> None:
    """Write the figures, in the process that hears of all tests."""
    folder = os.environ.get("REGRAFT_FIGURES")
    if folder and not hasattr(session.config, "workerinput"):
        write(Path(folder), _passed)


def write(folder: Path, passed: dict[str, bool]) -> None:
    """Write attacks.json: one verdict for each attack, and how many there are of each."""
    verdicts = {kind: _verdicts(table, passed) for kind, table in (("fell", FELL), ("tried later", TRIED_LATER))}
    rows = {"row": "attacks", **{kind: _counted(found) for kind, found in verdicts.items()}, "attacks": verdicts}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "attacks.json").write_text(json.dumps(rows, indent=2) + "\n")


def _verdicts(table: dict[str, Tests], passed: dict[str, bool]) -> dict[str, str]:
    ends = {name: [passed[test] for test in tests if test in passed] for name, tests in table.items()}
    return {name: "not run" if not found else "passed" if all(found) else "failed" for name, found in ends.items()}


def _counted(verdicts: dict[str, str]) -> dict[str, int]:
    every = list(verdicts.values())
    return {"attacks": len(every), **{end: every.count(end) for end in ("passed", "failed", "not run")}}
