"""Every shard opens in each reader, with the rows that its manifest promises and the bytes that its digests name."""

import io
import json

import datasets
import duckdb
import polars
import pyarrow.parquet as pq
import pytest
import soundfile
from blake3 import blake3
from PIL import Image

from scores import lang_of, score_of


def digests_of(media) -> list[str]:
    return [blake3(bytes(m)).hexdigest() for m in media]


@pytest.fixture
def wanted(corpus):
    """What pyarrow reads, per shard: the other readers must agree with it."""
    return {path: pq.read_table(path) for _, path in corpus.shards}


def test_pyarrow_reads_rows_types_and_footer(corpus):
    assert corpus.shards
    for entry, path in corpus.shards:
        file = pq.ParquetFile(path)
        assert file.metadata.num_rows == entry["n_rows"]
        assert file.metadata.num_row_groups == entry["n_row_groups"]
        assert blake3(path.read_bytes()).hexdigest() == entry["digest"]
        table = file.read()
        media = table[corpus.medium].combine_chunks()
        assert [str(f.type) for f in media.type] == ["binary", "string"]
        assert sum(len(m["bytes"].as_py()) for m in media) == entry["media_bytes"]
        assert [len(m["bytes"].as_py()) for m in media] == table["bytes_len"].to_pylist()
        assert digests_of(m["bytes"].as_py() for m in media) == table["digest"].to_pylist()
        assert set(table["split"].to_pylist()) == {entry["split"]}
        assert len(set(table["key"].to_pylist())) == entry["n_rows"]
        footer = {k.decode(): v.decode() for k, v in file.metadata.metadata.items()}
        assert footer["imp.schema_version"] == corpus.manifest["schema_version"]
        assert footer["imp.n_rows"] == str(entry["n_rows"])
        assert footer["imp.tokenizer"] == corpus.manifest["tokenizer"]["digest"]
        assert json.loads(footer["huggingface"])["info"]["features"][corpus.medium]["_type"] == corpus.medium.capitalize()
        assert all(caption for captions in table["captions"].to_pylist() for caption in captions)
        # Lists of several labels; these records have one each.
        assert [str(table[name].type) for name in ("labels", "label_ids")] == ["list<item: string>", "list<item: int32>"]
        assert table["labels"].null_count == table["label_ids"].null_count == entry["n_rows"]


def test_pyarrow_reads_the_rejects(corpus):
    reasons = [reason for path in corpus.rejects for reason in pq.read_table(path)["reason"].to_pylist()]
    assert {reason: reasons.count(reason) for reason in reasons} == corpus.manifest["n_rejected"]
    if corpus.name == "world-image":
        assert sorted(reasons) == ["missing_file", "unknown_format"]


def test_duckdb_reads_media_as_a_struct_of_a_blob_and_a_name(corpus, wanted):
    for entry, path in corpus.shards:
        medium = corpus.medium
        kind, n = duckdb.sql(f"select typeof(any_value({medium})), count(*) from '{path}'").fetchall()[0]
        assert kind == "STRUCT(bytes BLOB, path VARCHAR)"
        assert n == entry["n_rows"]
        rows = duckdb.sql(f"select key, {medium}.bytes, captions, label from '{path}' order by file_row_number").fetchall()
        table = wanted[path]
        assert [row[0] for row in rows] == table["key"].to_pylist()
        assert digests_of(row[1] for row in rows) == table["digest"].to_pylist()
        assert [row[2] for row in rows] == table["captions"].to_pylist()
        # A look-up by key, which the Bloom filter and the page index serve.
        key = table["key"][0].as_py()
        assert duckdb.execute(f"select count(*) from '{path}' where key = ?", [key]).fetchall() == [(1,)]
        classes = dict(duckdb.sql(f"select label, count(*) from '{path}' group by label").fetchall())
        assert sum(classes.values()) == entry["n_rows"]
        assert set(classes) <= set(corpus.manifest["classes"])


