"""The campaign in short, and that it would see what it looks for. `python -m tests.fuzz` is the long one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.fuzz import campaign as campaigns
from tests.fuzz.campaign import HARMS, campaign, read_report, report
from tests.fuzz.harms import HARMFUL
from tests.fuzz.kinds import KINDS
from tests.helpers.campaigns import LONG

EACH = 200 if LONG else 30
"""Mutants of each kind, the same ones on every machine."""

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc"),
    pytest.mark.timeout(1500 if LONG else 300),
]


def test_mutants_do_no_harm() -> None:
    tallies = campaign(list(KINDS), EACH * len(KINDS), evenly=True)
    told = report(tallies, 0)
    assert told["harms"] == dict.fromkeys(HARMS, 0), [tally.findings for tally in tallies.values()]
    assert {kind: tally.tried for kind, tally in tallies.items()} == dict.fromkeys(KINDS, EACH)


def test_the_campaign_sees_each_harm() -> None:
    kinds = [kind for kind, (harm, _) in HARMFUL.items() if harm != "slow"]
    tallies = campaign(kinds, len(kinds))
    for kind in kinds:
        assert tallies[kind].harms[HARMFUL[kind][0]] == 1, (kind, tallies[kind])


def test_the_campaign_sees_who_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for half a second here; only this harm, for a busy machine needs longer for the others."""
    monkeypatch.setattr(campaigns, "SECONDS", 0.5)
    assert campaign(["harm-slow"], 1)["harm-slow"].harms["slow"] == 1


def test_the_campaign_sees_a_check_that_is_missing() -> None:
    tally = campaign(["manifest"], 60, without=["recycle_onnx.bundle:check_manifest"])["manifest"]
    assert tally.harms["foreign"] > 0


def test_a_campaign_goes_on_from_its_report(tmp_path: Path) -> None:
    path = tmp_path / "fuzz.json"
    path.write_text(json.dumps(report(campaign(["template"], 5), 0)))
    went_on = campaign(["template"], 12, known=read_report(path, 0))
    straight = campaign(["template"], 12)
    assert went_on["template"].tried == 12
    assert (went_on["template"].accepted, went_on["template"].refused) == (
        straight["template"].accepted,
        straight["template"].refused,
    )
    assert read_report(path, 1) == {}
