"""Our losses against those of TRL's trainers, on the log-probabilities of the same sequences."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

import datasets
from guerdon.core.losses import kto, trajectory_preference
from guerdon.testing.language_checkpoints import tiny_language

pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")

ANSWERS = (
    ("open the drawer", "reach, pull", "push it to the left"),
    ("close the door", "reach the handle, push", "pull"),
    ("lift the blue cube", "grasp, lift it", "push the red block, then wait"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(tiny_language(tmp_path_factory.mktemp("losses") / "tiny"))


def settings(kind: Any, folder: Any, **more: Any) -> Any:
    short: dict[str, Any] = {"output_dir": str(folder), "report_to": "none", "use_cpu": True, "bf16": False}
    short |= {"per_device_train_batch_size": 8, "dataloader_pin_memory": False, "disable_dropout": True}
    return kind(**(short | more))


def moved(trainer: Any, size: float) -> None:
    """Move the policy away from the reference, as training does."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def log_probs(model: Any, tokens: Tensor, attention: Tensor) -> Tensor:
    """Log-probability of every token behind the first, by a plain pass over all logits."""
    logits = model(input_ids=tokens, attention_mask=attention).logits[:, :-1].double()
    return logits.log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]


def gradients(trainer: Any, loss: Tensor) -> list[Tensor]:
    return [g.double() for g in torch.autograd.grad(loss, list(trainer.model.parameters()))]


@pytest.mark.parametrize("beta", [0.1, 1.7])
def test_trajectory_preference_is_the_dpo_of_trl_on_summed_log_probabilities(folder, tmp_path, beta):
    rows = [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in ANSWERS]
    found = settings(DPOConfig, tmp_path, beta=beta)
    trainer = DPOTrainer(folder, args=found, train_dataset=datasets.Dataset.from_list(rows))
    moved(trainer, 0.05)
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(cast(Any, trainer.model), dict(batch))

    tokens, attention, mask = batch["input_ids"], batch["attention_mask"], batch["completion_mask"].bool()[:, 1:]
    policy = log_probs(trainer.model, tokens, attention)
    with torch.no_grad():
        reference = log_probs(trainer.ref_model, tokens, attention)
    (better, worse), (better_ref, worse_ref), (won, lost) = (part.chunk(2) for part in (policy, reference, mask))
    assert won.sum(1).tolist() != lost.sum(1).tolist()  # sums over different numbers of steps
    ours = trajectory_preference(better, better_ref, worse, worse_ref, won, lost, beta, "sum")
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-5)
    assert abs(float(ours.detach()) - 0.6931) > 0.01  # the policy is not the reference
    for mine, other in zip(gradients(trainer, ours), gradients(trainer, theirs), strict=True):
        assert torch.allclose(mine, other, atol=1e-5, rtol=1e-4)


def test_the_mean_is_the_length_normalised_loss_of_trl(folder, tmp_path):
    rows = [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in ANSWERS]
    found = settings(DPOConfig, tmp_path, beta=1.7, loss_type=["sigmoid_norm"])
    trainer = DPOTrainer(folder, args=found, train_dataset=datasets.Dataset.from_list(rows))
    moved(trainer, 0.05)
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(cast(Any, trainer.model), dict(batch)).detach()
    tokens, attention, mask = batch["input_ids"], batch["attention_mask"], batch["completion_mask"].bool()[:, 1:]
    with torch.no_grad():
        policy, reference = (log_probs(model, tokens, attention) for model in (trainer.model, trainer.ref_model))
    (better, worse), (better_ref, worse_ref), (won, lost) = (part.chunk(2) for part in (policy, reference, mask))
    sides = (better, better_ref, worse, worse_ref, won, lost, 1.7)
    assert float(trajectory_preference(*sides, "mean")) == pytest.approx(float(theirs), abs=1e-5)
    assert abs(float(trajectory_preference(*sides, "sum")) - float(theirs)) > 1e-3


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 2.0)])
def test_kto_is_that_of_trl_with_its_reference_point(folder, tmp_path, weights):
    rows = [
        {"prompt": prompt, "completion": text, "label": label}
        for prompt, chosen, rejected in ANSWERS
        for text, label in ((chosen, True), (rejected, False))
    ]
    more = {"beta": 0.3, "desirable_weight": weights[0], "undesirable_weight": weights[1]}
    found = settings(KTOConfig, tmp_path, **more)
    trainer = KTOTrainer(folder, args=found, train_dataset=datasets.Dataset.from_list(rows))
    moved(trainer, 0.05)
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(cast(Any, trainer.model), dict(batch))

    def ratio(prefix: str) -> Tensor:
        tokens, attention = batch[f"{prefix}input_ids"], batch[f"{prefix}attention_mask"]
        mask = batch[f"{prefix}completion_mask"].bool()[:, 1:]
        policy = log_probs(trainer.model, tokens, attention)
        with torch.no_grad():
            reference = log_probs(trainer.ref_model, tokens, attention)
        return torch.where(mask, policy - reference, 0.0).sum(1)

    point = ratio("KL_").mean().clamp(min=0)
    desirable = torch.as_tensor(batch["label"], dtype=torch.bool)
    ours = kto(ratio(""), desirable, point, 0.3, *weights)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-5)
    for mine, other in zip(gradients(trainer, ours), gradients(trainer, theirs), strict=True):
        assert torch.allclose(mine, other, atol=1e-5, rtol=1e-4)
