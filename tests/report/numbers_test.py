"""Which headline numbers have a card."""

from rankclip_jax import report


def test_no_metric_crowds_out_another_and_no_title_is_there_twice(
  tmp_path, make_workdir, open_page
):
  names = ("image_retrieval_recall@1", "text_retrieval_recall@1", "acc1", "modality_gap")
  results = {
    (f"set{i}", task): dict.fromkeys(
      [*names, "image_retrieval_recall@10", "text_retrieval_recall@10"], 0.5
    )
    for i in range(9)
    for task in ("zeroshot_retrieval", "zeroshot_retrieval_main_caption")
  }
  tau = {f"rank_consistency_{kind}_modal_kendall_tau": 0.25 for kind in ("in", "cross")}
  results["imagenet1k", "geometry"] = tau
  page = open_page(report.build([make_workdir(results=results)], tmp_path / "out"))
  cards = [
    (page.text(card.find("h3")), page.text(card.find("small")))
    for card in page.by_class("card")
  ]
  assert len(cards) == len(set(cards)) == 12
  titles = [title for title, _ in cards]
  assert titles.count("Modality gap") == 1
  assert {"Cross-modal rank agreement τ", "In-modal rank agreement τ"} <= set(titles)
  assert titles.count("Text → image recall@1") == 2
