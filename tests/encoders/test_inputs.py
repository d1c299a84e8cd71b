from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from isocost.encoders.inputs import in_fixed_batches, resize

ROWS = torch.arange(22.0).reshape(11, 2)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("side_by_side", [False, True])
def test_batches_have_one_size_and_rows_keep_their_order(three_threads, side_by_side):
    sizes, threads = [], set()
    barrier = threading.Barrier(3 if side_by_side else 1)

    def network(batch: torch.Tensor) -> torch.Tensor:
        sizes.append(len(batch))
        threads.add((threading.get_ident(), torch.get_num_threads()))
        barrier.wait(10)  # breaks unless as many batches as there are threads run at once
        assert not torch.is_grad_enabled()
        return (batch * 2).double()

    found = in_fixed_batches(network, ROWS, 4, side_by_side)
    assert np.array_equal(found, 2 * ROWS.numpy()) and found.dtype == np.float32
    assert sizes == [4, 4, 4]
    assert sorted(count for _, count in threads) == ([1, 1, 1] if side_by_side else [3])
    assert torch.get_num_threads() == 3


def test_threads_are_as_before_after_an_error(three_threads):
    with pytest.raises(RuntimeError):
        in_fixed_batches(lambda batch: batch @ batch, ROWS, 4, side_by_side=True)
    assert torch.get_num_threads() == 3
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [3]


def test_the_central_square_may_be_smaller_than_the_shorter_side():
    images = torch.rand(1, 3, 40, 60, generator=torch.Generator().manual_seed(0))
    whole = resize(images, 20)
    assert whole.shape == (1, 3, 20, 20)
    assert torch.equal(resize(images, 20, crop=12), whole[:, :, 4:16, 4:16])
