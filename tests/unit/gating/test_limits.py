"""Which limits hold for a cell."""

import pytest
from budgets import budget_schema, default_budget

from quantharm.gating.limits import KINDS, Limit, has_limits, limits_of

CATEGORIES = ["Translation", "Code Generation"]


def budget(**keys):
    return default_budget() | keys


def bounds(limits) -> dict:
    return {(limit.key, limit.subject): limit.bound for limit in limits}


def test_without_a_limit_there_is_nothing_to_judge():
    assert not has_limits(budget())
    assert not has_limits(budget(kl_nats=None, checks=False))
    assert has_limits(budget(kl_nats=0.1))
    assert has_limits(budget(checks=True))
    assert has_limits(budget(methods={"nf4": {"flips": 0.1}}))
    assert has_limits(budget(against="last"))


def test_a_method_stands_before_a_model_and_a_model_before_all():
    given = budget(
        kl_nats=0.1,
        compression=2,
        models={"m": {"kl_nats": 0.2, "compression": 3}},
        methods={"nf4": {"kl_nats": 0.3}, "int8": {"compression": None}},
    )

    def limits(model, method):
        return bounds(limits_of(given, model, method, CATEGORIES, False))

    assert limits("other", "awq") == {("kl_nats", None): 0.1, ("compression", None): 2.0}
    assert limits("m", "awq") == {("kl_nats", None): 0.2, ("compression", None): 3.0}
    assert limits("m", "nf4") == {("kl_nats", None): 0.3, ("compression", None): 3.0}
    assert limits("m", "int8") == {("kl_nats", None): 0.2}


def test_a_limit_on_categories_is_on_each_or_on_those_that_are_named():
    each = limits_of(budget(category_kl_nats=0.1), "m", "nf4", CATEGORIES, False)
    assert bounds(each) == {("category_kl_nats", c): 0.1 for c in CATEGORIES}
    named = limits_of(budget(category_kl_nats={"Translation": 0.2, "Other": 0.3}), "m", "nf4", CATEGORIES, False)
    assert bounds(named) == {("category_kl_nats", "Translation"): 0.2, ("category_kl_nats", "Other"): 0.3}


def test_the_baseline_has_no_limit_but_on_its_checks_and_its_integrity():
    everything = budget(**{key: True if key in ("checks", "integrity") else 1.0 for key in KINDS})
    limits = limits_of(everything, "m", "baseline", CATEGORIES, True)
    assert limits == [Limit("checks", None, 0.0), Limit("integrity", None, 0.0)]


@pytest.mark.parametrize("key", KINDS)
def test_every_limit_of_the_schema_is_one_that_is_judged(key):
    properties = budget_schema()["properties"]
    assert key in properties
    assert key in properties["methods"]["additionalProperties"]["properties"]
    assert key in properties["models"]["additionalProperties"]["properties"]
