"""Tasks of LIBERO, each built once: building one takes seconds."""

import pytest


@pytest.fixture(scope="session")
def libero():
    pytest.importorskip("libero", reason="LIBERO is not installed: pip install 'guerdon[libero]'")
    from guerdon.envs.libero_tasks.task import Libero

    built = {}

    def find(suite, number, **options):
        key = (suite, number, *sorted(options.items()))
        if key not in built:
            built[key] = Libero(suite, number, **options)
        return built[key]

    yield find
    for task in built.values():
        task.close()
