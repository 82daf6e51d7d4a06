"""All that the card of a model says, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..config import QuantConfig
from ..tables import bits_name
from .records import Accuracy, Speed, Training
from .scheme import Scheme


@dataclass(frozen=True)
class Figure:
    """A picture in the repository: its path there, a title and a caption."""

    file: str
    title: str
    caption: str


@dataclass(frozen=True)
class CardFacts:
    """All that a card says.

    Attributes:
        name: of the model, such as "vit_w2a2".
        where: what loads it: its id on the Hub, or a folder.
        architecture: class of the model.
        num_classes: number of classes.
        image_size: (height, width) in pixels; None where the model takes any.
        quantization: configuration of the model.
        scheme: what is packed how.
        model_type: `config.model_type`.
        accuracies: what was measured; those of the model itself go into the metadata.
        speeds, speed_machine: a speed measurement, and where it was made.
        training: how it was trained; None where unknown.
        base_model: Hub id of the full-precision start, if it has one.
        license: identifier as the Hub has it, such as "apache-2.0"; None where unknown.
        datasets: Hub ids of the data that it was trained on.
        tags: beside those that every card has.
        figures: pictures in the repository.
        exports: files of exported forms in the repository, by name of the form.
        has_remote_code: whether the file that loads it without this package is in the repository.
        recipe_file: the recipe in the repository, if it is there.

    Raises:
        ValueError: a field that the Hub would not index as it is meant.
    """

    name: str
    where: str
    architecture: str
    num_classes: int
    image_size: tuple[int, int] | None
    quantization: QuantConfig
    scheme: Scheme
    model_type: str
    accuracies: Sequence[Accuracy] = ()
    speeds: Sequence[Speed] = ()
    speed_machine: str = ""
    training: Training | None = None
    base_model: str | None = None
    license: str | None = None
    datasets: Sequence[str] = ()
    tags: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    exports: Mapping[str, Sequence[str]] = field(default_factory=dict)
    has_remote_code: bool = True
    recipe_file: str | None = None

    def __post_init__(self) -> None:
        for name, value in [("base_model", self.base_model), *(("datasets", value) for value in self.datasets)]:
            try:
                if value is not None:
                    validate_repo_id(value)
            except HFValidationError as error:
                raise ValueError(f"card: {name} is {value!r}; accepted: an id on the Hub ({error}).") from error
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", self.license):
            raise ValueError(
                f"card: license is {self.license!r}; accepted: an identifier of the Hub, such as 'apache-2.0', 'mit'"
                " or 'other'."
            )

    @property
    def bits(self) -> str:
        """The usual short form, such as "W2A2"."""
        return bits_name(self.quantization.weight_bits, self.quantization.activation_bits)
