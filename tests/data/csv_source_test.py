import concurrent.futures
import csv
import io
import os
import pathlib

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from rankclip_jax.data import pipeline, tokenizer
from rankclip_jax.data.csv_source import CsvSource

COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]


@pytest.fixture
def folder(tmp_path):
  """A folder with images/0.png to 2.png, each of one colour and a size of its own."""
  (tmp_path / "images").mkdir()
  for i, colour in enumerate(COLOURS):
    Image.new("RGB", (i + 1, 2), colour).save(tmp_path / f"images/{i}.png")
  return tmp_path


def write(path: pathlib.Path, data: bytes | str) -> pathlib.Path:
  path.write_bytes(data if isinstance(data, bytes) else data.encode())
  return path


@pytest.mark.parametrize(
  "text",
  [
    "filepath\ttitle\nimages/0.png\ta, b\nimages/1.png\tc | d; e\n",
    'image,caption\r\nimages/0.png,"a, b"\r\nimages/1.png,c | d; e\r\n',
    '\ufeff"image";"caption"\nimages/0.png;a, b\nimages/1.png;"c | d; e"',
    'caption|n|image\n\na, b|1|images/0.png\n\n"c | d; e"|2|images/1.png\n\n\n',
    ',filepath,caption\n0,images/0.png,"a, b"\n1,images/1.png,c | d; e\n',
  ],
  ids=["open_clip", "rankclip", "bom", "order_and_blank_lines", "pandas_index"],
)
def test_delimiter_and_columns_are_read_off_the_first_line(folder, text):
  source = CsvSource(write(folder / "pairs", text))
  assert [(e.key, e.captions) for e in source] == [
    ("images/0.png", ("a, b",)),
    ("images/1.png", ("c | d; e",)),
  ]
  for i, example in enumerate(source):
    np.testing.assert_array_equal(example.image, np.full((2, i + 1, 3), COLOURS[i]))
    assert example.image.dtype == np.uint8


# Whatever text there is, and often what delimits, quotes and ends lines. U+2028 and
# U+0085 end lines for str.splitlines, and for no CSV.
TEXT = st.text(
  st.sampled_from(",;|\t\"'\n\r \u2028\u0085\ufeffé😀") | st.characters(codec="utf-8"),
  min_size=1,
  max_size=12,
).filter(str.strip)


@given(
  captions=st.lists(TEXT, min_size=1, max_size=6),
  delimiter=st.sampled_from(",\t;|"),
  quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
  end=st.sampled_from(["\n", "\r\n"]),
  bom=st.booleans(),
)
@settings(
  max_examples=200,
  deadline=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_every_text_comes_back(folder, captions, delimiter, quoting, end, bom):
  # Python's writer leaves a lone \r without quotes where it does not end lines.
  assume(quoting == csv.QUOTE_ALL or end == "\r\n" or "\r" not in "".join(captions))
  out = io.StringIO(newline="")
  writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=end)
  writer.writerow(["title", "filepath"])
  writer.writerows([caption, "images/0.png"] for caption in captions)
  data = out.getvalue().encode("utf-8-sig" if bom else "utf-8")
  source = CsvSource(write(folder / "pairs.csv", data))
  assert [e.captions for e in source] == [(caption,) for caption in captions]
  # Also out of order: every row is found by itself.
  assert source[len(captions) - 1].captions == (captions[-1],)


@pytest.mark.parametrize(
  "text, message",
  [
    ("", "expected a first line with one column of filepath or image .* got ''"),
    ("path,text\na,b\n", r"got 'path,text\\n'"),
    ("images/0.png,a dog\n", "expected a first line"),
    ("image,filepath,title\na,b,c\n", "expected a first line"),
    ("image,caption\n\n", "names columns but has no rows"),
    ("image,caption\na,b\nc\n", "line 3: expected the 2 fields .* got 1"),
    ('image,caption\n\na,"b\nb"\nc,d,e\n', "line 5: .* got 3"),
    (
      "image,caption\na,b\nc, \n",
      "line 3: expected a path and a caption, got 'c' and ' '",
    ),
    ("image,caption\n,b\n", "line 2: expected a path and a caption"),
    ('image,caption\na,b\nc,"d\ne,f\n', "line 3: unexpected end of data; close quotes"),
    ('image,caption\na,"b" c\nd,e\n', "line 2: ',' expected after '\"'; close quotes"),
    (
      "image,caption\na,b\rc,d\n",
      "line 2: new-line .*quote fields that hold line breaks",
    ),
    ("image,caption\na,b\nc,é\n".encode("latin-1"), "line 3: .*utf-8.*convert the file"),
    ("image,caption\na,b\n".encode("utf-16"), "expected a first line"),
  ],
)
def test_damaged_files_are_refused_with_the_line(folder, text, message):
  path = write(folder / "pairs.csv", text)
  with pytest.raises(ValueError, match=message) as error:
    CsvSource(path)
  assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["nothing.csv", "images"])
