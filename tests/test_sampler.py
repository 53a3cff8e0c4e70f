import datasets
import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import BatchRebalanceSampler

from hfseq.data.token_budget import TokenBudgetBatchSampler, row_lengths
from hfseq.errors import InputError

LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=300)


def epoch_of(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


@settings(max_examples=150, deadline=None)
@given(lengths=LENGTHS, room=st.integers(0, 400), ranks=st.integers(1, 5), seed=st.integers(0, 9))
def test_rows_budget_and_count(lengths, room, ranks, seed):
    budget = max(*lengths, 1) + room
    try:
        samplers = [
            TokenBudgetBatchSampler(lengths, budget, num_replicas=ranks, rank=rank, seed=seed) for rank in range(ranks)
        ]
    except InputError as error:
        # Only where so few rows make so many batches that one more could not be cut off.
        whole = TokenBudgetBatchSampler(lengths, budget, seed=seed)
        assert len(whole) + -len(whole) % ranks > len(lengths)
        assert f"--max_tokens {budget}" in str(error) and "\n" not in str(error)
        return
    counts = {len(sampler) for sampler in samplers}
    assert len(counts) == 1
    for epoch in range(3):
        shares = [epoch_of(sampler, epoch) for sampler in samplers]
        assert {len(share) for share in shares} == counts
        batches = [batch for share in shares for batch in share]
        assert all(batches)
        assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
        assert max(len(batch) * max(lengths[row] for row in batch) for batch in batches) <= budget


def test_epochs_differ_and_repeat():
    lengths = np.random.default_rng(0).integers(3, 40, 2000)
    sampler = TokenBudgetBatchSampler(lengths, 300)
    first, second = epoch_of(sampler, 0), epoch_of(sampler, 1)
    assert first == epoch_of(sampler, 0)
    # Not the order of the batches alone: what is in them.
    assert {frozenset(batch) for batch in first}.isdisjoint({frozenset(batch) for batch in second})


def test_little_padding_and_full_batches():
    lengths = np.clip(np.random.default_rng(0).lognormal(2.8, 0.35, 20_000), 3, 120).astype(int)
    sampler = TokenBudgetBatchSampler(lengths, 2500, num_replicas=2)
    padded = sum(len(batch) * lengths[batch].max() for batch in sampler)
    assert lengths.sum() / padded > 0.95
    assert padded / (2500 * len(sampler)) > 0.95


def test_ranks_of_a_step_have_about_the_same_to_do():
    lengths = np.random.default_rng(0).integers(3, 100, 5000)
    sampler = TokenBudgetBatchSampler(lengths, 1000, num_replicas=2)
    longest = np.array([lengths[batch].max() for batch in sampler]).reshape(-1, 2)
    assert np.abs(np.diff(longest)).max() <= 10


@pytest.mark.parametrize(
    ("lengths", "budget", "ranks", "says"),
    [
        ([3, 9, 5], 8, 1, "--max_tokens 8 is too small: row 1 of the training set has 9 tokens"),
        ([], 8, 1, "the training set is empty"),
        ([4, 4, 4], 4, 2, "cannot be shared evenly by 2 processes"),
    ],
)
def test_refusals(lengths, budget, ranks, says):
    with pytest.raises(InputError, match=says):
        TokenBudgetBatchSampler(lengths, budget, num_replicas=ranks)


@pytest.mark.parametrize("even_batches", [True, False])
def test_accelerate_deals_every_batch_once(even_batches):
    lengths = np.random.default_rng(1).integers(1, 30, 100).tolist()
    seen, counts = [], set()
    for rank in range(3):
        sampler = TokenBudgetBatchSampler(lengths, 90, num_replicas=3)
        loader = prepare_data_loader(
            DataLoader(range(100), batch_sampler=sampler, collate_fn=torch.tensor),
            num_processes=3,
            process_index=rank,
            even_batches=even_batches,
        )
        loader.set_epoch(4)
        batches = [batch.tolist() for batch in loader]
        counts.add(len(batches))
        assert len(batches) == len(loader)
        assert batches == epoch_of(sampler, 4)[rank::3]
        # A resumed epoch: the epoch is set first, then batches are skipped.
        loader.set_epoch(4)
        assert [batch.tolist() for batch in skip_first_batches(loader, 2)] == batches[2:]
        seen += [row for batch in batches for row in batch]
    assert len(counts) == 1
    assert sorted(seen) == list(range(100))


def test_split_batches_is_refused_by_accelerate():
    loader = DataLoader(range(9), batch_sampler=TokenBudgetBatchSampler([1] * 9, 4, num_replicas=2))
    with pytest.raises(ValueError, match="split_batches"):
        prepare_data_loader(loader, num_processes=2, process_index=0, split_batches=True)


def test_the_trainer_passes_it_on_as_a_batch_sampler(tmp_path):
    """The private contract that the base class is for: fails when transformers no longer goes by the class."""
    lengths = np.random.default_rng(1).integers(1, 30, 100).tolist()
    sampler = TokenBudgetBatchSampler(lengths, 90, num_replicas=3, rank=1)

    class BudgetTrainer(Trainer):
        def _get_train_sampler(self, train_dataset=None):
            return sampler

    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], remove_unused_columns=False)
    trainer = BudgetTrainer(torch.nn.Linear(1, 1), arguments, torch.tensor, train_dataset=range(100))
    loader = trainer.get_train_dataloader()
    loader.set_epoch(2)
    assert [batch.tolist() for batch in loader] == epoch_of(sampler, 2)
    assert isinstance(sampler, BatchRebalanceSampler)


def test_row_lengths_is_the_longer_side():
    rows = [{"input_ids": [1] * source, "labels": [1] * target} for source, target in ((3, 5), (7, 2), (0, 1))]
    dataset = datasets.Dataset.from_list(rows)
    assert row_lengths(rows).tolist() == [5, 7, 1]
    assert row_lengths(dataset).tolist() == [5, 7, 1]
    assert row_lengths(dataset.select([2, 0])).tolist() == [1, 5]
    assert row_lengths(dataset.with_format("torch")).tolist() == [5, 7, 1]
    assert row_lengths(dataset.remove_columns("labels")).tolist() == [3, 7, 0]
    with pytest.raises(InputError, match="text"):
        row_lengths(datasets.Dataset.from_dict({"text": ["a"]}))
