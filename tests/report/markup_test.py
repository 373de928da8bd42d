"""How numbers are written, and how pixels get into the page."""

import base64
import io
import math

import numpy as np
import pytest
from PIL import Image

from rankclip_jax.report import markup


@pytest.mark.parametrize(
  "metric, value, expected",
  [
    ("image_retrieval_recall@1", 0.12345, "12.35 %"),
    ("acc5", 1, "100.00 %"),
    ("lp_acc1", 0.5, "50.00 %"),
    ("mean_per_class_recall", 0.25, "25.00 %"),
    ("rank_consistency_in_modal_top10_overlap", 0.4, "40.00 %"),
    ("text_retrieval_median_rank", 12.0, "12.0"),
    ("uniformity", -2.31456, "−2.3146"),  # noqa: RUF001
    ("modality_gap", -0.00001, "0.0000"),
    ("acc1", None, "–"),  # noqa: RUF001
    ("alignment", math.nan, "–"),  # noqa: RUF001
  ],
)
def test_metric_value(metric, value, expected):
  assert markup.metric_value(metric, value) == expected


@pytest.mark.parametrize(
  "metric, first, second, expected",
  [
    ("acc1", 0.25, 0.375, "+12.50 pp"),
    ("acc1", 0.375, 0.25, "−12.50 pp"),  # noqa: RUF001
    ("acc1", 0.25, 0.25, "0.00 pp"),
    ("image_retrieval_mean_rank", 9.0, 4.5, "−4.5"),  # noqa: RUF001
    ("modality_gap", 0.5, 0.75, "+0.2500"),
    ("modality_gap", 0.5, None, "–"),  # noqa: RUF001
    ("modality_gap", math.nan, 0.5, "–"),  # noqa: RUF001
  ],
)
def test_metric_difference(metric, first, second, expected):
  assert markup.metric_difference(metric, first, second) == expected


def test_escape_covers_attributes():
  assert markup.escape("<a b=\"c\" d='e'>&") == (
    "&lt;a b=&quot;c&quot; d=&#x27;e&#x27;&gt;&amp;"
  )


def test_thumbnails_keep_their_picture_and_are_no_larger_than_shown():
  pixels = np.zeros((144, 144, 3), np.uint8)
  pixels[:, :72] = (250, 10, 10)
  pixels[:, 72:] = (10, 10, 250)
  tag = markup.Thumbnails()(pixels, 'a "title"')
  assert 'alt="a &quot;title&quot;" title="a &quot;title&quot;"' in tag
  data = tag.partition("base64,")[2].partition('"')[0]
  picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
  assert picture.size == (72, 72)
  shown = np.asarray(picture, np.int32)
  assert np.abs(shown[:, :30] - (250, 10, 10)).max() < 20
  assert np.abs(shown[:, 42:] - (10, 10, 250)).max() < 20
