"""The loader as a dataset of torch: tensors over the memory that the loader filled, and a state that resumes exactly."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from imp_loader import Batch, Loader

__all__ = ["ImpDataset", "tensors"]


def tensors(batch: Batch) -> dict[str, Any]:
    """`batch` as a dictionary: `step`, `task`, `view`, and a tensor for every array that is there, without a copy.

    `examples` int64 `[n, 3]`, `pixels` uint8 `[n, frames, height, width, 3]`, `log_mel` float32 `[n, frames, mels]` or `waveform`
    float32 `[n, samples]`, `text` int32 `[n, n_tokens]` (`[n, captions, n_tokens]` at a view with several), `vision_kept` and
    `audio_kept` int32 `[n, n_kept]`, `labels` int32 `[n]`. The last three are uint32 in the batch, which torch hardly computes
    with; they are all below 2**31. `label_sets`, a list of lists, where an example has several labels.
    """
    arrays = {"examples": batch.examples, **batch.arrays()}
    signed = {name: array.view(np.int32) if array.dtype == np.uint32 else array for name, array in arrays.items()}
    of_torch = {name: torch.from_numpy(array) for name, array in signed.items()}
    sets = {} if batch.label_sets is None else {"label_sets": batch.label_sets}
    return {"step": batch.step, "task": batch.task, "view": batch.view, **of_torch, **sets}


class ImpDataset(IterableDataset):
    """The batches of a loader, forever, each as `tensors` makes it.

    For `DataLoader(ImpDataset(loader), batch_size=None)`, or to be iterated as it is. `state_dict` and `load_state_dict` are
    those that torchdata's `StatefulDataLoader` asks for. A second iteration goes on where the first one stopped.

    Worker processes are refused: decoding runs on the loader's own threads (`decode_threads`), so that workers would add
    nothing but a copy of each batch from process to process.
    """

    def __init__(self, loader: Loader):
        super().__init__()
        self.loader = loader

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Here, and not in the generator: whoever asks is told at once.
        if get_worker_info() is not None:
            raise RuntimeError(
                "ImpDataset was given to a DataLoader with `num_workers` > 0, must be 0: the loader decodes on threads of its own; "
                "set `decode_threads` of imp_loader.Loader instead"
            )
        return map(tensors, self.loader)

    def state_dict(self) -> dict[str, Any]:
        """What was handed out, not what was prefetched."""
        return self.loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`; iterators that are under way do too."""
        self.loader.load_state_dict(state)
