"""How a space is searched: what proposes, what may be spent, when training stops early. Part of a space file."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]


SamplerKind = Literal["known_cost", "tpe", "nsga2", "nsga3", "gp", "evolution", "random", "brute_force"]
SAMPLERS: tuple[str, ...] = get_args(SamplerKind)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SamplerConfig(_Strict):
    """What proposes candidates.

    Attributes:
        kind: ``"known_cost"`` (our own: models AP alone, knows the costs), multivariate ``"tpe"``, ``"nsga2"``,
            ``"nsga3"``, ``"gp"`` (Optuna's), ``"evolution"`` (on genomes), ``"random"`` or ``"brute_force"``.
        seed: of the proposals; the training has its own.
        startup_trials: random trials before a model takes over; None is the sampler's own rule.
        population: of NSGA-II, NSGA-III and evolution; None is a fifth of the budget, 4 to 50.
    """

    kind: SamplerKind = "known_cost"
    seed: int = 0
    startup_trials: PositiveInt | None = None
    population: Annotated[int, Field(ge=2)] | None = None


class Budget(_Strict):
    """When to stop, and what the money is for.

    Attributes:
        trials: candidates paid for, in units of a whole training: one that a rung stopped after a quarter of its
            epochs counts a quarter. Timed alone it counts as its first rung. Repeats, results of other studies,
            those rejected on params or MACs and those that cannot be built are free.
        hours: of wall time of one run; None is no bound.
        until: ``"hypervolume-plateau"`` also stops when the front has hardly grown over `patience` of the budget.
        patience: share of `trials` over which a plateau must last.
        confirm: share of what is spent that goes into further seeds of front members whose rank is not certain.
        seeds: most trainings of one candidate.
        retries: how often a candidate is tried again whose trial ended by no fault of its own.
        trial_minutes: a trial of which one step (its latency, its training to the next rung) takes longer is ended and
            failed; None is no bound.
    """

    trials: PositiveInt = 16
    hours: PositiveFloat | None = None
    until: Literal["hypervolume-plateau"] | None = None
    patience: Annotated[float, Field(gt=0, le=1)] = 0.25
    confirm: Annotated[float, Field(ge=0, lt=1)] = 0.0
    seeds: Annotated[int, Field(ge=1)] = 5
    retries: Annotated[int, Field(ge=0)] = 3
    trial_minutes: PositiveFloat | None = None


class Rungs(_Strict):
    """Training stops after so many epochs, and goes on where it is worth it.

    Attributes:
        epochs: ascending, each below the protocol's; none trains every candidate to the end.
        rule: which of the stopped ones go on, see `fpn_bench.search.rungs`.
        keep: share of a rung's candidates that go on.
    """

    epochs: tuple[PositiveInt, ...] = ()
    rule: Literal["reach", "nondominated"] = "reach"
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.5

    @field_validator("epochs")
    @classmethod
    def _ascending(cls, epochs: tuple[int, ...]) -> tuple[int, ...]:
        if list(epochs) != sorted(set(epochs)):
            raise ValueError(f"{list(epochs)} came; ascending epochs, each once, are wanted, e.g. [1, 2, 4]")
        return epochs
