import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankclip_jax.data.parquet_footer import read_footer
from rankclip_jax.data.parquet_source import ParquetSource


def footer_of(path, columns, **keys):
  table = columns if isinstance(columns, pa.Table) else pa.table(columns)
  pq.write_table(table, path, row_group_size=2)
  with pq.ParquetFile(path) as file:
    return read_footer(file, "a.parquet", **keys)


COLUMNS = {
  "text": ["text"],
  "title": ["title"],
  "caption": [7],
  "alt": ["alt"],
  "alts": [["alt", "another"]],
  "image": [b"bytes"],
  "path": ["x.png"],
  "photo": [b"photo"],
  "struct": [{"bytes": b"within", "path": "y.png"}],
  "empty": [{"path": "y.png"}],
  "where": ["z.png"],
}


@pytest.mark.parametrize(
  "keys, chosen",
  [
    ({}, ("image", "bytes", "title")),
    ({"caption_key": "alt"}, ("image", "bytes", "alt")),
    ({"caption_key": "alts"}, ("image", "bytes", "alts")),
    ({"image_key": "photo"}, ("photo", "bytes", "title")),
    ({"image_key": "struct"}, ("struct", "struct", "title")),
    ({"image_key": "where"}, ("where", "path", "title")),
    ({"image_key": "where", "caption_key": "alt"}, ("where", "path", "alt")),
  ],
)
def test_columns_are_chosen_by_name_and_type(tmp_path, keys, chosen):
  path = tmp_path / "a.parquet"
  assert footer_of(path, COLUMNS, **keys)[1:] == chosen
  (tmp_path / "z.png").write_bytes(b"beside")
  (example,) = ParquetSource(path, strict=True, **keys)
  pictures = {"bytes": COLUMNS[chosen[0]][0], "struct": b"within", "path": b"beside"}
  assert example.image == pictures[chosen[1]]
  assert example.captions[0] == chosen[2].removesuffix("s")


@pytest.mark.parametrize(
  "keys, message",
  [
    ({"caption_key": "caption"}, "captions in caption, got text: string, title: string"),
    ({"caption_key": "nothing"}, "captions in nothing, got text: string, title: string"),
    (
      {"image_key": "nothing"},
      "bytes in a column nothing or as paths in nothing, .* got",
    ),
    ({"image_key": "caption"}, "caption, and captions in caption or title or text, got"),
    ({"image_key": "alts"}, "bytes in a column alts .*, got text: string"),
    ({"image_key": "empty"}, "bytes in a column empty .*, got text: string"),
  ],
)
def test_unknown_columns_are_refused_by_those_there_are(tmp_path, keys, message):
  path = tmp_path / "a.parquet"
  with pytest.raises(ValueError, match=f"^a.parquet: expected pictures .*{message}"):
    footer_of(path, COLUMNS, **keys)
  with pytest.raises(ValueError, match=f"{path}: expected pictures .*{message}"):
    ParquetSource(path, **keys)


@pytest.mark.parametrize("name", ["image", "title"])
def test_without_known_names_none_are_chosen(tmp_path, name):
  gone = (name, "path", "text")
  columns = {k: v for k, v in COLUMNS.items() if k not in gone}
  message = (
    r"a.parquet: expected .* rename the columns, or say which they are \(image_key"
  )
  with pytest.raises(ValueError, match=message):
    footer_of(tmp_path / "a.parquet", columns)
  # Also among good files: these are not the columns that were meant.
  pq.write_table(pa.table(COLUMNS), tmp_path / "b.parquet")
  with pytest.raises(ValueError, match="a.parquet: expected"):
    ParquetSource(f"{tmp_path}/[ab].parquet")


def test_columns_of_one_name_are_none(tmp_path):
  columns = [[b"x"], ["a"], ["b"]]
  table = pa.table(columns, ["image", "caption", "caption"])
  with pytest.raises(ValueError, match="a.parquet: expected pictures .* captions"):
    footer_of(tmp_path / "a.parquet", table)
  table = table.append_column("title", pa.array(["c"]))
  assert footer_of(tmp_path / "a.parquet", table).caption == "title"
  assert ParquetSource(tmp_path / "a.parquet")[0].captions == ("c",)


@pytest.mark.parametrize("struct", [True, False])
def test_sizes_are_of_what_is_read(tmp_path, struct):
  pictures = [b"x" * 1000, b"y" * 1000, None]
  image = [{"bytes": p, "path": None} for p in pictures] if struct else pictures
  columns = {"more": [bytes(20_000)] * 3, "image": image, "caption": ["a", "b", "c"]}
  footer = footer_of(tmp_path / "a.parquet", columns)
  rows, sizes = footer.row_groups().reshape(2, -1).tolist()
  assert rows == [2, 1]
  assert 2000 < sizes[0] < 10_000
  assert 0 < sizes[1] < 1000
  assert [footer.null_pictures(number) for number in (0, 1)] == [False, True]
