"""The doctor on the providers that are asked for: each half is examined where it was put, and agrees with the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from recycle_onnx.doctor import DoctorReport, assignment, examine
from recycle_onnx.doctor.bundle import BundleReport
from recycle_onnx.runtime.ort.providers import known

Place = tuple[str, str]
HALVES = ("full", "recycler")


@pytest.fixture(scope="module")
def report(here: Place, small_bundle: Path) -> DoctorReport:
    return examine(small_bundle, provider=here[0], recycler_provider=here[1], threads=1)


@pytest.fixture(scope="module")
def found(report: DoctorReport) -> BundleReport:
    assert report.bundle is not None
    return report.bundle


def test_each_half_is_examined_where_it_runs(here: Place, report: DoctorReport, found: BundleReport) -> None:
    assert not report.broken, report.findings
    assert (found.provider, found.recycler_provider) == here
    for half, name in zip(HALVES, here, strict=True):
        if assignment.IS_TOLD:
            assert known(name).ort_name in found.assignments[half].nodes
    assert found.self_test is not None
    assert max(found.self_test.differences.values()) < found.self_test.tolerance


@pytest.mark.skipif(not assignment.IS_TOLD, reason="this ONNX Runtime is too old to tell")
def test_attention_on_another_provider_is_told_of_the_half_that_leaves_it(
    here: Place, report: DoctorReport, found: BundleReport
) -> None:
    for half, name in zip(HALVES, here, strict=True):
        others = found.assignments[half].elsewhere(known(name).ort_name)
        attention = sum(count for operator, count in others.items() if "Attention" in operator)
        told = [finding.what for finding in report.findings if finding.what.endswith(f"of {half} to another one")]
        assert len(told) == (1 if attention else 0)
        if attention:
            assert told[0].startswith(f"provider {name} leaves {attention} ")
