"""Repairs of the rendered pages. Quarto runs this, see _quarto.yml. A second run changes nothing.

Quarto adds require.js and jQuery to a page with a table among its outputs, in case a widget wants
them. No page of this book has widgets, and a page should fetch nothing that it does not need from
another server, so both are taken out.

nbdev turns `names` into links, also in the signatures that `show_doc` gives, where Markdown is not
read, and inside of links. The names are put back. Types lose the modules they come from.

One sidebar serves all parts of the book, so Quarto takes every page for one of the first part and
says so in the bar at the top, to eyes and to screen readers. The part is the first breadcrumb.

pandas writes the name of an index into a header row of its own. It belongs above its column.

Python prints a hyphen for a minus, 8x8 for 8×8 and 49660 for 49,660. Text and tables get the
proper signs.
"""

import os
import re
from pathlib import Path

NOT_NEEDED = re.compile(
    r'<script src="https://cdnjs\.cloudflare\.com/ajax/libs/(?:require\.js|jquery)/[^>]*></script>\n?'
    r"|<script type=\"application/javascript\">define\('jquery'.*?</script>\n?"
)
LINK_IN_CODE = re.compile(r'\[`([^`<>]+)`\]\(https?://[^)<>]*\)')
LINK_IN_LINK = re.compile(r'\[(<code>[^<>]+</code>)\]\(https?://[^)<>]*\)')
SIGNATURE = re.compile(r'</h\d>\s*<div class="sourceCode".*?</div>', re.S)
MODULE_OF_A_TYPE = re.compile(r'\b(?:[a-z_]\w*\.)+(?=[A-Z])')
PART = re.compile(r'<li class="breadcrumb-item"><a [^>]*>(\w+)</a>')
IN_BAR = re.compile(
    r'class="nav-link(?: active)?"( href="[^"]*")(?: aria-current="\w+")?>'
    r'(\s*<span class="menu-text">(\w+)<)'
)
MAIN = re.compile(r'<main.*?</main>', re.S)
HEADER = re.compile(r'<thead>\s*<tr[^>]*>(.*?)</tr>\s*<tr[^>]*>(.*?)</tr>\s*</thead>', re.S)
CELL = re.compile(r'(<th(?![^>]*span)[^>]*>)(.*?)</th>', re.S)
LEFT_ALONE = re.compile(r'(<(pre|code|script|style|math|svg)\b.*?</\2>|<[^>]*>)', re.S)
MINUS = re.compile(r'(?<![\w.)–−-])-(?=\d)')
TIMES = re.compile(r'(?<=\d)(?<!\b0)x(?=\d)')
LARGE = re.compile(r'(?<![\w.,/#-])[1-9]\d{4,}(?![\w.,/-])')


def one_header_row(match: re.Match) -> str:
    upper, lower = CELL.findall(match[1]), CELL.findall(match[2])
    if len(upper) != len(lower) or any(a[1] and b[1] for a, b in zip(upper, lower, strict=True)):
        return match[0]
    cells = [f'{tag}{a or b}</th>' for (tag, a), (_, b) in zip(upper, lower, strict=True)]
    return '<thead>\n<tr class="header">\n' + '\n'.join(cells) + '\n</tr>\n</thead>'


def with_proper_signs(main: str) -> str:
    def mend(text: str) -> str:
        text = TIMES.sub('×', MINUS.sub('−', text))
        return LARGE.sub(lambda m: f'{int(m[0]):,}', text)

    found, end = [], 0
    for kept in LEFT_ALONE.finditer(main):
        found += [mend(main[end : kept.start()]), kept[0]]
        end = kept.end()
    return ''.join([*found, mend(main[end:])])


def the_part_in_the_bar(text: str) -> str:
    part = PART.search(text)

    def link(match: re.Match) -> str:
        address, rest, name = match.groups()
        if part and name == part[1]:
            return f'class="nav-link active"{address} aria-current="true">{rest}'
        return f'class="nav-link"{address}>{rest}'

    return IN_BAR.sub(link, text)


def mended(text: str) -> str:
    text = LINK_IN_CODE.sub(r'`\1`', LINK_IN_LINK.sub(r'\1', NOT_NEEDED.sub('', text)))
    text = SIGNATURE.sub(lambda m: MODULE_OF_A_TYPE.sub('', m[0]), text)
    text = the_part_in_the_bar(text)  # a page that only points to another has no <main>
    return MAIN.sub(lambda m: with_proper_signs(HEADER.sub(one_header_row, m[0])), text, count=1)


if __name__ == '__main__':
    for path in Path(os.environ['QUARTO_PROJECT_OUTPUT_DIR']).rglob('*.html'):
        text = path.read_text(encoding='utf-8')
        if (better := mended(text)) != text:
            path.write_text(better, encoding='utf-8')
