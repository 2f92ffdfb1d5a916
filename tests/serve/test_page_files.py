"""Files that are dropped on the page: text in its encodings, PDF, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.serve.browser import Visit, browser, visit
from tests.serve.standin import CONTEXT

pytestmark = pytest.mark.browser
__all__ = ["browser", "visit"]
Visits = Callable[..., Visit]

DROP = """([name, type, bytes]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
  const drag = { dataTransfer: transfer, bubbles: true, cancelable: true };
  for (const kind of ["dragover", "drop"]) document.body.dispatchEvent(new DragEvent(kind, drag));
}"""


def test_dropped_file_is_counted_and_sent(visit: Visits) -> None:
    one = visit()
    one.page.evaluate(DROP, ["notes.md", "text/markdown", list("# Käse\nrows".encode())])
    one.page.wait_for_selector("text=3 tokens")
    assert f"3 tokens, of {CONTEXT:,}" in one.page.inner_text(".budget")
    one.ask("What does it say?")
    content = one.server.asked[0]["messages"][0]["content"]
    assert content == "[File: notes.md]\n# Käse\nrows\n[End of file: notes.md]\n\nWhat does it say?"
    one.page.locator(".attachment summary").click()
    assert "# Käse" in one.page.inner_text(".attachment pre")


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.bin", b"ab\0cd", "zero bytes"),
        ("empty.txt", b"  \n", "no text"),
        ("image.raw", b"\xe9 \x01\x02\xfc \x03", "no text file"),
        ("bad.pdf", b"no PDF", "cannot be read as a PDF"),
    ],
)
def test_what_is_no_text_is_refused_by_name(visit: Visits, name: str, data: bytes, told: str) -> None:
    one = visit()
    one.page.evaluate(DROP, [name, "", list(data)])
    toast = one.page.wait_for_selector(".toast")
    assert name in toast.inner_text() and told in toast.inner_text()
    assert one.page.locator(".files li").count() == 0


def test_text_in_gb18030_is_read(visit: Visits) -> None:
    one = visit()
    one.page.evaluate(DROP, ["zh.txt", "text/plain", list("稀疏注意力很快。".encode("gb18030"))])
    one.page.wait_for_selector("text=read as GB18030")
    one.ask("Sum up")
    assert "稀疏注意力很快。" in one.server.asked[0]["messages"][0]["content"]


@pytest.mark.parametrize(
    "text", ["Der Bürgermeister heißt Größer und wohnt in Köln.", "Où est l\u2019école ? Là, à côté : 5 €"]
)
def test_text_of_western_europe_is_not_read_as_chinese(visit: Visits, text: str) -> None:
    one = visit()
    one.page.evaluate(DROP, ["west.txt", "text/plain", list(text.encode("windows-1252"))])
    one.page.wait_for_selector("text=read as Western (Windows-1252)")
    one.ask("Sum up")
    assert text in one.server.asked[0]["messages"][0]["content"]


LATIN = "<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>"
CHINESE = (
    "<</Type/Font/Subtype/Type0/BaseFont/SimSun/Encoding/GBK-EUC-H/DescendantFonts["
    "<</Type/Font/Subtype/CIDFontType2/BaseFont/SimSun"
    "/CIDSystemInfo<</Registry(Adobe)/Ordering(GB1)/Supplement 2>>"
    "/FontDescriptor<</Type/FontDescriptor/FontName/SimSun/Flags 4/FontBBox[0 -200 1000 900]/ItalicAngle 0"
    "/Ascent 900/Descent -200/CapHeight 700/StemV 80>>>>]>>"
)


def pdf(text: bytes, font: str = LATIN) -> bytes:
    """A PDF of one page with one line; no font is inside."""
    drawn = f"BT /F1 24 Tf 72 700 Td <{text.hex()}> Tj ET"
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        "<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        f"<</Length {len(drawn)}>>stream\n{drawn}\nendstream",
        font,
    ]
    body, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(body))
        body += f"{number} 0 obj{content}endobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    body += (
        f"xref\n0 6\n0000000000 65535 f \n{table}trailer<</Size 6/Root 1 0 R>>\nstartxref\n{len(body)}\n%%EOF"
    )
    return body.encode()


def test_text_of_a_pdf(visit: Visits) -> None:
    one = visit()
    asked: list[str] = []
    one.page.on("request", lambda request: asked.append(request.url.rsplit("/", 1)[1]))
    file = {"name": "one.pdf", "mimeType": "application/pdf", "buffer": pdf(b"Sparse reads less")}
    one.page.set_input_files("#files", [file])
    one.page.wait_for_selector("text=1 page")
    assert {"pdf.js", "pdf.worker.js"} <= set(asked) and "pdf.cmaps.bin" not in asked
    one.ask("Sum up")
    assert "[File: one.pdf]\nSparse reads less\n" in one.server.asked[0]["messages"][0]["content"]


def test_chinese_text_of_a_pdf_without_its_font(visit: Visits) -> None:
    one = visit()
    buffer = pdf("稀疏注意力".encode("gbk"), CHINESE)
    one.page.set_input_files("#files", [{"name": "zh.pdf", "mimeType": "", "buffer": buffer}])
    one.page.wait_for_selector("text=1 page")
    one.ask("Sum up")
    assert "稀疏注意力" in one.server.asked[0]["messages"][0]["content"]
