"""A built neck as readable Python: one attribute a layer, one line a node, no graph behind it."""

from __future__ import annotations

import ast
import inspect
import keyword
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fpn_bench import nn as layers
from fpn_bench.errors import ExportError
from fpn_bench.export import parts
from fpn_bench.export.bundle import Bundle
from fpn_bench.graph import Edge, Node, input_name
from fpn_bench.nn.neck import Neck

WIDTH = 116
Substitutes = Mapping[type[nn.Module], type[nn.Module]]
"""Classes of `fpn_bench.nn` -> those written instead: same arguments, same names of weights."""


def write_neck(neck: Neck, bundle: Bundle, substitutes: Substitutes | None = None) -> dict[str, Tensor]:
    """Write a neck into `bundle`: the layers that it uses, and the class ``Neck``.

    Args:
        neck: as built.
        bundle: of the file that the class will stand in.
        substitutes: layers that are written as others.

    Returns:
        its weights, by the names that they have there.
    """
    writer = _Writer(neck, bundle, substitutes or {})
    bundle.add_text("Neck", writer.text(), like=parts.__name__)
    return writer.state()


class _Writer:
    def __init__(self, neck: Neck, bundle: Bundle, substitutes: Substitutes) -> None:
        self.neck = neck
        self.bundle = bundle
        self.substitutes = substitutes
        self.nodes = [shapes.node for shapes in neck.graph.walked]
        self.taken = {"self", "features", "torch", "nn", "F", *keyword.kwlist, *dir(nn.Module())}
        self.taken |= {f"size{level}" for level in range(64)}
        self.attributes: dict[tuple[int, ...], str] = {}  # of the modules' ids
        self.modules = nn.Module()
        self.constructors: list[str] = []
        self.levels: set[int] = set()  # whose sizes are read
        self.variables = {
            name: self.free(name)
            for name in [*(input_name(s.level) for s in neck.graph.inputs), *(n.name for n in self.nodes)]
        }
        self.steps = [line for node in self.nodes for line in self.step(node)]

    def free(self, wanted: str) -> str:
        """A name that nothing has yet, as near as possible to the one wanted."""
        base = name = _identifier(wanted)
        number = 1
        while name in self.taken:
            number += 1
            name = f"{base}_{number}"
        self.taken.add(name)
        return name

    def state(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self.modules.state_dict().items()}

    # -- the class ------------------------------------------------------------------------------------------------

    def text(self) -> str:
        graph = self.neck.graph
        inputs_text = ", ".join(f"C{s.level} ({s.channels} channels, stride {s.stride})" for s in graph.inputs)
        given = ", ".join(f"P{s.level}" for s in graph.out_features)
        channels = graph.out_features[0].channels
        inputs = ", ".join(self.variables[input_name(s.level)] for s in graph.inputs)
        outputs = ", ".join(self.variables[name] for name in graph.outputs)
        lines = [
            "class Neck(nn.Module):",
            '    """The neck: the maps of a backbone, finest first, to a pyramid.',
            "",
            *_wrapped(f"In: {inputs_text}. Out: {given}, {channels} channels each.", 4),
            '    """',
            "",
            "    def __init__(self) -> None:",
            "        super().__init__()",
            *_in_body(self.constructors),
            "",
            "    def forward(self, features: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:",
            '        """[N, C, H, W] a level, of any size -> [N, C, H, W] a level."""',
            f"        {inputs}{',' * (len(graph.inputs) == 1)} = features",
            *_in_body([*self.size_lines(), *self.steps]),
            f"        return ({outputs}{',' * (len(graph.outputs) == 1)})",
        ]
        return "\n".join(lines)

    def size_lines(self) -> list[str]:
        """``size4 = C4.shape[-2:]``; levels without a map are half the finer, or twice the coarser one."""
        given = [s.level for s in self.neck.graph.inputs]
        wanted = set(self.levels)
        for level in sorted(self.levels, key=lambda k: -abs(k - given[0])):
            step = -1 if level > given[0] else 1
            while level not in given:
                level += step
                wanted.add(level)
        lines = {}
        for level in wanted:
            if level in given:
                lines[level] = f"size{level} = {self.variables[input_name(level)]}.shape[-2:]"
            elif level > given[0]:
                lines[level] = f"size{level} = [(side + 1) // 2 for side in size{level - 1}]"
            else:
                lines[level] = f"size{level} = [2 * side for side in size{level + 1}]"
        finer = [lines[k] for k in sorted(lines) if k >= given[0]]
        return finer + [lines[k] for k in sorted(lines, reverse=True) if k < given[0]]

    # -- one node -------------------------------------------------------------------------------------------------

    def step(self, node: Node) -> list[str]:
        step: Any = self.neck.steps[node.name]
        target = self.variables[node.name]
        alone = step.merge is None and step.after is None
        maps = [
            self.path(path, edge, node.name if alone else f"{node.name}_from_{edge.source}")
            for path, edge in zip(step.paths, node.inputs, strict=True)
        ]
        lines = []
        if step.merge is None:
            merged = maps[0]
        else:
            if len(f"        {target} = {self.merged(step.merge, maps, node)}") > WIDTH:
                for i, edge in enumerate(node.inputs):
                    if not maps[i].isidentifier():
                        variable = self.free(f"{node.name}_from_{edge.source}")
                        lines.append(f"{variable} = {maps[i]}")
                        maps[i] = variable
            merged = self.merged(step.merge, maps, node)
        if step.after is not None:
            attribute = self.attribute(list(step.after), node.name)
            if step.merge is not None:
                lines.append(f"{target} = {merged}")
                merged = target
            merged = f"self.{attribute}({merged})"
        return [*lines, f"{target} = {merged}"]

    def path(self, path: Any, edge: Edge, wanted: str) -> str:
        """A map on its way along an edge, as an expression."""
        x = self.variables[edge.source]
        waiting: list[nn.Module] = []
        for op, level in [*zip(path.ops, path.levels, strict=True), (None, None)]:
            if op is not None and level is None and not hasattr(op, "expression"):
                waiting.append(op)
                continue
            if waiting:
                x = f"self.{self.attribute(waiting, wanted)}({x})"
                waiting = []
            if op is not None:
                x = self.resized(op, x, level, wanted)
        return x

    def resized(self, op: nn.Module, x: str, level: int | None, wanted: str) -> str:
        """An operation that is told the size to reach."""
        size = "" if level is None else f"size{level}"
        if level is not None:
            self.levels.add(level)
        if type(op) not in self.substitutes and hasattr(op, "expression"):
            text: str = op.expression(x, size)  # type: ignore[operator]
            return text
        return f"self.{self.attribute([op], wanted)}({', '.join(filter(None, (x, size)))})"

    def merged(self, merge: nn.Module, maps: Sequence[str], node: Node) -> str:
        if hasattr(merge, "expression"):
            text: str = merge.expression(maps)  # type: ignore[operator]
            return text
        return f"self.{self.attribute([merge], f'{node.name}_merge')}([{', '.join(maps)}])"

    # -- layers ---------------------------------------------------------------------------------------------------

    def attribute(self, modules: Sequence[nn.Module], wanted: str) -> str:
        """The attribute that these modules, one behind the other, are; made when they first come."""
        key = tuple(map(id, modules))
        if key not in self.attributes:
            # A node's map and its layers may have one name: the one is a variable, the other an attribute.
            clean = _identifier(wanted)
            name = clean if self.variables.get(wanted) == clean and not hasattr(self.modules, clean) else None
            self.attributes[key] = name = name or self.free(wanted)
            self.modules.add_module(name, modules[0] if len(modules) == 1 else nn.Sequential(*modules))
            texts = [self.constructor(module) for module in modules]
            self.constructors.append(
                f"self.{name} = " + (texts[0] if len(texts) == 1 else f"nn.Sequential({', '.join(texts)})")
            )
        return self.attributes[key]

    def constructor(self, module: nn.Module) -> str:
        cls = type(module)
        if isinstance(module, nn.Sequential):
            return f"nn.Sequential({', '.join(map(self.constructor, module))})"
        if isinstance(module, layers.StridedConv):
            self.bundle.add(cls)
            tile = f", tile={module.tile}" if module.tile > 1 else ""
            return f"{cls.__name__}({self.constructor(module.conv)}{tile})"
        if hasattr(module, "arguments"):
            written = self.substitutes.get(cls, cls)
            self.bundle.add(written)
            return f"{written.__name__}({module.arguments})"
        if isinstance(module, layers.BatchNorm):
            return f"nn.BatchNorm2d({_torch_arguments(module)})"
        if isinstance(module, (layers.PixelLayerNorm, layers.ChannelNorm)):
            self.bundle.add(cls)
            return f"{cls.__name__}({_torch_arguments(module)})"
        if not cls.__module__.startswith("torch."):
            raise ExportError(f"expected the layer {cls.__name__} to know its arguments; make it by make_layer")
        return f"nn.{cls.__name__}({_torch_arguments(module)})"


