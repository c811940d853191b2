"""A genotype as a picture: features at the left, cells with their steps in the middle, the classifier at the right.

The picture is a graph that can be read back: a box has `data-node` (a step also `data-operation`), a wire the nodes
that it joins, `data-from` and `data-to`. Nodes: the features by name, and cell1.in1, cell1.step1, cell1.join, ...,
classifier.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs.describe import drawing
from jobs.report_html import Html, tag
from stgs.genotype import CellGene, Genotype

# Widths and heights of the parts, in SVG units.
_FEATURE_WIDTH, _FEATURE_HEIGHT, _FEATURE_GAP = 118, 22, 6
_CELL_LEFT, _CELL_WIDTH, _CELL_GAP, _CELL_HEAD = 184, 278, 30, 24
_PORT_LEFT, _PORT_WIDTH, _PORT_HEIGHT = 8, 30, 18
_STEP_LEFT, _STEP_WIDTH, _STEP_HEIGHT, _STEP_GAP = 78, 98, 34, 16
_JOIN_LEFT, _JOIN_WIDTH = 202, 64
_CLASSIFIER_LEFT, _CLASSIFIER_WIDTH = 512, 76
_WIDTH = _CLASSIFIER_LEFT + _CLASSIFIER_WIDTH + 4
_LABELS = {"linear_glu": "LinearGLU", "concat_fc": "ConcatFC", "attention": "Attention", "sum": "Sum", "zero": "Zero"}

_CLASSIFIER = "classifier"

Place = tuple[float, float]
# The nodes that a wire joins.
Ends = tuple[str, str]


def genotype_picture(genotype: Genotype) -> Html:
    """The genotype as inline SVG; its text (`jobs.describe.drawing`) is the label for those who cannot see it."""
    heights = [_cell_height(cell) for cell in genotype.cells]
    features = len(genotype.features) * (_FEATURE_HEIGHT + _FEATURE_GAP) - _FEATURE_GAP
    cells = sum(heights) + _CELL_GAP * (len(heights) - 1)
    height = max(features, cells) + 8
    outputs, left = _features(genotype, (height - features) / 2)
    frames: list[Html] = []
    boxes, wires = [left], []
    top = (height - cells) / 2
    for number, (cell, size) in enumerate(zip(genotype.cells, heights, strict=True), start=1):
        ports = _ports(cell, top)
        frames.append(tag("rect", x=_CELL_LEFT, y=top, width=_CELL_WIDTH, height=size, rx=8, class_="frame"))
        boxes.append(_cell(cell, number, top))
        for name, port, port_name in zip(cell.inputs, ports, ("in1", "in2"), strict=True):
            target = f"cell{number}.{port_name}"
            if name in genotype.features:
                wires.append(_wire(outputs[name], port, (name, target)))
            else:
                wires.append(_back(outputs[name], port, (f"{name}.join", target), gap=top - _CELL_GAP / 2))
        outputs[f"cell{number}"] = (_CELL_LEFT + _CELL_WIDTH, top + _CELL_HEAD + _steps_height(cell) / 2)
        top += size + _CELL_GAP
    boxes.append(_classifier(genotype, height))
    for index in range(len(genotype.cells)):
        side = (index - (len(genotype.cells) - 1) / 2) * 18
        ends = (f"cell{index + 1}.join", _CLASSIFIER)
        wires.append(_wire(outputs[f"cell{index + 1}"], (_CLASSIFIER_LEFT, height / 2 + side), ends))
    text = "\n".join(drawing(genotype))
    return tag(
        "svg", tag("title", text), frames, wires, boxes, viewBox=f"0 0 {_WIDTH} {height:g}", role="img", aria_label=text
    )


def _steps_height(cell: CellGene) -> float:
    return max(len(cell.steps), 2) * (_STEP_HEIGHT + _STEP_GAP) - _STEP_GAP


def _cell_height(cell: CellGene) -> float:
    return _CELL_HEAD + _steps_height(cell) + 14


def _ports(cell: CellGene, top: float) -> list[Place]:
    """Where in1 and in2 enter a cell: beside its first and its last step."""
    left, first = _CELL_LEFT + _PORT_LEFT, top + _CELL_HEAD + _STEP_HEIGHT / 2
    return [(left, first), (left, first + _steps_height(cell) - _STEP_HEIGHT)]


def _features(genotype: Genotype, top: float) -> tuple[dict[str, Place], Html]:
    """All features of the space, those that no cell reads pale; and where their wires begin."""
    outputs: dict[str, Place] = {}
    parts = []
    used = set(genotype.used_features)
    for index, (name, channels) in enumerate(genotype.features.items()):
        y = top + index * (_FEATURE_HEIGHT + _FEATURE_GAP)
        outputs[name] = (_FEATURE_WIDTH, y + _FEATURE_HEIGHT / 2)
        sense = name.partition(".")[0]
        class_ = sense if sense in ("visual", "audio") else "box"
        group = [
            tag("title", f"{name}: {channels} channels" + ("" if name in used else ", not used")),
            tag(
                "rect", x=1, y=y, width=_FEATURE_WIDTH - 1, height=_FEATURE_HEIGHT, rx=4, class_=class_, data_node=name
            ),
            _text(_fitted(name, 17), _FEATURE_WIDTH / 2, y + _FEATURE_HEIGHT / 2, strong=name in used),
        ]
        parts.append(tag("g", group, class_=None if name in used else "unused"))
    return outputs, tag("g", parts)


def _cell(cell: CellGene, number: int, top: float) -> Html:
    parts: list[object] = [_text(f"cell{number}", _CELL_LEFT + 10, top + 13, anchor="start", strong=True)]
    ports = _ports(cell, top)
    sources: dict[str, Place] = {}
    for name, (x, y) in zip(("in1", "in2"), ports, strict=True):
        node = f"cell{number}.{name}"
        parts.append(_box(x, y - _PORT_HEIGHT / 2, _PORT_WIDTH, _PORT_HEIGHT, [name], node, strong=False))
        sources[name] = (x + _PORT_WIDTH, y)
    boxes: list[object] = []
    first = top + _CELL_HEAD
    step_left, join_left = _CELL_LEFT + _STEP_LEFT, _CELL_LEFT + _JOIN_LEFT
    for index, step in enumerate(cell.steps):
        y = first + index * (_STEP_HEIGHT + _STEP_GAP)
        node = f"cell{number}.step{index + 1}"
        for side, name in enumerate(step.inputs):
            parts.append(_step_wire(sources, name, (step_left, y), side, (f"cell{number}.{name}", node)))
        label = _LABELS.get(step.operation, step.operation)
        hint = f"step{index + 1} = {step.operation}({', '.join(step.inputs)})"
        box = _box(step_left, y, _STEP_WIDTH, _STEP_HEIGHT, [label], node, operation=step.operation, hint=hint)
        boxes.append(box)
        sources[f"step{index + 1}"] = (step_left, y + _STEP_HEIGHT)
        middle = y + _STEP_HEIGHT / 2
        parts.append(_wire((step_left + _STEP_WIDTH, middle), (join_left, middle), (node, f"cell{number}.join")))
    tall = _steps_height(cell)
    lines = ["concat", "conv", "+ in1", "norm"] if len(cell.steps) > 1 else ["conv", "+ in1", "norm"]
    boxes.append(_box(join_left, first, _JOIN_WIDTH, tall, lines, f"cell{number}.join"))
    out = f"M{join_left + _JOIN_WIDTH} {first + tall / 2:.1f}H{_CELL_LEFT + _CELL_WIDTH}"
    parts.append(tag("path", d=out, class_="wire"))
    return tag("g", parts, boxes)


def _step_wire(sources: dict[str, Place], name: str, corner: Place, side: int, ends: Ends) -> Html:
    """From a state of the cell to a step's first (side 0) or second input; `corner`: upper left of the step."""
    end = (corner[0], corner[1] + _STEP_HEIGHT * (0.3 + 0.4 * side))
    x, y = sources[name]
    if name.startswith("in"):
        return _wire((x, y), end, ends)
    if corner[1] - y <= _STEP_GAP + 1:  # the step just above
        middle = x + _STEP_WIDTH / 2
        return _arrow(f"M{middle} {y:.1f}V{corner[1]:.1f}", (middle, corner[1]), ends, down=True)
    bend = x - 26
    return _arrow(f"M{x} {y - 6:.1f}C{bend} {y - 6:.1f} {bend} {end[1]:.1f} {end[0]} {end[1]:.1f}", end, ends)


