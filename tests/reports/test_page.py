"""Pages: they need nothing from outside, carry a mark, and never take the place of a file that is not ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from atonce.core.errors import InputError
from atonce.reports.page import check_page, document, figure, is_page, table, write_page


def test_a_page_of_ours_is_written_and_written_again(tmp_path: Path) -> None:
    out = tmp_path / "below" / "a.html"
    write_page(out, document("one", "<p>1</p>"))
    assert is_page(out)
    write_page(out, document("two", "<p>2</p>"))
    assert "<p>2</p>" in out.read_text()


def test_a_page_of_somebody_else_stays(tmp_path: Path) -> None:
    out = tmp_path / "mine.html"
    out.write_text("<html>precious</html>")
    with pytest.raises(InputError, match=r"mine\.html exists and was not made by atonce: choose another name"):
        write_page(out, document("a", ""))
    assert out.read_text() == "<html>precious</html>"


def test_a_page_that_only_speaks_of_atonce_is_not_ours(tmp_path: Path) -> None:
    out = tmp_path / "a.html"
    out.write_text("<html><p>generator atonce</p></html>")
    assert not is_page(out)


@pytest.mark.parametrize(("name", "words"), [("a.png", r"'\.png'"), ("page", "a name without a suffix")])
def test_a_name_that_is_no_page_is_refused(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(InputError, match=f"{words}.*give NAME.html"):
        check_page(tmp_path / name)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.html").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        check_page(tmp_path / "a.html")


def test_words_are_escaped() -> None:
    assert "<script>" not in document("<script>", "")
    assert "<script>" not in table(("<script>",), [("<script>", "<script>")])
    assert '"x"' not in figure(b"", "<b>", 'say "x"')
