"""The losses of transformers' models, as the documents show them: what is found out of each, and that its gradient stays."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.slow
REFUSED = {
    "in-batch contrastive": "not cut: IN_BATCH",
    "BatchNorm": "not cut: BATCH_STATISTICS",
    "MixtralForCausalLM with its auxiliary loss": "not cut: AUXILIARY_LOSS",
}


def test_each_loss_is_cut_exactly_or_not_at_all() -> None:
    import own_cuts  # imports transformers

    assert set(REFUSED) < set(own_cuts.LOSSES)
    for name, make in own_cuts.LOSSES.items():
        found = own_cuts.compare(make)
        assert found.ours < 1e-6, name
        if name in REFUSED:
            assert (found.is_cut, found.said) == (False, REFUSED[name])
        else:
            assert found.is_cut, name