def _classifier(genotype: Genotype, height: float) -> Html:
    tall = max(66, 18 * len(genotype.cells) + 20)
    lines = ["concat", "norm", "linear"] if len(genotype.cells) > 1 else ["norm", "linear"]
    return _box(_CLASSIFIER_LEFT, (height - tall) / 2, _CLASSIFIER_WIDTH, tall, [*lines, "→ P(fake)"], _CLASSIFIER)


def _box(
    x: float,
    y: float,
    width: float,
    height: float,
    lines: Sequence[str],
    node: str,
    *,
    strong: bool | None = None,
    operation: str | None = None,
    hint: str | None = None,
) -> Html:
    """A rounded box with lines of text in its middle."""
    bold = len(lines) == 1 if strong is None else strong
    first = y + height / 2 - 14.5 * (len(lines) - 1) / 2
    texts = [_text(line, x + width / 2, first + 14.5 * i, strong=bold) for i, line in enumerate(lines)]
    title = None if hint is None else tag("title", hint)
    place = {"x": x, "y": f"{y:g}", "width": width, "height": f"{height:g}"}
    return tag("g", title, tag("rect", **place, rx=5, class_="box", data_node=node, data_operation=operation), texts)


def _text(text: str, x: float, y: float, *, anchor: str = "middle", strong: bool = False) -> Html:
    class_ = "strong" if strong else None
    return tag("text", text, x=x, y=f"{y:.1f}", dy="0.35em", text_anchor=anchor, class_=class_)


