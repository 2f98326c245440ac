"""Coverage by test: what is recorded inside is what each test runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import cwm_jax.forager.tasks.coverage as coverage_module
from cwm_jax.forager.tasks.coverage import coverage_from_json, record_coverage
from cwm_jax.rl.envs.swe.suite import Suite, SuiteFailed
from cwm_jax.rl.envs.swe.workspaces.checkout import bare_repository
from cwm_jax.rl.envs.swe.workspaces.local import LocalWorkspace
from tests.forager.packages_made import COMMAND, FILES, PASSED

RECORDER = Path(coverage_module.__file__).with_name("recorder_inside.py")
TEST = "tests.test_area.AreaTest.test_"


def suite(command=COMMAND):
    return Suite(
        command=command,
        format="unittest",
        files={},
        fail_to_pass=[],
        pass_to_pass=PASSED,
        canary="tests",
    )


@pytest.fixture(scope="module")
def workspace():
    place = LocalWorkspace(bare_repository({"files": FILES}))
    yield place
    place.close()


def test_each_function_has_the_tests_that_run_it(workspace):
    found = record_coverage(workspace, suite(), PASSED, timeout_s=60)
    own = {place: tests for place, tests in found.tests.items() if place[0] == "shapes/area.py"}
    assert own == {
        ("shapes/area.py", "Square.__init__"): (f"{TEST}square", f"{TEST}total"),
        ("shapes/area.py", "Square.area"): (f"{TEST}square", f"{TEST}total"),
        ("shapes/area.py", "area"): (f"{TEST}square", f"{TEST}total"),
        ("shapes/area.py", "scaled"): (f"{TEST}scaled",),
        ("shapes/area.py", "total"): (f"{TEST}total",),
    }
    assert found.of_file("shapes/area.py") == (f"{TEST}scaled", f"{TEST}square", f"{TEST}total")
    assert coverage_from_json(json.loads(json.dumps(found.to_json()))) == found


def test_tests_that_do_not_pass_cover_nothing(workspace):
    found = record_coverage(workspace, suite(), [f"{TEST}scaled"], timeout_s=60)
    assert ("shapes/area.py", "scaled") in found.tests
    assert ("shapes/area.py", "total") not in found.tests


def test_a_run_that_runs_none_of_the_checkout_is_refused(workspace):
    with pytest.raises(SuiteFailed, match="is an installed copy"):
        record_coverage(workspace, suite(), ["tests.other.Test.test_it"], timeout_s=60)


def test_the_checkout_is_as_it_was(workspace):
    record_coverage(workspace, suite(), PASSED, timeout_s=60)
    assert "recorder" not in workspace.run("git status --porcelain", 60).output


def test_pytest_tells_the_recorder_of_its_tests(tmp_path):
    for path, text in FILES.items():
        (tmp_path / "testbed" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "testbed" / path).write_text(text)
    (tmp_path / "recorder_inside.py").write_bytes(RECORDER.read_bytes())
    output = tmp_path / "recorded.json"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        check=True,
        cwd=tmp_path / "testbed",
        capture_output=True,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(tmp_path),
            "PYTEST_ADDOPTS": "-p recorder_inside",
            "RECORDER_ROOT": str(tmp_path / "testbed"),
            "RECORDER_OUTPUT": str(output),
        },
    )
    recorded = json.loads(output.read_text())
    numbers = recorded["tests"]["tests/test_area.py::AreaTest::test_scaled"]
    assert ["shapes/area.py", "scaled"] in [recorded["functions"][n] for n in numbers]
    assert ["shapes/area.py", "total"] not in [recorded["functions"][n] for n in numbers]
