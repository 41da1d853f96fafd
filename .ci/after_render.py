"""Four repairs of the rendered pages; Quarto runs this, see _quarto.yml.

Quarto adds require.js and jQuery to a page with a table among its outputs, in case a widget wants them. No page of this
book has widgets, and what a page does not need it should not fetch from another server: both are taken out.

nbdev turns `names` into links, also in the signatures that `show_doc` gives, where Markdown is not read: the names are
put back. And it links every name to its chapter, whether the chapter shows it or not: the names that it does not show
are linked to their place in the reference.

One sidebar serves all four parts of the book, so Quarto takes every page for one of the first, and says so in the bar
at the top, to eyes and to screen readers: that is taken back.
"""

import os
import re
from pathlib import Path

NOT_NEEDED = re.compile(
    r'<script src="https://cdnjs\.cloudflare\.com/ajax/libs/(?:require\.js|jquery)/[^>]*></script>\n?'
    r"|<script type=\"application/javascript\">define\('jquery'.*?</script>\n?"
)
LINK_IN_CODE = re.compile(r'\[`([^`<>]+)`\]\(https?://[^)<>]*\)')
CURRENT_PART = re.compile(r'class="nav-link active"( href="[^"]*") aria-current="page"')
NAME = re.compile(r'href="(https?://[^"]*/)(\w+)\.html#([^"]+)"')

docs = Path(os.environ['QUARTO_PROJECT_OUTPUT_DIR'])
pages = {path: path.read_text(encoding='utf-8') for path in docs.rglob('*.html')}
anchors = {path: set(re.findall(r' id="([^"]+)"', text)) for path, text in pages.items()}


def to_reference(link: re.Match) -> str:
    "The link, or one to the reference if its own page has no such anchor and the reference has."
    address, page, name = link.groups()
    shown = name in anchors.get(docs / f'{page}.html', {name})
    known = name in anchors.get(docs / f'reference/{page}.html', ())
    return f'href="{address}reference/{page}.html#{name}"' if known and not shown else link[0]


for path, text in pages.items():
    mended = CURRENT_PART.sub(
        r'class="nav-link"\1', LINK_IN_CODE.sub(r'`\1`', NOT_NEEDED.sub('', text))
    )
    mended = NAME.sub(to_reference, mended)
    if mended != text:
        path.write_text(mended, encoding='utf-8')
