"""Statistics over two processes with a half each are those of one process with the whole."""

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from guerdon.core.batch import Advantages, End, Labelled, TrajectoryBatch
from guerdon.core.returns import standardise
from guerdon.critics.value import ValueCritic
from guerdon.policies.advantages.reward_to_go import RewardToGo
from guerdon.policies.measures import batch_metrics, explained_variance, require_finite_advantages
from guerdon.policies.objectives import WeightedImitation
from guerdon.policies.ranks import joined_ranks, over_ranks, standardise_over_ranks
from guerdon.policies.weights import Exponential, RewardAligned, TopShare
from guerdon.rewards.recorded import RecordedReward

WEIGHTINGS = {"exponential": Exponential, "top": TopShare, "aligned": RewardAligned}


def whole(rows=7, steps=4):
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(rows, steps, dtype=torch.bool)
    mask[2, 1:] = False
    reward = torch.randn(rows, steps, generator=generator) * torch.arange(1.0, rows + 1)[:, None]
    return TrajectoryBatch(
        state=torch.randn(rows, steps + 1, 2, generator=generator),
        actions=torch.zeros(rows, steps, 2),
        mask=mask,
        end=torch.full((rows,), int(End.TIME_LIMIT)),
        task=torch.arange(rows) % 2,
        recorded={"reward": Labelled(values=reward, valid=mask)},
    )


def computed(batch):
    """Everything that depends on the decisions of all ranks."""
    torch.manual_seed(0)
    source = RewardToGo(RecordedReward(), ValueCritic(2, hidden=(4,)))
    told = source(batch, source.estimate(batch))
    found = {"advantages": told.advantages, "explained": explained_variance(told)[None]}
    raw = Advantages(
        advantages=batch.recorded["reward"].values, returns=told.returns, valid=told.valid, values=told.values
    )
    for name, weighting in WEIGHTINGS.items():
        objective = WeightedImitation(weighting(), renormalise=True)
        found[name] = objective.weights(batch, raw)
        weighed: Any = objective.weighting
        found[f"{name} memory"] = weighed.memory.held().sort().values[None]
    found["renormalised"] = WeightedImitation(renormalise=True).weights(replace(batch, weight=2 * batch.weight), raw)
    return found


def refused(batch, broken):
    """Return how advantages and weights of a rank that are not finite are refused on all ranks."""
    advantage = torch.full((7, 4), torch.nan if broken else 1.0)
    raw = Advantages(advantages=advantage, returns=torch.ones(7, 4), valid=batch.mask)
    found = []
    for check in (require_finite_advantages, WeightedImitation(TopShare()).weights):
        try:
            check(batch, raw)
            found.append("")
        except ValueError as error:
            found.append(str(error))
        if dist.is_initialized():
            over_ranks(torch.zeros(1))  # nobody is left waiting
    return found


SPLITS = {"unequal": [slice(0, 2), slice(2, 7)], "one_empty": [slice(0, 7), slice(0, 0)]}


def work(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    batch = whole()
    found = {}
    for name, split in SPLITS.items():
        own = batch[split[rank]]
        if not len(own):  # a rank whose decisions are all context
            own = replace(batch[:1], weight=torch.zeros(1, 4))
        with joined_ranks(True):
            found[name] = computed(own)
        found[f"{name} alone"] = computed(own) if name == "unequal" else {}
    with joined_ranks(True):
        parts = [{"kl": torch.tensor(float(rank)), "ratio_error": torch.tensor(3.0 + rank)}]
        found["metrics"] = batch_metrics([*parts, {"ratio_error": torch.tensor(9.0 - rank)}])
        found["refused"] = refused(batch, broken=rank == 1)
        found["order"] = over_ranks(torch.arange(rank, rank + 2 + rank))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(work, (port, str(folder)), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
class TestTwoRanks:
    @pytest.mark.parametrize("split", SPLITS)
    def test_halves_give_what_the_whole_gives(self, ranks, split):
        expected = computed(whole())
        for name, value in expected.items():
            if name.endswith(("explained", "memory")):
                for rank in ranks:
                    assert torch.allclose(rank[split][name], value, atol=1e-6), name
            else:
                own = [rank[split][name] for rank in ranks][: 1 if split == "one_empty" else 2]
                assert torch.allclose(torch.cat(own), value, atol=1e-5), name

    def test_each_half_alone_gives_something_else(self, ranks):
        expected = computed(whole())
        for name in ("advantages", "exponential", "aligned", "renormalised"):
            alone = torch.cat([rank["unequal alone"][name] for rank in ranks])
            same = torch.allclose(alone, expected[name], atol=1e-3)
            assert same == (name == "renormalised"), f"{name}: the test shows nothing"

    def test_metrics_are_those_of_both(self, ranks):
        for rank in ranks:
            found = {name: float(value) for name, value in rank["metrics"].items()}
            assert found == {"kl": 0.5, "ratio_error": 3.5, "ratio_error_max": 9.0}

    def test_what_one_rank_cannot_use_is_refused_on_both(self, ranks):
        healthy, broken = (rank["refused"] for rank in ranks)
        assert all("of rank 1 is not finite" in text for text in healthy)
        assert all("the advantage of decision 0 of episode" in text and "is nan" in text for text in broken)

    def test_values_come_in_the_order_of_the_ranks(self, ranks):
        for rank, own in zip(ranks, (slice(0, 2), slice(2, 5)), strict=True):
            assert rank["order"][0].tolist() == [0, 1, 1, 2, 3] and rank["order"][1] == own


def test_one_process_is_all_there_is():
    values = torch.tensor([3.0, 1.0])
    with joined_ranks(True):
        assert over_ranks(values)[0] is values
    x, mask = torch.randn(3, 4), torch.rand(3, 4) > 0.4
    assert torch.equal(standardise_over_ranks(x, mask), standardise(x, mask))


def test_what_no_rank_can_use_is_refused():
    with pytest.raises(ValueError, match="a real entry is NaN or infinite"):
        standardise_over_ranks(torch.tensor([1.0, torch.nan]), torch.ones(2, dtype=torch.bool))
