"""Arguments of the application on Ray Serve, and the messages between its deployments."""

from typing import Annotated, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from hfseq.serving.served import check_names, public_name, split_name

GRACE = 2.0
"""Seconds that the ingress, and a shutdown, wait beyond the time-out of a replica."""

Count = Annotated[int, Field(ge=1)]
Names = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    Field(min_length=1),
    BeforeValidator(lambda given: given.split(",") if isinstance(given, str) else given),
]


class Arguments(BaseModel):
    """Arguments of the application; those of the server's command line have its names.

    Attributes:
        model_dirs: Directories or Hub names of the models, `NAME=DIRECTORY` to name one; separated by commas on a
            command line. Every machine must find them under the same path.
        num_replicas: Number of replicas; the minimum where `max_replicas` is given.
        max_replicas: Maximum number of replicas for autoscaling; None for a fixed number.
        max_models: Maximum number of models that a replica has loaded; the one used least recently makes room for
            another. By default all are loaded at the start.
        num_cpus: Processors, and threads, of a replica.
        num_gpus: GPUs of a replica, or the share of one.
        num_ingresses: Number of processes that own HTTP.
        task: Name of a pipeline's task; by default it follows from the model.
        backend: `torch` or `onnx`; by default it follows from the directory.
        max_batch_size: Maximum number of inputs processed together.
        max_queue: Maximum number of waiting requests; of waiting inputs of a model in each replica.
        max_input_tokens: Maximum length of an input in tokens, of a series in values, of a history in items.
        max_new_tokens: Maximum number of generated tokens, and the default of requests that set none.
        max_body_mib: Maximum size of a request in MiB.
        timeout: Seconds after which a request is given up.
        traffic_dir: Directory to log inputs and outputs in; None for no log.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    model_dirs: Names
    num_replicas: Count = 1
    max_replicas: Count | None = None
    max_models: Count | None = None
    num_cpus: Annotated[float, Field(gt=0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    num_ingresses: Count = 1
    task: str | None = None
    backend: str | None = None
    max_batch_size: Count = 32
    max_queue: Count = 1024
    max_input_tokens: Count = 2048
    max_new_tokens: Count = 1024
    max_body_mib: Count = 16
    timeout: Annotated[float, Field(gt=0)] = 60.0
    traffic_dir: str | None = None

    def directories(self) -> dict[str, str]:
        """Directories, or Hub names, of the models by public name.

        Raises:
            InputError: If two models have one name.
        """
        named = [split_name(one) for one in self.model_dirs]
        check_names([name or public_name(directory) for name, directory in named])
        return {name or public_name(directory): directory for name, directory in named}

    @property
    def multiplexed(self) -> bool:
        """True if a replica has some of the models only."""
        return self.max_models is not None and self.max_models < len(self.model_dirs)


class Forwarded(NamedTuple):
    """A request on its way from the ingress to a replica; see ASGI's connection scope."""

    method: str
    path: str
    query_string: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Started(NamedTuple):
    """Beginning of a response on its way back; the parts of the body follow it."""

    status: int
    headers: list[tuple[bytes, bytes]]