def _identifier(name: str) -> str:
    """A node's name, which is never empty, with what cannot stand in a name of Python replaced."""
    clean = re.sub(r"\W", "_", name, flags=re.ASCII)
    return f"_{clean}" if clean[0].isdigit() else clean


def _torch_arguments(module: nn.Module) -> str:
    """Arguments of the constructor of one of torch's own modules: what it prints of itself, less the defaults."""
    parameters = inspect.signature(type(module)).parameters
    call = ast.parse(f"f({module.extra_repr()})", mode="eval").body
    assert isinstance(call, ast.Call)
    texts = [ast.unparse(argument) for argument in call.args]
    for item in call.keywords:
        value = ast.literal_eval(item.value)
        if isinstance(value, tuple) and len(set(value)) == 1 and len(value) > 1:
            value = value[0]  # kernel_size=(3, 3)
        assert item.arg is not None
        if value != parameters[item.arg].default:
            texts.append(f"{item.arg}={value!r}")
    return ", ".join(texts)


def _in_body(lines: Sequence[str]) -> list[str]:
    """Lines of a method's body, broken where they are too long."""
    return [broken for line in lines for broken in _broken(line, 8)]


def _broken(line: str, indent: int) -> list[str]:
    """A line, or where it is too long its outermost brackets' items on lines of their own, as formatters do."""
    if indent + len(line) <= WIDTH or "(" not in line:
        return [" " * indent + line]
    opening, depth, starts = line.index("("), 0, [line.index("(") + 1]
    for position, character in enumerate(line):
        depth += (character in "([") - (character in ")]")
        if depth == 1 and character == ",":
            starts.append(position + 1)
        if depth == 0 and position > opening:
            break
    else:
        return [" " * indent + line]
    ends = [*(start - 1 for start in starts[1:]), position]
    items = [line[start:end].strip() + "," for start, end in zip(starts, ends, strict=True) if line[start:end].strip()]
    behind = _broken(line[position:], indent)
    inner = [broken for item in items for broken in _broken(item, indent + 4)]
    return [" " * indent + line[: opening + 1], *inner, *behind]


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * indent)
