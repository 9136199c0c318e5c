"""Loggers of a configuration or of the command line write into the run directory; with the real command."""

from importlib.util import find_spec

import pytest
import yaml

from guerdon.cli import main

pytestmark = [pytest.mark.xdist_group("cli"), pytest.mark.slow]
LOGGERS = "lightning.pytorch.loggers"


def fit(here, tmp_path, logger, *more):
    config = yaml.safe_load((here / "tiny.yaml").read_text())
    if logger is not None:
        config["trainer"]["logger"] = logger
    config["trainer"]["log_every_n_steps"] = 1
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "own.yaml", "--out", "run", *more]) == 0
    return {path.name for path in (tmp_path / "run").iterdir()} - {"model", "config.yaml", "checkpoints", "tasks.json"}


@pytest.mark.parametrize(
    "logger",
    [
        f"{LOGGERS}.CSVLogger",
        {"class_path": f"{LOGGERS}.CSVLogger"},
        [{"class_path": f"{LOGGERS}.CSVLogger", "init_args": {"name": "lightning_logs"}}],
    ],
)
def test_a_logger_without_a_folder_gets_the_run_directory(here, tmp_path, logger):
    assert fit(here, tmp_path, logger) == {"lightning_logs"}
    assert (tmp_path / "run/lightning_logs/version_0/metrics.csv").is_file()
    assert {p.name for p in tmp_path.iterdir()} == {"run", "own.yaml"}


def test_a_folder_that_was_given_stays(here, tmp_path):
    logger = {"class_path": f"{LOGGERS}.CSVLogger", "init_args": {"save_dir": "mine"}}
    assert fit(here, tmp_path, logger) == set()
    assert (tmp_path / "mine/lightning_logs").is_dir()


def test_a_logger_of_the_command_line(here, tmp_path):
    assert fit(here, tmp_path, None, "--trainer.logger", f"{LOGGERS}.CSVLogger") == {"lightning_logs"}


def test_the_run_is_validated_with_its_own_configuration(here, tmp_path):
    fit(here, tmp_path, f"{LOGGERS}.CSVLogger")
    for config in ("run/config.yaml", "own.yaml"):
        assert main(["validate", "--config", config]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"run", "own.yaml"}


@pytest.mark.skipif(
    find_spec("tensorboard") is None and find_spec("tensorboardX") is None,
    reason="TensorBoard is not installed: it is no dependency of guerdon",
)
def test_tensorboard_writes_events_into_the_run(here, tmp_path):
    assert "lightning_logs" in fit(here, tmp_path, {"class_path": f"{LOGGERS}.TensorBoardLogger"})
    assert list((tmp_path / "run/lightning_logs").rglob("events.out.tfevents*"))


@pytest.mark.skipif(find_spec("wandb") is None, reason="W&B is not installed: it is no dependency of guerdon")
def test_wandb_writes_an_offline_run(here, tmp_path):
    logger = {"class_path": f"{LOGGERS}.WandbLogger", "init_args": {"offline": True, "project": "test"}}
    assert "wandb" in fit(here, tmp_path, logger)
