"""The wheel gives the loader's batches: their shapes, their order, their memory, and a state that resumes."""

import copy
import json
import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest
from imp_loader import Loader, LoaderError

# Every medium, labels, DropToken, two sizes.
MIXTURE = {
    "seed": 3,
    "alternation": "random",
    "patching": {"tube": [2, 8, 8], "spectrogram": [8, 16]},
    "spectrogram": {"window": 512, "hop": 256, "n_mels": 32},
    "tasks": [
        {
            "name": "image-text",
            "corpora": ["world-image"],
            "modalities": ["image", "text"],
            "objective": "nce",
            "weight": 2.0,
            "batch": 6,
            "augment": {"crop_area": [0.5, 1.0], "flip": True},
            "views": [
                {"height": 32, "width": 32, "text_tokens": 8, "drop_rate": 0.5},
                {"height": 16, "width": 24, "text_tokens": 8},
            ],
        },
        {
            "name": "image-class",
            "corpora": ["world-image"],
            "modalities": ["image"],
            "objective": "softmax",
            "weight": 1.0,
            "batch": 5,
            "views": [{"height": 16, "width": 16}],
        },
        {
            "name": "video-text",
            "corpora": ["world-video"],
            "modalities": ["video", "text"],
            "objective": "nce",
            "weight": 1.0,
            "batch": 3,
            "views": [{"frames": 4, "stride": 2, "height": 16, "width": 16, "text_tokens": 8}],
        },
        {
            "name": "audio-text",
            "corpora": ["world-audio"],
            "modalities": ["audio", "text"],
            "objective": "nce",
            "weight": 1.0,
            "batch": 4,
            "views": [{"spectrogram_frames": 48, "text_tokens": 8, "drop_rate": 0.25}],
        },
    ],
}
DTYPES = {"pixels": "uint8", "vision_kept": "uint32", "log_mel": "float32", "waveform": "float32", "audio_kept": "uint32", "text": "int32", "labels": "uint32"}


@pytest.fixture
def store(request):
    return request.config.getoption("--store")


def take(loader, n):
    return [next(loader) for _ in range(n)]


def assert_same(got, wanted):
    assert [(b.step, b.task, b.view) for b in got] == [(b.step, b.task, b.view) for b in wanted]
    for a, b in zip(got, wanted):
        assert np.array_equal(a.examples, b.examples)
        assert a.arrays().keys() == b.arrays().keys()
        assert all(np.array_equal(array, b.arrays()[name]) for name, array in a.arrays().items())


def test_batches_have_the_shapes_that_their_tasks_list(store):
    with Loader(store, MIXTURE) as loader:
        tasks = loader.tasks()
        batches = take(loader, 40)
        corpora = loader.corpora()
    assert [task["name"] for task in tasks] == [task["name"] for task in MIXTURE["tasks"]]
    assert {(b.task_idx, b.view) for b in batches} == {(t, v) for t, task in enumerate(tasks) for v in range(len(task["views"]))}
    for step, batch in enumerate(batches):
        task = tasks[batch.task_idx]
        view = task["views"][batch.view]
        assert (batch.step, batch.task, batch.n, len(batch)) == (step, task["name"], view["n"], view["n"])
        arrays = batch.arrays()
        wanted = view["shapes"] | ({"labels": [batch.n]} if "labels" in arrays else {})
        assert {name: list(array.shape) for name, array in arrays.items()} == wanted
        assert {name: str(array.dtype) for name, array in arrays.items()} == {name: DTYPES[name] for name in wanted}
        assert (batch.examples.shape, batch.examples.dtype) == ((batch.n, 3), np.int64)
        assert len(set(map(tuple, batch.examples.tolist()))) == batch.n
        assert all(getattr(batch, name) is None for name in DTYPES.keys() - arrays.keys())
        corpus = corpora[task["corpora"][0]]
        if batch.text is not None:
            assert 0 < batch.text.max() < corpus["vocab_size"]
        if batch.task == "image-class":
            assert batch.labels.max() < len(corpus["classes"])
        # Its records have one label each.
        assert batch.label_sets is None
        for kept in (batch.vision_kept, batch.audio_kept):
            assert kept is None or (np.diff(kept.astype(np.int64)) > 0).all()


