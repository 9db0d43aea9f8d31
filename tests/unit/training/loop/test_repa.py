"""Alignment is a matter of direction: 0 when features are met, 2 when they are opposed."""

import pytest
import torch

from fit_training.loop.repa import AlignmentHead, alignment_loss


def test_the_loss_at_its_ends():
    features = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    assert alignment_loss(3.0 * features, features).item() == pytest.approx(0.0, abs=1e-6)
    assert alignment_loss(-0.1 * features, features).item() == pytest.approx(2.0, abs=1e-6)
    across = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert alignment_loss(*across).item() == pytest.approx(1.0)


def test_the_loss_is_the_mean_over_tokens():
    projected, features = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    alone = [alignment_loss(projected[i : i + 1], features[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(alignment_loss(projected, features), torch.stack(alone).mean())


def test_the_loss_is_fp32_whatever_the_head():
    projected, features = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    loss = alignment_loss(projected.bfloat16(), features)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, alignment_loss(projected.bfloat16().float(), features))


def test_the_head_leads_from_width_to_features_token_by_token():
    torch.manual_seed(0)
    head, hidden = AlignmentHead(8, 5), torch.randn(6, 8)
    out = head(hidden)
    assert out.shape == (6, 5)
    torch.testing.assert_close(head(hidden[2:3]), out[2:3])


def test_the_head_can_learn_the_features():
    torch.manual_seed(0)
    hidden, features = torch.randn(20, 8), torch.randn(20, 5)
    head = AlignmentHead(8, 5)
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = alignment_loss(head(hidden), features)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < losses[0]
