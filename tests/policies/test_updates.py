"""Steps without the trainer's wrappers: the same numbers and the same count of steps as with them."""

from typing import Any

import lightning
import pytest
import torch

from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.updates import steps_plainly

from .test_optimizer import fit, made, rollout

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


class Listening(lightning.Callback):
    """Looks at every gradient, for which the trainer's own path is needed."""

    def __init__(self):
        self.backward = self.before_step = 0

    def on_after_backward(self, trainer, pl_module):
        self.backward += 1

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.before_step += 1


class Asked(lightning.Callback):
    """Keeps whether steps are plain."""

    plain = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.plain = steps_plainly(pl_module)


def run(*callbacks, **options):
    torch.manual_seed(0)
    module = made(passes=3, minibatch_size=10, learning_rate=1e-2)
    batches = [rollout(GaussianPolicy(2, 2, hidden=(8,)), seed=i) for i in range(2)]
    asked = Asked()
    trainer = fit(module, batches, callbacks=[asked, *callbacks], **options)
    return module, trainer, asked.plain


def test_plain_steps_are_those_of_the_trainer():
    listening = Listening()
    plain, plain_trainer, was_plain = run()
    wrapped, wrapped_trainer, was_wrapped = run(listening)
    assert (was_plain, was_wrapped) == (True, False)
    updates = 2 * 3 * 5  # 42 decisions in 5 minibatches
    assert plain_trainer.global_step == wrapped_trainer.global_step == updates
    assert listening.backward == listening.before_step == updates, "a callback misses gradients"
    for (name, one), two in zip(plain.state_dict().items(), wrapped.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_other_precision_takes_the_path_of_the_trainer():
    assert run(precision="bf16-mixed")[2] is False


class OwnBackward(lightning.LightningModule):
    def backward(self, loss: Any, *args: Any, **kwargs: Any) -> None:
        loss.backward()


def test_a_hook_of_the_module_takes_the_path_of_the_trainer():
    trainer = run()[1]
    module = OwnBackward()
    module.trainer = trainer
    assert not steps_plainly(module)
    other = lightning.LightningModule()
    other.trainer = trainer
    assert steps_plainly(other)


def test_a_step_limit_of_the_trainer_counts_plain_steps():
    module, trainer, _ = run(max_steps=10)
    # steps are counted within a batch, and the trainer looks after it: 15 of the first batch, none of the second
    assert trainer.global_step == 15 and int(module.batches_seen) == 1
