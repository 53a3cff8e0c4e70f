"""Skips that fail a run in CI."""

import os

import pytest


class UnexpectedSkips:
    """A pytest plugin that fails a run in which tests are skipped for other reasons than those that are allowed.

    `HFSEQ_ALLOWED_SKIPS` has the beginnings of those reasons, with semicolons between them; where it is not set, any
    test may be skipped.
    """

    @classmethod
    def register(cls, config):
        """Makes it a plugin of the process that hears of all tests, which is none of xdist's workers."""
        allowed = os.environ.get("HFSEQ_ALLOWED_SKIPS")
        if allowed is not None and not hasattr(config, "workerinput"):
            config.pluginmanager.register(cls(allowed))

    def __init__(self, allowed):
        self.allowed = tuple(allowed.split(";"))
        self.found = {}

    def pytest_runtest_logreport(self, report):
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2].removeprefix("Skipped: ")
            if not reason.startswith(self.allowed):
                self.found[report.nodeid] = reason

    pytest_collectreport = pytest_runtest_logreport

    def pytest_sessionfinish(self, session):
        if self.found and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        for nodeid, reason in self.found.items():
            terminalreporter.write_line(f"UNEXPECTED SKIP {nodeid}: {reason}", red=True)
