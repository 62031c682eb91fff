"""The page of systems says what the tests prove."""

from published.page import PAGE, page, proofs


def test_the_page_is_made_of_the_marks() -> None:
    assert PAGE.read_text() == page(), "run python tests/support/published/page.py"
    assert "cGAN" in proofs()
