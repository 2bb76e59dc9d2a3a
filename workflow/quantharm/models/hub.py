"""One question to the hub before anything is downloaded: whether it answers, and has the repository and the commit.

The hub's own client tries six times, for more than twenty seconds, before it reports that there is no network.
"""

from quantharm.common.errors import UserError, first_line

ANSWER_SECONDS = 5


def ask_hub(name: str, revision: str | None, kind: str) -> str:
    """Why the hub cannot be reached, or "" where it can; kind: `model` or `dataset`.

    Where it cannot, its client goes offline: it takes files from the cache without trying again. Raises UserError where
    the hub has no such name or revision, or wants a login.
    """
    from huggingface_hub import HfApi, constants, errors

    try:
        HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=ANSWER_SECONDS)
    except errors.RevisionNotFoundError:
        raise UserError(f"{name} has no revision {revision} on the hub; correct `revision:` in the config") from None
    except errors.GatedRepoError:
        raise UserError(
            f"{name} is gated: accept its terms on the hub, then log in with `hf auth login` and run again"
        ) from None
    except errors.RepositoryNotFoundError:
        key = "source" if kind == "model" else "dataset"
        raise UserError(
            f"{name} does not exist on the hub (or needs a login); correct `{key}:` in the config"
        ) from None
    except (errors.HTTPError, OSError) as error:
        constants.HF_HUB_OFFLINE = True
        return first_line(error)
    return ""


def why_unreachable() -> str:
    """Why the hub cannot be reached, or "" where it can.

    Where it cannot, its client and `datasets` go offline: they take files from their caches.
    """
    import datasets
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_SECONDS)
    except Exception as error:  # of its HTTP library, which changed between versions
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = datasets.config.HF_DATASETS_OFFLINE = True
        return first_line(error)
    return ""
