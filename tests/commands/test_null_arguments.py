"""``null`` on the command line, as jsonargparse reads it and as it reaches a run's configuration."""

import pytest
import yaml

from guerdon.cli import main
from guerdon.commands.null_arguments import pass_nulls

OPTIMIZER = "--model.init_args.optimizer.init_args"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--model.init_args.target_kl", "null"], ["--model.init_args.target_kl", "null"]),
        (["--trainer.max_time", "null"], ["--trainer.max_time", "null"]),
        (["--model.a", "null", "--x", "1"], ["--model.a", "null", "--x", "1"]),
        (["--model.a.b=null"], ["--model.init_args", '{"a": {"init_args": {"b": null}}}']),
        (["--model.a.init_args.b", "null"], ["--model.init_args", '{"a": {"init_args": {"b": null}}}']),
        (
            ["--model.init_args.a.init_args.b.init_args.c", "null"],
            ["--model.init_args", '{"a": {"init_args": {"b": {"init_args": {"c": null}}}}}'],
        ),
        (["--model.a.plain.k", "null"], ["--model.init_args", '{"a": {"init_args": {"plain": {"k": null}}}}']),
        (["--model.several.b", "null"], ["--model.several.b", "null"]),
        (
            ["--trainer.callbacks.init_args.limits.init_args.rate", "null"],
            ["--trainer.callbacks.init_args", '{"limits": {"init_args": {"rate": null}}}'],
        ),
        (["--data.a.b", "nullable", "null"], ["--data.a.b", "nullable", "null"]),
    ],
)
def test_a_null_inside_an_object_becomes_a_mapping(given, meant, tmp_path):
    config = tmp_path / "c.yaml"
    holds = {"a": {"class_path": "A", "init_args": {"plain": {"k": 1}}}, "several": [{"class_path": "B"}]}
    config.write_text(yaml.safe_dump({"model": {"class_path": "M", "init_args": holds}}))
    assert pass_nulls(given, [config]) == meant


def test_null_reaches_the_object_and_later_arguments_count(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def optimizer(*arguments):
        assert main(["fit", "--config", "ppo_learned_reward", *arguments, "--print_config"]) == 0
        read = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
        return read["optimizer"]["init_args"], read

    made, read = optimizer(f"{OPTIMIZER}.critic_learning_rate", "null", "--model.init_args.target_kl", "null")
    given = {"learning_rate": 6e-4, "critic_learning_rate": None, "max_grad_norm": 0.5}
    assert made == given | {"part_learning_rates": None, "frozen_parts": []}
    assert read["target_kl"] is None and read["passes"] == 10
    made, _ = optimizer(f"{OPTIMIZER}.critic_learning_rate", "null", f"{OPTIMIZER}.critic_learning_rate", "0.5")
    assert made["critic_learning_rate"] == 0.5
    made, _ = optimizer(f"{OPTIMIZER}.critic_learning_rate", "0.5", f"{OPTIMIZER}.critic_learning_rate=null")
    assert made["critic_learning_rate"] is None
