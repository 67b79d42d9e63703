"""The contestants of performance.py under pytest-benchmark: its tables, files and comparisons.

    pip install -c constraints.txt ".[benchmarks]"
    python -m pytest tests/benchmarks/timed.py --benchmark-min-rounds=20

It times one contestant after the other. Ratios of one round are on performance.py's page.
"""

from importlib.util import find_spec

import pytest

from benchmarks.performance import GROUPS


def pytest_generate_tests(metafunc):
    """Refuse to run without the package, in one line; a mere search for doctests needs nothing."""
    if find_spec("pytest_benchmark") is None:
        raise pytest.UsageError(
            'needs pytest-benchmark: pip install -c constraints.txt ".[benchmarks]"'
        )


@pytest.mark.parametrize(
    ("group", "name"),
    [
        pytest.param(group, name, id=f"{group.library} {group.weight} {name}")
        for group in GROUPS
        for name in group.names
    ],
)
def test_time(benchmark, group, name):
    benchmark.group = f"{group.library} {group.weight}"
    run = group.start()[name]
    run()  # compiles, remembers a plan, touches memory
    benchmark(run)