def test_a_sound_may_stay_a_waveform(store):
    task = MIXTURE["tasks"][3] | {"views": [{"waveform_samples": 12288, "text_tokens": 8, "drop_rate": 0.25}]}
    mixture = MIXTURE | {"patching": MIXTURE["patching"] | {"waveform": 128}, "tasks": [task]}
    with Loader(store, mixture) as loader:
        shapes = loader.tasks()[0]["views"][0]["shapes"]
        batch = next(loader)
    assert shapes == {"waveform": [4, 12288], "audio_kept": [4, 72], "text": [4, 8]}
    assert {name: list(array.shape) for name, array in batch.arrays().items() if name != "labels"} == shapes
    assert batch.log_mel is None and str(batch.waveform.dtype) == DTYPES["waveform"]
    assert (np.abs(batch.waveform).max(axis=1) > 0).all()


def test_arrays_are_the_loaders_own_memory_and_outlive_it(store):
    with Loader(store, MIXTURE) as loader:
        batches = take(loader, 12)
        arrays = [array for batch in batches for array in batch.arrays().values()]
        before = copy.deepcopy(arrays)
    for array, wanted in zip(arrays, before, strict=True):
        # What frees the memory is the owner of a Vec in Rust: NumPy has allocated nothing.
        assert (array.flags.owndata, type(array.base).__name__) == (False, "PySliceContainer")
        assert array.flags.writeable and array.flags.c_contiguous
        assert np.array_equal(array, wanted)
        shared = np.from_dlpack(array)
        assert shared.__array_interface__["data"][0] == array.__array_interface__["data"][0]
        assert shared.shape == array.shape and shared.dtype == array.dtype
    assert batches[0].pixels is batches[0].pixels


def test_threads_queues_and_cache_never_change_a_byte(store):
    slow = {"decode_threads": 1, "prefetch_batches": 1, "decoded_cache_mib": 0, "max_buffered_mib": 1}
    with Loader(store, MIXTURE, **slow) as one, Loader(store, MIXTURE, decode_threads=4, prefetch_batches=9) as many:
        assert_same(take(many, 40), take(one, 40))


def test_a_state_of_what_was_consumed_resumes_at_the_next_step(store):
    with Loader(store, MIXTURE) as loader:
        wanted = take(loader, 30)
    with Loader(store, MIXTURE, prefetch_batches=8) as loader:
        take(loader, 11)
        state = json.dumps(loader.state_dict())
    assert len(state) < 4096 and json.loads(state)["step"] == 11
    # A closed loader still says where it was.
    assert loader.state_dict() == json.loads(state)
    with Loader(store, MIXTURE, state=json.loads(state), decode_threads=1) as loader:
        assert_same(take(loader, 10), wanted[11:21])
        # Back to where it started, then to step 0.
        loader.load_state_dict(json.loads(state))
        assert_same(take(loader, 3), wanted[11:14])
        assert loader.state_dict()["step"] == 14
    with Loader(store, MIXTURE) as loader:
        start = loader.state_dict()
        take(loader, 5)
        loader.load_state_dict(start)
        assert_same(take(loader, 2), wanted[:2])


def test_ranks_cut_one_batch_and_a_state_resumes_any_number_of_them(store):
    with Loader(store, MIXTURE) as whole:
        wanted = take(whole, 12)
    with Loader(store, MIXTURE, rank=0, ranks=2) as first, Loader(store, MIXTURE, rank=1, ranks=2) as second:
        parts = list(zip(take(first, 12), take(second, 12)))
        state = first.state_dict()
        assert state == second.state_dict()
    for batch, (a, b) in zip(wanted, parts):
        assert (batch.step, batch.task) == (a.step, a.task) == (b.step, b.task)
        for name, array in batch.arrays().items():
            assert np.array_equal(np.concatenate([a.arrays()[name], b.arrays()[name]]), array), name
    with Loader(store, MIXTURE, state=state) as whole:
        assert next(iter(whole)).step == 12
    with pytest.raises(LoaderError, match="rank 2 of 2"):
        Loader(store, MIXTURE, rank=2, ranks=2)


