"""A hub, and the example receiver in front of one."""

import pytest

from support.example_receiver import Example
from support.hub_database import Hub


@pytest.fixture
def hub(db):
    return Hub(db)


@pytest.fixture
def new_example(db, tmp_path):
    examples = []

    def make(*options):
        examples.append(Example(db, tmp_path, *options))
        return examples[-1]
    yield make
    for example in examples:
        example.process.kill()
        example.process.wait()


@pytest.fixture
def example(new_example):
    return new_example()
