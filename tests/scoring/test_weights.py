from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from isocost.errors import DataError
from isocost.files import file_digest
from isocost.scoring.weights import Published, fill, folders, read_state_dict

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


@pytest.fixture
def home(monkeypatch, tmp_path) -> Path:
    """A user with no weights anywhere: neither in the cache, nor at torch hub's, nor in a folder of their own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("ISOCOST_WEIGHTS", str(tmp_path / "named"))
    return tmp_path


@pytest.fixture
def published(tmp_path) -> Published:
    """A published file; its bytes lie at tmp_path/original."""
    torch.save(TENSORS, tmp_path / "original")
    return Published(("net.pth", "net-v1.pth"), file_digest(tmp_path / "original"), "https://example.org/net.pth")


def put(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())
    return target


def test_places_are_looked_at_in_order(home, published):
    assert published.find() is None
    found = []
    for folder in reversed(folders()):
        found.append(put(home / "original", folder / "net-v1.pth"))
        assert published.find() == found[-1]
    assert [path.parent for path in found] == [
        home / "torch/hub/checkpoints",
        home / "home/.cache/isocost/weights",
        home / "named",
    ]


def test_a_missing_file_says_where_it_was_looked_for_and_what_to_do(home, published):
    with pytest.raises(DataError, match=r"net\.pth: not found in .*named, .*isocost/weights, .*checkpoints\. .*curl"):
        published.read()
    with pytest.raises(DataError, match=r"elsewhere\.pth: no such file .*https://example\.org/net\.pth"):
        published.read(home / "elsewhere.pth")


def test_a_published_name_must_have_the_published_bytes(home, published):
    place = put(home / "original", home / "named/net.pth")
    where, tensors = published.read()
    assert where == place and torch.equal(tensors["weight"], TENSORS["weight"])
    torch.save({**TENSORS, "bias": torch.zeros(2)}, place)
    with pytest.raises(DataError, match=r"net\.pth: not what is published under this name"):
        published.read()
    assert published.read(put(place, home / "mine.pth"))[1]["bias"].sum() == 0


def test_safetensors_of_the_same_name_will_do(home, published):
    path = home / "named/net-v1.safetensors"
    path.parent.mkdir()
    save_file({"weight": TENSORS["weight"].half(), "bias": TENSORS["bias"]}, path)
    where, tensors = published.read()
    assert where == path
    assert tensors["weight"].dtype == torch.float32 and torch.equal(tensors["weight"], TENSORS["weight"])


def test_files_that_are_no_weights_are_refused(tmp_path):
    damaged, other, code = tmp_path / "damaged.pth", tmp_path / "other.pth", tmp_path / "code.pth"
    damaged.write_bytes(b"<html>404</html>")
    torch.save({"epoch": 3}, other)
    torch.save({"weight": print}, code)
    with pytest.raises(DataError, match=r"damaged\.pth: not a file of weights that is safe to read"):
        read_state_dict(damaged)
    with pytest.raises(DataError, match=r"code\.pth: not a file of weights that is safe to read"):
        read_state_dict(code)
    with pytest.raises(DataError, match=r"other\.pth: holds something else than tensors by name"):
        read_state_dict(other)


def linear() -> torch.nn.Module:
    with torch.device("meta"):
        return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))


def test_every_weight_comes_from_the_file():
    module = linear()
    given = {name: torch.rand(value.shape) for name, value in module.state_dict().items() if "num_" not in name}
    fill(module, given, Path("net.pth"))
    assert all(torch.equal(module.state_dict()[name], value) for name, value in given.items())
    assert not any(value.is_meta for value in module.state_dict().values())
    assert not module.training and not any(value.requires_grad for value in module.parameters())
    fill(linear(), {**given, "1.num_batches_tracked": torch.tensor(7)}, Path("net.pth"))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda given: given.pop("0.bias"), r"net\.pth: lacks '0\.bias'"),
        (lambda given: given.update({"0.weight": torch.rand(2, 4)}), r"'0\.weight' is \[2, 4\], not \[2, 3\]"),
        (lambda given: given.update(head=torch.rand(1)), r"'head' is no weight of this network"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message):
    module = linear()
    given = {name: torch.rand(value.shape) for name, value in module.state_dict().items()}
    change(given)
    with pytest.raises(DataError, match=message):
        fill(module, given, Path("net.pth"))
