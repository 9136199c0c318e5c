"""Metrics of the watch in its file and in the logger."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning

from .json_lines import read_json_lines, write_json_lines

METRICS = "watch.jsonl"
"""Name of the file with the metrics, in the run directory."""


class WatchLog:
    """File with one line of metrics per evaluated rollout.

    Args:
        folder: Run directory.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / METRICS

    def open(self, rollouts: int) -> None:
        """Check that no other run is overwritten, and drop lines that a checkpoint does not know of.

        Args:
            rollouts: Number of rollouts before this part of the run; 0 for a new run.

        Raises:
            FileExistsError: If the file holds the metrics of an earlier run and this run is new.
        """
        if not self.file.is_file():
            return
        if not rollouts:
            raise FileExistsError(f"{self.file} holds the metrics of an earlier run: choose another folder, or resume")
        write_json_lines(self.file, [line for line in self._lines() if int(line["rollout"]) < rollouts])

    def append(self, number: int, metrics: Mapping[str, float], alarms: Sequence[str], retrained: bool) -> None:
        """Add a line: the metrics (NaN as null), the names of the undefined ones, the alarms, and what followed.

        Args:
            number: Number of the rollout, from 0.
            metrics: Metrics by name.
            alarms: Names of the alarms.
            retrained: Whether the reward model was retrained after this rollout.
        """
        defined = {name: None if math.isnan(value) else value for name, value in metrics.items()}
        undefined = [name for name, value in defined.items() if value is None]
        line = {"rollout": number, **defined, "undefined": undefined, "alarms": list(alarms), "retrained": retrained}
        write_json_lines(self.file, [*(self._lines() if self.file.is_file() else ()), line])

    def _lines(self) -> list[dict[str, Any]]:
        return list(read_json_lines(self.file).values())


def log_metrics(module: lightning.LightningModule, metrics: Mapping[str, float], alarms: Sequence[str]) -> None:
    """Log metrics as ``watch_<name>`` (those of probes under their own name), and how many are undefined.

    Args:
        module: Module in training.
        metrics: Metrics by name.
        alarms: Names of the alarms; ``watch_alarms`` is their number.
    """
    logged = {name if name.startswith("probe_") else f"watch_{name}": value for name, value in metrics.items()}
    logged["watch_undefined"] = float(sum(math.isnan(value) for value in metrics.values()))
    logged["watch_alarms"] = float(len(alarms))
    for name, value in logged.items():
        module.log(name, value, on_step=True, on_epoch=False, batch_size=1)
