"""The manifest of a folder of samples: everything that makes the same files again, as plain values in JSON."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import torch
from annotated_types import Ge
from torch import Tensor
from typing_extensions import TypedDict

from fastdiff.checkpoints.config import model_config
from fastdiff.engine.context import in_turn
from fastdiff.engine.pictures import check_resample, choose_strength
from fastdiff.engine.request import Request
from fastdiff.errors import InputError, shown
from fastdiff.files import save_text
from fastdiff.model import Model
from fastdiff.samplers.prediction import choose_clip
from fastdiff.samplers.spacing import first_row
from fastdiff.schema import First, check, read_json

NAME = "manifest.json"
FORMAT = 1
RESTORED = ("batch_size", "threads", "dtype", "form", "device")  # of the engine's configuration, when a run goes on

Manifest = dict[str, Any]


class _Files(TypedDict):
    format: Literal["npz", "npy", "png"]
    shard_size: Annotated[int, Ge(1)]


class _Samples(TypedDict):
    n: Annotated[int, Ge(1)]
    first: Annotated[int, Ge(0)]


class _Configuration(TypedDict):
    batch_size: Annotated[int, Ge(1)]
    threads: NotRequired[Annotated[int, Ge(1)] | None]
    dtype: NotRequired[Literal["float32", "bfloat16", "float16"] | None]
    form: NotRequired[str | None]
    device: NotRequired[str | None]


class _Model(TypedDict):
    sha256: str


class _Manifest(TypedDict):
    """What is read of a manifest; all else is only compared."""

    format: Literal[1]
    fastdiff: str
    model: _Model
    samples: _Samples
    files: _Files
    configuration: _Configuration
    smaller_batches: dict[str, Annotated[int, Ge(1)]]
    notes: Annotated[list[str], First()]


@dataclass(frozen=True)
class Samples:
    """Which samples, as plain values for the manifest; the fields are those of `fastdiff.sample`.

    Attributes:
        sampler: None is the model's scheduler.
        steps: their number; None with timesteps.
        contexts: K numbers each, or nested lists of tokens, or the numbers of classes; sample i takes number i modulo
            their count.
        strength: None is the usual one.
        pictures: init, mask and known, as `fastdiff.sample` takes them; the manifest has their hashes.
    """

    sampler: str | None
    steps: int | None
    eta: float
    spacing: str | None
    clip: Any
    seed: int
    first: int
    n: int
    contexts: list[Any]
    guidance_scale: float | None
    sigmas: str | None = None
    timesteps: list[float] | None = None
    strength: float | None = None
    resample: int = 1
    pictures: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """The sampler's steps that are run."""
        steps = int(self.steps or 0) if self.timesteps is None else len(self.timesteps)
        return steps - first_row(self._kept, steps)

    @property
    def _kept(self) -> float:
        """The share of the steps that is run."""
        return choose_strength(self.strength, self.pictures.get("init"))

    def values(self, model: Model) -> dict[str, Any]:
        """The fields, with the clip and the strength in effect; raises InputError for wrong ones."""
        made = {**asdict(replace(self, pictures={})), "clip": choose_clip(self.clip, model.clip)}
        made["strength"] = self._kept
        made["pictures"] = {name: tensors_sha256({name: one}) for name, one in self.pictures.items()}
        unset: dict[str, Any] = {"strength": 1.0, "resample": 1, "pictures": {}}
        return {name: value for name, value in made.items() if name not in unset or value != unset[name]}

    def request(self, model: Model) -> Request:
        """The request for all of them, checked; raises InputError."""
        check_resample(self.resample, self.pictures.get("mask"))
        return Request.of(
            model,
            self.n,
            table=model.table(
                self.sampler,
                self.steps,
                eta=self.eta,
                spacing=self.spacing,
                sigmas=self.sigmas,
                timesteps=self.timesteps,
                strength=self._kept,
                resample=self.resample,
            ),
            seed=self.seed,
            first=self.first,
            context=in_turn(self.contexts),
            guidance_scale=self.guidance_scale,
            init=self.pictures.get("init"),
            mask=self.pictures.get("mask"),
            known=self.pictures.get("known"),
        )


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in order."""
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def model_facts(model: Model, name: str) -> dict[str, Any]:
    """The model's name as the user gave it, its weights' hash and its configuration."""
    return {"name": name, "sha256": tensors_sha256(model.network.state_dict()), **model_config(model)}


def new_manifest(
    version: str, model: dict[str, Any], samples: dict[str, Any], files: dict[str, Any], configuration: dict[str, Any]
) -> Manifest:
    """A run's manifest before its first shard.

    Args:
        version: of fastdiff.
        model: model_facts.
        samples: Samples.values.
        files: format and shard_size.
        configuration: Engine.configuration().
    """
    return plain(
        {
            "format": FORMAT,
            "fastdiff": version,
            "model": model,
            "samples": samples,
            "files": files,
            "configuration": configuration,
            "smaller_batches": {},
            "notes": [],
        }
    )


def plain(value: Any) -> Any:
    """The value after a round trip through JSON: tuples become lists."""
    return json.loads(json.dumps(value))


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest, or None; raises InputError if the file is not a manifest that this version reads."""
    path = folder / NAME
    if not os.path.lexists(path):
        return None
    try:
        return check(_Manifest, read_json(path), repr(str(path)))
    except InputError as error:
        raise InputError(
            f"{str(path)!r} is not a manifest that this version reads ({error}); accepted: another folder"
        ) from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    save_text(json.dumps(manifest, indent=2) + "\n", folder / NAME)


