"""What is told: a table for the reader and a chart for the README."""

from . import cases

COLOURS = {
    "foregate": "#1f6feb", "nginx": "#2da44e", "haproxy": "#bf8700", "envoy": "#8250df", "caddy": "#57606a",
    "traefik": "#cf222e",
}


def line(row):
    """A row while the run goes on."""
    parts = []
    ours = row.median("foregate")
    for name in row.figures:
        ratio = "" if name == "foregate" or ours is None else f" ({ours / row.median(name):.2f})"
        parts.append(f"{name} {_number(row.median(name))}{ratio} ±{row.spread(name) / 2:.0f} %")
    return f"{row.version:7} {row.what:30} {row.unit:4} {'; '.join(parts)}"


def markdown(rows, noise, proxies, facts):
    """The whole run. In brackets: what the gateway takes, divided by what the other takes."""
    names = [proxy.name for proxy in proxies]
    head = [f"{proxy.name} {proxy.version}" for proxy in proxies]
    text = [f"# {facts['date']}", "", facts["machine"], ""]
    text += [f"`{facts['command']}`, at {facts['commit']}.", ""]
    first, second = noise.median("first"), noise.median("second")
    text += [
        f"The gateway beside itself, HTTP/1.1 and 1 KiB: {_number(first)} and {_number(second)} µs, a ratio of "
        f"{first / second:.2f}; half of what each of them spreads over is "
        f"{max(noise.spread(name) for name in noise.figures) / 2:.0f} % of it.", "",
        "Median of CPU time for one request (user and system, all processes), or of memory; in brackets what the "
        "gateway takes divided by what the other takes, so that less than 1 is better.", "",
        "| | |" + "".join(f" {each} |" for each in head), "|---|---|" + "---|" * len(head),
    ]
    for row in rows:
        ours = row.median("foregate")
        cells = []
        for name in names:
            value = row.median(name)
            if value is None:
                cells.append("-")
            elif name == "foregate":
                cells.append(f"{_number(value)} {row.unit}")
            else:
                cells.append(f"{_number(value)} ({ours / value:.2f})")
        text.append(f"| {cases.VERSIONS[row.version]} | {row.what} |" + "".join(f" {cell} |" for cell in cells))
    return "\n".join(text) + "\n"


def chart(rows, proxies):
    """CPU time of 1 KiB as bars, by version."""
    rows = [row for row in rows if row.what == "1 KiB"]
    names = [proxy.name for proxy in proxies]
    most = max(row.median(name) for row in rows for name in row.figures)
    width, left, bar, gap = 720, 130, 14, 22
    out, y = [], 34
    for row in rows:
        out.append(f'<text x="0" y="{y + bar}" class="l">{cases.VERSIONS[row.version]}</text>')
        for name in (name for name in names if name in row.figures):
            value = row.median(name)
            length = value / most * (width - left - 120)
            out.append(
                f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 2}" fill="{COLOURS[name]}"/>'
                f'<text x="{left + length + 6:.1f}" y="{y + bar - 3}">{name} {_number(value)}</text>'
            )
            y += bar
        y += gap
    style = "text{font:11px sans-serif;fill:#57606a}.l{font-weight:bold}"
    title = "CPU microseconds for one request with 1 KiB: less is better"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" role="img">'
        f'<title>{title}</title><style>{style}</style><text x="0" y="14">{title}</text>{"".join(out)}</svg>\n'
    )


def _number(value):
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"