def _wire(start: Place, end: Place, ends: Ends) -> Html:
    """A curve from left to right."""
    bend = (end[0] - start[0]) / 2
    curve = f"C{start[0] + bend:.1f} {start[1]:.1f} {end[0] - bend:.1f} {end[1]:.1f} {end[0]:.1f} {end[1]:.1f}"
    return _arrow(f"M{start[0]:.1f} {start[1]:.1f}{curve}", end, ends)


def _back(start: Place, end: Place, ends: Ends, *, gap: float) -> Html:
    """From a cell's output at the right, through the gap above a later cell, to that cell's input at its left."""
    right, left = start[0] + 14, end[0] - 18
    path = (
        f"M{start[0]:.1f} {start[1]:.1f}H{right - 8:.1f}q8 0 8 8V{gap - 8:.1f}q0 8 -8 8H{left + 8:.1f}q-8 0 -8 8"
        f"V{end[1] - 8:.1f}q0 8 8 8H{end[0]:.1f}"
    )
    return _arrow(path, end, ends)


def _arrow(path: str, end: Place, ends: Ends, *, down: bool = False) -> Html:
    x, y = end
    head = (
        f"M{x - 3.5:.1f} {y - 7:.1f}L{x:.1f} {y:.1f}L{x + 3.5:.1f} {y - 7:.1f}"
        if down
        else (f"M{x - 7:.1f} {y - 3.5:.1f}L{x:.1f} {y:.1f}L{x - 7:.1f} {y + 3.5:.1f}")
    )
    return tag("path", d=path + head, class_="wire", data_from=ends[0], data_to=ends[1])


def _fitted(name: str, characters: int) -> str:
    return name if len(name) <= characters else f"{name[: characters - 1]}…"
