from __future__ import annotations

import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from isocost.environment import environment
from isocost.sampling import instruments
from isocost.sampling.instruments import PeakMemory, device_name, joules_meter, seconds_of

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def test_a_processors_name_is_the_environments():
    assert device_name("cpu") == environment()["cpu"]


def test_calls_are_made_as_often_as_asked():
    made = []
    assert seconds_of(lambda: made.append(1), 5, "cpu") > 0
    assert len(made) == 5


@linux
def test_memory_that_was_used_for_a_moment_counts():
    """In a process of its own, whose peak is not yet higher; the parent's must not count (getrusage's would)."""
    code = (
        "from isocost.sampling.instruments import PeakMemory\nmemory = PeakMemory('cpu')\n"
        "block = b'x' * 2**28\ndel block\nprint(memory())"
    )
    block = b"x" * 2**29
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(block) > int(done.stdout) > 2**28 - 2**24


def test_where_the_system_does_not_tell_memory_is_not_known(monkeypatch):
    monkeypatch.setattr(instruments, "_of_this_process", lambda field: None)
    assert PeakMemory("cpu")() is None


def test_processors_have_no_meter_of_joules():
    assert joules_meter("cpu") is None


def nvml(counts: bool) -> ModuleType:
    """Stands for nvidia-ml-py: a GPU that has taken 5,000 mJ, or one too old to count."""
    module = ModuleType("pynvml")

    class NVMLError(Exception):
        pass

    def energy(handle):
        if not counts:
            raise NVMLError("not supported")
        return {"GPU-abc": 5000}[handle]

    module.NVMLError, module.nvmlInit = NVMLError, lambda: None  # pyright: ignore[reportAttributeAccessIssue]
    module.nvmlDeviceGetHandleByUUID = lambda uuid: uuid  # pyright: ignore[reportAttributeAccessIssue]
    module.nvmlDeviceGetTotalEnergyConsumption = energy  # pyright: ignore[reportAttributeAccessIssue]
    return module


@pytest.mark.parametrize("counts", [True, False])
def test_a_gpus_joules_are_nvmls_of_the_same_gpu(monkeypatch, counts):
    monkeypatch.setitem(sys.modules, "pynvml", nvml(counts))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: SimpleNamespace(uuid="abc"))
    meter = joules_meter("cuda")
    assert (meter() if meter else None) == (5.0 if counts else None)


def test_without_nvidia_ml_py_joules_are_not_known(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert joules_meter("cuda") is None
