"""Reports: reads rows, computes first (`info`), draws second (`figures`), writes one page (`page`)."""

from fpn_bench.reports.figures import front_figure, hypervolume_figure
from fpn_bench.reports.info import FrontInfo, HypervolumeInfo, ReportInfo, front_info, report_info
from fpn_bench.reports.page import FORMATS, html_page, markdown_page, write_report

__all__ = [
    "FORMATS",
    "FrontInfo",
    "HypervolumeInfo",
    "ReportInfo",
    "front_figure",
    "front_info",
    "html_page",
    "hypervolume_figure",
    "markdown_page",
    "report_info",
    "write_report",
]
