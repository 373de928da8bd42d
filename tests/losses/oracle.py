"""The losses in float64 numpy, with gradients by hand, and data to compare them on."""

import math
from typing import Any

import jax
import numpy as np


def assert_close(actual, expected, rtol=1e-5, floor=1e-35):
  """Every array of two trees, to `rtol` of its largest expected magnitude.

  `floor` is the rounding of the numbers that an expected number is the difference of.
  """
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  named, _ = jax.tree_util.tree_flatten_with_path(expected)
  for x, (name, y) in zip(jax.tree.leaves(actual), named, strict=True):
    x, y = np.asarray(x, float), np.asarray(y, float)
    atol = max(rtol * np.abs(y).max(initial=0.0), floor)
    np.testing.assert_allclose(
      x, y, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(name)
    )


def order_of(reference, place=None, where=None):
  """Items that exist, from high to low, ties by `place`, by default the index."""
  place = range(len(reference)) if place is None else place
  items = [i for i in range(len(reference)) if where is None or where[i]]
  return sorted(items, key=lambda i: (-reference[i], place[i]))


def nll_and_gradient(
  scores, reference, *, decay="none", top_k=None, eps=None, where=None, place=None
):
  """-log likelihood of one list, position after position, and its gradient."""
  scores = np.asarray(scores, float)
  order = order_of(reference, place, where)
  value, gradient = 0.0, np.zeros(len(scores))
  for k, first in enumerate(order[:top_k]):
    rest = order[k:]
    top = scores[rest if eps is None else order].max()
    e = np.exp(scores[rest] - top)
    mass = e.sum() + (eps or 0.0)
    mu = 1.0 if decay == "none" else 1.0 / math.log(k + 2)
    value += mu * (math.log(mass) + top - scores[first])
    gradient[rest] += mu * e / mass
    gradient[first] -= mu
  if eps is not None:  # the maximum that is subtracted has a gradient, split among ties
    best = [i for i in order if scores[i] == scores[order].max()]
    gradient[best] -= gradient.sum() / len(best)
  return value, gradient


def consistency(a, b, *, long=False, **options):
  """The mean over positions and both directions of one pair of lists; gradients."""
  nll = nll_and_gradient_of_long if long else nll_and_gradient
  of_a, a_bar = nll(a, b, **options)
  of_b, b_bar = nll(b, a, **options)
  where, top_k = options.get("where"), options.get("top_k")
  items = len(a) if where is None else int(np.sum(where))
  half = 0.5 / min(items, top_k or items)
  return half * (of_a + of_b), half * a_bar, half * b_bar


def nll_and_gradient_of_long(scores, reference, *, decay="none", place=None):
  """As `nll_and_gradient`, whose time grows with the square of the length."""
  place = np.arange(len(reference)) if place is None else place
  order = np.lexsort((place, -reference))
  p = np.asarray(scores, float)[order]
  k = np.arange(1, len(p) + 1)
  mu = np.ones(len(p)) if decay == "none" else 1.0 / np.log(k + 1)
  log_mass = np.logaddexp.accumulate(p[::-1])[::-1]
  gradient = np.empty(len(p))
  gradient[order] = np.exp(p + np.logaddexp.accumulate(np.log(mu) - log_mass)) - mu
  return mu @ (log_mass - p), gradient


