from __future__ import annotations

import json
import subprocess
import sys

import pytest

from isocost import __version__
from isocost.cli import app, main


def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "isocost.cli", *arguments], capture_output=True, text=True, check=check, timeout=120
    )


def fails(capsys, *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert isinstance(stopped.value.code, int)
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1, "an error is one line"
    return stopped.value.code, shown


def test_every_command_of_the_house_has_help_with_examples():
    shown = run("--help").stdout
    commands = ["quickstart", "ladder", "train", "sample", "sweep", "status", "plan", "report", "export", "env"]
    for command in [*commands, "check", "score", "reference", "recipe", "store"]:
        assert command in shown
        assert command in ("reference", "recipe", "store") or "Examples:" in run(command, "--help").stdout


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom isocost.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'pandas', 'diffusers', 'transformers', 'pydantic', 'numpy'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_version():
    assert run("--version").stdout.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("swep",), 'Did you mean "sweep"'),
        (("sweep", "quickstart", "--worker", "2"), "--workers"),
        (("sweep",), "requires an argument"),
        (("sweep", "quickstat"), "Did you mean 'quickstart'"),
        (("sweep", "quickstart", "--set", "train.image=3"), "Did you mean 'images'"),
        (("plan", "nowhere"), "not a store"),
        (("ladder", "sdd"), "Did you mean 'sd'"),
    ],
)
def test_a_wrong_word_is_one_line_and_never_starts_anything(capsys, arguments, message):
    code, shown = fails(capsys, *arguments)
    assert code == (1 if "store" in message else 2)
    assert message in shown


def test_a_yaml_file_with_a_wrong_field_names_file_and_field(capsys, tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(run("recipe", "show", "quickstart").stdout.replace("resolution: 32", "resolutoin: 32"))
    code, shown = fails(capsys, "sweep", str(path))
    assert code == 2
    assert "my.yaml: data.resolutoin: unknown field. Did you mean 'resolution'?" in shown


def test_recipe_show_is_a_study_again(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(run("recipe", "show", "scenes").stdout)
    assert json.loads(run("recipe", "show", "scenes", "--json").stdout)["name"] == "scenes"
    import isocost

    assert isocost.load_study(path).name == "scenes"


def test_env_and_check_as_json(capsys):
    main(["env", "--json"])
    assert {"torch", "cpu", "threads", "dtype", "commit", "dirty"} <= set(json.loads(capsys.readouterr().out))
    main(["check", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert all(row["found"] for row in rows if row["name"].startswith("scenes-"))
    assert all(row["found"] or row["what to do"] for row in rows)


def test_check_says_what_would_provide_what_is_missing(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("ISOCOST_WEIGHTS", raising=False)
    main(["check"])
    lines = capsys.readouterr().out.splitlines()
    (command,) = (line for line in lines if line.endswith("# fid-tf, fid-clean"))
    assert command.strip().startswith("curl -L --create-dirs -o ~/.cache/isocost/weights/pt_inception-2015-12-05")
    assert not any(str(tmp_path) in line for line in lines)


def test_app_has_no_command_without_a_docstring():
    for name in app:
        if not name.startswith("-"):
            assert app[name].help, name
