"""Where the store and its pages lie, and what the manifests say of the shards."""

import json
from pathlib import Path

import pytest

CORPORA = {"world-image": "image", "world-video": "video", "world-audio": "audio"}


def pytest_addoption(parser):
    parser.addoption("--store", type=Path, required=True)
    parser.addoption("--pages", type=Path, required=True)


class Corpus:
    """The newest snapshot of a corpus, read as anyone could read it: JSON and file names."""

    def __init__(self, store: Path, name: str):
        self.name = name
        self.medium = CORPORA[name]
        self.manifest = json.loads(max((store / name / "manifests").glob("*.json")).read_text())
        self.shards = [(entry, store / name / "shards" / f"{entry['digest']}.parquet") for entry in self.manifest["shards"]]
        tables = self.manifest["side_tables"]
        self.side_tables = [(entry, store / name / "columns" / f"{entry['digest']}.parquet") for entry in tables]
        self.rejects = [store / name / "rejects" / f"{table['digest']}.parquet" for table in self.manifest["rejects"]]

    def files(self, split: str) -> list[str]:
        return [str(path) for entry, path in self.shards if entry["split"] == split]


@pytest.fixture(params=CORPORA)
def corpus(request) -> Corpus:
    return Corpus(request.config.getoption("--store"), request.param)


@pytest.fixture
def page(request, corpus) -> Path:
    return (request.config.getoption("--pages") / f"{corpus.name}.html").resolve()
