"""Turns of token policies as preference pairs, and TRL's ``DPOTrainer`` with the policy's own log-probabilities."""

import copy
import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from trl import DPOConfig

from guerdon.backbones.decoder_language import LanguageDecoder
from guerdon.backbones.decoder_small import SmallDecoder
from guerdon.backbones.decoder_vlm import VLMDecoder
from guerdon.backbones.lora import LoRA
from guerdon.backbones.vlm import VLM
from guerdon.core.batch import Observation, PreferencePairs, Sampled, TrajectoryBatch
from guerdon.core.losses import trajectory_preference
from guerdon.policies.action_bins import ActionBins
from guerdon.policies.tokens import TokenPolicy
from guerdon.policies.trl_integration.turns import TurnModel, TurnPreferenceTrainer, turn_dataset
from guerdon.testing.vlm_checkpoints import tiny_vlm

SIDES = ("chosen", "rejected")
TEXTS = ("go up", "go up", "go on", "go on")


@pytest.fixture(scope="module")
def vlm_folder(tmp_path_factory) -> str:
    return str(tiny_vlm(tmp_path_factory.mktemp("turns") / "tiny", "smolvlm"))


def policy_on(decoder: Any, state: int = 3, **more: Any) -> TokenPolicy:
    chosen: dict[str, Any] = {"temperature": 0.7} | more
    policy = TokenPolicy(decoder, state, 2, 2, 2, bins=ActionBins(8), **chosen)
    with torch.no_grad():
        policy.bin_outputs.normal_(std=0.5)  # the even start would make all bins alike
    return policy


def small(**more: Any) -> TokenPolicy:
    return policy_on(SmallDecoder(width=16, heads=2, buckets=32), **more)


def played(policy: TokenPolicy, pictures: bool = False) -> TrajectoryBatch:
    """Four rollouts of two decisions, whose pairs begin at one observation each; one ends after its third step."""
    generator = torch.Generator().manual_seed(3)
    states = torch.randn(4, 5, policy.state_size or 0, generator=generator)
    states[1, 0], states[3, 0] = states[0, 0], states[2, 0]
    frames: dict[str, Sampled] = {}
    if pictures:
        values = torch.randint(0, 256, (2, 1, 3, 16, 16), dtype=torch.uint8, generator=generator)
        frames["wrist"] = Sampled(values=values.repeat_interleave(2, 0), step=torch.zeros(4, 1, dtype=torch.long))
    shown = {name: sampled.values[:, 0] for name, sampled in frames.items()}
    parts = [
        policy.act(Observation(state=states[:, step], frames=shown, instructions=TEXTS), generator=generator)
        for step in (0, 2)
    ]
    sample = torch.stack([part.chunk for part in parts], 1)
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[3, 3] = False
    log_probs = [part.log_prob for part in parts if part.log_prob is not None]
    behaviour = {"sample": sample, "tokens": torch.stack([part.extras["tokens"] for part in parts], 1)}
    return TrajectoryBatch(
        state=states,
        actions=sample.flatten(1, 2),
        mask=mask,
        frames=frames,
        instructions=TEXTS,
        group=torch.tensor([0, 0, 1, 1]),
        decision_step=torch.tensor([[0, 2]] * 4),
        behaviour=behaviour | {"log_prob": torch.stack(log_probs, 1)},
    )


def paired(batch: TrajectoryBatch, **more: Any) -> PreferencePairs:
    sides = {"chosen": torch.tensor([0, 2]), "rejected": torch.tensor([1, 3])}
    return PreferencePairs(batch=batch, **(sides | {"label": torch.ones(2), "weight": torch.ones(2)} | more))


def log_prob(policy: TokenPolicy, batch: TrajectoryBatch, rows: Any, steps: Any) -> Tensor:
    """Log-probability of turns as the policy evaluates them."""
    found = policy.evaluate(*batch.at(torch.as_tensor(rows), torch.as_tensor(steps), policy.horizon))
    return torch.where(found.unit_mask, found.log_prob, 0.0).sum(1)


