"""What was measured, as people read it: a Markdown table, a plot, and what it was measured on."""

from __future__ import annotations

import os
import platform
from html import escape
from importlib.metadata import PackageNotFoundError, version
from math import ceil, floor, log10
from pathlib import Path

from benchmarks.racing import Bench, Ratio, Row, Times, ratio

PACKAGES = [
    "checkpoint-map", "msgspec", "wrapt", "tqdm", "joblib", "diskcache", "cachier", "checkpointer", "batchledger",
    "async-batch-llm", "sqlitedict", "mpire",
]  # fmt: skip


# --- the machine -----------------------------------------------------------------------------------------------------


def machine(directory: Path) -> str:
    """Cores, processor, file system, system, versions: what the figures depend on."""
    parts = [
        f"{os.cpu_count()} cores",
        _processor(),
        _file_system(directory),
        f"{platform.system()} {platform.release()}",
        f"{platform.python_implementation()} {platform.python_version()}",
        _load(),
    ]
    return ", ".join(part for part in parts if part)


def versions() -> str:
    """The versions of all that took part."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def _load() -> str:
    """How busy the machine was: above the number of cores, others were measured too."""
    try:
        return "load average {:.1f}, {:.1f}, {:.1f}".format(*os.getloadavg())
    except (AttributeError, OSError):  # Windows
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _file_system(directory: Path) -> str:
    """The kind of file system that a directory is on, where the system tells."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    above = {str(part) for part in (directory.resolve(), *directory.resolve().parents)}
    return max((len(place), kind) for place, kind in mounts if place in above)[1]


# --- the table -------------------------------------------------------------------------------------------------------


def figure(value: float) -> str:
    """Two digits or so, as people write them."""
    rounded = float(f"{value:.1e}")
    if abs(rounded) >= 10 or rounded == 0:
        return f"{value:,.0f}"
    return f"{value:.{1 - floor(log10(abs(rounded)))}f}"


def shown(found: Ratio, unit: str) -> str:
    """The median, and the range where there were several rounds."""
    text = f"{figure(found.median)} {unit}"
    return text if found.low == found.high else f"{text} ({figure(found.low)}–{figure(found.high)})"


def verdict(row: Row) -> str:
    """Whether the target is met."""
    if row.target is None:
        return ""
    return "yes" if row.target.is_met(row.ours.median) else "**no**"


def table(bench: Bench) -> str:
    """All rows, in Markdown."""
    lines = ["| what | checkpoint | target | met | others | --only |", "| --- | --- | --- | --- | --- | --- |"]
    for row in bench.rows:
        target = f"{row.target.sign} {row.target.limit:g} {row.unit}" if row.target else ""
        peers = " · ".join(f"{name} {figure(found.median)}" for name, found in row.peers)
        cells = (row.what, shown(row.ours, row.unit), target, verdict(row), peers, row.work)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


_HOW_TO_READ = (
    "Medians of rounds, all contestants in turn in each; ratios are taken within a round, and the range of ours stands "
    "in brackets. A cost is better where it is smaller, a *speed* where it is larger. The figures of others are in the "
    "unit of ours. `python -m benchmarks --only NAME` makes the rows of that name."
)


def document(bench: Bench) -> str:
    """The file of results."""
    asked = [row for row in bench.rows if row.target]
    met = sum(verdict(row) == "yes" for row in asked)
    parts = [
        "# Results",
        f"{machine(bench.directory)}.  \n{versions()}.",
        _HOW_TO_READ,
        table(bench),
        f"{met} of {len(asked)} targets are met.",
    ]
    if bench.left_out:
        parts.append("Left out: " + "; ".join(f"{name} ({why})" for name, why in bench.left_out.items()) + ".")
    if "save" in bench.raw:
        parts.append("![What it costs to persist one result](results.svg)")
    return "\n\n".join(parts) + "\n"


# --- the plot --------------------------------------------------------------------------------------------------------

_LEFT, _WIDTH, _BAR, _GAP, _TOP = 230, 520, 18, 9, 44
_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f; }
  .title { font-weight: 600; font-size: 14px; }
  .small { font-size: 11px; fill: #57606a; }
  .grid { stroke: #d0d7de; stroke-width: 1; }
  .bar { fill: #8c959f; } .bare { fill: #57606a; } .ours { fill: #1a7f5a; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .small { fill: #9198a1; } .grid { stroke: #3d444d; }
    .bar { fill: #656c76; } .bare { fill: #9198a1; } .ours { fill: #3fb98a; }
  }
"""


def plot(times: Times, against: str, ours: tuple[str, ...]) -> str:
    """Horizontal bars on a logarithmic scale: what each costs per item, in units of `against`."""
    bars = sorted(((name, ratio(times, name, against).median) for name in times), key=lambda bar: bar[1])
    decades = max(1, ceil(log10(max(cost for _, cost in bars))))
    bottom = _TOP + len(bars) * (_BAR + _GAP)
    height, width = bottom + 34, _LEFT + _WIDTH + 70
    alt = f"What it costs to persist one result, as a multiple of one bare {escape(against)}"
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{alt}">',
        f"<title>{alt}</title>",
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="8" y="22">{alt} (logarithmic)</text>',
    ]
    for decade in range(decades + 1):
        x = _LEFT + _WIDTH * decade / decades
        parts.append(f'<line class="grid" x1="{x:.0f}" y1="{_TOP - 6}" x2="{x:.0f}" y2="{bottom}"/>')
        parts.append(f'<text class="small" x="{x:.0f}" y="{bottom + 16}" text-anchor="middle">{10**decade:,} ×</text>')
    for number, (name, cost) in enumerate(bars):
        y = _TOP + number * (_BAR + _GAP)
        length = max(2.0, _WIDTH * log10(max(cost, 1)) / decades)
        kind = "ours" if name in ours else "bare" if name == against else "bar"
        label = f"checkpoint, {name}" if name in ours else name
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 13.5}" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<rect class="{kind}" x="{_LEFT}" y="{y}" width="{length:.1f}" height="{_BAR}" rx="2"/>')
        parts.append(f'<text x="{_LEFT + length + 6:.1f}" y="{y + 13.5}">{figure(cost)} ×</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
