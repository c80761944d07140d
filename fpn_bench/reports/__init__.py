"""Reports: the evidence in a study's rows (`evidence`), what is said of it (`sections`, in `blocks`), and the forms it
takes: a page (`html`), Markdown, JSON and tables (`plain`), files (`write`), a live page (`dashboard`)."""

from fpn_bench.reports.comparison import ComparisonText, comparison_text
from fpn_bench.reports.evidence import Evidence, gather, merge_studies
from fpn_bench.reports.html import html_page
from fpn_bench.reports.plain import designs_table, json_document, markdown_page, numbers_table
from fpn_bench.reports.report import Report, report_info
from fpn_bench.reports.write import DEFAULT_FORMATS, FORMATS, write_report

__all__ = [
    "DEFAULT_FORMATS",
    "FORMATS",
    "ComparisonText",
    "Evidence",
    "Report",
    "comparison_text",
    "designs_table",
    "gather",
    "html_page",
    "json_document",
    "markdown_page",
    "merge_studies",
    "numbers_table",
    "report_info",
    "write_report",
]