def test_polars_reads_media_as_a_struct_of_binary_and_text(corpus, wanted):
    for entry, path in corpus.shards:
        frame = polars.read_parquet(path)
        assert frame.schema[corpus.medium] == polars.Struct({"bytes": polars.Binary, "path": polars.String})
        assert frame.height == entry["n_rows"]
        table = wanted[path]
        media = frame[corpus.medium].struct.field("bytes").to_list()
        assert digests_of(media) == table["digest"].to_pylist()
        assert frame["tokens"].to_list() == table["tokens"].to_pylist()
        lazy = polars.scan_parquet(path).filter(polars.col("bytes_len") > 0).select("key").collect()
        assert lazy["key"].to_list() == table["key"].to_pylist()


def test_added_columns_open_in_each_reader_and_join_with_the_shards_by_file_name_and_row(corpus, tmp_path):
    assert corpus.side_tables
    shards = [str(path) for _, path in corpus.shards]
    tables = [str(path) for _, path in corpus.side_tables]
    for entry, path in corpus.side_tables:
        assert blake3(path.read_bytes()).hexdigest() == entry["digest"]
        table = pq.read_table(path)
        assert table.column_names == ["shard", "row", "score", "lang"]
        assert [str(field.type) for field in table.schema] == ["string", "int64", "float", "string"]
        ids = [(shard["digest"], row) for shard in entry["shards"] for row in range(shard["n_rows"])]
        assert list(zip(table["shard"].to_pylist(), table["row"].to_pylist())) == ids
        frame = polars.read_parquet(path)
        assert frame["score"].to_list() == table["score"].to_pylist()
        loaded = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=tmp_path)
        assert loaded["lang"][:] == table["lang"].to_pylist()
    joined = duckdb.sql(
        f"""
        select s.bytes_len, a.score, a.lang
        from read_parquet({shards}, filename = true, file_row_number = true) s
        left join read_parquet({tables}) a
          on a.shard = parse_filename(s.filename, true) and a.row = s.file_row_number
        """
    ).fetchall()
    assert len(joined) == sum(entry["n_rows"] for entry, _ in corpus.shards)
    assert all((score, lang) == (score_of(size), lang_of(size)) for size, score, lang in joined)
    assert any(score is not None for _, score, _ in joined)


@pytest.fixture
def train(corpus, tmp_path):
    return datasets.load_dataset("parquet", data_files={"train": corpus.files("train")}, split="train", cache_dir=tmp_path)


def test_hugging_face_recognises_the_medium_by_the_shard_alone(corpus, train):
    n_rows = sum(entry["n_rows"] for entry, _ in corpus.shards if entry["split"] == "train")
    assert train.num_rows == n_rows
    feature = {"image": datasets.Image, "video": datasets.Video, "audio": datasets.Audio}[corpus.medium]
    assert isinstance(train.features[corpus.medium], feature)
    raw = train.cast_column(corpus.medium, feature(decode=False))
    for row in raw:
        medium = row[corpus.medium]
        assert set(medium) == {"bytes", "path"} and len(medium["bytes"]) == row["bytes_len"]
        # Players tell the format by the name.
        assert medium["path"].endswith((".jpg", ".mp4", ".wav", ".flac"))
        if corpus.medium == "image":
            assert Image.open(io.BytesIO(medium["bytes"])).size == (row["width"], row["height"])
        elif corpus.medium == "audio":
            samples, rate = soundfile.read(io.BytesIO(medium["bytes"]))
            assert (rate, len(samples)) == (row["sampling_rate"], row["num_samples"])
        else:
            assert medium["bytes"][4:8] == b"ftyp"


def test_hugging_face_shows_pictures_as_pictures(corpus, train):
    if corpus.medium != "image":
        # Films and sounds decode through torch, whose wheel with CUDA is larger than all else together.
        assert type(train.features[corpus.medium]).__name__ in ("Video", "Audio")
        return
    for row in train:
        assert isinstance(row["image"], Image.Image)
        assert row["image"].size == (row["width"], row["height"])


def test_hugging_face_streams_what_it_loads(corpus, train):
    stream = datasets.load_dataset("parquet", data_files=corpus.files("train"), split="train", streaming=True)
    stream = stream.decode(False)
    assert [row["key"] for row in stream] == train["key"][:]
