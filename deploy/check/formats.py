"""What a gate found, for people, for pages of a CI and for its machines."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET  # writes only; nothing is parsed

from deploy.check.rules import Checked, Finding

_WORDS = {"passed": "passed", "failed": "FAILED", "undecided": "cannot tell"}
_SIGNS = {"passed": "✅", "failed": "❌", "undecided": "❔"}
# XML 1.0 has no way to write these, not even escaped.
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_lines(checked: Checked) -> list[str]:
    """Return a line for each limit and one for all."""
    width = max(len(finding.rule) for finding in checked.findings)
    return [
        *(f"{_WORDS[f.outcome]:11}  {f.rule:{width}}  {f.sentence}" for f in checked.findings),
        _headline(checked),
    ]


def to_markdown(checked: Checked) -> str:
    """Return a section of Markdown: a headline, a table of limits, the machine."""
    rows = "\n".join(
        f"| {_SIGNS[f.outcome]} {_WORDS[f.outcome]} | `{f.rule}` | {_plain(f.sentence)} |"
        for f in checked.findings
    )
    here = checked.environment
    versions = ", ".join(f"{name} {version}" for name, version in sorted(here.versions.items()))
    machine = f"{here.cpu}, {here.cores} cores, {here.architecture}, {versions}, "
    machine += f"{checked.session.threads} thread" + "s" * (checked.session.threads != 1)
    return (
        f"### {_SIGNS[checked.outcome]} {_plain(_headline(checked))}\n\n"
        f"| | limit | seen |\n|---|---|---|\n{rows}\n\n"
        f"{_plain(machine)}; model `{checked.sha256[:12]}`; {checked.checked_at}. In brackets: "
        "intervals that miss the truth 5 times in 100 at most.\n"
    )


def to_junit(checked: Checked) -> bytes:
    """Return JUnit XML: a case for each limit; what cannot be told is an error, not a failure."""
    counts = {
        "tests": str(len(checked.findings)),
        "failures": str(_count(checked, "failed")),
        "errors": str(_count(checked, "undecided")),
        "skipped": "0",
        "time": f"{checked.elapsed_s:.3f}",
    }
    suites = ET.Element("testsuites", {"name": "lightship check", **counts})
    suite = ET.SubElement(
        suites,
        "testsuite",
        {"name": _xml(checked.path), "timestamp": checked.checked_at, **counts},
    )
    for finding in checked.findings:
        _add_case(suite, checked.path, finding)
    ET.indent(suites)
    return bytes(ET.tostring(suites, encoding="utf-8", xml_declaration=True)) + b"\n"


def _add_case(suite: ET.Element, path: str, finding: Finding) -> None:
    names = {"classname": _xml(f"lightship.check.{path}"), "name": finding.rule, "time": "0"}
    case = ET.SubElement(suite, "testcase", names)
    sentence = _xml(finding.sentence)
    if finding.outcome == "passed":
        ET.SubElement(case, "system-out").text = sentence
    elif finding.outcome == "failed":
        ET.SubElement(case, "failure", {"message": sentence, "type": "limit"}).text = sentence
    else:
        ET.SubElement(case, "error", {"message": sentence, "type": "noise"}).text = sentence


def _count(checked: Checked, outcome: str) -> int:
    return sum(finding.outcome == outcome for finding in checked.findings)


def _headline(checked: Checked) -> str:
    kept = f"{_count(checked, 'passed')} of {len(checked.findings)} limits kept"
    unsure = _count(checked, "undecided")
    doubt = f", {unsure} cannot be told" if unsure else ""
    return f"{checked.path}: {kept}{doubt}, in {checked.elapsed_s:.1f} s"


def _xml(text: str) -> str:
    return _NOT_XML.sub("�", text)


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is, on one line, also inside a table."""
    return re.sub(r"([\\`*_\[\]<>|#&$~])", r"\\\1", " ".join(text.split()))
