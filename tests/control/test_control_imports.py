"""What an import costs and what the package exports: control is light, the names are whole."""

from __future__ import annotations

import inspect
import json
import pkgutil
import subprocess
import sys

import pytest

import ftlab_mlflow
import ftlab_mlflow.control

HEAVY = {"torch", "transformers", "trl", "streamlit", "openai", "anthropic"}
CONTROL = [
    f"ftlab_mlflow.control.{module.name}" for module in pkgutil.iter_modules(ftlab_mlflow.control.__path__)
]


def loaded_by(statement: str) -> set[str]:
    """Top-level packages that a fresh process has loaded after a statement."""
    code = (
        f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_all_of_control_loads_neither_a_framework_nor_mlflow() -> None:
    assert len(CONTROL) >= 9
    loaded = loaded_by(f"import ftlab_mlflow.control, {', '.join(CONTROL)}")
    assert not loaded & (HEAVY | {"mlflow", "sqlalchemy", "requests"})


def test_a_store_on_mlflow_loads_no_framework() -> None:
    uri = "http://127.0.0.1:1"
    loaded = loaded_by(f"from ftlab_mlflow import MlflowRunStore\nMlflowRunStore('{uri}')")
    assert "mlflow" in loaded
    assert not loaded & HEAVY


def test_the_package_alone_loads_nothing_but_the_standard_library() -> None:
    ours = loaded_by("import ftlab_mlflow") - loaded_by("pass")
    assert ours - set(sys.stdlib_module_names) == {"ftlab_mlflow"}


def test_the_exported_names_are_those_that_are_loaded_lazily() -> None:
    assert set(ftlab_mlflow.__all__) == set(ftlab_mlflow._HOME_OF)
    assert list(ftlab_mlflow.__all__) == sorted(ftlab_mlflow.__all__)
    assert dir(ftlab_mlflow) == ftlab_mlflow.__all__


@pytest.mark.parametrize("name", ftlab_mlflow.__all__)
def test_every_exported_name_is_there_and_documented(name: str) -> None:
    member = getattr(ftlab_mlflow, name)
    assert member.__name__ == name
    home = f"ftlab_mlflow.{ftlab_mlflow._HOME_OF[name]}"
    assert member.__module__ == home
    assert member.__doc__
    assert not member.__doc__.startswith(f"{name}("), "a dataclass writes this by itself"
    for method_name, method in inspect.getmembers(member, inspect.isfunction):
        if method.__module__ == home and not method_name.startswith("_"):
            # What a store does is said once, on the protocol; what an event is, by transformers.
            bases = (*member.__mro__, ftlab_mlflow.RunStore)
            says = any(getattr(getattr(base, method_name, None), "__doc__", None) for base in bases)
            assert says, f"{name}.{method_name} is not documented"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = ftlab_mlflow.nothing


def test_types_see_the_same_names_as_programs() -> None:
    import ast
    from pathlib import Path

    assert ftlab_mlflow.__file__ is not None
    tree = ast.parse(Path(ftlab_mlflow.__file__).read_text())
    imports = [
        node
        for block in tree.body
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
    ]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    assert seen == {name: f"ftlab_mlflow.{home}" for name, home in ftlab_mlflow._HOME_OF.items()}
