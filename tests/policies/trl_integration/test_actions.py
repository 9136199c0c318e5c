"""Chunks of actions out of completions, and trajectories that begin at logged observations."""

import pickle

import pytest
import torch

from guerdon.backbones.decoder_language import LanguageDecoder
from guerdon.core.batch import Observation, Sampled, TrajectoryBatch
from guerdon.policies.action_bins import ActionBins
from guerdon.policies.tokens import TokenPolicy
from guerdon.policies.trl_integration.actions import ActionNumbers, ActionTokens, LoggedTurns
from guerdon.policies.trl_integration.completions import Completion


def tokens(*numbers: int) -> Completion:
    return Completion(text="", tokens=numbers)


def test_tokens_are_the_centres_of_their_bins_in_the_order_of_steps():
    read = ActionTokens([10, 20, 30], action_size=2, horizon=2, end=(7, 8))
    chunk = torch.tensor([[-1.0, 0.0], [1.0, -1.0]])
    for end in ((), (7,), (7, 8, 8)):
        found = read(tokens(10, 20, 30, 10, *end))
        assert found is not None and torch.equal(found, chunk)


@pytest.mark.parametrize(
    "wrong", [(), (10, 20, 30), (10, 20, 30, 7), (10, 20, 30, 11), (10, 20, 30, 10, 10), (7, 10, 20, 30, 10)]
)
def test_other_tokens_are_no_chunk(wrong):
    assert ActionTokens([10, 20, 30], action_size=2, horizon=2, end=(7, 8))(tokens(*wrong)) is None


def test_the_tokens_of_a_policy_give_the_chunks_it_chose(language_folder):
    policy = TokenPolicy(LanguageDecoder(language_folder), 3, 2, 2, 2, bins=ActionBins(8, -2.0, 3.0))
    observation = Observation(state=torch.randn(4, 3), instructions=("open it",) * 4)
    decision = policy.act(observation)
    read = pickle.loads(pickle.dumps(ActionTokens.of(policy, end=[0])))
    for row, bins in enumerate(decision.extras["tokens"].tolist()):
        found = read(tokens(*(policy.bin_tokens[place] for place in bins), 0))
        assert torch.equal(found, decision.chunk[row])


def test_wrong_bins_are_refused():
    for wrong in ([1, 1], [1, 2, 3]):
        with pytest.raises(ValueError, match="expected 2 numbers that differ"):
            ActionTokens(wrong, 1, bins=ActionBins(2))
    with pytest.raises(ValueError, match="none of those in end"):
        ActionTokens([1, 2], 1, end=[2])
    with pytest.raises(ValueError, match="horizon 0: expected positive"):
        ActionTokens([1, 2], 1, 0)


@pytest.mark.parametrize("text", ["0.5 -0.25 1 0", "[[0.5, -.25], [1.0, 0]]", " (0.5,-2.5e-1);(1,0.0) \n"])
def test_numbers_of_a_text_are_a_chunk(text):
    found = ActionNumbers(2, 2)(Completion(text=text))
    assert found is not None and torch.equal(found, torch.tensor([[0.5, -0.25], [1.0, 0.0]]))


@pytest.mark.parametrize(
    "text", ["", "0.5", "1 2 3 4", "0 0 0 0 0", "move 0 0 0 0", "0 0 0 nan", "0 0 0 1.5", "1-1 0 0 0", "0.1.2 0 0"]
)
def test_other_texts_are_no_chunk(text):
    assert ActionNumbers(2, 2)(Completion(text=text)) is None


def logged() -> TrajectoryBatch:
    """Two pieces of episodes 7 and 9, the second from its step 3 on, whose states and frames name their observation."""
    place = torch.arange(4.0)
    frames = Sampled(
        values=torch.arange(4, dtype=torch.uint8).view(2, 2, 1, 1, 1).expand(-1, -1, 3, 2, 2).clone(),
        step=torch.tensor([[0, 2], [0, 2]]),
    )
    return TrajectoryBatch(
        state=torch.stack([place, 100 + place])[..., None],
        actions=torch.zeros(2, 3, 2),
        mask=torch.ones(2, 3, dtype=torch.bool),
        frames={"wrist": frames},
        instructions=("open it", "close it"),
        episode=torch.tensor([7, 9]),
        offset=torch.tensor([0, 3]),
        length=torch.tensor([3, 6]),
    )


def at(episode: int, step: int, text: str = "0.5 -0.5") -> Completion:
    return Completion(text=text, columns={"episode": episode, "step": step})


def test_a_turn_begins_at_its_logged_observation():
    row = LoggedTurns(ActionNumbers(2), logged())(at(9, 5))
    assert row is not None and len(row) == 1
    assert row.state.flatten().tolist() == [102.0, 102.0] and row.instructions == ("close it",)
    assert row.actions.flatten().tolist() == [0.5, -0.5]
    assert row.observed.tolist() == [[True, False]]  # nothing is claimed about what follows
    assert not bool(row.success_known[0]) and int(row.episode[0]) == 9
    assert int(row.frames["wrist"].values.max()) == 3


def test_a_completion_that_is_no_chunk_gives_no_trajectory():
    assert LoggedTurns(ActionNumbers(2), logged())(at(7, 0, "left")) is None


def test_an_unknown_observation_is_an_error_whatever_the_completion_is():
    for episode, step in ((8, 0), (9, 2), (7, 4)):
        with pytest.raises(ValueError, match=f"episode {episode}, step {step}: no such observation among the 2 logged"):
            LoggedTurns(ActionNumbers(2), logged())(at(episode, step, "left"))
    with pytest.raises(ValueError, match="actions of width 3, expected 2 as logged"):
        LoggedTurns(ActionNumbers(3), logged())(at(7, 0, "0 0 0"))
