"""What is predicted from: the guest's dirty rate as measured before it moves; and runs of several modes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from bench_runs import PLAIN_LINKS

from bench.series import read_series

pytestmark = pytest.mark.root

MIB = 1 << 20
BENCH = [sys.executable, "-c", "from bench.cli import main; main()"]


def bench(project, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*BENCH, *arguments], cwd=project, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.alone
@pytest.mark.parametrize(("pattern", "rate_mib"), [("hotset", 4), ("sequential", 2), ("idle", 0)])
def test_the_measured_rate_is_the_workloads(project, pattern, rate_mib):
    settings = [f"guest.workload.pattern={pattern}", f"guest.workload.rate={rate_mib}MiB/s" if rate_mib else ""]
    arguments = [word for setting in settings if setting for word in ("--set", setting)]
    done = bench(project, "dirty-rate", "smallest", "--json", "--sample", "1s", *arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pages"] == 16 * MIB // 4096
    assert sum(found["histogram"]) == found["pages"]
    if not rate_mib:
        assert found["dirty_bytes_per_s"] < 0.1 * MIB
        return
    assert found["dirty_bytes_per_s"] == pytest.approx(rate_mib * MIB, rel=0.25)
    distinct = [span["pages"] for span in found["spans"] if span["pages"] is not None]
    assert distinct == sorted(distinct)
    for span in found["spans"]:
        if span["pages"] is not None:
            assert span["model_pages"] == pytest.approx(span["pages"], rel=0.15)


def test_a_list_of_modes_runs_one_after_the_other(project, tmp_path):
    output = tmp_path / "runs"
    settings = ['migration.mode=["precopy", "precopy"]', *PLAIN_LINKS, "run.settle=200ms"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    done = bench(project, "run", "smallest", *arguments, "-o", str(output))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "Side by side" in done.stdout
    runs = read_series(output)
    assert [label for label, _ in runs] == ["1-precopy", "2-precopy"]
    for _label, result in runs:
        assert result is not None
        prediction = result.prediction
        assert prediction is not None
        assert prediction.predicted is not None
        assert prediction.bound is not None
        assert 0 < prediction.bound.bytes <= result.bytes_sent
        assert 0 < prediction.efficiency.bytes <= 1
        assert prediction.bound.bytes == pytest.approx(prediction.predicted.bytes, rel=0.5)
    shown = bench(project, "show", str(output))
    assert (shown.returncode, "2-precopy" in shown.stdout) == (0, True)


def test_a_run_can_do_without_a_prediction(project, tmp_path):
    settings = ["run.predict=false", "calibration.enabled=false", "run.settle=0ms", "clients=[]"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    done = bench(project, "run", "smallest", *arguments, "-o", str(tmp_path / "run"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["prediction"] is None
