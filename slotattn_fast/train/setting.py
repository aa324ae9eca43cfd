"""What an evaluation of a run may have otherwise than its training had. Imports neither torch nor the models."""

from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from slotattn_fast.data.catalogue import GENERATED
from slotattn_fast.models.slots_config import SlotsConfig
from slotattn_fast.train.config import TrainConfig


@dataclass(frozen=True)
class Setting:
    """What an evaluation has otherwise than the training had; None: nothing."""

    iters: int | None = None
    """Iterations of Slot Attention (the paper's Figure 2)."""
    num_slots: int | None = None
    max_objects: int | None = None
    data: str | None = None
    """A data set that is generated, or a prepared folder."""

    def of(self, config: TrainConfig) -> TrainConfig:
        """The run's configuration with the data of this setting."""
        data = config.data if self.data is None else self.data
        most = config.max_objects if self.max_objects is None else self.max_objects
        return replace(config, data=data, max_objects=most)

    def suffix(self) -> str:
        """Of names, that tells what is otherwise, such as "-iters-5"; empty if nothing is."""
        given = (("iters", self.iters), ("slots", self.num_slots), ("objects", self.max_objects), ("data", self.data))
        words = [f"-{name}-{Path(str(value)).name}" for name, value in given if value is not None]
        return "".join(words)

    def file(self) -> str:
        """Of the evaluation; folders of one name and different places have different files."""
        place = ""
        if self.data is not None and self.data not in GENERATED:
            place = f"-{sha256(str(Path(self.data).resolve()).encode()).hexdigest()[:6]}"
        return f"eval{self.suffix()}{place}.json"


DEFAULT = Setting()


def iters_of(model: SlotsConfig, setting: Setting) -> int | None:
    """Iterations of Slot Attention; None of a model without it."""
    if model.grouping != "slot-attention":
        return None
    return model.iters if setting.iters is None else setting.iters