def test_a_run_file_opens_as_imp_train_opens_it(store, tmp_path):
    text = """
        seed = 3
        [[tasks]]
        name = "pictures"
        corpora = ["world-image"]
        modalities = ["image", "text"]
        objective = "nce"
        weight = 1.0
        batch = 4
        views = [{ height = 32, width = 32, text_tokens = 8 }]
    """
    run_file = tmp_path / "run.toml"
    in_train = text.replace("[[tasks]]", "[[train.mixture.tasks]]")
    run_file.write_text(f'store = "{store}"\nrun = "unused"\n[train]\nsteps = 9\n[train.loader]\ndecode_threads = 3\n[train.mixture]\n{in_train}')
    with Loader.from_run_file(run_file) as loader, Loader(str(store), text) as same:
        assert_same(take(loader, 3), take(same, 3))
        stats = loader.stats()
    assert stats["stages"]["decode"]["n_threads"] == 3
    assert stats["bound"] in ("trainer", "storage", "decode", "assembly") and stats["headroom"] >= 1
    assert (stats["substituted"], stats["n_without_sound"]) == ([], 0) and stats["media_bytes"] > 0


def other(**changes):
    return {**copy.deepcopy(MIXTURE), **changes}


def test_an_error_says_what_was_found_and_what_was_wanted(store, tmp_path):
    with Loader(store, MIXTURE) as loader:
        state = loader.state_dict()
    cases = [
        (lambda: Loader(tmp_path / "empty", MIXTURE), ["`world-image`", "empty`: none; run imp-ingest first"]),
        (lambda: Loader(store, MIXTURE, decode_threads=0), ["`train.loader.decode_threads` is 0, must be between 1 and 1024"]),
        (lambda: Loader(store, MIXTURE, decode_thread=1), ["`settings`", "caused by: unknown field `decode_thread`"]),
        (lambda: Loader(store, other(sed=1)), ["`mixture`", "caused by: unknown field `sed`"]),
        (lambda: Loader(store, "run.toml"), ["from_run_file", "caused by: TOML parse error at line 1"]),
        (lambda: Loader(store, other(seed=4), state=state), ["the checkpoint's seed is 3, this run has 4"]),
        (lambda: Loader(store, MIXTURE, state={"step": 1}), ["`state`", "missing field `seed`"]),
        (lambda: Loader.from_run_file(tmp_path / "gone.toml"), ["cannot read config `", "gone.toml`\n  caused by: No such file"]),
    ]
    for call, wanted in cases:
        with pytest.raises(LoaderError) as told:
            call()
        assert all(words in str(told.value) for words in wanted), told.value


def test_a_closed_loader_says_so_and_closes_in_no_time(store):
    loader = Loader(store, MIXTURE, decode_threads=4)
    next(loader)
    start = time.monotonic()
    loader.close()
    loader.close()
    assert time.monotonic() - start < 5
    with pytest.raises(LoaderError, match="the loader is closed"):
        next(loader)
    loader.load_state_dict(loader.state_dict())
    assert next(loader).step == 1


def test_a_fork_is_told_that_it_has_no_threads_and_ends(store):
    with Loader(store, MIXTURE) as loader:
        next(loader)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                next(loader)
            except LoaderError as error:
                code = 0 if "do not survive a fork" in str(error) else 2
            del loader
            os._exit(code)
        start = time.monotonic()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert time.monotonic() - start < 5
        assert next(loader).step == 1


def empty_pipes(pipes, until):
    """Lets whoever waits at one of them go on, and find nothing there."""
    while not until.wait(0.05):
        for pipe in pipes:
            try:
                os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:
                pass  # Nobody waits at this one.


def test_ctrl_c_ends_a_wait_and_other_threads_run_meanwhile(store, tmp_path):
    # Shards that never come: opening a pipe waits for whoever writes into it.
    stuck = tmp_path / "store"
    shutil.copytree(store, stuck)
    shards = list(stuck.glob("*/shards/*.parquet"))
    for shard in shards:
        shard.rename(shard.with_suffix(".real"))
        os.mkfifo(shard)
    # What is started in the background of a script ignores the signal, and Python keeps it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Loader(stuck, MIXTURE) as loader:
        threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            next(loader)
        assert time.monotonic() - start < 2
        assert loader.state_dict()["step"] == 0
        # The shards are there again; those who wait at a pipe, now or in a moment, find it empty.
        for shard in shards:
            shard.rename(shard.with_suffix(".pipe"))
            shard.with_suffix(".real").rename(shard)
        told = threading.Event()
        threading.Thread(target=empty_pipes, args=([shard.with_suffix(".pipe") for shard in shards], told), daemon=True).start()
        with pytest.raises(LoaderError, match=r"(?s)cannot read.*\n  caused by: "):
            take(loader, 4)
        told.set()
