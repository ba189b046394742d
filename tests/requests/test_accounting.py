"""The accounting of requests: nothing leaks, the integral is exact, labels are bounded."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuscale.catalogue import METHODS, OTHER_METHOD, OVERFLOW_ROUTE
from gpuscale.requests import accounting as accounting_module
from gpuscale.requests.accounting import MAX_ROUTES, RequestAccounting
from gpuscale.requests.slab import FIRST_SERIES_SLOT, SLOTS, Slab, SlabReader, read_in_flight
from gpuscale.requests.totals import RequestTotals, read_totals


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until a test moves it."""
    now = [100.0]
    monkeypatch.setattr(accounting_module, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("sharing", [False, True])
@settings(max_examples=100)
@given(st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(0, 1_000_000)), max_size=300))
def test_integral_is_the_sum_of_lifetimes(sharing: bool, steps: list[tuple[float, int]]) -> None:
    """Random begins and ends: in flight ends at 0, the integral is what the requests lived, together."""
    now = 100.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounting_module, "monotonic", lambda: now)
        requests = RequestAccounting()
        requests.sharing = sharing
        running: list[float] = []
        lifetimes = 0.0
        for pause, choice in steps:
            now += pause
            if running and choice % 2:
                started = running.pop(choice % len(running))
                requests.end(started, "GET", "/", 200)
                lifetimes += now - started
            else:
                running.append(requests.begin())
            assert requests.in_flight == len(running)
        while running:
            lifetimes += now - running[-1]
            requests.end(running.pop(), "GET", "/", 200)
        requests.flush()
    totals = read_totals(requests.slab, now)
    assert totals.in_flight == 0
    assert totals.in_flight_seconds == pytest.approx(lifetimes, rel=1e-9, abs=1e-9)
    duration = totals.durations.get(("GET", "/"))
    assert (duration[-1] if duration else 0.0) == pytest.approx(lifetimes, rel=1e-9, abs=1e-9)


def test_integral_runs_on_while_requests_are_in_flight(clock: list[float]) -> None:
    requests = RequestAccounting()
    first = requests.begin()
    clock[0] += 2
    requests.begin()
    clock[0] += 3
    assert read_in_flight(requests.slab).integral_at(clock[0]) == 2 + 2 * 3
    requests.end(first, "GET", "/", 200)
    assert read_in_flight(requests.slab).integral_at(clock[0] + 10) == 8 + 10


def test_counts_by_labels_and_bucket(clock: list[float]) -> None:
    requests = RequestAccounting(buckets=(0.1, 1.0))
    for duration, status in ((0.05, 200), (0.1, 200), (0.5, 404), (7.0, 200)):
        started = requests.begin()
        clock[0] += duration
        requests.end(started, "GET", "/items/{id}", status)
    totals = read_totals(requests.slab, clock[0])
    assert totals.requests[("GET", "/items/{id}", "200")] == 3
    assert totals.requests[("GET", "/items/{id}", "404")] == 1
    # A value equal to a bound belongs under it: le means less or equal. (0.1 is not exact after additions.)
    counts = totals.durations[("GET", "/items/{id}")][:3]
    assert sum(counts) == 4
    assert counts[1:] in ([1, 1], [2, 1])


@pytest.mark.parametrize("sharing", [False, True])
def test_threads_lose_nothing(sharing: bool) -> None:
    requests = RequestAccounting()
    requests.sharing = sharing

    def work() -> None:
        for _ in range(2000):
            requests.end(requests.begin(), "GET", "/", 200)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    requests.flush()
    totals = read_totals(requests.slab)
    assert totals.requests[("GET", "/", "200")] == 16000
    assert sum(totals.durations[("GET", "/")][:-1]) == 16000
    assert totals.in_flight == 0


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(st.floats(0.0, 5.0), st.sampled_from(["begin", "end", "late end", "flush", "share"])), max_size=200
    )
)
def test_what_is_only_noted_adds_up(steps: list[tuple[float, str]]) -> None:
    """Alone: at each flush the integral is the sum of the lifetimes so far and has not gone back, although an end may
    be noted after a flush that came later than it; sharing may begin and stop at any time."""
    now = [100.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounting_module, "monotonic", lambda: now[0])
        requests = RequestAccounting()
        requests.sharing = False
        running: list[float] = []
        ended, published = 0.0, 0.0
        for pause, step in steps:
            now[0] += pause
            if step == "begin":
                running.append(requests.begin())
            elif step == "end" and running:
                started = running.pop(0)
                requests.end(started, "GET", "/", 200)
                ended += now[0] - started
            elif step == "late end" and running:  # its thread was stopped between the clock and the note
                started = running.pop(0)
                end = max(started, now[0] - 3.0)
                requests._ended.append((started, end, "GET", "/", 200))
                ended += end - started
            elif step == "share":
                requests.sharing = not requests.sharing
                requests.flush()
            elif step == "flush":
                requests.flush()
            if step in ("flush", "share") and not requests.sharing:
                record = read_in_flight(requests.slab)
                lived = ended + sum(now[0] - started for started in running)
                assert record.number == len(running)
                assert record.integral_at(now[0]) == pytest.approx(max(lived, published), abs=1e-6)
                assert record.integral_at(now[0] + 1) >= published
                published = record.integral


