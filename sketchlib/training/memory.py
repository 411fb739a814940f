"""Out of memory: the same batch in smaller parts.

A batch is computed in parts of at most `Parts.limit` pictures. When the device (or
the processor's allocator) runs out, the limit is halved and the same batch is tried
again, so that the update stays that of the whole batch. Limits: batch norm that
learns sees smaller parts; a process the kernel kills cannot be caught.
"""

import torch
from accelerate.utils import release_memory
from accelerate.utils.memory import should_reduce_batch_size


class Parts:
    """How many pictures are computed at once; shrinks, never grows."""

    def __init__(self, limit: int, least: int) -> None:
        self.limit = limit
        self.least = least

    def split(self, size: int) -> list[slice]:
        """Slices of a batch, as equal as can be, none under `least` pictures."""
        parts = min(-(-size // self.limit), max(1, size // self.least))
        edges = [round(part * size / parts) for part in range(parts + 1)]
        return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]

    def shrink(self, error: RuntimeError, size: int, what: str) -> None:
        """Halve the limit after an out-of-memory; raise any other error again.

        Args:
            error: what was caught.
            size: pictures of the batch that was tried.
            what: the work, for the notice.
        Raises:
            MemoryError: even the least part does not fit.
        """
        if not is_out_of_memory(error):
            raise error
        tried = max(part.stop - part.start for part in self.split(size))
        smaller = max(tried // 2, self.least)
        if smaller >= tried:
            raise MemoryError(
                f"{what} ran out of memory with {tried} pictures at once, and fewer "
                "are not possible; use a smaller `side_px` or `model`, or `norm` still"
            ) from error
        self.limit = smaller
        release_memory()
        print(
            f"notice: {what} ran out of memory with {tried} pictures at once; going on "
            f"with {smaller}, the batch of an update stays the same"
        )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether `error` says that a device or the processor's allocator is full."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
