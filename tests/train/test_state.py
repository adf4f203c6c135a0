import pytest
import torch
from torch import nn

from deploykit.train import state


def stepped(seed, steps=3):
    """A small model and its optimizer after a few steps."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_a_loaded_state_goes_on_bitwise_as_the_saved_one_would_have(tmp_path):
    model, optimizer = stepped(seed=0)
    state.save_state(tmp_path / "s.safetensors", model, optimizer, {"step": 3, "loss_sum": 0.1})
    other, other_optimizer = stepped(seed=1, steps=1)
    assert state.load_state(tmp_path / "s.safetensors", other, other_optimizer) == {"step": 3, "loss_sum": 0.1}
    for pair in ((model, optimizer), (other, other_optimizer)):
        step(*pair)
    assert torch.equal(flat(model), flat(other))


def test_without_the_moments_it_would_not(tmp_path):
    model, optimizer = stepped(seed=0)
    state.save_weights(tmp_path / "w.safetensors", model)
    other, other_optimizer = stepped(seed=1, steps=1)
    state.load_weights(tmp_path / "w.safetensors", other)
    assert torch.equal(flat(model), flat(other))
    for pair in ((model, optimizer), (other, other_optimizer)):
        step(*pair)
    assert not torch.equal(flat(model), flat(other))


def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    file = tmp_path / "s.safetensors"
    model, optimizer = stepped(seed=0)
    state.save_state(file, model, optimizer, {"step": 3})
    before = file.read_bytes()

    def torn(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state, "save_file", torn)
    with pytest.raises(OSError, match="No space"):
        state.save_state(file, model, optimizer, {"step": 4})
    assert file.read_bytes() == before


def test_shared_parameters_are_written_once(tmp_path):
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    state.save_weights(tmp_path / "w.safetensors", model)
    saved = flat(model)
    with torch.no_grad():
        first.weight.zero_()
    state.load_weights(tmp_path / "w.safetensors", model)
    assert torch.equal(flat(model), saved)
