"""The example of an implicit graph network."""

import pytest

from tests.support.run_example import run_example


@pytest.mark.slow
def test_nodes_at_the_far_end_know_the_class(tmp_path):
    result = run_example("examples.implicit_graph_network", tmp_path)
    for length, (implicit, explicit) in result.items():
        # The means of the classes are 8^(1/2) standard deviations from the best border between
        # them, so the best possible classifier is right for 99.8 % of the chains.
        assert implicit > 0.95, length
        # Eight layers reach the first nine nodes; all others are guessed. Of 100 chains up to 60 have
        # the same class (two standard deviations).
        assert explicit <= (9 + 0.6 * (int(length) - 9)) / int(length), length
