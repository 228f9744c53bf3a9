from collections.abc import Mapping
from os import PathLike
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack, final, type_check_only

import numpy as np
from numpy.typing import NDArray

__all__ = ["Batch", "Loader", "LoaderError", "__version__"]
__version__: str

class LoaderError(RuntimeError):
    """The loader cannot go on. The message says where, what was found and what was wanted, a cause a line."""

@type_check_only
class Settings(TypedDict, total=False):
    """`[train.loader]` of a run file: how fast batches come, never what is in them."""

    fetch_threads: int
    decode_threads: int
    prefetch_batches: int
    max_buffered_mib: int
    decoded_cache_mib: int
    disk_cache: str
    disk_cache_gib: int
    hedge_after_ms: int
    max_substituted: int

@final
class Batch:
    """One step's examples: one task at one view, without padding. A stream that the task does not have is None."""

    @property
    def step(self) -> int: ...
    @property
    def task(self) -> str: ...
    @property
    def task_idx(self) -> int:
        """Index into `Loader.tasks()`."""
    @property
    def view(self) -> int:
        """Index into the task's views."""
    @property
    def n(self) -> int:
        """Number of examples."""
    @property
    def examples(self) -> NDArray[np.int64]:
        """`[n, 3]`: index into the task's corpora, row of the split, epoch."""
    @property
    def pixels(self) -> NDArray[np.uint8] | None:
        """`[n, frames, height, width, 3]`, sRGB; a picture has one frame."""
    @property
    def vision_kept(self) -> NDArray[np.uint32] | None:
        """DropToken: `[n, n_kept]`, positions of visual tokens in raster order (t, h, w), rising; None keeps all."""
    @property
    def log_mel(self) -> NDArray[np.float32] | None:
        """`[n, frames, mels]`, natural logarithm."""
    @property
    def waveform(self) -> NDArray[np.float32] | None:
        """`[n, samples]`, in [-1, 1] but for what a gain or a filter adds."""
    @property
    def audio_kept(self) -> NDArray[np.uint32] | None:
        """As `vision_kept`, positions of sound tokens in raster order (time, frequency), or in time."""
    @property
    def text(self) -> NDArray[np.int32] | None:
        """`[n, n_tokens]`, or `[n, captions, n_tokens]` at a view with several; 0 is padding."""
    @property
    def labels(self) -> NDArray[np.uint32] | None:
        """`[n]`, index into the corpus's classes, the first one of several; None unless every example has one."""
    @property
    def label_sets(self) -> list[list[int]] | None:
        """All labels of each example, the first one first; None unless an example of the batch has several."""
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays that are there, by name, without `examples`."""
    def __len__(self) -> int: ...

@final
class Loader:
    """Gives the batches of a run in order of steps, forever, from any step on."""

    def __new__(
        cls,
        store: str | PathLike[str],
        mixture: str | Mapping[str, Any],
        *,
        state: Mapping[str, Any] | None = None,
        options: Mapping[str, str] | None = None,
        rank: int = 0,
        ranks: int = 1,
        **settings: Unpack[Settings],
    ) -> Self: ...
    @staticmethod
    def from_run_file(
        path: str | PathLike[str],
        *,
        store: str | PathLike[str] | None = None,
        state: Mapping[str, Any] | None = None,
        options: Mapping[str, str] | None = None,
        rank: int = 0,
        ranks: int = 1,
        **settings: Unpack[Settings],
    ) -> Loader: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Batch: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    def close(self) -> None:
        """Ends the threads. The state can still be asked for."""
    def state_dict(self) -> dict[str, Any]:
        """What was consumed, not what was prefetched; JSON can say it."""
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`, also if it was closed."""
    def stats(self) -> dict[str, Any]:
        """Totals since it was opened, and what batches wait for."""
    def tasks(self) -> list[dict[str, Any]]:
        """In the mixture's order, with every shape that a batch of theirs can have."""
    def corpora(self) -> dict[str, dict[str, Any]]:
        """By name: snapshot, classes, size of the vocabulary."""
