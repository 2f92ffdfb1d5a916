"""What a reader reads of a page stays, in order; menus and scripts go; nothing breaks on broken pages."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.data.html import html_text


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<p>One\n  two</p><p>three</p>", "One two\n\nthree"),
        ("<p>One<p>two", "One\n\ntwo"),
        ("a<b>b</b> c<i> d</i>e", "ab c de"),
        ("a&amp;b &lt;p&gt; &eacute;", "a&b <p> é"),
        ("one<br>two<hr>three", "one\ntwo\n\nthree"),
        ("<h1>T</h1>text<ul><li>a<li>b</ul>end", "T\n\ntext\na\nb\nend"),
        ("<ul><li><p>a</p></li><li><p>b</p><p>c</p></li></ul>", "a\nb\n\nc"),
        ("<table><tr><th>x<th>y<tr><td><p>1</p><td><p>2</p></table>", "x y\n1 2"),
        ("<dl><dt>f(x)</dt><dd><p>Does.</p></dd></dl>", "f(x)\nDoes."),
        ("x<script>if (a<b) {}</script><style>p {}</style><nav>menu</nav>y", "xy"),
        ("<header>h</header><main>only <b>this</b></main><p>not", "only this"),
        ("<div>a</div><div role=main>b</div>", "b"),
        ("<script>'<main>'</script><p>all of it", "all of it"),
        ('<div class="sphinxsidebar">s</div><div class="a toc">t</div>b<a class="headerlink">¶</a>', "b"),
        ('<html class="light sidebar-visible"><body class="sidebar">b</body>', "b"),
        ("<p>§ and ¶ stay</p><a>¶</a>", "§ and ¶ stay"),
        ("<!-- c --><!DOCTYPE html><?php ?>t", "t"),
        ("", ""),
    ],
)
def test_pages(page: str, text: str) -> None:
    assert html_text(page) == text


def test_preformatted_text_is_as_it_is() -> None:
    page = "<p>See:</p><pre>\n  def <b>f</b>(x):\n\n\n      return  x\n</pre><p>so</p>"
    assert html_text(page) == "See:\n\n  def f(x):\n\n\n      return  x\n\nso"


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("</p></div></b>text", "text"),
        ("<p>a</div>b", "ab"),
        ("<div><b>a</div>b", "a\nb"),
        ("<<<>>>&&& &#xffffffff; a", "<<<>>>&&& \ufffd a"),
        ("<nav>menu</nav></nav>t", "t"),
    ],
)
def test_broken_pages_are_read(page: str, text: str) -> None:
    assert html_text(page) == text


def test_deep_nesting_and_stray_ends_take_no_time() -> None:
    started = time.perf_counter()
    page = "<div>" * 50_000 + "deep" + "</b>" * 50_000 + "</div>" * 50_000 + "<p>after"
    assert html_text(page) == "deep\n\nafter"
    assert time.perf_counter() - started < 5


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["<p>", "</p>", "<pre>", "</li>", "<li>", "<td>", " ", "\n", "a", "bc", "<br>"]))
)
def test_words_stay_in_order_and_blank_lines_stay_single(parts: list[str]) -> None:
    found = html_text("".join(parts))
    words = "".join(part for part in parts if part.isalpha())
    assert "".join(found.split()) == words
    assert found == found.strip("\n") and ("<pre>" in parts or "\n\n\n" not in found)
