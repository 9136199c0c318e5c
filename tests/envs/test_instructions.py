"""Every simulated task has an instruction of its own."""

from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP

from guerdon.envs.experts import scripted_expert
from guerdon.envs.instructions import KITCHEN, METAWORLD
from guerdon.envs.vector import task_names


def test_every_metaworld_task_has_an_instruction_and_a_scripted_policy():
    assert set(METAWORLD) == set(ALL_V3_ENVIRONMENTS) == set(ENV_POLICY_MAP)
    assert len(METAWORLD) == 50
    for name in task_names():
        if name.startswith("metaworld/"):
            assert callable(scripted_expert(name))
    sentences = [*METAWORLD.values(), *KITCHEN.values()]
    assert len(set(sentences)) == len(sentences)
    assert all(len(sentence.split()) >= 3 for sentence in sentences)
