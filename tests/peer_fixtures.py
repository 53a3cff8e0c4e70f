"""Fixtures that other toolkits wrote, `tests/fixtures/peers`, and the comparison of a converted model with them."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from hfseq.convert import check_conversion

PEERS = Path(__file__).parent / "fixtures" / "peers"


def expected(case):
    """Batches of a case, by name, with their tensors; and the facts about it."""
    batches = {}
    with safe_open(PEERS / case / "expected.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118
            batch, _, name = key.partition(".")
            batches.setdefault(batch, {})[name] = file.get_tensor(key)
        return batches, json.loads(file.metadata()["facts"])


def valid_logits(logits, mask):
    """Logits at valid steps, or of a classifier."""
    return logits if logits.dim() == 2 else logits[mask != 0]


@torch.no_grad()
def assert_equals_peer(converted, case, *, normalized=False, columns=slice(None)):
    """The converted model gives the peer's logits on its batches, and passes its own check.

    `normalized` logits of the peer are log-probabilities; `columns` of ours are those that the peer has.
    """
    model, (batches, _) = converted.model, expected(case)
    for name, batch in batches.items():
        inputs = {key: value for key, value in batch.items() if key.endswith(("input_ids", "attention_mask"))}
        logits = model(**inputs).logits[..., columns]
        logits = logits[..., : batch["logits"].shape[-1]]  # without pieces of words that the peer lacks
        if normalized:
            logits = logits.log_softmax(-1)
        mask = batch.get("decoder_attention_mask", batch["attention_mask"])
        torch.testing.assert_close(
            valid_logits(logits, mask), valid_logits(batch["logits"], mask), atol=1e-5, rtol=0, msg=name
        )
    assert batches
    check = check_conversion(model, converted.reference)
    assert check.passed and check.difference < 1e-5, check
