"""Records against their types. Those that stages write are checked where tests run stages (stage_chain, end_to_end)."""

import pytest
from record_types import faults

from quantharm.common.records import parts
from quantharm.common.records.checks import CheckRecord
from quantharm.common.records.perplexity import PerplexityRecord

TIMING = {"start_seconds": 1.0, "other_seconds": 0.1, "total_seconds": 2}
CHECK = {"name": "finite", "status": "pass", "value": 0, "limit": 0, "explanation": "all logits are finite"}


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (TIMING, parts.TimingRecord, []),
        ({"other_seconds": 0.1}, parts.TimingRecord, ["t.total_seconds is missing, which TimingRecord has"]),
        (TIMING | {"new_seconds": 1.0}, parts.TimingRecord, ["t.new_seconds has no type in TimingRecord"]),
        (TIMING | {"load_seconds": "1"}, parts.TimingRecord, ["t.load_seconds is '1', not <class 'float'>"]),
        (CHECK, CheckRecord, []),
        (CHECK | {"value": "nan"}, CheckRecord, []),
        (CHECK | {"status": "passed"}, CheckRecord, ["t.status is 'passed', none of ('pass', 'fail', 'skipped')"]),
        (CHECK | {"value": [1]}, CheckRecord, ["t.value is [1], not <class 'float'>"]),
        ([CHECK, {}], list[CheckRecord], 5),
        ({"a": None, "b": 1.5}, dict[str, float | None], []),
        ({"a": "x"}, dict[str, float | None], 1),
    ],
)
def test_each_fault_is_seen(value, kind, words):
    seen = faults(value, kind, "t")
    assert (len(seen) if isinstance(words, int) else seen) == words


def test_inherited_keys_count():
    missing = {fault.split()[0] for fault in faults({}, PerplexityRecord)}
    assert {".model", ".perplexity", ".provenance"} <= missing
    assert ".record_sha256" not in missing
