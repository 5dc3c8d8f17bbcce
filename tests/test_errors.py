"""What every error of the tree promises."""

import pickle

import pytest

from tensordb import errors

ALL = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_an_error_pickles_with_its_message_and_has_the_common_root(kind: type[Exception]) -> None:
    error = pickle.loads(pickle.dumps(kind("what happened, the value, the remedy")))
    assert type(error) is kind
    assert str(error) == "what happened, the value, the remedy"
    assert issubclass(kind, errors.TensorDBError)


def test_errors_can_be_caught_as_the_builtin_that_users_expect() -> None:
    for kind in (errors.DatasetNotFoundError, errors.TensorNotFoundError):
        assert issubclass(kind, KeyError)
        assert issubclass(kind, ValueError)
    assert issubclass(errors.SchemaValidationError, ValueError)
    assert issubclass(errors.UnknownPresetError, ValueError)
    assert issubclass(errors.MissingDependencyError, ImportError)
