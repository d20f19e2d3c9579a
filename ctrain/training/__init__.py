"""Room of training: a run request in, a registered model version out. Needs torch and Ray."""

from ctrain.training.room import RayTraining
from ctrain.training.run import execute

__all__ = ["RayTraining", "execute"]
