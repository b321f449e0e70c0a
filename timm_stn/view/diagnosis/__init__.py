"""What is wrong with the transformers of a network? `diagnose` says it in plain words, with the knob to turn."""
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import nn

from .examine import IsRight, answered_right, batches_of, examine
from .examined import Examined
from .figures import Figures, Range, Share, figures_of
from .picture import draw_diagnosis
from .verdict import Fault, faults_of, healthy

__all__ = ['Diagnosis', 'Fault', 'Figures', 'Finding', 'Range', 'Share', 'answered_right', 'diagnose']

MOST = 500  # images


@dataclass(frozen=True)
class Finding:
    """What was found of one transformer: its figures, and its faults, the worst first; none if it is healthy."""
    figures: Figures
    faults: list[Fault]

    @property
    def lines(self) -> list[str]:
        """One line for each fault, or one that says it is healthy; they begin with the stage."""
        texts = [fault.text for fault in self.faults] or [healthy(self.figures)]
        return [f'{self.figures.name or self.figures.stage}: {text}' for text in texts]

    @property
    def json(self) -> dict[str, Any]:
        """Plain values: the faults, each with kind and text, and the figures."""
        return {'faults': [fault._asdict() for fault in self.faults], **self.figures.json}

    def __str__(self) -> str:
        return '\n'.join([*self.lines, *(f'    {line}' for line in self.figures.lines)])


@dataclass(frozen=True)
class Diagnosis:
    """Of all transformers of a network, in the order of its modules."""
    findings: list[Finding]
    examined: list[Examined]

    @property
    def is_healthy(self) -> bool:
        return not any(finding.faults for finding in self.findings)

    @property
    def lines(self) -> list[str]:
        """The verdicts: one line each, with the knob to turn."""
        return [line for finding in self.findings for line in finding.lines]

    def picture(self, name: str = '') -> Image.Image:
        """Where views lie, what they show on average, and how theta varies."""
        faults = [finding.faults for finding in self.findings]
        return draw_diagnosis(name, self.examined, [' '.join(f.lines) for f in self.findings], faults)

    def __str__(self) -> str:
        return '\n'.join(map(str, self.findings))


def diagnose(
        model: nn.Module,
        loader: Iterable[Any],
        most: int = MOST,
        is_right: IsRight = answered_right,
) -> Diagnosis:
    """Say what is wrong with the spatial transformers of a trained network, and which knob to turn.

    The network runs over the same images as it is, with noise on them, with each transformer at its start, and with
    thetas shuffled between images; and once backwards. It is left as it is. Images are kept in memory.

    Args:
        model: A network with transformers, on any device.
        loader: Gives (images (N, C, H, W), targets), or (images, targets, boxes (N, B, 4)), or images alone: normalised
            as the network takes them, in random order. Targets are classes (N,); those below zero are not known. Boxes
            are left, top, right, bottom in [-1, 1] from edge to edge, nan where an image has fewer; what looks at
            features is not compared with them.
        most: Look at so many images at most.
        is_right: From logits (N, classes) and targets to whether they are right (N,); for targets of another kind.

    Raises:
        TypeError: The loader gives something else.
        ValueError: There are fewer than two images, or no transformer that runs.

    Example:
        >>> found = timm_stn.diagnose(model, loader)  # doctest: +SKIP
        >>> print(found)  # doctest: +SKIP
    """
    examined = examine(model, batches_of(loader, most, is_right is answered_right), is_right)
    found = []
    for each in examined:
        figures = figures_of(each)
        found.append(Finding(figures, faults_of(figures, each.watch)))
    return Diagnosis(found, examined)
