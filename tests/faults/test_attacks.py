"""The table of attacks names tests that exist, and its figures are what the tests said."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

from faults import attacks

ROOT = Path(__file__).parents[2]


def test_every_attack_names_tests_that_exist():
    assert len(attacks.FELL) == 24
    for name, tests in {**attacks.FELL, **attacks.TRIED_LATER}.items():
        assert tests, name
        for path, test in (one.split("::") for one in tests):
            assert re.search(rf"^def {test}\(", (ROOT / path).read_text(), re.M), f"{name}: {path}::{test}"


def test_an_attack_has_passed_where_all_cases_of_all_its_tests_have(tmp_path, monkeypatch):
    monkeypatch.setattr(attacks, "_passed", {})
    names = list(attacks.FELL)
    for number, case, end in ((0, "[1]", True), (0, "[2]", True), (1, "[1]", True), (1, "[2]", False)):
        for test in attacks.FELL[names[number]]:
            attacks.pytest_runtest_logreport(
                SimpleNamespace(nodeid=f"{test}{case}", when="call", passed=end, failed=not end)
            )
    attacks.write(tmp_path, attacks._passed)
    found = json.loads((tmp_path / "attacks.json").read_text())
    assert found["fell"] == {"attacks": 24, "passed": 1, "failed": 1, "not run": 22}
    assert [found["attacks"]["fell"][name] for name in names[:3]] == ["passed", "failed", "not run"]
    assert found["tried later"]["not run"] == len(attacks.TRIED_LATER)
