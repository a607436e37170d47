"""The names of the package itself."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import checkpoint_store
from checkpoint_store import errors


def test_every_name_can_be_imported_and_is_listed() -> None:
    """`import *`, `dir()` and completion in a shell agree."""
    for name in checkpoint_store.__all__:
        assert getattr(checkpoint_store, name).__name__ == name
    assert set(checkpoint_store.__all__) <= set(dir(checkpoint_store))
    assert sorted(checkpoint_store.__all__) == checkpoint_store.__all__


def test_a_name_that_the_package_does_not_have() -> None:
    """As of any module."""
    with pytest.raises(AttributeError, match="module 'checkpoint_store' has no attribute 'Saver'"):
        checkpoint_store.Saver  # noqa: B018


def test_the_errors_of_the_package_are_those_of_its_errors_module() -> None:
    """The same classes, and the base of all of them."""
    ours = {name for name in checkpoint_store.__all__ if name in vars(errors)}

    assert {name for name in ours if vars(checkpoint_store)[name] is vars(errors)[name]} == ours
    assert {"CheckpointStoreError", "Conflict", "InvalidConfig", "NotSetUp", "ThreadLocked", "Unavailable"} <= ours
    assert all(issubclass(vars(errors)[name], errors.CheckpointStoreError) for name in ours)


def test_to_catch_an_error_does_not_import_langgraph() -> None:
    """Nor SQLAlchemy."""
    script = "import sys; from checkpoint_store import NotSetUp; print({'langgraph', 'sqlalchemy'} & {*sys.modules})"

    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "set()\n"
    )


@pytest.mark.parametrize("saver", [checkpoint_store.AsyncPostgresSaver, checkpoint_store.PostgresSaver])
def test_the_signature_of_a_saver_refers_to_its_options(saver: type) -> None:
    """That is where they are documented; a stock saver's positional arguments come first."""
    parameters = inspect.signature(saver).parameters

    assert [*parameters] == ["conn", "pipe", "serde", "options"]
    assert "SaverOptions" in parameters["options"].annotation