def test_a_prompt_is_what_the_decoder_reads_and_a_completion_the_executed_tokens(language_folder):
    policy = policy_on(LanguageDecoder(language_folder))
    batch = played(policy)
    batch.behaviour["tokens"][:, 0] = torch.arange(16).view(4, 4) % 8  # all differ within pairs
    rows = turn_dataset(policy, paired(batch))
    assert rows["pair"][:] == [0, 1] and rows["chosen_step"][:] == [0, 0]  # later states of the pairs differ
    decoder: Any = policy.decoder
    text = decoder.tokeniser.decode(rows[0]["prompt_ids"])
    assert "What action should the robot take to go up?" in text and text.endswith("assistant\n")
    for row, side in ((0, "chosen"), (1, "rejected")):
        bins = batch.behaviour["tokens"][row, 0].tolist()
        assert rows[0][f"{side}_ids"] == [policy.bin_tokens[place] for place in bins]


def test_turns_go_on_while_both_rows_see_the_same():
    policy = small()
    batch = played(policy)
    batch.state[1:4:2] = batch.state[0:4:2]
    rows = turn_dataset(policy, paired(batch))
    assert list(zip(rows["pair"][:], rows["chosen_step"][:], strict=True)) == [(0, 0), (0, 2), (1, 0), (1, 2)]
    assert len(rows[3]["chosen_ids"]) == 4 and len(rows[3]["rejected_ids"]) == 2  # a chunk that was cut
    batch.state[1, 0] += 1  # after they went apart, two rows may meet again by chance: not the same history
    assert turn_dataset(policy, paired(batch))["pair"][:] == [1, 1]


def test_ties_and_equal_turns_are_left_out_and_labels_below_a_half_turn_a_pair_around():
    policy = small()
    batch = played(policy)
    assert turn_dataset(policy, paired(batch, label=torch.tensor([0.5, 1.0])))["pair"][:] == [1]
    assert turn_dataset(policy, paired(batch, weight=torch.tensor([0.0, 0.1])))["pair"][:] == [1]
    turned = turn_dataset(policy, paired(batch, label=torch.tensor([0.0, 1.0])))
    assert turned["chosen_row"][:] == [1, 2] and turned["rejected_row"][:] == [0, 3]
    batch.behaviour["tokens"][1] = batch.behaviour["tokens"][0]
    assert turn_dataset(policy, paired(batch))["pair"][:] == [1]


def test_pairs_without_a_shared_observation_are_refused():
    policy = small()
    batch = played(policy)
    with pytest.raises(ValueError, match="none of 2 pairs has a turn at an observation that both rows share"):
        turn_dataset(policy, paired(batch, rejected=torch.tensor([2, 1])))
    same = replace(batch, behaviour={**batch.behaviour, "tokens": torch.zeros_like(batch.behaviour["tokens"])})
    with pytest.raises(ValueError, match="the turns of every pair are equal"):
        turn_dataset(policy, paired(same))


def test_a_policy_whose_log_probabilities_trl_cannot_compute_is_refused(trl_settings):
    policy = small(top_k=2)
    with pytest.raises(ValueError, match=r"temperature 0\.7, top_k 2: TRL takes log-probabilities over all bins"):
        TurnPreferenceTrainer(policy, paired(played(policy)), trl_settings(DPOConfig))


