from rankclip_jax.data import bars


def test_a_bar_is_shown_on_terminals_alone(monkeypatch, capsys):
  for terminal in (False, True):
    monkeypatch.setenv("TTY_COMPATIBLE", str(int(terminal)))
    for wanted in (False, True):
      with bars.bar("indexing", 10, shown=wanted) as show:
        show(10)
      shown = capsys.readouterr()
      assert ("indexing" in shown.err) == (terminal and wanted)
      assert not shown.out
