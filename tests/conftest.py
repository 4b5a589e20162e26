"""What holds for every test: fake devices, the two tiers, and the law on skipped tests."""

import os

# Before jax is imported anywhere; a value from outside wins.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

# Where the TPU's compiler is installed: no TPU's address is asked of the network, and tests may stand side by side.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import importlib.util

import hypothesis
import pytest

IN_CI = os.environ.get("CI", "").lower() in ("1", "true")
# What continuous integration cannot be expected to have; any other reason to skip is a fault of its set-up.
ALLOWED_SKIPS = ("needs an accelerator",)

# Apache Beam lives in an environment of its own, where these are the tests that are run (tests/run.sh --curate).
collect_ignore = [] if importlib.util.find_spec("apache_beam") else ["test_curate_beam.py"]

# No deadline: the machine may be shared. In CI the same examples every time, so that a change decides, not luck.
hypothesis.settings.register_profile("swerl_jax", deadline=None, derandomize=IN_CI)
hypothesis.settings.load_profile("swerl_jax")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the slow tier too (as SLOW=1 does)")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow") or os.environ.get("SLOW", "0") not in ("", "0"):
        return
    config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("slow")])
    items[:] = [item for item in items if not item.get_closest_marker("slow")]


def _fail_unless_allowed(report):
    """Turns a skip into a failure where CI could have run the test."""
    if not (IN_CI and report.skipped) or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not reason.startswith(ALLOWED_SKIPS):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, which could have run it: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    _fail_unless_allowed(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    _fail_unless_allowed(report)
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    """A run in which every test was skipped has shown nothing: not a success."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")  # None in a worker process
    if reporter is None or session.config.option.collectonly:
        return
    if exitstatus == pytest.ExitCode.OK and not reporter.stats.get("passed"):
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