@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("kind", ["small", "language", "pictures"])
def test_the_log_probabilities_of_trl_are_those_of_the_policy(kind, language_folder, vlm_folder, trl_settings):
    if kind == "pictures":
        policy = policy_on(VLMDecoder(VLM(vlm_folder), ["wrist"]), state=0)
    else:
        lora = LoRA(rank=2)
        policy = policy_on(LanguageDecoder(language_folder, lora=lora)) if kind == "language" else small()
    batch = played(policy, kind == "pictures")
    pairs = paired(batch)
    reference = copy.deepcopy(policy)
    trainer = TurnPreferenceTrainer(policy, pairs, trl_settings(DPOConfig, beta=0.3, per_device_train_batch_size=4))
    now = policy.state_dict()
    assert [name for name, value in reference.state_dict().items() if not torch.equal(value, now[name])] == []
    with torch.no_grad():  # away from the reference
        policy.bin_outputs.add_(0.1 * torch.randn_like(policy.bin_outputs))
    rows = turn_dataset(policy, pairs)
    found = [log_prob(policy, batch, rows[f"{side}_row"][:], rows[f"{side}_step"][:]) for side in SIDES]
    with torch.no_grad():
        start = [log_prob(reference, batch, rows[f"{side}_row"][:], rows[f"{side}_step"][:]) for side in SIDES]
    inputs = next(iter(trainer.get_train_dataloader()))
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    kept = {name: value for name, value in inputs.items() if name != "completion_mask"}
    theirs = trainer.model(**kept, labels=labels, fused_lm_head=True).log_probs.sum(1).chunk(2)
    turns = list(zip(rows["chosen_row"][:], rows["chosen_step"][:], strict=True))
    shuffled = zip(*(inputs[name].chunk(2)[0].tolist() for name in ("rows", "steps")), strict=True)
    order = [turns.index(turn) for turn in shuffled]
    for side, ours in zip(theirs, found, strict=True):
        assert torch.allclose(side, ours[order], atol=1e-4)
    columns = _columns(found[0], start[0], found[1], start[1])
    loss, model = cast(Any, trajectory_preference)(*columns, 0.3), cast(Any, trainer.model)
    assert float(trainer.compute_loss(model, inputs).detach()) == pytest.approx(float(loss.detach()), abs=1e-4)
    assert abs(float(loss.detach()) - math.log(2)) > 1e-3


def _columns(*sums: Tensor) -> tuple[Tensor, ...]:
    real = torch.ones(len(sums[0]), 1, dtype=torch.bool)
    return (*(one[:, None] for one in sums), real, real)


@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")
def test_the_trainer_trains_the_policy_in_place(trl_settings):
    policy = small()
    batch = played(policy)
    trainer = TurnPreferenceTrainer(policy, paired(batch), trl_settings(DPOConfig, max_steps=8, beta=0.5))
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert logs[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert logs[-1]["loss"] < 0.4 and logs[-1]["rewards/accuracies"] == 1.0
    first = [log_prob(policy, batch, rows, [0, 0]) for rows in ([0, 2], [1, 3])]
    start = [batch.behaviour["log_prob"][rows, 0].sum(1) for rows in ([0, 2], [1, 3])]
    assert bool((first[0] - start[0] > first[1] - start[1]).all())


def test_the_form_of_a_language_model_leaves_the_weights_alone_and_gives_the_logits_of_the_bins():
    policy = small()
    batch = played(policy)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    model = TurnModel(policy, batch)
    rows, steps = torch.tensor([0, 1]), torch.tensor([0, 2])
    bins = batch.behaviour["tokens"][rows, torch.tensor([0, 1])]
    logits = model(torch.cat([torch.zeros(2, 1, dtype=torch.long), bins], 1), rows, steps)[:, :-1]
    found = logits.log_softmax(-1).gather(2, bins[..., None])[..., 0].sum(1)
    assert torch.allclose(found, log_prob(policy, batch, rows, steps), atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())


def test_a_plain_language_model_differs_by_the_probability_of_all_bins_together(language_folder):
    """The exported tokens are right for the published model too, but its softmax is over the whole vocabulary."""
    decoder = LanguageDecoder(language_folder)
    policy = TokenPolicy(decoder, 0, 2, 2, 2, bins=ActionBins(8))  # its rows are the model's own at the start
    batch = played(policy)
    row = turn_dataset(policy, paired(batch))[0]
    tokens = torch.tensor([row["prompt_ids"] + row["chosen_ids"]])
    start = len(row["prompt_ids"]) - 1
    with torch.no_grad():
        plain = decoder.model(input_ids=tokens).logits[0, start:-1].log_softmax(-1)
        ours = policy.evaluate(*batch.at(torch.tensor([0]), torch.tensor([0]), 2)).log_prob[0]
    theirs = plain.gather(1, tokens[0, start + 1 :, None])[:, 0]
    together = plain[:, list(policy.bin_tokens)].logsumexp(1)
    assert bool((together < -1).all())
    assert torch.allclose(theirs, ours + together, atol=1e-4)