def test_a_missing_file_is_an_error(folder, name):
  with pytest.raises(ValueError, match=f"There is no file .*{name}"):
    CsvSource(folder / name)


def truncated(folder: pathlib.Path, form: str) -> bytes:
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  Image.fromarray(noise).save(folder / "whole", form)
  data = (folder / "whole").read_bytes()
  return data[: len(data) // 2]


@pytest.mark.parametrize(
  "data",
  [
    lambda folder: None,
    lambda folder: b"",
    lambda folder: b"<html>404</html>",
    lambda folder: truncated(folder, "PNG"),
    lambda folder: truncated(folder, "JPEG"),
    lambda folder: truncated(folder, "WEBP"),
  ],
  ids=["missing", "empty", "html", "png", "jpeg", "webp"],
)
def test_a_bad_picture_is_an_error_that_names_path_and_row(folder, data):
  if (content := data(folder)) is not None:
    write(folder / "bad.img", content)
  source = CsvSource(
    write(folder / "pairs.csv", "image,caption\nimages/1.png,a\nbad.img,b\n")
  )
  assert source[0].captions == ("a",)
  with pytest.raises(ValueError, match=r"pairs.csv, row 2: .*'bad.img'"):
    source[1]


def test_paths_may_be_absolute_and_rows_past_the_end_are_no_rows(folder, tmp_path):
  picture = tmp_path / "images/2.png"
  source = CsvSource(write(folder / "pairs.tsv", f"filepath\ttitle\n{picture}\tblue\n"))
  assert source[0].key == str(picture)
  np.testing.assert_array_equal(source[0].image[0, 0], COLOURS[2])
  for index in (-1, 1):
    with pytest.raises(IndexError, match=f"rows 0 to 0, got {index}"):
      source[index]


def test_a_file_that_changes_is_noticed(folder):
  text = "image,caption\nimages/0.png,red\nimages/1.png,green\n"
  source = CsvSource(path := write(folder / "pairs.csv", text))
  time = path.stat().st_mtime_ns
  write(path, text.replace("images/0", "images/2"))
  os.utime(path, ns=(time, time + 10**9))
  with pytest.raises(ValueError, match="has changed since it was read"):
    source[0]


def test_rows_are_read_from_several_threads_at_once(folder):
  rows = [(f"images/{i % 3}.png", f"line {i},\nand the next") for i in range(300)]
  with (folder / "pairs.csv").open("w", newline="") as file:
    csv.writer(file).writerows([("image", "caption"), *rows])
  source = CsvSource(folder / "pairs.csv")
  order = np.random.default_rng(0).permutation(300).tolist()
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for i, example in zip(order, pool.map(source.__getitem__, order), strict=True):
      assert (example.key, example.captions) == (rows[i][0], (rows[i][1],))
      assert tuple(example.image[0, 0]) == COLOURS[i % 3]


def test_it_trains(folder):
  text = "image,caption\n" + "".join(f"images/{i % 3}.png,{i % 3}\n" for i in range(10))
  words = tokenizer.Tokenizer(8)
  (batch,) = pipeline.train_batches(
    CsvSource(write(folder / "pairs.csv", text)),
    image_size=4,
    tokenizer=words,
    augment_scale=None,
    global_batch=10,
    num_steps=1,
    seed=0,
  )
  assert sorted(batch["id"]) == list(range(10))
  for image, tokens, index in zip(
    batch["image"], batch["tokens"], batch["id"], strict=True
  ):
    np.testing.assert_array_equal(image, np.full((4, 4, 3), COLOURS[index % 3]))
    np.testing.assert_array_equal(tokens, words([str(index % 3)])[0])
