from __future__ import annotations

import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import torch

import isocost
from isocost.environment import LIBRARIES, checkout, environment


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A committed src/isocost with one file."""
    package = tmp_path / "project" / "src" / "isocost"
    package.mkdir(parents=True)
    (package / "specs.py").write_text("WIDTH = 64\n")
    git(tmp_path / "project", "init", "--quiet")
    git(tmp_path / "project", "add", ".")
    git(tmp_path / "project", "commit", "--quiet", "-m", "first")
    return package


def test_versions_and_machine_are_those_of_this_process():
    found = environment()
    assert found["isocost"] == isocost.__version__
    assert found["python"] == platform.python_version()
    assert {name: found[name] for name in LIBRARIES} == {name: metadata.version(name) for name in LIBRARIES}
    assert found["cores"] >= 1
    assert len(found["gpus"]) == torch.cuda.device_count()
    assert json.loads(json.dumps(found)) == found


def test_threads_and_dtype_are_read_at_each_call():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        torch.set_default_dtype(torch.float64)
        assert (environment()["threads"], environment()["dtype"]) == (threads + 1, "float64")
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
    assert (environment()["threads"], environment()["dtype"]) == (threads, "float32")


def test_a_caller_may_change_what_it_got():
    environment()["gpus"].append("invented")
    environment()["cpu"] = "invented"
    assert "invented" not in environment()["gpus"]
    assert environment()["cpu"] != "invented"


def test_names_no_host_and_no_path():
    values = json.dumps(environment())
    assert platform.node() not in values
    assert str(Path.home()) not in values


def test_commit_of_a_clean_checkout(package: Path):
    assert checkout(package) == (git(package, "rev-parse", "HEAD"), False)


@pytest.mark.parametrize("name", ["specs.py", "new.py"])
def test_a_changed_or_new_source_file_is_dirty(package: Path, name: str):
    (package / name).write_text("WIDTH = 128\n")
    assert checkout(package) == (git(package, "rev-parse", "HEAD"), True)


def test_a_change_outside_the_package_is_not_dirty(package: Path):
    (package.parents[1] / "notes.txt").write_text("a run's output")
    assert checkout(package)[1] is False


def test_a_copy_installed_inside_another_checkout_has_no_commit(package: Path):
    installed = package.parents[1] / ".venv" / "site-packages" / "isocost"
    installed.mkdir(parents=True)
    assert checkout(installed) == (None, None)


def test_no_commit_outside_git_or_before_the_first_commit(tmp_path: Path):
    package = tmp_path / "src" / "isocost"
    package.mkdir(parents=True)
    assert checkout(package) == (None, None)
    git(tmp_path, "init", "--quiet")
    assert checkout(package) == (None, None)
