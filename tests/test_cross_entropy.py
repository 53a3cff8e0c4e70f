import pytest
import torch
from torch.nn.functional import cross_entropy

from hfseq.tasks import losses as module
from hfseq.tasks.losses import summed_cross_entropy


@pytest.fixture(params=[1, 40, 2**18])
def chunk(request, monkeypatch):
    """A row at a time, some rows with a rest, all at once."""
    monkeypatch.setattr(module, "_CHUNK", request.param)


def case(dtype):
    torch.manual_seed(0)
    logits = 3 * torch.randn(4, 3, 13)
    labels = torch.randint(0, 13, (4, 3))
    labels[1, 2] = labels[3, 0] = -100
    return logits.to(dtype).requires_grad_(), labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradients_are_torchs(chunk, smoothing, dtype):
    logits, labels = case(dtype)
    expected = cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), label_smoothing=smoothing, reduction="sum"
    )
    found = summed_cross_entropy(logits, labels, smoothing)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    right = torch.autograd.grad(expected / 7, logits)[0]
    torch.testing.assert_close(torch.autograd.grad(found / 7, logits)[0], right)
    assert right.dtype == dtype and not right[1, 2].any()


def test_nothing_to_predict(chunk):
    logits, labels = case(torch.float32)
    loss = summed_cross_entropy(logits, torch.full_like(labels, -100), 0.1)
    assert loss == 0
    assert not torch.autograd.grad(loss, logits)[0].any()


def test_gradients_twice_from_one_graph(chunk):
    logits, labels = case(torch.float32)
    loss = summed_cross_entropy(logits, labels, 0.1)
    first = torch.autograd.grad(loss, logits, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], first)


def test_without_gradients():
    logits, labels = case(torch.float32)
    with torch.no_grad():
        found = summed_cross_entropy(logits, labels, 0.1)
    torch.testing.assert_close(found, summed_cross_entropy(logits, labels, 0.1).detach())
