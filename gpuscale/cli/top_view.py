"""How ``gpuscale top`` looks, with rich."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from gpuscale.cli.top_scrape import EndpointView, GpuView, Scraper

UNKNOWN = "–"
BAR = 14


def show(scraper: Scraper, interval: float, *, once: bool, console: Console | None = None) -> int:
    """Print once after two looks, or go on until Ctrl-C. Returns the exit status."""
    console = console or Console()
    views = scraper.look()
    if once or not console.is_terminal:
        time.sleep(interval)
        views = scraper.look()
        console.print(render(views))
        return 0 if any(view.error is None for view in views) else 1
    with Live(render(views), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            live.update(render(scraper.look()), refresh=True)


def render(views: list[EndpointView]) -> RenderableType:
    """All endpoints, one below the other."""
    return Group(*(_panel(view) for view in views))


def _panel(view: EndpointView) -> Panel:
    if view.error is not None:
        return Panel(Text(view.error, "red"), title=view.url, title_align="left", border_style="red")
    info = view.info
    told = (info.get("mode"), info.get("gpu_source"), info.get("utilization"), info.get("gpus_from"))
    subtitle = " · ".join(word for word in told if word)
    if info.get("gpu_source") == "simulated":
        subtitle += " · these GPUs are not real"
    parts: list[RenderableType] = []
    if view.in_flight is not None:
        parts.append(_requests(view))
    parts.append(_gpus(view.gpus) if view.gpus else Text("no GPU", "dim"))
    return Panel(Group(*parts), title=view.url, title_align="left", subtitle=subtitle or None, subtitle_align="left")


def _requests(view: EndpointView) -> Table:
    table = Table.grid(padding=(0, 3))
    failing = bool(view.errors_per_second)
    table.add_row(
        Text.assemble(("in flight ", "dim"), (_number(view.in_flight), "bold")),
        Text.assemble(("mean ", "dim"), _number(view.mean_in_flight, 2)),
        Text.assemble(("requests/s ", "dim"), _number(view.requests_per_second, 1)),
        Text.assemble(("5xx/s ", "dim"), (_number(view.errors_per_second, 1), "red" if failing else "")),
        Text.assemble(("mean time ", "dim"), _milliseconds(view.mean_seconds)),
    )
    return table


def _gpus(gpus: tuple[GpuView, ...]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("GPU", justify="right")
    table.add_column("name", overflow="ellipsis", no_wrap=True)
    table.add_column("busy")
    table.add_column("", justify="right", min_width=5)
    table.add_column("memory")
    table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column("°C", justify="right")
    table.add_column("W", justify="right")
    for gpu in gpus:
        if not gpu.up:
            table.add_row(gpu.minor_number, gpu.name, Text("down", "red"))
            continue
        memory = None
        if gpu.memory_used_bytes is not None and gpu.memory_total_bytes:
            memory = 100.0 * gpu.memory_used_bytes / gpu.memory_total_bytes
        table.add_row(
            gpu.minor_number,
            gpu.name,
            _bar(gpu.utilization_percent, "green"),
            UNKNOWN if gpu.utilization_percent is None else f"{gpu.utilization_percent:.0f} %",
            _bar(memory, "blue"),
            f"{_gib(gpu.memory_used_bytes)} / {_gib(gpu.memory_total_bytes)}",
            _number(gpu.temperature_celsius),
            _number(gpu.power_watts),
        )
    return table


def _bar(percent: float | None, style: str) -> RenderableType:
    if percent is None:
        return Text(UNKNOWN)
    return ProgressBar(total=100.0, completed=percent, width=BAR, complete_style=style, finished_style=style)


def _number(value: float | None, digits: int = 0) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def _milliseconds(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else f"{1000 * seconds:.1f} ms"


def _gib(size: float | None) -> str:
    return UNKNOWN if size is None else f"{size / 2**30:.1f}"
