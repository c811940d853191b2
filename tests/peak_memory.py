"""What a piece of work takes of memory, as torch's own allocator sees it."""

from collections.abc import Callable
from itertools import accumulate

from torch.autograd.profiler import profile


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes that tensors on the CPU which were made inside `work` held at a time."""
    with profile(use_device=None, profile_memory=True) as found:
        work()
    # Its raw events: to make a table of them takes longer than the work.
    changes = [event for event in found.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate(change.nbytes() for change in changes))
