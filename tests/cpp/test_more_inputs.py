"""Bundles with a mask, vectors and any number of tokens in C++: the reader, both loaders, and what is built on them."""

import pytest
from support.consumer import built, built_without_libtorch, run

pytestmark = pytest.mark.compiler


@pytest.fixture(scope="module", params=["libtorch", "runtime"])
def programs(request):
    """The C++ programs, over libtorch and without it."""
    return built() if request.param == "libtorch" else built_without_libtorch()


def test_the_unit_tests_of_the_reader_and_of_a_calls_checks_pass(programs, tmp_path):
    assert run(programs / "regplug_more_inputs", tmp_path) == (0, "")
