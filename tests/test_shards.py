"""Embeddings as a folder of Parquet files: whole files, nothing twice, and clear refusals."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sktl import PretrainedFeatureTransformer
from sktl.cli import main
from sktl.exceptions import InputError, ShardError

pa = pytest.importorskip("pyarrow", reason='needs pyarrow: pip install "sktl[parquet]"')
import pyarrow.parquet as pq  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402

from sktl.distributed import embed_to_parquet, read_parquet_rows, read_shards  # noqa: E402


@pytest.fixture(scope="module")
def transformer(image_arrays):
    return PretrainedFeatureTransformer(image_size=32, device="cpu").fit(image_arrays[0])


@pytest.fixture
def rows(image_paths):
    paths, labels = image_paths
    return [
        (f"row {number}", path, {"label": str(label)})
        for number, (path, label) in enumerate(zip(paths, labels, strict=True))
    ]


def everything(folder):
    shards = list(read_shards(folder))
    names = [name for shard in shards for name in shard.names]
    return names, np.concatenate([shard.embeddings for shard in shards]), shards


def test_rows_in_order_with_names_hashes_and_further_columns(rows, transformer, image_paths, tmp_path):
    report = embed_to_parquet(iter(rows), tmp_path / "out.parquet", transformer, rows_per_shard=12)
    assert (report.written, report.shards, report.found, report.bad) == (30, 3, 0, [])
    names, embeddings, shards = everything(tmp_path / "out.parquet")
    assert names == [name for name, _, _ in rows]
    np.testing.assert_array_equal(embeddings, transformer.transform(image_paths[0]))
    assert [label for shard in shards for label in shard.columns["label"]] == list(image_paths[1])
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["name", "hash", "error", "embedding", "label"]
    assert len(set(table["hash"].to_pylist())) == 30
    assert transformer.backbone_.view.key.encode() in table.schema.metadata[b"sktl"]


def test_pandas_reads_the_folder(rows, transformer, tmp_path):
    pd = pytest.importorskip("pandas")
    embed_to_parquet(rows, tmp_path / "out.parquet", transformer, rows_per_shard=12)
    frame = pd.read_parquet(tmp_path / "out.parquet")
    assert len(frame) == 30
    assert frame["embedding"][0].shape == (256,)


def test_a_second_run_computes_what_is_new(rows, transformer, tmp_path):
    embed_to_parquet(rows[:14], tmp_path, transformer, rows_per_shard=7)
    report = embed_to_parquet(rows, tmp_path, transformer, rows_per_shard=7)
    assert (report.found, report.written, report.computed, report.shards) == (14, 16, 16, 3)
    assert embed_to_parquet(rows, tmp_path, transformer).written == 0
    assert sorted(everything(tmp_path)[0]) == sorted(name for name, _, _ in rows)


def test_rows_that_cannot_be_read_are_named_and_kept_without_embedding(rows, transformer, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG not really")
    mixed = [*rows[:3], ("broken", str(tmp_path / "broken.png"), {"label": "?"}), *rows[3:5]]
    report = embed_to_parquet(mixed, tmp_path / "out", transformer, rows_per_shard=2)
    assert [(row.index, row.label) for row in report.bad] == [(3, "broken")]
    assert "row 3" in everything(tmp_path / "out")[0]
    assert "broken" not in everything(tmp_path / "out")[0]
    table = pq.read_table(tmp_path / "out")
    assert table.filter(pa.compute.field("name") == "broken")["embedding"].to_pylist() == [None]
    assert embed_to_parquet(mixed, tmp_path / "out", transformer).written == 0


def test_another_backbone_is_refused(rows, transformer, tmp_path):
    embed_to_parquet(rows[:4], tmp_path, transformer)
    other = PretrainedFeatureTransformer("test_resnet", weights=None, image_size=32).fit(["any.png"])
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ShardError, match=r"holds embeddings of 'sktl/tiny'.*and 'test_resnet'"):
        embed_to_parquet(rows, tmp_path, other)
    assert sorted(os.listdir(tmp_path)) == before


def test_columns_may_come_in_any_order(transformer, tmp_path):
    rows = [("a", b"", {"label": 1, "price": 2}), ("b", b"", {"price": 4, "label": 3})]
    embed_to_parquet(rows, tmp_path, transformer)
    table = pq.read_table(tmp_path)
    assert (table["label"].to_pylist(), table["price"].to_pylist()) == ([1, 3], [2, 4])


def test_other_columns_are_refused(rows, transformer, tmp_path):
    embed_to_parquet(rows[:4], tmp_path, transformer)
    with pytest.raises(ShardError, match=r"'row 4' has the further columns \['price'\], where \['label'\] are"):
        embed_to_parquet([("row 4", rows[4][1], {"price": 1.0})], tmp_path, transformer)


def test_a_damaged_shard_is_an_error_that_names_it(rows, transformer, tmp_path):
    embed_to_parquet(rows, tmp_path, transformer, rows_per_shard=10)
    shard = sorted(tmp_path.glob("part-*"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ShardError, match=f"The shard '{shard.name}' in .* cannot be read"):
        list(read_shards(tmp_path))
    with pytest.raises(ShardError, match="Remove it, and run again"):
        embed_to_parquet(rows, tmp_path, transformer)
    shard.unlink()
    assert embed_to_parquet(rows, tmp_path, transformer).written == 10


def test_what_is_asked_for_wrongly(rows, transformer, tmp_path):
    with pytest.raises(NotFittedError):
        embed_to_parquet(rows, tmp_path, PretrainedFeatureTransformer())
    with pytest.raises(ValueError, match="'rows_per_shard' parameter must be an int of at least 1, got 0"):
        embed_to_parquet(rows, tmp_path, transformer, rows_per_shard=0)
    with pytest.raises(InputError, match="Row 0 must be"):
        embed_to_parquet(["a.png"], tmp_path, transformer)
    with pytest.raises(InputError, match="must not be called 'hash'"):
        embed_to_parquet([("a", rows[0][1], {"hash": 1})], tmp_path, transformer)
    with pytest.raises(ShardError, match="There are no embeddings in"):
        list(read_shards(tmp_path / "nothing"))


def test_missing_values_are_rows_that_cannot_be_read(rows, transformer, tmp_path):
    mixed = [rows[0], *((f"nothing {k}", None, {"label": "?"}) for k in range(3)), rows[1]]
    report = embed_to_parquet(mixed, tmp_path, transformer, rows_per_shard=2)
    assert [(row.index, row.reason) for row in report.bad] == [(k, "missing value") for k in (1, 2, 3)]
    assert everything(tmp_path)[0] == ["row 0", "row 1"]


def test_a_file_in_the_place_of_the_folder(rows, transformer, tmp_path):
    (tmp_path / "out.parquet").write_bytes(b"PAR1")
    with pytest.raises(ShardError, match=r"out.parquet' is a file"):
        embed_to_parquet(rows, tmp_path / "out.parquet", transformer)


def test_names_of_files_that_are_no_text(image_folder, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    try:
        (tmp_path / "in" / os.fsdecode(b"caf\xe9.png")).write_bytes((image_folder / "disc" / "0.png").read_bytes())
    except OSError:
        pytest.skip("the file system takes text only")
    assert main(["embed", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--image-size", "32"]) == 0
    assert everything(tmp_path / "out")[0] == ["caf\\udce9.png"]


def test_rows_of_parquet_files(image_paths, transformer, tmp_path):
    paths, labels = image_paths
    contents = [Path(path).read_bytes() for path in paths[:6]]
    table = pa.table({"photo": contents, "label": list(labels[:6]), "price": range(6)})
    pq.write_table(table, tmp_path / "shop.parquet")
    rows = list(read_parquet_rows([tmp_path / "shop.parquet"], "photo", keep=["price"], root=tmp_path))
    assert rows[2][0] == "shop.parquet:2"
    assert [more["price"] for _, _, more in rows] == list(range(6))
    assert len({name for name, _, _ in rows}) == 6
    embed_to_parquet(rows, tmp_path / "out", transformer)
    np.testing.assert_array_equal(everything(tmp_path / "out")[1], transformer.transform(paths[:6]))
    with pytest.raises(InputError, match=r"has no column 'picture'; its columns are \['photo', 'label', 'price'\]"):
        list(read_parquet_rows([tmp_path / "shop.parquet"], "picture"))
    with pytest.raises(InputError, match="has 2 columns that may hold images"):
        list(read_parquet_rows([tmp_path / "shop.parquet"]))
    (tmp_path / "shop.parquet").write_bytes(b"PAR1")
    with pytest.raises(ShardError, match=r"shop.parquet' cannot be read as Parquet"):
        list(read_parquet_rows([tmp_path / "shop.parquet"]))


def test_command_line(image_folder, transformer, tmp_path, capsys):
    command = [
        "embed",
        str(image_folder),
        "--out",
        str(tmp_path / "out"),
        "--image-size",
        "32",
        "--rows-per-shard",
        "8",
    ]
    assert main(command) == 0
    assert "30 rows written" in capsys.readouterr().out
    assert main(command) == 0
    assert "0 rows written" in capsys.readouterr().out
    names, embeddings, _ = everything(tmp_path / "out")
    assert names[0] == "disc/0.png"
    np.testing.assert_array_equal(embeddings, transformer.transform([str(image_folder / name) for name in names]))
    assert main([*command, "--backbone", "test_resnet", "--weights", str(tmp_path / "no.safetensors")]) == 2
    assert main(["embed", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x")]) == 2
    assert "There is no folder or file" in capsys.readouterr().err


def test_command_line_does_not_read_what_it_wrote(image_folder, tmp_path, capsys):
    shutil.copytree(image_folder / "disc", tmp_path / "disc")
    command = ["embed", str(tmp_path / "disc"), "--out", str(tmp_path / "disc" / "out.parquet"), "--image-size", "32"]
    assert main(command) == 0
    assert capsys.readouterr().out.endswith(" in 1 file\n")
    assert main(command) == 0
    assert "0 rows written" in capsys.readouterr().out.splitlines()[-1]


def test_command_line_reads_parquet_and_reports_what_is_broken(image_paths, tmp_path, capsys):
    table = pa.table({"path": [*image_paths[0][:4], str(tmp_path / "gone.png")], "label": list("abcde")})
    pq.write_table(table, tmp_path / "table.parquet")
    command = ["embed", str(tmp_path / "table.parquet"), "--out", str(tmp_path / "out"), "--image-size", "32"]
    assert main([*command, "--column", "path", "--keep", "label"]) == 1
    assert "no such file" in capsys.readouterr().err
    (shard,) = read_shards(tmp_path / "out")
    assert shard.columns == {"label": list("abcd")}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_killed_and_started_again_it_goes_on(image_arrays, tmp_path):
    """What was in finished files is not computed again; the outcome is that of one run."""
    from PIL import Image

    source, out = tmp_path / "pictures", tmp_path / "out"
    source.mkdir()
    pictures = np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), dtype=np.uint8)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(source / f"{number:03d}.png")
    words = ["embed", str(source), "--out", str(out), "--image-size", "32", "--rows-per-shard", "20", "--device", "cpu"]
    process = subprocess.Popen([sys.executable, "-m", "sktl", *words], start_new_session=True)
    try:
        until = time.monotonic() + 90
        while len(list(out.glob("part-*"))) < 2 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL) if hasattr(signal, "SIGKILL") else process.kill()
        process.wait(30)
    n_done = 20 * len(list(out.glob("part-*")))
    assert 40 <= n_done < 300
    transformer = PretrainedFeatureTransformer(image_size=32, device="cpu").fit([str(source / "000.png")])
    rows = [(path.name, str(path)) for path in sorted(source.iterdir())]
    report = embed_to_parquet(rows, out, transformer, rows_per_shard=20)
    assert (report.found, report.written, report.computed) == (n_done, 300 - n_done, 300 - n_done)
    names, embeddings, _ = everything(out)
    assert names == [name for name, _ in rows]
    np.testing.assert_array_equal(embeddings, transformer.transform([path for _, path in rows]))
