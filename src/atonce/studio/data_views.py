"""What the Data tab shows: findings, pairs side by side, classes as bars and as a table, packed files; all as plain HTML."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

from atonce.data.checked import Checked, Finding
from atonce.studio.data_desk import PAIRS, Shown
from atonce.studio.data_packs import Pack

_LEVELS = {"fix": "Fix", "look": "Look", "fine": "Fine"}
_TITLES = {
    "corrupt": "Cannot be read",
    "exact": "Exact repeats",
    "near": "Look-alikes",
    "conflicts": "Equal, with different labels",
    "leak": "Also in the test data",
    "balance": "Classes",
    "sizes": "Sizes",
    "kinds": "How they are stored",
    "sigma_data": "Values",
    "others": "Other files",
}
REASON_WORDS = {
    "corrupt": "cannot be read",
    "exact": "exact repeats of an earlier picture",
    "near": "look-alikes of an earlier picture",
    "conflicts": "equal pictures with different labels",
    "leak": "also in the test data",
}


def report_html(shown: Shown | None) -> str:
    """A whole report.

    Args:
        shown: The check; ``None`` where there was none yet.

    Returns:
        HTML.
    """
    if shown is None:
        return '<p class="at-note">Nothing was checked yet. Choose data, then "Check".</p>'
    found = shown.found
    findings = found.findings()
    fix, look = (sum(finding.level == level for finding in findings) for level in ("fix", "look"))
    verdict = "Nothing is wrong." if fix + look == 0 else f"{_count(fix, 'thing')} to fix, {_count(look, 'thing')} to look at."
    return "".join(
        [
            f'<section class="data-report"><h3>{_e(shown.label)}: {found.readable:,} pictures</h3>',
            f'<p class="data-verdict">{verdict}</p><ul class="data-findings">',
            *(_finding(finding) for finding in findings),
            "</ul>",
            _bad(found),
            _groups(shown, "conflicts", "Equal pictures with different labels"),
            _groups(shown, "exact", "Exact repeats"),
            _pairs(shown),
            _leaks(shown),
            _classes(found),
            _sizes(found),
            '<p><a class="at-button" href="check.json" download="check.json">Save this report (JSON)</a></p>',
            "</section>",
        ]
    )


def reasons(shown: Shown | None) -> tuple[list[tuple[str, str]], list[str]]:
    """What can be left out, as labels and values, and what is chosen at first.

    Args:
        shown: The check.

    Returns:
        Choices of a checkbox group, and its first value.
    """
    if shown is None:
        return [], []
    counts = {reason: len(shown.found.leave_out([reason])) for reason in REASON_WORDS}
    choices = [(f"{words} ({counts[reason]:,})", reason) for reason, words in REASON_WORDS.items() if counts[reason]]
    levels = {finding.key: finding.level for finding in shown.found.findings()}
    return choices, [reason for _, reason in choices if levels[reason] == "fix"]


def packing_html(shown: Shown | None, out: dict[str, str]) -> str:
    """How many pictures a pack would have.

    Args:
        shown: The check.
        out: What would be left out.

    Returns:
        HTML.
    """
    if shown is None:
        return ""
    found = shown.found
    left = found.count - len(out)
    unreadable = sum(name not in out for name, _ in found.bad)
    parts = [f"{left:,} of {found.count:,} pictures would be packed; the originals stay as they are."]
    if unreadable:
        parts.append(f"{_count(unreadable, 'picture')} of these cannot be read: leave them out, or packing will stop there.")
    return "".join(f'<p class="at-note">{_e(part)}</p>' for part in parts)


def packs_html(packs: Sequence[Pack]) -> str:
    """Packed files as a table.

    Args:
        packs: The files.

    Returns:
        HTML.
    """
    if not packs:
        return '<p class="at-note">Nothing is packed yet.</p>'
    rows = []
    for pack in packs:
        report = pack.report
        shape = report.get("shape") or ["?", "?", "?"]
        kind = {1: "grey", 3: "RGB"}.get(shape[0], "")
        sigma = report.get("sigma_data")
        rows.append(
            [
                pack.name,
                f"{report['count']:,}" if isinstance(report.get("count"), int) else "?",
                f"{shape[2]} x {shape[1]} {kind}",
                str(len(report.get("classes") or ()) or "none"),
                f"{sigma:.4f}" if isinstance(sigma, float) else "?",
                f"{len(report.get('left_out') or ()):,}",
                f"{pack.bytes / 2**20:,.1f} MiB",
            ]
        )
    head = ["File", "Pictures", "Size", "Classes", "sigma_data", "Left out", "Bytes"]
    links = "".join(
        f'<li><a class="at-button" href="packs/{_e(pack.name)}" download="{_e(pack.name)}">Download {_e(pack.name)}</a> '
        f'<a class="at-button" href="packs/{_e(pack.name)}.json" download="{_e(pack.name)}.json">its report</a></li>'
        for pack in packs
    )
    return f'{_table("Packed files", head, rows)}<ul class="data-links">{links}</ul>'


def _finding(finding: Finding) -> str:
    remedy = f' <span class="data-remedy">{_e(_sentence(finding.remedy))}</span>' if finding.remedy else ""
    level = f'<span class="data-level data-{finding.level}">{_LEVELS[finding.level]}</span>'
    return f"<li>{level}<div><strong>{_TITLES[finding.key]}</strong><br>{_e(_sentence(finding.text))}{remedy}</div></li>"


def _bad(found: Checked) -> str:
    rows = [[name, problem] for name, problem in found.bad[:PAIRS]]
    return (
        _section("Cannot be read", len(found.bad), _table("Pictures that cannot be read", ["File", "Why"], rows))
        if rows
        else ""
    )


def _pairs(shown: Shown) -> str:
    found = shown.found
    cards = [_pair(shown, [a, b], f"{distance:.3f} apart") for a, b, distance in found.near[:PAIRS]]
    rule = f'<p class="at-note">The rule: {_e(found.rule())}. The nearest come first.</p>'
    return _section("Look-alikes", len(found.near), rule + _cards(cards)) if cards else ""


def _groups(shown: Shown, key: str, title: str) -> str:
    groups: Sequence[Sequence[str]] = getattr(shown.found, key)
    cards = [_pair(shown, list(group[:6]), _count(len(group), "picture")) for group in groups[:PAIRS]]
    return _section(title, len(groups), _cards(cards)) if cards else ""


def _leaks(shown: Shown) -> str:
    leak = shown.found.leak
    cards = [_pair(shown, [a, f">{b}"], "equal") for a, b in leak.exact[:PAIRS]]
    cards += [_pair(shown, [a, f">{b}"], f"{distance:.3f} apart") for a, b, distance in leak.near[: PAIRS - len(cards)]]
    note = '<p class="at-note">Left: a picture of these data. Right: the one of the test data.</p>'
    return _section("Also in the test data", len(leak.exact) + len(leak.near), note + _cards(cards)) if cards else ""


def _pair(shown: Shown, names: list[str], words: str) -> str:
    pictures = "".join(_picture(shown, name) for name in names)
    return f'<li class="data-pair"><div class="data-pictures">{pictures}</div><p>{_e(words)}</p></li>'


def _picture(shown: Shown, name: str) -> str:
    address, plain = shown.pictures.get(name), name.removeprefix(">")
    where = "test data: " if name.startswith(">") else ""
    label = shown.pictures.get(f"{name}\n")
    words = where + plain + (f" ({label})" if label else "")
    image = (
        f'<img class="at-crisp" src="{address}" alt="{_e(words)}">' if address else '<span class="data-none">not shown</span>'
    )
    return f"<figure>{image}<figcaption>{_e(words)}</figcaption></figure>"


def _cards(cards: list[str]) -> str:
    return f'<ul class="data-pairs">{"".join(cards)}</ul>'


def _classes(found: Checked) -> str:
    if not found.classes:
        return ""
    most = max(found.class_counts) or 1
    rows = "".join(
        f'<tr><th scope="row">{_e(name)}</th><td class="data-bar" aria-hidden="true">'
        f'<i style="width:{count / most:.1%}"></i></td><td>{count:,}</td><td>{count / max(1, found.readable):.1%}</td></tr>'
        for name, count in zip(found.classes, found.class_counts, strict=True)
    )
    head = '<tr><th scope="col">Class</th><td></td><th scope="col">Pictures</th><th scope="col">Share</th></tr>'
    inside = _scroll("Pictures of each class", head, rows, " data-classes")
    return _section("Classes", len(found.classes), inside, open_=len(found.classes) <= 30)


def _sizes(found: Checked) -> str:
    if len(found.sizes) + len(found.kinds) <= 2:
        return ""
    sizes = _table("Sizes", ["Width x height", "Pictures"], [[size, f"{count:,}"] for size, count in found.sizes[:PAIRS]])
    kinds = _table("Formats", ["Format and mode", "Pictures"], [[kind, f"{count:,}"] for kind, count in found.kinds[:PAIRS]])
    return _section("Sizes and formats", len(found.sizes), f'<div class="data-two">{sizes}{kinds}</div>')


def _section(title: str, count: int, inside: str, open_: bool = False) -> str:
    more = f"; the first {PAIRS} are shown, the report has all" if count > PAIRS else ""
    return f"<details{' open' if open_ else ''}><summary>{_e(title)} ({count:,}{more})</summary>{inside}</details>"


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    names = "".join(f'<th scope="col">{_e(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{_e(row[0])}</th>{"".join(f"<td>{_e(cell)}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    return _scroll(caption, f"<tr>{names}</tr>", body)


def _scroll(label: str, head: str, rows: str, more: str = "") -> str:
    """A table that scrolls by itself, by the keyboard too."""
    caption = f'<caption class="at-hidden">{_e(label)}</caption>'
    table = f'<table class="at-table{more}">{caption}<thead>{head}</thead><tbody>{rows}</tbody></table>'
    return f'<div class="at-table-wrap" role="region" tabindex="0" aria-label="Table: {_e(label)}">{table}</div>'


def _sentence(text: str) -> str:
    first = text.partition(" ")[0]
    return f"{text if '_' in first else text[:1].upper() + text[1:]}." if text else ""


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


_e: Callable[[str], str] = html.escape
