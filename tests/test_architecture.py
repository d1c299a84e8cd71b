"""The shape of the package: imports run one way, heavy libraries load late, and some constructs are not used at all."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import isocost

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "isocost"

# From the bottom up. A module may import its own package and the rows above its own; what shares a row stays apart.
LAYERS = (
    ("errors", "dtensors"),
    ("allocator", "files", "optim", "processes"),
    ("specs", "environment", "runlog"),
    ("models", "diffusion", "trackers", "utilisation"),
    ("data",),
    ("encoders",),
    ("training", "sampling", "scoring"),
    ("study",),
    ("analysis",),
    ("reporting",),
    ("recipes",),
    ("api",),
    ("console",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
HEAVY = ("torch", "diffusers", "transformers", "pandas", "scipy", "pyarrow", "matplotlib", "plotly", "ray")
FORBIDDEN = ("torchvision", "pickle", "dill", "cloudpickle", "joblib", "accelerate")
DISTRIBUTION = {  # where it is not the module
    "PIL": "pillow",
    "yaml": "pyyaml",
    "huggingface_hub": "huggingface-hub",
    "pynvml": "nvidia-ml-py",
}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def imports(source: str, module: str, is_package: bool = False) -> Iterator[str]:
    """Absolute dotted names a module imports anywhere, functions and `TYPE_CHECKING` included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = module.split(".") if is_package else module.split(".")[:-1]
            base = here[: len(here) - node.level + 1] if node.level else []
            parts = [*base, *(node.module or "").split(".")]
            name = ".".join(part for part in parts if part)
            yield from (f"{name}.{alias.name}" for alias in node.names)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    return set(imports(path.read_text("utf-8"), module_name(path), path.name == "__init__.py"))


def wrong_way(module: str, imported: set[str]) -> list[str]:
    """Which of a module's imports point up or sideways."""
    own = module.split(".")[1]
    targets = {name.split(".")[1] for name in imported if name.startswith("isocost.")}
    return sorted(target for target in targets if target in RANK and target != own and RANK[target] >= RANK[own])


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_run_one_way(path: Path):
    module = module_name(path)
    if module == "isocost":
        return  # the front door: it may name everything, lazily; `test_heavy_libraries_load_late` holds it
    assert module.split(".")[1] in RANK, f"{module}: give it a place in LAYERS"
    assert not wrong_way(module, imports_of(path)), f"{module} imports what lies above or beside it"


def test_the_direction_check_sees_every_form_of_import():
    source = """
def late():
    from isocost.study import store
from ..sampling.engine import Engine
from .. import reporting
import isocost.cli
from isocost.specs import Spec
from .loop import step
"""
    found = set(imports(source, "isocost.training.state"))
    assert wrong_way("isocost.training.state", found) == ["cli", "reporting", "sampling", "study"]


@pytest.mark.parametrize("module", ["isocost", "isocost.specs", "isocost.cli"])
def test_heavy_libraries_load_late(module: str):
    """`isocost --help` has to answer at once, and torch alone takes a second to import."""
    code = f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_forbidden_library(path: Path):
    """torchvision breaks diffusers beside a CPU torch; pickles run code that came with somebody's weights."""
    assert not {name.split(".")[0] for name in imports_of(path)} & set(FORBIDDEN)


def unsafe(source: str) -> list[str]:
    """Constructs that run or hide what they should not, as "line: construct"."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg in ("weights_only", "allow_pickle"):
            safe = node.arg == "weights_only"
            if not (isinstance(node.value, ast.Constant) and node.value.value is safe):
                found.append(f"{node.value.lineno}: {node.arg}")
        elif isinstance(node, ast.Attribute) and node.attr == "extractall":
            found.append(f"{node.lineno}: extractall")
        elif isinstance(node, ast.ExceptHandler) and all(isinstance(line, ast.Pass) for line in node.body):
            caught = ast.unparse(node.type) if node.type else "everything"
            if caught in ("everything", "Exception", "BaseException"):
                found.append(f"{node.lineno}: swallows {caught}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_nothing_unsafe_and_nothing_swallowed(path: Path):
    assert unsafe(path.read_text("utf-8")) == []


def test_the_safety_check_sees_what_it_should():
    source = "try:\n    load(f, weights_only=False)\nexcept Exception:\n    pass\ntar.extractall(x)\n"
    assert sorted(unsafe(source)) == ["2: weights_only", "3: swallows Exception", "5: extractall"]
    assert unsafe("try:\n    load(f, weights_only=True)\nexcept OSError:\n    pass\n") == []


def test_third_party_imports_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    names = {re.split(r"[^A-Za-z0-9_-]", line)[0].lower().replace("_", "-") for line in declared}
    used = {name.split(".")[0] for path in SOURCES for name in imports_of(path)}
    outside = used - set(sys.stdlib_module_names) - {"isocost"}
    missing = {module for module in outside if DISTRIBUTION.get(module, module.lower().replace("_", "-")) not in names}
    assert not missing, f"pyproject.toml does not name {sorted(missing)}"


def test_what_the_package_exports_is_documented():
    for name in getattr(isocost, "__all__", ()):
        value = getattr(isocost, name)
        if inspect.isroutine(value) or inspect.isclass(value):
            assert inspect.getdoc(value), f"isocost.{name} has no docstring"
