"""The ``labels`` command: training samples as training draws them, as a picture to check."""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console
from rich.table import Table

from ..core.batch import TrajectoryBatch
from ..datasets.label_sheet import describe, draw_sheet
from ..datasets.labels import KINDS
from ..datasets.module import EpisodeData
from ..datasets.opening import open_dataset
from .old_configs import readable_configs, renewed_arguments
from .run_directory import tidy

_THUMBNAIL = 96
"""Shorter side of the frames in the picture, in pixels."""


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Draw samples, count the kinds and how much of each target is known, and write the picture.

    Args:
        options: ``data`` (folder of a data set, to be drawn from with the default labels) or ``config`` (YAML file
            whose ``data`` section says how to draw); ``show`` (number of samples), ``seed`` (of the samples, or None
            for that of the section) and ``out`` (PNG to write).
        rest: Overrides of the section, such as ``--data.init_args.path DIR``.

    Raises:
        ValueError: If neither or both of data and config are given, or something in them makes no sense.
        FileNotFoundError: If the folder of the picture is not there.
    """
    if (options.data is None) == (options.config is None):
        raise ValueError("expected one of them: --data DIR, or --config FILE.yaml with a data section")
    if not options.out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {options.out.parent} to write {options.out.name} into")
    if options.config is None:
        module = _of_folder(options.data, options.seed)
    else:
        module = _of_config(options.config, rest, options.seed)
    module.setup("fit")
    samples = [sample for sample, _ in zip(_rows(module), range(options.show), strict=False)]
    draw_sheet(samples, options.out)
    _print(samples)
    print(options.out)
    return 0


def _of_folder(data: Path, seed: int | None) -> EpisodeData:
    cameras = open_dataset(str(data)).cameras
    return EpisodeData(
        str(data), cameras=cameras[:1], frame_size=_THUMBNAIL if cameras else None, seed=0 if seed is None else seed
    )


def _of_config(config: str, rest: Sequence[str], seed: int | None) -> EpisodeData:
    """Make the data module of a configuration; it reads frames even where training reads cached features."""
    with readable_configs([config]) as paths:
        section = cast(dict[str, Any], yaml.safe_load(paths[0].read_text()) or {}).get("data")
    if section is None:
        raise ValueError(f"{config} has no data section: expected a configuration of `guerdon fit`")
    parser = ArgumentParser(exit_on_error=False, prog="guerdon labels")
    parser.add_subclass_arguments(EpisodeData, "data", required=True)
    try:
        parsed = cast(Any, parser.parse_args(renewed_arguments(rest), namespace=parser.parse_object({"data": section})))
        arguments = parsed.data.init_args
        arguments.encoder, arguments.cache = None, None
        arguments.frame_size = (arguments.frame_size or _THUMBNAIL) if arguments.cameras else None
        if seed is not None:
            arguments.seed = seed
        return cast(EpisodeData, cast(Any, parser.instantiate_classes(parsed)).data)
    except (ArgumentError, ValueError) as error:
        raise ValueError(tidy(str(error))) from error


def _rows(module: EpisodeData) -> Iterator[TrajectoryBatch]:
    """Yield training samples one by one, epoch after epoch."""
    loader = module.train_dataloader()
    epoch = 0
    while True:
        cast(Any, loader.sampler).set_epoch(epoch)
        for batch in loader:
            yield from (batch[row] for row in range(len(batch)))
        epoch += 1


def _print(samples: Sequence[TrajectoryBatch]) -> None:
    kinds = Counter(describe(sample) for sample in samples)
    table = Table("kind", "samples", "progress known", "success known", "ends at progress")
    for kind in (k for k in KINDS if kinds[k]):
        chosen = [s for s in samples if describe(s) == kind]
        known = [_known(chosen, name) for name in ("progress", "success")]
        ends = [float(s.labels["progress"].values[0, int(s.observed[0].sum()) - 1]) for s in chosen if _ends_known(s)]
        mean = f"{sum(ends) / len(ends):.2f}" if ends else "unknown"
        table.add_row(kind, str(kinds[kind]), *known, mean)
    Console().print(table)


def _known(samples: Sequence[TrajectoryBatch], name: str) -> str:
    made = sum(int(s.observed.sum()) for s in samples)
    return f"{sum(int(s.labels[name].valid.sum()) for s in samples) / max(made, 1):.0%}"


def _ends_known(sample: TrajectoryBatch) -> bool:
    return bool(sample.labels["progress"].valid[0, int(sample.observed[0].sum()) - 1])
