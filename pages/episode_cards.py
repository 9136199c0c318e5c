"""What the report shows of single episodes: a film strip or states, and what the model estimates over time."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ..datasets.episodes import BadEpisodeError, Episode, EpisodeDataset, EpisodeSummary
from ..datasets.opening import open_dataset
from ..evaluation.series import largest_fall
from ..scoring.scores import ScoredEpisode
from .time_charts import CurveChart, StateChart, ValueChart, curve_chart, state_chart, value_chart

_FRAMES, _PICTURE = 8, 120  # pictures in a strip, and the shorter side of one in pixels


@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeCard:
    """One episode as the page shows it."""

    index: int
    instruction: str
    outcome: float | None
    """True success in [0, 1]; None where it is unknown."""
    remark: str
    """Why the episode is shown, such as the score it was ranked by."""
    curves: CurveChart
    pictures: Sequence[str] = ()
    """Film strip: JPEG files in base64, each from the middle of its share of the time axis."""
    states: StateChart | None = None
    """Shown where there is no film strip."""
    value: ValueChart | None = None
    """A critic's value; None for a reward model, and where no value is known."""
    note: str = ""
    """Why there are no pictures."""


class ScoredData:
    """The scored data set, or why it cannot be opened; the page is made in both cases.

    Args:
        folder: Folder of the data set, as the scores name it.
    """

    def __init__(self, folder: str) -> None:
        self.folder, self.problem = folder, ""
        self.dataset: EpisodeDataset | None = None
        self.summaries: dict[int, tuple[int, EpisodeSummary]] = {}
        try:
            dataset = open_dataset(folder)
            summaries = [dataset.summary(place) for place in range(len(dataset))]
        except (OSError, ValueError) as error:
            self.problem = f"the data cannot be opened any more: {error}"
            return
        self.dataset = dataset
        self.summaries = {s.index: (place, s) for place, s in enumerate(summaries)}

    def outcome(self, index: int) -> float | None:
        """Return the true success of an episode, in [0, 1]; None where it is unknown."""
        return self.summaries[index][1].success if index in self.summaries else None

    def instruction(self, index: int) -> str:
        """Return the instruction of an episode; empty where it is unknown."""
        return self.summaries[index][1].instruction if index in self.summaries else ""

    def read(self, index: int) -> tuple[Episode | None, str]:
        """Read an episode; where that fails, return None and the reason."""
        if self.dataset is None or index not in self.summaries:
            return None, self.problem or "the data set no longer holds this episode"
        try:
            return self.dataset[self.summaries[index][0]], ""
        except BadEpisodeError as error:
            return None, f"{error.status}: {error.reason}"


def episode_cards(
    episodes: Sequence[ScoredEpisode],
    data: ScoredData,
    ranking: tuple[str, Mapping[int, float]],
    limits: tuple[float, float] | None,
) -> list[EpisodeCard]:
    """Make the cards of some episodes.

    Args:
        episodes: Episodes to show.
        data: Data set that they are from.
        ranking: Name of the score that episodes are ranked by, and its value by number of the episode.
        limits: Smallest and largest value of a critic; None for a reward model.
    """
    name, rank = ranking
    return [_card(scored, data, f"{name} {rank[scored.index]:.2f}", limits) for scored in episodes]


def _card(scored: ScoredEpisode, data: ScoredData, remark: str, limits: tuple[float, float] | None) -> EpisodeCard:
    episode, note = data.read(scored.index)
    pictures: list[str] = []
    states: StateChart | None = None
    if episode is not None and episode.frames:
        try:
            pictures = _strip(episode)
        except BadEpisodeError as error:
            note = f"{error.status}: {error.reason}"
    elif episode is not None and episode.state.size:
        states = state_chart(scored.seconds, _states(episode, scored))
    outcome = data.outcome(scored.index)
    value: ValueChart | None = None
    if limits is not None:
        fall = largest_fall(scored.value) if outcome is not None and outcome < 1 else None
        value = value_chart(scored.seconds, scored.value, limits, fall)
    spread = f", mean standard deviation {np.nanmean(scored.std):.2f}" if not np.isnan(scored.std).all() else ""
    return EpisodeCard(
        index=scored.index,
        instruction=data.instruction(scored.index),
        outcome=outcome,
        remark=f"{remark}{spread}",
        curves=curve_chart(scored.seconds, scored.progress, scored.success, scored.std),
        pictures=pictures,
        states=states,
        value=value,
        note=note,
    )


def _strip(episode: Episode) -> list[str]:
    """Encode eight pictures of the first camera, each from the middle of its eighth of the episode."""
    source = next(iter(episode.frames.values()))
    wanted = (np.arange(_FRAMES) + 0.5) / _FRAMES * episode.steps
    places = np.clip(np.searchsorted(source.step, wanted, side="right") - 1, 0, None)
    return [_jpeg(frame) for frame in source.read(places, _PICTURE)]


def _jpeg(frame: UInt8[np.ndarray, "C H W"]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0))).save(buffer, "JPEG", quality=82)
    return base64.b64encode(buffer.getvalue()).decode()


def _states(episode: Episode, scored: ScoredEpisode) -> Float[np.ndarray, "F S"]:
    """Select the state at the scored frames."""
    count = len(scored.seconds)
    if count <= len(episode.state):
        return episode.state[:count]
    return episode.state[np.linspace(0, len(episode.state) - 1, count).round().astype(int)]
