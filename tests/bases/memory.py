"""How much memory a pass takes, as torch counts it."""

from torch.profiler import profile


def peak_of(base, args) -> int:
    """Bytes that a pass has at its peak above what was there before, as torch's profiler counts them."""
    with profile(profile_memory=True) as measured:
        base.velocity(*args)
    events = [e for e in measured.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
