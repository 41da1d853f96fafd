"""Three repairs of the rendered pages. Quarto runs this, see _quarto.yml.

Quarto adds require.js and jQuery to a page with a table among its outputs, in case a widget wants
them. No page of this book has widgets, and a page should fetch nothing that it does not need from
another server, so both are taken out.

nbdev turns `names` into links, also in the signatures that `show_doc` gives, where Markdown is not
read. The names are put back.

One sidebar serves all parts of the book, so Quarto takes every page for one of the first part and
says so in the bar at the top, to eyes and to screen readers. That is taken back.
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

for path in Path(os.environ['QUARTO_PROJECT_OUTPUT_DIR']).rglob('*.html'):
    text = path.read_text(encoding='utf-8')
    mended = LINK_IN_CODE.sub(r'`\1`', NOT_NEEDED.sub('', text))
    mended = CURRENT_PART.sub(r'class="nav-link"\1', mended)
    if mended != text:
        path.write_text(mended, encoding='utf-8')
