"""The tasks, by their names, and what a run asks of one."""

from pathlib import Path
from typing import Any, Protocol

from slotattn_fast.models.image_slots import ImageSlots
from slotattn_fast.models.slots_config import SlotsConfig
from slotattn_fast.train import loop
from slotattn_fast.train.config import TrainConfig
from slotattn_fast.train.discovery import Discovery
from slotattn_fast.train.property import PropertyTask
from slotattn_fast.train.setting import DEFAULT, Setting


class Task(loop.Task, Protocol):
    """What is done with a run besides its training loop."""

    def model_config(self) -> SlotsConfig:
        """Raises TypeError or ValueError, naming the field, for a model that cannot be built."""

    def model(self) -> ImageSlots:
        """With fresh weights."""

    def require_fitting_data(self, device: str) -> None:
        """Raises `RunError` or `DataError` if the run's data cannot be trained on; its images do fit."""

    def measure(self, model: Any, setting: Setting = DEFAULT) -> dict[str, Any]:
        """How good it is on held-out scenes, and with what it was measured, as plain data."""

    def draw_all(self, model: Any, folder: Path, setting: Setting = DEFAULT) -> list[Path]:
        """Writes the pictures of a finished run; returns their paths."""


def task_of(config: TrainConfig) -> Task:
    return Discovery(config) if config.task == "discovery" else PropertyTask(config)
