"""Opens the language model that the settings of a stage name: a local one, or one behind an endpoint."""

from leyden.core.errors import UserError
from leyden.data.label.language_model import LanguageModel, ModelSettings, OpenModel


def open_model(settings: ModelSettings, open_local: OpenModel | None) -> LanguageModel:
    """The model that ``settings`` name.

    Args:
        settings: of the stage.
        open_local: opens a local model.

    Raises:
        UserError: the model is local, and there is nothing to open it or it cannot be opened.
    """
    if settings.path is None:
        from leyden.data.label.endpoint import Endpoint  # httpx is slow to import

        return Endpoint(settings)
    if not settings.path.is_dir():
        raise UserError(f"model.path: {settings.path} is no directory; give that of a model, or an endpoint's url.")
    if open_local is None:
        raise UserError(f"model.path = {settings.path}: local models are opened by `leyden data build`; or give a url.")
    return open_local(str(settings.path))
