from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from isocost.errors import TrainingError
from isocost.processes import only_trainer, stop_signals

HOLD = """
import sys, time
from pathlib import Path
from isocost.processes import only_trainer
with only_trainer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_trainer_and_a_killed_one_lets_go(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(TrainingError, match=f"{tmp_path}: another process is training here"), only_trainer(tmp_path):
        pass
    other.kill()
    other.communicate()
    with only_trainer(tmp_path):
        pass


@pytest.fixture
def interruptible():
    """A shell starts what it puts in the background with SIGINT ignored; these tests want Python's own handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_the_first_signal_is_kept_and_the_second_acts():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stop_signals() as received:
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_signals_are_left_alone():
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work():
        with stop_signals() as received:
            inside.append((received, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [([], before)]