def objective(objective, params, *, w=1.0, ids=None, place=None, first=None, long=False):
  """Loss, terms and gradients of an `Objective` over the whole batch.

  Args:
    w: the rank weight.
    ids: what a row shows; other rows of the same id do not exist for it, and with several
      kinds of ids [rows, kinds] those that agree in any.
    place: an order of the items by which ties go; None is the index.
    first: the first anchor, where anchor_stride > 1.
    long: in time N^2 log N, for whole lists without ids or eps.
  """
  params = {k: np.asarray(v, float) for k, v in params.items()}
  v, t, s = params["image"], params["text"], np.exp(params["log_scale"])
  n, eye = len(v), np.eye(len(v), dtype=bool)
  where = np.ones((n, n), bool)
  if ids is not None:
    kinds = np.reshape(ids, (n, -1))
    where = eye | ~(kinds[:, None] == kinds[None]).any(-1)
  cosine = {"it": v @ t.T, "ti": t @ v.T, "ii": v @ v.T, "tt": t @ t.T}
  by_cosine, by_logits = ({k: np.zeros((n, n)) for k in cosine} for _ in range(2))
  terms, bar = {}, {}

  if objective.contrastive == "softmax":
    rows = 0.0
    for name in ("it", "ti"):
      logits = np.where(where, s * cosine[name], -np.inf)
      logits = logits - logits.max(1, keepdims=True)
      mass = np.exp(logits).sum(1, keepdims=True)
      rows += 0.5 * (np.log(mass)[:, 0] - np.diag(logits))
      by_logits[name] += 0.5 / n * (np.exp(logits) / mass - eye)
  else:
    z = 2.0 * eye - 1.0
    x = z * (s * cosine["it"] + params["bias"])
    rows = np.where(where, np.logaddexp(0.0, -x), 0.0).sum(1)
    by_logits["it"] += np.where(where, -z / (1.0 + np.exp(x)), 0.0) / n
    bar["bias"] = by_logits["it"].sum()
  terms["contrastive_loss"] = loss = np.mean(rows)

  rank_loss = 0.0
  for name, (x, y) in {"cross_modal": ("it", "ti"), "in_modal": ("ii", "tt")}.items():
    if weight := getattr(objective, f"{name}_weight"):
      stride, values = objective.anchor_stride, np.zeros(n)
      for i in range(first or 0, n, stride):
        options: dict[str, Any] = dict(decay=objective.decay, place=place)
        if not long:
          options |= dict(top_k=objective.top_k, eps=objective.eps, where=where[i])
        values[i], x_bar, y_bar = consistency(
          s * cosine[x][i], s * cosine[y][i], long=long, **options
        )
        by_logits[x][i] += w * weight * stride / n * x_bar
        by_logits[y][i] += w * weight * stride / n * y_bar
      terms[f"{name}_loss"] = stride * values.mean()
      rank_loss += w * weight * terms[f"{name}_loss"]
    if weight := getattr(objective, f"cyclic_{name}_weight"):
      off = np.where(where, cosine[x] - cosine[y], 0.0)
      terms[f"cyclic_{name}_loss"] = np.square(off).sum() / n
      loss += weight * terms[f"cyclic_{name}_loss"]
      by_cosine[x] += 2.0 * weight / n * off
      by_cosine[y] -= 2.0 * weight / n * off
  if objective.ranks:
    terms |= {"rank_loss": rank_loss, "rank_weight": w}

  bar["log_scale"] = sum((by_logits[k] * s * cosine[k]).sum() for k in cosine)
  c = {k: by_cosine[k] + s * by_logits[k] for k in cosine}
  bar["image"] = (c["it"] + c["ti"].T) @ t + (c["ii"] + c["ii"].T) @ v
  bar["text"] = (c["it"].T + c["ti"]) @ v + (c["tt"] + c["tt"].T) @ t
  return loss + rank_loss, terms, bar


# Data.


def unit_rows(x):
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def embeddings(rng, rows, dim, noise=1.0):
  """Pairs whose cosine is 1 / (1 + noise^2) on average, the others' 0."""
  common = rng.normal(size=(rows, dim))
  return [unit_rows(common + noise * rng.normal(size=(rows, dim))) for _ in range(2)]


def smallest_gap(image, text):
  """Between any two neighbours of any sorted list: float32 must not swap them."""
  image, text = image.astype(float), text.astype(float)
  lists = np.concatenate([image @ text.T, text @ image.T, image @ image.T, text @ text.T])
  return np.diff(np.sort(lists, axis=-1), axis=-1).min(initial=np.inf)


def tie_free(seed, rows, dim, scale, noise=1.0) -> dict[str, Any]:
  """Embeddings whose order float32 cannot change, and a temperature."""
  assert rows <= 64, "More rows than this are hardly ever free of near-ties."
  rng = np.random.default_rng(seed)
  image, text = embeddings(rng, rows, dim, noise)
  while smallest_gap(image, text) < 1e-6:
    image, text = embeddings(rng, rows, dim, noise)
  return dict(image=image, text=text, log_scale=np.float32(math.log(scale)))


def tied(seed, rows, dim, scale) -> dict[str, Any]:
  """Multiples of 1/4: cosines are exact in float32, so ties are ties on any device."""
  rng = np.random.default_rng(seed)
  largest = 1 if dim > 5 else 2  # keeps the norms around 1
  image, text = rng.integers(-largest, largest + 1, (2, rows, dim)).astype(np.float32) / 4
  return dict(image=image, text=text, log_scale=np.float32(math.log(scale)))
