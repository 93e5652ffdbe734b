"""The results as JUnit XML, which Jenkins, GitLab and others read.

pytest's own writer needs pytest's test reports, and pytest is no dependency; the standard library is enough.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from regplug.conformance.check import PASSED

if TYPE_CHECKING:
    from regplug.conformance.check import CheckResult

# characters that XML 1.0 cannot hold, not even escaped
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(results: Sequence[CheckResult]) -> bytes:
    """One test suite with a test case for each result; neither passed nor failed counts as skipped, with its detail."""
    failures = [result for result in results if not result.ok]
    skipped = [result for result in results if result.ok and result.verdict != PASSED]
    counts = {
        "name": "regplug.conformance",
        "tests": str(len(results)),
        "failures": str(len(failures)),
        "errors": "0",
        "skipped": str(len(skipped)),
        "time": f"{sum(result.seconds for result in results):.3f}",
    }
    suites = ElementTree.Element("testsuites", {**counts, "name": "regplug"})
    suite = ElementTree.SubElement(suites, "testsuite", counts)
    for result in results:
        where = {"name": result.check, "classname": result.readout, "time": f"{result.seconds:.3f}"}
        case = ElementTree.SubElement(suite, "testcase", where)
        if result.verdict == PASSED:
            continue
        text = FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", result.detail)
        if result.ok:
            ElementTree.SubElement(case, "skipped", {"message": f"{result.verdict}: {text}"})
        else:
            ElementTree.SubElement(case, "failure", {"type": result.verdict, "message": text}).text = text
    ElementTree.indent(suites)
    document: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return document + b"\n"
