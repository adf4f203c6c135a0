"""Evidence of two models into verdicts, and a report that a person can read."""

from deploykit.report.settings import ReportSettings
from deploykit.report.write import Report, report

__all__ = ["Report", "ReportSettings", "report"]
