"""The evaluator: a small image encoder whose pictures lie near the texts that name them, and a style head.

It judges generated drawings: which concept is it, among all there are, and in which style; its features stand
in for Inception's in distances between sets of pictures. Texts come in as frozen sentence embeddings (see
`fewstep.models.text.sentences`), so that a concept without trained drawings can be ranked too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn

from fewstep.errors import RecipeError

MAX_FEATURES = 512
"""Distances between sets of pictures need more pictures than features."""

_FIRST_TEMPERATURE = 0.07
_LARGEST_SCALE = 100.0

Count = Annotated[int, Field(ge=1)]


class EvaluatorConfig(BaseModel):
    """Shape of an evaluator, as it stands in a recipe's ``model`` section and in ``config.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    styles: Count
    """Styles that the style head tells apart."""
    text_width: Count = 384
    """Width of the sentence embeddings."""
    side: Annotated[int, Field(ge=8)] = 64
    """Pictures are averaged over areas down to this width and height."""
    channels: tuple[Count, ...] = (32, 64, 128, 256)
    """Width of each stage; the last is the number of features."""
    blocks: tuple[Count, ...] = (1, 2, 2, 2)
    """Residual blocks of each stage; every stage after the first halves the picture."""
    embedding: Count = 256
    """Width of the space that pictures and texts share."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the features that is dropped before both heads, in training."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.channels or len(self.channels) != len(self.blocks):
            raise ValueError(f"{len(self.channels)} channels but {len(self.blocks)} blocks: give one a stage")
        if self.channels[-1] > MAX_FEATURES:
            raise ValueError(f"{self.channels[-1]} features: give at most {MAX_FEATURES}")
        if self.side % 2 ** len(self.channels):
            raise ValueError(f"side {self.side} cannot be halved {len(self.channels)} times")
        return self


class EvaluatorOutput(NamedTuple):
    """What an evaluator says about B pictures."""

    features: torch.Tensor
    """(B, F), at least 0, averaged over the picture."""
    concept: torch.Tensor
    """(B, D), unit length; compared with texts by `Evaluator.concept_logits`."""
    style: torch.Tensor
    """(B, S), logits."""


class Evaluator(nn.Module):
    """A residual network that normalises before each convolution (He 2016, arXiv 1603.05027, figure 4e).

    Batch normalisation (Ioffe and Szegedy 2015, arXiv 1502.03167, Algorithms 1 and 2). Group normalisation,
    which needs no statistics of the batch, learnt more slowly in short trials (perhaps because one picture's
    statistics are mostly those of its background; that was not looked into). In evaluation the statistics
    are constants, so what is said of a picture does not depend on its neighbours. In training, a batch that
    is cut in parts (``runtime.accumulation``) takes the statistics of each part.

    Pictures and texts are compared by cosine over a learnt temperature, as in CLIP (Radford et al. 2021,
    arXiv 2103.00020, section 2.3 and figure 3). Two departures: the text encoder is frozen and only a linear
    map of its embeddings is trained; and the candidates are all trained concepts, not the captions of the
    batch.
    """

    def __init__(self, config: EvaluatorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.channels[0]
        self.stem = nn.Conv2d(3, width, 5, 2, 2, bias=False)
        stages: list[nn.Module] = []
        for stage, (wider, blocks) in enumerate(zip(config.channels, config.blocks, strict=True)):
            for block in range(blocks):
                halved = stage > 0 and block == 0
                stages.append(_Block(width, wider, halved=halved))
                width = wider
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(config.dropout)
        self.concept_head = nn.Linear(width, config.embedding)
        self.style_head = nn.Linear(width, config.styles)
        self.text_map = nn.Linear(config.text_width, config.embedding)
        self.log_scale = nn.Parameter(torch.tensor(1 / _FIRST_TEMPERATURE).log())
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixels: torch.Tensor) -> EvaluatorOutput:
        """Pictures (B, 3, H, W) in [-1, 1], of any size from ``config.side`` up, to their three answers."""
        side = self.config.side
        if pixels.shape[-2:] != (side, side):
            pixels = F.adaptive_avg_pool2d(pixels, side)
        hidden = self.stages(self.stem(pixels))
        features = F.relu(self.norm(hidden)).mean((2, 3))
        seen = self.dropout(features)
        return EvaluatorOutput(features, F.normalize(self.concept_head(seen)), self.style_head(seen))

    def concept_logits(self, output: EvaluatorOutput, text_embeddings: torch.Tensor) -> torch.Tensor:
        """How well each picture fits each text: cosine over temperature.

        Args:
            output: of B pictures.
            text_embeddings: (K, ``config.text_width``), from `fewstep.models.text.sentences`.

        Returns:
            (B, K), at most 100 in absolute value.
        """
        texts = F.normalize(self.text_map(text_embeddings))
        # CLIP's limit: without one, the temperature of a set that is learnt by heart falls without end
        scale = self.log_scale.exp().clamp(max=_LARGEST_SCALE)
        logits: torch.Tensor = scale * output.concept @ texts.T
        return logits


def build(config: Mapping[str, Any]) -> Evaluator:
    """A new evaluator with random weights from a recipe's ``model`` section.

    Raises:
        RecipeError: an unknown key, or a value that does not fit.
    """
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    try:
        return Evaluator(EvaluatorConfig.model_validate(values))
    except ValidationError as error:
        raise RecipeError(f"model: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """Say in one line what is wrong with a configuration, and which keys there are."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}; there are: {', '.join(sorted(EvaluatorConfig.model_fields))}"
    return f"{key}: {first['msg']}; correct it" if key else f"{first['msg']}; correct it"


class _Block(nn.Module):
    """Two convolutions around a shortcut; the shortcut halves by averaging, which loses no pixel."""

    def __init__(self, before: int, width: int, *, halved: bool) -> None:
        super().__init__()
        stride = 2 if halved else 1
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.pool = nn.AvgPool2d(2) if halved else nn.Identity()
        self.skip = nn.Conv2d(before, width, 1, bias=False) if before != width else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(F.relu(self.norm1(x)))
        hidden = self.conv2(F.relu(self.norm2(hidden)))
        total: torch.Tensor = hidden + self.skip(self.pool(x))
        return total
