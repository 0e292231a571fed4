"""Search spaces in Hydra's syntax: `optim.lr=tag(log,interval(1e-4,1e-1))`, `model.width=16,32,64`."""

from collections.abc import Iterable, Mapping
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from cifarbn.cli.resolvers import spelled
from cifarbn.errors import UserError


class SearchSpace:
    """The overrides of a search: those with one value, and those with several to choose from.

    Attributes:
        fixed: overrides that all trials share.
        distributions: key, with a `+` where the user wrote one -> the distribution of its values.

    Args:
        overrides: in Hydra's syntax. Of two with the same key, the last one counts.
        config_loader: of Hydra, which finds the options of `model=glob(vgg*)`.

    Raises:
        UserError: if no override has several values, or one has none.
    """

    def __init__(self, overrides: Iterable[str], config_loader: ConfigLoader | None = None) -> None:
        parsed = OverridesParser.create(config_loader).parse_overrides(list(overrides))
        self.overrides = [_written_out(override) for override in parsed]
        last = {override.get_key_element(): override for override in parsed}
        self.fixed = [spelled(override) for override in last.values() if not override.is_sweep_override()]
        self.distributions = {
            key: _distribution(override) for key, override in last.items() if override.is_sweep_override()
        }
        if not self.distributions:
            raise UserError(
                "a search needs at least one key with several values, such as "
                "'optim.lr=tag(log,interval(1e-4,1e-1))' or model.width=16,32"
            )

    def chosen(self, values: Mapping[str, Any]) -> list[str]:
        """Return the overrides of chosen values, in the order of the search space."""
        return [f"{key}={values[key]}" for key in self.distributions]


def _written_out(override: Override) -> str:
    """Return the override, with the options that a glob matches in place of the glob."""
    if isinstance(override.value(), Glob):
        return f"{override.get_key_element()}={','.join(override.sweep_string_iterator())}"
    return str(override.input_line)


def _distribution(override: Override) -> BaseDistribution:
    sweep: Any = override.value()
    tags = set() if isinstance(sweep, Glob) else sweep.tags
    if unknown := tags - ({"log"} if isinstance(sweep, IntervalSweep) else set()):
        raise UserError(f"{override.input_line}: the tag {min(unknown)} has no meaning here; only intervals can be log")
    try:
        if isinstance(sweep, IntervalSweep):
            return _numeric(sweep.start, sweep.end, log="log" in sweep.tags)
        if isinstance(sweep, RangeSweep) and (values := sorted(sweep.range())):
            return _numeric(values[0], values[-1], step=abs(sweep.step))
    except ValueError as error:
        raise UserError(f"{override.input_line}: {error}") from error
    if not (choices := list(override.sweep_string_iterator())):
        raise UserError(f"{override.input_line} has no values; write for example model.width=16,32")
    return CategoricalDistribution(choices)


def _numeric(low: Any, high: Any, **options: Any) -> BaseDistribution:
    whole = isinstance(low, int) and isinstance(high, int)
    return IntDistribution(low, high, **options) if whole else FloatDistribution(low, high, **options)
