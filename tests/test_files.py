from __future__ import annotations

import pytest

from isocost.files import atomic_write, replace_folder


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a"
    with atomic_write(path) as file:
        file.write(b"first")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half of the sec")
        raise RuntimeError
    assert path.read_bytes() == b"first" and [found.name for found in tmp_path.iterdir()] == ["a"]


def test_a_folder_takes_the_place_of_another(tmp_path):
    for folder, name in (("final", "old"), ("made", "new")):
        (tmp_path / folder / "inside").mkdir(parents=True)
        (tmp_path / folder / "inside" / name).write_text(name)
    replace_folder(tmp_path / "made", tmp_path / "final")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()] == [
        "final/inside/new"
    ]
