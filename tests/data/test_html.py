"""What a reader reads of a page stays, in order; menus and scripts go; nothing breaks on broken pages."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.data.html import html_text
from minicpm4.data.questions import page_conversations
from tests.growth import is_linear


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
        ("<html><head><title>x</title><meta charset=utf-8><style>p {}</style><body><p>a", "a"),
        ("<html><head><title>x</title><link rel=y><p>a", "a"),
        ("<head><title>x</title>\n<noscript><b>n</b></noscript>\n</head>a<head>b", "ab"),
        ("<head><title>x</title>\na", "a"),
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


def test_deep_nesting_and_stray_ends_take_time_in_their_number() -> None:
    def page(depth: int) -> str:
        return "<div>" * depth + "deep" + "</b>" * depth + "</div>" * depth + "<p>after"

    assert html_text(page(50_000)) == "deep\n\nafter"
    assert is_linear(page, html_text, 6000)


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from(["<p>", "</p>", "<pre>", "</li>", "<li>", "<td>", " ", "\n", "a", "bc", "<br>"]))
)
def test_words_stay_in_order_and_blank_lines_stay_single(parts: list[str]) -> None:
    found = html_text("".join(parts))
    words = "".join(part for part in parts if part.isalpha())
    assert "".join(found.split()) == words
    assert found == found.strip("\n") and ("<pre>" in parts or "\n\n\n" not in found)


def rows(*parts: str) -> str:
    return "<math><mrow>" + "".join(parts) + "</mrow></math>"


def mi(text: str) -> str:
    return f"<mi>{text}</mi>"


def mo(text: str) -> str:
    return f"<mo>{text}</mo>"


SQUARE, TIMES = f"<msup>{mi('b')}<mn>2</mn></msup>", mo("&InvisibleTimes;")
ROOT = f"<msqrt>{SQUARE}{mo('−')}<mn>4</mn>{TIMES}{mi('a')}{mi('c')}</msqrt>"
BELOW, ABOVE = f"<mrow>{mi('i')}{mo('=')}<mn>1</mn></mrow>", mi("n")
TEX = r"\frac{1}{2} < x"
NOTED = f'<annotation encoding="application/x-tex">{TEX.replace("<", "&lt;")}</annotation>'


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("2<sup>10</sup> and 10<sup>-6</sup> m<sup>2</sup>", "2¹⁰ and 10⁻⁶ m²"),
        ("H<sub>2</sub>O, CO<sub>2</sub>", "H₂O, CO₂"),
        (
            "x<sub>i</sub><sup>2</sup>, x<sub>i+1</sub>, a<sub>ij</sub>, V<sub>max</sub>",
            "xᵢ², xᵢ₊₁, a_ij, V_max",
        ),
        ("2<sup>n-1</sup>, e<sup>-(x+1)/2</sup>, y<sup>z<sup>2</sup></sup>", "2ⁿ⁻¹, e^(-(x+1)/2), y^(z²)"),
        ("log<sub>2</sub> n, <sup>14</sup>C, x<sup> 2 </sup>", "log₂ n, ¹⁴C, x²"),
        ("the 1<sup>st</sup>, 2<sup>nd</sup>, n<sup>th</sup>", "the 1st, 2nd, nth"),
        (
            "so<sup>[1]</sup>, but<sup>†</sup>, Foo<sup>TM</sup>, <sup>new</sup> text",
            "so[1], but†, Foo™, new text",
        ),
        ("f<sup>′</sup>(x), 90<sup>∘</sup>", "f′(x), 90°"),
        (
            f"<math><mmultiscripts>{mi('U')}<none/><mn>4</mn><mprescripts/><mn>92</mn><mn>238</mn>"
            "</mmultiscripts></math>",
            "₉₂²³⁸U⁴",
        ),
        ("<pre>x<sup>2</sup>\n y</pre>", "x²\n y"),
        ("<p>so <sup>open<p>next 10<sub></sub>", "so open\n\nnext 10"),
        ("<nav>x<sup>2</sup></nav>y<sup>2</sup>", "y²"),
        (
            rows(
                mi("x"),
                mo("="),
                f"<mfrac><mrow>{mo('−')}{mi('b')}{mo('±')}{ROOT}</mrow><mrow><mn>2</mn>{mi('a')}</mrow></mfrac>",
            ),
            "x = (−b ± √(b² − 4ac))/(2a)",
        ),
        (
            rows(f"<munderover>{mo('∑')}{BELOW}{ABOVE}</munderover><msub>{mi('x')}{mi('i')}</msub>"),
            "∑_(i = 1)ⁿ xᵢ",
        ),
        (
            rows(f"<mfrac><mn>1</mn><mn>2</mn></mfrac>{mo('+')}<mroot>{mi('x')}<mn>3</mn></mroot>"),
            "1/2 + ³√x",
        ),
        (rows(mi("sin"), mo("&ApplyFunction;"), mi("x")) + " is " + rows(mi("y")), "sin x is y"),
        (
            "<math><mtable><mtr><mtd>1</mtd><mtd>2</mtd></mtr><mtr><mtd>3</mtd><mtd>4</mtd></mtr></mtable></math>",
            "[1, 2; 3, 4]",
        ),
        (f"so <math><semantics>{mi('x')}{NOTED}</semantics></math>.", f"so ${TEX}$."),
        (f'<math display="block" alttext="E=mc^2">{mi("E")}</math>', "$$E=mc^2$$"),
        (
            f'<b class="katex"><math>{mi("x")}{NOTED}</math><b class="katex-html"><b>1</b>2</b></b> ok',
            f"${TEX}$ ok",
        ),
        (
            r'a <math alttext="{\displaystyle x^{2}}"><mi>x</mi></math>'
            r'<img class="mwe-math-fallback-image-inline" alt="{\displaystyle x^{2}}"> b',
            "a $x^{2}$ b",
        ),
        (r'see <script type="math/tex">a<b</script>, <script>no</script>ok', "see $a<b$, ok"),
        (r'<script type="math/tex; mode=display">% <![CDATA[' + "\n\\sum x\n% ]]></script>", "$$\\sum x$$"),
        ('by <img class="math" alt="E=mc^2">, not <img class="photo" alt="me">.', "by $E=mc^2$, not ."),
        ("<p>a <math><mi>x<p>next", "a x\n\nnext"),
        ("<math>" + "<mrow>" * 1000 + "x", "x"),
    ],
)
def test_what_place_says_is_kept_in_words(page: str, text: str) -> None:
    assert html_text(page) == text


PARTS = ["x", "2", "+", "<b>", "<mo>", "<msup>", "<annotation>"]
PARTS += [
    f"<{slash}{tag}>" for tag in ("sup", "sub", "math", "mi", "mfrac", "p", "script") for slash in ("", "/")
]


@settings(max_examples=200)
@given(st.lists(st.sampled_from(PARTS), max_size=30))
def test_formulas_that_never_end_lose_no_words_behind_them(parts: list[str]) -> None:
    page = "".join(part if part.startswith("<") else f" {part}" for part in parts)
    assert html_text(f"{page}</script><p>the end").endswith("the end")


@pytest.mark.parametrize("tag", ["img", "embed", "wbr"])
def test_an_element_without_an_end_hides_nothing_after_it(tag: str, tmp_path: Path) -> None:
    answer = "The widget turns what it is given, and gives it back when it is asked to."
    drawn = f'<{tag} class="MathJax_SVG">'
    page = tmp_path / "a.html"
    page.write_text(f"<h2>The widget</h2><p>{drawn}{answer}</p>")
    (one,) = page_conversations(page, lambda reason, where: None)
    assert one.messages[1]["content"] == answer == html_text(f"<p>{drawn}{answer}</p>")


@pytest.mark.parametrize("section", ["<![x y]>", "<![-CDATA[ x ]]>", "<![", "<![1", "<![endif]>"])
def test_marked_sections_of_no_known_kind_are_passed_over(section: str) -> None:
    found = html_text(f"<p>before</p>{section}<p>after</p>")
    assert found.startswith("before") and found.endswith("after")
