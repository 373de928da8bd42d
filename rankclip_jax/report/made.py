"""Pictures that other modes drew with a run: attention maps, search panels."""

from collections.abc import Mapping, Sequence

from rankclip_jax.report import markup
from rankclip_jax.report.pictures import Picture
from rankclip_jax.report.run import Run

_TITLES: Mapping[str, str] = {
  "attention": "Attention maps",
  "search": "Search panels",
}


def section(runs: Sequence[Run]) -> str:
  """The pictures by kind and run; "" without any."""
  body = "".join(
    f"<h3>{title}</h3>{figures}"
    for folder, title in _TITLES.items()
    if (figures := "".join(_of_run(runs, place, folder) for place in range(len(runs))))
  )
  if not body:
    return ""
  return markup.section("made", "Made with this run", "", body)


def _of_run(runs: Sequence[Run], place: int, folder: str) -> str:
  mine = [p for p in runs[place].pictures if p.folder == folder]
  figures = [_figure(runs, place, p, p.data) for p in mine if p.data is not None]
  broken = "".join(_broken(runs[place], p) for p in mine if p.unreadable)
  readable = sum(not picture.unreadable for picture in mine)
  more = (
    f'<p class="note">Shown are {len(figures)} of {readable} of'
    f" {markup.run_label(runs, place)} in"
    f" <code>{markup.escape(runs[place].workdir / folder)}</code>: the page has no room"
    " for the others.</p>"
    if len(figures) < readable
    else ""
  )
  shown = f'<div class="drawn">{"".join(figures)}</div>' if figures else ""
  return broken + shown + more


def _broken(run: Run, picture: Picture) -> str:
  return (
    f'<p class="absent"><b>{markup.escape(run.name)}</b>:'
    f" <code>{markup.escape(f'{picture.folder}/{picture.name}.png')}</code> cannot be"
    f" read: {markup.escape(picture.unreadable)}.</p>\n"
  )


def _figure(runs: Sequence[Run], place: int, picture: Picture, data: bytes) -> str:
  alt = f"{picture.name}, by {runs[place].name}"
  return (
    f"<figure><figcaption>{markup.run_label(runs, place)}"
    f" <span>{markup.escape(picture.name)}</span></figcaption>"
    f'<div class="wide">{markup.png(data, alt)}</div></figure>\n'
  )
