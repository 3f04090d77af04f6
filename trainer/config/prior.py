"""What a generator's weights knew before, and shall not forget: the section `task.prior`."""

from __future__ import annotations

from pydantic import Field, model_validator

from trainer.config.base import Section

DRAWN = 200  # images, where nobody says how many (Ruiz et al. 2023: some 200 an image of the subject at most)


class Prior(Section):
    """Prior preservation (Ruiz et al. 2023, equation 2): beside each image of the data one of what the weights knew before.

    They are drawn once, before the training, by the weights that the run begins with, or they are given as `data`. Their loss is
    called prior: its weight is losses.weights.prior, 1 where nothing is written.
    """

    images: int | None = Field(None, ge=1, le=1_000_000, description=f"so many are drawn, none: {DRAWN}")
    prompts: list[str] = Field(default_factory=list, description="of text: what is drawn, in turn")
    classes: list[str] = Field(
        default_factory=list, description="of class: what is drawn, in turn, or taken of `data`; they join those of the data"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of the first image that is drawn; the next ones have the next seeds")
    data: str | None = Field(None, description="images that are given instead of drawn: a source such as folder:PATH")

    @property
    def count(self) -> int:
        """Images that are drawn."""
        return 0 if self.data is not None else DRAWN if self.images is None else self.images

    @property
    def words(self) -> list[str]:
        """What is drawn, in turn; nothing where the network is told of none."""
        return self.prompts or self.classes

    @model_validator(mode="after")
    def _fits(self) -> Prior:
        if self.data is not None and (self.images is not None or self.prompts):
            raise ValueError("prior.images and prior.prompts say what is drawn, and with prior.data nothing is; leave either out")
        if self.data is not None and self.data.startswith(("split:", "fold:")):
            raise ValueError(f"prior.data is '{self.data}', which is no source; write such as folder:PATH")
        for key in ("prompts", "classes"):
            names = getattr(self, key)
            if len(set(names)) < len(names) or (key == "classes" and "" in names):
                raise ValueError(f"prior.{key}: a name comes twice, or is empty")
        if self.words and len(self.words) > self.count and self.data is None:
            raise ValueError(f"prior.images is {self.count}, fewer than the {len(self.words)} that are to be drawn in turn")
        return self
