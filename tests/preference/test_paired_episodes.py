"""Preference pairs of logged episodes, scored by a reward model, in a real fit."""

from dataclasses import replace

import lightning
import numpy as np
import pytest
import torch

from guerdon.core.batch import End, Observation
from guerdon.datasets.episodes import Episode
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.datasets.module import EpisodeData
from guerdon.policies.adam import PolicyAdam
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.preference_optimizer import PreferenceOptimizer
from guerdon.preference.paired_episodes import PairedEpisodes
from guerdon.preference.rules import PairRule
from guerdon.rewards.recorded import RecordedSuccess


def attempts(folder, groups=5, each=3, successes=(True, False, False), start_noise=0.0, known=True):
    """Several attempts from each of some initial states; a good one moves up, a bad one down."""
    draw = np.random.default_rng(0)
    with LeRobotWriter(folder, 10.0) as writer:
        for index in range(groups * each):
            group, good = index // each, successes[index % each]
            steps = 5 + index % 4
            state = draw.normal(size=(steps + 1, 2)).astype(np.float32)
            state[0] = group + start_noise * index
            writer.add(
                Episode(
                    index=index,
                    state=state,
                    actions=(draw.normal(size=(steps, 1)) + (1 if good else -1)).astype(np.float32),
                    instruction="lift",
                    fps=10.0,
                    end=End.CUT if not known else End.SUCCESS if good else End.FAILURE,
                    success=float(good) if known else None,
                    group=group,
                    context=f"start {group}",
                )
            )
    return str(folder)


def data(path, **more):
    return PairedEpisodes(EpisodeData(path, val_fraction=0.2), RecordedSuccess(), **more)


def test_pairs_are_of_one_initial_state_and_split_by_it(tmp_path, capsys):
    paired = data(attempts(tmp_path / "a"), rule=PairRule(top=2), pairs_per_batch=3)
    paired.setup("fit")
    assert {split: len(pairs) for split, pairs in paired.pairs.items()} == {"train": 4, "val": 1}
    for split in ("train", "val"):
        assert all(pair.chosen // 3 == pair.rejected // 3 and pair.chosen % 3 == 0 for pair in paired.pairs[split])
    held = {pair.chosen // 3 for pair in paired.pairs["val"]}
    assert not held & {pair.chosen // 3 for pair in paired.pairs["train"]}
    batches = list(paired.train_dataloader())
    assert [len(batch) for batch in batches] == [3, 1] == [len(batch) for batch in list(paired.train_dataloader())]
    for batch in batches:
        assert torch.equal(batch.batch.group[batch.chosen], batch.batch.group[batch.rejected])
        assert batch.batch.success[batch.chosen].tolist() == [1.0] * len(batch)
        assert batch.batch.success[batch.rejected].tolist() == [0.0] * len(batch)
    assert "4 train pairs of 4 groups" in capsys.readouterr().err


def test_a_policy_learns_the_chosen_direction(tmp_path):
    torch.manual_seed(0)
    policy = GaussianPolicy(state_size=2, action_size=1, hidden=(8,))
    module = PreferenceOptimizer(policy, passes=20, optimizer=PolicyAdam(1e-2))
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    before = mean_action(policy)
    trainer.fit(module, datamodule=data(attempts(tmp_path / "a", groups=8)))
    after = mean_action(policy)
    assert float(after) > float(before) + 0.1
    assert float(trainer.callback_metrics["val_preference_accuracy"]) > 0.5


def mean_action(policy):
    observation = Observation(state=torch.randn(64, 2, generator=torch.Generator().manual_seed(3)))
    with torch.no_grad():
        return policy.act(observation, deterministic=True).chunk.mean()


def test_no_pair_is_an_error_that_says_what_a_pair_needs(tmp_path):
    with pytest.raises(ValueError, match=r"of the 4 groups .* 4 groups without a pair; a pair needs"):
        data(attempts(tmp_path / "all", successes=(True, True, True))).setup("fit")
    with pytest.raises(ValueError, match=r"12 whole rows that could not be scored"):
        data(attempts(tmp_path / "unknown", known=False)).setup("fit")


class Sometimes(RecordedSuccess):
    """Success with a term that only some episodes have."""

    def forward(self, batch):
        found = super().forward(batch)
        return replace(found, terms={"even": found.rewards} if int(batch.episode[0]) % 2 == 0 else {})


def test_terms_may_differ_between_episodes(tmp_path):
    paired = PairedEpisodes(EpisodeData(attempts(tmp_path / "a"), val_fraction=0.0), Sometimes())
    paired.setup("fit")
    assert [pair.reason for pair in paired.pairs["train"]] == ["success > failure"] * 5


def test_initial_states_must_be_one_unless_told_otherwise(tmp_path):
    path = attempts(tmp_path / "a", start_noise=0.01)
    with pytest.raises(ValueError, match="begin in states that differ by"):
        data(path).setup("fit")
    data(path, start_tolerance=None).setup("fit")
    with pytest.raises(ValueError, match="pairs_per_batch 0"):
        data(path, pairs_per_batch=0)
