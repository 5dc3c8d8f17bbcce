"""Rules of a config: which tensors are encoded in another way than the rest, by their names and specs alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, cast

import torch

from tensordb.errors import InvalidInputError
from tensordb.model import TensorSpec
from tensordb.tensors import dtype_from_name, dtype_name, nbytes_of

if TYPE_CHECKING:
    from tensordb.encoding.presets import CompressionConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What tensors that meet every condition given are encoded with; at least one is needed.

    Attributes:
        use: Name of a preset, or a config without rules. In a config it is always the config: what the preset is when
            the config is made.
        name: Shell-style pattern of the tensor's name, which is its record id: ``"*.bias"``, ``"layer.[0-3].*"``; upper
            and lower case differ. Or several, of which one must match. A tensor whose id is generated has no name, and
            no pattern matches it.
        dtype: A dtype or its name, or several: ``torch.float32``, ``("float16", "bfloat16")``.
        ndim: Number of dimensions, or the least and the most: ``1``, ``(2, 4)``.
        min_nbytes: Least raw bytes of the tensor.
        max_nbytes: Most raw bytes.

    Raises:
        InvalidInputError: There is no condition, or one that no tensor could meet.

    >>> Rule(name="*.bias", use="lossless").matches("layer.0.bias", TensorSpec("float32", (64,)))
    True
    """

    use: str | CompressionConfig
    name: str | Sequence[str] | None = None
    dtype: str | torch.dtype | Sequence[str | torch.dtype] | None = None
    ndim: int | tuple[int, int] | None = None
    min_nbytes: int | None = None
    max_nbytes: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", _options("name", self.name, _pattern))
        object.__setattr__(self, "dtype", _options("dtype", self.dtype, lambda each: dtype_name(dtype_from_name(each))))
        object.__setattr__(self, "ndim", _range(self.ndim))
        for field in ("min_nbytes", "max_nbytes"):
            if getattr(self, field) is not None:
                _count(field, getattr(self, field))
        if self.min_nbytes is not None and self.max_nbytes is not None and self.min_nbytes > self.max_nbytes:
            raise InvalidInputError(f"no tensor has {self.min_nbytes} to {self.max_nbytes} bytes; exchange the two")
        if all(getattr(self, field) is None for field in _CONDITIONS):
            raise InvalidInputError(
                f"a rule needs a condition: {', '.join(_CONDITIONS)}; what no rule matches is encoded as the config "
                "itself says"
            )

    def matches(self, name: str | None, spec: TensorSpec) -> bool:
        """Tell whether a tensor meets every condition; `name` is None for one whose id will be generated."""
        dtypes = cast("tuple[str, ...] | None", self.dtype)
        ndims = cast("tuple[int, int] | None", self.ndim)
        return (
            (dtypes is None or spec.dtype in dtypes)
            and (ndims is None or ndims[0] <= len(spec.shape) <= ndims[1])
            and (self.min_nbytes is None or nbytes_of(spec) >= self.min_nbytes)
            and (self.max_nbytes is None or nbytes_of(spec) <= self.max_nbytes)
            and (self.name is None or (name is not None and any(fnmatchcase(name, each) for each in self.name)))
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the conditions given and what is used, as JSON values."""
        given = {field: getattr(self, field) for field in _CONDITIONS if getattr(self, field) is not None}
        plain = {field: list(value) if isinstance(value, tuple) else value for field, value in given.items()}
        return {**plain, "use": self.use if isinstance(self.use, str) else self.use.to_dict()}


_CONDITIONS = tuple(each.name for each in fields(Rule) if each.name != "use")


def settled(rules: Any, config_of: Callable[[Any], CompressionConfig]) -> tuple[Rule, ...]:
    """Return the rules of a config, each with the config that it uses; equal ones are one, so that pages are shared."""
    if not isinstance(rules, list | tuple):
        raise InvalidInputError(f"rules is a {type(rules).__name__}; give a list of Rule(…)")
    known: dict[CompressionConfig, CompressionConfig] = {}
    result = []
    for position, rule in enumerate(rules):
        if not isinstance(rule, Rule):
            raise InvalidInputError(f"rules[{position}] is a {type(rule).__name__}; give a Rule(…)")
        config = _naming(position, config_of, rule.use)
        result.append(replace(rule, use=known.setdefault(config, config)))
    return tuple(result)


def rules_from(values: Any, config_from: Callable[[Any], CompressionConfig]) -> list[Rule]:
    """Return the rules that a list of `Rule.to_dict` stands for; ``"use"`` may also be the name of a preset."""
    if not isinstance(values, list | tuple):
        raise InvalidInputError(f"rules is a {type(values).__name__}; give a list of mappings")
    return [_naming(position, _from_dict, each, config_from) for position, each in enumerate(values)]


def use_of_first(rules: Sequence[Rule], name: str | None, spec: TensorSpec) -> CompressionConfig | None:
    """Return what the first rule that matches uses, None when none does."""
    return cast("CompressionConfig | None", next((rule.use for rule in rules if rule.matches(name, spec)), None))


def check_flat(rules: Any) -> None:
    """Raise InvalidInputError for rules within what a rule uses."""
    if rules:
        raise InvalidInputError("what a rule uses has rules itself; put all of them into one list, in their order")


def _from_dict(values: Any, config_from: Callable[[Any], CompressionConfig]) -> Rule:
    known = (*_CONDITIONS, "use")
    if not isinstance(values, Mapping) or "use" not in values:
        raise InvalidInputError(f"{values!r} is no rule; give a mapping with 'use' and a condition")
    if unknown := [key for key in values if key not in known]:
        raise InvalidInputError(f"a rule has no {unknown[0]!r}; it has: {', '.join(known)}")
    use = values["use"]
    if isinstance(use, Mapping):
        check_flat(use.get("rules"))  # before it is looked into, however deep it goes
        use = config_from(use)
    return Rule(**{**values, "use": use})


def _naming(position: int, work: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return work(*arguments)
    except InvalidInputError as error:
        raise type(error)(f"rules[{position}]: {error}") from error


def _options(field: str, value: Any, check: Callable[[Any], str]) -> tuple[str, ...] | None:
    if value is None:
        return None
    several = value if isinstance(value, list | tuple) else [value]
    if not several:
        raise InvalidInputError(f"{field} is empty, which no tensor matches; give at least one, or leave it out")
    return tuple(map(check, several))


def _pattern(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidInputError(f"name has {value!r}; give patterns such as '*.bias'")
    return value


def _range(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    ends = value if isinstance(value, list | tuple) else (value, value)
    if len(ends) != 2:
        raise InvalidInputError(f"ndim is {value!r}; give a number, or the least and the most")
    least, most = (_count("ndim", each) for each in ends)
    if least > most:
        raise InvalidInputError(f"no tensor has {least} to {most} dimensions; exchange the two")
    return least, most


def _count(field: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidInputError(f"{field} has {value!r}; give an int from 0")
    return value
