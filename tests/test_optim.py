from __future__ import annotations

import torch

from isocost.optim import MuonAdamW, load_moments, moments, orthogonalised


def test_orthogonalised_brings_singular_values_near_one():
    generator = torch.Generator().manual_seed(0)
    for shape in ((8, 72), (72, 8), (16, 16)):
        matrix = torch.randn(shape, generator=generator)
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        result = orthogonalised(matrix)
        values = torch.linalg.svdvals(result)
        assert values.min() > 0.3 and values.max() < 1.3
        assert (left.T @ result @ right.T).diagonal().min() > 0.3  # same singular directions


def test_without_matrices_it_is_adamw():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    settings = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.01}
    a = MuonAdamW([], [ours], muon_lr=0.02, **settings)
    b = torch.optim.AdamW([theirs], **settings)
    for step in range(5):
        for weight, optimizer in ((ours, a), (theirs, b)):
            weight.grad = torch.arange(5.0) - step
            optimizer.step()
    assert torch.equal(ours, theirs)


def test_a_matrix_moves_by_the_orthogonalised_momentum():
    torch.manual_seed(0)
    start = torch.randn(4, 3, 2)
    weight = torch.nn.Parameter(start.clone())
    optimizer = MuonAdamW([weight], [torch.nn.Parameter(torch.zeros(1))], muon_lr=0.5, lr=0.1)
    weight.grad = torch.randn(4, 3, 2)
    optimizer.step()
    expected = start - 0.5 * orthogonalised(1.95 * weight.grad.flatten(1)).view_as(start)
    torch.testing.assert_close(weight.detach(), expected)


def some_steps(module: torch.nn.Linear, optimizer: MuonAdamW, numbers: range) -> None:
    for number in numbers:
        optimizer.zero_grad()
        module(torch.arange(4.0) + number).square().sum().backward()
        optimizer.step()


def linear() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 4)


def optimizer_of(module: torch.nn.Linear) -> MuonAdamW:
    return MuonAdamW([module.weight], [module.bias], muon_lr=0.02, lr=0.1)


def test_with_its_moments_a_new_optimizer_goes_on_to_the_same_bits():
    whole, stopped, resumed, forgetful = (linear() for _ in range(4))
    some_steps(whole, optimizer_of(whole), range(6))
    before = optimizer_of(stopped)
    some_steps(stopped, before, range(3))
    kept = moments(stopped, before)
    assert set(kept) == {"weight.momentum", "bias.step", "bias.exp_avg", "bias.exp_avg_sq"}
    for module in (resumed, forgetful):
        module.load_state_dict(stopped.state_dict())
        after = optimizer_of(module)
        if module is resumed:
            load_moments(module, after, kept)
        some_steps(module, after, range(3, 6))
    assert torch.equal(whole.weight, resumed.weight) and torch.equal(whole.bias, resumed.bias)
    assert not torch.equal(whole.weight, forgetful.weight)
