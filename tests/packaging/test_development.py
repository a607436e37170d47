"""Development and CI are reproducible: what they run is locked, pinned and the same everywhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
LOCK = (REPOSITORY / "constraints.txt").read_text()
LOCKED = [Requirement(line) for line in re.findall(r"^\w[^#\n]*", LOCK, re.MULTILINE)]
SUPPORTED = [found[1] for found in map(re.compile(r".*:: (3\.\d+)$").match, PROJECT["classifiers"]) if found]
WANTED = [
    Requirement(text)
    for texts in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for text in texts
]


def of_python(version: str) -> dict[str, str]:
    """Return what differs between the supported Pythons for a marker."""
    return {"python_version": version, "python_full_version": f"{version}.0"}


def applies(requirement: Requirement, version: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(of_python(version))


def test_there_are_workflows_supported_pythons_and_locked_packages() -> None:
    """The patterns above still find them."""
    assert [workflow.name for workflow in WORKFLOWS] == ["ci.yml", "nightly.yml", "publish.yml"]
    assert SUPPORTED[0] == PROJECT["requires-python"].removeprefix(">=")
    assert len(LOCKED) > 50


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.name)
def test_a_workflow_uses_only_actions_that_are_pinned_by_hash(workflow: Path) -> None:
    """A tag can be moved to other code, a commit can't; the comment names the version."""
    used = re.findall(r"^\s*-?\s*uses:\s*(.+)$", workflow.read_text(), re.MULTILINE)
    foreign = [action for action in used if not action.startswith("./")]
    assert foreign
    assert [action for action in foreign if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)] == []


def test_an_action_has_one_version() -> None:
    """What dependabot renews in one workflow is not forgotten in another."""
    used = re.findall(r"uses:\s*([\w./-]+)@(.+)$", "\n".join(map(Path.read_text, WORKFLOWS)), re.MULTILINE)
    assert len(set(used)) == len(dict(used))


def test_the_lock_names_no_place_that_packages_come_from() -> None:
    """Everybody installs by it from the index that their own pip is set up for."""
    assert not re.search(r"://|^\s*-|\s@\s", LOCK, re.MULTILINE)
    assert [str(locked) for locked in LOCKED if {pin.operator for pin in locked.specifier} != {"=="}] == []


@pytest.mark.parametrize("version", SUPPORTED)
def test_the_lock_has_one_version_of_all_that_pyproject_names(version: str) -> None:
    """On each supported Python, of the dependencies and of every extra; `make lock` writes what is missing."""
    locked: dict[str, list[str]] = {}
    for package in LOCKED:
        if applies(package, version):
            locked.setdefault(canonicalize_name(package.name), []).extend(pin.version for pin in package.specifier)
    assert {name: versions for name, versions in locked.items() if len(versions) > 1} == {}
    wanted = [each for each in WANTED if applies(each, version) and each.name != PROJECT["name"]]
    unlocked = [
        str(each)
        for each in wanted
        if not any(
            each.specifier.contains(pin, prereleases=True) for pin in locked.get(canonicalize_name(each.name), [])
        )
    ]
    assert unlocked == []


def test_ci_runs_on_every_supported_python() -> None:
    """The classifiers promise no other ones than those that are tested."""
    (tested,) = re.findall(r"^ +python: \[(.+)\]$", (REPOSITORY / ".github/workflows/ci.yml").read_text(), re.MULTILINE)
    assert re.findall(r"[\d.]+", tested) == SUPPORTED


def test_a_commit_is_checked_by_what_ci_checks() -> None:
    """The hooks of pre-commit run the programs of `make check`, from the same environment."""
    (recipe,) = re.findall(r"^check: .+\n((?:\t.+\n)+)", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    programs = set(re.findall(r"\$\(VENV\)/bin/(\S+)", recipe))
    assert programs
    hooks = (REPOSITORY / ".pre-commit-config.yaml").read_text()
    assert set(re.findall(r"entry: \.venv/bin/(\S+)", hooks)) == programs
