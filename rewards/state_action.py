"""Rewards of a state and an action: standardised inputs, and a Markovian reward by a perceptron."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..backbones.model_inputs import ModelInputs
from ..core.batch import RewardEstimates, TrajectoryBatch
from ..core.interfaces import RewardModel
from ..core.sizes import require_sizes
from .standardise import fit_moments

_CLIP = 10.0  # standard deviations; a policy that leaves the training data must not blow a reward up


class StateActionModel(RewardModel):
    """Base of reward models that read the state before each step and the action of the step; a subclass adds layers.

    A subclass builds what depends on the sizes only where ``width`` is known.

    Args:
        state_size: S, numbers per state, at least 0; None takes that of the training data.
        action_size: A, numbers per action, at least 0; None takes that of the training data.

    Raises:
        ValueError: If a size is negative, or both are 0.
    """

    state_mean: Tensor
    state_std: Tensor
    state_count: Tensor

    def __init__(self, state_size: int | None = None, action_size: int | None = None) -> None:
        super().__init__()
        if min(state_size or 0, action_size or 0) < 0 or (state_size == 0 and action_size == 0):
            raise ValueError(
                f"state_size {state_size}, action_size {action_size}: expected numbers of at least 0, not both 0; "
                "leave them out to take them from the data"
            )
        self.state_size, self.action_size = state_size, action_size
        self.width = None if state_size is None or action_size is None else state_size + action_size
        """S + A, None while a size is not known."""
        if self.width is not None:
            self.register_buffer("state_mean", torch.zeros(self.width))
            self.register_buffer("state_std", torch.ones(self.width))
            self.register_buffer("state_count", torch.zeros((), dtype=torch.float64))

    @property
    def inputs(self) -> ModelInputs:
        """Inputs that the model reads."""
        return ModelInputs(state_size=self.state_size or 0)

    @property
    def normalised(self) -> bool:
        """Whether mean and standard deviation of states and actions are known."""
        return self.width is not None and float(self.state_count) > 0

    @torch.no_grad()
    def fit_normaliser(self, batches: Iterable[TrajectoryBatch]) -> None:
        """Fit mean and standard deviation of states and actions on the real steps of a data set.

        Raises:
            ValueError: If the batches hold no step, a width is another, or a size is not known yet.
        """
        require_sizes(self)
        assert self.width is not None
        count, mean, std = fit_moments((self._vectors(batch)[batch.mask] for batch in batches), self.width)
        if not count:
            raise ValueError("cannot normalise: the training data hold no step")
        self.state_mean.copy_(mean)
        self.state_std.copy_(std)
        self.state_count.fill_(count)

    def _vectors(self, batch: TrajectoryBatch) -> Float[Tensor, "B T W"]:
        got = (batch.state.shape[2], batch.actions.shape[2])
        if got != (self.state_size, self.action_size):
            raise ValueError(
                f"the model reads states of {self.state_size} and actions of {self.action_size} numbers, these "
                f"trajectories have {got[0]} and {got[1]}: train a model for this robot, or pass the trajectories the "
                "model was made for"
            )
        return torch.cat([batch.state[:, :-1], batch.actions], 2)

    def read(self, batch: TrajectoryBatch) -> tuple[Float[Tensor, "B T W"], TrajectoryBatch]:
        """Standardise the state and action of every step, clipped to ten standard deviations; padding is 0.

        Args:
            batch: Trajectories.

        Returns:
            The inputs, and the batch, both on the device of the model.

        Raises:
            ValueError: If a width is another, a size is not known yet, or a real number is NaN or infinite.
        """
        require_sizes(self)
        if batch.mask.device != self.state_mean.device:
            batch = batch.to(self.state_mean.device)
        vectors = torch.where(batch.mask[..., None], self._vectors(batch), 0.0)
        if not bool(vectors.isfinite().all()):
            raise ValueError("a state or an action of a real step is NaN or infinite: leave that row out")
        standard = ((vectors - self.state_mean) / self.state_std).clamp(-_CLIP, _CLIP)
        return torch.where(batch.mask[..., None], standard, 0.0), batch


class StateActionReward(StateActionModel):
    """Markovian reward r(s_t, a_t) of a perceptron with tanh between its layers, to be trained from preferences.

    It is the reward model of Christiano et al. (2017, arXiv 1706.03741) and of most later work on states. Trained with
    `PreferenceTraining`, its sum over a segment is the segment's score.

    Args:
        state_size: S, numbers per state, at least 0; None takes that of the training data.
        action_size: A, numbers per action, at least 0; None takes that of the training data.
        hidden: Widths of the hidden layers; none makes the reward linear.

    Raises:
        ValueError: If a size is out of its range.
    """

    causal = True

    def __init__(
        self,
        state_size: int | None = None,
        action_size: int | None = None,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(state_size=state_size, action_size=action_size)
        if any(width < 1 for width in hidden):
            raise ValueError(f"hidden is {list(hidden)}: expected positive widths")
        if self.width is not None:
            layers: list[nn.Module] = []
            width = self.width
            for size in hidden:
                layers += [nn.Linear(width, size), nn.Tanh()]
                width = size
            self.network = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Compute the reward of every real step."""
        read, batch = self.read(batch)
        rewards = self.network(read)[..., 0].float()
        return RewardEstimates(rewards=torch.where(batch.mask, rewards, 0.0), valid=batch.mask)


__all__ = ["StateActionModel", "StateActionReward"]
