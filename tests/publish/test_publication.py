"""A process's publication: closed and opened again, beside others, in a process that forks."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from gpuscale.publish import publication as publication_module
from gpuscale.publish.publication import Publication
from gpuscale.requests.totals import RequestTotals
from gpuscale.settings import Settings
from tests.middleware.servers import free_port, wait_for
from tests.publish.counting import KEY, count


@pytest.fixture
def published(tmp_path: Path) -> Iterator[Callable[..., Publication]]:
    """``published(port=…)`` makes publications on loopback without a GPU, closed at the end."""
    made: list[Publication] = []

    def make(**options: Any) -> Publication:
        given = {"port": free_port(), "gpu": "none", "address": "127.0.0.1", **options}
        made.append(Publication(Settings.create({}, **given), CollectorRegistry()))
        return made[-1]

    yield make
    for publication in made:
        publication.close()


@pytest.mark.parametrize("given_folder", [False, True])
def test_closing_and_reopening_neither_loses_nor_doubles(
    published: Callable[..., Publication], tmp_path: Path, given_folder: bool
) -> None:
    publication = published(run_dir=str(tmp_path) if given_folder else None)
    accounting = publication.accounting
    publication.start()
    count(accounting, 2)
    held = accounting.begin()
    for expected in (3, 4):
        publication.close()
        assert publication.totals().in_flight == 1
        count(accounting)
        publication.reopen()
        totals = publication.totals()
        assert totals.requests[KEY] == expected
        assert totals.in_flight == 1
    accounting.end(held, "GET", "/", 200)
    totals = publication.totals()
    assert totals.requests[KEY] == 5
    assert totals.in_flight == 0
    lifetimes = sum(values[-1] for values in totals.durations.values())
    assert totals.in_flight_seconds == pytest.approx(lifetimes, rel=1e-3, abs=1e-3)


def test_no_counter_goes_back_under_scrapes_while_requests_come(published: Callable[..., Publication]) -> None:
    """Alone, begins and ends are only noted: whoever asks counts them, beside the threads that note more."""
    publication = published()
    publication.start()
    assert not publication.accounting.sharing
    stop = threading.Event()

    def answer() -> None:
        while not stop.is_set():
            started = publication.accounting.begin()
            time.sleep(0.0001)
            publication.accounting.end(started, "GET", "/", 200)

    answering = [threading.Thread(target=answer) for _ in range(4)]
    for thread in answering:
        thread.start()
    seen = [publication.totals()]
    try:
        with ThreadPoolExecutor(1) as another_scraper:
            for _ in range(300):
                another = another_scraper.submit(publication.totals)
                seen.append(publication.totals())
                another.result()
    finally:  # else a scrape that fails would leave the suite waiting for these threads
        stop.set()
        for thread in answering:
            thread.join()
    seen.append(publication.totals())
    for before, after in itertools.pairwise(seen):
        assert after.in_flight_seconds >= before.in_flight_seconds
        assert after.requests.get(KEY, 0) >= before.requests.get(KEY, 0)
        assert 0 <= after.in_flight <= 4
    assert seen[-1].in_flight == 0
    assert seen[-1].in_flight_seconds == pytest.approx(seen[-1].durations[("GET", "/")][-1], abs=1e-3)


def test_two_registries_on_one_port(published: Callable[..., Publication]) -> None:
    options = {"port": free_port(), "gpu": "none", "address": "127.0.0.1"}
    first, second = CollectorRegistry(), CollectorRegistry()
    Counter("one", "Of the first app.", registry=first).inc()
    Counter("two", "Of the second app.", registry=second).inc()
    publication = Publication.shared(registry=first, **options)
    assert Publication.shared(registry=second, **options) is publication
    publication.start()
    try:
        page = publication.render("")[0].decode()
    finally:
        publication.close()
    assert "one_total 1.0" in page
    assert "two_total 1.0" in page
    assert page.count("\ngpuscale_requests_in_flight 0.0") == 1


def test_a_page_adds_the_workers_up_once(published: Callable[..., Publication]) -> None:
    publication = published()
    calls = []
    totals = publication.totals

    def noted() -> RequestTotals:
        calls.append(1)
        return totals()

    publication.totals = noted  # type: ignore[method-assign]
    publication.start()
    publication.render("")
    assert len(calls) == 1
    names = [family.name for family in publication.registry.collect()]
    assert "gpuscale_requests_in_flight" in names  # whoever asks the registry itself still has them


ANOTHER = """
import sys
from gpuscale.publish.publication import Publication
from gpuscale.settings import Settings
publication = Publication(Settings.create({}, port=int(sys.argv[1]), gpu="none", address="127.0.0.1"))
publication.start()
print("up", flush=True)
sys.stdin.read()
publication.close()
"""


def test_a_service_that_finds_its_port_taken_takes_it_once_it_is_free(
    published: Callable[..., Publication], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(publication_module, "JOIN_AGAIN_SECONDS", 0.1)
    publication = published()
    command = [sys.executable, "-c", ANOTHER, str(publication.settings.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "up\n"
        with caplog.at_level(logging.ERROR):
            publication.start()
            count(publication.accounting)
            wait_for("another try", lambda: publication._join_at is not None)
        assert other.stdin is not None
        other.stdin.close()
        assert other.wait(20) == 0
    url = publication.url or ""
    wait_for("its own page", lambda: b'status="200"} 1.0' in urllib.request.urlopen(url, timeout=5).read())
    messages = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(messages) == 1
    assert f"another service (process {other.pid}) publishes its metrics here" in messages[0]
    assert "GPUSCALE_PORT" in messages[0]


def test_a_child_of_a_worker_is_no_worker(published: Callable[..., Publication]) -> None:
    """A forked helper of a started process must not begin to publish by itself, and counts for itself."""
    publication = published()
    publication._start_after_fork = True  # gunicorn --preload has loaded the app in the master
    publication.start()
    count(publication.accounting, 2)
    publication.totals()
    pid = os.fork()
    if pid == 0:
        fine = not (publication._start_after_fork or publication.running or publication.totals().requests)
        os._exit(0 if fine else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert publication.totals().requests[KEY] == 2