def test_a_batch_is_counted_without_being_asked() -> None:
    """Noted requests do not pile up while nobody scrapes; one long request that is open does not hold them back."""
    requests = RequestAccounting()
    requests.sharing = False
    requests.begin()
    for _ in range(10 * accounting_module.FOLD_AT):
        requests.end(requests.begin(), "GET", "/", 200)
        assert len(requests._ended) < accounting_module.FOLD_AT
        assert len(requests._began) <= accounting_module.FOLD_AT
    assert requests.in_flight == 1


def test_labels_are_bounded() -> None:
    requests = RequestAccounting()
    for number in range(MAX_ROUTES + 100):
        requests.end(requests.begin(), "GET", f"/{number}", 200)
    requests.end(requests.begin(), "BREW", "/0", 200)
    requests.end(requests.begin(), "GET", "/0", 99999)
    totals = read_totals(requests.slab)
    routes = {route for _, route, _ in totals.requests}
    assert len(routes) == MAX_ROUTES
    assert totals.requests[("GET", OVERFLOW_ROUTE, "200")] >= 100
    assert totals.requests[(OTHER_METHOD, "/0", "200")] == 1
    assert totals.requests[("GET", "/0", OVERFLOW_ROUTE)] == 1


def test_a_full_slab_counts_on_in_the_overflow() -> None:
    """More series than fit (many statuses of many routes): no request is lost, and none raises."""
    buckets = tuple(float(bound) for bound in range(1, 65))
    requests = RequestAccounting(buckets=buckets)
    wanted = 2 * (SLOTS - FIRST_SERIES_SLOT) // (len(buckets) + 2)
    for number in range(wanted):
        method = METHODS[number % 10]
        requests.end(requests.begin(), method, f"/{number // 10 % 400}", 200)
    totals = read_totals(requests.slab)
    assert sum(totals.requests.values()) == wanted
    assert totals.requests[(OTHER_METHOD, OVERFLOW_ROUTE, OVERFLOW_ROUTE)] > 0


def test_another_process_reads_the_same_numbers(tmp_path: object, clock: list[float]) -> None:
    slab = Slab(f"{tmp_path}/1.slab")
    requests = RequestAccounting(slab)
    reader = SlabReader(f"{tmp_path}/1.slab")
    started = requests.begin()
    clock[0] += 4
    requests.end(started, "POST", "/é", 201)
    requests.begin()
    clock[0] += 2
    reader.refresh_keys()
    theirs, ours = read_totals(reader, clock[0]), read_totals(slab, clock[0])
    assert theirs == ours
    assert theirs.in_flight == 1
    assert theirs.in_flight_seconds == 6
    assert theirs.requests[("POST", "/é", "201")] == 1
    reader.close()
    slab.close()


def test_a_reader_never_sees_a_half_written_record(tmp_path: object) -> None:
    """While requests begin and end, a reader's integral at a fixed rate never goes back and never jumps."""
    slab = Slab(f"{tmp_path}/1.slab")
    requests = RequestAccounting(slab)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            requests.end(requests.begin(), "GET", "/", 200)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        last = 0.0
        for _ in range(20000):
            record = read_in_flight(slab)
            assert record.number in (0, 1)
            assert record.integral >= last
            last = record.integral
    finally:
        stop.set()
        thread.join()
        slab.close()


def test_moving_to_another_slab_keeps_every_number(tmp_path: object, clock: list[float]) -> None:
    requests = RequestAccounting()
    for number in range(3):
        started = requests.begin()
        clock[0] += 1
        requests.end(started, "GET", f"/{number % 2}", 200)
    open_request = requests.begin()
    before = read_totals(requests.slab, clock[0])
    requests.move_to(Slab(f"{tmp_path}/1.slab"))
    assert read_totals(requests.slab, clock[0]) == before
    clock[0] += 1
    requests.end(open_request, "GET", "/0", 200)
    assert read_totals(requests.slab, clock[0]).requests[("GET", "/0", "200")] == 3


def test_a_fresh_slab_begins_at_zero(clock: list[float]) -> None:
    requests = RequestAccounting()
    requests.begin()
    requests.move_to(Slab(), fresh=True)
    clock[0] += 5
    assert read_totals(requests.slab, clock[0]) == RequestTotals()


def test_totals_survive_json() -> None:
    requests = RequestAccounting()
    requests.end(requests.begin(), "GET", "/a", 200)
    totals = read_totals(requests.slab)
    again = RequestTotals.from_json(totals.to_json())
    assert again.requests == totals.requests
    assert again.durations == totals.durations
    both = RequestTotals()
    both.add(totals)
    both.add(again)
    assert both.requests[("GET", "/a", "200")] == 2
    assert both.durations[("GET", "/a")] == [2 * value for value in totals.durations[("GET", "/a")]]
