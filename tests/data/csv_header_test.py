import csv
import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankclip_jax.data.csv_header import MAX_RECORD, Header, read_header
from tests.data.examples import put


@pytest.mark.parametrize(
  "text, header",
  [
    ("filepath\ttitle\na\tb", Header("\t", 2, 0, 1, 15)),
    ("caption|n|image\r\n", Header("|", 3, 2, 0, 17)),
    ('\ufeff"image";"caption"\na;b', Header(";", 2, 0, 1, 21)),
    ("\n\nimage,caption", Header(",", 2, 0, 1, 15)),
    # A line break within quotes, and delimiters of other kinds.
    ('"a\nb|c;d",title,image\nx', Header(",", 3, 2, 1, 22)),
  ],
)
def test_delimiter_columns_and_end(tmp_path, remote, text, header):
  for folder in (tmp_path, remote):
    assert read_header(put(f"{folder}/a.csv", text)) == header


@pytest.mark.parametrize(
  "text, message",
  [
    ("", "expected a first line with one column of filepath or image .* got ''"),
    ("path,text\na,b\n", r"and one of title or caption, .* got 'path,text'; rename"),
    ("images/0.png,a dog\n", "expected a first line"),
    ("image,filepath,title\na,b,c\n", "expected a first line"),
    ("image,image,title\na,b,c\n", "expected a first line"),
    ("image,caption,title\na,b,c\n", "expected a first line"),
    ("image,caption\na,b\n".encode("utf-16"), "expected a first line"),
    ("a" * MAX_RECORD + ",image,caption", "got 'a{200}';"),
  ],
)
def test_others_are_refused(tmp_path, text, message):
  path = put(tmp_path / "a.csv", text)
  with pytest.raises(ValueError, match=message) as error:
    read_header(path)
  assert str(error.value).startswith(f"{path}: ")


def test_columns_may_be_named(tmp_path):
  path = put(tmp_path / "a.csv", "image;alt, text;caption;photo, big;image\n")
  header = read_header(path, image_key="photo, big", caption_key="alt, text")
  assert header == Header(";", 5, 3, 1, 41)
  # The others keep their known names, of which there must be one.
  assert read_header(path, image_key="photo, big").caption == 2
  with pytest.raises(ValueError, match=r"one column of filepath or image and one of alt"):
    read_header(path, caption_key="alt, text")
  for keys in ({"image_key": "photo"}, {"image_key": "image"}, {"caption_key": "alt"}):
    (name,) = keys.values()
    with pytest.raises(ValueError, match=f"one (column )?of {name}.* got 'image;alt, te"):
      read_header(path, **keys)


NAME = st.text(
  st.sampled_from(",;|\t\"'\n ") | st.characters(codec="utf-8", exclude_characters="\r"),
  max_size=8,
).filter(lambda name: name not in ("image", "filepath", "title", "caption"))


@given(
  others=st.lists(NAME, max_size=5),
  image=st.sampled_from(["image", "filepath"]),
  caption=st.sampled_from(["caption", "title"]),
  delimiter=st.sampled_from(",\t;|"),
  quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
  end=st.sampled_from(["\n", "\r\n"]),
  bom=st.booleans(),
  draw=st.data(),
)
@settings(
  max_examples=150,
  deadline=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_columns_are_found_among_any_others(
  tmp_path, others, image, caption, delimiter, quoting, end, bom, draw
):
  names = draw.draw(st.permutations([*others, image, caption]))
  out = io.StringIO(newline="")
  csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=end).writerow(
    names
  )
  first = out.getvalue().encode("utf-8-sig" if bom else "utf-8")
  row = delimiter.join("x" * len(names)).encode()
  header = read_header(put(tmp_path / "a.csv", first + row))
  assert header == Header(
    delimiter, len(names), names.index(image), names.index(caption), len(first)
  )
