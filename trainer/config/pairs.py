"""How the pairs of a translation come: as the source has them, cut out of one picture, or made of a photograph."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from trainer.config.base import Section


class Way(Section):
    """A way to a pair. `derived`: the input is made of the target, so that every source of images will do."""

    derived: ClassVar[bool] = False


class Given(Way):
    """The source says both pictures of a pair: `pairs:…`."""

    kind: Literal["given"] = "given"


class Side(Way):
    """Both pictures stand side by side in one file, each half of it."""

    kind: Literal["side"] = "side"
    at: Literal["left", "right"] = Field("left", description="where the input stands")


class Grey(Way):
    """The photograph without its colours (ITU-R 601 luma)."""

    kind: Literal["grey"] = "grey"
    derived: ClassVar[bool] = True


class Small(Way):
    """The photograph with so many times fewer pixels a side, enlarged again (both bicubic)."""

    kind: Literal["small"] = "small"
    derived: ClassVar[bool] = True
    factor: int = Field(4, ge=2, le=64)


class Edges(Way):
    """The strength of the photograph's edges (Sobel), after a Gaussian blur; dark on white."""

    kind: Literal["edges"] = "edges"
    derived: ClassVar[bool] = True
    blur: float = Field(1.0, gt=0, le=20, description="deviation in pixels")
    gain: float = Field(4.0, gt=0, le=100, description="how dark an edge is: 1: black where white and black meet")


class Masked(Way):
    """The photograph with rectangles in it grey: other ones for each sample and epoch, the same at every evaluation."""

    kind: Literal["masked"] = "masked"
    derived: ClassVar[bool] = True
    count: int = Field(1, ge=1, le=16, description="rectangles")
    share: tuple[float, float] = Field((0.1, 0.3), strict=False, description="of the area, each of them: from, to")

    @model_validator(mode="after")
    def _ordered(self) -> Masked:
        if not 0 < self.share[0] <= self.share[1] <= 0.9:
            raise ValueError(f"share is {list(self.share)}; write two shares of the area up to 0.9, such as [0.1, 0.3]")
        return self


_ONE_PICTURE = ("color", "grey", "blur", "solarize", "auto", "erase")  # augmentations that are no change of place


def fit(pairs: Way, data: Any) -> None:
    """Raises ValueError where sources or augmentations do not go with a way to pairs: only sources of pairs say both pictures,
    which are changed alike.
    """
    given = isinstance(pairs, Given)
    for key in ("train", "val"):
        source = getattr(data, key)
        if source is None or source.startswith(("split:", "fold:")):
            continue
        if source.startswith("pairs:") != given:
            raise ValueError(
                f"data.{key} is '{source}', and task.pairs: given takes pairs:FOLDER or pairs:FILE.csv; or say how a pair "
                "comes of one picture: task.pairs: side, grey, small, edges or masked"
                if given
                else f"data.{key}: {source} says pairs itself; write task.pairs: given"
            )
    if not pairs.derived:
        plain = type(data.augment)()
        for name in _ONE_PICTURE:
            if getattr(data.augment, name) != getattr(plain, name):
                raise ValueError(
                    f"data.augment.{name} would change the two pictures of a pair, which have to show the same; leave it "
                    "out (crop, flip and rotate are the same for both)"
                )
    if data.classes is not None and given:
        raise ValueError("data.classes chooses among classes, and pairs have none; leave it out")


def _word(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


_Ways = Given | Side | Grey | Small | Edges | Masked
_SHORT: dict[str, Any] = {"enum": ["given", "side", "grey", "small", "edges", "masked"]}
_SCHEMA = {"anyOf": [_SHORT, *(way.model_json_schema() for way in get_args(_Ways))]}
Pairs = Annotated[Annotated[_Ways, Field(discriminator="kind")], BeforeValidator(_word), WithJsonSchema(_SCHEMA)]
