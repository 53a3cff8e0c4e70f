"""The HTTP application on Ray Serve: replicas on one or several machines, autoscaling, models multiplexed.

    serve run hfseq.serving.ray_app:app model_dirs=outputs/translation,outputs/sentiment num_replicas=2

or, in a config file of Ray Serve, `import_path: hfseq.serving.ray_app:app` with the fields of `Arguments` as `args`.

Two deployments answer a request. `Ingress` owns HTTP: it checks the key and the size, chooses the model and hands the
request to a replica of `Models`, which answers it with the application of `python -m hfseq.serve`, batching included.
When a replica dies, its requests are answered by another: a request changes nothing, so it may be repeated.
"""

from typing import Any

from ray import serve
from ray.serve import Application

from hfseq.serving.ray_arguments import GRACE, Arguments
from hfseq.serving.ray_ingress import Ingress
from hfseq.serving.ray_models import Models

_HEALTH_PERIOD = 2.0  # seconds; a dead replica is replaced after as many at most


def app(args: Arguments) -> Application:
    """Build the application of Ray Serve.

    Args:
        args: Its arguments; Ray converts those of a command line or a config file.

    Raises:
        InputError: If two models have one name.
    """
    args.directories()
    most = args.max_replicas or args.num_replicas
    # Twice what a batch holds: the next one waits at the replica, the others where any replica can take them.
    ongoing = 2 * args.max_batch_size
    scaling = {
        "min_replicas": args.num_replicas,
        "max_replicas": most,
        "target_ongoing_requests": max(1, args.max_batch_size // 2),
    }
    fixed = args.max_replicas is None
    number: dict[str, Any] = {"num_replicas": args.num_replicas} if fixed else {"autoscaling_config": scaling}
    models: Any = serve.deployment(
        Models,
        name="Models",
        max_ongoing_requests=ongoing,
        max_queued_requests=args.max_queue,
        graceful_shutdown_timeout_s=args.timeout + GRACE,
        health_check_period_s=_HEALTH_PERIOD,
        ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
        logging_config={"enable_access_log": False},  # the application has its own
        **number,
    )
    ingress = serve.deployment(
        name="Ingress",
        num_replicas=args.num_ingresses,
        max_ongoing_requests=args.max_queue + ongoing * most,
        graceful_shutdown_timeout_s=args.timeout + GRACE,
        health_check_period_s=_HEALTH_PERIOD,
        ray_actor_options={"num_cpus": 0},  # it waits more than it works
    )(serve.ingress()(Ingress))
    return ingress.bind(args, models.bind(args))
