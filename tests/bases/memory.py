"""How much memory a pass takes, as torch counts it."""

from collections.abc import Callable

from torch.profiler import profile


def peak_of(base, args) -> int:
    """Bytes that a pass has at its peak above what was there before, as torch's profiler counts them."""
    return peak(lambda: base.velocity(*args))


def peak(call: Callable[[], object]) -> int:
    with profile(profile_memory=True) as measured:
        call()
    events = [e for e in measured.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