def check_same(folder: Path, old: Manifest, model: dict[str, Any], samples: dict[str, Any]) -> None:
    """Raise InputError for the first value that would make other samples; only n may grow."""
    given, had = plain(asked_for(model, samples)), asked_for(old["model"], old["samples"])
    for name in dict.fromkeys([*given, *had]):
        value, before = given.get(name), had.get(name)
        if name == "n" and value < before:
            raise InputError(
                f"n = {value}; the run in {str(folder)!r} has {before}: give as many, more to extend it, "
                "or another folder"
            )
        if name != "n" and value != before:
            raise _differs(folder, name, value, before)


def asked_for(model: Mapping[str, Any], samples: Mapping[str, Any]) -> dict[str, Any]:
    """model_facts and Samples.values in one, under the names that messages have; a model may have several names."""
    called = {"sha256": "weights (sha256)"}
    of_model = {f"the model's {called.get(name, name)}": one for name, one in model.items() if name != "name"}
    return {**of_model, **samples}


def check_given(folder: Path, old: dict[str, Any], given: dict[str, Any]) -> None:
    """Raise InputError for an option that is given and contradicts the run's."""
    for name, value in given.items():
        if value is not None and old.get(name) is not None and value != old[name]:
            raise _differs(folder, name, value, old[name])


def _differs(folder: Path, name: str, value: Any, before: Any) -> InputError:
    return InputError(
        f"{name} = {shown(value)}; the run in {str(folder)!r} has {shown(before)}: give the same, or another folder"
    )


def changes(manifest: Manifest, facts: list[dict[str, Any] | None]) -> list[str]:
    """What has changed since the run began, although no option did: another machine, other versions.

    Args:
        manifest: the run's.
        facts: of each process, the engine's configuration and fastdiff's version; None if it has no work.

    Returns:
        A line for each change, none twice.
    """
    before = {"fastdiff": manifest["fastdiff"], **manifest["configuration"]}
    found = [
        f"{name} {value!r} in place of {before.get(name)!r}"
        for of_one in facts
        for name, value in plain(of_one or {}).items()
        if name not in RESTORED and value != before.get(name)
    ]
    return list(dict.fromkeys(found))
